//! Four images in one (Bochkovskiy et al., 2020, "YOLOv4", section 3.4): more objects and more locations a step, for
//! small data sets.

use anyhow::Result;
use image::imageops;
use rand::Rng;

use super::affine_map::AffineMap;
use super::augment::{cut, draw_scale, scale_objects};
use super::resize::antialias;
use super::sample::{Sample, Target};

/// The four images meet between these fractions of the sides.
const MEETING_POINT: std::ops::Range<f64> = 0.3..0.7;

/// Images are shrunk to between half and all of their size, but never below what fills their quarter.
const SHRINK: [f64; 2] = [0.5, 1.0];

/// Fills the area of the first sample with a part of each of the four. The result has the first one's info. Objects of
/// which less than `visible` is left become crowd regions.
pub fn mosaic(samples: [Sample; 4], visible: f64, rng: &mut impl Rng) -> Result<Sample> {
    let (width, height) = samples[0].image.dimensions();
    let mut meet = |side: u32| ((f64::from(side) * rng.random_range(MEETING_POINT)) as u32).clamp(1, side.max(2) - 1);
    let (x, y) = (meet(width), meet(height));
    let quarters = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)];
    let mut image = image::RgbImage::new(width, height);
    let mut target = Target::default();
    let info = samples[0].info.clone();
    for (mut sample, (x1, y1, x2, y2)) in samples.into_iter().zip(quarters) {
        let (w, h) = (x2.saturating_sub(x1), y2.saturating_sub(y1));
        if w == 0 || h == 0 {
            continue;
        }
        let (from_w, from_h) = sample.image.dimensions();
        let fill = (f64::from(w) / f64::from(from_w)).max(f64::from(h) / f64::from(from_h));
        let scale = draw_scale(SHRINK, rng).max(fill);
        let to = |from: u32, least: u32| ((f64::from(from) * scale).round() as u32).max(least);
        let (to_w, to_h) = (to(from_w, w), to(from_h, h));
        let resized = antialias(&sample.image, to_w, to_h)?;
        scale_objects(&mut sample.target, to_w as f32 / from_w as f32, to_h as f32 / from_h as f32);
        let (left, top) = (rng.random_range(0..=to_w - w), rng.random_range(0..=to_h - h));
        let part = imageops::crop_imm(&resized, left, top, w, h).to_image();
        imageops::replace(&mut image, &part, x1.into(), y1.into());
        let mut seen = cut(&sample.target, [left, top, left + w, top + h].map(|v| v as f32), visible as f32);
        let (dx, dy) = (x1 as f32, y1 as f32);
        target.boxes.extend(seen.boxes.iter().map(|b| [b[0] + dx, b[1] + dy, b[2] + dx, b[3] + dy]));
        target.labels.extend(&seen.labels);
        target.crowd.extend(&seen.crowd);
        seen.change_masks(&AffineMap::translate(dx.into(), dy.into()));
        let quarter = [x1, y1, x2, y2].map(|v| v as f32);
        seen.masks.iter_mut().flatten().for_each(|mask| mask.see_through(quarter));
        target.masks.extend(seen.masks);
    }
    Ok(Sample { info, image, target })
}
