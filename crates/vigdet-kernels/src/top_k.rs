//! The best candidates of each row, kept while scores stream past.

use super::Isa;

/// Up to this many are kept in order, by insertion (Isotropic ViG-S wants 69); more are collected and cut back now and
/// then, so that a long list costs no more per candidate than a short one.
const SORTED: usize = 72;
/// Keys that AVX-512 shifts together.
pub(super) const LANES: usize = 8;

/// The `want` best candidates of every row of a tile.
///
/// A candidate is one integer, its key: the score in the upper half, in an order that integers compare, and the
/// complement of the index in the lower half. The larger key is the nearer candidate, and of two equal scores the lower
/// index. Zeros of either sign are equal. No candidate's key is 0, which stands for none.
pub(super) struct Selector {
    want: usize,
    /// Slots for each row's keys.
    room: usize,
    /// `[rows, room]`, in falling order where they are kept in order.
    keys: Vec<u64>,
    /// How many of a row's slots are taken, where keys are not in order.
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

/// Some candidates of one panel with their scores.
#[derive(Clone, Copy)]
pub(super) struct Hits<'a> {
    /// A bit per candidate.
    pub bits: u64,
    /// A score per candidate of the panel.
    pub scores: &'a [f32],
    /// Index of the panel's first candidate.
    pub first: u32,
}

impl Iterator for Hits<'_> {
    type Item = (f32, u32);

    #[inline(always)]
    fn next(&mut self) -> Option<(f32, u32)> {
        if self.bits == 0 {
            return None;
        }
        let at = self.bits.trailing_zeros();
        self.bits &= self.bits - 1;
        Some((self.scores[at as usize], self.first + at))
    }
}

impl Hits<'_> {
    /// The key of the next candidate.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn next_key(&mut self) -> Option<u64> {
        self.next().map(|(score, index)| key(score, index))
    }
}

impl Selector {
    /// Bytes that a row takes.
    pub(super) fn bytes_per_row(want: usize) -> usize {
        8 * Self::room_for(want)
    }

    fn room_for(want: usize) -> usize {
        if want <= SORTED {
            want.next_multiple_of(LANES)
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
        self.keys.fill(0);
        self.taken.fill(0);
        self.threshold[..live].fill(f32::NEG_INFINITY);
        self.threshold[live..].fill(f32::INFINITY);
    }

    /// What a score must exceed, one value per row.
    pub(super) fn thresholds(&self) -> &[f32] {
        &self.threshold
    }

    /// Offers candidates to a row. Within a row, indices must rise from call to call.
    ///
    /// # Safety
    /// The processor must have `isa`.
    #[inline(always)]
    pub(super) unsafe fn offer(&mut self, isa: Isa, row: usize, hits: Hits) {
        let keys = &mut self.keys[row * self.room..][..self.room];
        let threshold = &mut self.threshold[row];
        if self.want > SORTED {
            let taken = &mut self.taken[row];
            for (score, index) in hits {
                if score > *threshold {
                    keys[*taken] = key(score, index);
                    *taken += 1;
                    if *taken == self.room {
                        keys.select_nth_unstable_by(self.want - 1, |a, b| b.cmp(a));
                        *taken = self.want;
                        *threshold = score_of(keys[self.want - 1]);
                    }
                }
            }
            return;
        }
        if isa == Isa::Avx512 {
            #[cfg(target_arch = "x86_64")]
            {
                // SAFETY: the caller's processor has the instructions.
                unsafe { super::x86::insert_avx512(keys, hits) };
                if keys[self.want - 1] != 0 {
                    *threshold = score_of(keys[self.want - 1]);
                }
                return;
            }
        }
        for (score, index) in hits {
            if score > *threshold {
                let new = key(score, index);
                // Counting takes no branches, where a search step by step guesses wrong at every other candidate.
                let at = keys.iter().map(|&key| usize::from(key > new)).sum();
                keys.copy_within(at..self.room - 1, at + 1);
                keys[at] = new;
                if keys[self.want - 1] != 0 {
                    *threshold = score_of(keys[self.want - 1]);
                }
            }
        }
    }

    /// Writes every `dilation`-th of the row's best candidates to `out`, nearest first.
    ///
    /// A row whose scores were not numbers has fewer candidates than it wants; the lowest indices that it does not have
    /// yet stand in for them, as if their scores were minus infinity.
    pub(super) fn finish(&mut self, row: usize, dilation: usize, out: &mut [i64]) {
        let keys = &mut self.keys[row * self.room..][..self.room];
        if self.want > SORTED {
            let taken = self.taken[row];
            keys[taken..].fill(0);
            keys.sort_unstable_by(|a, b| b.cmp(a));
        }
        let keys = &mut keys[..self.want];
        let found = keys.iter().position(|&key| key == 0).unwrap_or(keys.len());
        let (has, lacks) = keys.split_at_mut(found);
        let free = (0..).filter(|&index| !has.iter().any(|&key| index_of(key) == index));
        for (none, index) in lacks.iter_mut().zip(free) {
            *none = key(f32::NEG_INFINITY, index);
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
            assert_ne!(key(s, u32::MAX), 0);
        }
    }

    /// Offers to row 1 of 2 what is above its threshold, in panels of `width`.
    fn offer(isa: Isa, selector: &mut Selector, scores: &[f32], width: usize) {
        for (p, scores) in scores.chunks(width).enumerate() {
            let above = |&(_, &score): &(usize, &f32)| score > selector.thresholds()[1];
            let bits = scores.iter().enumerate().filter(above).fold(0, |bits, (i, _)| bits | 1 << i);
            let hits = Hits { bits, scores, first: (p * width) as u32 };
            // SAFETY: the tests ask only for what is available.
            unsafe { selector.offer(isa, 1, hits) };
        }
    }

    #[test]
    fn short_and_long_lists_agree_with_a_sort() {
        let scores: Vec<f32> = (0..500u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32).collect();
        let mut order: Vec<i64> = (0..500).collect();
        order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
        for want in [1, 7, 8, 9, 17, 32, 33, 64, 72, 73, 250, 500] {
            for (width, isa) in [1, 48].into_iter().flat_map(|w| Isa::available().into_iter().map(move |isa| (w, isa)))
            {
                let mut selector = Selector::new(2, want);
                selector.reset(2);
                offer(isa, &mut selector, &scores, width);
                let mut out = vec![-1; want];
                selector.finish(1, 1, &mut out);
                assert_eq!(out, order[..want], "want {want}, {width} at a time, {isa:?}");
            }
        }
    }

    #[test]
    fn missing_candidates_are_the_lowest_left() {
        let nan = f32::NAN;
        let mut selector = Selector::new(2, 5);
        selector.reset(2);
        offer(Isa::Portable, &mut selector, &[nan, 0.5, nan, 0.75], 4);
        let mut out = [-1; 5];
        selector.finish(1, 1, &mut out);
        assert_eq!(out, [3, 1, 0, 2, 4]);
    }
}
