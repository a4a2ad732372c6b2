//! The local block: an inverted residual, 1×1 convolution to 4C, 3×3 depthwise, 1×1 back to C.

use tch::{nn, Tensor};

use super::{layer_scale, scaled, scaled_onnx, Pass};
use crate::nn::cost::{Flops, Layer, Size};
use crate::nn::layers::{gelu, residual, stochastic_depth, ConvBn, ConvSpec};
use crate::onnx::{Graph, Value};

/// The three convolutions and the scale of what they add.
#[derive(Debug)]
pub struct LocalBlock {
    layers: [ConvBn; 3],
    scale: Tensor,
    /// Probability that the branch is left out for an image, in training.
    drop: f64,
}

impl LocalBlock {
    /// Variables `dws.*` and `layer_scale_2` under `path`.
    pub fn new(path: &nn::Path, channels: i64, eps: f64, drop: f64) -> Self {
        let (dws, wide) = (path / "dws", 4 * channels);
        let depthwise = ConvSpec { groups: wide, ..ConvSpec::new(wide, wide, 3) };
        let layer = |conv: &str, norm: &str, spec| ConvBn::new(&dws / conv, &dws / norm, spec, eps);
        let layers = [
            layer("pw1", "norm1", ConvSpec::new(channels, wide, 1)),
            layer("dw", "norm2", depthwise),
            layer("pw2", "norm3", ConvSpec::new(wide, channels, 1)),
        ];
        Self { layers, scale: layer_scale(path, "layer_scale_2", channels), drop }
    }

    /// `[B, C, H, W]` to the same. `train`: batch statistics in the norms.
    pub fn forward(&self, x: &Tensor, train: bool, pass: &mut Pass) -> Tensor {
        let [expand, depthwise, project] = &self.layers;
        let wide = gelu(depthwise.forward(&gelu(expand.forward(x, train)), train));
        let branch = scaled(project.forward(&wide, train), &self.scale);
        residual(x, stochastic_depth(branch, self.drop, pass.noise()))
    }

    /// [`LocalBlock::forward`] in inference, as nodes of a graph.
    pub fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let [expand, depthwise, project] = &self.layers;
        let mut branch = x.clone();
        for layer in [expand, depthwise] {
            branch = layer.onnx(graph, &branch);
            branch = graph.gelu(&branch);
        }
        let branch = project.onnx(graph, &branch);
        let branch = scaled_onnx(graph, &branch, &self.scale);
        graph.add(x, &branch)
    }

    /// Takes the weights out of training.
    pub fn freeze(&self) {
        self.layers.iter().for_each(ConvBn::freeze);
        let _ = self.scale.set_requires_grad(false);
    }
}

impl Flops for LocalBlock {
    fn flops(&self, size: Size, visit: &mut dyn FnMut(Layer)) -> Size {
        self.layers.iter().fold(size, |size, layer| layer.flops(size, visit))
    }
}
