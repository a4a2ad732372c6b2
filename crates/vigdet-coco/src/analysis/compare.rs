//! Two detectors on one ground truth: is the difference more than chance?

use crate::error::Result;
use crate::eval::accumulate::rows;
use crate::eval::matching::Matches;
use crate::eval::summary::Means;
use crate::eval::{IouType, Params, Task, Warning, STAT_NAMES};
use crate::types::{Dataset, Detection};
use rayon::prelude::*;
use std::fmt;

/// How images are resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampling {
    /// How many times. A thousand give intervals that are steady to a few percent of their width.
    pub resamples: usize,
    /// The same seed draws the same images, whatever the number of threads.
    pub seed: u64,
}

impl Default for Resampling {
    fn default() -> Resampling {
        Resampling { resamples: 1000, seed: 0 }
    }
}

/// One of the twelve numbers, for both. `Display` of the whole [`Comparison`] is a table.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Difference {
    /// As in [`STAT_NAMES`].
    pub name: String,
    /// Of the first results. −1 where there are no objects.
    pub a: f64,
    /// Of the second results.
    pub b: f64,
    /// b − a.
    pub difference: f64,
    /// The middle 95% of the difference when images are drawn anew, as many as there are, with replacement (percentile
    /// bootstrap; both detectors on the same draw). `None` where there are no objects.
    pub interval: Option<[f64; 2]>,
}

/// The result of [`compare`].
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Comparison {
    /// One entry for each of the twelve numbers.
    pub differences: Vec<Difference>,
    /// How many times images were drawn.
    pub resamples: usize,
    /// Where the rules surprise in the second results. Those of the first, of the ground truth and of the parameters
    /// are in their [`Evaluation`](crate::eval::Evaluation).
    #[serde(skip)]
    pub warnings: Vec<Warning>,
}

/// Compares results `b` with results `a`.
///
/// # Errors
/// Those of [`crate::eval::evaluate`].
pub fn compare(
    truth: &Dataset,
    a: &[Detection],
    b: &[Detection],
    iou_type: IouType,
    params: &Params,
    resampling: Resampling,
) -> Result<Comparison> {
    let a = matched(truth, a, iou_type, params)?;
    let b = matched(truth, b, iou_type, params)?;
    let (whole_a, whole_b) = (a.stats(None), b.stats(None));
    let drawn: Vec<[f64; 12]> = (0..resampling.resamples as u64)
        .into_par_iter()
        .map(|draw| {
            let weights = weights(a.images, resampling.seed, draw);
            let (a, b) = (a.stats(Some(&weights)), b.stats(Some(&weights)));
            // A draw without any object of some size says nothing about it.
            std::array::from_fn(|i| if a[i] < 0.0 || b[i] < 0.0 { f64::NAN } else { b[i] - a[i] })
        })
        .collect();
    let differences = (0..12)
        .map(|i| Difference {
            name: STAT_NAMES[i].to_owned(),
            a: whole_a[i],
            b: whole_b[i],
            difference: whole_b[i] - whole_a[i],
            interval: middle(drawn.iter().map(|differences| differences[i]).collect()),
        })
        .collect();
    let mut warnings = b.warnings;
    warnings.retain(Warning::is_of_results);
    Ok(Comparison { differences, resamples: resampling.resamples, warnings })
}

/// Detections matched once, to be summarized for many draws.
struct Matched {
    categories: Vec<Matches>,
    params: Params,
    images: usize,
    warnings: Vec<Warning>,
}

fn matched(truth: &Dataset, detections: &[Detection], iou_type: IouType, params: &Params) -> Result<Matched> {
    let task = Task::new(truth, detections, iou_type, params)?;
    let categories = task.each_category(|matches| matches)?;
    let (images, warnings) = (task.scope.images.len(), task.warnings());
    Ok(Matched { categories, images, params: task.params, warnings })
}

impl Matched {
    fn stats(&self, weights: Option<&[u32]>) -> [f64; 12] {
        let selection = Means::new(&self.params);
        let mut means = Means::new(&self.params);
        for matches in &self.categories {
            let read = |a, m| selection.reads(a, m);
            rows(matches, &self.params, weights, read, |at, row| means.add(at, &row));
        }
        means.finish()
    }
}

/// How often each image is drawn in one of the draws.
fn weights(images: usize, seed: u64, draw: u64) -> Vec<u32> {
    let mut weights = vec![0; images];
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(draw << 32);
    for _ in 0..images {
        // The high half of the product is an index among the images, as even as 64 bits allow.
        let index = (u128::from(split_mix(&mut state)) * images as u128) >> 64;
        weights[index as usize] += 1;
    }
    weights
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Quantiles 2.5% and 97.5%, interpolated between neighbours.
fn middle(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.retain(|value| !value.is_nan());
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let quantile = |q: f64| {
        let position = q * last as f64;
        let below = position.floor() as usize;
        let above = (below + 1).min(last);
        values[below] + (values[above] - values[below]) * (position - below as f64)
    };
    Some([quantile(0.025), quantile(0.975)])
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<6} {:>7} {:>7} {:>8}   95% of {} resamples", "", "A", "B", "B - A", self.resamples)?;
        for row in &self.differences {
            write!(f, "\n{:<6} {:>7.3} {:>7.3} {:>+8.4}", row.name, row.a, row.b, row.difference)?;
            match row.interval {
                Some([low, high]) => {
                    let sure = if low > 0.0 || high < 0.0 { "  *" } else { "" };
                    write!(f, "   {low:+.4} to {high:+.4}{sure}")?;
                }
                None => write!(f, "   no objects")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_drawn_once_on_average_and_the_seed_decides() {
        let drawn = weights(1000, 7, 3);
        assert_eq!(drawn.iter().sum::<u32>(), 1000);
        // 1/e of the images are not drawn.
        let missing = drawn.iter().filter(|&&weight| weight == 0).count();
        assert!((320..420).contains(&missing), "{missing}");
        assert_eq!(drawn, weights(1000, 7, 3));
        assert_ne!(drawn, weights(1000, 7, 4));
        assert_ne!(drawn, weights(1000, 8, 3));
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(middle((0..=40).map(f64::from).chain([f64::NAN]).collect()), Some([1.0, 39.0]));
        assert_eq!(middle((0..=10).map(f64::from).collect()), Some([0.25, 9.75]));
        assert_eq!(middle(vec![f64::NAN]), None);
    }
}
