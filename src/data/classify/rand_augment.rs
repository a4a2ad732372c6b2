//! RandAugment (Cubuk et al., 2020) as timm's `rand-…-inc1` has it: fifteen operations whose strength grows with the
//! magnitude.

use image::RgbImage;
use rand::Rng;
use rand_distr::StandardNormal;

use super::affine::{rotation, transform, Matrix};
use super::crop::Filter;
use super::ops;
use crate::config::RandAugmentConfig;

/// The greatest magnitude.
const MOST: f64 = 10.0;
/// Greatest angle, in degrees.
const ROTATE: f64 = 30.0;
/// Greatest shear.
const SHEAR: f64 = 0.3;
/// Greatest shift, as a share of the side.
const TRANSLATE: f64 = 0.45;
/// Greatest change of colour, contrast, brightness and sharpness.
const ENHANCE: f64 = 0.9;
/// Greatest number that `SolarizeAdd` adds.
const SOLARIZE_ADD: f64 = 110.0;

/// The operations, in timm's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stretches each channel to the whole range.
    AutoContrast,
    /// Flattens each channel's histogram.
    Equalize,
    /// Negative.
    Invert,
    /// About the centre.
    Rotate,
    /// Fewer bits.
    Posterize,
    /// Inverts bright values.
    Solarize,
    /// Brightens dark values.
    SolarizeAdd,
    /// Saturation.
    Color,
    /// Contrast.
    Contrast,
    /// Brightness.
    Brightness,
    /// Sharpness.
    Sharpness,
    /// Along x.
    ShearX,
    /// Along y.
    ShearY,
    /// Along x.
    TranslateX,
    /// Along y.
    TranslateY,
}

/// All of them.
pub const KINDS: [Kind; 15] = [
    Kind::AutoContrast,
    Kind::Equalize,
    Kind::Invert,
    Kind::Rotate,
    Kind::Posterize,
    Kind::Solarize,
    Kind::SolarizeAdd,
    Kind::Color,
    Kind::Contrast,
    Kind::Brightness,
    Kind::Sharpness,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
];

/// An operation with its strength.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// Stretches each channel to the whole range.
    AutoContrast,
    /// Flattens each channel's histogram.
    Equalize,
    /// Negative.
    Invert,
    /// By so many degrees, counter-clockwise.
    Rotate(f64),
    /// Keeps so many bits.
    Posterize(u32),
    /// Inverts values from this on.
    Solarize(u32),
    /// Adds this to values below 128.
    SolarizeAdd(u8),
    /// Saturation times this.
    Color(f64),
    /// Contrast times this.
    Contrast(f64),
    /// Brightness times this.
    Brightness(f64),
    /// Sharpness times this.
    Sharpness(f64),
    /// x takes this times y.
    ShearX(f64),
    /// y takes this times x.
    ShearY(f64),
    /// By this share of the width.
    TranslateX(f64),
    /// By this share of the height.
    TranslateY(f64),
}

impl Kind {
    /// The operation at a magnitude of 0 to 10. `negate`: the other way, where there are two.
    pub fn at(self, magnitude: f64, negate: bool) -> Op {
        let level = magnitude.clamp(0.0, MOST) / MOST;
        let signed = |v: f64| if negate { -v } else { v };
        let enhance = || (1.0 + signed(level * ENHANCE)).max(0.1);
        match self {
            Self::AutoContrast => Op::AutoContrast,
            Self::Equalize => Op::Equalize,
            Self::Invert => Op::Invert,
            Self::Rotate => Op::Rotate(signed(level * ROTATE)),
            Self::Posterize => Op::Posterize(4 - (level * 4.0) as u32),
            Self::Solarize => Op::Solarize(256 - (level * 256.0) as u32),
            Self::SolarizeAdd => Op::SolarizeAdd((level * SOLARIZE_ADD) as u8),
            Self::Color => Op::Color(enhance()),
            Self::Contrast => Op::Contrast(enhance()),
            Self::Brightness => Op::Brightness(enhance()),
            Self::Sharpness => Op::Sharpness(enhance()),
            Self::ShearX => Op::ShearX(signed(level * SHEAR)),
            Self::ShearY => Op::ShearY(signed(level * SHEAR)),
            Self::TranslateX => Op::TranslateX(signed(level * TRANSLATE)),
            Self::TranslateY => Op::TranslateY(signed(level * TRANSLATE)),
        }
    }
}

impl Op {
    /// Changes an image; what comes from outside of it is `fill`.
    pub fn apply(self, image: &mut RgbImage, filter: Filter, fill: [u8; 3]) {
        let size = image.dimensions();
        let turn = |image: &mut RgbImage, matrix: Matrix| *image = transform(image, matrix, filter, fill);
        match self {
            Self::AutoContrast => ops::autocontrast(image),
            Self::Equalize => ops::equalize(image),
            Self::Invert => ops::invert(image),
            // Pillow copies then, and so does not round.
            Self::Rotate(0.0) => {}
            Self::Rotate(degrees) => turn(image, rotation(degrees, size)),
            Self::Posterize(bits) => ops::posterize(image, bits),
            Self::Solarize(threshold) => ops::solarize(image, threshold),
            Self::SolarizeAdd(add) => ops::solarize_add(image, add),
            Self::Color(factor) => ops::saturation(image, factor as f32),
            Self::Contrast(factor) => ops::contrast(image, factor as f32),
            Self::Brightness(factor) => ops::brightness(image, factor as f32),
            Self::Sharpness(factor) => ops::sharpness(image, factor as f32),
            Self::ShearX(shear) => turn(image, [1.0, shear, 0.0, 0.0, 1.0, 0.0]),
            Self::ShearY(shear) => turn(image, [1.0, 0.0, 0.0, shear, 1.0, 0.0]),
            Self::TranslateX(share) => turn(image, [1.0, 0.0, share * f64::from(size.0), 0.0, 1.0, 0.0]),
            Self::TranslateY(share) => turn(image, [1.0, 0.0, 0.0, 0.0, 1.0, share * f64::from(size.1)]),
        }
    }
}

/// Draws the operations of one image: kinds with repetition, then for each whether it is carried out, at which
/// magnitude, which way.
pub fn draw(config: &RandAugmentConfig, rng: &mut impl Rng) -> Vec<Op> {
    let kinds: Vec<Kind> = (0..config.ops).map(|_| KINDS[rng.random_range(0..KINDS.len())]).collect();
    let draw = |kind: Kind| {
        (rng.random::<f64>() < config.probability).then(|| {
            let magnitude = config.magnitude + config.std * rng.sample::<f64, _>(StandardNormal);
            kind.at(magnitude, rng.random())
        })
    };
    kinds.into_iter().filter_map(draw).collect()
}
