//! Assignment of anchors (or proposals) to objects by intersection over union (Ren et al., 2015, section 3.1.2).

use rayon::prelude::*;

use super::boxes::{area, intersection, Box4};
use crate::config::MatchConfig;
use crate::data::Target;

/// What an anchor stands for in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// The object of this index.
    Object(u32),
    /// No object.
    Background,
    /// Neither: no loss.
    Ignored,
}

/// Assigns each box to at most one object.
///
/// ```
/// use vigdet::detect::matcher::{Match, Matcher};
/// use vigdet::config::MatchConfig;
/// let matcher = Matcher::new(&MatchConfig { low_quality: false, ..MatchConfig::default() });
/// let anchors = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 4.5], [50.0, 50.0, 60.0, 60.0]];
/// let found = matcher.assign(&anchors, &[[0.0, 0.0, 10.0, 10.0]], &[]);
/// assert_eq!(found, [Match::Object(0), Match::Ignored, Match::Background]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matcher {
    /// IoU of at least this: the object.
    pub positive: f32,
    /// IoU below this: background; in between: ignored.
    pub negative: f32,
    /// Every object keeps the boxes that overlap it most, however little; such a box goes to the object that it itself
    /// overlaps most, as in torchvision and detectron2.
    pub low_quality: bool,
    /// Least overlap for an object to keep boxes so.
    pub low_quality_iou: f32,
    /// The object keeps such a box for itself, whatever the box overlaps most (mmdetection); of objects with the same
    /// best box, the last gets it.
    pub low_quality_wins: bool,
    /// Background that lies in a crowd by at least this fraction of its own area is ignored.
    pub crowd: f32,
}

impl Matcher {
    /// With the thresholds of a config.
    pub fn new(config: &MatchConfig) -> Self {
        Self {
            positive: config.positive as f32,
            negative: config.negative as f32,
            low_quality: config.low_quality,
            low_quality_iou: config.low_quality_iou as f32,
            low_quality_wins: config.low_quality_wins,
            crowd: config.crowd as f32,
        }
    }

    /// The match of each of `boxes` among `objects`; `crowds` are regions where background is not sure to be
    /// background.
    ///
    /// Of objects with equal overlap the first wins. Needs memory for `boxes` only, not for `boxes × objects`.
    pub fn assign(&self, boxes: &[Box4], objects: &[Box4], crowds: &[Box4]) -> Vec<Match> {
        let areas: Vec<f32> = objects.iter().map(area).collect();
        // Best object of each box.
        let best: Vec<(f32, u32)> = boxes
            .par_iter()
            .with_min_len(1024)
            .map(|b| {
                let (mut most, mut which) = (0.0, u32::MAX);
                let own = area(b);
                for (i, (object, &object_area)) in objects.iter().zip(&areas).enumerate() {
                    let overlap = overlap(b, own, object, object_area);
                    if overlap > most {
                        (most, which) = (overlap, i as u32);
                    }
                }
                (most, which)
            })
            .collect();
        let mut matches: Vec<Match> = best
            .iter()
            .map(|&(overlap, which)| match which {
                u32::MAX if self.negative > 0.0 => Match::Background,
                u32::MAX => Match::Ignored,
                _ if overlap >= self.positive => Match::Object(which),
                _ if overlap < self.negative => Match::Background,
                _ => Match::Ignored,
            })
            .collect();
        if self.low_quality {
            self.keep_best(boxes, objects, &areas, &best, &mut matches);
        }
        ignore_crowds(boxes, crowds, self.crowd, &mut matches);
        matches
    }

    /// The match of each of `boxes` among a target's objects, beside its crowds; and which of the target's entries the
    /// objects are.
    pub fn assign_target(&self, boxes: &[Box4], target: &Target) -> (Vec<Match>, Vec<usize>) {
        let (objects, crowds) = target.split_crowds();
        let of = |which: &[usize]| -> Vec<Box4> { which.iter().map(|&i| target.boxes[i]).collect() };
        (self.assign(boxes, &of(&objects), &of(&crowds)), objects)
    }

    fn keep_best(&self, boxes: &[Box4], objects: &[Box4], areas: &[f32], best: &[(f32, u32)], matches: &mut [Match]) {
        let kept: Vec<(u32, usize)> = objects
            .par_iter()
            .zip(areas)
            .enumerate()
            .flat_map_iter(|(o, (object, &object_area))| {
                let (mut most, mut which) = (0.0, Vec::new());
                for (i, b) in boxes.iter().enumerate() {
                    let overlap = overlap(b, area(b), object, object_area);
                    if overlap > most {
                        most = overlap;
                        which.clear();
                    }
                    if overlap == most && most > 0.0 {
                        which.push((o as u32, i));
                    }
                }
                which.retain(|_| most >= self.low_quality_iou);
                which
            })
            .collect();
        for (object, i) in kept {
            matches[i] = Match::Object(if self.low_quality_wins { object } else { best[i].1 });
        }
    }
}

/// Ignores background that lies in a crowd by at least this fraction of its own area.
pub(super) fn ignore_crowds(boxes: &[Box4], crowds: &[Box4], fraction: f32, matches: &mut [Match]) {
    if crowds.is_empty() {
        return;
    }
    for (b, m) in boxes.iter().zip(matches) {
        if *m == Match::Background
            && crowds.iter().any(|c| intersection(b, c) >= fraction * area(b).max(f32::MIN_POSITIVE))
        {
            *m = Match::Ignored;
        }
    }
}

fn overlap(a: &Box4, area_a: f32, b: &Box4, area_b: f32) -> f32 {
    let shared = intersection(a, b);
    if shared > 0.0 {
        shared / (area_a + area_b - shared)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATCHER: Matcher = Matcher {
        positive: 0.5,
        negative: 0.4,
        low_quality: true,
        low_quality_iou: 0.0,
        low_quality_wins: false,
        crowd: 0.5,
    };

    #[test]
    fn an_object_keeps_its_best_box_however_small_the_overlap() {
        let boxes = [[0.0, 0.0, 100.0, 100.0], [200.0, 200.0, 300.0, 300.0]];
        let object = [[0.0, 0.0, 10.0, 10.0]];
        assert_eq!(MATCHER.assign(&boxes, &object, &[]), [Match::Object(0), Match::Background]);
        let strict = Matcher { low_quality: false, ..MATCHER };
        assert_eq!(strict.assign(&boxes, &object, &[]), [Match::Background; 2]);
    }

    /// mmdetection's `min_pos_iou`, and its order of assignment.
    #[test]
    fn an_object_keeps_its_best_box_from_a_nearer_one_only_where_told_to() {
        // The box overlaps the first object by 0.6, the second by 0.5; it is the best of both.
        let (b, objects) = ([[0.0, 0.0, 10.0, 10.0]], [[0.0, 0.0, 10.0, 6.0], [0.0, 0.0, 10.0, 5.0]]);
        assert_eq!(MATCHER.assign(&b, &objects, &[]), [Match::Object(0)]);
        let wins = Matcher { low_quality_wins: true, ..MATCHER };
        assert_eq!(wins.assign(&b, &objects, &[]), [Match::Object(1)]);
        let least = Matcher { low_quality_iou: 0.55, ..wins };
        assert_eq!(least.assign(&b, &objects, &[]), [Match::Object(0)]);
        let none = Matcher { positive: 0.7, negative: 0.7, low_quality_iou: 0.61, ..MATCHER };
        assert_eq!(none.assign(&b, &objects, &[]), [Match::Background]);
    }

    /// detectron2 and torchvision: at a threshold is not below it.
    #[test]
    fn an_overlap_of_just_the_threshold_counts() {
        let boxes = [[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.0], [0.0, 0.0, 10.0, 3.0]];
        let matcher = Matcher { low_quality: false, ..MATCHER };
        let found = matcher.assign(&boxes, &[[0.0, 0.0, 10.0, 10.0]], &[]);
        assert_eq!(found, [Match::Object(0), Match::Ignored, Match::Background]);
    }

    #[test]
    fn crowds_are_ignored_but_never_matched() {
        let boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 30.0], [40.0, 0.0, 50.0, 10.0]];
        let crowd = [[0.0, 0.0, 10.0, 10.0]];
        let found = MATCHER.assign(&boxes, &[], &crowd);
        assert_eq!(found, [Match::Ignored, Match::Background, Match::Background]);
    }

    #[test]
    fn an_object_outside_every_box_matches_nothing() {
        let found = MATCHER.assign(&[[0.0, 0.0, 10.0, 10.0]], &[[50.0, 50.0, 60.0, 60.0]], &[]);
        assert_eq!(found, [Match::Background]);
    }
}
