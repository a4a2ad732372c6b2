//! The types behind the configs of classifiers: pretraining of a backbone on a folder of classes.
//!
//! The defaults are the recipe of the ViG paper (Han et al., 2022, Table 3), with what its published code and timm add
//! where the paper is silent.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{BackboneConfig, CheckpointConfig, OnError, TrainConfig};

section! {
    /// One training of a classifier.
    pub struct ClassifyConfig {
        /// The network.
        pub model: ClassifierConfig = ClassifierConfig::default(),
        /// Where the images come from and what happens to them on the way.
        pub data: ClassifyDataConfig = ClassifyDataConfig::default(),
        /// Optimisation.
        pub train: TrainConfig = TrainConfig::of_classifier(),
        /// What is written, and how often.
        pub checkpoint: CheckpointConfig = CheckpointConfig::default(),
    }
}

section! {
    /// The network: a backbone with its published classifier. The number of classes comes from the data.
    pub struct ClassifierConfig {
        /// The feature extractor.
        pub backbone: BackboneConfig = BackboneConfig { name: "pvig_ti".into(), ..BackboneConfig::default() },
    }
}

section! {
    /// Where images come from, and what happens to them.
    pub struct ClassifyDataConfig {
        /// Folder that the paths below are relative to. Null: it must come from `--data`.
        pub root: Option<PathBuf> = None,
        /// Training split.
        pub train: FolderConfig = FolderConfig { folder: "train".into(), limit: None },
        /// Validation split.
        pub val: FolderConfig = FolderConfig { folder: "val".into(), limit: None },
        /// Side of the square images that the network sees, in pixels.
        pub size: u32 = 224,
        /// Training: area of the random crop, as a fraction of the image's.
        pub scale: [f64; 2] = [0.08, 1.0],
        /// Training: width over height of the random crop.
        pub ratio: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0],
        /// How images are resized and turned.
        pub interpolation: Interpolation = Interpolation::Bicubic,
        /// Training: probability of a left-right flip.
        pub flip: f64 = 0.5,
        /// Training: RandAugment; null: none.
        pub rand_augment: Option<RandAugmentConfig> = Some(RandAugmentConfig::default()),
        /// Training: brightness, contrast and saturation change by up to this fraction, in random order. As in timm,
        /// RandAugment takes its place where there is one.
        pub color_jitter: f64 = 0.4,
        /// Training: colour jitter also beside RandAugment.
        pub force_color_jitter: bool = false,
        /// Training: random erasing.
        pub erase: EraseConfig = EraseConfig::default(),
        /// Training: Mixup's α, of the Beta distribution that fractions are drawn from; 0: no Mixup.
        pub mixup: f64 = 0.8,
        /// Training: CutMix's α; 0: no CutMix.
        pub cutmix: f64 = 1.0,
        /// Training: probability that a batch is mixed at all.
        pub mix_probability: f64 = 1.0,
        /// Training: probability of CutMix rather than Mixup, where both are on.
        pub mix_switch: f64 = 0.5,
        /// Training: repeated augmentation, so many views of an image, in different micro batches of a step, in epochs
        /// of the same length; 1: none.
        pub repeats: usize = 3,
        /// Repeated augmentation: an epoch has the largest multiple of this that is not above the number of images.
        pub repeat_round: usize = 256,
        /// Training: leave out the last step of an epoch if it would be smaller than a batch.
        pub drop_last: bool = true,
        /// Evaluation: the fraction of the shorter side that the central crop keeps.
        pub crop: f64 = 0.9,
        /// Channel means (red, green, blue) of images in 0–1.
        pub mean: [f32; 3] = [0.5; 3],
        /// Channel standard deviations.
        pub std: [f32; 3] = [0.5; 3],
        /// Honour the EXIF orientation (torchvision's users expect: no).
        pub exif: bool = false,
        /// Threads that decode and transform ahead of the training step; 0: one per core.
        pub workers: usize = 0,
        /// What an unreadable image does.
        pub on_error: OnError = OnError::Skip,
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

section! {
    /// RandAugment (Cubuk et al., 2020) with timm's fifteen increasing operations; the default is its
    /// `rand-m9-mstd0.5-inc1`.
    pub struct RandAugmentConfig {
        /// Operations for each image, drawn with repetition.
        pub ops: usize = 2,
        /// Mean magnitude, of 10.
        pub magnitude: f64 = 9.0,
        /// Standard deviation of the magnitude.
        pub std: f64 = 0.5,
        /// Probability that a drawn operation is carried out.
        pub probability: f64 = 0.5,
    }
}

section! {
    /// Random erasing (Zhong et al., 2020), after normalisation, with a normal random number for each value.
    pub struct EraseConfig {
        /// How often; 0: never.
        pub probability: f64 = 0.25,
        /// Least and greatest area, as a fraction of the image's.
        pub area: [f64; 2] = [0.02, 1.0 / 3.0],
        /// Least height over width; the greatest is one over it.
        pub aspect: f64 = 0.3,
    }
}
