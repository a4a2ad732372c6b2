//! The box head of two-stage detectors (Lin et al., 2017, "Feature Pyramid Networks", section 4.2): two fully connected
//! layers, then class and box.

use tch::nn::Module;
use tch::{nn, Tensor};

use super::mask_head::pooler;
use super::roi_align::{Roi, RoiPooler};
use crate::config::RoiConfig;
use crate::nn::cost::Layer;
use crate::nn::precision::full_precision;

/// Pools regions and says of each which class it is and how its box should move.
#[derive(Debug)]
pub struct BoxHead {
    pooler: RoiPooler,
    hidden: [nn::Linear; 2],
    class: nn::Linear,
    deltas: nn::Linear,
}

impl BoxHead {
    /// Random weights on levels of `channels` and these strides; variables in torchvision's names
    /// (`box_head.fc6.weight`, …, `box_predictor.cls_score.weight`, `box_predictor.bbox_pred.weight`) under `path`.
    pub fn new(path: &nn::Path, channels: i64, classes: i64, strides: &[i64], config: &RoiConfig) -> Self {
        let linear = |path: nn::Path, input: i64, output: i64, ws_init: nn::Init| {
            let config = nn::LinearConfig { ws_init, bs_init: Some(nn::Init::Const(0.0)), bias: true };
            nn::linear(path, input, output, config)
        };
        // Caffe's Xavier, as in detectron2 and mmdetection.
        let xavier = |input: i64| {
            let up = (3.0 / input as f64).sqrt();
            nn::Init::Uniform { lo: -up, up }
        };
        let normal = |stdev| nn::Init::Randn { mean: 0.0, stdev };
        let (head, predictor) = (path / "box_head", path / "box_predictor");
        let (input, c) = (channels * config.pool * config.pool, config.channels);
        Self {
            pooler: pooler(config.pool, strides, config),
            hidden: [linear(&head / "fc6", input, c, xavier(input)), linear(&head / "fc7", c, c, xavier(c))],
            class: linear(&predictor / "cls_score", c, classes + 1, normal(0.01)),
            deltas: linear(&predictor / "bbox_pred", c, 4 * (classes + 1), normal(0.001)),
        }
    }

    /// Class logits `[R, classes + 1]`, background first, and box deltas for each of them, `[R, 4 · (classes + 1)]`.
    pub fn forward(&self, levels: &[Tensor], rois: &[Roi]) -> (Tensor, Tensor) {
        let x = self.pooler.pool(levels, rois).flatten(1, -1);
        let x = self.hidden.iter().fold(x, |x, layer| layer.forward(&x).relu());
        (full_precision(&self.class.forward(&x)), full_precision(&self.deltas.forward(&x)))
    }

    /// Reports every layer to `visit` for so many regions.
    pub fn flops(&self, regions: u64, visit: &mut dyn FnMut(Layer)) {
        for layer in self.hidden.iter().chain([&self.class, &self.deltas]) {
            visit(Layer::Weights { weights: layer.ws.numel() as u64, locations: regions });
        }
    }
}
