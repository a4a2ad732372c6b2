//! Okabe and Ito's colours, told apart by colour-blind readers too.
use super::canvas::Color;
use anyhow::{anyhow, Result};
use plotters::style::{register_font, FontStyle};

pub const FONT: &str = "DejaVu Sans";
pub const SKY_BLUE: Color = [86, 180, 233];
pub const GREEN: Color = [0, 158, 115];
pub const YELLOW: Color = [240, 228, 66];
pub const VERMILLION: Color = [213, 94, 0];
pub const GREY: Color = [187, 187, 187];
/// One per class.
const CLASSES: [Color; 7] = [
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [240, 228, 66],
    [213, 94, 0],
    [204, 121, 167],
    [0, 114, 178],
];
pub const CURVES: [Color; 6] =
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [230, 159, 0], [86, 180, 233]];

/// The colour of a class; colours repeat.
pub fn class(label: i64) -> Color {
    CLASSES[label.rem_euclid(CLASSES.len() as i64) as usize]
}
pub fn register_fonts() -> Result<()> {
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular()).map_err(|_| anyhow!("font"))
}
