//! Pictures of results, as PNG files.

mod charts;
mod matrix;
pub mod style;

pub use charts::{ap_by_size, class_ap, errors, precision_recall};
pub use matrix::confusion;

use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

/// Draws on a white picture of `size` pixels, and writes it.
fn picture<'a>(
    path: &'a Path,
    size: (u32, u32),
    draw: impl FnOnce(&DrawingArea<BitMapBackend<'a>, Shift>) -> style::DrawResult<(), BitMapBackend<'a>>,
) -> Result<()> {
    style::register_font();
    let drawn = || {
        let root = BitMapBackend::new(path, size).into_drawing_area();
        root.fill(&style::PAPER)?;
        draw(&root)?;
        root.present()
    };
    drawn().map_err(|error| Error::File { path: path.to_path_buf(), message: format!("cannot draw: {error}") })
}

/// A name of at most `limit` characters; `…` stands for the rest.
pub fn shortened(name: &str, limit: usize) -> String {
    if name.chars().count() <= limit {
        return name.to_owned();
    }
    name.chars().take(limit - 1).chain(['…']).collect()
}
