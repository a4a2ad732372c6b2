//! The types behind the configs of classifiers: pretraining of a backbone on a folder of classes.
//!
//! The defaults are the recipe of the ViG paper (Han et al., 2022, Table 3), with what its published code and timm add where the paper
//! is silent.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};

use super::{BackboneConfig, CheckpointConfig, OnError, OptimizerKind, TrainConfig};

/// One training of a classifier.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifyConfig {
    /// The network.
    pub model: ClassifierConfig,
    /// Where the images come from and what happens to them on the way.
    pub data: ClassifyDataConfig,
    /// Optimisation.
    pub train: ClassifyTrainConfig,
    /// What is written, and how often.
    pub checkpoint: CheckpointConfig,
}

/// The network: a backbone with its published classifier. The number of classes comes from the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifierConfig {
    /// The feature extractor.
    pub backbone: BackboneConfig,
}

impl Default for ClassifierConfig {
    fn default() -> Self {
        Self { backbone: BackboneConfig { name: "pvig_ti".into(), ..BackboneConfig::default() } }
    }
}

/// Where images come from, and what happens to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifyDataConfig {
    /// Folder that the paths below are relative to. Null: it must come from `--data`.
    pub root: Option<PathBuf>,
    /// Training split.
    pub train: FolderConfig,
    /// Validation split.
    pub val: FolderConfig,
    /// Side of the square images that the network sees, in pixels.
    pub size: u32,
    /// Training: area of the random crop, as a share of the image's.
    pub scale: [f64; 2],
    /// Training: width over height of the random crop.
    pub ratio: [f64; 2],
    /// How images are resized and turned.
    pub interpolation: Interpolation,
    /// Training: probability of a left-right flip.
    pub flip: f64,
    /// Training: RandAugment; null: none.
    pub rand_augment: Option<RandAugmentConfig>,
    /// Training: brightness, contrast and saturation change by up to this share, in random order. As in timm, RandAugment takes its
    /// place where there is one.
    pub color_jitter: f64,
    /// Training: colour jitter also beside RandAugment.
    pub force_color_jitter: bool,
    /// Training: random erasing.
    pub erase: EraseConfig,
    /// Training: Mixup's α, of the Beta distribution that shares are drawn from; 0: no Mixup.
    pub mixup: f64,
    /// Training: CutMix's α; 0: no CutMix.
    pub cutmix: f64,
    /// Training: probability that a batch is mixed at all.
    pub mix_probability: f64,
    /// Training: probability of CutMix rather than Mixup, where both are on.
    pub mix_switch: f64,
    /// Training: repeated augmentation, so many views of an image, in different micro batches of a step, in epochs of the same length; 1: none.
    pub repeats: usize,
    /// Repeated augmentation: an epoch has the largest multiple of this that is not above the number of images.
    pub repeat_round: usize,
    /// Training: leave out the last step of an epoch if it would be smaller than a batch.
    pub drop_last: bool,
    /// Evaluation: the share of the shorter side that the central crop keeps.
    pub crop: f64,
    /// Channel means (red, green, blue) of images in 0–1.
    pub mean: [f32; 3],
    /// Channel standard deviations.
    pub std: [f32; 3],
    /// Honour the EXIF orientation (torchvision's users expect: no).
    pub exif: bool,
    /// Threads that decode and transform ahead of the training step; 0: one per core.
    pub workers: usize,
    /// What an unreadable image does.
    pub on_error: OnError,
}

impl Default for ClassifyDataConfig {
    fn default() -> Self {
        Self {
            root: None,
            train: FolderConfig { folder: "train".into(), limit: None },
            val: FolderConfig { folder: "val".into(), limit: None },
            size: 224,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            interpolation: Interpolation::Bicubic,
            flip: 0.5,
            rand_augment: Some(RandAugmentConfig::default()),
            color_jitter: 0.4,
            force_color_jitter: false,
            erase: EraseConfig::default(),
            mixup: 0.8,
            cutmix: 1.0,
            mix_probability: 1.0,
            mix_switch: 0.5,
            repeats: 3,
            repeat_round: 256,
            drop_last: true,
            crop: 0.9,
            mean: [0.5; 3],
            std: [0.5; 3],
            exif: false,
            workers: 0,
            on_error: OnError::Skip,
        }
    }
}

/// One split: a folder with a folder for each class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FolderConfig {
    /// The folder.
    pub folder: PathBuf,
    /// Use only the first so many images of each class.
    pub limit: Option<usize>,
}

/// How images are resized and turned; both filters' support grows when shrinking, as Pillow's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Bilinear.
    Bilinear,
    /// Bicubic.
    #[default]
    Bicubic,
    /// Training: either, drawn anew for each operation; evaluation: bicubic.
    Random,
}

/// RandAugment (Cubuk et al., 2020) with timm's fifteen increasing operations; the default is its `rand-m9-mstd0.5-inc1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandAugmentConfig {
    /// Operations for each image, drawn with repetition.
    pub ops: usize,
    /// Mean magnitude, of 10.
    pub magnitude: f64,
    /// Standard deviation of the magnitude.
    pub std: f64,
    /// Probability that a drawn operation is carried out.
    pub probability: f64,
}

impl Default for RandAugmentConfig {
    fn default() -> Self {
        Self { ops: 2, magnitude: 9.0, std: 0.5, probability: 0.5 }
    }
}

/// Random erasing (Zhong et al., 2020), after normalisation, with a normal random number for each value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EraseConfig {
    /// How often; 0: never.
    pub probability: f64,
    /// Least and greatest area, as a share of the image's.
    pub area: [f64; 2],
    /// Least height over width; the greatest is one over it.
    pub aspect: f64,
}

impl Default for EraseConfig {
    fn default() -> Self {
        Self { probability: 0.25, area: [0.02, 1.0 / 3.0], aspect: 0.3 }
    }
}

/// Optimisation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassifyTrainConfig {
    /// Update rule.
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Linear scaling: `lr`, `warmup_lr` and `min_lr` are for batches of so many images, and are multiplied by `batch_size` over it; null: they are
    /// what they say.
    pub lr_batch: Option<usize>,
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
    /// Images that go through the network at once and are mixed with each other; gradients add up to a step. Null: as many as `batch_size`.
    pub micro_batch: Option<usize>,
    /// Passes through the training split.
    pub epochs: usize,
    /// Stop after so many steps, whatever `epochs` says. The schedule is that of all epochs.
    pub max_iters: Option<usize>,
    /// Epochs of linear warm-up.
    pub warmup_epochs: f64,
    /// Learning rate that the warm-up starts from.
    pub warmup_lr: f64,
    /// Learning rate that the cosine ends at.
    pub min_lr: f64,
    /// Whether the learning rate changes after each epoch, as in the published code, or after each step.
    pub lr_every: LrEvery,
    /// Longest gradient (2-norm over all parameters); null: no clipping.
    pub clip_norm: Option<f64>,
    /// Label smoothing: this share of a target is spread evenly over all classes.
    pub label_smoothing: f64,
    /// Exponential moving average of the weights, evaluated and saved instead of them; null: none.
    pub ema: Option<f64>,
    /// Whether the average's decay starts small, (1 + n) / (10 + n) after n updates: for short runs. The published code's is constant.
    pub ema_warmup: bool,
    /// Mixed precision: the forward pass in bfloat16 where PyTorch's autocast has it so, on CUDA and on processors with instructions for it
    /// (elsewhere float32).
    pub amp: bool,
    /// Evaluate after every so many epochs (and after the last); 0: never.
    pub eval_every: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads of libtorch and of vigdet's own kernels; null: one per core.
    pub threads: Option<usize>,
}

impl Default for ClassifyTrainConfig {
    fn default() -> Self {
        Self {
            optimizer: OptimizerKind::Adamw,
            lr: 2e-3,
            lr_batch: None,
            weight_decay: 0.05,
            decay_norms: false,
            momentum: 0.9,
            betas: [0.9, 0.999],
            batch_size: 1024,
            micro_batch: Some(128),
            epochs: 300,
            max_iters: None,
            warmup_epochs: 20.0,
            warmup_lr: 1e-6,
            min_lr: 1e-5,
            lr_every: LrEvery::Epoch,
            clip_norm: None,
            label_smoothing: 0.1,
            ema: Some(0.99996),
            ema_warmup: false,
            amp: false,
            eval_every: 1,
            seed: 0,
            threads: None,
        }
    }
}

/// When the learning rate changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrEvery {
    /// After each epoch.
    #[default]
    Epoch,
    /// After each step.
    Step,
}

impl ClassifyTrainConfig {
    /// What learning rates are multiplied by (see [`ClassifyTrainConfig::lr_batch`]).
    pub fn lr_scale(&self) -> f64 {
        self.lr_batch.map_or(1.0, |images| self.batch_size as f64 / images as f64)
    }

    /// The part that the optimizer reads.
    pub fn optimisation(&self) -> TrainConfig {
        TrainConfig {
            optimizer: self.optimizer,
            lr: self.lr,
            weight_decay: self.weight_decay,
            decay_norms: self.decay_norms,
            momentum: self.momentum,
            betas: self.betas,
            ..TrainConfig::default()
        }
    }
}

impl ClassifyConfig {
    /// Values that no run could work with.
    pub(super) fn check(&self) -> Result<()> {
        let (b, d, t) = (&self.model.backbone, &self.data, &self.train);
        let positive = |name: &str, v: f64| {
            ensure!(v.is_finite() && v > 0.0, "{name} must be above 0, not {v}");
            Ok(())
        };
        let share = |name: &str, v: f64| {
            ensure!((0.0..=1.0).contains(&v), "{name} must be between 0 and 1, not {v}");
            Ok(())
        };
        let range = |name: &str, v: [f64; 2], most: f64| {
            ensure!(
                v[0] > 0.0 && v[0] <= v[1] && v[1] <= most,
                "{name} is [least, most]{}; {v:?} is not",
                if most.is_finite() { format!(", both above 0 and at most {most}") } else { String::new() }
            );
            Ok(())
        };
        positive("model.backbone.k", b.k as f64)?;
        ensure!((0.0..1.0).contains(&b.drop_path), "model.backbone.drop_path must be at least 0 and below 1");
        positive("model.backbone.heads", b.heads as f64)?;
        share("model.backbone.stochastic_dilation", b.stochastic_dilation)?;
        positive("data.size", f64::from(d.size))?;
        ensure!(d.size <= 1 << 14, "data.size must be at most {} pixels, not {}", 1 << 14, d.size);
        range("data.scale", d.scale, 1.0)?;
        range("data.ratio", d.ratio, f64::INFINITY)?;
        share("data.flip", d.flip)?;
        if let Some(r) = &d.rand_augment {
            ensure!(
                (0.0..=10.0).contains(&r.magnitude),
                "data.rand_augment.magnitude must be between 0 and 10, not {}",
                r.magnitude
            );
            ensure!(r.std.is_finite() && r.std >= 0.0, "data.rand_augment.std must not be negative, but is {}", r.std);
            share("data.rand_augment.probability", r.probability)?;
        }
        share("data.color_jitter", d.color_jitter)?;
        share("data.erase.probability", d.erase.probability)?;
        range("data.erase.area", d.erase.area, 1.0)?;
        positive("data.erase.aspect", d.erase.aspect)?;
        share("data.erase.aspect", d.erase.aspect)?;
        for (name, alpha) in [("data.mixup", d.mixup), ("data.cutmix", d.cutmix)] {
            ensure!(alpha.is_finite() && alpha >= 0.0, "{name} must not be negative, but is {alpha}");
        }
        share("data.mix_probability", d.mix_probability)?;
        share("data.mix_switch", d.mix_switch)?;
        positive("data.repeats", d.repeats as f64)?;
        positive("data.repeat_round", d.repeat_round as f64)?;
        positive("data.crop", d.crop)?;
        share("data.crop", d.crop)?;
        d.std.iter().try_for_each(|s| positive("data.std", f64::from(*s)))?;
        positive("train.lr", t.lr)?;
        ensure!(t.lr_batch != Some(0), "train.lr_batch must be above 0 (null: no scaling)");
        positive("train.batch_size", t.batch_size as f64)?;
        ensure!(t.micro_batch != Some(0), "train.micro_batch must be above 0 (null: as many as train.batch_size)");
        ensure!(t.warmup_epochs.is_finite() && t.warmup_epochs >= 0.0, "train.warmup_epochs must not be negative");
        for (name, lr) in [("train.warmup_lr", t.warmup_lr), ("train.min_lr", t.min_lr)] {
            ensure!((0.0..=t.lr).contains(&lr), "{name} must be between 0 and train.lr, {}, not {lr}", t.lr);
        }
        ensure!(t.clip_norm.is_none_or(|c| c > 0.0), "train.clip_norm must be above 0 (null: no clipping)");
        share("train.label_smoothing", t.label_smoothing)?;
        ensure!(t.ema.is_none_or(|e| (0.0..1.0).contains(&e)), "train.ema must be at least 0 and below 1 (null: none)");
        ensure!(t.threads != Some(0), "train.threads must be above 0 (null: one per core)");
        Ok(())
    }
}
