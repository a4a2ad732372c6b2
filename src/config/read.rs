//! Reading configs: files, presets, defaults and `--set`.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};

use super::{AnchorConfig, ClassifyConfig, Config, DetectorKind, ShapesConfig};

/// Pairs of name and text of the named files of `configs/`.
macro_rules! presets {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../configs/", $name, ".json")))),*] };
}
pub(super) use presets;

/// The files of `configs/`, built into the program so that a preset works from any folder: (name, text).
const PRESETS: &[(&str, &str)] = presets![
    "retinanet_pvig_ti_shapes",
    "retinanet_pvig_ti_bccd",
    "retinanet_pvig_ti_small",
    "retinanet_pvig_ti_fpn_1x_coco",
    "retinanet_pvig_s_fpn_1x_coco",
    "retinanet_resnet18_fpn_1x_coco",
    "retinanet_resnet50_fpn_1x_coco",
    "retinanet_resnet50_fpn_torchvision",
    "mask_rcnn_pvig_ti_shapes",
    "mask_rcnn_pvig_s_fpn_1x_coco",
    "mask_rcnn_resnet50_fpn_torchvision",
    "faster_rcnn_pvig_ti_bccd",
];

/// What a detector has no use for: such keys are unknown in its configs.
fn unused(detector: DetectorKind) -> &'static [&'static str] {
    match detector {
        DetectorKind::Retinanet => &["rpn", "roi", "mask", "mask_head"],
        DetectorKind::MaskRcnn => &["head", "match", "loss", "fpn.p6", "test.top_k"],
    }
}

impl Config {
    /// All defaults of a detector: mmdetection's 1× COCO settings (see the design's table of detectors).
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

    /// Names of the configs built into the program.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// A config built into the program, with changes (see [`Config::from_json_with`]).
    pub fn preset(name: &str, changes: &[String]) -> Result<Self> {
        let Some((_, text)) = PRESETS.iter().find(|(preset, _)| *preset == name) else {
            bail!("there is no preset `{name}`; there are {}", Self::preset_names().collect::<Vec<_>>().join(", "));
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
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read config {}", path.display()))?;
        Self::from_json_with(&text, changes).with_context(|| format!("config {}", path.display()))
    }

    /// A config from JSON text, laid over the defaults of its detector, then changed by `key.path=value` items.
    ///
    /// The key may be shortened to its last part where only one key ends so; the value is JSON, or else a plain string.
    pub fn from_json_with(text: &str, changes: &[String]) -> Result<Self> {
        let file: Value = serde_json::from_str(text).context("is not JSON")?;
        ensure!(file.is_object(), "must be a JSON object with the keys model, data, train, checkpoint");
        ensure!(
            file.pointer("/data/mixup").is_none() && file.pointer("/data/train/folder").is_none(),
            "is a config of a classifier, not of a detector: train_cls takes it"
        );
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
        let config: Self = serde_path_to_error::deserialize(&value)
            .map_err(|error| anyhow::anyhow!("{}: {}", error.path(), error.inner()))?;
        config.check()?;
        Ok(config)
    }

    /// The config in the metadata of weights: a detector's, or of a classifier's its backbone and what its images are normalised with.
    pub fn of_weights(text: &str, changes: &[String]) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("is not JSON")?;
        if value.pointer("/data/mixup").is_none() {
            return Self::from_json_with(text, changes);
        }
        let part = |key: &str| value.pointer(key).cloned().unwrap_or(Value::Null);
        let own = json!({
            "model": { "backbone": part("/model/backbone") },
            "data": { "mean": part("/data/mean"), "std": part("/data/std"), "exif": part("/data/exif") },
        });
        Self::from_json_with(&own.to_string(), changes)
    }

    /// What weights of a classifier that say nothing of themselves are used with, as the published ones: the model, without stochastic depth, and
    /// the mean and deviation that its images are normalised with, of [`ClassifyConfig::of_model`].
    pub fn of_published(model: &str, changes: &[String]) -> Result<Self> {
        let mut own = ClassifyConfig::of_model(model, &[])?;
        own.model.backbone.drop_path = 0.0;
        Self::of_weights(&own.to_json()?, changes)
    }

    /// The whole config as readable JSON.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.to_value()?)? + "\n")
    }

    /// The config as a JSON object, with what its detector uses.
    pub fn to_value(&self) -> Result<Value> {
        let mut value = serde_json::to_value(self)?;
        for path in unused(self.model.detector) {
            let (section, key) = path.split_once('.').map_or(("/model", *path), |(section, key)| (section, key));
            let pointer = if section.starts_with('/') { section.to_string() } else { format!("/model/{section}") };
            if let Some(Value::Object(section)) = value.pointer_mut(&pointer) {
                section.remove(key);
            }
        }
        Ok(value)
    }
}

/// Every key there is, with null where a value is optional or free.
fn schema(detector: DetectorKind) -> Result<Value> {
    let mut full = Config::defaults(detector);
    full.data.builtin = Some(ShapesConfig::default());
    full.to_value()
}

/// Refuses the first key of `value` that `schema` lacks, naming the nearest.
pub(super) fn check_keys(value: &Value, schema: &Value, path: &str) -> Result<()> {
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
pub(super) fn merge(base: &mut Value, over: Value) {
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

pub(super) fn apply(value: &mut Value, schema: &Value, change: &str) -> Result<()> {
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
                // The key may be shortened, so it is compared with every end of every path.
                let distance = |path: &String| {
                    let ends = path.match_indices('.').map(|(dot, _)| &path[dot + 1..]);
                    ends.chain([path.as_str()]).map(|end| strsim::damerau_levenshtein(key, end)).min()
                };
                let close = all.iter().min_by_key(|path| distance(path)).cloned().unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::super::{HeadNorm, TrainConfig};
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
        let text = error("{}", &["test.nsm=1"]);
        assert!(text.contains("model.test.nms"), "{text}");
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
        let classifiers = super::super::ClassifyConfig::preset_names();
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
        for (name, text) in PRESETS {
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
        let classifier = crate::config::ClassifyConfig::of_model("pvig_b", &[]).unwrap().to_json().unwrap();
        assert!(error(&classifier, &[]).contains("train_cls takes it"));
        let config = Config::of_weights(&classifier, &["data.flip=0".into()]).unwrap();
        assert_eq!((config.model.backbone.name.as_str(), config.model.backbone.drop_path), ("pvig_b", 0.3));
        assert_eq!((config.data.mean, config.data.std, config.data.flip), ([0.5; 3], [0.5; 3], 0.0));
        let detector = Config::preset("retinanet_pvig_ti_bccd", &[]).unwrap();
        assert_eq!(Config::of_weights(&detector.to_json().unwrap(), &[]).unwrap(), detector);
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
}
