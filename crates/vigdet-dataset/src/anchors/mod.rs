//! Anchor boxes and the objects of a data set.
//!
//! A location at row y, column x of a level with stride s has its anchors centred at (x · s, y · s). Their √area is
//! base · s · 2^(i / octaves), or one of `sizes` at every level; each comes with every ratio of height to width.

mod fitting;

pub use fitting::{fitted, k_means};

use crate::check::scale;
use crate::types::Split;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;

/// An object counts as matched from this IoU on.
pub const MATCHED: f64 = 0.5;

/// Anchors as in the config's `model.anchors`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Anchors {
    /// Pixels between locations, one a level.
    pub strides: Vec<f64>,
    /// √area of the smallest anchor of a level, in strides.
    pub base: f64,
    /// Sizes per octave.
    pub octaves: u32,
    /// √area in pixels, the same at every level, in place of `base` and `octaves`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sizes: Option<Vec<f64>>,
    /// Height over width.
    pub ratios: Vec<f64>,
}

impl Default for Anchors {
    /// RetinaNet's.
    fn default() -> Anchors {
        let strides = vec![8.0, 16.0, 32.0, 64.0, 128.0];
        Anchors { strides, base: 4.0, octaves: 3, sizes: None, ratios: vec![0.5, 1.0, 2.0] }
    }
}

/// An object in the image as the network gets it, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Object {
    /// Of the centre, x and y.
    pub centre: [f64; 2],
    /// Width and height.
    pub size: [f64; 2],
    /// Width and height of the image.
    pub image: [f64; 2],
}

/// How well anchors fit objects.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The share of objects with an anchor of IoU 0.5 or more.
    pub matched: f64,
    /// The mean over objects of the best IoU.
    pub mean_iou: f64,
}

/// The objects of splits that are no crowds, clipped to their image, resized as training does: the shorter side to
/// `short`, unless the longer one then exceeds `long`. Objects of images without a size, and those of less than a
/// pixel, are left out.
pub fn objects<'a>(splits: impl IntoIterator<Item = &'a Split>, (short, long): (u32, u32)) -> Vec<Object> {
    let mut objects = Vec::new();
    for split in splits {
        let sizes: HashMap<i64, (f64, f64)> =
            split.dataset.images.iter().map(|i| (i.id, (f64::from(i.width), f64::from(i.height)))).collect();
        for annotation in split.dataset.annotations.iter().filter(|annotation| !annotation.iscrowd) {
            let Some(&(width, height)) = sizes.get(&annotation.image_id).filter(|s| s.0 > 0.0 && s.1 > 0.0) else {
                continue;
            };
            let [x, y, w, h] = annotation.bbox;
            let (left, top) = (x.clamp(0.0, width), y.clamp(0.0, height));
            let (w, h) = ((x + w).clamp(0.0, width) - left, (y + h).clamp(0.0, height) - top);
            if w >= 1.0 && h >= 1.0 {
                let by = scale(width, height, short, long);
                objects.push(Object {
                    centre: [(left + w / 2.0) * by, (top + h / 2.0) * by],
                    size: [w * by, h * by],
                    image: [width * by, height * by],
                });
            }
        }
    }
    objects
}

impl Anchors {
    /// Widths and heights at a level.
    fn shapes(&self, stride: f64) -> Vec<[f64; 2]> {
        let octave = |i: u32| self.base * stride * 2f64.powf(f64::from(i) / f64::from(self.octaves));
        let sizes = self.sizes.clone().unwrap_or_else(|| (0..self.octaves).map(octave).collect());
        let shape = |size: f64| self.ratios.iter().map(move |ratio| [size / ratio.sqrt(), size * ratio.sqrt()]);
        sizes.into_iter().flat_map(shape).collect()
    }

    /// The greatest IoU of an object with any anchor.
    pub fn best_iou(&self, object: &Object) -> f64 {
        self.best(object, &self.levels())
    }

    fn levels(&self) -> Vec<(f64, Vec<[f64; 2]>)> {
        self.strides.iter().map(|&stride| (stride, self.shapes(stride))).collect()
    }

    fn best(&self, object: &Object, levels: &[(f64, Vec<[f64; 2]>)]) -> f64 {
        let mut best = 0.0f64;
        for (stride, shapes) in levels {
            // The nearest location is the best of a level.
            let away = |axis: usize| {
                let last = (object.image[axis] / stride).ceil().max(1.0) - 1.0;
                (object.centre[axis] - (object.centre[axis] / stride).round().clamp(0.0, last) * stride).abs()
            };
            let away = [away(0), away(1)];
            for shape in shapes {
                best = best.max(shifted_iou(object.size, *shape, away));
            }
        }
        best
    }

    /// How well they fit. All 0 without objects.
    pub fn fit(&self, objects: &[Object]) -> Fit {
        let levels = self.levels();
        let (matched, sum) = objects
            .par_iter()
            .map(|object| self.best(object, &levels))
            .map(|best| (usize::from(best >= MATCHED), best))
            // Sums of a fixed order: the same on any number of threads.
            .collect::<Vec<_>>()
            .into_iter()
            .fold((0, 0.0), |(matched, sum), (one, best)| (matched + one, sum + best));
        let count = objects.len().max(1) as f64;
        Fit { matched: matched as f64 / count, mean_iou: sum / count }
    }

    /// The line for the config.
    pub fn line(&self) -> String {
        let list = |values: &[f64]| values.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        let sizes = match &self.sizes {
            Some(sizes) => format!("model.anchors.sizes=[{}]", list(sizes)),
            None => format!("model.anchors.base={}", self.base),
        };
        format!("--set {sizes} --set model.anchors.ratios=[{}]", list(&self.ratios))
    }
}

/// IoU of two boxes whose centres lie so far apart in x and y.
fn shifted_iou(a: [f64; 2], b: [f64; 2], away: [f64; 2]) -> f64 {
    let overlap = |axis: usize| {
        let (half_a, half_b) = (a[axis] / 2.0, b[axis] / 2.0);
        (half_a.min(away[axis] + half_b) - (-half_a).max(away[axis] - half_b)).max(0.0)
    };
    let inner = overlap(0) * overlap(1);
    inner / (a[0] * a[1] + b[0] * b[1] - inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(centre: [f64; 2], size: [f64; 2]) -> Object {
        Object { centre, size, image: [640.0, 480.0] }
    }

    #[test]
    fn the_best_anchor_is_that_of_all_anchors_one_by_one() {
        let anchors = Anchors { strides: vec![16.0, 64.0], ..Anchors::default() };
        let corners = |[x, y]: [f64; 2], [w, h]: [f64; 2]| [x - w / 2.0, y - h / 2.0, w, h];
        for object in [
            object([100.0, 70.0], [60.0, 100.0]),
            object([3.0, 477.0], [6.0, 6.0]),
            object([637.0, 240.0], [300.0, 200.0]),
        ] {
            let mut best = 0.0f64;
            for stride in [16.0, 64.0] {
                for row in 0..(480.0f64 / stride).ceil() as usize {
                    for column in 0..(640.0f64 / stride).ceil() as usize {
                        let centre = [column as f64 * stride, row as f64 * stride];
                        for shape in anchors.shapes(stride) {
                            let anchor = corners(centre, shape);
                            best = best.max(crate::geometry::iou(anchor, corners(object.centre, object.size)));
                        }
                    }
                }
            }
            assert!((anchors.best_iou(&object) - best).abs() < 1e-12);
        }
    }
}
