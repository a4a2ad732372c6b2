//! The numbers of each class.

use super::summary::mean_of_present;
use super::Evaluation;
use ndarray::s;
use serde::Serialize;

/// The numbers of one class, with the largest number of detections. −1 where it has no (such) objects.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassResult {
    /// Id in the annotation file.
    pub category_id: i64,
    /// Name in the annotation file.
    pub name: String,
    /// Objects that are not crowds.
    pub objects: usize,
    /// Average precision over all IoU thresholds.
    pub ap: f64,
    /// At IoU 0.5; −1 where that is not among the thresholds.
    pub ap50: f64,
    /// At IoU 0.75; −1 where that is not among the thresholds.
    pub ap75: f64,
    /// Of small objects.
    pub ap_small: f64,
    /// Of medium objects.
    pub ap_medium: f64,
    /// Of large objects.
    pub ap_large: f64,
    /// Average recall over all IoU thresholds.
    pub ar: f64,
    /// Average precision at each IoU threshold.
    pub ap_per_iou: Vec<f64>,
    /// Average precision in each area range.
    pub ap_per_area: Vec<f64>,
}

pub(super) fn of(evaluation: &Evaluation) -> Vec<ClassResult> {
    let params = &evaluation.params;
    let m = params.max_dets.len() - 1;
    let area = |label: &str| params.area(label);
    let result = |(k, category): (usize, &crate::types::Category)| {
        let of_area =
            |a: usize| mean_of_present(evaluation.precision.slice(s![.., .., k, a, m]).iter().copied());
        let ap_per_area: Vec<f64> = (0..params.areas.len()).map(of_area).collect();
        let ap = |label: &str| area(label).map_or(-1.0, |a| ap_per_area[a]);
        let ap_per_iou: Vec<f64> = (0..params.iou_thresholds.len())
            .map(|t| {
                area("all").map_or(-1.0, |a| {
                    mean_of_present(evaluation.precision.slice(s![t, .., k, a, m]).iter().copied())
                })
            })
            .collect();
        let at =
            |iou: f64| params.iou_thresholds.iter().position(|&t| t == iou).map_or(-1.0, |t| ap_per_iou[t]);
        ClassResult {
            category_id: category.id,
            name: category.name.clone(),
            objects: evaluation.objects[k],
            ap: ap("all"),
            ap50: at(0.5),
            ap75: at(0.75),
            ap_small: ap("small"),
            ap_medium: ap("medium"),
            ap_large: ap("large"),
            ar: area("all")
                .map_or(-1.0, |a| mean_of_present(evaluation.recall.slice(s![.., k, a, m]).iter().copied())),
            ap_per_iou,
            ap_per_area: ap_per_area.clone(),
        }
    };
    evaluation.categories.iter().enumerate().map(result).collect()
}
