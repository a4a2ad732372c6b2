//! Six kinds of errors and the AP that each one costs: TIDE (Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox
//! for Identifying Object Detection Errors", ECCV 2020, section 2).
//!
//! A detection that finds nothing at overlap 0.5 is one of (`o` is its largest overlap with an object of the right or a
//! wrong class):
//!
//! | error | right class | wrong class |
//! |---|---|---|
//! | localisation | 0.1 ≤ o < 0.5 | |
//! | classification | | o ≥ 0.5 |
//! | duplicate | o ≥ 0.5, object already found | |
//! | background | o < 0.1 | o < 0.1 |
//! | both (class and location) | | 0.1 ≤ o < 0.5 |
//!
//! The first that fits counts, as in the authors' program. An object that is not found is missed, unless an error of
//! classification or localisation covers it. What an error costs is how much AP50 rises when an oracle mends errors of
//! that kind, and no other: it gives the detection the right class or location (of two detections of one object then
//! only the one with the higher score stays), removes it (duplicate, background, both), or takes the missed objects out
//! of the count.

use super::images::{ImageView, Images};
use crate::error::Result;
use crate::eval::group::ScoreKey;
use crate::eval::{linspace, IouType, Params};
use crate::types::{Dataset, Detection};
use serde::Serialize;
use std::fmt;

/// From this overlap on an object is found.
const FOUND: f64 = 0.5;
/// Below this overlap there is only background.
const BACKGROUND: f64 = 0.1;

/// A kind of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Right location, wrong class.
    Classification,
    /// Right class, wrong location.
    Localisation,
    /// Wrong class and wrong location.
    Both,
    /// A second detection of an object.
    Duplicate,
    /// Nothing is there.
    Background,
    /// An object that nothing found, nor nearly.
    Missed,
}

impl Kind {
    /// All six, in the paper's order.
    pub const ALL: [Kind; 6] =
        [Kind::Classification, Kind::Localisation, Kind::Both, Kind::Duplicate, Kind::Background, Kind::Missed];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Classification => "classification",
            Kind::Localisation => "localisation",
            Kind::Both => "both",
            Kind::Duplicate => "duplicate",
            Kind::Background => "background",
            Kind::Missed => "missed",
        }
    }
}

/// How often one kind of error occurs, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KindCost {
    /// Which.
    pub kind: Kind,
    /// How many errors.
    pub count: usize,
    /// How much AP50 rises without them.
    pub cost: f64,
}

/// The result of [`errors`]. `Display` is a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Errors {
    /// AP at overlap 0.5, mean over the classes that have objects. −1 where none has.
    pub ap50: f64,
    /// The six kinds.
    pub kinds: Vec<KindCost>,
    /// How much AP50 rises without any false positive.
    pub false_positives: f64,
    /// How much AP50 rises when only the objects found are counted.
    pub false_negatives: f64,
    /// The error of each result, by its index in the results. `None` for right ones, for those on crowds, and for those
    /// beyond the number of detections that count.
    #[serde(skip)]
    pub of_detections: Vec<Option<Kind>>,
}

/// What became of a detection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Right { object: usize },
    OnCrowd,
    Wrong { kind: Kind, object: Option<usize> },
}

/// A detection, with its object numbered within its image.
struct Judged {
    index: u32,
    category: usize,
    score: f64,
    verdict: Verdict,
}

struct JudgedImage {
    detections: Vec<Judged>,
    /// Category of each object that is not a crowd, by its index; `None` for crowds.
    objects: Vec<Option<usize>>,
    missed: Vec<usize>,
}

/// Sorts the errors of `detections` into TIDE's kinds. Of `params`, images, categories and the largest number of
/// detections are used; without `use_categories` no class is wrong.
///
/// # Errors
/// Those of [`crate::eval::evaluate`].
pub fn errors(truth: &Dataset, detections: &[Detection], iou_type: IouType, params: &Params) -> Result<Errors> {
    let images = Images::new(truth, detections, iou_type, params, FOUND, BACKGROUND)?;
    let judged = images.each(judge)?;
    let mut of_detections = vec![None; detections.len()];
    let mut counts = [0; 6];
    let mut count = |kind: Kind, by: usize| counts[kind as usize] += by;
    for detection in judged.iter().flat_map(|image| &image.detections) {
        if let Verdict::Wrong { kind, .. } = detection.verdict {
            of_detections[detection.index as usize] = Some(kind);
            count(kind, 1);
        }
    }
    count(Kind::Missed, judged.iter().map(|image| image.missed.len()).sum());

    let ap = |oracle: Option<Oracle>| mean_ap(&judged, images.categories(), oracle);
    let ap50 = ap(None);
    let cost = |oracle: Oracle| if ap50 < 0.0 { 0.0 } else { ap(Some(oracle)) - ap50 };
    let kinds = Kind::ALL.map(|kind| KindCost { kind, count: counts[kind as usize], cost: cost(Oracle::Mend(kind)) });
    Ok(Errors {
        ap50,
        kinds: kinds.to_vec(),
        false_positives: cost(Oracle::NoFalsePositives),
        false_negatives: cost(Oracle::NoFalseNegatives),
        of_detections,
    })
}

/// Sorts the detections of one image.
fn judge(image: ImageView) -> JudgedImage {
    let mut found = vec![false; image.objects.len()];
    for object in image.detections.iter().filter_map(|seen| seen.found) {
        found[object] = true;
    }
    let mut covered = found.clone();
    let mut detections = Vec::with_capacity(image.detections.len());
    for seen in &image.detections {
        let best = |right: bool| {
            let of_class = |&&(object, _): &&(usize, f64)| (image.objects[object].category == seen.category) == right;
            seen.overlaps.iter().filter(of_class).copied().max_by(|a, b| a.1.total_cmp(&b.1))
        };
        let wrong = |kind, object| Verdict::Wrong { kind, object };
        let verdict = match (seen.found, best(true), best(false)) {
            (Some(object), _, _) if image.objects[object].crowd => Verdict::OnCrowd,
            (Some(object), _, _) => Verdict::Right { object },
            (_, Some((object, overlap)), _) if overlap < FOUND => wrong(Kind::Localisation, Some(object)),
            (_, _, Some((object, overlap))) if overlap >= FOUND => wrong(Kind::Classification, Some(object)),
            (_, Some(_), _) => wrong(Kind::Duplicate, None),
            (_, None, Some(_)) => wrong(Kind::Both, None),
            (_, None, None) => wrong(Kind::Background, None),
        };
        if let Verdict::Wrong { object: Some(object), .. } = verdict {
            covered[object] = true;
        }
        detections.push(Judged { index: seen.index, category: seen.category, score: seen.score, verdict });
    }
    let missed = (0..image.objects.len()).filter(|&object| !covered[object] && !image.objects[object].crowd).collect();
    let objects = image.objects.iter().map(|object| (!object.crowd).then_some(object.category)).collect();
    JudgedImage { detections, objects, missed }
}

/// What is made right before AP is computed.
#[derive(Clone, Copy, PartialEq)]
enum Oracle {
    Mend(Kind),
    NoFalsePositives,
    NoFalseNegatives,
}

/// Mean of the AP50 of `categories` classes in judged images, mended or not. −1 where no class has objects.
fn mean_ap(images: &[JudgedImage], categories: usize, oracle: Option<Oracle>) -> f64 {
    let mut classes = vec![Class::default(); categories];
    for (image, index) in images.iter().zip(0..) {
        add(image, index, oracle, &mut classes);
    }
    let recalls = linspace(0.0, 1.0, 101);
    let present = classes.into_iter().filter(|class| class.objects > 0);
    let aps: Vec<f64> = present.map(|class| average_precision(class, &recalls)).collect();
    if aps.is_empty() {
        -1.0
    } else {
        aps.iter().sum::<f64>() / aps.len() as f64
    }
}

/// Adds the objects and detections of an image to their classes.
fn add(image: &JudgedImage, index: u32, oracle: Option<Oracle>, classes: &mut [Class]) {
    let uncounted = |object: usize| oracle == Some(Oracle::Mend(Kind::Missed)) && image.missed.contains(&object);
    for (object, category) in image.objects.iter().enumerate() {
        if let Some(category) = category.filter(|_| !uncounted(object)) {
            classes[category].objects += 1;
        }
    }
    // The first in order among those that the oracle gives each object to.
    let mut right = vec![None::<Order>; image.objects.len()];
    let mut give = |object: usize, order: Order| {
        right[object] = Some(right[object].map_or(order, |other| other.min(order)));
    };
    for (detection, rank) in image.detections.iter().zip(0..) {
        let order = Order { score: ScoreKey::new(detection.score), image: index, rank };
        match detection.verdict {
            Verdict::OnCrowd => {}
            Verdict::Right { object } => give(object, order),
            Verdict::Wrong { kind, object } => match (oracle, object) {
                (Some(Oracle::NoFalsePositives), _) => {}
                (Some(Oracle::Mend(mended)), Some(object)) if mended == kind => give(object, order),
                (Some(Oracle::Mend(mended)), None) if mended == kind => {}
                _ => classes[detection.category].detections.push((order, false)),
            },
        }
    }
    for (category, order) in image.objects.iter().zip(right) {
        match (*category, order) {
            (Some(category), Some(order)) => classes[category].detections.push((order, true)),
            (Some(category), None) if oracle == Some(Oracle::NoFalseNegatives) => classes[category].objects -= 1,
            _ => {}
        }
    }
}

/// Where a detection stands among all of its class: by score, and equal scores as the evaluation takes them, by image
/// and by their order there. An object that was mended stands where the detection that it was given to does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    score: ScoreKey,
    /// Index among the images.
    image: u32,
    /// Rank among the detections of the image.
    rank: u32,
}

/// What the AP of a class is made of.
#[derive(Clone, Default)]
struct Class {
    objects: usize,
    /// Those that count, and whether they are right.
    detections: Vec<(Order, bool)>,
}

/// COCO's interpolated AP at one overlap.
fn average_precision(class: Class, recalls: &[f64]) -> f64 {
    let Class { objects, mut detections } = class;
    detections.sort_unstable();
    let mut found = Vec::new();
    for (index, _) in detections.iter().enumerate().filter(|(_, (_, right))| *right) {
        found.push((found.len() + 1) as f64 / (index + 1) as f64);
    }
    for i in (1..found.len()).rev() {
        found[i - 1] = found[i - 1].max(found[i]);
    }
    let at = |recall: f64| {
        let reached = (1..=found.len()).find(|&count| count as f64 / objects as f64 >= recall);
        reached.map_or(0.0, |count| found[count - 1])
    };
    recalls.iter().map(|&recall| at(recall)).sum::<f64>() / recalls.len() as f64
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<16} {:>8} {:>8}", "error", "count", "AP50")?;
        for cost in &self.kinds {
            write!(f, "\n{:<16} {:>8} {:>+8.4}", cost.kind.name(), cost.count, cost.cost)?;
        }
        write!(f, "\n{:<16} {:>8} {:>+8.4}", "false positives", "", self.false_positives)?;
        write!(f, "\n{:<16} {:>8} {:>+8.4}", "false negatives", "", self.false_negatives)
    }
}
