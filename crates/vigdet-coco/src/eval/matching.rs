//! Which detection finds which object: greedy, by score, at every threshold and area range (`evaluateImg` of
//! pycocotools).

use super::geometry::{Candidate, Overlaps, Shapes};
use super::group::{sort_by_score, Member, Ranked, ScoreKey};
use super::params::{AreaRange, Params};
use crate::error::Result;
use crate::types::{Annotation, Detection};
use rayon::prelude::*;

/// One detection among those that count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub score: f64,
    /// Index of its image.
    pub image: u32,
    /// How many detections of its image and category have a higher score.
    pub rank: u32,
}

/// What became of a detection in one area range, a bit for each IoU threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// It found an object.
    pub matched: u64,
    /// It counts neither as right nor as wrong.
    pub ignored: u64,
}

/// The outcome of one category.
#[derive(Default)]
pub(crate) struct Matches {
    /// Detections from the highest score to the lowest; equal scores by image, then by rank.
    pub entries: Vec<Entry>,
    /// A outcomes for each entry.
    pub outcomes: Vec<Outcome>,
    /// Images with objects, each once, in order.
    pub truth_images: Vec<u32>,
    /// For each of these, how many objects count in each of the A area ranges.
    pub truth_counts: Vec<u32>,
}

/// Matches at least this many detections in one task.
const CHUNK: usize = 4096;

/// Matches the detections of one category with its objects.
pub(crate) fn category(
    shapes: &Shapes<'_>,
    detections: &[Detection],
    annotations: &[Annotation],
    detection_bin: &[Member],
    truth_bin: &[Member],
    params: &Params,
) -> Result<Matches> {
    let ranked = sort_by_score(detection_bin, detections);
    let mut truths = truth_bin.to_vec();
    truths.sort_by_key(|member| member.image);
    let parts = chunks(&ranked, &truths)
        .into_par_iter()
        .map(|(ranked, truths)| chunk(shapes, detections, annotations, ranked, truths, params))
        .collect::<Result<Vec<_>>>()?;
    Ok(joined(parts, params.areas.len()))
}

/// Cuts both lists, sorted by image, between the same images.
fn chunks<'a>(mut ranked: &'a [Ranked], mut truths: &'a [Member]) -> Vec<(&'a [Ranked], &'a [Member])> {
    let mut chunks = Vec::new();
    while ranked.len() > CHUNK {
        let image = ranked[CHUNK].image;
        let (these, rest) = ranked.split_at(ranked.partition_point(|r| r.image <= image));
        let (those, others) = truths.split_at(truths.partition_point(|member| member.image <= image));
        chunks.push((these, those));
        (ranked, truths) = (rest, others);
    }
    chunks.push((ranked, truths));
    chunks
}

fn joined(parts: Vec<Matches>, areas: usize) -> Matches {
    let mut parts = parts.into_iter();
    let mut all = parts.next().unwrap_or_default();
    for part in parts {
        all.entries.extend(part.entries);
        all.outcomes.extend(part.outcomes);
        all.truth_images.extend(part.truth_images);
        all.truth_counts.extend(part.truth_counts);
    }
    let mut order: Vec<(ScoreKey, u32)> =
        all.entries.iter().zip(0..).map(|(entry, index)| (ScoreKey::new(entry.score), index)).collect();
    order.par_sort_unstable();
    all.entries = order.iter().map(|&(_, index)| all.entries[index as usize]).collect();
    let outcome_of = |index: u32| &all.outcomes[index as usize * areas..][..areas];
    all.outcomes = order.iter().flat_map(|&(_, index)| outcome_of(index).iter().copied()).collect();
    all
}

/// Matches all images of a chunk.
fn chunk(
    shapes: &Shapes<'_>,
    detections: &[Detection],
    annotations: &[Annotation],
    mut ranked: &[Ranked],
    mut truths: &[Member],
    params: &Params,
) -> Result<Matches> {
    let mut matches = Matches::default();
    let mut overlaps = Overlaps::default();
    let mut group = Group::new(params);
    let first = |ranked: &[Ranked], truths: &[Member]| {
        ranked.first().map(|r| r.image).into_iter().chain(truths.first().map(|member| member.image)).min()
    };
    while let Some(image) = first(ranked, truths) {
        let (these, rest) = ranked.split_at(ranked.iter().take_while(|r| r.image == image).count());
        let (those, others) = truths.split_at(truths.iter().take_while(|member| member.image == image).count());
        (ranked, truths) = (rest, others);
        let these = &these[..these.len().min(params.most_dets())];
        shapes.compute(these, those, &mut overlaps)?;
        group.begin(those.iter().map(|member| &annotations[member.index as usize]));
        for (rank, detection) in these.iter().enumerate() {
            matches.entries.push(Entry { score: detections[detection.index as usize].score, image, rank: rank as u32 });
            group.match_detection(&overlaps, rank, &mut matches.outcomes);
        }
        if !those.is_empty() {
            matches.truth_images.push(image);
            group.count(&mut matches.truth_counts);
        }
    }
    Ok(matches)
}

/// The objects of one image and category while its detections are matched.
pub(crate) struct Group<'a> {
    areas: &'a [AreaRange],
    /// Thresholds, a little below 1 at most, so that equal shapes match at 1.
    thresholds: Vec<f64>,
    truths: Vec<Truth>,
    /// For each area range and object: it counts for nothing there.
    ignored: Vec<bool>,
    /// For each area range and object: the thresholds at which it is taken.
    taken: Vec<u64>,
}

struct Truth {
    crowd: bool,
    /// pycocotools keeps matches as ids and takes 0 for none.
    id_zero: bool,
}

impl<'a> Group<'a> {
    pub(crate) fn new(params: &'a Params) -> Group<'a> {
        let thresholds = params.iou_thresholds.iter().map(|&t| highest(t)).collect();
        Group { areas: &params.areas, thresholds, truths: Vec::new(), ignored: Vec::new(), taken: Vec::new() }
    }

    /// Starts with the objects of another image and category.
    pub(crate) fn begin<'b>(&mut self, annotations: impl Iterator<Item = &'b Annotation> + Clone) {
        self.truths.clear();
        self.truths.extend(annotations.clone().map(|a| Truth { crowd: a.iscrowd, id_zero: a.id == 0 }));
        self.ignored.clear();
        for area in self.areas {
            self.ignored.extend(annotations.clone().map(|a| a.iscrowd || area.excludes(a.area)));
        }
        self.taken.clear();
        self.taken.resize(self.ignored.len(), 0);
    }

    /// Matches one detection in every area range, and appends its outcomes.
    fn match_detection(&mut self, overlaps: &Overlaps, detection: usize, outcomes: &mut Vec<Outcome>) {
        let all = u64::MAX >> (64 - self.thresholds.len());
        for (a, area) in self.areas.iter().enumerate() {
            let mut outcome = Outcome::default();
            for t in 0..self.thresholds.len() {
                let Some(truth) = self.find(overlaps.candidates(detection), a, t) else { continue };
                outcome.matched |= if self.truths[truth].id_zero { 0 } else { 1 << t };
                outcome.ignored |= if self.ignored[a * self.truths.len() + truth] { 1 << t } else { 0 };
            }
            if area.excludes(overlaps.areas[detection]) {
                outcome.ignored |= all & !outcome.matched;
            }
            outcomes.push(outcome);
        }
    }

    /// The object that a detection finds in one area range at one threshold: it is taken from then on.
    ///
    /// The best object that counts; only where there is none, the best of those that do not. Of equal overlaps the
    /// later one wins.
    #[inline]
    pub(crate) fn find(&mut self, candidates: &[Candidate], area: usize, threshold: usize) -> Option<usize> {
        if candidates.is_empty() {
            return None;
        }
        let range = area * self.truths.len()..(area + 1) * self.truths.len();
        let (ignored, taken) = (&self.ignored[range.clone()], &mut self.taken[range]);
        let bit = 1 << threshold;
        let mut best = None;
        for counting in [true, false] {
            let mut least = self.thresholds[threshold];
            for candidate in candidates {
                let truth = candidate.truth as usize;
                let free = taken[truth] & bit == 0 || self.truths[truth].crowd;
                if ignored[truth] == counting || !free || candidate.iou < least {
                    continue;
                }
                least = candidate.iou;
                best = Some(truth);
            }
            if best.is_some() {
                break;
            }
        }
        taken[best?] |= bit;
        best
    }

    /// Appends how many objects count in each area range.
    fn count(&self, counts: &mut Vec<u32>) {
        let ignored = self.ignored.chunks_exact(self.truths.len());
        counts.extend(ignored.map(|ignored| ignored.iter().filter(|&&ignored| !ignored).count() as u32));
    }
}

/// The overlap from which on a detection matches at a threshold.
pub(crate) fn highest(threshold: f64) -> f64 {
    threshold.min(1.0 - 1e-10)
}
