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

    /// Lays the rest of the schedule over a run of another length.
    pub fn set_total(&mut self, total: usize) {
        self.total = total;
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
            ScheduleKind::Step => self.gamma.powi(self.milestones.iter().filter(|m| **m <= step).count() as i32),
            ScheduleKind::Cosine if step < self.warmup => 1.0,
            ScheduleKind::Cosine => {
                let share = (step - self.warmup) as f64 / self.total.saturating_sub(self.warmup).max(1) as f64;
                self.end + (1.0 - self.end) * 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn check(name: &str, config: &TrainConfig) {
        let reference: Value = serde_json::from_str(include_str!("../../tests/fixtures/optim/optim.json")).unwrap();
        let schedule = Schedule::new(config, 10, 40);
        for (step, expected) in reference["schedules"][name].as_array().unwrap().iter().enumerate() {
            let (factor, expected) = (schedule.factor(step), expected.as_f64().unwrap());
            assert!((factor - expected).abs() < 1e-12, "{name} step {step}: {factor} {expected}");
        }
    }

    #[test]
    fn steps_after_a_warm_up_are_pytorchs() {
        let config = TrainConfig { warmup_iters: 7, milestones: vec![2, 3], ..TrainConfig::default() };
        check("step", &config);
    }

    #[test]
    fn a_cosine_after_a_warm_up_is_pytorchs() {
        let config = TrainConfig {
            schedule: ScheduleKind::Cosine,
            warmup_iters: 8,
            warmup_factor: 0.25,
            lr_end: 0.05,
            ..TrainConfig::default()
        };
        check("cosine", &config);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_only_warms_up() {
        let config = TrainConfig { schedule: ScheduleKind::Cosine, warmup_iters: 500, ..TrainConfig::default() };
        let schedule = Schedule::new(&config, 10, 40);
        assert!((schedule.factor(39) - (0.001 + 0.999 * 39.0 / 500.0)).abs() < 1e-12);
    }
}
