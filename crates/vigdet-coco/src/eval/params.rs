//! What is evaluated: thresholds, sizes, counts, images and categories.

use crate::error::{Error, Result};

/// Most IoU thresholds: matches are kept as bits of one word.
pub(crate) const MAX_THRESHOLDS: usize = 64;

/// A range of object areas, both ends included, in square pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct AreaRange {
    /// The summary shows those of [`AREA_LABELS`](super::AREA_LABELS).
    pub label: String,
    /// Smaller objects are left out.
    pub min: f64,
    /// Larger objects are left out.
    pub max: f64,
}

impl AreaRange {
    /// A named range of areas.
    pub fn new(label: impl Into<String>, min: f64, max: f64) -> AreaRange {
        AreaRange { label: label.into(), min, max }
    }

    /// Whether an area is outside. As in pycocotools an area that is not a number is never outside.
    pub(crate) fn excludes(&self, area: f64) -> bool {
        area < self.min || area > self.max
    }
}

/// The parameters of an evaluation. The default is COCO's, for boxes and for masks.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// T thresholds: a detection can match an object from this overlap on. At most 64.
    pub iou_thresholds: Vec<f64>,
    /// R recalls at which the precision is read.
    pub recall_thresholds: Vec<f64>,
    /// A ranges of object areas.
    pub areas: Vec<AreaRange>,
    /// M numbers of detections, the best by score in an image and category, that count.
    pub max_dets: Vec<usize>,
    /// Detections match objects of their own category only. Without, all categories are one (K = 1).
    pub use_categories: bool,
    /// Only these images. `None` is all.
    pub image_ids: Option<Vec<i64>>,
    /// Only these categories. `None` is all.
    pub category_ids: Option<Vec<i64>>,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            iou_thresholds: linspace(0.5, 0.95, 10),
            recall_thresholds: linspace(0.0, 1.0, 101),
            areas: vec![
                AreaRange::new("all", 0.0, 1e10),
                AreaRange::new("small", 0.0, 32.0 * 32.0),
                AreaRange::new("medium", 32.0 * 32.0, 96.0 * 96.0),
                AreaRange::new("large", 96.0 * 96.0, 1e10),
            ],
            max_dets: vec![1, 10, 100],
            use_categories: true,
            image_ids: None,
            category_ids: None,
        }
    }
}

impl Params {
    /// The parameters as they are used: numbers of detections and ids sorted, as pycocotools sorts them.
    ///
    /// # Errors
    /// A list is empty, a threshold is not between 0 and 1, an area range ends before it begins, or there are more than
    /// 64 IoU thresholds.
    pub(crate) fn checked(&self) -> Result<Params> {
        let wrong = |message: &str| Err(Error::Data(message.to_owned()));
        let mut thresholds = self.iou_thresholds.iter().chain(&self.recall_thresholds);
        if thresholds.any(|value| !(0.0..=1.0).contains(value)) {
            return wrong("IoU and recall thresholds must be between 0 and 1");
        }
        if self.iou_thresholds.is_empty() || self.iou_thresholds.len() > MAX_THRESHOLDS {
            return wrong("there must be 1 to 64 IoU thresholds");
        }
        if self.recall_thresholds.is_empty() || self.areas.is_empty() || self.max_dets.is_empty() {
            return wrong("recall thresholds, areas and numbers of detections must not be empty");
        }
        if let Some(AreaRange { label, min, max }) = self.areas.iter().find(|area| !(area.min <= area.max)) {
            return wrong(&format!(
                "the area range {label} goes from {min} to {max}: it must not end before it begins"
            ));
        }
        let mut params = self.clone();
        params.max_dets.sort_unstable();
        for ids in [&mut params.image_ids, &mut params.category_ids].into_iter().flatten() {
            ids.sort_unstable();
            ids.dedup();
        }
        Ok(params)
    }

    /// Index of the first area range of this name.
    pub(crate) fn area(&self, label: &str) -> Option<usize> {
        self.areas.iter().position(|area| area.label == label)
    }

    /// The largest number of detections that count in an image and category.
    pub(crate) fn most_dets(&self) -> usize {
        self.max_dets.last().copied().unwrap_or(0)
    }
}

/// Evenly spaced numbers, rounded as numpy's `linspace` rounds them.
pub fn linspace(start: f64, stop: f64, count: usize) -> Vec<f64> {
    if count < 2 {
        return vec![start; count];
    }
    let step = (stop - start) / (count - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| i as f64 * step + start).collect();
    values[count - 1] = stop;
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_thresholds_are_numpys_to_the_last_bit() {
        let params = Params::default();
        // repr of np.linspace(.5, .95, 10)
        let ious = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.8999999999999999, 0.95];
        assert_eq!(params.iou_thresholds, ious);
        assert_eq!(params.recall_thresholds[29], 0.29);
        assert_eq!(params.recall_thresholds[35], 0.35000000000000003);
    }
}
