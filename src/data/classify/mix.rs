//! Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019), as timm mixes batches: each image with the one at the
//! same place counted from the end, all by the same fraction.

use rand::Rng;
use rand_distr::{Beta, Distribution};

use super::crop::Window;
use crate::config::ClassifyDataConfig;

/// How a batch is mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// What fraction an image keeps of itself, in its label too.
    pub fraction: f64,
    /// CutMix: the window that comes from the other image; Mixup: none.
    pub window: Option<Window>,
}

impl Mix {
    /// Draws how a batch of `side` × `side` images is mixed; `None`: not at all.
    pub fn draw(config: &ClassifyDataConfig, side: u32, rng: &mut impl Rng) -> Option<Self> {
        let (mixup, cutmix) = (config.mixup > 0.0, config.cutmix > 0.0);
        if !(mixup || cutmix) || rng.random::<f64>() >= config.mix_probability {
            return None;
        }
        let cut = cutmix && (!mixup || rng.random::<f64>() < config.mix_switch);
        let alpha = if cut { config.cutmix } else { config.mixup };
        // Beta is there for every α above 0.
        let fraction = Beta::new(alpha, alpha).map_or(1.0, |beta| beta.sample(rng));
        Some(if cut {
            Self::cut(fraction, side, rng.random_range(0..side), rng.random_range(0..side))
        } else {
            Self { fraction, window: None }
        })
    }

    /// CutMix with a window of about 1 − `fraction` of the area around (`x`, `y`), clipped to the image; the fraction
    /// is then what is left.
    pub fn cut(fraction: f64, side: u32, x: u32, y: u32) -> Self {
        let half = (f64::from(side) * (1.0 - fraction).sqrt()) as u32 / 2;
        let span = |at: u32| (at.saturating_sub(half), (at + half).min(side));
        let ((left, right), (top, bottom)) = (span(x), span(y));
        let window = Window { x: left, y: top, width: right - left, height: bottom - top };
        let area = f64::from(window.width) * f64::from(window.height);
        Self { fraction: 1.0 - area / (f64::from(side) * f64::from(side)), window: Some(window) }
    }

    /// Mixes an image with another one, both 8-bit, `side` × `side` pixels of three values: timm rounds Mixup's sums
    /// to 8 bits.
    pub fn apply(&self, image: &mut [u8], other: &[u8], side: usize) {
        match self.window {
            Some(window) => {
                let columns = 3 * window.x as usize..3 * (window.x + window.width) as usize;
                for y in window.y as usize..(window.y + window.height) as usize {
                    let row = 3 * side * y;
                    image[row + columns.start..row + columns.end]
                        .copy_from_slice(&other[row + columns.start..row + columns.end]);
                }
            }
            None => {
                let (keep, take) = (self.fraction as f32, (1.0 - self.fraction) as f32);
                for (v, o) in image.iter_mut().zip(other) {
                    *v = (f32::from(*v) * keep + f32::from(*o) * take).round_ties_even() as u8;
                }
            }
        }
    }
}

/// Adds `fraction` of a smoothed one-hot target to a row of targets, one number a class: `smoothing` of it is spread
/// evenly over all classes.
pub fn add_target(row: &mut [f32], label: usize, fraction: f64, smoothing: f64) {
    let even = smoothing / row.len() as f64;
    row.iter_mut().for_each(|v| *v += (fraction * even) as f32);
    row[label] += (fraction * (1.0 - smoothing)) as f32;
}
