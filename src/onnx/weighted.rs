//! Layers: operators with weights.

use tch::{nn, Tensor};

use super::builder::{Attribute, Graph, Value};

use Attribute::{Float, Int, Ints, Text};

/// How a convolution moves.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    /// Pixels from one output to the next.
    pub stride: i64,
    /// Zeros on all sides, down and across; `None`: TensorFlow's `SAME`.
    pub padding: Option<[i64; 2]>,
    /// Groups of channels.
    pub groups: i64,
}

impl Graph {
    /// A convolution of `[B, C, H, W]`.
    pub fn convolve(&mut self, x: &Value, weight: &Tensor, bias: Option<&Tensor>, how: Convolution) -> Value {
        let size = weight.size();
        let (weight, bias) = (self.constant(weight, x.kind()), bias.map(|bias| self.constant(bias, x.kind())));
        let inputs: Vec<&Value> = [x, &weight].into_iter().chain(&bias).collect();
        let pads = how.padding.map(|[down, across]| [down, across, down, across]);
        let padding = match &pads {
            Some(pads) => ("pads", Ints(pads)),
            None => ("auto_pad", Text("SAME_UPPER")),
        };
        let stride = [how.stride; 2];
        let attributes =
            [("kernel_shape", Ints(&size[2..])), ("strides", Ints(&stride)), ("group", Int(how.groups)), padding];
        self.op("Conv", &inputs, &attributes)
    }

    /// A convolution without groups, with padding of half its kernel.
    pub fn conv2d(&mut self, x: &Value, conv: &nn::Conv2D, stride: i64) -> Value {
        let side = conv.ws.size()[2] / 2;
        self.convolve(x, &conv.ws, conv.bs.as_ref(), Convolution { stride, padding: Some([side; 2]), groups: 1 })
    }

    /// A linear layer on the last dimension.
    pub fn linear(&mut self, x: &Value, layer: &nn::Linear) -> Value {
        let weight = self.constant(&layer.ws.transpose(0, 1), x.kind());
        let product = self.matmul(x, &weight);
        match &layer.bs {
            Some(bias) => {
                let bias = self.constant(bias, x.kind());
                self.add(&product, &bias)
            }
            None => product,
        }
    }

    /// A norm over the last dimension.
    pub fn layer_norm(&mut self, x: &Value, norm: &nn::LayerNorm, eps: f64) -> Value {
        let [weight, bias] = [&norm.ws, &norm.bs].map(|t| t.as_ref().map(|t| self.constant(t, x.kind())));
        let inputs: Vec<&Value> = [x].into_iter().chain(&weight).chain(&bias).collect();
        self.op("LayerNormalization", &inputs, &[("axis", Int(-1)), ("epsilon", Float(eps))])
    }

    /// A norm over groups of the channels of `[B, C, H, W]`.
    pub fn group_norm(&mut self, x: &Value, norm: &nn::GroupNorm, eps: f64) -> Value {
        let (groups, channels) = (norm.num_groups, norm.num_channels);
        let shape = self.shape(x, 0, 4);
        let flat = self.reshape(x, &[0, groups, -1]);
        let options = (tch::Kind::Float, tch::Device::Cpu);
        let one = self.constant(&Tensor::ones([groups], options), x.kind());
        let zero = self.constant(&Tensor::zeros([groups], options), x.kind());
        let normed = self.op("InstanceNormalization", &[&flat, &one, &zero], &[("epsilon", Float(eps))]);
        let mut x = self.op("Reshape", &[&normed, &shape], &[]);
        if let Some(weight) = &norm.ws {
            let weight = self.constant(&weight.view([channels, 1, 1]), x.kind());
            x = self.mul(&x, &weight);
        }
        if let Some(bias) = &norm.bs {
            let bias = self.constant(&bias.view([channels, 1, 1]), x.kind());
            x = self.add(&x, &bias);
        }
        x
    }

    /// GELU; opset 18 has no operator for it.
    pub fn gelu(&mut self, x: &Value) -> Value {
        let inner = self.over(x, std::f64::consts::SQRT_2);
        let inner = self.unary("Erf", &inner);
        let inner = self.plus(&inner, 1.0);
        let product = self.mul(x, &inner);
        self.times(&product, 0.5)
    }

    /// min(max(x, 0), 6).
    pub fn relu6(&mut self, x: &Value) -> Value {
        let [zero, six] = [0.0, 6.0].map(|number| self.scalar_like(number, x));
        self.op("Clip", &[x, &zero, &six], &[])
    }

    /// Probabilities on the last axis.
    pub fn softmax(&mut self, x: &Value) -> Value {
        self.op("Softmax", &[x], &[("axis", Int(-1))])
    }

    /// The largest, or the mean, of each `kernel` of locations.
    pub fn pool(&mut self, op: &str, x: &Value, kernel: [i64; 2], stride: [i64; 2], padding: i64) -> Value {
        let pads = [padding; 4];
        let attributes = [("kernel_shape", Ints(&kernel)), ("strides", Ints(&stride)), ("pads", Ints(&pads))];
        self.op(op, &[x], &attributes)
    }

    /// The mean of each map of `[B, C, H, W]`, `[B, C, 1, 1]`.
    pub fn mean_map(&mut self, x: &Value) -> Value {
        self.unary("GlobalAveragePool", x)
    }
}
