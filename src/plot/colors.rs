//! The plots' palette as pixels.

use vigdet_coco::plot::style::PALETTE;

use super::canvas::Color;

/// Grey, for what counts neither way.
pub const GREY: Color = [187, 187, 187];

/// A colour of the palette (see [`PALETTE`]); colours repeat.
pub fn of_palette(index: usize) -> Color {
    let color = PALETTE[index % PALETTE.len()];
    [color.0, color.1, color.2]
}

/// The colour of a class; colours repeat. Black, which hides on dark images, is left out.
pub fn class(label: i64) -> Color {
    const BRIGHT: [usize; 7] = [3, 5, 2, 7, 1, 4, 0];
    of_palette(BRIGHT[label.rem_euclid(BRIGHT.len() as i64) as usize])
}

/// The colour of a centre and its neighbours in pictures of the graph; colours repeat. They differ in lightness too.
pub fn center(index: usize) -> Color {
    const APART: [usize; 7] = [1, 5, 7, 2, 4, 3, 0];
    of_palette(APART[index % APART.len()])
}
