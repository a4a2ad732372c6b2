//! Brightness, contrast and saturation, as torchvision's `ColorJitter` and Pillow's `ImageEnhance` define them.

use image::RgbImage;
use rand::Rng;

/// What each property is multiplied by; 1 changes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// Blend with black.
    pub brightness: f32,
    /// Blend with the mean grey.
    pub contrast: f32,
    /// Blend with the image's own grey.
    pub saturation: f32,
}

impl Factors {
    /// Three factors of `[1 − strength, 1 + strength]`, or nothing (and no draws) for strength 0.
    pub fn draw(strength: f64, rng: &mut impl Rng) -> Option<Self> {
        if strength == 0.0 {
            return None;
        }
        let mut one = || (1.0 + strength * (2.0 * rng.random::<f64>() - 1.0)) as f32;
        Some(Self { brightness: one(), contrast: one(), saturation: one() })
    }
}

/// Applies brightness, then contrast, then saturation, each rounded to 8 bits as Pillow does.
pub fn jitter(image: &mut RgbImage, factors: &Factors) {
    brightness(image, factors.brightness);
    contrast(image, factors.contrast);
    saturation(image, factors.saturation);
}

/// Blends with black (0 is black, 1 the image, more is brighter): `ImageEnhance.Brightness`.
pub fn brightness(image: &mut RgbImage, factor: f32) {
    let table = table(0.0, factor);
    image.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
}

/// Blends with the mean grey: `ImageEnhance.Contrast`.
pub fn contrast(image: &mut RgbImage, factor: f32) {
    let total: u64 = image.pixels().map(|p| u64::from(grey(p.0))).sum();
    let mean = (total as f64 / (f64::from(image.width()) * f64::from(image.height())) + 0.5).floor();
    let table = table(mean as f32, factor);
    image.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
}

/// Blends with the image's own grey: `ImageEnhance.Color`.
pub fn saturation(image: &mut RgbImage, factor: f32) {
    for pixel in image.pixels_mut() {
        let base = f32::from(grey(pixel.0));
        pixel.0 = pixel.0.map(|v| to_byte(base + (f32::from(v) - base) * factor));
    }
}

/// ITU-R 601-2 luma, in Pillow's fixed point.
fn grey([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

fn table(base: f32, factor: f32) -> [u8; 256] {
    std::array::from_fn(|v| to_byte(base + (v as f32 - base) * factor))
}

/// Rounds down to 8 bits, as Pillow's blend does.
pub(super) fn to_byte(value: f32) -> u8 {
    value.clamp(0.0, 255.0) as u8
}
