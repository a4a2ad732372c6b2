//! The best candidates of each row, kept while scores stream past.

/// Up to this many are kept in order, by insertion; more are collected and cut back now and then, so that a long list
/// costs no more per candidate than a short one.
const SORTED: usize = 32;

/// The `want` best candidates of every row of a tile.
///
/// A candidate is one number, its key: the score in the upper half, in an order that integers compare, and the
/// complement of the index in the lower half. The larger key is the nearer candidate, and of two equal scores the lower
/// index. Zeros of either sign are equal.
pub(super) struct Selector {
    want: usize,
    /// Places for each row's keys.
    room: usize,
    /// `[rows, room]`
    keys: Vec<u64>,
    /// How many of a row's places are taken.
    taken: Vec<usize>,
    /// A candidate of a higher index than all before must score above this to matter, one value per row.
    threshold: Vec<f32>,
}

fn key(score: f32, index: u32) -> u64 {
    let bits = (score + 0.0).to_bits(); // makes -0 into +0
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!index)
}

fn score_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

fn index_of(key: u64) -> u32 {
    !(key as u32)
}

impl Selector {
    /// Bytes that a row takes.
    pub(super) fn bytes_per_row(want: usize) -> usize {
        8 * Self::room_for(want)
    }

    fn room_for(want: usize) -> usize {
        if want <= SORTED {
            want
        } else {
            2 * want
        }
    }

    pub(super) fn new(rows: usize, want: usize) -> Selector {
        let room = Self::room_for(want);
        Selector { want, room, keys: vec![0; rows * room], taken: vec![0; rows], threshold: vec![0.0; rows] }
    }

    /// Forgets all candidates, and closes every row but the first `live`: nothing is above their threshold.
    pub(super) fn reset(&mut self, live: usize) {
        self.taken.fill(0);
        self.threshold[..live].fill(f32::NEG_INFINITY);
        self.threshold[live..].fill(f32::INFINITY);
    }

    /// What a score must exceed, one value per row.
    pub(super) fn thresholds(&self) -> &[f32] {
        &self.threshold
    }

    /// Offers a candidate whose score is above the threshold of `row`. Within a row, indices must rise.
    #[inline]
    pub(super) fn push(&mut self, row: usize, score: f32, index: u32) {
        let new = key(score, index);
        let keys = &mut self.keys[row * self.room..][..self.room];
        let taken = &mut self.taken[row];
        if self.want <= SORTED {
            if *taken < self.want {
                *taken += 1;
            } else if score <= self.threshold[row] {
                return; // the threshold rose since the tile was computed
            }
            let keys = &mut keys[..*taken];
            // Counting takes no branches, where a search step by step guesses wrong at every other candidate.
            let at = keys[..*taken - 1].iter().map(|&k| usize::from(k > new)).sum();
            keys.copy_within(at..*taken - 1, at + 1);
            keys[at] = new;
            if *taken == self.want {
                self.threshold[row] = score_of(keys[self.want - 1]);
            }
        } else {
            keys[*taken] = new;
            *taken += 1;
            if *taken == self.room {
                keys.select_nth_unstable_by(self.want - 1, |a, b| b.cmp(a));
                *taken = self.want;
                self.threshold[row] = score_of(keys[self.want - 1]);
            }
        }
    }

    /// Writes every `dilation`-th of the row's best candidates to `out`, nearest first.
    ///
    /// A row whose scores were not numbers has fewer candidates than it wants; the lowest indices that it does not have yet
    /// stand in for them, as if their scores were minus infinity.
    pub(super) fn finish(&mut self, row: usize, dilation: usize, out: &mut [i64]) {
        let room = self.room;
        let keys = &mut self.keys[row * room..][..room];
        let mut taken = self.taken[row];
        if self.want > SORTED {
            keys[..taken].sort_unstable_by(|a, b| b.cmp(a));
        }
        let found = taken.min(self.want);
        let mut next = 0;
        while taken < self.want {
            if !keys[..found].iter().any(|&k| index_of(k) == next) {
                keys[taken] = key(f32::NEG_INFINITY, next);
                taken += 1;
            }
            next += 1;
        }
        for (out, &key) in out.iter_mut().zip(keys.iter().step_by(dilation)) {
            *out = i64::from(index_of(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_scores_then_lower_indices() {
        let scores = [f32::NEG_INFINITY, -3.5, -1e-40, 0.0, 1e-40, 0.25, 7.0, f32::INFINITY];
        for pair in scores.windows(2) {
            assert!(key(pair[0], 0) < key(pair[1], 9), "{pair:?}");
        }
        assert!(key(1.0, 4) > key(1.0, 5));
        assert_eq!(key(0.0, 4), key(-0.0, 4));
        for s in scores {
            assert_eq!((score_of(key(s, 77)), index_of(key(s, 77))), (s, 77));
        }
    }

    #[test]
    fn short_and_long_lists_agree_with_a_sort() {
        let scores: Vec<f32> = (0..500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32).collect();
        for want in [1, 5, 32, 33, 70, 250, 500] {
            let mut order: Vec<i64> = (0..500).collect();
            order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
            let mut selector = Selector::new(2, want);
            selector.reset(2);
            for (i, &s) in scores.iter().enumerate() {
                if s > selector.thresholds()[1] {
                    selector.push(1, s, i as u32);
                }
            }
            let mut out = vec![-1; want];
            selector.finish(1, 1, &mut out);
            assert_eq!(out, order[..want], "want {want}");
        }
    }

    #[test]
    fn missing_candidates_are_the_lowest_left() {
        let mut selector = Selector::new(1, 5);
        selector.reset(1);
        selector.push(0, 0.5, 1);
        selector.push(0, 0.75, 3);
        let mut out = [-1; 5];
        selector.finish(0, 1, &mut out);
        assert_eq!(out, [3, 1, 0, 2, 4]);
    }
}
