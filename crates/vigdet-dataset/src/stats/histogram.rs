//! How many values lie in which range.

use serde::Serialize;

/// Values in ranges.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// Ends of the ranges, one more than there are ranges. A value on an end belongs to the range that begins there.
    pub edges: Vec<f64>,
    /// Values in each range. The first and the last also have what lies beyond.
    pub counts: Vec<usize>,
}

impl Histogram {
    /// Of values in ranges that begin and end at `edges`, which grow. Values that are no numbers are left out.
    pub fn of(values: &[f64], edges: Vec<f64>) -> Histogram {
        let mut counts = vec![0; edges.len().saturating_sub(1)];
        let Some(last) = counts.len().checked_sub(1) else { return Histogram { edges, counts } };
        for value in values.iter().filter(|value| !value.is_nan()) {
            counts[edges.partition_point(|edge| edge <= value).saturating_sub(1).min(last)] += 1;
        }
        Histogram { edges, counts }
    }

    /// Of sizes from 1 to 4096 pixels.
    pub(super) fn of_sizes(sizes: &[f64]) -> Histogram {
        Histogram::of(sizes, (0..=24).map(|half| 2f64.powf(f64::from(half) / 2.0)).collect())
    }

    /// Of ratios around 1/16 to around 16.
    pub(super) fn of_aspects(aspects: &[f64]) -> Histogram {
        Histogram::of(aspects, (-8..=9).map(|half| 2f64.powf((f64::from(half) - 0.5) / 2.0)).collect())
    }

    /// Of counts.
    pub(super) fn of_counts(counts: &[f64]) -> Histogram {
        Histogram::of(counts, [0, 1, 2, 3, 5, 9, 17, 33, 65, 129, 257].map(f64::from).to_vec())
    }

    /// The share of all values in each range; all 0 without values.
    pub fn shares(&self) -> Vec<f64> {
        let all = self.counts.iter().sum::<usize>().max(1) as f64;
        self.counts.iter().map(|&count| count as f64 / all).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_range_that_begins_with_it_and_what_lies_beyond_at_the_ends() {
        let histogram = Histogram::of(&[-3.0, 0.5, 1.0, 1.5, 2.0, 9.0, f64::NAN], vec![0.0, 1.0, 2.0, 3.0]);
        assert_eq!(histogram.counts, [2, 2, 2]);
        assert_eq!(histogram.shares().iter().sum::<f64>(), 1.0);
        assert_eq!(Histogram::of(&[1.0], Vec::new()).counts, Vec::<usize>::new());
        // A square is in the middle of its range.
        let squares = Histogram::of_aspects(&[1.0]);
        let place = squares.counts.iter().position(|&count| count == 1).unwrap();
        assert!((squares.edges[place] * squares.edges[place + 1] - 1.0).abs() < 1e-12);
    }
}
