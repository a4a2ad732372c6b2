//! Reading configs: files, presets and defaults, for every kind of experiment.

use std::path::Path;

use anyhow::{anyhow, bail, ensure, Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use super::changes::{apply, check_keys, merge};
use super::{
    AnchorConfig, CheckpointConfig, ClassifyConfig, Config, DataConfig, DetectorKind, RandAugmentConfig, ShapesConfig,
    TrainConfig,
};

/// Pairs of name and text of the named files of `configs/`, built into the program so that a preset works from any
/// folder.
macro_rules! presets {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../configs/", $name, ".json")))),*] };
}

/// The key that says what a config is of.
const TASK: &str = "task";

/// What a config is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// A detector: [`Config`].
    Detection,
    /// A classifier: [`ClassifyConfig`].
    Classification,
}

impl Task {
    /// What a config says that it is of; `None`: nothing in it tells.
    ///
    /// # Errors
    /// If its `task` is none that there is.
    pub fn of(config: &Value) -> Result<Option<Self>> {
        match config.get(TASK) {
            Some(task) => match Self::deserialize(task) {
                Ok(task) => Ok(Some(task)),
                Err(_) => bail!("task must be \"detection\" or \"classification\", not {task}"),
            },
            // Configs from before the key have what only theirs have.
            None if config.pointer("/model/detector").is_some() => Ok(Some(Self::Detection)),
            None if ["/data/cutmix", "/data/train/folder"].iter().any(|key| config.pointer(key).is_some()) => {
                Ok(Some(Self::Classification))
            }
            None => Ok(None),
        }
    }

    /// (what it is of, the program that trains it).
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Detection => ("a detector", "train_det"),
            Self::Classification => ("a classifier", "train_cls"),
        }
    }
}

/// A config: one file is one experiment. Here is how all kinds of them are read and written.
pub trait Experiment: Clone + PartialEq + Serialize + DeserializeOwned {
    /// What it is of.
    const TASK: Task;
    /// Those built into the program: (name, text).
    const PRESETS: &'static [(&'static str, &'static str)];

    /// All defaults for a file with this content.
    ///
    /// # Errors
    /// If a value that decides about defaults is none that there is.
    fn defaults_of(file: &Value) -> Result<Self>;

    /// Gives every optional section a value, so that its keys are known.
    fn fill(&mut self);

    /// Keys that this experiment has no use for: they are unknown in its files.
    fn unused(&self) -> Vec<&'static str>;

    /// Refuses values that no run could work with.
    ///
    /// # Errors
    /// Names the key.
    fn check(&self) -> Result<()>;

    /// Optimisation.
    fn train(&self) -> &TrainConfig;

    /// What is written, and how often.
    fn checkpoint(&self) -> &CheckpointConfig;

    /// Names of the configs built into the program.
    fn preset_names() -> impl Iterator<Item = &'static str> {
        Self::PRESETS.iter().map(|(name, _)| *name)
    }

    /// A config built into the program, with changes (see [`Experiment::from_json_with`]).
    ///
    /// # Errors
    /// If there is none of this name, or a change does not fit.
    fn preset(name: &str, changes: &[String]) -> Result<Self> {
        let Some((_, text)) = Self::PRESETS.iter().find(|(preset, _)| *preset == name) else {
            bail!("there is no preset `{name}`; there are {}", Self::preset_names().collect::<Vec<_>>().join(", "));
        };
        Self::from_json_with(text, changes).with_context(|| format!("preset {name}"))
    }

    /// A config from a file, or from a preset's name where no such file exists, with changes
    /// (see [`Experiment::from_json_with`]).
    ///
    /// # Errors
    /// Names the file, and what is wrong with it.
    fn load(path: &Path, changes: &[String]) -> Result<Self> {
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
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read config {}", path.display()))?;
        Self::from_json_with(&text, changes).with_context(|| format!("config {}", path.display()))
    }

    /// A config from JSON text, laid over the defaults, then changed by `key.path=value` items.
    ///
    /// The key may be shortened to its last part where only one key ends so; the value is JSON, or else a plain string.
    ///
    /// # Errors
    /// Text that is not JSON or of another task, unknown keys (the nearest is named), values that cannot work.
    fn from_json_with(text: &str, changes: &[String]) -> Result<Self> {
        let mut file: Value = serde_json::from_str(text).context("is not JSON")?;
        ensure!(file.is_object(), "must be a JSON object with the keys task, model, data, train, checkpoint");
        if let Some(other) = Task::of(&file)?.filter(|task| *task != Self::TASK) {
            let ((is, program), (not, _)) = (other.words(), Self::TASK.words());
            bail!("is a config of {is}, not of {not}: {program} takes it");
        }
        file.as_object_mut().and_then(|file| file.shift_remove(TASK));
        let defaults = Self::defaults_of(&file)?;
        let mut value = serde_json::to_value(&defaults)?;
        let mut whole = defaults;
        whole.fill();
        let schema = whole.keys()?;
        check_keys(&file, &schema, "")?;
        merge(&mut value, file);
        for change in changes {
            apply(&mut value, &schema, change)?;
        }
        let config: Self =
            serde_path_to_error::deserialize(&value).map_err(|error| anyhow!("{}: {}", error.path(), error.inner()))?;
        config.check()?;
        Ok(config)
    }

    /// The sections with the keys that this experiment has a use for.
    #[doc(hidden)]
    fn keys(&self) -> Result<Value> {
        let mut value = serde_json::to_value(self)?;
        for path in self.unused() {
            let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
            let section = section.split('.').try_fold(&mut value, |value, key| value.get_mut(key));
            section.and_then(Value::as_object_mut).and_then(|section| section.shift_remove(key));
        }
        Ok(value)
    }

    /// The config as a JSON object: what it is of, and all that it uses.
    ///
    /// # Errors
    /// None that is known.
    fn to_value(&self) -> Result<Value> {
        let mut object = Map::from_iter([(TASK.to_string(), serde_json::to_value(Self::TASK)?)]);
        if let Value::Object(sections) = self.keys()? {
            object.extend(sections);
        }
        Ok(Value::Object(object))
    }

    /// The whole config as readable JSON.
    ///
    /// # Errors
    /// None that is known.
    fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.to_value()?)? + "\n")
    }
}

impl Experiment for Config {
    const TASK: Task = Task::Detection;
    const PRESETS: &'static [(&'static str, &'static str)] = presets![
        "retinanet_pvig_n_small",
        "retinanet_pvig_n_shapes",
        "retinanet_pvig_ti_shapes",
        "retinanet_pvig_ti_bccd",
        "retinanet_pvig_ti_small",
        "retinanet_efficientnet_lite0_small",
        "mask_rcnn_efficientnet_lite0_small",
        "retinanet_pvig_ti_fpn_1x_coco",
        "retinanet_pvig_s_fpn_1x_coco",
        "retinanet_resnet18_fpn_1x_coco",
        "retinanet_resnet50_fpn_1x_coco",
        "retinanet_resnet50_fpn_torchvision",
        "retinanet_resnet50_fpn_v2_torchvision",
        "mask_rcnn_pvig_n_shapes",
        "mask_rcnn_pvig_ti_shapes",
        "mask_rcnn_pvig_s_fpn_1x_coco",
        "mask_rcnn_greedyvig_s_fpn_1x_coco",
        "mask_rcnn_resnet50_fpn_torchvision",
        "mask_rcnn_resnet50_fpn_v2_torchvision",
        "faster_rcnn_resnet50_fpn_torchvision",
        "faster_rcnn_resnet50_fpn_v2_torchvision",
        "faster_rcnn_mobilenet_v3_large_fpn_torchvision",
        "faster_rcnn_mobilenet_v3_large_320_fpn_torchvision",
        "faster_rcnn_pvig_ti_bccd",
    ];

    fn defaults_of(file: &Value) -> Result<Self> {
        Ok(Self::defaults(match file.pointer("/model/detector") {
            None => DetectorKind::default(),
            Some(Value::String(name)) => DetectorKind::parse(name)?,
            Some(other) => bail!("model.detector must be a name, not {other}"),
        }))
    }

    fn fill(&mut self) {
        self.data.builtin = Some(ShapesConfig::default());
    }

    fn unused(&self) -> Vec<&'static str> {
        let of_detector: &[&str] = match self.model.detector {
            DetectorKind::Retinanet => &["model.rpn", "model.roi", "model.mask", "model.mask_head"],
            DetectorKind::MaskRcnn => &[
                "model.head",
                "model.match",
                "model.loss",
                "model.fpn.p6",
                "model.fpn.p7_relu",
                "model.test.top_k",
                "model.rpn.match.kind",
                "model.rpn.match.candidates",
                "model.roi.match.kind",
                "model.roi.match.candidates",
            ],
        };
        [of_detector, &TrainConfig::OF_CLASSIFIERS].concat()
    }

    fn check(&self) -> Result<()> {
        self.check_bounds()
    }

    fn train(&self) -> &TrainConfig {
        &self.train
    }

    fn checkpoint(&self) -> &CheckpointConfig {
        &self.checkpoint
    }
}

impl Config {
    /// All defaults of a detector: mmdetection's 1× COCO settings.
    pub fn defaults(detector: DetectorKind) -> Self {
        let mut config = Self::default();
        config.model.detector = detector;
        if detector == DetectorKind::MaskRcnn {
            config.model.mask = true;
            config.model.anchors =
                AnchorConfig { strides: vec![4, 8, 16, 32, 64], base: 8.0, octaves: 1, ..AnchorConfig::default() };
            config.train.lr = 2e-4;
        }
        config
    }

    /// The config in the metadata of weights: a detector's, or of a classifier's its backbone and what its images are
    /// normalised with.
    ///
    /// # Errors
    /// As [`Experiment::from_json_with`].
    pub fn of_weights(config: &Value, changes: &[String]) -> Result<Self> {
        if Task::of(config)? != Some(Task::Classification) {
            return Self::from_json_with(&config.to_string(), changes);
        }
        let part = |key: &str| config.pointer(key).cloned().unwrap_or(Value::Null);
        let own = json!({
            "model": { "backbone": part("/model/backbone") },
            "data": { "mean": part("/data/mean"), "std": part("/data/std"), "exif": part("/data/exif") },
        });
        Self::from_json_with(&own.to_string(), changes)
    }

    /// What weights of a classifier that say nothing of themselves are used with, as the published ones: the model,
    /// without stochastic depth, and the mean and deviation that its images are normalised with, of
    /// [`ClassifyConfig::of_model`].
    ///
    /// # Errors
    /// As [`Experiment::from_json_with`].
    pub fn of_published(model: &str, changes: &[String]) -> Result<Self> {
        let mut own = ClassifyConfig::of_model(model, &[])?;
        own.model.backbone.drop_path = 0.0;
        Self::of_weights(&own.to_value()?, changes)
    }
}

impl Experiment for ClassifyConfig {
    const TASK: Task = Task::Classification;
    const PRESETS: &'static [(&'static str, &'static str)] = presets![
        "pvig_ti_300e_imagenet",
        "pvig_s_300e_imagenet",
        "pvig_m_300e_imagenet",
        "pvig_b_300e_imagenet",
        "vig_ti_300e_imagenet",
        "vig_s_300e_imagenet",
        "vig_b_300e_imagenet",
        "greedyvig_s_300e_imagenet",
        "greedyvig_m_300e_imagenet",
        "greedyvig_b_300e_imagenet",
        "adaptvig_s_300e_imagenet",
        "adaptvig_m_300e_imagenet",
        "adaptvig_b_300e_imagenet",
        "pvig_ti_small_images",
    ];

    fn defaults_of(_: &Value) -> Result<Self> {
        Ok(Self::default())
    }

    fn fill(&mut self) {
        self.data.rand_augment = Some(RandAugmentConfig::default());
    }

    fn unused(&self) -> Vec<&'static str> {
        TrainConfig::OF_DETECTORS.to_vec()
    }

    fn check(&self) -> Result<()> {
        self.check_bounds()
    }

    fn train(&self) -> &TrainConfig {
        &self.train
    }

    fn checkpoint(&self) -> &CheckpointConfig {
        &self.checkpoint
    }
}

impl ClassifyConfig {
    /// What a model is trained and tested with when no config is named: its ImageNet recipe. ResNets and MobileNets
    /// take that of the ViGs, without stochastic depth, which they lack, and with torchvision's evaluation: ImageNet's
    /// mean and deviation, 224 of 256 pixels, bilinear; and MobileNets with their own epsilon of norms. The backbones
    /// that the ViG paper compares with take it with ImageNet's mean and deviation, and their authors' crops.
    /// EfficientNet-Lites take it with their authors' sizes, pixels ((x − 127) / 128), epsilon and evaluation: a
    /// central crop that leaves a rim of 32 pixels of the scaled image, bicubic.
    ///
    /// # Errors
    /// As [`Experiment::from_json_with`].
    pub fn of_model(model: &str, changes: &[String]) -> Result<Self> {
        let name = format!("{model}_300e_imagenet");
        if Self::preset_names().any(|preset| preset == name) {
            return Self::preset(&name, changes);
        }
        let mut own = json!({ "model": { "backbone": { "name": model } } });
        if model.starts_with("mobilenet") {
            own["model"]["backbone"]["norm_eps"] = json!(1e-3);
        }
        let DataConfig { mean, std, .. } = DataConfig::default();
        let crop = match model {
            _ if model.starts_with("poolformer_m") => Some(0.95),
            _ if model.starts_with("poolformer_s") => Some(0.9),
            _ => ["swin", "pvt", "cyclemlp"].iter().any(|family| model.starts_with(family)).then_some(0.875),
        };
        if let Some(crop) = crop {
            own["data"] = json!({ "mean": mean, "std": std, "crop": crop });
        }
        if ["resnet", "resnext", "mobilenet"].iter().any(|family| model.starts_with(family)) {
            own["model"]["backbone"]["drop_path"] = json!(0.0);
            own["data"] = json!({ "mean": mean, "std": std, "crop": 0.875, "interpolation": "bilinear" });
        }
        let lite = match model {
            "efficientnet_lite0" => Some(224),
            "efficientnet_lite1" => Some(240),
            "efficientnet_lite2" => Some(260),
            _ => None,
        };
        if let Some(size) = lite {
            own["model"]["backbone"]["norm_eps"] = json!(1e-3);
            own["model"]["backbone"]["drop_path"] = json!(0.2);
            let (mean, std, crop) = ([127.0 / 255.0; 3], [128.0 / 255.0; 3], f64::from(size) / f64::from(size + 32));
            own["data"] = json!({ "size": size, "crop": crop, "mean": mean, "std": std });
        }
        Self::from_json_with(&own.to_string(), changes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Interpolation;
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
    fn a_wrong_value_is_named() {
        let text = error(r#"{"model": {"head": {"convs": "four"}}}"#, &[]);
        assert!(text.contains("model.head.convs"), "{text}");
        let text = error("{}", &["train.lr=-1"]);
        assert!(text.contains("train.lr"), "{text}");
        for change in [
            "model.loss.beta=-1",
            "model.loss.gamma=-0.5",
            "model.backbone.norm_eps=-1e-5",
            "train.betas=[0.9,1]",
            "train.momentum=1.5",
            "train.threads=4000000000",
            "data.workers=4000000000",
            "data.size=[4294967295,4294967295]",
            "data.test_size=[9,8]",
            "data.pad=4294967295",
            "data.scale=[1,1e9]",
        ] {
            let text = error("{}", &[change]);
            assert!(text.contains(change.split_once('=').unwrap().0), "{change}: {text}");
        }
        let text = error(r#"{"model": {"detector": "mask_rcnn"}}"#, &["model.roi.loss.beta=-1"]);
        assert!(text.contains("model.roi.loss.beta"), "{text}");
        // Smooth L1 that is linear from 0 on: L1.
        assert!(Config::from_json_with("{}", &["model.loss.beta=0".into()]).is_ok());
        let text = error(r#"{"model": {"detector": "yolo"}}"#, &[]);
        assert!(text.contains("yolo") && text.contains("retinanet"), "{text}");
    }

    #[test]
    fn every_file_of_configs_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|name| name.strip_suffix(".json").map(String::from))
            .collect();
        let classifiers = ClassifyConfig::preset_names();
        let mut built_in: Vec<String> = Config::preset_names().chain(classifiers).map(String::from).collect();
        files.sort();
        built_in.sort();
        assert_eq!(files, built_in);
    }

    /// A reader of a config need not know the defaults: what decides the result is written in it.
    #[test]
    fn configs_write_out_the_experiment() {
        const WRITTEN: [&str; 31] = [
            "model.detector",
            "model.backbone.name",
            "model.backbone.frozen_stages",
            "model.backbone.freeze_norms",
            "model.backbone.norm_eps",
            "model.fpn.channels",
            "model.anchors.strides",
            "model.anchors.base",
            "model.anchors.octaves",
            "model.anchors.ratios",
            "model.test.score",
            "model.test.nms",
            "model.test.max_detections",
            "data.train.images",
            "data.train.annotations",
            "data.val.images",
            "data.val.annotations",
            "data.size",
            "data.pad",
            "data.flip",
            "data.scale",
            "data.mean",
            "data.std",
            "train.optimizer",
            "train.lr",
            "train.weight_decay",
            "train.batch_size",
            "train.epochs",
            "train.warmup_iters",
            "train.schedule",
            "train.seed",
        ];
        const RETINANET: [&str; 14] = [
            "model.fpn.p6",
            "model.head.convs",
            "model.head.channels",
            "model.head.norm",
            "model.head.init",
            "model.head.prior",
            "model.match.positive",
            "model.match.negative",
            "model.match.low_quality",
            "model.loss.alpha",
            "model.loss.gamma",
            "model.loss.box",
            "model.loss.box_weight",
            "model.loss.normalizer",
        ];
        const MASK_RCNN: [&str; 21] = [
            "model.mask",
            "model.rpn.match.positive",
            "model.rpn.match.negative",
            "model.rpn.sample.count",
            "model.rpn.sample.positive",
            "model.rpn.loss.box",
            "model.rpn.loss.normalizer",
            "model.rpn.train.top_k",
            "model.rpn.train.keep",
            "model.rpn.test.top_k",
            "model.rpn.test.keep",
            "model.rpn.nms",
            "model.roi.pool",
            "model.roi.sampling_ratio",
            "model.roi.aligned",
            "model.roi.channels",
            "model.roi.match.positive",
            "model.roi.sample.count",
            "model.roi.sample.positive",
            "model.roi.loss.box",
            "model.roi.loss.normalizer",
        ];
        for (name, text) in Config::PRESETS {
            let file: Value = serde_json::from_str(text).unwrap();
            let more = if file["model"]["detector"] == "mask_rcnn" { &MASK_RCNN[..] } else { &RETINANET };
            let lacks = |key: &&&str| file.pointer(&format!("/{}", key.replace('.', "/"))).is_none();
            let missing: Vec<&&str> = WRITTEN.iter().chain(more).filter(lacks).collect();
            assert!(missing.is_empty(), "{name} lacks {missing:?}");
        }
    }

    #[test]
    fn the_coco_configs_of_one_family_differ_in_the_backbone_only() {
        let of = |name: &str| Config::preset(&format!("retinanet_{name}_fpn_1x_coco"), &[]).unwrap();
        for (one, other) in [("pvig_ti", "pvig_s"), ("resnet18", "resnet50")] {
            let mut renamed = of(one);
            renamed.model.backbone.name = other.into();
            assert_eq!(renamed, of(other));
        }
    }

    #[test]
    fn a_classifiers_config_is_none_of_a_detector_but_has_its_backbone() {
        let classifier = ClassifyConfig::of_model("pvig_b", &[]).unwrap().to_value().unwrap();
        assert!(error(&classifier.to_string(), &[]).contains("train_cls takes it"));
        let config = Config::of_weights(&classifier, &["data.flip=0".into()]).unwrap();
        assert_eq!((config.model.backbone.name.as_str(), config.model.backbone.drop_path), ("pvig_b", 0.3));
        assert_eq!((config.data.mean, config.data.std, config.data.flip), ([0.5; 3], [0.5; 3], 0.0));
        let detector = Config::preset("retinanet_pvig_ti_bccd", &[]).unwrap();
        assert_eq!(Config::of_weights(&detector.to_value().unwrap(), &[]).unwrap(), detector);
        let published = |model: &str| Config::of_published(model, &["data.exif=true".into()]).unwrap();
        assert_eq!((published("vig_b").data.mean, published("vig_b").data.std), ([0.5; 3], [0.5; 3]));
        assert_eq!((published("pvig_b").model.backbone.drop_path, published("pvig_b").data.exif), (0.0, true));
        assert_eq!(published("resnet18").data.mean, detector.data.mean);
    }

    #[test]
    fn a_detector_knows_its_own_keys_only() {
        let text = error("{}", &["model.rpn.nms=0.5"]);
        assert!(text.contains("model.rpn"), "{text}");
        let text = error(r#"{"model": {"detector": "mask_rcnn", "head": {"convs": 2}}}"#, &[]);
        assert!(text.contains("model.head"), "{text}");
        let of = |change: &str| {
            Config::from_json_with(r#"{"model": {"detector": "mask_rcnn"}}"#, &[change.to_string()]).unwrap()
        };
        assert!(!of("mask=false").model.mask && of("mask=true").model.mask);
        assert_eq!(of("sampling_ratio=0").model.roi.sampling_ratio, 0);
        let text = error(r#"{"model": {"detector": "mask_rcnn", "rpn": {"match": {"positive": 2}}}}"#, &[]);
        assert!(text.contains("model.rpn.match.positive"), "{text}");
    }

    #[test]
    fn presets_are_whole_and_a_config_reads_itself_back() {
        for name in Config::preset_names() {
            let config = Config::preset(name, &[]).unwrap();
            assert_eq!(Config::from_json_with(&config.to_json().unwrap(), &[]).unwrap(), config, "{name}");
        }
    }

    fn classifier_error(text: &str, changes: &[&str]) -> String {
        let changes: Vec<String> = changes.iter().map(|s| s.to_string()).collect();
        format!("{:#}", ClassifyConfig::from_json_with(text, &changes).unwrap_err())
    }

    #[test]
    fn an_unknown_key_of_a_classifier_names_the_nearest() {
        let text = classifier_error(r#"{"data": {"mixupp": 1}}"#, &[]);
        assert!(text.contains("data.mixupp") && text.contains("`data.mixup`"), "{text}");
        let text = classifier_error("{}", &["erase.probabilty=1"]);
        assert!(text.contains("data.erase.probability"), "{text}");
        let text = classifier_error(r#"{"model": {"detector": "retinanet"}}"#, &[]);
        assert!(text.contains("train_det"), "{text}");
    }

    #[test]
    fn values_that_cannot_work_for_a_classifier_are_named() {
        for (change, key) in [
            ("data.scale=[0.5,0.1]", "data.scale"),
            ("data.crop=0", "data.crop"),
            ("train.min_lr=1", "train.min_lr"),
            ("data.repeats=0", "data.repeats"),
            ("rand_augment.magnitude=11", "data.rand_augment.magnitude"),
            ("data.mixup=-1", "data.mixup"),
            ("train.micro_batch=0", "train.micro_batch"),
            ("train.label_smoothing=2", "train.label_smoothing"),
        ] {
            let text = classifier_error("{}", &[change]);
            assert!(text.contains(key), "{change}: {text}");
        }
        let text = classifier_error("{}", &["train.recompute=1", "backbone.name=resnet18"]);
        assert!(text.contains("train.recompute"), "{text}");
        let config = ClassifyConfig::from_json_with("{}", &["data.rand_augment=null".into()]).unwrap();
        assert_eq!(config.data.rand_augment, None);
    }

    /// The paper's Table 3 and section 4.1, and the published evaluation crops.
    #[test]
    fn imagenet_configs_are_the_papers_recipe() {
        for (name, drop_path, crop) in [
            ("pvig_ti", 0.1, 0.9),
            ("pvig_s", 0.1, 0.9),
            ("pvig_m", 0.1, 0.9),
            ("pvig_b", 0.3, 0.95),
            ("vig_ti", 0.1, 0.9),
            ("vig_s", 0.1, 0.9),
            ("vig_b", 0.3, 0.95),
        ] {
            let config = ClassifyConfig::of_model(name, &[]).unwrap();
            let mut expected = ClassifyConfig::default();
            expected.model.backbone.name = name.into();
            expected.model.backbone.drop_path = drop_path;
            expected.data.crop = crop;
            assert_eq!(config, expected, "{name}");
        }
        let (d, t) = (ClassifyConfig::default().data, ClassifyConfig::default().train);
        assert_eq!((t.epochs, t.batch_size, t.lr, t.weight_decay), (300, 1024, 2e-3, 0.05));
        assert_eq!((t.warmup_epochs, t.warmup_lr, t.label_smoothing, t.ema), (20.0, 1e-6, 0.1, Some(0.99996)));
        assert_eq!((d.repeats, d.mixup, d.cutmix, d.mix_switch), (3, 0.8, 1.0, 0.5));
        assert_eq!((d.erase.probability, d.color_jitter, d.size, d.mean), (0.25, 0.4, 224, [0.5; 3]));
    }

    /// main.py of both: 16 GPUs with 128 images each, 2e-3 for 1024 images, and timm's transforms.
    #[test]
    fn imagenet_configs_of_axial_vigs_are_their_authors_recipe() {
        for name in ["greedyvig_s", "greedyvig_m", "greedyvig_b", "adaptvig_s", "adaptvig_m", "adaptvig_b"] {
            let config = ClassifyConfig::of_model(name, &[]).unwrap();
            let mut expected = ClassifyConfig::default();
            expected.model.backbone.name = name.into();
            (expected.train.lr, expected.train.batch_size) = (4e-3, 2048);
            (expected.data.mean, expected.data.std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
            expected.data.interpolation = Interpolation::Random;
            assert_eq!(config, expected, "{name}");
        }
    }

    /// torchvision's `presets.ImageClassification` of resnet18 and resnet50: 224 of 256 pixels, bilinear, ImageNet's
    /// mean and deviation.
    #[test]
    fn resnets_are_tested_as_torchvision_does() {
        let config = ClassifyConfig::of_model("resnet50", &["data.flip=0".into()]).unwrap();
        let d = &config.data;
        assert_eq!((d.mean, d.std), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]));
        assert_eq!((f64::from(d.size) / d.crop, d.interpolation), (256.0, Interpolation::Bilinear));
        assert_eq!((config.model.backbone.drop_path, d.flip), (0.0, 0.0));
    }

    #[test]
    fn classifiers_presets_read_themselves_back() {
        for name in ClassifyConfig::preset_names() {
            let config = ClassifyConfig::preset(name, &[]).unwrap();
            let again = ClassifyConfig::from_json_with(&config.to_json().unwrap(), &[]).unwrap();
            assert_eq!(again, config, "{name}");
        }
    }
}
