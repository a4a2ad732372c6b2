//! Settings of the two-stage detectors: proposals, regions of interest, masks.

use serde::{Deserialize, Serialize};

use super::{BoxLoss, MatchConfig};

/// The region proposal network (Ren et al., 2015).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RpnConfig {
    /// 3×3 convolutions before the two that predict, as wide as the pyramid.
    pub convs: i64,
    /// Assignment of anchors to objects.
    #[serde(rename = "match")]
    pub matching: MatchConfig,
    /// Which anchors enter the losses.
    pub sample: SampleConfig,
    /// The box loss.
    pub loss: BoxLossConfig,
    /// Proposals in training.
    pub train: ProposalConfig,
    /// Proposals in inference.
    pub test: ProposalConfig,
    /// Non-maximum suppression of proposals, per level: IoU above this is a duplicate.
    pub nms: f64,
}

impl Default for RpnConfig {
    fn default() -> Self {
        Self {
            convs: 1,
            matching: MatchConfig { positive: 0.7, negative: 0.3, ..MatchConfig::default() },
            sample: SampleConfig { count: 256, positive: 0.5 },
            loss: BoxLossConfig::default(),
            train: ProposalConfig { top_k: 2000, keep: 1000 },
            test: ProposalConfig { top_k: 1000, keep: 1000 },
            nms: 0.7,
        }
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

/// Box regression of sampled anchors or proposals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BoxLossConfig {
    /// The box loss.
    #[serde(rename = "box")]
    pub kind: BoxLoss,
    /// Smooth L1: where it turns from square to linear; 0: nowhere, it is L1.
    pub beta: f64,
    /// Its factor.
    pub box_weight: f64,
    /// What its sum is divided by.
    pub normalizer: SampleNormalizer,
}

impl Default for BoxLossConfig {
    fn default() -> Self {
        Self { kind: BoxLoss::L1, beta: 1.0 / 9.0, box_weight: 1.0, normalizer: SampleNormalizer::Sampled }
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

/// Regions of interest: pooling, box head, assignment and losses (Girshick, 2015; He et al., 2017, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoiConfig {
    /// Bins along each side of a region for the box head.
    pub pool: i64,
    /// RoIAlign: sampling points along each side of a bin; 0: one per pixel of the map, begun ones included.
    pub sampling_ratio: u32,
    /// RoIAlign: a pixel's value belongs to its centre (detectron2's `aligned`); false: to its corner, as in older code.
    pub aligned: bool,
    /// √area, in pixels, of regions that are pooled from `canonical_level`.
    pub canonical_size: f64,
    /// The pyramid level for regions of `canonical_size`; half as large is one level finer.
    pub canonical_level: i64,
    /// Width of the box head's two fully connected layers.
    pub channels: i64,
    /// Assignment of proposals to objects.
    #[serde(rename = "match")]
    pub matching: MatchConfig,
    /// Which proposals enter the losses.
    pub sample: SampleConfig,
    /// The objects themselves are proposals too, in training.
    pub add_objects: bool,
    /// Factors of the box deltas dx, dy, dw, dh.
    pub box_weights: [f32; 4],
    /// The box loss.
    pub loss: BoxLossConfig,
}

impl Default for RoiConfig {
    fn default() -> Self {
        Self {
            pool: 7,
            sampling_ratio: 2,
            aligned: true,
            canonical_size: 224.0,
            canonical_level: 4,
            channels: 1024,
            matching: MatchConfig { positive: 0.5, negative: 0.5, low_quality: false, ..MatchConfig::default() },
            sample: SampleConfig { count: 512, positive: 0.25 },
            add_objects: true,
            box_weights: [10.0, 10.0, 5.0, 5.0],
            loss: BoxLossConfig::default(),
        }
    }
}

/// The mask head (He et al., 2017, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaskHeadConfig {
    /// 3×3 convolutions before the one that doubles the resolution.
    pub convs: i64,
    /// Their width.
    pub channels: i64,
    /// Bins along each side of a region; masks have twice as many pixels.
    pub pool: i64,
    /// What masks learn.
    pub targets: MaskTargets,
    /// Factor of the mask loss.
    pub weight: f64,
    /// How masks are put into their image.
    pub paste: PasteKind,
    /// Probability above which a pixel is of the object.
    pub threshold: f64,
}

impl Default for MaskHeadConfig {
    fn default() -> Self {
        Self {
            convs: 4,
            channels: 256,
            pool: 14,
            targets: MaskTargets::Raster,
            weight: 1.0,
            paste: PasteKind::Centres,
            threshold: 0.5,
        }
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
