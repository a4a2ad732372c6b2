//! The types behind `configs/*.json`: one file is one experiment, complete and readable.
//!
//! A missing key takes the default of its detector ([`Experiment::preset`] for the detector's name gives them all); an
//! unknown key is an error that names the nearest one. `--set key.path=value` changes one value
//! ([`Experiment::from_json_with`]).

use anyhow::{bail, ensure, Result};
use serde::{Deserialize, Serialize};

/// A section of a config: each value with what it does and its default.
macro_rules! section {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$about:meta])* pub $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$about])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

mod backbone;
mod bounds;
mod changes;
mod data;
mod experiment;
mod finetune;
mod pretraining;
mod train;
mod two_stage;

pub use backbone::{BackboneConfig, GraphConvKind, RelativeKind, Search};
pub(crate) use bounds::{MOST_CLASSES, MOST_THREADS};
pub use data::{AffineConfig, CropConfig, DataConfig, OnError, ResizeKind, ScalePer, ShapesConfig, SplitConfig};
pub use experiment::{Experiment, Task};
pub use pretraining::{
    ClassifierConfig, ClassifyConfig, ClassifyDataConfig, EraseConfig, FolderConfig, Interpolation, RandAugmentConfig,
};
pub use train::{CheckpointConfig, LrEvery, OnNan, OptimizerKind, ScheduleKind, TrainConfig};
pub use two_stage::{
    BoxLossConfig, MaskHeadConfig, MaskTargets, PasteKind, ProposalConfig, RoiConfig, RpnConfig, SampleConfig,
    SampleNormalizer,
};

/// One experiment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The network.
    pub model: ModelConfig,
    /// Where the images come from and what happens to them on the way.
    pub data: DataConfig,
    /// Optimisation.
    pub train: TrainConfig,
    /// What is written, and how often.
    pub checkpoint: CheckpointConfig,
}

/// The detector: backbone, pyramid, head, and how boxes are coded, assigned, penalised and selected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Which detector.
    pub detector: DetectorKind,
    /// The feature extractor.
    pub backbone: BackboneConfig,
    /// The feature pyramid.
    pub fpn: FpnConfig,
    /// RetinaNet: the dense head.
    pub head: HeadConfig,
    /// The anchor boxes.
    pub anchors: AnchorConfig,
    /// RetinaNet: assignment of anchors to objects.
    #[serde(rename = "match")]
    pub matching: MatchConfig,
    /// RetinaNet: losses.
    pub loss: LossConfig,
    /// Mask R-CNN: the region proposal network.
    pub rpn: RpnConfig,
    /// Mask R-CNN: regions of interest and the box head.
    pub roi: RoiConfig,
    /// Mask R-CNN: whether there are masks; without them it is Faster R-CNN.
    pub mask: bool,
    /// Mask R-CNN: the mask head.
    pub mask_head: MaskHeadConfig,
    /// What lies beyond an image in a batch of larger ones.
    pub padding: Padding,
    /// Outputs of the classifier where they stand for category ids, gaps included, as in torchvision's models of COCO
    /// (91: ids 0 to 90); null: one for each class of the data, whatever its id.
    pub outputs: Option<i64>,
    /// Selection of detections.
    pub test: TestConfig,
}

impl ModelConfig {
    /// Whether the detector gives masks.
    pub fn has_masks(&self) -> bool {
        self.detector == DetectorKind::MaskRcnn && self.mask
    }
}

/// The detectors that vigdet can build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DetectorKind {
    /// RetinaNet (Lin et al., 2017, "Focal Loss for Dense Object Detection").
    #[default]
    Retinanet,
    /// Mask R-CNN (He et al., 2017); with `"mask": false` Faster R-CNN (Ren et al., 2015) with a feature pyramid.
    MaskRcnn,
}

impl DetectorKind {
    /// The name in configs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retinanet => "retinanet",
            Self::MaskRcnn => "mask_rcnn",
        }
    }

    /// The inverse of [`DetectorKind::name`].
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "retinanet" => Ok(Self::Retinanet),
            "mask_rcnn" => Ok(Self::MaskRcnn),
            _ => bail!("there is no detector `{name}`: vigdet has retinanet and mask_rcnn"),
        }
    }
}

section! {
    /// The feature pyramid.
    pub struct FpnConfig {
        /// Width of every level.
        pub channels: i64 = 256,
        /// RetinaNet: what P6 is computed from, the backbone's last map or P5.
        pub p6: P6Source = P6Source::C5,
        /// RetinaNet: P7 is computed from relu(P6) (RetinaNet paper, torchvision, detectron2); false: from P6 itself
        /// (mmdetection).
        pub p7_relu: bool = true,
        /// Normalisation after each convolution on a stage (torchvision's two-stage `v2` models: `batch`).
        pub norm: ConvNorm = ConvNorm::None,
    }
}

/// Normalisation after the convolutions of a detector's pyramid and of its second stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConvNorm {
    /// None: the convolution has a bias.
    #[default]
    None,
    /// Batch norm in place of the bias. It keeps its running statistics in training where those of the backbone do
    /// (`model.backbone.freeze_norms`).
    Batch,
}

/// What lies beyond an image in a batch of larger ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Pixels like others, as in torchvision, detectron2 and the published ViG: what an image gives depends a little
    /// on who shares its batch.
    #[default]
    Published,
    /// Nothing: it stays zero on every map, is no candidate of a neighbour search, and has no anchors.
    Masked,
}

/// The input of P6's convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum P6Source {
    /// The backbone's last map (RetinaNet paper, mmdetection).
    #[default]
    C5,
    /// The pyramid's P5 (torchvision, detectron2's option).
    P5,
}

section! {
    /// The dense head of RetinaNet.
    pub struct HeadConfig {
        /// 3×3 convolutions before the last one, in each of the two branches.
        pub convs: i64 = 4,
        /// Their width.
        pub channels: i64 = 256,
        /// Normalisation after each: none, or GroupNorm with 32 groups (torchvision's `v2` models).
        pub norm: HeadNorm = HeadNorm::None,
        /// What their weights are drawn from.
        pub init: HeadInit = HeadInit::Normal,
        /// Probability of an object that the classifier's bias starts from.
        pub prior: f64 = 0.01,
    }
}

/// Normalisation in the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadNorm {
    /// None, as in the RetinaNet paper.
    #[default]
    None,
    /// GroupNorm, at most 32 groups.
    Group,
}

/// Start of the head's 3×3 convolutions but the last, which is always the paper's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadInit {
    /// Normal with standard deviation 0.01, as in the RetinaNet paper.
    #[default]
    Normal,
    /// Normal with variance 2 / fan-in (He et al., 2015). Before a norm, which undoes the scale of the weights, the
    /// paper's small ones only make each step of the optimizer a big turn: from scratch, these learn faster.
    FanIn,
}

section! {
    /// The anchor boxes: `octaves × ratios` at each place of each level.
    pub struct AnchorConfig {
        /// Pixels between places, one per level, fine to coarse: they say which stages the pyramid stands on.
        /// RetinaNet's starts at the first (4: C2, for small objects) and has P6 and P7 if there are two more than
        /// stages; the last of Mask R-CNN's is P6, which has no stage.
        pub strides: Vec<i64> = vec![8, 16, 32, 64, 128],
        /// √area of the smallest anchor of a level, in strides.
        pub base: f64 = 4.0,
        /// Sizes per octave: base·2^(i/octaves).
        pub octaves: i64 = 3,
        /// √area of the anchors in pixels, the same at every level, in place of `base` and `octaves` (torchvision's
        /// MobileNet detectors); null: those.
        pub sizes: Option<Vec<f64>> = None,
        /// Height over width.
        pub ratios: Vec<f64> = vec![0.5, 1.0, 2.0],
        /// Fit base (or sizes) and ratios to the objects of the training split when a training starts, as many as are
        /// given here, and keep them in the run's config and weights. `--set model.anchors=auto` is short for it;
        /// `--set` of base, sizes or ratios turns it off.
        pub auto: bool = false,
        /// Round corners to whole pixels (torchvision).
        pub round: bool = false,
        /// Take strides as image size / map size, rounded down (torchvision), rather than `strides`.
        pub strides_from_image: bool = false,
    }
}

impl AnchorConfig {
    /// √area of a level's anchors, in pixels, before rounding.
    pub fn sizes_at(&self, stride: i64) -> Vec<f64> {
        let octave = |i: i64| self.base * stride as f64 * 2f64.powf(i as f64 / self.octaves as f64);
        self.sizes.clone().unwrap_or_else(|| (0..self.octaves).map(octave).collect())
    }

    /// Checks the strides against the pyramid of `levels` levels on stages with these strides, each further level half
    /// as fine as the one before. Anchors that take their strides from the image have none of their own to check but
    /// their number.
    pub fn check_levels(&self, stages: &[i64], levels: usize, backbone: &str) -> Result<()> {
        let last = stages.last().copied().unwrap_or(1);
        let coarser = (1..).map(|level| last << level);
        let expected: Vec<i64> = stages.iter().copied().chain(coarser).take(levels).collect();
        ensure!(
            self.strides.len() == levels && (self.strides_from_image || self.strides == expected),
            "model.anchors.strides is {:?}, but the pyramid on {backbone} has {levels} levels of strides {expected:?}",
            self.strides
        );
        Ok(())
    }
}

section! {
    /// Assignment of anchors to objects.
    pub struct MatchConfig {
        /// RetinaNet: how.
        pub kind: MatchKind = MatchKind::Iou,
        /// ATSS: locations of each level whose anchors are candidates for an object.
        pub candidates: usize = 9,
        /// IoU of at least this: positive.
        pub positive: f64 = 0.5,
        /// Below this: background. In between: ignored.
        pub negative: f64 = 0.4,
        /// Every object keeps its best anchors whatever their overlap.
        pub low_quality: bool = true,
        /// Least overlap of an object with its best anchors for it to keep them so (mmdetection's `min_pos_iou`).
        pub low_quality_iou: f64 = 0.0,
        /// The object keeps its best anchors for itself, also from an object that they overlap more (mmdetection);
        /// false: such an anchor goes to the object that it overlaps most (torchvision, detectron2).
        pub low_quality_wins: bool = false,
        /// An anchor that lies in a crowd region by at least this share of its own area is ignored.
        pub crowd: f64 = 0.5,
    }
}

/// How anchors are assigned to objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchKind {
    /// By intersection over union and thresholds (Ren et al., 2015).
    #[default]
    Iou,
    /// Adaptive training sample selection (Zhang et al., 2020): `candidates` and `crowd` count, the thresholds do not.
    Atss,
}

section! {
    /// Losses.
    pub struct LossConfig {
        /// The classification loss.
        pub class: ClassLoss = ClassLoss::Focal,
        /// Focal loss: weight of positives (1 − alpha for negatives).
        pub alpha: f64 = 0.25,
        /// Focal loss, quality focal loss: exponent.
        pub gamma: f64 = 2.0,
        /// The box loss.
        #[serde(rename = "box")]
        pub box_loss: BoxLoss = BoxLoss::L1,
        /// Smooth L1: where it turns from square to linear; 0: nowhere, it is L1.
        pub beta: f64 = 1.0 / 9.0,
        /// Factor of the box loss.
        pub box_weight: f64 = 1.0,
        /// What the sums are divided by.
        pub normalizer: LossNormalizer = LossNormalizer::Batch,
    }
}

/// Classification losses of dense heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassLoss {
    /// Focal loss (Lin et al., 2017).
    #[default]
    Focal,
    /// Quality focal loss (Li et al., 2020): a positive's score learns the IoU of its box with the object.
    QualityFocal,
}

/// Box regression losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BoxLoss {
    /// Absolute difference of the deltas.
    #[default]
    L1,
    /// Smooth L1 of the deltas.
    SmoothL1,
    /// Generalised IoU (Rezatofighi et al., 2019) of the decoded boxes.
    Giou,
}

/// What a dense detector's losses are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossNormalizer {
    /// Positives of all images that pass through the network at once: `train.micro_batch` of them, as mmdetection's
    /// those of one GPU.
    #[default]
    Batch,
    /// Positives of each image, then the mean over images (torchvision).
    Image,
}

section! {
    /// Selection of detections.
    pub struct TestConfig {
        /// Scores must be above this.
        pub score: f64 = 0.05,
        /// RetinaNet: candidates kept per level.
        pub top_k: i64 = 1000,
        /// Non-maximum suppression, per class: IoU above this is a duplicate.
        pub nms: f64 = 0.5,
        /// Detections kept per image.
        pub max_detections: i64 = 100,
        /// Boxes with a side shorter than this, in pixels, are no candidates; null: 0.01 in two-stage detectors, no
        /// limit in RetinaNet (torchvision).
        pub min_side: Option<f64> = None,
        /// Boxes shrink to a 62nd of an anchor's or proposal's side at most, as they grow to 62 times it at most
        /// (mmdetection); false: they shrink as they like (torchvision, detectron2).
        pub limit_shrinking: bool = false,
        /// When boxes are cut to the image.
        pub clip: ClipKind = ClipKind::BeforeNms,
    }
}

/// When detections are cut to the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipKind {
    /// Before suppression (torchvision, mmdetection, detectron2's two-stage detectors).
    #[default]
    BeforeNms,
    /// After it; what is empty then is dropped (detectron2's RetinaNet).
    AfterNms,
}
