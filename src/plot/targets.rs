//! Objects as annotated, drawn on their image; and a batch's tensor as images again.

use anyhow::Result;
use image::{imageops, Rgb, RgbImage};
use vigdet_coco::rle::Rle;

use super::canvas::Line;
use super::colors;
use super::overlay::{overlay, Mark, MarkMask};
use crate::classes::Classes;
use crate::data::{Batch, Target};
use crate::nn::memory::values;

/// The colour of what is beyond an image in its batch.
const PADDING: [u8; 3] = [70, 70, 90];

/// Draws objects with their masks, one colour a class, crowds dotted in grey. Small images are enlarged (see
/// [`overlay`]).
///
/// # Errors
/// A font that cannot be read.
pub fn draw_target(image: &RgbImage, target: &Target, classes: &Classes) -> Result<RgbImage> {
    overlay(image, &target_marks(image.dimensions(), target, classes))
}

/// A mark for each object of an image of this width and height.
pub fn target_marks((width, height): (u32, u32), target: &Target, classes: &Classes) -> Vec<Mark> {
    let side = width.max(height);
    let mark = |i: usize| {
        let (label, crowd) = (target.labels[i], target.crowd[i]);
        let name = classes.name(label);
        let mask = target.masks[i].as_ref().and_then(|mask| {
            let square = mask.raster(&[0.0, 0.0, side as f32, side as f32], side as usize);
            let rows = square.chunks(side as usize).take(height as usize).flat_map(|row| &row[..width as usize]);
            Rle::from_rows(height, width, &rows.map(|v| *v > 0.5).collect::<Vec<_>>()).ok()
        });
        Mark {
            bbox: target.boxes[i],
            text: if crowd { format!("crowd: {name}") } else { name },
            color: if crowd { colors::GREY } else { colors::class(label) },
            line: if crowd { Line::Dotted } else { Line::Solid },
            mask: mask.map(MarkMask::OnImage),
        }
    };
    (0..target.boxes.len()).map(mark).collect()
}

/// The images of a batch as the network gets them, normalised with `mean` and `std`, back as 8-bit RGB. What is beyond
/// an image is tinted.
///
/// # Errors
/// A batch that is not float32 `[B, 3, H, W]`.
pub fn batch_images(batch: &Batch, mean: [f32; 3], std: [f32; 3]) -> Result<Vec<RgbImage>> {
    let (_, _, height, width) = batch.images.size4()?;
    let (columns, plane) = (width as usize, (height * width) as usize);
    let all = values(&batch.images)?;
    let one = |(data, &(own_height, own_width)): (&[f32], &(i64, i64))| {
        RgbImage::from_fn(width as u32, height as u32, |x, y| {
            if i64::from(x) >= own_width || i64::from(y) >= own_height {
                return Rgb(PADDING);
            }
            let at = y as usize * columns + x as usize;
            let byte = |c: usize| (255.0 * (data[c * plane + at] * std[c] + mean[c])).round().clamp(0.0, 255.0) as u8;
            Rgb([0, 1, 2].map(byte))
        })
    };
    Ok(all.chunks(3 * plane).zip(&batch.sizes).map(one).collect())
}

/// An object with a little of what is around it, as large as it fits into a square of `side` pixels.
pub fn crop_of(image: &RgbImage, bbox: [f32; 4], side: u32) -> RgbImage {
    let [x1, y1, x2, y2] = bbox;
    let around = 0.15 * (x2 - x1).max(y2 - y1);
    let (width, height) = image.dimensions();
    let cut = |v: f32, most: u32| v.clamp(0.0, most as f32) as u32;
    let (left, top) = (cut(x1 - around, width - 1), cut(y1 - around, height - 1));
    let (right, bottom) = (cut((x2 + around).ceil(), width), cut((y2 + around).ceil(), height));
    let (w, h) = (right.saturating_sub(left).max(1), bottom.saturating_sub(top).max(1));
    let part = imageops::crop_imm(image, left, top, w, h).to_image();
    let factor = f64::from(side) / f64::from(w.max(h));
    let to = |from: u32| ((f64::from(from) * factor).round() as u32).clamp(1, side);
    let part = imageops::resize(&part, to(w), to(h), imageops::FilterType::CatmullRom);
    let mut square = RgbImage::from_pixel(side, side, Rgb([235; 3]));
    let (x, y) = ((side - part.width()) / 2, (side - part.height()) / 2);
    imageops::replace(&mut square, &part, x.into(), y.into());
    square
}
