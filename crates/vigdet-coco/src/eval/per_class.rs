//! The numbers of each class.

use super::summary::mean_of_present;
use super::{Evaluation, AREA_LABELS};
use ndarray::s;
use serde::Serialize;
use std::fmt::Write;

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

impl ClassResult {
    /// The name, or else the id.
    pub(crate) fn label(&self) -> String {
        if self.name.is_empty() {
            self.category_id.to_string()
        } else {
            self.name.clone()
        }
    }
}

pub(super) fn of(evaluation: &Evaluation) -> Vec<ClassResult> {
    let params = &evaluation.params;
    let m = params.max_dets.len() - 1;
    let all = params.area("all");
    let result = |(k, category): (usize, &crate::types::Category)| {
        let of_area = |a: usize| mean_of_present(evaluation.precision.slice(s![.., .., k, a, m]));
        let ap_per_area: Vec<f64> = (0..params.areas.len()).map(of_area).collect();
        let ap = |label: &str| params.area(label).map_or(-1.0, |a| ap_per_area[a]);
        let of_iou = |t: usize| all.map_or(-1.0, |a| mean_of_present(evaluation.precision.slice(s![t, .., k, a, m])));
        let ap_per_iou: Vec<f64> = (0..params.iou_thresholds.len()).map(of_iou).collect();
        let at = |iou: f64| params.iou_thresholds.iter().position(|&t| t == iou).map_or(-1.0, |t| ap_per_iou[t]);
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
            ar: all.map_or(-1.0, |a| mean_of_present(evaluation.recall.slice(s![.., k, a, m]))),
            ap_per_iou,
            ap_per_area,
        }
    };
    evaluation.categories.iter().enumerate().map(result).collect()
}

/// The classes as text, best AP first, those without objects last.
pub(super) fn table(evaluation: &Evaluation) -> String {
    let mut classes = of(evaluation);
    classes.sort_by(|a, b| b.ap.total_cmp(&a.ap));
    let width = classes.iter().map(|class| class.label().chars().count()).max().unwrap_or(0).max(5);
    let mut table = format!("{:<width$} {:>8}", "class", "objects");
    for title in ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR"] {
        let _ = write!(table, " {title:>6}");
    }
    let areas = evaluation.params.areas.iter().enumerate();
    let extra: Vec<(usize, &str)> =
        areas.map(|(a, area)| (a, area.label.as_str())).filter(|(_, label)| !AREA_LABELS.contains(label)).collect();
    for (_, label) in &extra {
        let _ = write!(table, " {label:>6}");
    }
    for class in &classes {
        let _ = write!(table, "\n{:<width$} {:>8}", class.label(), class.objects);
        let cell = |value: f64| if value < 0.0 { "-".to_owned() } else { format!("{value:.3}") };
        for value in [class.ap, class.ap50, class.ap75, class.ap_small, class.ap_medium, class.ap_large, class.ar] {
            let _ = write!(table, " {:>6}", cell(value));
        }
        for &(a, label) in &extra {
            let width = label.chars().count().max(6);
            let _ = write!(table, " {:>width$}", cell(class.ap_per_area[a]));
        }
    }
    table
}
