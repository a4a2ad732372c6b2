//! The convolution of pyramids and heads: with a bias, or with a batch norm in its place.

use tch::nn::Module;
use tch::{nn, Tensor};

use crate::config::ConvNorm;
use crate::nn::layers::{ConvBn, ConvSpec};
use crate::onnx::{Graph, Value};

/// Epsilon of the batch norms: PyTorch's.
const EPS: f64 = 1e-5;

/// A convolution of stride 1 and, perhaps, its batch norm.
#[derive(Debug)]
pub enum HeadConv {
    /// With a bias.
    Biased(nn::Conv2D),
    /// With a batch norm.
    Normed(Box<ConvBn>),
}

impl HeadConv {
    /// Variables under `path`'s `0`, and `1` where there is a norm, as torchvision's `Conv2dNormActivation` has them.
    pub fn new(path: nn::Path, spec: ConvSpec, norm: ConvNorm) -> Self {
        match norm {
            ConvNorm::None => Self::Biased(spec.build(&path / "0")),
            ConvNorm::Batch => Self::Normed(Box::new(ConvBn::at(path, spec.no_bias(), EPS))),
        }
    }

    /// `[B, in, H, W]` to `[B, out, H, W]`. `train`: batch statistics.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        match self {
            Self::Biased(conv) => conv.forward(x),
            Self::Normed(layer) => layer.forward(x, train),
        }
    }

    /// [`HeadConv::forward`] in inference, as a node.
    pub fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        match self {
            Self::Biased(conv) => graph.conv2d(x, conv, 1),
            Self::Normed(layer) => layer.onnx(graph, x),
        }
    }

    /// The convolution.
    pub fn conv(&self) -> &nn::Conv2D {
        match self {
            Self::Biased(conv) => conv,
            Self::Normed(layer) => &layer.conv,
        }
    }
}
