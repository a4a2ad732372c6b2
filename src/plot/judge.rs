//! Which detections are hits, which are false alarms, and which objects were missed.

use vigdet_coco::rle::Rle;

use crate::detect::boxes::{self, area, fraction, intersection, Box4};
use crate::detect::Detections;

/// An object as annotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// Corners x1, y1, x2, y2 in pixels of the original image.
    pub bbox: Box4,
    /// Class index from 0.
    pub label: i64,
    /// Whether it is a crowd region: detections in it count neither way.
    pub crowd: bool,
    /// Its pixels, where they are annotated.
    pub mask: Option<Rle>,
}

/// What became of a detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the best one on an object of its class.
    Hit,
    /// There is no such object, or a better detection has it.
    FalseAlarm,
    /// It lies in a crowd region of its class.
    Ignored,
}

/// An image's detections against its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// One per detection.
    pub detections: Vec<Verdict>,
    /// One per object: whether a detection hit it. Crowds count as found.
    pub found: Vec<bool>,
}

/// Matches detections, best first, as the COCO evaluation does at one threshold: each takes the object of its class,
/// not yet taken, that it overlaps most, if their IoU is at least `iou`. A crowd takes any number, by the fraction of
/// the detection that lies in it.
///
/// Detections with lower scores never change the verdict on those with higher ones.
pub fn judge(detections: &Detections, truths: &[Truth], iou: f32) -> Judgement {
    let mut found: Vec<bool> = truths.iter().map(|t| t.crowd).collect();
    let mut order: Vec<usize> = (0..detections.len()).collect();
    order.sort_by(|&a, &b| detections.scores[b].total_cmp(&detections.scores[a]));
    let mut verdicts = vec![Verdict::FalseAlarm; detections.len()];
    for i in order {
        let b = &detections.boxes[i];
        let of_class = || truths.iter().enumerate().filter(|(_, t)| t.label == detections.labels[i]);
        let overlap =
            |t: &Truth| if t.crowd { fraction(intersection(b, &t.bbox), area(b)) } else { boxes::iou(b, &t.bbox) };
        let best = of_class()
            .filter(|(index, t)| !t.crowd && !found[*index] && overlap(t) >= iou)
            .max_by(|a, b| overlap(a.1).total_cmp(&overlap(b.1)));
        if let Some((index, _)) = best {
            found[index] = true;
            verdicts[i] = Verdict::Hit;
        } else if of_class().any(|(_, t)| t.crowd && overlap(t) >= iou) {
            verdicts[i] = Verdict::Ignored;
        }
    }
    Judgement { detections: verdicts, found }
}

/// The score from which on detections are shown so that F1, the harmonic mean of precision and recall over all images,
/// is largest; and that F1. `None` where no detection hits anything.
///
/// Each item is an image's detections, its objects and the judgement on them.
pub fn best_threshold<'a>(
    images: impl Iterator<Item = (&'a Detections, &'a [Truth], &'a Judgement)>,
) -> Option<(f32, f32)> {
    let (mut scores, mut objects) = (Vec::new(), 0);
    for (detections, truths, judgement) in images {
        objects += truths.iter().filter(|t| !t.crowd).count();
        let counted = detections.scores.iter().zip(&judgement.detections).filter(|(_, v)| **v != Verdict::Ignored);
        scores.extend(counted.map(|(score, verdict)| (*score, *verdict == Verdict::Hit)));
    }
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut hits, mut best) = (0, None);
    for (i, &(score, hit)) in scores.iter().enumerate() {
        hits += usize::from(hit);
        let last_of_score = scores.get(i + 1).is_none_or(|next| next.0 < score);
        let f1 = 2.0 * hits as f32 / (i + 1 + objects) as f32;
        if last_of_score && hits > 0 && best.is_none_or(|(_, least)| f1 > least) {
            best = Some((score, f1));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(bbox: Box4, label: i64, crowd: bool) -> Truth {
        Truth { bbox, label, crowd, mask: None }
    }

    fn found(of: &[(Box4, f32, i64)]) -> Detections {
        Detections {
            boxes: of.iter().map(|d| d.0).collect(),
            scores: of.iter().map(|d| d.1).collect(),
            labels: of.iter().map(|d| d.2).collect(),
            masks: Vec::new(),
        }
    }

    const A: Box4 = [0.0, 0.0, 10.0, 10.0];
    const B: Box4 = [20.0, 0.0, 30.0, 10.0];

    #[test]
    fn the_better_detection_takes_the_object_and_the_other_is_a_false_alarm() {
        let detections = found(&[([0.0, 0.0, 10.0, 9.0], 0.5, 0), (A, 0.9, 0), (B, 0.8, 1)]);
        let judgement = judge(&detections, &[truth(A, 0, false), truth(B, 0, false)], 0.5);
        assert_eq!(judgement.detections, [Verdict::FalseAlarm, Verdict::Hit, Verdict::FalseAlarm]);
        assert_eq!(judgement.found, [true, false]);
    }

    #[test]
    fn detections_in_a_crowd_count_neither_way() {
        let crowd = truth([0.0, 0.0, 100.0, 100.0], 0, true);
        let judgement = judge(&found(&[(A, 0.9, 0), (B, 0.8, 1)]), &[crowd], 0.5);
        assert_eq!(judgement.detections, [Verdict::Ignored, Verdict::FalseAlarm]);
        assert_eq!(judgement.found, [true]);
    }

    #[test]
    fn the_threshold_is_where_f1_is_largest() {
        let truths = [truth(A, 0, false), truth(B, 0, false)];
        let detections =
            found(&[(A, 0.9, 0), ([50.0, 50.0, 60.0, 60.0], 0.8, 0), (B, 0.7, 0), ([40.0, 0.0, 50.0, 9.0], 0.6, 0)]);
        let judgement = judge(&detections, &truths, 0.5);
        // F1 from the top: 2/3, 2/4, 4/5, 4/6.
        let best = best_threshold(std::iter::once((&detections, &truths[..], &judgement)));
        assert_eq!(best, Some((0.7, 0.8)));
        let nothing = judge(&Detections::default(), &truths, 0.5);
        assert_eq!(best_threshold(std::iter::once((&Detections::default(), &truths[..], &nothing))), None);
    }
}
