//! The COCO evaluation: match, accumulate, summarize.
//!
//! ```
//! use vigdet_coco::eval::{evaluate, IouType, Params};
//! use vigdet_coco::types::{Annotation, Category, Dataset, Detection, Image};
//!
//! let truth = Dataset {
//!     images: vec![Image { id: 1, ..Image::default() }],
//!     categories: vec![Category { id: 18, name: "dog".into(), ..Category::default() }],
//!     annotations: vec![Annotation {
//!         id: 1, image_id: 1, category_id: 18, bbox: [10.0, 10.0, 40.0, 40.0], area: 1600.0, ..Annotation::default()
//!     }],
//! };
//! let detection = Detection {
//!     image_id: 1, category_id: 18, bbox: Some([10.0, 10.0, 40.0, 42.0]), score: 0.9, ..Detection::default()
//! };
//! let evaluation = evaluate(&truth, &[detection], IouType::Bbox, &Params::default())?;
//! // The overlap is 40 / 42: right at all thresholds.
//! assert!((evaluation.summary().stats[0] - 1.0).abs() < 1e-12);
//! println!("{}", evaluation.summary());
//! # Ok::<(), vigdet_coco::Error>(())
//! ```

pub(crate) mod accumulate;
pub(crate) mod geometry;
pub(crate) mod group;
pub(crate) mod ids;
pub(crate) mod matching;
mod params;
mod per_class;
pub(crate) mod summary;
mod warning;

pub use params::{linspace, AreaRange, Params};
pub use per_class::ClassResult;
pub use summary::{Summary, AREA_LABELS, STAT_NAMES};
pub use warning::Warning;

use crate::error::Result;
use crate::types::{Category, Dataset, Detection};
use geometry::Shapes;
use group::{bins, Bins, Scope};
use matching::Matches;
use ndarray::{s, Array4, Array5, Axis};
use rayon::prelude::*;

/// What overlaps are measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IouType {
    /// Boxes.
    Bbox,
    /// Masks.
    Segm,
}

/// The result of an evaluation, as pycocotools' `COCOeval.eval`.
///
/// T IoU thresholds, R recall thresholds, K categories (sorted by id; one without `use_categories`), A area ranges and
/// M numbers of detections.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// [T, R, K, A, M]: precision at each recall. −1 where a category has no objects.
    pub precision: Array5<f64>,
    /// [T, R, K, A, M]: score of the detection at which each recall is reached, 0 where it is not, −1 where there are
    /// no objects.
    pub scores: Array5<f64>,
    /// [T, K, A, M]: highest recall. −1 where a category has no objects.
    pub recall: Array4<f64>,
    /// Boxes or masks.
    pub iou_type: IouType,
    /// The parameters as used: numbers of detections and ids sorted.
    pub params: Params,
    /// The K categories. Empty without `use_categories`.
    pub categories: Vec<Category>,
    /// Objects of each category that are not crowds.
    pub objects: Vec<usize>,
    /// Where the rules surprise.
    pub warnings: Vec<Warning>,
}

impl Evaluation {
    /// COCO's twelve numbers.
    pub fn summary(&self) -> Summary {
        Summary::of(self)
    }

    /// T numbers: average precision over all categories at each IoU threshold, objects of all sizes, with the largest
    /// number of detections. −1 where there are no objects.
    pub fn ap_per_iou(&self) -> Vec<f64> {
        let Some(a) = self.params.area("all") else { return vec![-1.0; self.params.iou_thresholds.len()] };
        let of_areas = self.precision.slice(s![.., .., .., a, self.params.max_dets.len() - 1]);
        of_areas.outer_iter().map(summary::mean_of_present).collect()
    }

    /// A numbers: average precision over all categories and IoU thresholds in each area range, with the largest number
    /// of detections. −1 where there are no objects.
    pub fn ap_per_area(&self) -> Vec<f64> {
        let last = self.params.max_dets.len() - 1;
        let of_area = |a| summary::mean_of_present(self.precision.slice(s![.., .., .., a, last]));
        (0..self.params.areas.len()).map(of_area).collect()
    }

    /// A numbers: average recall over all categories and IoU thresholds in each area range, with the largest number of
    /// detections. −1 where there are no objects.
    pub fn ar_per_area(&self) -> Vec<f64> {
        let last = self.params.max_dets.len() - 1;
        let of_area = |a| summary::mean_of_present(self.recall.slice(s![.., .., a, last]));
        (0..self.params.areas.len()).map(of_area).collect()
    }

    /// The numbers of each category, in the order of their ids. Empty without `use_categories`.
    pub fn per_class(&self) -> Vec<ClassResult> {
        per_class::of(self)
    }

    /// The numbers of each category as a table, best AP first, those without objects last. Area ranges that COCO does
    /// not have add columns with the AP in each.
    pub fn class_table(&self) -> String {
        per_class::table(self)
    }
}

/// Evaluates detections as pycocotools does.
///
/// The numbers are those of `COCOeval` (`evaluate`, `accumulate`, `summarize`) of pycocotools 2.0.11 to the last bit.
/// Where its rules surprise, [`Evaluation::warnings`] says so; where it crashes, there is a value or an error:
/// - no detections: zeros
/// - results given as polygons or uncompressed masks: evaluated as masks
/// - results of which some have no box, or no mask, where others do: each is taken as it is
///
/// # Errors
/// A detection is in an image that `truth` does not have, a mask is missing or impossible, a parameter is.
pub fn evaluate(truth: &Dataset, detections: &[Detection], iou_type: IouType, params: &Params) -> Result<Evaluation> {
    let task = Task::new(truth, detections, iou_type, params)?;
    let Params { iou_thresholds, recall_thresholds, areas, max_dets, .. } = &task.params;
    let (t, r, k) = (iou_thresholds.len(), recall_thresholds.len(), task.bins.truths.len());
    let (a, m) = (areas.len(), max_dets.len());
    let mut precision = Array5::from_elem((t, r, k, a, m), -1.0);
    let mut scores = Array5::from_elem((t, r, k, a, m), -1.0);
    let mut recall = Array4::from_elem((t, k, a, m), -1.0);
    // These are the most that an evaluation of many classes holds, so each class writes into them where it stands.
    let of_curves = precision.axis_iter_mut(Axis(2)).zip(scores.axis_iter_mut(Axis(2)));
    let own = of_curves.zip(recall.axis_iter_mut(Axis(1))).collect();
    task.each_category_with(own, |((mut precision, mut scores), mut recall), matches| {
        accumulate::rows(
            &matches,
            &task.params,
            None,
            |_, _| true,
            |(a, m, t), row| {
                recall[[t, a, m]] = row.recall;
                let values = row.precisions().zip(row.scores());
                let targets = precision.slice_mut(s![t, .., a, m]).into_iter().zip(scores.slice_mut(s![t, .., a, m]));
                for ((precision, score), (precision_here, score_here)) in values.zip(targets) {
                    (*precision_here, *score_here) = (precision, score);
                }
            },
        );
    })?;
    let warnings = task.warnings();
    let Task { params, scope, bins, .. } = task;
    let counts = |member: &group::Member| !truth.annotations[member.index as usize].iscrowd;
    let objects = bins.truths.iter().map(|bin| bin.iter().filter(|member| counts(member)).count()).collect();
    let categories = if params.use_categories { categories(truth, &scope) } else { Vec::new() };
    Ok(Evaluation { precision, scores, recall, iou_type, params, categories, objects, warnings })
}

/// An evaluation that has its inputs in order.
pub(crate) struct Task<'a> {
    pub truth: &'a Dataset,
    pub detections: &'a [Detection],
    pub params: Params,
    pub scope: Scope,
    pub bins: Bins,
    pub shapes: Shapes<'a>,
    warnings: Vec<Warning>,
}

impl<'a> Task<'a> {
    pub(crate) fn new(
        truth: &'a Dataset,
        detections: &'a [Detection],
        iou_type: IouType,
        params: &Params,
    ) -> Result<Task<'a>> {
        let params = params.checked()?;
        let mut warnings = Vec::new();
        if detections.is_empty() {
            warnings.push(Warning::NoResults);
        }
        if !params.max_dets.contains(&100) {
            warnings.push(Warning::NoHundred);
        }
        let missing = summary::AREA_LABELS.into_iter().filter(|&label| params.area(label).is_none());
        let labels: Vec<String> = missing.map(str::to_owned).collect();
        if !labels.is_empty() {
            warnings.push(Warning::NoAreas { labels });
        }
        if truth.annotations.iter().any(|annotation| annotation.id == 0) {
            warnings.push(Warning::IdZero);
        }
        let scope = Scope::new(truth, &params);
        let bins = bins(truth, detections, &scope, &params, &mut warnings)?;
        let least = params.iou_thresholds.iter().map(|&t| matching::highest(t)).fold(f64::INFINITY, f64::min);
        let shapes = Shapes::new(truth, detections, iou_type, &scope, least, &mut warnings);
        Ok(Task { truth, detections, params, scope, bins, shapes, warnings })
    }

    /// Matches each category, in parallel, and gives what `of` makes of the matches.
    pub(crate) fn each_category<T: Send>(&self, of: impl Fn(Matches) -> T + Sync) -> Result<Vec<T>> {
        self.each_category_with(vec![(); self.bins.truths.len()], |(), matches| of(matches))
    }

    /// As `each_category`, with something of each category's own.
    fn each_category_with<O: Send, T: Send>(&self, own: Vec<O>, of: impl Fn(O, Matches) -> T + Sync) -> Result<Vec<T>> {
        (self.bins.detections.par_iter())
            .zip(&self.bins.truths)
            .zip(own)
            .with_max_len(1)
            .map(|((detection_bin, truth_bin), own)| {
                let annotations = &self.truth.annotations;
                matching::category(&self.shapes, self.detections, annotations, detection_bin, truth_bin, &self.params)
                    .map(|matches| of(own, matches))
            })
            .collect()
    }

    /// Those of the inputs, and, once the categories have been matched, those that came up on the way.
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        self.warnings.iter().cloned().chain(self.shapes.warnings()).collect()
    }
}

/// The categories of the scope; one that the ground truth does not have keeps its id and no name.
pub(crate) fn categories(truth: &Dataset, scope: &Scope) -> Vec<Category> {
    let mut categories: Vec<Category> =
        scope.categories.sorted().iter().map(|&id| Category { id, ..Category::default() }).collect();
    for category in &truth.categories {
        if let Some(index) = scope.categories.index_of(category.id) {
            categories[index] = category.clone();
        }
    }
    categories
}
