//! OpenCV's bilinear resizing of 8-bit images, to the bit: `cv2.resize(…, interpolation=cv2.INTER_LINEAR)`.
//!
//! OpenCV counts in whole numbers. Weights are 2048ths; the rows' sums lose their last bits before they are blended.

use image::RgbImage;

use super::StretchedRows;

/// What the weights of a pair of pixels add up to.
const ONE: f32 = 2048.0;

/// Where an output pixel takes its two input pixels from, and their weights in 2048ths.
#[derive(Clone, Copy, PartialEq)]
struct Tap {
    first: usize,
    second: usize,
    weights: [i32; 2],
}

/// The taps along one axis. Beyond the first and the last pixel that pixel stands twice; along a row it then has all of
/// the weight, along a column its two halves keep theirs, which rounds in another way.
fn taps(input: usize, output: usize, along_row: bool) -> Vec<Tap> {
    let last = input as i64 - 1;
    let scale = 1.0 / (output as f64 / input as f64);
    (0..output)
        .map(|i| {
            let at = ((i as f64 + 0.5) * scale - 0.5) as f32;
            let first = at.floor() as i64;
            let beyond = along_row && (first < 0 || first >= last);
            let fraction = if beyond { 0.0 } else { at - first as f32 };
            let weight = |share: f32| (share * ONE).round_ties_even() as i32;
            let inside = |place: i64| place.clamp(0, last) as usize;
            Tap { first: inside(first), second: inside(first + 1), weights: [weight(1.0 - fraction), weight(fraction)] }
        })
        .collect()
}

/// An image of `width × height` pixels, as OpenCV makes it.
pub(super) fn resize(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let source_width = image.width() as usize;
    let across = taps(source_width, width as usize, true);
    let length = 3 * width as usize;
    let stretch = |row: usize, out: &mut [i32]| {
        let pixels = &image.as_raw()[3 * source_width * row..3 * source_width * (row + 1)];
        for (out, tap) in out.chunks_exact_mut(3).zip(&across) {
            let (p, q) = (&pixels[3 * tap.first..3 * tap.first + 3], &pixels[3 * tap.second..3 * tap.second + 3]);
            for ((out, &p), &q) in out.iter_mut().zip(p).zip(q) {
                *out = i32::from(p) * tap.weights[0] + i32::from(q) * tap.weights[1];
            }
        }
    };
    let mut resized = RgbImage::new(width, height);
    let mut stretched = StretchedRows::new(length);
    let down = taps(image.height() as usize, height as usize, false);
    for (out, tap) in resized.chunks_exact_mut(length).zip(down) {
        let (above, below) = stretched.pair(tap.first, tap.second, stretch);
        for ((out, above), below) in out.iter_mut().zip(above).zip(below) {
            let part = |sum: i32, weight: i32| (weight * (sum >> 4)) >> 16;
            *out = ((part(*above, tap.weights[0]) + part(*below, tap.weights[1]) + 2) >> 2) as u8;
        }
    }
    resized
}
