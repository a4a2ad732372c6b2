//! Which part of an image a network sees, resized to a square.

use anyhow::{ensure, Result};
use fast_image_resize::images::TypedCroppedImage;
use fast_image_resize::FilterType;
use image::{imageops, RgbImage};
use rand::Rng;

use crate::data::decode;
use crate::data::resize::{convolve, view};

/// How often a random crop is drawn before the central one is taken.
const TRIES: usize = 10;

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
}

/// The filter of a resize; its support grows when shrinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Pillow's BILINEAR.
    Bilinear,
    /// Pillow's BICUBIC (a = −0.5).
    Bicubic,
}

/// torchvision's `RandomResizedCrop.get_params`: a window whose area is a share of the image's drawn from `scale`, and
/// whose width over height is drawn from `ratio`, evenly in logarithm. After ten windows that do not fit, the central
/// one of the nearest ratio that does.
pub fn random_window(size: (u32, u32), scale: [f64; 2], ratio: [f64; 2], rng: &mut impl Rng) -> Window {
    let (w, h) = (f64::from(size.0), f64::from(size.1));
    let between = |range: [f64; 2], rng: &mut dyn rand::RngCore| range[0] + (range[1] - range[0]) * rng.random::<f64>();
    for _ in 0..TRIES {
        let area = w * h * between(scale, rng);
        let ratio = between(ratio.map(f64::ln), rng).exp();
        let width = (area * ratio).sqrt().round_ties_even();
        let height = (area / ratio).sqrt().round_ties_even();
        if 0.0 < width && width <= w && 0.0 < height && height <= h {
            let (width, height) = (width as u32, height as u32);
            let y = rng.random_range(0..=size.1 - height);
            let x = rng.random_range(0..=size.0 - width);
            return Window { x, y, width, height };
        }
    }
    let (width, height) = match w / h {
        r if r < ratio[0] => (size.0, (w / ratio[0]).round_ties_even() as u32),
        r if r > ratio[1] => ((h * ratio[1]).round_ties_even() as u32, size.1),
        _ => size,
    };
    let (width, height) = (width.clamp(1, size.0), height.clamp(1, size.1));
    Window { x: (size.0 - width) / 2, y: (size.1 - height) / 2, width, height }
}

/// Cuts a window out and resizes it, as Pillow's `crop` and `resize` do one after the other: pixels outside the window
/// have no say.
pub fn crop_resize(image: &RgbImage, window: Window, (width, height): (u32, u32), filter: Filter) -> Result<RgbImage> {
    let Window { x, y, width: w, height: h } = window;
    if (w, h) == (width, height) {
        return Ok(imageops::crop_imm(image, x, y, w, h).to_image());
    }
    let filter = match filter {
        Filter::Bilinear => FilterType::Bilinear,
        Filter::Bicubic => FilterType::CatmullRom,
    };
    convolve(&TypedCroppedImage::from_ref(&view(image)?, x, y, w, h)?, width, height, filter)
}

/// The evaluation's view: the shorter side becomes `size / share` pixels, rounded down, and the central `size` ×
/// `size` pixels are kept (timm's `transforms_imagenet_eval`).
pub fn center(image: &RgbImage, size: u32, share: f64, filter: Filter) -> Result<RgbImage> {
    let (w, h) = image.dimensions();
    let short = ((f64::from(size) / share).floor() as u32).max(size);
    // torchvision: the longer side is rounded down.
    let long = u64::from(short) * u64::from(w.max(h)) / u64::from(w.min(h).max(1));
    ensure!(
        long * u64::from(short) <= decode::MOST_PIXELS,
        "{w}×{h} pixels would be {short}×{long} before the central crop of data.size, {size}: that is more than the \
         {} pixels that an image may have",
        decode::MOST_PIXELS
    );
    let long = long as u32;
    let resized = if w <= h { (short, long) } else { (long, short) };
    let whole = Window { x: 0, y: 0, width: w, height: h };
    let image = crop_resize(image, whole, resized, filter)?;
    let start = |side: u32| (f64::from(side - size) / 2.0).round_ties_even() as u32;
    Ok(imageops::crop_imm(&image, start(resized.0), start(resized.1), size, size).to_image())
}
