//! From matches to precision and recall (`accumulate` of pycocotools).

use super::matching::Matches;
use super::params::Params;

/// Precision and recall of one category, for one area range, number of detections and IoU threshold.
pub(crate) struct Row<'a> {
    /// Highest recall.
    pub recall: f64,
    /// Precision, with those of higher recall in mind, and score at each detection that found an object.
    found: &'a [(f64, f64)],
    /// Number of objects to find for each of the R recalls.
    needed: &'a [usize],
    /// Score of the first detection.
    first: Option<f64>,
}

impl Row<'_> {
    /// R precisions, 0 where the recall is not reached.
    pub(crate) fn precisions(&self) -> impl Iterator<Item = f64> + '_ {
        self.needed.iter().map(|&needed| self.reached(needed).map_or(0.0, |(precision, _)| precision))
    }

    /// R scores at which the recall is reached, 0 where it is not.
    pub(crate) fn scores(&self) -> impl Iterator<Item = f64> + '_ {
        self.needed.iter().map(|&needed| match self.reached(needed) {
            _ if needed == 0 => self.first.unwrap_or(0.0),
            Some((_, score)) => score,
            None => 0.0,
        })
    }

    /// A recall of 0 is reached by the first detection, any other by a detection that finds something.
    fn reached(&self, needed: usize) -> Option<(f64, f64)> {
        self.found.get(needed.saturating_sub(1)).copied()
    }
}

/// How often each image counts: once, or as drawn in a resampling.
pub(crate) type Weights<'a> = Option<&'a [u32]>;

/// numpy's `spacing(1)`.
const EPSILON: f64 = f64::EPSILON;

/// Gives `write` the precision and recall of one category at each index (area range, number of detections, threshold).
/// Those of area ranges and numbers of detections that are not `selected` are left out, and area ranges without
/// objects.
pub(crate) fn rows(
    matches: &Matches,
    params: &Params,
    weights: Weights<'_>,
    selected: impl Fn(usize, usize) -> bool,
    mut write: impl FnMut((usize, usize, usize), Row<'_>),
) {
    let a_count = params.areas.len();
    let weight = |image: u32| weights.map_or(1, |weights| weights[image as usize]);
    let mut walk = Walk::new(params.iou_thresholds.len());
    for a in 0..a_count {
        let counts = matches.truth_counts.iter().skip(a).step_by(a_count);
        let positives: u64 =
            counts.zip(&matches.truth_images).map(|(&count, &image)| u64::from(count) * u64::from(weight(image))).sum();
        if positives == 0 {
            continue;
        }
        let needed: Vec<usize> = params.recall_thresholds.iter().map(|&r| true_positives_for(r, positives)).collect();
        for (m, &max_dets) in params.max_dets.iter().enumerate().filter(|&(m, _)| selected(a, m)) {
            walk.clear();
            for (entry, outcomes) in matches.entries.iter().zip(matches.outcomes.chunks_exact(a_count)) {
                if (entry.rank as usize) < max_dets {
                    walk.step(entry.score, outcomes[a].matched, outcomes[a].ignored, weight(entry.image));
                }
            }
            for (t, found) in walk.found.iter_mut().enumerate() {
                let recall = found.len() as f64 / positives as f64;
                envelope(found);
                write((a, m, t), Row { recall, found, needed: &needed, first: walk.first });
            }
        }
    }
}

/// Running counts over the detections, by score.
struct Walk {
    /// For each threshold, precision and score at each detection that found an object.
    found: Vec<Vec<(f64, f64)>>,
    /// False positives at single thresholds, beside those at all.
    wrong: Vec<u32>,
    wrong_at_all: u32,
    first: Option<f64>,
    all: u64,
}

impl Walk {
    fn new(thresholds: usize) -> Walk {
        Walk {
            found: vec![Vec::new(); thresholds],
            wrong: vec![0; thresholds],
            wrong_at_all: 0,
            first: None,
            all: u64::MAX >> (64 - thresholds),
        }
    }

    fn clear(&mut self) {
        self.found.iter_mut().for_each(Vec::clear);
        self.wrong.fill(0);
        self.wrong_at_all = 0;
        self.first = None;
    }

    #[inline]
    fn step(&mut self, score: f64, matched: u64, ignored: u64, weight: u32) {
        if weight == 0 {
            return;
        }
        self.first.get_or_insert(score);
        if matched == 0 {
            if ignored == 0 {
                self.wrong_at_all += weight;
                return;
            }
            if ignored == self.all {
                return;
            }
        }
        for (t, (found, wrong)) in self.found.iter_mut().zip(&mut self.wrong).enumerate() {
            if ignored >> t & 1 == 1 {
                continue;
            }
            if matched >> t & 1 == 0 {
                *wrong += weight;
                continue;
            }
            let false_positives = f64::from(*wrong + self.wrong_at_all);
            for _ in 0..weight {
                let true_positives = (found.len() + 1) as f64;
                found.push((true_positives / (false_positives + true_positives + EPSILON), score));
            }
        }
    }
}

/// Makes precision fall with recall: each becomes the best of what follows.
fn envelope(found: &mut [(f64, f64)]) {
    let mut best = 0.0;
    for (precision, _) in found.iter_mut().rev() {
        if *precision < best {
            *precision = best;
        }
        best = *precision;
    }
}

/// Smallest number of true positives whose recall, as a float, is at least `recall`.
fn true_positives_for(recall: f64, positives: u64) -> usize {
    let reaches = |count: u64| count as f64 / positives as f64 >= recall;
    // More than all of them is never reached.
    let mut count = ((recall * positives as f64).ceil().max(0.0) as u64).min(positives + 1);
    while count > 0 && reaches(count - 1) {
        count -= 1;
    }
    while count <= positives && !reaches(count) {
        count += 1;
    }
    count as usize
}

#[cfg(test)]
mod tests {
    use super::true_positives_for;

    #[test]
    fn recall_is_reached_as_a_search_among_floats_finds_it() {
        for positives in 1..200u64 {
            for i in 0..=100 {
                let recall = f64::from(i) * 0.01;
                let searched = (0..=positives).find(|&count| count as f64 / positives as f64 >= recall);
                assert_eq!(true_positives_for(recall, positives), searched.unwrap_or(positives + 1) as usize);
            }
        }
        assert_eq!(true_positives_for(1.5, 10), 11);
        assert_eq!(true_positives_for(-0.5, 10), 0);
    }
}
