//! The box head of two-stage detectors (Lin et al., 2017, "Feature Pyramid Networks", section 4.2): fully connected
//! layers, perhaps after convolutions (Wu and He, 2018, "Group Normalization", section 4.2), then class and box.

use tch::nn::Module;
use tch::{nn, Tensor};

use super::head_conv::HeadConv;
use super::mask_head::pooler;
use super::roi_align::{OnnxPooled, Roi, RoiPooler};
use crate::config::RoiConfig;
use crate::nn::cost::Layer;
use crate::nn::layers::{ConvSpec, Init};
use crate::nn::precision::full_precision;
use crate::onnx::{Graph, Value};

/// Pools regions and says of each which class it is and how its box should move.
#[derive(Debug)]
pub struct BoxHead {
    pooler: RoiPooler,
    /// 3×3 convolutions, each with a relu.
    convs: Vec<HeadConv>,
    /// Fully connected layers, each with a relu.
    hidden: Vec<nn::Linear>,
    class: nn::Linear,
    deltas: nn::Linear,
}

impl BoxHead {
    /// Random weights on levels of `channels` and these strides; variables in torchvision's names
    /// (`box_head.fc6.weight`, `box_head.fc7.weight`; with convolutions `box_head.0.0.weight`, …, `box_head.5.weight`;
    /// `box_predictor.cls_score.weight`, `box_predictor.bbox_pred.weight`) under `path`.
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
        let conv = |i| {
            let spec = ConvSpec::new(channels, channels, 3).init(Init::FanOut);
            HeadConv::new(&head / i, spec, config.norm)
        };
        let fc = |i: i64| {
            // Behind the convolutions comes a flattening, and behind each of the layers a relu, which count too.
            let name = match config.convs {
                0 => format!("fc{}", 6 + i),
                convs => format!("{}", convs + 1 + 2 * i),
            };
            let input = if i == 0 { input } else { c };
            linear(&head / name, input, c, xavier(input))
        };
        Self {
            pooler: pooler(config.pool, strides, config),
            convs: (0..config.convs).map(conv).collect(),
            hidden: (0..config.fcs).map(fc).collect(),
            class: linear(&predictor / "cls_score", c, classes + 1, normal(0.01)),
            deltas: linear(&predictor / "bbox_pred", c, 4 * (classes + 1), normal(0.001)),
        }
    }

    /// Class logits `[R, classes + 1]`, background first, and box deltas for each of them, `[R, 4 · (classes + 1)]`.
    /// `train`: batch statistics in the norms.
    pub fn forward(&self, levels: &[Tensor], rois: &[Roi], train: bool) -> (Tensor, Tensor) {
        let x = self.pooler.pool(levels, rois);
        let x = self.convs.iter().fold(x, |x, conv| conv.forward(&x, train).relu()).flatten(1, -1);
        let x = self.hidden.iter().fold(x, |x, layer| layer.forward(&x).relu());
        (full_precision(&self.class.forward(&x)), full_precision(&self.deltas.forward(&x)))
    }

    /// [`BoxHead::forward`] and softmax as nodes of a graph, for regions `[N, R, 4]` of which some are there: class
    /// probabilities `[N, R, classes + 1]` and deltas `[N, R, 4 · (classes + 1)]`, zeros of what is not there.
    pub fn onnx(&self, graph: &mut Graph, levels: &[Value], rois: &Value, there: &Value) -> [Value; 2] {
        graph.part("roi_heads/box_head");
        let OnnxPooled { features, places } = self.pooler.onnx(graph, levels, rois, there);
        let mut x = graph.working(&features);
        for conv in &self.convs {
            x = conv.onnx(graph, &x);
            x = graph.unary("Relu", &x);
        }
        let mut x = graph.op("Flatten", &[&x], &[]);
        for layer in &self.hidden {
            x = graph.linear(&x, layer);
            x = graph.unary("Relu", &x);
        }
        let [logits, deltas] = [&self.class, &self.deltas].map(|layer| {
            let said = graph.linear(&x, layer);
            graph.full(&said)
        });
        let scores = graph.softmax(&logits);
        // Back to the regions' own order.
        let shape = graph.shape(rois, 0, 2);
        let count = graph.reduce("ReduceProd", &shape, &[0], true);
        [(&scores, &self.class), (&deltas, &self.deltas)].map(|(rows, layer)| {
            let width = graph.ints(&[layer.ws.size()[0]]);
            let flat = graph.concat(&[&count, &width], 0);
            let all = graph.scatter(&flat, &places, rows);
            graph.reshape_to(&all, &[&shape, &width])
        })
    }

    /// Reports every layer to `visit` for so many regions.
    pub fn flops(&self, regions: u64, visit: &mut dyn FnMut(Layer)) {
        let bins = (self.pooler.align.size * self.pooler.align.size) as u64;
        for conv in &self.convs {
            visit(Layer::Weights { weights: conv.conv().ws.numel() as u64, locations: bins * regions });
        }
        for layer in self.hidden.iter().chain([&self.class, &self.deltas]) {
            visit(Layer::Weights { weights: layer.ws.numel() as u64, locations: regions });
        }
    }
}
