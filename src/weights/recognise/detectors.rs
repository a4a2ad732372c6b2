//! What the names and shapes of a detector's tensors, once they are vigdet's, say of its config.

use serde_json::Value;

use super::renaming::Renaming;
use crate::backbone::Family;
use crate::config::{Config, Experiment};
use crate::weights::WeightFile;

/// Where a backbone's tensors are in vigdet's detectors.
pub const BODY: &str = "backbone.body.";

/// A detector as far as its tensors tell.
pub struct Layout {
    /// vigdet's name of its backbone; `None`: vigdet does not have it.
    backbone: Option<&'static str>,
    /// RetinaNet, not a two-stage detector.
    pub dense: bool,
    /// There is a mask head.
    pub mask: bool,
    /// Classes, without background.
    pub classes: usize,
    /// Why there is no config; empty: there is one.
    pub notes: Vec<String>,
    changes: Vec<String>,
}

impl Layout {
    /// Of a file whose two-stage detectors have background in the class layer, and not in the others.
    pub fn of(renaming: &Renaming, file: &WeightFile, backbone: Option<&'static str>) -> Self {
        let shape = |name: &str, axis: usize| {
            let shape = renaming.shape(file, &format!("{name}.weight")).unwrap_or_default();
            shape.get(axis).copied().unwrap_or_default()
        };
        let width = shape("backbone.fpn.inner_blocks.0.0", 0);
        let mut changes = vec![format!("model.fpn.channels={width}")];
        let dense = shape("head.regression_head.bbox_reg", 0) > 0;
        let mask = shape("roi_heads.mask_predictor.mask_fcn_logits", 0) > 0;
        let (anchors, usual, classes, per_class);
        if dense {
            anchors = shape("head.regression_head.bbox_reg", 0) / 4;
            classes = shape("head.classification_head.cls_logits", 0) / anchors.max(1);
            (usual, per_class) = (anchors == 9, true);
            let convs = renaming.count(|i| format!("head.classification_head.conv.{i}.0.weight"));
            // P6 comes from P5 if it takes as many channels as the pyramid has.
            let p6 = if shape("backbone.fpn.extra_blocks.p6", 1) == width { "p5" } else { "c5" };
            changes.extend([format!("model.fpn.p6={p6}"), format!("model.head.convs={convs}")]);
            if convs > 0 {
                let channels = shape("head.classification_head.conv.0.0", 0);
                changes.push(format!("model.head.channels={channels}"));
            }
        } else {
            anchors = shape("rpn.head.bbox_pred", 0) / 4;
            classes = shape("roi_heads.box_predictor.cls_score", 0) - 1;
            (usual, per_class) = (anchors == 3, shape("roi_heads.box_predictor.bbox_pred", 0) == 4 * classes);
            changes.extend([
                format!("model.mask={mask}"),
                format!("model.roi.channels={}", shape("roi_heads.box_head.fc6", 0)),
            ]);
            if mask {
                let convs = renaming.count(|i| format!("roi_heads.mask_head.{i}.0.weight"));
                let channels = shape("roi_heads.mask_predictor.conv5_mask", 1);
                changes
                    .extend([format!("model.mask_head.convs={convs}"), format!("model.mask_head.channels={channels}")]);
            }
        }
        let mut notes: Vec<String> = renaming.note().into_iter().collect();
        match backbone {
            None => notes.push("its backbone is none of vigdet's, so it gets no config by itself".into()),
            Some(name) => changes.push(format!("model.backbone.name={name}")),
        }
        if !usual {
            notes.push(format!("it has {anchors} anchors at each location, not the usual ones: name its --config"));
        }
        if !per_class {
            notes.push("its box layer is not for each of its classes, as vigdet's is".into());
        }
        Self { backbone, dense, mask, classes: usize::try_from(classes).unwrap_or_default(), notes, changes }
    }

    /// The config with further `key=value` changes; `None`: there are [`Layout::notes`] that say why.
    pub fn config(&self, changes: &[String]) -> Option<Value> {
        if !self.notes.is_empty() {
            return None;
        }
        let family = Family::of(self.backbone?);
        let is_resnet = family == Family::ResNet;
        let preset = match (self.dense, family) {
            (true, Family::ResNet) => "retinanet_resnet50_fpn_1x_coco",
            (true, _) => "retinanet_pvig_s_fpn_1x_coco",
            (false, Family::Axial) => "mask_rcnn_greedyvig_s_fpn_1x_coco",
            (false, _) => "mask_rcnn_pvig_s_fpn_1x_coco",
        };
        // How ResNets are trained, where the preset is of another backbone.
        let resnet = ["frozen_stages=1", "freeze_norms=true"].map(|change| format!("model.backbone.{change}"));
        let sgd = ["optimizer=sgd", "lr=0.02"].map(|change| format!("train.{change}"));
        let trained = resnet.into_iter().chain(sgd).filter(|_| !self.dense && is_resnet);
        let all: Vec<String> = self.changes.iter().cloned().chain(trained).chain(changes.iter().cloned()).collect();
        Config::preset(preset, &all).ok()?.to_value().ok()
    }

    /// For people: `Mask R-CNN with resnet50`.
    pub fn title(&self) -> String {
        let detector = match (self.dense, self.mask) {
            (true, _) => "RetinaNet",
            (false, true) => "Mask R-CNN",
            (false, false) => "Faster R-CNN",
        };
        format!("{detector} with {}", self.backbone.unwrap_or("a backbone that vigdet does not have"))
    }
}
