//! Fine-tuning: the config that trained weights go on with on a small set of other images.

use anyhow::{Context, Result};
use serde_json::{json, Value};

use super::{Config, DetectorKind, Experiment, Task};

/// The recipe of each detector: how it trains, and its heads where the weights have none.
fn recipe(detector: DetectorKind) -> &'static str {
    match detector {
        DetectorKind::Retinanet => "retinanet_efficientnet_lite0_small",
        DetectorKind::MaskRcnn => "mask_rcnn_efficientnet_lite0_small",
    }
}

/// What a detector's weights decide: how its images are prepared.
const PREPARATION: [&str; 8] = ["mean", "std", "exif", "size", "test_size", "pad", "resize", "channels"];
/// What a classifier's weights decide: its images were cut to one size.
const NORMALISATION: [&str; 3] = ["mean", "std", "exif"];

impl Config {
    /// The config that weights with the config `own` are fine-tuned with, as a detector of this kind. From weights of
    /// the same detector come the whole model and how images are prepared; from those of a classifier, or of another
    /// detector, the backbone and how images are normalised; all else is the recipe's for small sets. Batch norms keep
    /// their statistics: those of a few images would be worse. `changes` are in `--set`'s form.
    ///
    /// # Errors
    /// As [`Experiment::from_json_with`].
    pub fn finetuned(own: &Value, detector: DetectorKind, changes: &[String]) -> Result<Self> {
        let text = Self::PRESETS.iter().find(|(name, _)| *name == recipe(detector)).map(|(_, text)| *text);
        let mut config: Value = serde_json::from_str(text.context("the recipe is built in")?)?;
        let same = Task::of(own)? == Some(Task::Detection)
            && own.pointer("/model/detector").and_then(Value::as_str) == Some(detector.name());
        let prepared = if same { &PREPARATION[..] } else { &NORMALISATION[..] };
        let values = prepared.iter().filter_map(|key| Some((*key, own.pointer(&format!("/data/{key}"))?)));
        values.for_each(|(key, value)| config["data"][key] = value.clone());
        if same {
            config["model"] = own["model"].clone();
            // The classes are the data's, whatever their ids.
            config["model"]["outputs"] = Value::Null;
        } else if let Some(backbone) = own.pointer("/model/backbone") {
            let frozen = config["model"]["backbone"]["frozen_stages"].take();
            config["model"]["backbone"] = backbone.clone();
            config["model"]["backbone"]["frozen_stages"] = frozen;
        }
        config["model"]["backbone"]["freeze_norms"] = json!(true);
        config["model"]["backbone"]["drop_path"] = json!(0.0);
        Self::from_json_with(&config.to_string(), changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClassifyConfig;

    #[test]
    fn a_classifier_gives_its_backbone_and_normalisation_to_the_recipe() {
        for detector in [DetectorKind::Retinanet, DetectorKind::MaskRcnn] {
            let recipe = Config::preset(recipe(detector), &[]).unwrap();
            let own = |name: &str| ClassifyConfig::of_model(name, &[]).unwrap().to_value().unwrap();
            // The recipe is that of the backbone which anybody can have.
            assert_eq!(Config::finetuned(&own("efficientnet_lite0"), detector, &[]).unwrap(), recipe);
            let other = Config::finetuned(&own("pvig_s"), detector, &["lr=1".into()]).unwrap();
            let (mut backbone, b) = (recipe.model.backbone.clone(), &other.model.backbone);
            (backbone.name, backbone.norm_eps) = ("pvig_s".into(), 1e-5);
            assert_eq!((b, other.data.mean, other.data.size), (&backbone, [0.5; 3], recipe.data.size));
            assert_eq!((other.train.lr, other.train.epochs), (1.0, recipe.train.epochs));
        }
    }

    #[test]
    fn a_detector_gives_its_model_and_how_its_images_are_prepared() {
        let own = Config::preset("retinanet_resnet50_fpn_torchvision", &["mean=[0.1,0.2,0.3]".into()]).unwrap();
        let value = own.to_value().unwrap();
        let config = Config::finetuned(&value, DetectorKind::Retinanet, &[]).unwrap();
        let mut expected = own.model.clone();
        expected.outputs = None;
        (expected.backbone.drop_path, expected.backbone.freeze_norms) = (0.0, true);
        assert_eq!(config.model, expected);
        let d = &config.data;
        assert_eq!((d.mean, d.size, d.resize), (own.data.mean, own.data.size, own.data.resize));
        let recipe = Config::preset(recipe(DetectorKind::Retinanet), &[]).unwrap();
        assert_eq!((config.train, d.color), (recipe.train, recipe.data.color));
        // Of another detector, the backbone alone.
        let other = Config::finetuned(&value, DetectorKind::MaskRcnn, &[]).unwrap();
        assert_eq!((other.model.detector, other.model.backbone.name.as_str()), (DetectorKind::MaskRcnn, "resnet50"));
        assert_eq!((other.data.mean, other.model.fpn.channels), (own.data.mean, 96));
        assert_eq!((other.model.backbone.frozen_stages, other.model.backbone.norm_eps), (1, 0.0));
    }
}
