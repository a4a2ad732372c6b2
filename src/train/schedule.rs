//! The learning rate of each step.

use crate::config::{LrEvery, ScheduleKind, TrainConfig};

/// The learning rate of each step of a run.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// A detector's: linear warm-up by steps, then milestones or a cosine.
    ByStep(StepSchedule),
    /// A classifier's: timm's `CosineLRScheduler`, which the published models were trained with.
    ByEpoch(EpochCosine),
}

impl Schedule {
    /// The learning rate of a step, counted from 0.
    pub fn lr(&self, step: usize) -> f64 {
        match self {
            Self::ByStep(schedule) => schedule.lr * schedule.factor(step),
            Self::ByEpoch(schedule) => schedule.lr(step),
        }
    }

    /// Lays the rest of the schedule over a run of another length, in steps.
    pub fn set_total(&mut self, total: usize) {
        match self {
            Self::ByStep(schedule) => schedule.total = total,
            Self::ByEpoch(schedule) => schedule.epochs = total as f64 / schedule.steps_per_epoch as f64,
        }
    }
}

/// Linear warm-up, then steps or a cosine.
#[derive(Clone, Debug)]
pub struct StepSchedule {
    lr: f64,
    kind: ScheduleKind,
    warmup: usize,
    warmup_factor: f64,
    /// Steps after which the rate is multiplied by `gamma`, once for each.
    milestones: Vec<usize>,
    gamma: f64,
    end: f64,
    total: usize,
}

impl StepSchedule {
    /// The schedule of a run of `total` steps with `epoch` steps to a pass through the data.
    pub fn new(config: &TrainConfig, epoch: usize, total: usize) -> Self {
        Self {
            lr: config.lr,
            kind: config.schedule,
            warmup: config.warmup_iters,
            warmup_factor: config.warmup_factor,
            milestones: config.milestones.iter().map(|m| m.saturating_mul(epoch)).collect(),
            gamma: config.lr_gamma,
            end: config.lr_end,
            total,
        }
    }

    /// The factor at a step, counted from 0.
    ///
    /// Warm-up: from `warmup_factor` at step 0 to 1 at step `warmup_iters`, linearly. `step`: × `lr_gamma` from each
    /// milestone on, also within the warm-up. `cosine`: from 1 at the end of the warm-up to `lr_end` at the end of the
    /// run.
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
                let fraction = (step - self.warmup) as f64 / self.total.saturating_sub(self.warmup).max(1) as f64;
                self.end + (1.0 - self.end) * 0.5 * (1.0 + (std::f64::consts::PI * fraction.min(1.0)).cos())
            }
        }
    }
}

/// Linear warm-up, then the cosine.
#[derive(Clone, Debug)]
pub struct EpochCosine {
    lr: f64,
    warmup_lr: f64,
    min_lr: f64,
    warmup_epochs: f64,
    epochs: f64,
    steps_per_epoch: usize,
    every: LrEvery,
}

impl EpochCosine {
    /// The schedule of `config` with so many steps to an epoch.
    pub fn new(config: &TrainConfig, steps_per_epoch: usize) -> Self {
        let scale = config.lr_scale();
        Self {
            lr: scale * config.lr,
            warmup_lr: scale * config.warmup_lr,
            min_lr: scale * config.min_lr,
            warmup_epochs: config.warmup_epochs,
            epochs: config.epochs as f64,
            steps_per_epoch: steps_per_epoch.max(1),
            every: config.lr_every,
        }
    }

    /// The learning rate of a step, counted from 0.
    ///
    /// After t epochs (whole ones, or with `lr_every = "step"` a fraction of the present one too): `warmup_lr + (lr −
    /// warmup_lr)·t / warmup_epochs` in the warm-up; then `min_lr + (lr − min_lr)·(1 + cos(π·t / epochs)) / 2`. The
    /// cosine counts from the start of the run, as timm's does, so it begins a little below `lr`.
    pub fn lr(&self, step: usize) -> f64 {
        let t = step as f64 / self.steps_per_epoch as f64;
        let t = match self.every {
            LrEvery::Epoch => t.floor(),
            LrEvery::Step => t,
        };
        if t < self.warmup_epochs {
            self.warmup_lr + (self.lr - self.warmup_lr) * t / self.warmup_epochs
        } else {
            let fraction = (t / self.epochs).min(1.0);
            self.min_lr + (self.lr - self.min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * fraction).cos())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn check(name: &str, config: &TrainConfig) {
        let reference: Value = serde_json::from_str(include_str!("../../tests/fixtures/optim/optim.json")).unwrap();
        let schedule = StepSchedule::new(config, 10, 40);
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
        let schedule = StepSchedule::new(&config, 10, 40);
        assert!((schedule.factor(39) - (0.001 + 0.999 * 39.0 / 500.0)).abs() < 1e-12);
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-15, "{a} {b}");
    }

    #[test]
    fn the_published_schedule_changes_after_each_epoch() {
        let schedule = EpochCosine::new(&TrainConfig::of_classifier(), 1251);
        close(schedule.lr(0), 1e-6);
        close(schedule.lr(1250), 1e-6);
        close(schedule.lr(1251), 1e-6 + (2e-3 - 1e-6) / 20.0);
        close(schedule.lr(19 * 1251), 1e-6 + (2e-3 - 1e-6) * 0.95);
        // cos(π·20/300) = cos 12°; cos(π·150/300) = 0; cos(π·200/300) = −½.
        close(schedule.lr(20 * 1251), 1e-5 + (2e-3 - 1e-5) * 0.5 * (1.0 + 12f64.to_radians().cos()));
        close(schedule.lr(150 * 1251 + 7), 1e-5 + (2e-3 - 1e-5) * 0.5);
        close(schedule.lr(200 * 1251), 1e-5 + (2e-3 - 1e-5) * 0.25);
    }

    #[test]
    fn by_steps_it_is_the_same_at_the_epochs_starts_and_smooth_between() {
        let epochs = EpochCosine::new(&TrainConfig::of_classifier(), 10);
        let config = TrainConfig { lr_every: LrEvery::Step, ..TrainConfig::of_classifier() };
        let steps = EpochCosine::new(&config, 10);
        for epoch in [0, 3, 20, 150, 299] {
            close(epochs.lr(10 * epoch), steps.lr(10 * epoch));
        }
        close(steps.lr(5), 1e-6 + (2e-3 - 1e-6) * 0.5 / 20.0);
        close(steps.lr(3000), 1e-5);
    }

    #[test]
    fn linear_scaling_multiplies_all_rates() {
        let config = TrainConfig { lr_batch: Some(512), batch_size: 128, ..TrainConfig::of_classifier() };
        let (scaled, plain) = (EpochCosine::new(&config, 10), EpochCosine::new(&TrainConfig::of_classifier(), 10));
        for step in [0, 7, 55, 1000, 2999] {
            close(scaled.lr(step), plain.lr(step) / 4.0);
        }
    }

    #[test]
    fn a_detectors_cosine_ends_where_the_run_does() {
        let config =
            TrainConfig { schedule: ScheduleKind::Cosine, warmup_iters: 10, lr_end: 0.1, ..TrainConfig::default() };
        let mut schedule = Schedule::ByStep(StepSchedule::new(&config, 10, 1000));
        assert!(schedule.lr(60) > 0.9 * config.lr);
        schedule.set_total(110);
        close(schedule.lr(60), config.lr * 0.55);
        close(schedule.lr(110), config.lr * 0.1);
    }

    #[test]
    fn a_cosine_by_epochs_ends_where_the_run_does() {
        let config = TrainConfig { lr_every: LrEvery::Step, ..TrainConfig::of_classifier() };
        let mut schedule = Schedule::ByEpoch(EpochCosine::new(&config, 10));
        assert!(schedule.lr(499) > 1e-3);
        schedule.set_total(500);
        close(schedule.lr(500), 1e-5);
        assert!(schedule.lr(499) < 2e-5);
    }
}
