//! The types behind `configs/*.json`: one file is one experiment, complete and readable.
//!
//! A missing key takes the default of its detector ([`Config::preset`] for the detector's name gives them all); an unknown key is an
//! error that names the nearest one. `--set key.path=value` changes one value ([`Config::from_json_with`]).

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// The dense head.
    pub head: HeadConfig,
    /// The anchor boxes.
    pub anchors: AnchorConfig,
    /// Assignment of anchors to objects.
    #[serde(rename = "match")]
    pub matching: MatchConfig,
    /// Losses.
    pub loss: LossConfig,
    /// Selection of detections.
    pub test: TestConfig,
}

/// The detectors that vigdet can build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DetectorKind {
    /// RetinaNet (Lin et al., 2017, "Focal Loss for Dense Object Detection").
    #[default]
    Retinanet,
}

impl DetectorKind {
    /// The name in configs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retinanet => "retinanet",
        }
    }

    /// The inverse of [`DetectorKind::name`].
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "retinanet" => Ok(Self::Retinanet),
            _ => bail!("there is no detector `{name}`: vigdet has retinanet"),
        }
    }
}

/// The feature extractor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackboneConfig {
    /// pvig_ti, pvig_s, pvig_m, pvig_b, resnet18 or resnet50.
    pub name: String,
    /// Graph convolution: `mr` (max-relative).
    pub conv: GraphConvKind,
    /// Neighbours of each node.
    pub k: i64,
    /// Stochastic depth of the last block; it rises linearly from 0 at the first.
    pub drop_path: f64,
    /// How neighbours are searched and aggregated.
    pub graph: GraphPath,
    /// Relative positions: `published` resizes the published tables, `grid` builds them on the real grid.
    pub relative: RelativeKind,
    /// Number of stages (the stem counts as the first) whose weights do not train.
    pub frozen_stages: i64,
    /// Keep batch norms at their running statistics during training.
    pub freeze_norms: bool,
    /// Epsilon of the batch norms.
    pub norm_eps: f64,
}

impl Default for BackboneConfig {
    fn default() -> Self {
        Self {
            name: "pvig_s".into(),
            conv: GraphConvKind::Mr,
            k: 9,
            drop_path: 0.1,
            graph: GraphPath::Fused,
            relative: RelativeKind::Published,
            frozen_stages: 0,
            freeze_norms: false,
            norm_eps: 1e-5,
        }
    }
}

/// Graph convolutions of the paper's Table 6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphConvKind {
    /// Max-relative graph convolution (Li et al., 2019), the paper's choice.
    #[default]
    Mr,
}

/// How the graph is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphPath {
    /// Search and selection in tiles, max-relative by its arg-max: no [N, M] and no [B, C, N, k] tensor.
    #[default]
    Fused,
    /// Plain tensor operations as in the published code; the measure for the fused path.
    Dense,
}

/// Where the relative position comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelativeKind {
    /// The published tables of the 224-pixel grid, resized by the flattened index.
    #[default]
    Published,
    /// Tables built on the real grid.
    Grid,
}

/// The feature pyramid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FpnConfig {
    /// Width of every level.
    pub channels: i64,
    /// What P6 is computed from (RetinaNet): the backbone's last map, or P5.
    pub p6: P6Source,
}

impl Default for FpnConfig {
    fn default() -> Self {
        Self { channels: 256, p6: P6Source::C5 }
    }
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

/// The dense head of RetinaNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadConfig {
    /// 3×3 convolutions before the last one, in each of the two branches.
    pub convs: i64,
    /// Their width.
    pub channels: i64,
    /// Normalisation after each: none, or GroupNorm with 32 groups (torchvision's `v2` models).
    pub norm: HeadNorm,
    /// Probability of an object that the classifier's bias starts from.
    pub prior: f64,
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self { convs: 4, channels: 256, norm: HeadNorm::None, prior: 0.01 }
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

/// The anchor boxes: `octaves × ratios` at each place of each level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnchorConfig {
    /// Pixels between places, one per level, fine to coarse.
    pub strides: Vec<i64>,
    /// √area of the smallest anchor of a level, in strides.
    pub base: f64,
    /// Sizes per octave: base·2^(i/octaves).
    pub octaves: i64,
    /// Height over width.
    pub ratios: Vec<f64>,
    /// Round corners to whole pixels (torchvision).
    pub round: bool,
    /// Take strides as image size / map size, rounded down (torchvision), rather than `strides`.
    pub strides_from_image: bool,
}

impl Default for AnchorConfig {
    fn default() -> Self {
        Self {
            strides: vec![8, 16, 32, 64, 128],
            base: 4.0,
            octaves: 3,
            ratios: vec![0.5, 1.0, 2.0],
            round: false,
            strides_from_image: false,
        }
    }
}

/// Assignment of anchors to objects by intersection over union.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MatchConfig {
    /// At least this: positive.
    pub positive: f64,
    /// Below this: background. In between: ignored.
    pub negative: f64,
    /// Every object keeps its best anchors whatever their overlap.
    pub low_quality: bool,
    /// An anchor that lies in a crowd region by at least this share of its own area is ignored.
    pub crowd: f64,
}

impl Default for MatchConfig {
    fn default() -> Self {
        Self { positive: 0.5, negative: 0.4, low_quality: true, crowd: 0.5 }
    }
}

/// Losses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Focal loss: weight of positives (1 − alpha for negatives).
    pub alpha: f64,
    /// Focal loss: exponent.
    pub gamma: f64,
    /// The box loss.
    #[serde(rename = "box")]
    pub box_loss: BoxLoss,
    /// Smooth L1: where it turns from square to linear.
    pub beta: f64,
    /// Factor of the box loss.
    pub box_weight: f64,
    /// What the sums are divided by.
    pub normalizer: LossNormalizer,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            alpha: 0.25,
            gamma: 2.0,
            box_loss: BoxLoss::L1,
            beta: 1.0 / 9.0,
            box_weight: 1.0,
            normalizer: LossNormalizer::Batch,
        }
    }
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
    /// Positives of the whole batch (mmdetection).
    #[default]
    Batch,
    /// Positives of each image, then the mean over images (torchvision).
    Image,
}

/// Selection of detections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TestConfig {
    /// Scores must be above this.
    pub score: f64,
    /// Candidates kept per level.
    pub top_k: i64,
    /// Non-maximum suppression, per class: IoU above this is a duplicate.
    pub nms: f64,
    /// Detections kept per image.
    pub max_detections: i64,
}

impl Default for TestConfig {
    fn default() -> Self {
        Self { score: 0.05, top_k: 1000, nms: 0.5, max_detections: 100 }
    }
}

/// Where images come from, and what happens to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folder that the paths below are relative to. Null: it must come from `--data`.
    pub root: Option<PathBuf>,
    /// Built-in data to draw into `root` when it is not there yet. Null: none.
    pub builtin: Option<ShapesConfig>,
    /// Training split.
    pub train: SplitConfig,
    /// Validation split.
    pub val: SplitConfig,
    /// Shorter side, and the most that the longer side may have, in pixels.
    pub size: [u32; 2],
    /// Sides are padded to a multiple of this, in pixels.
    pub pad: u32,
    /// How images are resized.
    pub resize: ResizeKind,
    /// Probability of a left-right flip in training.
    pub flip: f64,
    /// Probability of an upside-down flip in training.
    pub flip_vertical: f64,
    /// Training: the size is multiplied by a random factor of this range, drawn evenly in logarithm; [1, 1] is off.
    pub scale: [f64; 2],
    /// Training: brightness, contrast and saturation change by up to this share; 0 is off.
    pub color: f64,
    /// Channel means (red, green, blue) of images in 0–1.
    pub mean: [f32; 3],
    /// Channel standard deviations.
    pub std: [f32; 3],
    /// Honour the EXIF orientation (torchvision and pycocotools users expect: no).
    pub exif: bool,
    /// Threads that decode and transform ahead of the training step; 0: one per core.
    pub workers: usize,
    /// What an unreadable image does.
    pub on_error: OnError,
    /// Batches of images of like aspect ratio.
    pub group_by_aspect: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            root: None,
            builtin: None,
            train: SplitConfig::coco("train"),
            val: SplitConfig::coco("val"),
            size: [800, 1333],
            pad: 32,
            resize: ResizeKind::Antialias,
            flip: 0.5,
            flip_vertical: 0.0,
            scale: [1.0, 1.0],
            color: 0.0,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            exif: false,
            workers: 0,
            on_error: OnError::Skip,
            group_by_aspect: true,
        }
    }
}

/// One split of a data set in COCO's layout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitConfig {
    /// Folder of the images.
    pub images: PathBuf,
    /// COCO annotation file.
    pub annotations: PathBuf,
    /// Use only the first so many images (of those that the split keeps).
    pub limit: Option<usize>,
}

impl SplitConfig {
    fn coco(split: &str) -> Self {
        Self {
            images: format!("{split}2017").into(),
            annotations: format!("annotations/instances_{split}2017.json").into(),
            limit: None,
        }
    }
}

/// Built-in data (`shapes`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapesConfig {
    /// Images of the training split.
    pub train: usize,
    /// Images of the validation split.
    pub val: usize,
    /// Longer side of the images, in pixels; the shorter varies.
    pub side: u32,
    /// Seed of the training split; the validation split takes another one made from it.
    pub seed: u64,
}

impl Default for ShapesConfig {
    fn default() -> Self {
        Self { train: 1000, val: 200, side: 256, seed: 0 }
    }
}

/// How images are resized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeKind {
    /// Bilinear whose support grows when shrinking (Pillow, detectron2).
    #[default]
    Antialias,
    /// Two-by-two bilinear (torchvision's detection transform, OpenCV).
    Bilinear,
}

/// What an unreadable image does to a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It is named, counted and left out.
    #[default]
    Skip,
    /// It ends the run.
    Stop,
}

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
    /// Images that go through the network at once; gradients add up to a step. Null: as many as `batch_size`.
    pub micro_batch: Option<usize>,
    /// Passes through the training split.
    pub epochs: usize,
    /// Stop after so many steps, whatever `epochs` says.
    pub max_iters: Option<usize>,
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
            epochs: 12,
            max_iters: None,
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

/// The files of `configs/`, built into the program so that a preset works from any folder: (name, text).
const PRESETS: &[(&str, &str)] = &[
    ("retinanet_pvig_s_fpn_1x_coco", include_str!("../configs/retinanet_pvig_s_fpn_1x_coco.json")),
    ("retinanet_pvig_ti_shapes", include_str!("../configs/retinanet_pvig_ti_shapes.json")),
    ("retinanet_pvig_ti_bccd", include_str!("../configs/retinanet_pvig_ti_bccd.json")),
];

impl Config {
    /// All defaults of a detector: mmdetection's 1× COCO settings (see the design's table of detectors).
    pub fn defaults(detector: DetectorKind) -> Self {
        let mut config = Self::default();
        config.model.detector = detector;
        config
    }

    /// Names of the configs built into the program.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// A config built into the program, with changes (see [`Config::from_json_with`]).
    pub fn preset(name: &str, changes: &[String]) -> Result<Self> {
        let Some((_, text)) = PRESETS.iter().find(|(preset, _)| *preset == name) else {
            bail!(
                "there is no preset `{name}`; there are {}",
                Self::preset_names().collect::<Vec<_>>().join(", ")
            );
        };
        Self::from_json_with(text, changes).with_context(|| format!("preset {name}"))
    }

    /// A config from a file, or from a preset's name where no such file exists, with changes (see [`Config::from_json_with`]).
    pub fn load(path: &Path, changes: &[String]) -> Result<Self> {
        if !path.exists() {
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
            if Self::preset_names().any(|name| name == stem) {
                return Self::preset(stem, changes);
            }
            bail!(
                "there is no config {}; presets built in are {}",
                path.display(),
                Self::preset_names().collect::<Vec<_>>().join(", ")
            );
        }
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read config {}", path.display()))?;
        Self::from_json_with(&text, changes).with_context(|| format!("config {}", path.display()))
    }

    /// A config from JSON text, laid over the defaults of its detector, then changed by `key.path=value` items.
    ///
    /// The key may be shortened to its last part where only one key ends so; the value is JSON, or else a plain string.
    pub fn from_json_with(text: &str, changes: &[String]) -> Result<Self> {
        let file: Value = serde_json::from_str(text).context("is not JSON")?;
        ensure!(file.is_object(), "must be a JSON object with the keys model, data, train, checkpoint");
        let detector = match file.pointer("/model/detector") {
            None => DetectorKind::default(),
            Some(Value::String(name)) => DetectorKind::parse(name)?,
            Some(other) => bail!("model.detector must be a name, not {other}"),
        };
        let schema = schema(detector)?;
        check_keys(&file, &schema, "")?;
        let mut value = serde_json::to_value(Self::defaults(detector))?;
        merge(&mut value, file);
        for change in changes {
            apply(&mut value, &schema, change)?;
        }
        let config: Self = serde_path(value)?;
        config.check()?;
        Ok(config)
    }

    /// The whole config as readable JSON.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Values that no run could work with.
    fn check(&self) -> Result<()> {
        let (m, d, t) = (&self.model, &self.data, &self.train);
        let positive = |name: &str, v: f64| {
            ensure!(v.is_finite() && v > 0.0, "{name} must be above 0, not {v}");
            Ok(())
        };
        let share = |name: &str, v: f64| {
            ensure!((0.0..=1.0).contains(&v), "{name} must be between 0 and 1, not {v}");
            Ok(())
        };
        positive("model.backbone.k", m.backbone.k as f64)?;
        ensure!(
            (0.0..1.0).contains(&m.backbone.drop_path),
            "model.backbone.drop_path must be at least 0 and below 1"
        );
        positive("model.fpn.channels", m.fpn.channels as f64)?;
        positive("model.head.channels", m.head.channels as f64)?;
        ensure!(m.head.convs >= 0, "model.head.convs must not be negative");
        ensure!(m.head.prior > 0.0 && m.head.prior < 1.0, "model.head.prior must be between 0 and 1");
        ensure!(!m.anchors.strides.is_empty(), "model.anchors.strides must name a stride for each level");
        m.anchors.strides.iter().try_for_each(|s| positive("model.anchors.strides", *s as f64))?;
        ensure!(!m.anchors.ratios.is_empty(), "model.anchors.ratios must not be empty");
        m.anchors.ratios.iter().try_for_each(|r| positive("model.anchors.ratios", *r))?;
        positive("model.anchors.octaves", m.anchors.octaves as f64)?;
        positive("model.anchors.base", m.anchors.base)?;
        share("model.match.positive", m.matching.positive)?;
        share("model.match.negative", m.matching.negative)?;
        ensure!(
            m.matching.negative <= m.matching.positive,
            "model.match.negative must not be above model.match.positive"
        );
        share("model.loss.alpha", m.loss.alpha)?;
        share("model.test.nms", m.test.nms)?;
        share("model.test.score", m.test.score)?;
        positive("model.test.top_k", m.test.top_k as f64)?;
        positive("model.test.max_detections", m.test.max_detections as f64)?;
        ensure!(
            d.size[0] >= 1 && d.size[0] <= d.size[1],
            "data.size is [shorter side, most of the longer side]; {:?} is not",
            d.size
        );
        positive("data.pad", f64::from(d.pad))?;
        share("data.flip", d.flip)?;
        share("data.flip_vertical", d.flip_vertical)?;
        share("data.color", d.color)?;
        ensure!(
            d.scale[0] > 0.0 && d.scale[0] <= d.scale[1],
            "data.scale is [least, most] factor; {:?} is not",
            d.scale
        );
        d.std.iter().try_for_each(|s| positive("data.std", f64::from(*s)))?;
        positive("train.lr", t.lr)?;
        positive("train.batch_size", t.batch_size as f64)?;
        ensure!(
            t.micro_batch != Some(0),
            "train.micro_batch must be above 0 (null: as many as train.batch_size)"
        );
        ensure!(t.clip_norm.is_none_or(|c| c > 0.0), "train.clip_norm must be above 0 (null: no clipping)");
        ensure!(
            t.ema.is_none_or(|e| (0.0..1.0).contains(&e)),
            "train.ema must be at least 0 and below 1 (null: none)"
        );
        ensure!(t.threads != Some(0), "train.threads must be above 0 (null: one per core)");
        Ok(())
    }
}

/// Every key there is, with null where a value is optional or free.
fn schema(detector: DetectorKind) -> Result<Value> {
    let mut full = Config::defaults(detector);
    full.data.builtin = Some(ShapesConfig::default());
    Ok(serde_json::to_value(full)?)
}

/// Refuses the first key of `value` that `schema` lacks, naming the nearest.
fn check_keys(value: &Value, schema: &Value, path: &str) -> Result<()> {
    let (Value::Object(value), Value::Object(schema)) = (value, schema) else { return Ok(()) };
    for (key, inner) in value {
        let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match schema.get(key) {
            Some(expected) => check_keys(inner, expected, &here)?,
            None => {
                let nearest = nearest(key, schema.keys().map(String::as_str));
                bail!(
                    "unknown key `{here}`; did you mean `{}`?",
                    if path.is_empty() { nearest } else { format!("{path}.{nearest}") }
                );
            }
        }
    }
    Ok(())
}

fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    candidates.min_by_key(|c| strsim::damerau_levenshtein(name, c)).unwrap_or_default().to_string()
}

/// Lays `over` on `base`, object by object.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// All paths of leaves and inner objects, dotted.
fn paths(schema: &Value, prefix: &str, out: &mut Vec<String>) {
    if let Value::Object(map) = schema {
        for (key, inner) in map {
            let here = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            paths(inner, &here, out);
            out.push(here);
        }
    }
}

fn apply(value: &mut Value, schema: &Value, change: &str) -> Result<()> {
    let Some((key, text)) = change.split_once('=') else {
        bail!("--set takes key.path=value, not `{change}`");
    };
    let mut all = Vec::new();
    paths(schema, "", &mut all);
    let full = if all.iter().any(|p| p == key) {
        key.to_string()
    } else {
        let suffix = format!(".{key}");
        let fits: Vec<&String> = all.iter().filter(|p| p.ends_with(&suffix)).collect();
        match fits[..] {
            [one] => one.clone(),
            [] => {
                let last = |p: &str| p.rsplit('.').next().unwrap_or(p).to_string();
                let close = all
                    .iter()
                    .min_by_key(|p| {
                        strsim::damerau_levenshtein(key, p).min(strsim::damerau_levenshtein(key, &last(p)))
                    })
                    .cloned()
                    .unwrap_or_default();
                bail!("--set: unknown key `{key}`; did you mean `{close}`?");
            }
            _ => {
                let names: Vec<&str> = fits.iter().map(|p| p.as_str()).collect();
                bail!("--set: `{key}` could be {}; write the whole key", names.join(" or "));
            }
        }
    };
    let new = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_string()));
    let mut layer = new;
    for part in full.rsplit('.') {
        layer = Value::Object([(part.to_string(), layer)].into_iter().collect());
    }
    check_keys(&layer, schema, "")?;
    merge(value, layer);
    Ok(())
}

/// Reads a config section by section, so that an error can name the section and key.
fn serde_path(value: Value) -> Result<Config> {
    fn section<T: serde::de::DeserializeOwned>(value: &Value, path: &[&str]) -> Result<T> {
        let pointer = format!("/{}", path.join("/"));
        let inner = value.pointer(&pointer).cloned().unwrap_or_else(|| Value::Object(Default::default()));
        let keys = inner.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        serde_json::from_value(inner.clone()).map_err(|error| {
            // Name the key: try each one alone.
            for key in keys {
                let alone = Value::Object([(key.clone(), inner[&key].clone())].into_iter().collect());
                if let Err(error) = serde_json::from_value::<T>(alone) {
                    return anyhow::anyhow!("{}.{key}: {error}", path.join("."));
                }
            }
            anyhow::anyhow!("{}: {error}", path.join("."))
        })
    }
    for part in ["backbone", "fpn", "head", "anchors", "match", "loss", "test"] {
        let path = ["model", part];
        match part {
            "backbone" => drop(section::<BackboneConfig>(&value, &path)?),
            "fpn" => drop(section::<FpnConfig>(&value, &path)?),
            "head" => drop(section::<HeadConfig>(&value, &path)?),
            "anchors" => drop(section::<AnchorConfig>(&value, &path)?),
            "match" => drop(section::<MatchConfig>(&value, &path)?),
            "loss" => drop(section::<LossConfig>(&value, &path)?),
            _ => drop(section::<TestConfig>(&value, &path)?),
        }
    }
    Ok(Config {
        model: section(&value, &["model"])?,
        data: section(&value, &["data"])?,
        train: section(&value, &["train"])?,
        checkpoint: section(&value, &["checkpoint"])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str, changes: &[&str]) -> String {
        let changes: Vec<String> = changes.iter().map(|s| s.to_string()).collect();
        format!("{:#}", Config::from_json_with(text, &changes).unwrap_err())
    }

    #[test]
    fn a_missing_key_takes_its_default() {
        let config = Config::from_json_with(r#"{"model": {"head": {"convs": 2}}}"#, &[]).unwrap();
        assert_eq!(config.model.head.convs, 2);
        assert_eq!(config.model.head.channels, 256);
        assert_eq!(config.train, TrainConfig::default());
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let text = error(r#"{"train": {"weight_decai": 1}}"#, &[]);
        assert!(text.contains("train.weight_decai") && text.contains("train.weight_decay"), "{text}");
        let text = error("{}", &["train.leraning=1"]);
        assert!(text.contains("train.leraning"), "{text}");
    }

    #[test]
    fn set_takes_the_whole_key_or_an_unambiguous_end() {
        let set = |c: &str| Config::from_json_with("{}", &[c.to_string()]).unwrap();
        assert_eq!(set("train.lr=0.5").train.lr, 0.5);
        assert_eq!(set("clip_norm=2").train.clip_norm, Some(2.0));
        assert_eq!(set("model.head.norm=group").model.head.norm, HeadNorm::Group);
        assert_eq!(set("anchors.ratios=[1]").model.anchors.ratios, [1.0]);
        assert_eq!(set("builtin.train=7").data.builtin.unwrap().train, 7);
        let text = error("{}", &["channels=3"]);
        assert!(text.contains("model.fpn.channels") && text.contains("model.head.channels"), "{text}");
    }

    #[test]
    fn a_wrong_value_is_named() {
        let text = error(r#"{"model": {"head": {"convs": "four"}}}"#, &[]);
        assert!(text.contains("model.head.convs"), "{text}");
        let text = error("{}", &["train.lr=-1"]);
        assert!(text.contains("train.lr"), "{text}");
        let text = error(r#"{"model": {"detector": "yolo"}}"#, &[]);
        assert!(text.contains("yolo") && text.contains("retinanet"), "{text}");
    }

    #[test]
    fn presets_are_whole_and_a_config_reads_itself_back() {
        for name in Config::preset_names() {
            let config = Config::preset(name, &[]).unwrap();
            assert_eq!(Config::from_json_with(&config.to_json().unwrap(), &[]).unwrap(), config, "{name}");
        }
    }
}
