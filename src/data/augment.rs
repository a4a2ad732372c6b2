//! Random changes of training images, with their boxes and masks.

use image::imageops;
use rand::Rng;

use super::affine_map::AffineMap;
use super::color;
use super::sample::{Sample, Target};
use crate::config::{CropConfig, DataConfig};

/// Windows that are tried for a crop before the image stays whole.
pub(super) const TRIES: usize = 20;

/// Boxes of which less than this is left, in pixels along either side, are gone.
const SHORTEST_SIDE: f32 = 1.0;

/// Changes `sample` as `config` says, drawing from `rng`: crop, quarter turn, flips, colour. What comes back is ready
/// for resizing.
///
/// The flips are drawn first, whatever else is on, so that they stay the same when an option is added.
pub fn augment(mut sample: Sample, config: &DataConfig, rng: &mut impl Rng) -> Sample {
    let (flip, flip_vertical) = (rng.random_bool(config.flip), rng.random_bool(config.flip_vertical));
    let factors = color::Factors::draw(config.color, config.hue, rng);
    if rng.random_bool(config.crop.probability) {
        random_crop(&mut sample, &config.crop, rng);
    }
    if rng.random_bool(config.rotate) {
        quarter_turn(&mut sample);
    }
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

/// Mirrors left and right, with the boxes and masks.
pub fn flip_horizontal(sample: &mut Sample) {
    imageops::flip_horizontal_in_place(&mut sample.image);
    let width = sample.image.width() as f32;
    sample.target.change(&AffineMap::mirror(width.into()), |b| [width - b[2], b[1], width - b[0], b[3]]);
}

/// Mirrors top and bottom, with the boxes and masks.
pub fn flip_upside_down(sample: &mut Sample) {
    imageops::flip_vertical_in_place(&mut sample.image);
    let height = sample.image.height() as f32;
    sample.target.change(&AffineMap::flip(height.into()), |b| [b[0], height - b[3], b[2], height - b[1]]);
}

/// Turns clockwise by 90°, with the boxes and masks. With the two flips this gives all eight positions.
pub fn quarter_turn(sample: &mut Sample) {
    let height = sample.image.height() as f32;
    sample.image = imageops::rotate90(&sample.image);
    sample.target.change(&AffineMap::quarter_turn(height.into()), |b| [height - b[3], b[0], height - b[1], b[2]]);
}

/// Cuts out a random window whose sides are `config.scale` to 1 of the image's, and in which at least one object can
/// still be told (`config.visible` of its box). An image for which no such window is found stays whole.
pub fn random_crop(sample: &mut Sample, config: &CropConfig, rng: &mut impl Rng) {
    let (width, height) = sample.image.dimensions();
    let needs_object = sample.target.has_countable();
    for _ in 0..TRIES {
        let mut draw = |side: u32| {
            let share = rng.random_range(config.scale..=1.0);
            let length = ((f64::from(side) * share).round() as u32).clamp(1, side);
            (rng.random_range(0..=side - length), length)
        };
        let ((x, w), (y, h)) = (draw(width), draw(height));
        let target = cut(&sample.target, [x, y, x + w, y + h].map(|v| v as f32), config.visible as f32);
        if target.has_countable() || !needs_object {
            sample.target = target;
            sample.image = imageops::crop_imm(&sample.image, x, y, w, h).to_image();
            return;
        }
    }
}

/// The objects seen through a window [x1, y1, x2, y2], in its pixels. Those of which less than `visible` of the box is
/// left become crowd regions, which training ignores: neither their class nor their box can be told.
pub fn cut(target: &Target, window: [f32; 4], visible: f32) -> Target {
    let mut out = Target::default();
    for (i, b) in target.boxes.iter().enumerate() {
        let left = [b[0].max(window[0]), b[1].max(window[1]), b[2].min(window[2]), b[3].min(window[3])];
        let (width, height) = (left[2] - left[0], left[3] - left[1]);
        if width < SHORTEST_SIDE || height < SHORTEST_SIDE {
            continue;
        }
        let share = width * height / ((b[2] - b[0]) * (b[3] - b[1]));
        out.boxes.push([left[0] - window[0], left[1] - window[1], left[2] - window[0], left[3] - window[1]]);
        out.labels.push(target.labels[i]);
        out.crowd.push(target.crowd[i] || share < visible);
        out.masks.push(target.masks[i].clone());
    }
    out.change_masks(&AffineMap::translate(-f64::from(window[0]), -f64::from(window[1])));
    out
}

/// Multiplies boxes and masks by `across` and `down`.
pub fn scale_objects(target: &mut Target, across: f32, down: f32) {
    let affine = AffineMap::scale(across.into(), down.into());
    target.change(&affine, |b| [b[0] * across, b[1] * down, b[2] * across, b[3] * down]);
}
