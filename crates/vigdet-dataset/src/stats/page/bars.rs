//! Upright bars, one a split, for each of several ranges.

use super::{beside_axis, most, percent, titled, Area};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use vigdet_coco::plot::style;

/// Beyond so many bars they are not labelled.
const LABELLED: usize = 9;

/// `shares` has for each split a share for each name. The titles are those of the plot, of the x axis, and of what is
/// counted.
pub(super) fn draw<DB: DrawingBackend>(
    area: &Area<DB>,
    [title, x, counted]: [&str; 3],
    names: &[String],
    shares: &[Vec<f64>],
) -> style::DrawResult<(), DB> {
    let below = titled(area, title)?;
    let high = 1.12 * most(shares.iter().flatten());
    let mut chart = ChartBuilder::on(&below)
        .margin_right(24)
        .margin_left(8)
        .x_label_area_size(52)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..names.len().max(1) as f64, 0.0..high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc(x)
        .y_desc(format!("share of {counted}"))
        // Names stand under the bars instead.
        .x_label_formatter(&|_| String::new())
        .x_labels(1)
        .y_labels(5)
        .y_label_formatter(&|share| beside_axis(*share, high))
        .axis_desc_style(style::text(14.0))
        .label_style(style::text(13.0))
        .axis_style(style::INK)
        .bold_line_style(style::GRID)
        .light_line_style(TRANSPARENT)
        .draw()?;
    let width = 0.8 / shares.len().max(1) as f64;
    let centred = |size: f64, vertical| style::text(size).pos(Pos::new(HPos::Center, vertical));
    let labelled = names.len() * shares.len() <= LABELLED;
    for (index, shares) in shares.iter().enumerate() {
        for (at, &share) in shares.iter().enumerate() {
            let start = at as f64 + 0.1 + index as f64 * width;
            let bar = Rectangle::new([(start, 0.0), (start + 0.95 * width, share)], style::colour(index).filled());
            chart.draw_series([bar])?;
            if labelled {
                let (x, y) = chart.backend_coord(&(start + width / 2.0, share));
                let (x, y) = inside(&below, (x, y - 3));
                below.draw(&Text::new(percent(share), (x, y), centred(12.0, VPos::Bottom)))?;
            }
        }
    }
    for (at, name) in names.iter().enumerate() {
        let (x, y) = inside(&below, chart.backend_coord(&(at as f64 + 0.5, 0.0)));
        below.draw(&Text::new(name.clone(), (x, y + 8), centred(13.0, VPos::Top)))?;
    }
    Ok(())
}

/// A place of the page as one of an area.
fn inside<DB: DrawingBackend>(area: &Area<DB>, (x, y): (i32, i32)) -> (i32, i32) {
    let (left, top) = area.get_base_pixel();
    (x - left, y - top)
}
