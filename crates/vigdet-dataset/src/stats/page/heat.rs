//! Where the centres of objects lie in their image.

use super::{left, percent, titled, Area, Stats, MARGIN};
use crate::stats::GRID;
use plotters::prelude::*;
use vigdet_coco::plot::style;

/// Side of a place, in pixels.
const SIDE: i32 = 17;

pub(super) fn draw<DB: DrawingBackend>(area: &Area<DB>, stats: &[Stats]) -> style::DrawResult<(), DB> {
    let below = titled(area, "Centres of objects in the image")?;
    let all = stats.iter().map(|stats| stats.objects).sum::<usize>().max(1) as f64;
    let share = |row: usize, column: usize| {
        stats.iter().map(|stats| stats.positions[row][column] * stats.objects as f64).sum::<f64>() / all
    };
    let shares: Vec<Vec<f64>> = (0..GRID).map(|row| (0..GRID).map(|column| share(row, column)).collect()).collect();
    let most = shares.iter().flatten().copied().fold(0.0, f64::max);
    let (x, y) = (MARGIN, 4);
    for (row, shares) in shares.iter().enumerate() {
        for (column, share) in shares.iter().enumerate() {
            let (x, y) = (x + SIDE * column as i32, y + SIDE * row as i32);
            let colour = style::heat(if most > 0.0 { share / most } else { 0.0 });
            below.draw(&Rectangle::new([(x, y), (x + SIDE, y + SIDE)], colour.filled()))?;
        }
    }
    let end = SIDE * GRID as i32;
    below.draw(&Rectangle::new([(x, y), (x + end, y + end)], style::INK.stroke_width(1)))?;
    // The scale, from dark to white.
    let (scale, steps) = (x + end + 24, 50);
    let height = SIDE * 10;
    for step in 0..steps {
        let (from, to) = (y + height * step / steps, y + height * (step + 1) / steps);
        let colour = style::heat(1.0 - f64::from(step) / f64::from(steps - 1));
        below.draw(&Rectangle::new([(scale, from), (scale + 14, to)], colour.filled()))?;
    }
    below.draw(&Rectangle::new([(scale, y), (scale + 14, y + height)], style::INK.stroke_width(1)))?;
    let even = 1.0 / (GRID * GRID) as f64;
    below.draw(&Text::new(format!("{:.2}%", 100.0 * most), (scale + 22, y + 6), left(13.0)))?;
    below.draw(&Text::new(percent(0.0), (scale + 22, y + height - 6), left(13.0)))?;
    let notes = ["share of objects".to_owned(), "in each place".to_owned(), format!("(even: {:.2}%)", 100.0 * even)];
    for (line, note) in notes.into_iter().enumerate() {
        below.draw(&Text::new(note, (scale, y + height + 20 + 18 * line as i32), left(13.0)))?;
    }
    Ok(())
}
