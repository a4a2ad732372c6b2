//! torchvision's detectors: those of COCO that it publishes, of both generations, and what its users trained.
//!
//! # Epsilon of the batch norms
//! It is in no file. The published first-generation detectors with ResNet-50 have 0: torchvision sets it when it
//! loads them (`overwrite_eps`). All others have 1e-5, the default of its norms: the second generation, MobileNetV3,
//! and first-generation detectors that were trained from scratch or from an ImageNet backbone. What tells:
//!
//! - Published first-generation files have the older names of heads and pyramid.
//! - Norms that learn count their batches (`num_batches_tracked`); frozen ones, which every start from published
//!   weights has, do not. So a first-generation file with counters was trained from scratch.
//! - A first-generation file with newer names and without counters may be fine-tuned from COCO (0) or from ImageNet
//!   (1e-5): a note says which was taken, and the switch.

use std::path::Path;

use serde_json::{json, Value};

use super::Recognised;
use crate::classes::{Classes, COCO_OUTPUTS};
use crate::config::{Config, Experiment};
use crate::weights::WeightFile;

/// Blocks of the stages of ResNets, and whether they have three convolutions.
const RESNETS: [(&str, [usize; 4], bool); 2] = [("resnet18", [2, 2, 2, 2], false), ("resnet50", [3, 4, 6, 3], true)];
/// The second generation's, and what MobileNet's and trained ones have.
const EPS: f64 = 1e-5;

/// What is known of a file with these names, sorted. `path` is where it lies: the two detectors with MobileNetV3 differ
/// in nothing but the names of their files.
pub fn recognise(file: &WeightFile, names: &[String], path: &Path) -> Option<Recognised> {
    Names { names, shape: &|name| file.shape(name) }.recognise(path)
}

/// Names, sorted, and the shape of each.
struct Names<'a> {
    names: &'a [String],
    shape: &'a dyn Fn(&str) -> Option<Vec<i64>>,
}

impl Names<'_> {
    fn has(&self, name: &str) -> bool {
        self.names.binary_search_by(|own| own.as_str().cmp(name)).is_ok()
    }

    /// The first number of a tensor's shape.
    fn rows(&self, name: &str) -> Option<i64> {
        (self.shape)(name)?.first().copied()
    }

    fn recognise(&self, path: &Path) -> Option<Recognised> {
        let is_older = ["inner_blocks.0.weight", "layer_blocks.0.weight"].map(|name| format!("backbone.fpn.{name}"));
        let is_older = is_older.iter().all(|name| self.has(name));
        let is_newer = self.has("backbone.fpn.inner_blocks.0.0.weight");
        let backbone = self.backbone().filter(|_| is_older || is_newer)?;
        let is_retinanet = self.has("head.classification_head.cls_logits.weight");
        let (outputs, anchors) = if is_retinanet {
            let anchors = self.rows("head.regression_head.bbox_reg.weight")? / 4;
            (self.rows("head.classification_head.cls_logits.weight")? / anchors.max(1), anchors)
        } else {
            (self.rows("roi_heads.box_predictor.cls_score.weight")?, self.rows("rpn.head.cls_logits.weight")?)
        };
        let has_masks = self.has("roi_heads.mask_predictor.mask_fcn_logits.weight");
        let is_second =
            self.has("head.classification_head.conv.0.1.weight") || self.has("roi_heads.box_head.0.0.weight");
        let is_small = path.file_name().is_some_and(|name| name.to_string_lossy().contains("320_fpn"));
        let (detector, preset) = match (is_retinanet, has_masks) {
            (true, _) => ("RetinaNet", "retinanet"),
            (false, true) => ("Mask R-CNN", "mask_rcnn"),
            (false, false) => ("Faster R-CNN", "faster_rcnn"),
        };
        let generation = if is_second { "_v2" } else { "" };
        let (preset, body, known_anchors) = match backbone {
            "resnet18" | "resnet50" => {
                let body = format!("{}{}", backbone.replace("resnet", "ResNet-"), generation.replace('_', ", "));
                (format!("{preset}_resnet50_fpn{generation}"), body, if is_retinanet { 9 } else { 3 })
            }
            _ if is_small => (format!("{preset}_{backbone}_320_fpn"), "MobileNetV3-Large, 320 pixels".to_string(), 15),
            _ => (format!("{preset}_{backbone}_fpn"), "MobileNetV3-Large".to_string(), 15),
        };
        // Other anchors are no model of torchvision's.
        let preset = Config::PRESETS.iter().find(|(name, _)| *name == format!("{preset}_torchvision"))?;
        let mut config: Value = serde_json::from_str(preset.1).ok().filter(|_| anchors == known_anchors)?;

        let mut notes = Vec::new();
        let learned = self.names.iter().any(|name| name.starts_with("backbone.body.") && name.ends_with("_tracked"));
        let eps = match (backbone, is_second) {
            ("resnet50", false) if is_older => 0.0,
            ("resnet50", false) if !learned => {
                notes.push(
                    "its batch norms are taken to have epsilon 0, as torchvision's published detector and what is \
                     fine-tuned from it; trained from an ImageNet backbone: --set model.backbone.norm_eps=1e-5"
                        .to_string(),
                );
                0.0
            }
            _ => EPS,
        };
        config["model"]["backbone"]["name"] = json!(backbone);
        config["model"]["backbone"]["norm_eps"] = json!(eps);
        config["model"]["outputs"] = json!(outputs);
        if backbone == "mobilenet_v3_large" && !is_small {
            notes.push(
                "its tensors are those of torchvision's 320 variant too, whose file has 320_fpn in its name; if it is \
                 that: --config faster_rcnn_mobilenet_v3_large_320_fpn_torchvision"
                    .to_string(),
            );
        }
        let classes = match outputs {
            COCO_OUTPUTS => Classes::coco().of_outputs(i64::from(!is_retinanet), outputs).ok(),
            _ => {
                notes.push(format!(
                    "it has {outputs} outputs, background and the labels 1 to {}, and no names: --classes names a COCO \
                     annotation file whose category ids are these labels",
                    outputs - 1
                ));
                None
            }
        };
        let family = format!("torchvision's {detector} with {body}");
        Some(Recognised { family, config: Some(config), classes, tensors: None, notes })
    }

    /// vigdet's name of the backbone.
    fn backbone(&self) -> Option<&'static str> {
        let shape = |name: &str| (self.shape)(&format!("backbone.body.{name}"));
        if shape("16.0.weight") == Some(vec![960, 160, 1, 1])
            && shape("13.block.1.0.weight") == Some(vec![672, 1, 5, 5])
        {
            return Some("mobilenet_v3_large");
        }
        // Wider ones and those with groups have other second convolutions.
        shape("layer1.0.conv2.weight").filter(|shape| *shape == [64, 64, 3, 3])?;
        let has = |block: String, conv: &str| self.has(&format!("backbone.body.{block}.{conv}.weight"));
        let count = |stage: usize| (0..).take_while(|i| has(format!("layer{stage}.{i}"), "conv1")).count();
        let (blocks, bottleneck) = ([1, 2, 3, 4].map(count), has("layer1.0".to_string(), "conv3"));
        let known = RESNETS.iter().find(|(_, own, three)| *own == blocks && *three == bottleneck);
        known.map(|(name, ..)| *name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tch::{nn, Device};

    use super::*;
    use crate::config::DetectorKind;
    use crate::detect;

    /// A state dict of torchvision's: the shape of each name.
    type Shapes = BTreeMap<String, Vec<i64>>;

    /// What tests/fixtures/torchvision/make.py writes: its eight detectors, by their names there.
    fn models() -> BTreeMap<String, Shapes> {
        let text = include_str!("../../../tests/fixtures/torchvision/names.json");
        serde_json::from_str(text).unwrap()
    }

    fn recognised(shapes: &Shapes, path: &str) -> Option<Recognised> {
        let names: Vec<String> = shapes.keys().cloned().collect();
        Names { names: &names, shape: &|name| shapes.get(name).cloned() }.recognise(Path::new(path))
    }

    fn eps(found: &Recognised) -> f64 {
        found.config.as_ref().unwrap()["model"]["backbone"]["norm_eps"].as_f64().unwrap()
    }

    #[test]
    fn the_config_of_each_detector_has_all_of_its_tensors() {
        let models = models();
        assert_eq!(models.len(), 8);
        for (model, shapes) in &models {
            let found = recognised(shapes, &format!("{model}-00000000.pth")).unwrap();
            let config = Config::of_weights(found.config.as_ref().unwrap(), &[]).unwrap();
            let expected = model.replace("maskrcnn", "mask_rcnn").replace("fasterrcnn", "faster_rcnn") + "_torchvision";
            let mut preset = Config::preset(&expected, &[]).unwrap();
            preset.model.backbone.norm_eps = 1e-5;
            assert_eq!(config, preset, "{model}");
            let store = nn::VarStore::new(Device::Cpu);
            let labels = found.classes.unwrap();
            detect::build(&store.root(), &config.model, labels.len() as i64).unwrap();
            let own: Shapes = store.variables().into_iter().map(|(name, variable)| (name, variable.size())).collect();
            let wanted = shapes.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked"));
            let wanted: Shapes = wanted.map(|(name, shape)| (name.clone(), shape.clone())).collect();
            assert_eq!(own, wanted, "{model}");
            let first = i64::from(config.model.detector == DetectorKind::MaskRcnn);
            assert_eq!((labels.len() as i64, labels[0].id), (91 - first, first), "{model}");
            assert_eq!(labels.iter().find(|class| class.id == 90).unwrap().name, "toothbrush");
        }
    }

    /// What the published files of the first generation call it.
    fn older(name: &str) -> String {
        let (layer, kind) = name.rsplit_once('.').unwrap();
        match layer.strip_suffix(".0") {
            Some("rpn.head.conv.0") => format!("rpn.head.conv.{kind}"),
            Some(block) if block.starts_with("backbone.fpn.") => format!("{block}.{kind}"),
            _ => name.into(),
        }
    }

    #[test]
    fn names_and_counters_tell_the_epsilon_of_the_norms() {
        let models = models();
        for (model, shapes) in &models {
            let trained = recognised(shapes, "mine.pth").unwrap();
            assert_eq!(eps(&trained), 1e-5, "{model}");
            let counters = |name: &&String| name.ends_with("num_batches_tracked");
            let frozen: Shapes =
                shapes.iter().filter(|(name, _)| !counters(name)).map(|(n, s)| (n.clone(), s.clone())).collect();
            let frozen_found = recognised(&frozen, "mine.pth").unwrap();
            let first = model.contains("resnet50") && !model.ends_with("v2");
            assert_eq!(eps(&frozen_found), if first { 0.0 } else { 1e-5 }, "{model}");
            let said = |found: &Recognised| found.notes.iter().any(|note| note.contains("norm_eps=1e-5"));
            assert_eq!(said(&frozen_found), first, "{model}");
            if first {
                let published: Shapes = frozen.iter().map(|(name, shape)| (older(name), shape.clone())).collect();
                assert_ne!(published, frozen);
                let found = recognised(&published, "mine.pth").unwrap();
                assert_eq!((eps(&found), said(&found)), (0.0, false), "{model}");
            }
        }
    }

    #[test]
    fn the_mobile_detectors_are_told_by_the_names_of_their_files() {
        let shapes = &models()["fasterrcnn_mobilenet_v3_large_320_fpn"];
        let of = |path: &str| {
            let found = recognised(shapes, path).unwrap();
            (found.config.unwrap()["data"]["size"][0].clone(), found.notes.len())
        };
        assert_eq!(of("weights/fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"), (json!(320), 0));
        assert_eq!(of("320_fpn/mine.pth"), (json!(800), 1));
    }

    #[test]
    fn other_classes_and_smaller_backbones_are_known_and_other_anchors_are_not() {
        let models = models();
        let mut shapes = models["retinanet_resnet50_fpn_v2"].clone();
        let rows = |shapes: &mut Shapes, name: &str, rows: i64| shapes.get_mut(name).unwrap()[0] = rows;
        rows(&mut shapes, "head.classification_head.cls_logits.weight", 9 * 4);
        let found = recognised(&shapes, "mine.pth").unwrap();
        assert_eq!(found.config.as_ref().unwrap()["model"]["outputs"], json!(4));
        assert!(found.classes.is_none() && found.notes[0].contains("labels 1 to 3"), "{:?}", found.notes);
        rows(&mut shapes, "head.regression_head.bbox_reg.weight", 4 * 6);
        assert!(recognised(&shapes, "mine.pth").is_none());
        // The first two blocks of each stage with two convolutions each are a ResNet-18's.
        let mut shapes = models["fasterrcnn_resnet50_fpn"].clone();
        let deep = |name: &str| name.contains(".conv3.") || (2..6).any(|i| name.contains(&format!(".{i}.conv1.")));
        shapes.retain(|name, _| !(name.starts_with("backbone.body.layer") && deep(name)));
        let found = recognised(&shapes, "mine.pth").unwrap();
        assert_eq!(found.config.as_ref().unwrap()["model"]["backbone"]["name"], json!("resnet18"));
        assert_eq!(eps(&found), 1e-5);
        shapes.insert("backbone.body.layer3.2.conv1.weight".into(), vec![256, 256, 3, 3]);
        assert!(recognised(&shapes, "mine.pth").is_none());
    }
}
