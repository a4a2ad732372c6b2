//! Settings of a training: optimisation and checkpoints.

use serde::{Deserialize, Serialize};

section! {
    /// Optimisation, of detectors and of classifiers. They differ in how the learning rate is laid out; a config knows
    /// its own keys only.
    pub struct TrainConfig {
        /// Update rule.
        pub optimizer: OptimizerKind = OptimizerKind::Adamw,
        /// Peak learning rate.
        pub lr: f64 = 1e-4,
        /// Classifiers: linear scaling. `lr`, `warmup_lr` and `min_lr` are for batches of so many images, and are
        /// multiplied by `batch_size` over it; null: they are what they say.
        pub lr_batch: Option<usize> = None,
        /// Detectors: factor of the learning rate for the backbone.
        pub backbone_lr: f64 = 1.0,
        /// Weight decay (AdamW: decoupled).
        pub weight_decay: f64 = 1e-4,
        /// Whether norms and biases decay too.
        pub decay_norms: bool = true,
        /// SGD's momentum.
        pub momentum: f64 = 0.9,
        /// AdamW's averaging factors.
        pub betas: [f64; 2] = [0.9, 0.999],
        /// Images of a step.
        pub batch_size: usize = 16,
        /// Images that go through the network at once; gradients add up to a step. A classifier mixes them with each
        /// other. Null: as many as `batch_size`, divided among the `replicas`.
        pub micro_batch: Option<usize> = Some(2),
        /// Micro batches that are worked on at the same time on a CPU, each by a copy of the network with its fraction
        /// of the threads: small images do not keep several threads busy with one layer. On other devices they follow
        /// each other.
        pub replicas: usize = 1,
        /// Mixed precision: the forward pass in bfloat16 where PyTorch's autocast has it so, on NVIDIA's cards from
        /// Ampere on and on processors with instructions for it (elsewhere float32).
        pub amp: bool = false,
        /// Stages of a ViG backbone, from the first, that are run again for their gradient: less memory, more time.
        pub recompute: usize = 0,
        /// Passes through the training split.
        pub epochs: usize = 12,
        /// Detectors: at least so many steps. On a small set `epochs` and `eval_every` are multiplied by the smallest
        /// whole number that gives them; null: `epochs` decides alone.
        pub min_iters: Option<usize> = None,
        /// Stop after so many steps, whatever `epochs` says. A classifier's schedule stays that of all epochs.
        pub max_iters: Option<usize> = None,
        /// Stop after about so many minutes of training, evaluations not counted: the first steps are timed, and the
        /// schedule is laid over as many as fit, but no more than `epochs` and `max_iters` say.
        pub max_minutes: Option<f64> = None,
        /// Detectors: steps of linear warm-up.
        pub warmup_iters: usize = 500,
        /// Detectors: where the warm-up begins, as a fraction of the learning rate.
        pub warmup_factor: f64 = 0.001,
        /// Detectors: how the learning rate falls.
        pub schedule: ScheduleKind = ScheduleKind::Step,
        /// Detectors, step schedule: epochs after which the learning rate is multiplied by `lr_gamma`.
        pub milestones: Vec<usize> = vec![8, 11],
        /// Detectors, step schedule: the factor.
        pub lr_gamma: f64 = 0.1,
        /// Detectors, cosine schedule: where it ends, as a fraction of the learning rate.
        pub lr_end: f64 = 0.0,
        /// Classifiers: epochs of linear warm-up.
        pub warmup_epochs: f64 = 20.0,
        /// Classifiers: learning rate that the warm-up begins from.
        pub warmup_lr: f64 = 1e-6,
        /// Classifiers: learning rate that the cosine ends at.
        pub min_lr: f64 = 1e-5,
        /// Classifiers: whether the learning rate changes after each epoch, as in the published code, or after each
        /// step.
        pub lr_every: LrEvery = LrEvery::Epoch,
        /// Longest gradient (2-norm over all parameters); null: no clipping.
        pub clip_norm: Option<f64> = None,
        /// Classifiers, label smoothing: this fraction of a target is spread evenly over all classes.
        pub label_smoothing: f64 = 0.0,
        /// Exponential moving average of the weights, evaluated and saved instead of them; null: none.
        pub ema: Option<f64> = None,
        /// Classifiers: whether the average's decay begins small, (1 + n) / (10 + n) after n updates: for short runs.
        /// The published code's is constant. (A detector's always begins small.)
        pub ema_warmup: bool = true,
        /// What a loss or gradient that is not finite does.
        pub on_nan: OnNan = OnNan::Stop,
        /// `on_nan` is `skip`: this many steps in a row may be skipped; one more stops the run.
        pub skip_most: usize = 10,
        /// Seconds from SIGTERM to the end, as Slurm and Kubernetes give them. Where the step at hand takes longer,
        /// the step before it is saved.
        pub grace_seconds: f64 = 30.0,
        /// Evaluate after every so many epochs (and after the last); 0: never.
        pub eval_every: usize = 1,
        /// Seed of everything random.
        pub seed: u64 = 0,
        /// Threads of libtorch and of vigdet's own kernels; null: one per core.
        pub threads: Option<usize> = None,
    }
}

impl TrainConfig {
    /// A classifier's: the ViG paper's ImageNet recipe (Han et al., 2022, Table 3 and section 4.1).
    pub fn of_classifier() -> Self {
        Self {
            lr: 2e-3,
            weight_decay: 0.05,
            decay_norms: false,
            batch_size: 1024,
            micro_batch: Some(128),
            epochs: 300,
            label_smoothing: 0.1,
            ema: Some(0.99996),
            ema_warmup: false,
            ..Self::default()
        }
    }

    /// Keys that only detectors have a use for.
    pub(super) const OF_DETECTORS: [&'static str; 8] = [
        "train.min_iters",
        "train.backbone_lr",
        "train.warmup_iters",
        "train.warmup_factor",
        "train.schedule",
        "train.milestones",
        "train.lr_gamma",
        "train.lr_end",
    ];

    /// Keys that only classifiers have a use for.
    pub(super) const OF_CLASSIFIERS: [&'static str; 7] = [
        "train.lr_batch",
        "train.warmup_epochs",
        "train.warmup_lr",
        "train.min_lr",
        "train.lr_every",
        "train.label_smoothing",
        "train.ema_warmup",
    ];

    /// Images of a micro batch, and of a batch in evaluation.
    pub fn images_of_micro_batch(&self) -> usize {
        self.micro_batch.unwrap_or(self.batch_size.div_ceil(self.replicas)).min(self.batch_size)
    }

    /// What a classifier's learning rates are multiplied by (see [`TrainConfig::lr_batch`]).
    pub fn lr_scale(&self) -> f64 {
        self.lr_batch.map_or(1.0, |images| self.batch_size as f64 / images as f64)
    }
}

/// What becomes of a step whose loss or gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNan {
    /// The run ends.
    #[default]
    Stop,
    /// The step changes nothing: not the weights, not the running statistics of batch norms.
    Skip,
}

/// When a classifier's learning rate changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrEvery {
    /// After each epoch.
    #[default]
    Epoch,
    /// After each step.
    Step,
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

section! {
    /// What is written, and how often.
    pub struct CheckpointConfig {
        /// Write `last` after every so many epochs.
        pub every_epochs: usize = 1,
        /// And after every so many steps.
        pub every_iters: Option<usize> = None,
        /// And where the last one is so many minutes old. These have no numbers.
        pub every_minutes: Option<f64> = None,
        /// Numbered checkpoints that stay beside `last` and `best`.
        pub keep: usize = 2,
    }
}
