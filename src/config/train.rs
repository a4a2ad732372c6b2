//! Settings of a detector's training: optimisation and checkpoints.

use serde::{Deserialize, Serialize};

/// Optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Update rule.
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Factor of the learning rate for the backbone.
    pub backbone_lr: f64,
    /// Weight decay (AdamW: decoupled).
    pub weight_decay: f64,
    /// Whether norms and biases decay too.
    pub decay_norms: bool,
    /// SGD's momentum.
    pub momentum: f64,
    /// AdamW's averaging factors.
    pub betas: [f64; 2],
    /// Images of a step.
    pub batch_size: usize,
    /// Images that go through the network at once; gradients add up to a step. Null: as many as `batch_size`, divided among the `replicas`.
    pub micro_batch: Option<usize>,
    /// Micro batches that are worked on at the same time on a CPU, each by a copy of the network with its share of the threads: small images do not
    /// keep several threads busy with one layer. On other devices they follow each other.
    pub replicas: usize,
    /// Mixed precision: the forward pass in bfloat16 where PyTorch's autocast has it so, on CUDA and on processors with instructions for it
    /// (elsewhere float32).
    pub amp: bool,
    /// Passes through the training split.
    pub epochs: usize,
    /// Stop after so many steps, whatever `epochs` says.
    pub max_iters: Option<usize>,
    /// Stop after about so many minutes of training, evaluations not counted: the first steps are timed, and the schedule is laid over as many as
    /// fit, but no more than `epochs` and `max_iters` say.
    pub max_minutes: Option<f64>,
    /// Steps of linear warm-up.
    pub warmup_iters: usize,
    /// Where the warm-up starts, as a share of the learning rate.
    pub warmup_factor: f64,
    /// How the learning rate falls.
    pub schedule: ScheduleKind,
    /// Step schedule: epochs after which the learning rate is multiplied by `lr_gamma`.
    pub milestones: Vec<usize>,
    /// Step schedule: the factor.
    pub lr_gamma: f64,
    /// Cosine schedule: where it ends, as a share of the learning rate.
    pub lr_end: f64,
    /// Longest gradient (2-norm over all parameters); null: no clipping.
    pub clip_norm: Option<f64>,
    /// Exponential moving average of the weights, evaluated and saved instead of them; null: none.
    pub ema: Option<f64>,
    /// Evaluate after every so many epochs (and after the last); 0: never.
    pub eval_every: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads of libtorch and of vigdet's own kernels; null: one per core.
    pub threads: Option<usize>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            optimizer: OptimizerKind::Adamw,
            lr: 1e-4,
            backbone_lr: 1.0,
            weight_decay: 1e-4,
            decay_norms: true,
            momentum: 0.9,
            betas: [0.9, 0.999],
            batch_size: 16,
            micro_batch: Some(2),
            replicas: 1,
            amp: false,
            epochs: 12,
            max_iters: None,
            max_minutes: None,
            warmup_iters: 500,
            warmup_factor: 0.001,
            schedule: ScheduleKind::Step,
            milestones: vec![8, 11],
            lr_gamma: 0.1,
            lr_end: 0.0,
            clip_norm: None,
            ema: None,
            eval_every: 1,
            seed: 0,
            threads: None,
        }
    }
}

impl TrainConfig {
    /// Images of a micro batch, and of a batch in evaluation.
    pub fn images_of_micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch_size.div_ceil(self.replicas)).min(self.batch_size)
    }
}

/// Update rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// AdamW (Loshchilov and Hutter, 2019).
    #[default]
    Adamw,
    /// Stochastic gradient descent with momentum, as PyTorch's.
    Sgd,
}

/// Learning-rate schedules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Multiplied by `lr_gamma` after each milestone.
    #[default]
    Step,
    /// Half a cosine from the peak to `lr_end`, by iteration.
    Cosine,
}

/// What is written, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Write `last` after every so many epochs.
    pub every_epochs: usize,
    /// And after every so many steps.
    pub every_iters: Option<usize>,
    /// Numbered checkpoints that stay beside `last` and `best`.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_epochs: 1, every_iters: None, keep: 2 }
    }
}
