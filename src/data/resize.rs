//! Resizing, with normalisation straight into a batch's float buffer.

use anyhow::Result;
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;

use crate::config::ResizeKind;

mod opencv;

/// Width and height after resizing: the shorter side becomes `short`, unless the longer would then be above `long`.
///
/// [`ResizeKind::Antialias`] rounds as detectron2's `ResizeShortestEdge` does, [`ResizeKind::Opencv`] as mmdetection,
/// [`ResizeKind::Bilinear`] rounds down as torchvision's `GeneralizedRCNNTransform` does (with its float arithmetic:
/// 427 → 800 may give 799).
pub fn output_size(width: u32, height: u32, short: f64, long: f64, kind: ResizeKind) -> (u32, u32) {
    let (w, h) = (f64::from(width), f64::from(height));
    let (new_w, new_h) = match kind {
        ResizeKind::Opencv => {
            let scale = (long / w.max(h)).min(short / w.min(h));
            ((w * scale + 0.5).floor(), (h * scale + 0.5).floor())
        }
        ResizeKind::Bilinear => {
            let scale = (short / w.min(h)).min(long / w.max(h));
            ((w * scale).floor(), (h * scale).floor())
        }
        ResizeKind::Antialias => {
            let scale = short / w.min(h);
            let (mut new_w, mut new_h) = if h < w { (scale * w, short) } else { (short, scale * h) };
            if new_w.max(new_h) > long {
                let shrink = long / new_w.max(new_h);
                new_w *= shrink;
                new_h *= shrink;
            }
            ((new_w + 0.5).floor(), (new_h + 0.5).floor())
        }
    };
    (new_w.max(1.0) as u32, new_h.max(1.0) as u32)
}

/// The place of one image in a batch: three planes of `rows × columns` floats.
pub struct Slot<'a> {
    /// `[3, rows, columns]`, contiguous.
    pub data: &'a mut [f32],
    /// Padded height.
    pub rows: usize,
    /// Padded width.
    pub columns: usize,
}

/// Channel-wise `(value / 255 − mean) / std`, as one multiplication and one addition.
#[derive(Clone, Copy, Debug)]
pub struct Normalise {
    scale: [f32; 3],
    shift: [f32; 3],
}

impl Normalise {
    /// `mean` and `std` are for values in 0–1.
    pub fn new(mean: [f32; 3], std: [f32; 3]) -> Self {
        Self { scale: std.map(|s| 1.0 / (255.0 * s)), shift: std::array::from_fn(|c| -mean[c] / std[c]) }
    }

    /// What each channel is multiplied by, and what is added then.
    pub fn factors(&self) -> [[f32; 3]; 2] {
        [self.scale, self.shift]
    }
}

/// Resizes `image` to `(width, height)`, normalises it into the upper left of `slot` and fills the rest of `slot` with
/// zeros.
///
/// `slot` must be at least as large. [`ResizeKind::Bilinear`] interpolates in float, as torchvision does on tensors;
/// [`ResizeKind::Antialias`] gives Pillow's 8-bit result first, [`ResizeKind::Opencv`] OpenCV's.
pub fn resize_into(
    image: &RgbImage,
    (width, height): (u32, u32),
    kind: ResizeKind,
    normalise: &Normalise,
    slot: Slot,
) -> Result<()> {
    let (w, h) = (width as usize, height as usize);
    let Slot { data, rows, columns } = slot;
    debug_assert!(w <= columns && h <= rows && data.len() == 3 * rows * columns);
    for plane in data.chunks_exact_mut(rows * columns) {
        plane[h * columns..].fill(0.0);
        if w < columns {
            plane[..h * columns].chunks_exact_mut(columns).for_each(|row| row[w..].fill(0.0));
        }
    }
    match kind {
        _ if image.dimensions() == (width, height) => normalise_rows(image, normalise, data, columns, rows),
        ResizeKind::Antialias => {
            normalise_rows(&antialias(image, width, height)?, normalise, data, columns, rows);
        }
        ResizeKind::Bilinear => bilinear(image, (w, h), normalise, Slot { data, rows, columns }),
        ResizeKind::Opencv => {
            normalise_rows(&opencv::resize(image, width, height), normalise, data, columns, rows);
        }
    }
    Ok(())
}

/// Pillow's `resize(…, BILINEAR)`: a triangle filter whose support grows when shrinking, 8 bits in and out.
pub fn antialias(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    convolve(&view(image)?, width, height, FilterType::Bilinear)
}

/// An image as the resizer takes it. Typed: untyped views compile the code of every pixel type there is.
pub(super) fn view(image: &RgbImage) -> Result<TypedImageRef<'_, U8x3>> {
    Ok(TypedImageRef::from_buffer(image.width(), image.height(), image.as_raw())?)
}

/// Resizes with a filter whose support grows when shrinking, as Pillow does.
pub(super) fn convolve(
    source: &impl ImageView<Pixel = U8x3>,
    width: u32,
    height: u32,
    filter: FilterType,
) -> Result<RgbImage> {
    let mut resized = RgbImage::new(width, height);
    let mut target = TypedImage::<U8x3>::from_buffer(width, height, resized.as_mut())?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter));
    Resizer::new().resize_typed(source, &mut target, &options)?;
    Ok(resized)
}

/// Writes `(value / 255 − mean) / std` of each pixel into the upper left of three planes of `rows × columns` floats.
pub(super) fn normalise_rows(image: &RgbImage, normalise: &Normalise, data: &mut [f32], columns: usize, rows: usize) {
    let table: [[f32; 256]; 3] =
        std::array::from_fn(|c| std::array::from_fn(|v| v as f32 * normalise.scale[c] + normalise.shift[c]));
    let width = image.width() as usize;
    let (red, rest) = data.split_at_mut(rows * columns);
    let (green, blue) = rest.split_at_mut(rows * columns);
    for (y, row) in image.as_raw().chunks_exact(3 * width).enumerate() {
        let at = y * columns..y * columns + width;
        let planes = red[at.clone()].iter_mut().zip(&mut green[at.clone()]).zip(&mut blue[at]);
        for (((r, g), b), pixel) in planes.zip(row.chunks_exact(3)) {
            *r = table[0][usize::from(pixel[0])];
            *g = table[1][usize::from(pixel[1])];
            *b = table[2][usize::from(pixel[2])];
        }
    }
}

/// Where an output pixel takes its two input pixels from, and the weight of the second.
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    weight: f32,
}

/// PyTorch's `interpolate(…, mode="bilinear", align_corners=False)` along one axis.
fn taps(input: usize, output: usize) -> Vec<Tap> {
    let scale = input as f32 / output as f32;
    (0..output)
        .map(|i| {
            let at = (scale * (i as f32 + 0.5) - 0.5).max(0.0);
            let first = (at as usize).min(input - 1);
            Tap { first, second: (first + 1).min(input - 1), weight: at - first as f32 }
        })
        .collect()
}

/// The two input rows that an output row lies between, stretched to its width. Both are kept for the next output row.
struct StretchedRows<T> {
    /// With the numbers of their input rows.
    upper: (usize, Vec<T>),
    lower: (usize, Vec<T>),
}

impl<T: Clone + Default> StretchedRows<T> {
    /// For rows of `length` values.
    fn new(length: usize) -> Self {
        let none = || (usize::MAX, vec![T::default(); length]);
        Self { upper: none(), lower: none() }
    }

    /// The input rows `first` and `second`. `stretch` makes a row that is not there yet.
    fn pair(&mut self, first: usize, second: usize, stretch: impl Fn(usize, &mut [T])) -> (&[T], &[T]) {
        let Self { upper, lower } = self;
        if upper.0 != first && lower.0 == first {
            std::mem::swap(upper, lower);
        }
        for ((number, row), wanted) in [(upper, first), (lower, second)] {
            if *number != wanted {
                stretch(wanted, row);
                *number = wanted;
            }
        }
        (&self.upper.1, &self.lower.1)
    }
}

/// Two-by-two bilinear: each needed input row is stretched once, and each output row blends two of them.
fn bilinear(image: &RgbImage, (width, height): (usize, usize), normalise: &Normalise, slot: Slot) {
    let Slot { data, rows, columns } = slot;
    let source_width = image.width() as usize;
    let source = image.as_raw();
    let across = taps(source_width, width);
    let stretch = |row: usize, out: &mut [f32]| {
        let pixels = &source[3 * source_width * row..3 * source_width * (row + 1)];
        let (red, rest) = out.split_at_mut(width);
        let (green, blue) = rest.split_at_mut(width);
        for (((tap, r), g), b) in across.iter().zip(red).zip(green).zip(blue) {
            let (p, q) = (&pixels[3 * tap.first..3 * tap.first + 3], &pixels[3 * tap.second..3 * tap.second + 3]);
            let blend = |c: usize| {
                let (p, q) = (f32::from(p[c]), f32::from(q[c]));
                p + (q - p) * tap.weight
            };
            *r = blend(0);
            *g = blend(1);
            *b = blend(2);
        }
    };
    let mut stretched = StretchedRows::new(3 * width);
    for (y, tap) in taps(image.height() as usize, height).into_iter().enumerate() {
        let (above, below) = stretched.pair(tap.first, tap.second, stretch);
        for c in 0..3 {
            let (scale, shift) = (normalise.scale[c], normalise.shift[c]);
            let (from_upper, from_lower) = (scale * (1.0 - tap.weight), scale * tap.weight);
            let start = c * rows * columns + y * columns;
            let out = &mut data[start..start + width];
            let plane = c * width..(c + 1) * width;
            for ((o, a), b) in out.iter_mut().zip(&above[plane.clone()]).zip(&below[plane]) {
                *o = a * from_upper + b * from_lower + shift;
            }
        }
    }
}
