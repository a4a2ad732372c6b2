//! Operations on the values of an image, as Pillow's `ImageOps` and `ImageEnhance` define them, to the bit.

use image::RgbImage;

use crate::data::color::to_byte;
pub use crate::data::color::{brightness, contrast, saturation};

/// Stretches each channel's values to 0–255.
pub fn autocontrast(image: &mut RgbImage) {
    let tables = histograms(image).map(|histogram| {
        let used = |count: &u64| *count > 0;
        let low = histogram.iter().position(used).unwrap_or(0);
        let high = histogram.iter().rposition(used).unwrap_or(0);
        if high <= low {
            return std::array::from_fn(|v| v as u8);
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        std::array::from_fn(|v| (v as f64 * scale + offset) as u8)
    });
    look_up(image, &tables);
}

/// Spreads each channel's values so that each is about as frequent as any other.
pub fn equalize(image: &mut RgbImage) {
    let tables = histograms(image).map(|histogram| {
        let same = std::array::from_fn(|v| v as u8);
        let used: Vec<u64> = histogram.iter().copied().filter(|count| *count > 0).collect();
        let Some((_, others)) = used.split_last().filter(|(_, others)| !others.is_empty()) else {
            return same;
        };
        let step = others.iter().sum::<u64>() / 255;
        if step == 0 {
            return same;
        }
        let mut sum = step / 2;
        std::array::from_fn(|v| {
            let value = (sum / step).min(255) as u8;
            sum += histogram[v];
            value
        })
    });
    look_up(image, &tables);
}

/// 255 − value.
pub fn invert(image: &mut RgbImage) {
    image.iter_mut().for_each(|v| *v = 255 - *v);
}

/// Keeps the upper `bits` bits of each value; 8 or more: all.
pub fn posterize(image: &mut RgbImage, bits: u32) {
    let mask = 0xFFu8.checked_shl(8 - bits.min(8)).unwrap_or(0);
    image.iter_mut().for_each(|v| *v &= mask);
}

/// Inverts values from `threshold` (0 to 256) on.
pub fn solarize(image: &mut RgbImage, threshold: u32) {
    image.iter_mut().filter(|v| u32::from(**v) >= threshold).for_each(|v| *v = 255 - *v);
}

/// Adds `add` to values below 128, at most to 255.
pub fn solarize_add(image: &mut RgbImage, add: u8) {
    image.iter_mut().filter(|v| **v < 128).for_each(|v| *v = v.saturating_add(add));
}

/// Blends with a smoothed image: 0 is smooth, 1 the image, more is sharper. The outermost pixels stay.
pub fn sharpness(image: &mut RgbImage, factor: f32) {
    let (width, height) = (image.width() as usize, image.height() as usize);
    if width < 3 || height < 3 {
        return;
    }
    let source = image.as_raw().clone();
    let stride = 3 * width;
    for y in 1..height - 1 {
        let rows: [&[u8]; 3] = std::array::from_fn(|i| &source[(y - 1 + i) * stride..(y + i) * stride]);
        let out = &mut image.as_mut()[y * stride + 3..(y + 1) * stride - 3];
        for (i, v) in out.iter_mut().enumerate() {
            let across = |row: &[u8]| u32::from(row[i]) + u32::from(row[i + 3]) + u32::from(row[i + 6]);
            let centre = rows[1][i + 3];
            // Pillow's SMOOTH: (1 1 1, 1 5 1, 1 1 1) / 13, rounded.
            let sum = across(rows[0]) + across(rows[1]) + across(rows[2]) + 4 * u32::from(centre);
            let smooth = ((2 * sum + 13) / 26) as f32;
            *v = to_byte(smooth + (f32::from(centre) - smooth) * factor);
        }
    }
}

fn histograms(image: &RgbImage) -> [[u64; 256]; 3] {
    let mut histograms = [[0; 256]; 3];
    for pixel in image.as_raw().as_chunks::<3>().0 {
        for (histogram, v) in histograms.iter_mut().zip(pixel) {
            histogram[usize::from(*v)] += 1;
        }
    }
    histograms
}

fn look_up(image: &mut RgbImage, tables: &[[u8; 256]; 3]) {
    for pixel in image.as_chunks_mut::<3>().0 {
        for (v, table) in pixel.iter_mut().zip(tables) {
            *v = table[usize::from(*v)];
        }
    }
}
