//! Layers of transformers and their kin. Maps have their channels last there, `[B, H, W, C]` or `[B, N, C]`.

use tch::nn::{self, Module};
use tch::Tensor;

use super::cost::{linear as count, Flops, Layer, Size};
use super::layers::{gelu, ConvSpec, Init};
use super::precision::strided;
use crate::onnx::{Convolution, Graph, Value};

/// Standard deviation of the first weights of published transformers.
pub const DEVIATION: f64 = 0.02;

/// A linear layer, with bias or without; it starts as published transformers do.
pub fn linear(path: nn::Path, input: i64, output: i64, bias: bool) -> nn::Linear {
    let ws_init = nn::Init::Randn { mean: 0.0, stdev: DEVIATION };
    nn::linear(path, input, output, nn::LinearConfig { ws_init, bs_init: Some(nn::Init::Const(0.0)), bias })
}

/// A norm over the channels, the last dimension.
pub fn layer_norm(path: nn::Path, channels: i64, eps: f64) -> nn::LayerNorm {
    nn::layer_norm(path, vec![channels], nn::LayerNormConfig { eps, ..Default::default() })
}

/// What layers learn.
pub trait Weights {
    /// Their variables.
    fn weights(&self) -> Vec<&Tensor>;

    /// Takes them out of training.
    fn freeze(&self) {
        self.weights().into_iter().for_each(|weight| drop(weight.set_requires_grad(false)));
    }
}

impl Weights for nn::Linear {
    fn weights(&self) -> Vec<&Tensor> {
        [&self.ws].into_iter().chain(&self.bs).collect()
    }
}

impl Weights for nn::LayerNorm {
    fn weights(&self) -> Vec<&Tensor> {
        self.ws.iter().chain(&self.bs).collect()
    }
}

/// A feed-forward network: linear layer, GELU, linear layer.
#[derive(Debug)]
pub struct Mlp {
    fc1: nn::Linear,
    fc2: nn::Linear,
}

impl Mlp {
    /// Variables `fc1.*` and `fc2.*` under `path`.
    pub fn new(path: nn::Path, input: i64, hidden: i64, output: i64) -> Self {
        Self { fc1: linear(&path / "fc1", input, hidden, true), fc2: linear(&path / "fc2", hidden, output, true) }
    }

    /// `[…, input]` to `[…, output]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&gelu(self.fc1.forward(x)))
    }

    /// The same, as nodes.
    pub fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let hidden = graph.linear(x, &self.fc1);
        let hidden = graph.gelu(&hidden);
        graph.linear(&hidden, &self.fc2)
    }
}

impl Weights for Mlp {
    fn weights(&self) -> Vec<&Tensor> {
        [self.fc1.weights(), self.fc2.weights()].concat()
    }
}

impl Flops for Mlp {
    fn flops(&self, size: Size, visit: &mut dyn FnMut(Layer)) -> Size {
        count(&self.fc1, size, visit);
        count(&self.fc2, size, visit);
        size
    }
}

/// A convolution with bias that embeds patches of a map as one location each.
#[derive(Debug)]
pub struct Patches {
    conv: nn::Conv2D,
    spec: ConvSpec,
}

impl Patches {
    /// Variables `weight` and `bias` under `path`; the weights start with the variance of PyTorch's own.
    pub fn new(path: nn::Path, spec: ConvSpec) -> Self {
        let fan_in = (spec.input * spec.kernel * spec.kernel) as f64;
        Self { conv: spec.init(Init::Normal((3.0 * fan_in).sqrt().recip())).build(path), spec }
    }

    /// `[B, input, H, W]` to `[B, output, …]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        strided(x, |x| self.conv.forward(x))
    }

    /// The same with the channels last, `[B, H, W, input]` to `[B, …, output]`.
    pub fn forward_last(&self, x: &Tensor) -> Tensor {
        self.forward(&x.permute([0, 3, 1, 2])).permute([0, 2, 3, 1])
    }

    /// [`Patches::forward`], as a node.
    pub fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let ConvSpec { stride, padding, groups, .. } = self.spec;
        let how = Convolution { stride, padding: Some([padding; 2]), groups };
        graph.convolve(x, &self.conv.ws, self.conv.bs.as_ref(), how)
    }

    /// [`Patches::forward_last`], as nodes.
    pub fn onnx_last(&self, graph: &mut Graph, x: &Value) -> Value {
        let x = graph.transpose(x, &[0, 3, 1, 2]);
        let x = self.onnx(graph, &x);
        graph.transpose(&x, &[0, 2, 3, 1])
    }
}

impl Weights for Patches {
    fn weights(&self) -> Vec<&Tensor> {
        [&self.conv.ws].into_iter().chain(&self.conv.bs).collect()
    }
}

impl Flops for Patches {
    fn flops(&self, (height, width): Size, visit: &mut dyn FnMut(Layer)) -> Size {
        let ConvSpec { kernel, stride, padding, .. } = self.spec;
        let side = |side: i64| (side + 2 * padding - kernel).div_euclid(stride) + 1;
        let size = (side(height), side(width));
        visit(Layer::Weights { weights: self.conv.ws.numel() as u64, locations: (size.0 * size.1) as u64 });
        size
    }
}
