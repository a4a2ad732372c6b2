//! Mask R-CNN (He et al., 2017) with a feature pyramid on any backbone; without its mask head, Faster R-CNN (Ren et
//! al., 2015).

use anyhow::{ensure, Result};
use tch::{nn, Tensor};

use super::detector::{Detections, Detector, Losses};
use super::fpn::{Coarse, Fpn};
use super::roi_heads::RoiHeads;
use super::rpn::{ProposalSelector, Rpn, RpnOutput};
use crate::backbone::{self, Backbone, Pass};
use crate::config::ModelConfig;
use crate::data::Batch;
use crate::nn::cost::{Layer, Size};

/// Backbone, pyramid on its last four stages, region proposal network, box and mask heads.
#[derive(Debug)]
pub struct MaskRcnn {
    backbone: Box<dyn Backbone>,
    fpn: Fpn,
    rpn: Rpn,
    heads: RoiHeads,
    /// Proposals in training and in inference.
    in_training: ProposalSelector,
    in_inference: ProposalSelector,
}

/// Stages that the pyramid is built on: C2 to C5.
const STAGES: usize = 4;
/// Pyramid levels that proposals come from: P2 to P6.
const LEVELS: usize = 5;

impl MaskRcnn {
    /// Random weights for `classes` classes; variables `backbone.body.*`, `backbone.fpn.*`, `rpn.*` and `roi_heads.*`
    /// under `path`.
    pub fn new(path: &nn::Path, config: &ModelConfig, classes: i64) -> Result<Self> {
        ensure!(classes > 0, "a detector needs at least one class");
        let backbone = backbone::build(&(path / "backbone" / "body"), &config.backbone)?;
        let channels = backbone.channels();
        ensure!(
            channels.len() >= STAGES,
            "Mask R-CNN's pyramid stands on {STAGES} stages, and {} has {}: use a pyramid (pvig_…) or a ResNet",
            config.backbone.name,
            channels.len()
        );
        let stages = &channels[channels.len() - STAGES..];
        let strides = backbone.strides();
        let strides = strides[strides.len() - STAGES..].to_vec();
        config.anchors.check_levels(&strides, LEVELS, &config.backbone.name)?;
        let fpn = Fpn::new(&(path / "backbone" / "fpn"), stages, config.fpn.channels, Coarse::Halved)?;
        let rpn = Rpn::new(&(path / "rpn"), config.fpn.channels, &config.anchors, &config.rpn);
        let heads = RoiHeads::new(&(path / "roi_heads"), config, classes, &strides);
        Ok(Self {
            backbone,
            fpn,
            rpn,
            heads,
            in_training: ProposalSelector::new(&config.rpn, &config.rpn.train),
            in_inference: ProposalSelector::new(&config.rpn, &config.rpn.test),
        })
    }

    /// The pyramid of a batch, and what the proposal network says of its anchors.
    fn first_stage(&self, images: &Tensor, pass: &mut Pass) -> Result<(Vec<Tensor>, RpnOutput)> {
        let maps = self.backbone.forward(images, pass)?;
        let levels = self.fpn.forward(&maps[maps.len() - STAGES..]);
        let size = images.size();
        let output = self.rpn.forward(&levels, (size[2], size[3]));
        Ok((levels, output))
    }
}

impl Detector for MaskRcnn {
    fn losses(&self, batch: &Batch, pass: &mut Pass) -> Result<Losses> {
        let (levels, output) = self.first_stage(&batch.images, pass)?;
        let rng = pass.sampling()?;
        let proposals = self.rpn.proposals(&output, &batch.sizes, &self.in_training)?;
        let mut parts = Vec::from(self.rpn.losses(&output, &batch.targets, rng));
        parts.extend(self.heads.losses(&levels, proposals, &batch.targets, &batch.sizes, rng));
        Ok(Losses { parts })
    }

    fn detect(&self, batch: &Batch) -> Result<Vec<Detections>> {
        tch::no_grad(|| {
            let (levels, output) = self.first_stage(&batch.images, &mut Pass::inference())?;
            let proposals = self.rpn.proposals(&output, &batch.sizes, &self.in_inference)?;
            let mut found = self.heads.detect(&levels, &proposals, &batch.sizes)?;
            for ((found, &size), info) in found.iter_mut().zip(&batch.sizes).zip(&batch.infos) {
                found.rescale(size, (i64::from(info.height), i64::from(info.width)));
            }
            Ok(found)
        })
    }

    fn has_masks(&self) -> bool {
        self.heads.has_masks()
    }

    /// The box head is counted for as many proposals as there are at most in inference, the mask head for as many
    /// detections.
    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) {
        let maps = self.backbone.flops(image, visit);
        let levels = self.fpn.flops(&maps[maps.len() - STAGES..], visit);
        self.rpn.flops(&levels, visit);
        self.heads.flops(self.in_inference.keep as u64, visit);
    }
}
