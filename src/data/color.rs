//! Brightness, contrast, saturation and hue, as torchvision's `ColorJitter` and Pillow's `ImageEnhance` define them.

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
    /// Turn of the colour circle, as a fraction of it; 0 changes nothing.
    pub hue: f32,
}

impl Factors {
    /// Three factors of `[1 − strength, 1 + strength]` and a hue of `[−hue, hue]`. No draws for what is 0; nothing
    /// where both are.
    pub fn draw(strength: f64, hue: f64, rng: &mut impl Rng) -> Option<Self> {
        if strength == 0.0 && hue == 0.0 {
            return None;
        }
        let mut around = |middle: f64, most: f64| match most {
            0.0 => middle as f32,
            _ => (middle + most * (2.0 * rng.random::<f64>() - 1.0)) as f32,
        };
        Some(Self {
            brightness: around(1.0, strength),
            contrast: around(1.0, strength),
            saturation: around(1.0, strength),
            hue: around(0.0, hue),
        })
    }
}

/// Applies brightness, then contrast, saturation and hue, each rounded to 8 bits.
pub fn jitter(image: &mut RgbImage, factors: &Factors) {
    brightness(image, factors.brightness);
    contrast(image, factors.contrast);
    saturation(image, factors.saturation);
    if factors.hue != 0.0 {
        hue(image, factors.hue);
    }
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

/// Turns the colour circle by a fraction of it: torchvision's `adjust_hue` of a tensor of bytes.
pub fn hue(image: &mut RgbImage, turn: f32) {
    // torchvision's way from a value in 0–1 to a byte.
    let byte = |v: f32| (v * (256.0 - 1e-3)) as u8;
    for pixel in image.pixels_mut() {
        let [r, g, b] = pixel.0.map(|v| f32::from(v) / 255.0);
        let (value, least) = (r.max(g).max(b), r.min(g).min(b));
        let spread = value - least;
        if spread == 0.0 {
            continue;
        }
        let saturation = spread / value;
        let sixth = if r == value {
            (g - b) / spread
        } else if g == value {
            2.0 + (b - r) / spread
        } else {
            4.0 + (r - g) / spread
        };
        let sixth = ((sixth / 6.0 + turn).rem_euclid(1.0) * 6.0).min(6.0);
        let (sector, along) = (sixth.floor(), sixth - sixth.floor());
        let low = value * (1.0 - saturation);
        let falling = value * (1.0 - saturation * along);
        let rising = value * (1.0 - saturation * (1.0 - along));
        let rgb = match sector as u32 % 6 {
            0 => [value, rising, low],
            1 => [falling, value, low],
            2 => [low, value, rising],
            3 => [low, falling, value],
            4 => [rising, low, value],
            _ => [value, low, falling],
        };
        pixel.0 = rgb.map(byte);
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

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    /// torchvision 0.28, `adjust_hue` of a tensor of bytes.
    #[test]
    fn hues_turn_as_torchvisions_do() {
        let colours: [[u8; 3]; 10] = [
            [10, 200, 30],
            [255, 0, 0],
            [0, 255, 0],
            [0, 0, 255],
            [1, 2, 3],
            [128, 128, 128],
            [250, 249, 13],
            [77, 180, 199],
            [199, 20, 180],
            [0, 0, 0],
        ];
        let turned: [(f32, [[u8; 3]; 10]); 3] = [
            (
                0.1,
                [
                    [10, 200, 144],
                    [255, 153, 0],
                    [0, 255, 153],
                    [153, 0, 255],
                    [1, 1, 3],
                    [128, 128, 128],
                    [109, 250, 13],
                    [77, 107, 199],
                    [199, 20, 72],
                    [0, 0, 0],
                ],
            ),
            (
                -0.3,
                [
                    [200, 68, 10],
                    [51, 0, 255],
                    [255, 51, 0],
                    [0, 255, 51],
                    [1, 3, 1],
                    [128, 128, 128],
                    [250, 13, 204],
                    [156, 199, 77],
                    [20, 144, 199],
                    [0, 0, 0],
                ],
            ),
            (
                0.5,
                [
                    [200, 10, 180],
                    [0, 255, 255],
                    [255, 0, 255],
                    [255, 255, 0],
                    [3, 2, 1],
                    [128, 128, 128],
                    [13, 14, 250],
                    [199, 96, 77],
                    [20, 199, 39],
                    [0, 0, 0],
                ],
            ),
        ];
        for (turn, expected) in turned {
            let mut image = RgbImage::from_fn(10, 1, |x, _| Rgb(colours[x as usize]));
            hue(&mut image, turn);
            for (x, expected) in expected.iter().enumerate() {
                let found = image.get_pixel(x as u32, 0).0;
                // A byte on the border between two may fall to either side.
                let near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 1);
                assert!(near, "turn {turn} of {:?}: {found:?} {expected:?}", colours[x]);
            }
        }
    }
}
