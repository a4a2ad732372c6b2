//! Adaptive training sample selection: assignment of anchors to objects without a threshold of one's own (Zhang et al.,
//! 2020, "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection",
//! algorithm 1).

use rayon::prelude::*;

use super::boxes::{iou, Box4};
use super::matcher::{ignore_crowds, Match};

/// Assigns each anchor to at most one object.
///
/// Candidates of an object are the anchors at the locations nearest to its centre, so many of each level. Those whose
/// IoU with it is at least the mean plus the standard deviation of all candidates' IoUs, and whose centre lies in it,
/// are positive; an anchor that several objects want goes to the one that it overlaps most. All others are background.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Atss {
    /// Locations of each level whose anchors are candidates (the paper's k, 9).
    pub candidates: usize,
    /// Background that lies in a crowd by at least this fraction of its own area is ignored.
    pub crowd: f32,
}

impl Atss {
    /// The match of each of `anchors` among `objects`. `levels` has the number of locations of each level, in order;
    /// the anchors of a location lie side by side. `crowds` are regions where background is not sure to be background.
    pub fn assign(&self, anchors: &[Box4], levels: &[usize], objects: &[Box4], crowds: &[Box4]) -> Vec<Match> {
        let per_location = anchors.len() / levels.iter().sum::<usize>().max(1);
        let wanted: Vec<Vec<(usize, f32)>> =
            objects.par_iter().map(|object| self.positives(anchors, levels, per_location, object)).collect();
        let mut best: Vec<(f32, Match)> = vec![(f32::NEG_INFINITY, Match::Background); anchors.len()];
        for (object, wanted) in (0..).zip(&wanted) {
            for &(anchor, overlap) in wanted {
                if overlap > best[anchor].0 {
                    best[anchor] = (overlap, Match::Object(object));
                }
            }
        }
        let mut matches: Vec<Match> = best.into_iter().map(|(_, found)| found).collect();
        ignore_crowds(anchors, crowds, self.crowd, &mut matches);
        matches
    }

    /// The anchors that stand for an object, and their IoU with it.
    fn positives(&self, anchors: &[Box4], levels: &[usize], per_location: usize, object: &Box4) -> Vec<(usize, f32)> {
        let centre = |b: &Box4| [(b[0] + b[2]) / 2.0, (b[1] + b[3]) / 2.0];
        let [x, y] = centre(object);
        let mut candidates = Vec::new();
        let mut start = 0;
        for &locations in levels {
            let mut near: Vec<(f32, usize)> = (start..start + locations)
                .map(|location| {
                    let [u, v] = centre(&anchors[location * per_location]);
                    ((u - x) * (u - x) + (v - y) * (v - y), location)
                })
                .collect();
            let order = |a: &(f32, usize), b: &(f32, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
            if self.candidates < near.len() {
                near.select_nth_unstable_by(self.candidates, order);
                near.truncate(self.candidates);
            }
            for (_, location) in near {
                let own = location * per_location..(location + 1) * per_location;
                candidates.extend(own.map(|anchor| (anchor, iou(&anchors[anchor], object))));
            }
            start += locations;
        }
        let count = candidates.len() as f64;
        let mean = candidates.iter().map(|c| f64::from(c.1)).sum::<f64>() / count;
        let square = candidates.iter().map(|c| (f64::from(c.1) - mean).powi(2)).sum::<f64>();
        // PyTorch's standard deviation divides by one less; of one candidate there is none.
        let threshold = mean + (square / (count - 1.0).max(1.0)).sqrt();
        candidates.retain(|&(anchor, overlap)| {
            let [u, v] = centre(&anchors[anchor]);
            let inside = u > object[0] && u < object[2] && v > object[1] && v < object[3];
            f64::from(overlap) >= threshold && inside
        });
        candidates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATSS: Atss = Atss { candidates: 9, crowd: 0.5 };

    /// Squares of side 4·stride on a grid of 8 × 8 and one of 4 × 4.
    fn anchors() -> (Vec<Box4>, [usize; 2]) {
        let level = |stride: i32, side: i32| {
            (0..side * side).map(move |i| {
                let (x, y, r) = ((i % side * stride) as f32, (i / side * stride) as f32, 2.0 * stride as f32);
                [x - r, y - r, x + r, y + r]
            })
        };
        (level(8, 8).chain(level(16, 4)).collect(), [64, 16])
    }

    #[test]
    fn an_anchor_goes_to_the_object_that_it_overlaps_most_and_crowds_are_ignored() {
        let (anchors, levels) = anchors();
        let exact = anchors[27];
        let shifted = exact.map(|v| v + 3.0);
        let matches = ATSS.assign(&anchors, &levels, &[shifted, exact], &[]);
        assert_eq!(matches[27], Match::Object(1));
        assert!(matches.contains(&Match::Object(0)));
        assert!(!matches.contains(&Match::Ignored));
        let in_crowd = ATSS.assign(&anchors, &levels, &[], &[exact]);
        assert_eq!((in_crowd[27], in_crowd[0]), (Match::Ignored, Match::Background));
        assert_eq!(ATSS.assign(&anchors, &levels, &[], &[]), [Match::Background; 80]);
    }

    #[test]
    fn no_anchor_stands_for_an_object_that_its_centre_is_not_in() {
        let (anchors, levels) = anchors();
        // Between four locations of the finer level, a pixel wide.
        let matches = ATSS.assign(&anchors, &levels, &[[19.5, 19.5, 20.5, 20.5]], &[]);
        assert_eq!(matches, [Match::Background; 80]);
    }
}
