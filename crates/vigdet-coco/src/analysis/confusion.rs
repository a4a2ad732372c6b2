//! Which class is taken for which.

use super::images::{ImageView, Images};
use crate::error::Result;
use crate::eval::{IouType, Params};
use crate::types::{Category, Dataset, Detection};
use ndarray::Array2;

/// Counts of objects by their class and the class that they were detected as.
#[derive(Clone, Debug)]
pub struct Confusion {
    /// [K + 1, K + 1]: row is the true class, column the detected one; the last row is background (nothing is there),
    /// the last column objects that were not detected.
    pub counts: Array2<u64>,
    /// The K classes, by id. Without `use_categories` one of all.
    pub categories: Vec<Category>,
    /// From this score on detections are looked at.
    pub score: f64,
    /// From this overlap on they are detections of an object.
    pub iou: f64,
}

/// Counts which class is detected as which.
///
/// Pairs the detections of each image that have at least `score` with its objects, whatever their classes: the pair
/// with the largest overlap first, as long as it is at least `iou`. Crowds are left out, and detections that find them.
///
/// # Errors
/// Those of [`crate::eval::evaluate`].
pub fn confusion(
    truth: &Dataset,
    detections: &[Detection],
    iou_type: IouType,
    params: &Params,
    score: f64,
    iou: f64,
) -> Result<Confusion> {
    let images = Images::new(truth, detections, iou_type, params, iou, iou)?;
    let pairs = images.each(|image| pairs(&image, score))?;
    let background = images.categories();
    let mut counts = Array2::zeros((background + 1, background + 1));
    for (object, detection) in pairs.into_iter().flatten() {
        counts[(object.unwrap_or(background), detection.unwrap_or(background))] += 1;
    }
    Ok(Confusion { counts, categories: images.category_list(), score, iou })
}

/// Classes of object and detection, of each pair; of an object or a detection alone, the other is `None`.
fn pairs(image: &ImageView, score: f64) -> Vec<(Option<usize>, Option<usize>)> {
    let on_crowd = |found: Option<usize>| found.is_some_and(|object| image.objects[object].crowd);
    let seen: Vec<_> = image.detections.iter().filter(|seen| seen.score >= score && !on_crowd(seen.found)).collect();
    let overlaps = seen.iter().enumerate().flat_map(|(index, seen)| {
        seen.overlaps.iter().map(move |&(object, overlap)| (overlap, seen.score, index, object))
    });
    let mut overlaps: Vec<_> = overlaps.collect();
    overlaps.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let (mut of_seen, mut of_object) = (vec![None; seen.len()], vec![None; image.objects.len()]);
    for (_, _, index, object) in overlaps {
        if of_seen[index].is_none() && of_object[object].is_none() {
            of_seen[index] = Some(object);
            of_object[object] = Some(index);
        }
    }
    let objects = image.objects.iter().zip(&of_object).filter(|(object, _)| !object.crowd);
    let objects = objects.map(|(object, index)| (Some(object.category), index.map(|index| seen[index].category)));
    let alone = seen.iter().zip(&of_seen).filter(|(_, object)| object.is_none());
    objects.chain(alone.map(|(seen, _)| (None, Some(seen.category)))).collect()
}
