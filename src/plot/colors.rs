//! Okabe and Ito's colours, told apart by colour-blind readers too.
use super::canvas::Color;

pub const SKY_BLUE: Color = [86, 180, 233];
pub const GREEN: Color = [0, 158, 115];
pub const YELLOW: Color = [240, 228, 66];
pub const VERMILLION: Color = [213, 94, 0];
pub const GREY: Color = [187, 187, 187];
/// One per class.
pub const CLASSES: [Color; 8] = [
    [230, 159, 0],
    [86, 180, 233],
    [0, 158, 115],
    [240, 228, 66],
    [0, 114, 178],
    [213, 94, 0],
    [204, 121, 167],
    [255, 255, 255],
];
