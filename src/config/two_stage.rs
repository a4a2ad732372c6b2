//! Settings of the two-stage detectors: proposals, regions of interest, masks.

use serde::{Deserialize, Serialize};

use super::{BoxLoss, ConvNorm, MatchConfig};

section! {
    /// The region proposal network (Ren et al., 2015).
    pub struct RpnConfig {
        /// 3×3 convolutions before the two that predict, as wide as the pyramid.
        pub convs: i64 = 1,
        /// Assignment of anchors to objects.
        #[serde(rename = "match")]
        pub matching: MatchConfig = MatchConfig { positive: 0.7, negative: 0.3, ..MatchConfig::default() },
        /// Which anchors enter the losses.
        pub sample: SampleConfig = SampleConfig { count: 256, positive: 0.5 },
        /// The box loss.
        pub loss: BoxLossConfig = BoxLossConfig::default(),
        /// Proposals in training.
        pub train: ProposalConfig = ProposalConfig { top_k: 2000, keep: 1000 },
        /// Proposals in inference.
        pub test: ProposalConfig = ProposalConfig { top_k: 1000, keep: 1000 },
        /// Non-maximum suppression of proposals, per level: IoU above this is a duplicate.
        pub nms: f64 = 0.7,
        /// Proposals have at least this probability of an object, in training and in inference (torchvision's MobileNet
        /// detectors: 0.05).
        pub score: f64 = 0.0,
    }
}

/// How many proposals an image has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProposalConfig {
    /// Best anchors of each level before suppression.
    pub top_k: usize,
    /// Best proposals of all levels after it.
    pub keep: usize,
}

/// Random choice of anchors or proposals that enter the losses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleConfig {
    /// So many of each image.
    pub count: usize,
    /// Share of them that may be positive; background fills the rest.
    pub positive: f64,
}

section! {
    /// Box regression of sampled anchors or proposals.
    pub struct BoxLossConfig {
        /// The box loss.
        #[serde(rename = "box")]
        pub kind: BoxLoss = BoxLoss::L1,
        /// Smooth L1: where it turns from square to linear; 0: nowhere, it is L1.
        pub beta: f64 = 1.0 / 9.0,
        /// Its factor.
        pub box_weight: f64 = 1.0,
        /// What its sum is divided by.
        pub normalizer: SampleNormalizer = SampleNormalizer::Sampled,
    }
}

/// What the box loss of sampled anchors or proposals is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleNormalizer {
    /// All that were sampled, background included (mmdetection, detectron2, torchvision).
    #[default]
    Sampled,
    /// The positives among them.
    Positives,
}

section! {
    /// Regions of interest: pooling, box head, assignment and losses (Girshick, 2015; He et al., 2017, section 3).
    pub struct RoiConfig {
        /// Bins along each side of a region for the box head.
        pub pool: i64 = 7,
        /// RoIAlign: sampling points along each side of a bin; 0: one per pixel of the map, begun ones included.
        pub sampling_ratio: u32 = 2,
        /// RoIAlign: a pixel's value belongs to its centre (detectron2's `aligned`); false: to its corner, as in older
        /// code.
        pub aligned: bool = true,
        /// √area, in pixels, of regions that are pooled from `canonical_level`.
        pub canonical_size: f64 = 224.0,
        /// The pyramid level for regions of `canonical_size`; half as large is one level finer.
        pub canonical_level: i64 = 4,
        /// 3×3 convolutions at the start of the box head, as wide as the pyramid.
        pub convs: i64 = 0,
        /// Normalisation after each of them.
        pub norm: ConvNorm = ConvNorm::None,
        /// Fully connected layers after them.
        pub fcs: i64 = 2,
        /// Width of the fully connected layers.
        pub channels: i64 = 1024,
        /// Assignment of proposals to objects.
        #[serde(rename = "match")]
        pub matching: MatchConfig = MatchConfig {
            positive: 0.5,
            negative: 0.5,
            low_quality: false,
            ..MatchConfig::default()
        },
        /// Which proposals enter the losses.
        pub sample: SampleConfig = SampleConfig { count: 512, positive: 0.25 },
        /// The objects themselves are proposals too, in training.
        pub add_objects: bool = true,
        /// Factors of the box deltas dx, dy, dw, dh.
        pub box_weights: [f32; 4] = [10.0, 10.0, 5.0, 5.0],
        /// The box loss.
        pub loss: BoxLossConfig = BoxLossConfig::default(),
    }
}

section! {
    /// The mask head (He et al., 2017, section 3).
    pub struct MaskHeadConfig {
        /// 3×3 convolutions before the one that doubles the resolution.
        pub convs: i64 = 4,
        /// Their width.
        pub channels: i64 = 256,
        /// Normalisation after each of them.
        pub norm: ConvNorm = ConvNorm::None,
        /// Bins along each side of a region; masks have twice as many pixels.
        pub pool: i64 = 14,
        /// What masks learn.
        pub targets: MaskTargets = MaskTargets::Raster,
        /// Factor of the mask loss.
        pub weight: f64 = 1.0,
        /// How masks are put into their image.
        pub paste: PasteKind = PasteKind::Centres,
        /// Probability above which a pixel is of the object.
        pub threshold: f64 = 0.5,
    }
}

/// What masks learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskTargets {
    /// 0 and 1: polygons drawn on the region's own grid (mmdetection, detectron2).
    #[default]
    Raster,
    /// Shares: RoIAlign of the mask in the pixels of the resized image (torchvision).
    RoiAlign,
}

/// How masks are put into their image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PasteKind {
    /// Every pixel of the image takes the mask's value at its centre (detectron2, mmdetection).
    #[default]
    Centres,
    /// The mask, with a rim of a pixel, is resized to a box of whole pixels (torchvision).
    Padded,
}
