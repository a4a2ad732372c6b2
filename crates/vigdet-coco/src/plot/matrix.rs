//! The confusion matrix.

use super::style;
use super::{picture, shortened};
use crate::analysis::confusion::Confusion;
use crate::error::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

/// Beyond this many classes the picture shows those that take part in most confusions.
const MOST: usize = 30;

/// Rows are true classes, columns detected ones; each cell says how many objects, its colour the fraction of its row.
///
/// # Errors
/// The picture cannot be written.
pub fn confusion(path: &Path, confusion: &Confusion) -> Result<()> {
    let background = confusion.categories.len();
    let shown = shown(confusion);
    let name = |class: usize| match confusion.categories.get(class) {
        Some(category) if category.name.is_empty() => category.id.to_string(),
        Some(category) => shortened(&category.name, 16),
        None => "background".to_owned(),
    };
    let count = shown.len() as i32;
    let cell = (800 / count).clamp(26, 64);
    let (left, top) = (160, 190);
    let size = ((left + cell * count + 40) as u32, (top + cell * count + 40) as u32);
    let caption = if shown.len() <= background {
        format!("{} of {background} classes, those most confused", shown.len() - 1)
    } else {
        "Confusions".to_owned()
    };
    picture(path, (size.0.max(560), size.1), |root| {
        let title = (style::FONT, 22.0).into_font().style(FontStyle::Bold).color(&style::INK);
        root.draw(&Text::new(caption, (24, 16), title))?;
        let note = format!("rows: truth, columns: detected (score ≥ {}, IoU ≥ {})", confusion.score, confusion.iou);
        root.draw(&Text::new(note, (24, 44), style::text(14.0)))?;
        let names = style::text(13.0);
        for (row, &truth) in shown.iter().enumerate() {
            let y = top + cell * row as i32;
            let right = names.clone().pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(name(truth), (left - 8, y + cell / 2), right))?;
            let upright = names.clone().transform(FontTransform::Rotate270).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(name(truth), (left + cell * row as i32 + cell / 2, top - 8), upright))?;
            let sum: u64 = confusion.counts.row(truth).sum();
            for (column, &detected) in shown.iter().enumerate() {
                let x = left + cell * column as i32;
                let number = confusion.counts[(truth, detected)];
                let fraction = number as f64 / sum.max(1) as f64;
                root.draw(&Rectangle::new([(x, y), (x + cell - 1, y + cell - 1)], style::heat(fraction).filled()))?;
                if number > 0 {
                    let ink = if fraction > 0.55 { &style::PAPER } else { &style::INK };
                    let size = f64::from(cell) / (number.to_string().len() as f64 * 0.62 + 0.6);
                    let text = (style::FONT, size.min(14.0)).into_font().color(ink);
                    let centred = text.pos(Pos::new(HPos::Center, VPos::Center));
                    root.draw(&Text::new(number.to_string(), (x + cell / 2, y + cell / 2), centred))?;
                }
            }
        }
        Ok(())
    })
}

/// The classes shown, in order, and the background.
fn shown(confusion: &Confusion) -> Vec<usize> {
    let background = confusion.categories.len();
    let mut classes: Vec<usize> = (0..background).collect();
    if background > MOST {
        let counts = &confusion.counts;
        let wrong = |class: usize| {
            let with = |other: usize| counts[(class, other)] + counts[(other, class)];
            (0..background).filter(|&other| other != class).map(with).sum::<u64>()
        };
        classes.sort_by_key(|&class| (std::cmp::Reverse(wrong(class)), class));
        classes.truncate(MOST);
        classes.sort_unstable();
    }
    classes.push(background);
    classes
}
