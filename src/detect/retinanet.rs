//! RetinaNet (Lin et al., 2017, "Focal Loss for Dense Object Detection") on any backbone.

use anyhow::{ensure, Result};
use rayon::prelude::*;
use tch::{nn, Device, Kind, Tensor};

use super::anchors::AnchorGenerator;
use super::boxes::{Box4, BoxCoder};
use super::dense_head::{DenseHead, LevelOutput};
use super::detector::{Detections, Detector, Losses};
use super::fpn::Fpn;
use super::losses::{box_loss, sigmoid_focal_loss, BACKGROUND, IGNORED};
use super::matcher::{Match, Matcher};
use super::select::{LevelValues, Selector};
use crate::backbone::{self, Backbone};
use crate::config::{LossNormalizer, ModelConfig};
use crate::data::{Batch, Target};

/// Backbone, pyramid on its last three stages, dense head.
#[derive(Debug)]
pub struct RetinaNet {
    backbone: Box<dyn Backbone>,
    fpn: Fpn,
    head: DenseHead,
    anchors: AnchorGenerator,
    matcher: Matcher,
    coder: BoxCoder,
    config: ModelConfig,
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
        ensure!(
            anchors.levels() == LEVELS,
            "RetinaNet has {LEVELS} pyramid levels, P3 to P7; model.anchors.strides names {}",
            anchors.levels()
        );
        let backbone = backbone::build(&(path / "backbone" / "body"), &config.backbone)?;
        let channels = backbone.channels();
        let fpn =
            Fpn::new(&(path / "backbone" / "fpn"), &channels[channels.len() - STAGES..], &config.fpn, true)?;
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
            matcher,
            coder: BoxCoder::default(),
            config: config.clone(),
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

    /// Losses of a forward pass.
    fn losses_of(&self, outputs: &[LevelOutput], images: &Tensor, targets: &[Target]) -> Losses {
        let anchors = self.anchors_of(outputs, images).concat();
        let logits: Vec<&Tensor> = outputs.iter().map(|o| &o.logits).collect();
        let deltas: Vec<&Tensor> = outputs.iter().map(|o| &o.deltas).collect();
        let matches: Vec<Vec<Match>> = targets
            .iter()
            .map(|t| {
                let of = |crowd: bool| -> Vec<Box4> {
                    t.boxes.iter().zip(&t.crowd).filter(|(_, c)| **c == crowd).map(|(b, _)| *b).collect()
                };
                self.matcher.assign(&anchors, &of(false), &of(true))
            })
            .collect();
        let positives: Vec<usize> =
            matches.iter().map(|m| m.iter().filter(|m| matches!(m, Match::Object(_))).count()).collect();
        let images_in_batch = targets.len().max(1) as f32;
        let weight_of = |image: usize| match self.config.loss.normalizer {
            LossNormalizer::Batch => 1.0 / positives.iter().sum::<usize>().max(1) as f32,
            LossNormalizer::Image => 1.0 / (positives[image].max(1) as f32 * images_in_batch),
        };

        let (mut classes, mut weights) = (Vec::new(), Vec::new());
        // Of the positives: place among all anchors of the batch, deltas wanted, anchor, weight.
        let (mut places, mut wanted, mut bases, mut box_weights) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (image, (matches, target)) in matches.iter().zip(targets).enumerate() {
            let objects: Vec<usize> = (0..target.boxes.len()).filter(|&i| !target.crowd[i]).collect();
            weights.extend(std::iter::repeat_n(weight_of(image), anchors.len()));
            for (i, m) in matches.iter().enumerate() {
                classes.push(match *m {
                    Match::Background => BACKGROUND,
                    Match::Ignored => IGNORED,
                    Match::Object(object) => {
                        let object = objects[object as usize];
                        places.push((image * anchors.len() + i) as i64);
                        wanted.extend(self.coder.encode(&target.boxes[object], &anchors[i]));
                        bases.extend(anchors[i]);
                        box_weights.push(weight_of(image));
                        target.labels[object]
                    }
                });
            }
        }
        let loss = &self.config.loss;
        let logits = Tensor::cat(&logits, 1).view([-1, self.classes]);
        let classification = sigmoid_focal_loss(&logits, &classes, &weights, loss.alpha, loss.gamma);
        let device = images.device();
        let rows = |values: &[f32]| Tensor::from_slice(values).view([-1, 4]).to_device(device);
        let predicted = Tensor::cat(&deltas, 1)
            .view([-1, 4])
            .index_select(0, &Tensor::from_slice(&places).to_device(device));
        let weights = Tensor::from_slice(&box_weights).to_device(device);
        let regression =
            box_loss(&predicted, &rows(&wanted), &rows(&bases), &weights, loss) * loss.box_weight;
        Losses { parts: vec![("classification", classification), ("box", regression)] }
    }
}

impl Detector for RetinaNet {
    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let outputs = self.outputs(&batch.images, true)?;
        Ok(self.losses_of(&outputs, &batch.images, &batch.targets))
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
            let selector = Selector {
                test: self.config.test.clone(),
                coder: self.coder,
                classes: self.classes as usize,
            };
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
}
