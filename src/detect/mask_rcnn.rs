//! Mask R-CNN (He et al., 2017) with a feature pyramid on any backbone; without its mask head, Faster R-CNN (Ren et
//! al., 2015).

use anyhow::{ensure, Result};
use tch::{nn, Tensor};

use super::boxes::BoxCoder;
use super::detector::{Detections, Detector, Losses};
use super::fpn::{stages_of, Coarse, Fpn};
use super::postprocess::{OnnxDetections, OnnxImages};
use super::roi_heads::RoiHeads;
use super::rpn::{ProposalSelector, Rpn, RpnOutput};
use crate::backbone::{self, Backbone, Pass};
use crate::config::{ModelConfig, Padding};
use crate::data::Batch;
use crate::nn::cost::{Layer, Size};
use crate::onnx::Graph;

/// Backbone, pyramid, region proposal network, box and mask heads.
///
/// The strides of the anchors say on which stages the pyramid stands: all but the last, which is P6's. In the paper
/// they are C2 to C5; torchvision's MobileNet detectors have the two stages of stride 32.
#[derive(Debug)]
pub struct MaskRcnn {
    backbone: Box<dyn Backbone>,
    /// The backbone's stages that the pyramid stands on.
    stages: Vec<usize>,
    fpn: Fpn,
    rpn: Rpn,
    heads: RoiHeads,
    /// Proposals in training and in inference.
    in_training: ProposalSelector,
    in_inference: ProposalSelector,
    /// Batch norms of the pyramid take batch statistics in training.
    train_norms: bool,
    padding: Padding,
}

/// Stages that the paper's pyramid is built on: C2 to C5.
const STAGES: usize = 4;

impl MaskRcnn {
    /// Random weights for `classes` classes; variables `backbone.body.*`, `backbone.fpn.*`, `rpn.*` and `roi_heads.*`
    /// under `path`.
    pub fn new(path: &nn::Path, config: &ModelConfig, classes: i64) -> Result<Self> {
        ensure!(classes > 0, "a detector needs at least one class");
        let backbone = backbone::build(&(path / "backbone" / "body"), &config.backbone)?;
        let (channels, strides, anchor_strides) = (backbone.channels(), backbone.strides(), &config.anchors.strides);
        ensure!(
            channels.len() >= STAGES,
            "Mask R-CNN's pyramid stands on {STAGES} stages, and {} has {}: use a pyramid (pvig_…), a ResNet or a \
             MobileNet",
            config.backbone.name,
            channels.len()
        );
        let named = anchor_strides.split_last().and_then(|(_, on_stages)| stages_of(strides, on_stages));
        let stages = named.unwrap_or_else(|| (strides.len() - STAGES..strides.len()).collect());
        let strides: Vec<i64> = stages.iter().map(|&stage| strides[stage]).collect();
        config.anchors.check_levels(&strides, stages.len() + 1, &config.backbone.name)?;
        let channels: Vec<i64> = stages.iter().map(|&stage| channels[stage]).collect();
        let fpn = Fpn::new(&(path / "backbone" / "fpn"), &channels, &config.fpn, Coarse::Halved)?;
        let rpn = Rpn::new(&(path / "rpn"), config.fpn.channels, &config.anchors, &config.rpn);
        let coder = BoxCoder { limit_shrinking: config.test.limit_shrinking, ..BoxCoder::default() };
        let proposals = |limits| ProposalSelector { coder, ..ProposalSelector::new(&config.rpn, limits) };
        let heads = RoiHeads::new(&(path / "roi_heads"), config, classes, &strides);
        Ok(Self {
            backbone,
            stages,
            fpn,
            rpn,
            heads,
            in_training: proposals(&config.rpn.train),
            in_inference: proposals(&config.rpn.test),
            train_norms: !config.backbone.freeze_norms,
            padding: config.padding,
        })
    }

    /// The pyramid of a batch, and what the proposal network says of its anchors.
    fn first_stage(&self, batch: &Batch, pass: &mut Pass) -> Result<(Vec<Tensor>, RpnOutput)> {
        let extents = batch.extents(self.padding)?;
        let maps = self.backbone.forward(&batch.images, pass.within(extents.clone()))?;
        let maps: Vec<Tensor> = self.stages.iter().map(|&stage| maps[stage].shallow_clone()).collect();
        let levels = self.fpn.forward(&maps, pass.is_training() && self.train_norms, extents.as_ref());
        let size = batch.images.size();
        let output = self.rpn.forward(&levels, (size[2], size[3]));
        Ok((levels, output))
    }
}

impl Detector for MaskRcnn {
    fn losses(&self, batch: &Batch, pass: &mut Pass) -> Result<Losses> {
        let (levels, output) = self.first_stage(batch, pass)?;
        let rng = pass.sampling()?;
        let proposals = self.rpn.proposals(&output, &batch.sizes, &self.in_training)?;
        let mut parts = Vec::from(self.rpn.losses(&output, &batch.targets, rng));
        parts.extend(self.heads.losses(&levels, proposals, &batch.targets, &batch.sizes, rng));
        Ok(Losses { parts })
    }

    fn detect(&self, batch: &Batch) -> Result<Vec<Detections>> {
        tch::no_grad(|| {
            let (levels, output) = self.first_stage(batch, &mut Pass::inference())?;
            let proposals = self.rpn.proposals(&output, &batch.sizes, &self.in_inference)?;
            let mut found = self.heads.detect(&levels, &proposals, &batch.sizes)?;
            for ((found, &size), info) in found.iter_mut().zip(&batch.sizes).zip(&batch.infos) {
                found.rescale(size, (i64::from(info.height), i64::from(info.width)));
            }
            Ok(found)
        })
    }

    fn onnx(&self, graph: &mut Graph, images: &OnnxImages) -> Result<OnnxDetections> {
        let maps = self.backbone.onnx(graph, &images.pixels)?;
        let maps: Vec<_> = self.stages.iter().map(|&stage| maps[stage].clone()).collect();
        let levels = self.fpn.onnx(graph, &maps);
        let proposals = self.rpn.onnx(graph, &levels, &self.in_inference, images);
        Ok(self.heads.onnx(graph, &levels, proposals, images))
    }

    fn has_masks(&self) -> bool {
        self.heads.has_masks()
    }

    /// The box head is counted for as many proposals as there are at most in inference, the mask head for as many
    /// detections.
    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) {
        let maps = self.backbone.flops(image, visit);
        let maps: Vec<Size> = self.stages.iter().map(|&stage| maps[stage]).collect();
        let levels = self.fpn.flops(&maps, visit);
        self.rpn.flops(&levels, visit);
        self.heads.flops(self.in_inference.keep as u64, visit);
    }
}
