//! RetinaNet (Lin et al., 2017, "Focal Loss for Dense Object Detection") on any backbone.

use anyhow::{ensure, Result};
use rayon::prelude::*;
use tch::{nn, Device, Kind, Tensor};

use super::anchors::AnchorGenerator;
use super::boxes::{Box4, BoxCoder};
use super::dense_head::{DenseHead, LevelOutput};
use super::dense_losses::DenseLoss;
use super::detector::{Detections, Detector, Losses};
use super::fpn::{Coarse, Fpn};
use super::matcher::Matcher;
use super::select::{LevelValues, Selector};
use crate::backbone::{self, Backbone};
use crate::config::{ModelConfig, TestConfig};
use crate::data::Batch;
use crate::describe::{Layer, Size};

/// Backbone, pyramid on its last three stages, dense head.
#[derive(Debug)]
pub struct RetinaNet {
    backbone: Box<dyn Backbone>,
    fpn: Fpn,
    head: DenseHead,
    anchors: AnchorGenerator,
    loss: DenseLoss,
    test: TestConfig,
    classes: i64,
}

/// Stages that the pyramid is built on: C3 to C5.
const STAGES: usize = 3;
/// Pyramid levels: P3 to P7.
const LEVELS: usize = 5;

impl RetinaNet {
    /// Random weights for `classes` classes; variables `backbone.body.*`, `backbone.fpn.*` and `head.*` under `path`.
    pub fn new(path: &nn::Path, config: &ModelConfig, classes: i64) -> Result<Self> {
        ensure!(classes > 0, "a detector needs at least one class");
        let anchors = AnchorGenerator::new(&config.anchors);
        let backbone = backbone::build(&(path / "backbone" / "body"), &config.backbone)?;
        let channels = backbone.channels();
        ensure!(
            channels.len() >= STAGES,
            "RetinaNet's pyramid stands on {STAGES} stages, and {} has {}: use a pyramid (pvig_…) or a ResNet",
            config.backbone.name,
            channels.len()
        );
        let strides = backbone.strides();
        config.anchors.check_levels(&strides[strides.len() - STAGES..], LEVELS, &config.backbone.name)?;
        let fpn = Fpn::new(
            &(path / "backbone" / "fpn"),
            &channels[channels.len() - STAGES..],
            &config.fpn,
            Coarse::P6P7,
        )?;
        let head =
            DenseHead::new(&(path / "head"), config.fpn.channels, anchors.per_place(), classes, &config.head);
        let m = &config.matching;
        let matcher = Matcher {
            positive: m.positive as f32,
            negative: m.negative as f32,
            low_quality: m.low_quality,
            crowd: m.crowd as f32,
        };
        Ok(Self {
            backbone,
            fpn,
            head,
            anchors,
            loss: DenseLoss { matcher, coder: BoxCoder::default(), config: config.loss.clone() },
            test: config.test.clone(),
            classes,
        })
    }

    fn outputs(&self, images: &Tensor, train: bool) -> Result<Vec<LevelOutput>> {
        let maps = self.backbone.forward(images, train, None)?;
        Ok(self.head.forward(&self.fpn.forward(&maps[maps.len() - STAGES..])))
    }

    fn anchors_of(&self, outputs: &[LevelOutput], images: &Tensor) -> Vec<Vec<Box4>> {
        let maps: Vec<(i64, i64)> = outputs.iter().map(|o| o.map).collect();
        let size = images.size();
        self.anchors.anchors(&maps, (size[2], size[3]))
    }
}

impl Detector for RetinaNet {
    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let outputs = self.outputs(&batch.images, true)?;
        let anchors = self.anchors_of(&outputs, &batch.images).concat();
        Ok(self.loss.losses(&outputs, &anchors, &batch.targets))
    }

    fn detect(&self, batch: &Batch) -> Result<Vec<Detections>> {
        tch::no_grad(|| {
            let outputs = self.outputs(&batch.images, false)?;
            let anchors = self.anchors_of(&outputs, &batch.images);
            let mut images = Vec::with_capacity(batch.len());
            for i in 0..batch.len() as i64 {
                let values = |t: &Tensor| -> Result<Vec<f32>> {
                    Ok(t.get(i).reshape(-1).to_device(Device::Cpu).to_kind(Kind::Float).try_into()?)
                };
                let levels = outputs.iter().zip(&anchors).map(|(o, anchors)| {
                    Ok(LevelValues { logits: values(&o.logits)?, deltas: values(&o.deltas)?, anchors })
                });
                images.push(levels.collect::<Result<Vec<_>>>()?);
            }
            let selector =
                Selector { test: self.test.clone(), coder: self.loss.coder, classes: self.classes as usize };
            Ok(images
                .par_iter()
                .zip(&batch.sizes)
                .zip(&batch.infos)
                .map(|((levels, &size), info)| {
                    let mut found = selector.select(levels, size);
                    found.rescale(size, (i64::from(info.height), i64::from(info.width)));
                    found
                })
                .collect())
        })
    }

    fn set_iteration(&self, seed: u64, iteration: u64) {
        self.backbone.set_iteration(seed, iteration);
    }

    fn describe(&self, image: Size, visit: &mut dyn FnMut(Layer)) {
        let maps = self.backbone.describe(image, visit);
        let levels = self.fpn.describe(&maps[maps.len() - STAGES..], visit);
        self.head.describe(&levels, visit);
    }
}
