//! Reading configs of classifiers: as [`super::read`] does those of detectors.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};

use super::read::{apply, check_keys, merge, presets};
use super::{ClassifyConfig, DataConfig, RandAugmentConfig};

/// The files of `configs/` that are of classifiers, built into the program: (name, text).
const PRESETS: &[(&str, &str)] = presets![
    "pvig_ti_300e_imagenet",
    "pvig_s_300e_imagenet",
    "pvig_m_300e_imagenet",
    "pvig_b_300e_imagenet",
    "vig_ti_300e_imagenet",
    "vig_s_300e_imagenet",
    "vig_b_300e_imagenet",
    "pvig_ti_small_images",
];

impl ClassifyConfig {
    /// Names of the classifiers' configs built into the program.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// A config built into the program, with changes (see [`super::Config::from_json_with`]).
    pub fn preset(name: &str, changes: &[String]) -> Result<Self> {
        let Some((_, text)) = PRESETS.iter().find(|(preset, _)| *preset == name) else {
            bail!("there is no preset `{name}`; there are {}", Self::preset_names().collect::<Vec<_>>().join(", "));
        };
        Self::from_json_with(text, changes).with_context(|| format!("preset {name}"))
    }

    /// What a model is trained and tested with when no config is named: its ImageNet recipe. ResNets take that of the ViGs, without stochastic depth,
    /// which they lack, and with torchvision's evaluation: ImageNet's mean and deviation, 224 of 256 pixels, bilinear.
    pub fn of_model(model: &str, changes: &[String]) -> Result<Self> {
        let name = format!("{model}_300e_imagenet");
        if Self::preset_names().any(|preset| preset == name) {
            return Self::preset(&name, changes);
        }
        let own = match model.starts_with("resnet") {
            true => {
                let imagenet = DataConfig::default();
                json!({
                    "model": { "backbone": { "name": model, "drop_path": 0.0 } },
                    "data": { "mean": imagenet.mean, "std": imagenet.std, "crop": 0.875, "interpolation": "bilinear" },
                })
            }
            false => json!({ "model": { "backbone": { "name": model } } }),
        };
        Self::from_json_with(&own.to_string(), changes)
    }

    /// A config from a file, or from a preset's name where no such file exists, with changes.
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

    /// A config from JSON text, laid over the defaults, then changed by `key.path=value` items
    /// (see [`super::Config::from_json_with`]).
    pub fn from_json_with(text: &str, changes: &[String]) -> Result<Self> {
        let file: Value = serde_json::from_str(text).context("is not JSON")?;
        ensure!(file.is_object(), "must be a JSON object with the keys model, data, train, checkpoint");
        if let Some(detector) = file.pointer("/model/detector") {
            bail!("is a config of the detector {detector}, not of a classifier: train_det takes it");
        }
        let mut full = Self::default();
        full.data.rand_augment = Some(RandAugmentConfig::default());
        let schema = serde_json::to_value(full)?;
        check_keys(&file, &schema, "")?;
        let mut value = serde_json::to_value(Self::default())?;
        merge(&mut value, file);
        for change in changes {
            apply(&mut value, &schema, change)?;
        }
        let config: Self = serde_path_to_error::deserialize(&value)
            .map_err(|error| anyhow::anyhow!("{}: {}", error.path(), error.inner()))?;
        config.check()?;
        Ok(config)
    }

    /// The whole config as readable JSON.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Interpolation;

    fn error(text: &str, changes: &[&str]) -> String {
        let changes: Vec<String> = changes.iter().map(|s| s.to_string()).collect();
        format!("{:#}", ClassifyConfig::from_json_with(text, &changes).unwrap_err())
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let text = error(r#"{"data": {"mixupp": 1}}"#, &[]);
        assert!(text.contains("data.mixupp") && text.contains("`data.mixup`"), "{text}");
        let text = error("{}", &["erase.probabilty=1"]);
        assert!(text.contains("data.erase.probability"), "{text}");
        let text = error(r#"{"model": {"detector": "retinanet"}}"#, &[]);
        assert!(text.contains("train_det"), "{text}");
    }

    #[test]
    fn values_that_cannot_work_are_named() {
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
            let text = error("{}", &[change]);
            assert!(text.contains(key), "{change}: {text}");
        }
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

    /// torchvision's `presets.ImageClassification` of resnet18 and resnet50: 224 of 256 pixels, bilinear, ImageNet's mean and deviation.
    #[test]
    fn resnets_are_tested_as_torchvision_does() {
        let config = ClassifyConfig::of_model("resnet50", &["data.flip=0".into()]).unwrap();
        let d = &config.data;
        assert_eq!((d.mean, d.std), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]));
        assert_eq!((f64::from(d.size) / d.crop, d.interpolation), (256.0, Interpolation::Bilinear));
        assert_eq!((config.model.backbone.drop_path, d.flip), (0.0, 0.0));
    }

    #[test]
    fn presets_read_themselves_back() {
        for name in ClassifyConfig::preset_names() {
            let config = ClassifyConfig::preset(name, &[]).unwrap();
            let again = ClassifyConfig::from_json_with(&config.to_json().unwrap(), &[]).unwrap();
            assert_eq!(again, config, "{name}");
        }
    }
}
