//! The learning rate of each step, as a factor of `train.lr`.

use crate::config::{ScheduleKind, TrainConfig};

/// Linear warm-up, then steps or a cosine.
#[derive(Clone, Debug)]
pub struct Schedule {
    kind: ScheduleKind,
    warmup: usize,
    warmup_factor: f64,
    /// Steps after which the rate is multiplied by `gamma`, once for each.
    milestones: Vec<usize>,
    gamma: f64,
    end: f64,
    total: usize,
}

impl Schedule {
    /// The schedule of a run of `total` steps with `epoch` steps to a pass through the data.
    pub fn new(config: &TrainConfig, epoch: usize, total: usize) -> Self {
        Self {
            kind: config.schedule,
            warmup: config.warmup_iters,
            warmup_factor: config.warmup_factor,
            milestones: config.milestones.iter().map(|m| m * epoch).collect(),
            gamma: config.lr_gamma,
            end: config.lr_end,
            total,
        }
    }

    /// The factor at a step, counted from 0.
    ///
    /// Warm-up: from `warmup_factor` at step 0 to 1 at step `warmup_iters`, linearly. `step`: × `lr_gamma` from each milestone on, also
    /// within the warm-up. `cosine`: from 1 at the end of the warm-up to `lr_end` at the end of the run.
    pub fn factor(&self, step: usize) -> f64 {
        let warm = if step < self.warmup {
            self.warmup_factor + (1.0 - self.warmup_factor) * step as f64 / self.warmup as f64
        } else {
            1.0
        };
        warm * match self.kind {
            ScheduleKind::Step => {
                self.gamma.powi(self.milestones.iter().filter(|m| **m <= step).count() as i32)
            }
            ScheduleKind::Cosine if step < self.warmup => 1.0,
            ScheduleKind::Cosine => {
                let share =
                    (step - self.warmup) as f64 / self.total.saturating_sub(self.warmup).max(1) as f64;
                self.end + (1.0 - self.end) * 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos())
            }
        }
    }
}
