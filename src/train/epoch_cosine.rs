//! The learning rate of a classifier's training: timm's `CosineLRScheduler`, which the published models were trained with.

use crate::config::{ClassifyTrainConfig, LrEvery};

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
    pub fn new(config: &ClassifyTrainConfig, steps_per_epoch: usize) -> Self {
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
    /// After t epochs (whole ones, or with `lr_every = "step"` a fraction of the present one too): `warmup_lr + (lr − warmup_lr)·t / warmup_epochs` in the warm-up;
    /// then `min_lr + (lr − min_lr)·(1 + cos(π·t / epochs)) / 2`. The cosine counts from the start of the run, as timm's does, so it begins
    /// a little below `lr`.
    pub fn lr(&self, step: usize) -> f64 {
        let t = step as f64 / self.steps_per_epoch as f64;
        let t = match self.every {
            LrEvery::Epoch => t.floor(),
            LrEvery::Step => t,
        };
        if t < self.warmup_epochs {
            self.warmup_lr + (self.lr - self.warmup_lr) * t / self.warmup_epochs
        } else {
            let share = (t / self.epochs).min(1.0);
            self.min_lr + (self.lr - self.min_lr) * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-15, "{a} {b}");
    }

    #[test]
    fn the_published_schedule_changes_after_each_epoch() {
        let schedule = EpochCosine::new(&ClassifyTrainConfig::default(), 1251);
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
        let epochs = EpochCosine::new(&ClassifyTrainConfig::default(), 10);
        let config = ClassifyTrainConfig { lr_every: LrEvery::Step, ..Default::default() };
        let steps = EpochCosine::new(&config, 10);
        for epoch in [0, 3, 20, 150, 299] {
            close(epochs.lr(10 * epoch), steps.lr(10 * epoch));
        }
        close(steps.lr(5), 1e-6 + (2e-3 - 1e-6) * 0.5 / 20.0);
        close(steps.lr(3000), 1e-5);
    }

    #[test]
    fn linear_scaling_multiplies_all_rates() {
        let config = ClassifyTrainConfig { lr_batch: Some(512), batch_size: 128, ..Default::default() };
        let (scaled, plain) = (EpochCosine::new(&config, 10), EpochCosine::new(&ClassifyTrainConfig::default(), 10));
        for step in [0, 7, 55, 1000, 2999] {
            close(scaled.lr(step), plain.lr(step) / 4.0);
        }
    }
}
