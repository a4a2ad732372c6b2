//! Random changes of training images, with their boxes.

use image::imageops;
use rand::Rng;

use super::color;
use super::sample::{Sample, Target};
use crate::config::DataConfig;

/// Changes `sample` as `config` says, drawing from `rng`. What comes back is ready for resizing.
///
/// The flips are drawn first, whatever else is on, so that they stay the same when an option is added.
pub fn augment(sample: Sample, config: &DataConfig, rng: &mut impl Rng) -> Sample {
    let mut sample = sample;
    let (flip, flip_vertical) = (rng.random_bool(config.flip), rng.random_bool(config.flip_vertical));
    let factors = color::Factors::draw(config.color, rng);
    if let Some(factors) = factors {
        color::jitter(&mut sample.image, &factors);
    }
    if flip {
        flip_horizontal(&mut sample);
    }
    if flip_vertical {
        flip_upside_down(&mut sample);
    }
    sample
}

/// A factor for the size, even in logarithm over `range`.
pub fn draw_scale(range: [f64; 2], rng: &mut impl Rng) -> f64 {
    let share: f64 = rng.random();
    (range[0].ln() + share * (range[1] / range[0]).ln()).exp()
}

/// Mirrors left and right, with the boxes.
pub fn flip_horizontal(sample: &mut Sample) {
    imageops::flip_horizontal_in_place(&mut sample.image);
    let width = sample.image.width() as f32;
    for b in &mut sample.target.boxes {
        *b = [width - b[2], b[1], width - b[0], b[3]];
    }
}

/// Mirrors top and bottom, with the boxes.
pub fn flip_upside_down(sample: &mut Sample) {
    imageops::flip_vertical_in_place(&mut sample.image);
    let height = sample.image.height() as f32;
    for b in &mut sample.target.boxes {
        *b = [b[0], height - b[3], b[2], height - b[1]];
    }
}

/// Multiplies boxes by `across` and `down`.
pub fn scale_boxes(target: &mut Target, across: f32, down: f32) {
    for b in &mut target.boxes {
        *b = [b[0] * across, b[1] * down, b[2] * across, b[3] * down];
    }
}
