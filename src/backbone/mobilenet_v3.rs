//! MobileNetV3-Large (Howard et al., 2019, "Searching for MobileNetV3", Table 1) in torchvision's form and names: a
//! backbone for small machines.

use anyhow::Result;
use tch::nn::Module;
use tch::{nn, Tensor};

use super::{frozen_stages, norms_learn, Backbone, Pass};
use crate::config::BackboneConfig;
use crate::nn::cost::{convolution, Flops, Layer, Size};
use crate::nn::layers::{channels_last, residual, ConvBn, ConvSpec, Init};
use crate::onnx::{Attribute, Graph, Value};

/// Table 1, the inverted residual blocks.
const BLOCKS: [BlockSpec; 15] = [
    BlockSpec::of(3, 16, 16, RELU, 1),
    BlockSpec::of(3, 64, 24, RELU, 2),
    BlockSpec::of(3, 72, 24, RELU, 1),
    BlockSpec::of(5, 72, 40, RELU, 2).squeezed(),
    BlockSpec::of(5, 120, 40, RELU, 1).squeezed(),
    BlockSpec::of(5, 120, 40, RELU, 1).squeezed(),
    BlockSpec::of(3, 240, 80, HARD_SWISH, 2),
    BlockSpec::of(3, 200, 80, HARD_SWISH, 1),
    BlockSpec::of(3, 184, 80, HARD_SWISH, 1),
    BlockSpec::of(3, 184, 80, HARD_SWISH, 1),
    BlockSpec::of(3, 480, 112, HARD_SWISH, 1).squeezed(),
    BlockSpec::of(3, 672, 112, HARD_SWISH, 1).squeezed(),
    BlockSpec::of(5, 672, 160, HARD_SWISH, 2).squeezed(),
    BlockSpec::of(5, 960, 160, HARD_SWISH, 1).squeezed(),
    BlockSpec::of(5, 960, 160, HARD_SWISH, 1).squeezed(),
];
/// Channels of the first convolution and of the last.
const STEM: i64 = 16;
const LAST: i64 = 960;
/// Layers (the first convolution, blocks, the last convolution) whose outputs are maps: the last of each stride, and of
/// stride 32, as torchvision's detectors have them, the first block's and the last convolution's.
const MAPS: [usize; 5] = [3, 6, 12, 13, 16];
const CHANNELS: [i64; 5] = [24, 40, 112, 160, LAST];
const STRIDES: [i64; 5] = [4, 8, 16, 32, 32];
/// The first layer that learns, by the number of frozen stages. Two are torchvision's detectors'.
const LEARNS_FROM: [usize; 6] = [0, 4, 7, 13, 16, 17];
/// How much of a batch's statistics enters the running ones.
const MOMENTUM: f64 = 0.01;

const RELU: Activation = Activation::Relu;
const HARD_SWISH: Activation = Activation::HardSwish;

#[derive(Clone, Copy, Debug)]
enum Activation {
    Relu,
    HardSwish,
}

impl Activation {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Relu => x.relu(),
            Self::HardSwish => x.hardswish(),
        }
    }

    fn onnx(self, graph: &mut Graph, x: &Value) -> Value {
        match self {
            Self::Relu => graph.unary("Relu", x),
            Self::HardSwish => graph.unary("HardSwish", x),
        }
    }
}

/// A row of Table 1.
#[derive(Clone, Copy, Debug)]
struct BlockSpec {
    /// Side of the depthwise kernel.
    kernel: i64,
    /// Channels inside the block.
    inside: i64,
    output: i64,
    /// Squeeze-and-excitation.
    squeeze: bool,
    activation: Activation,
    stride: i64,
}

impl BlockSpec {
    const fn of(kernel: i64, inside: i64, output: i64, activation: Activation, stride: i64) -> Self {
        Self { kernel, inside, output, squeeze: false, activation, stride }
    }

    const fn squeezed(self) -> Self {
        Self { squeeze: true, ..self }
    }
}

/// A quarter of so many channels, as the nearest multiple of 8 that is not less than nine tenths of it.
fn quarter(channels: i64) -> i64 {
    let quarter = channels / 4;
    let nearest = (quarter + 4) / 8 * 8;
    if 10 * nearest < 9 * quarter {
        nearest + 8
    } else {
        nearest
    }
}

/// Squeeze-and-excitation (Hu et al., 2018): each channel times a factor that is computed from all channels' means.
#[derive(Debug)]
struct Squeeze {
    fc1: nn::Conv2D,
    fc2: nn::Conv2D,
}

impl Squeeze {
    fn new(path: nn::Path, channels: i64) -> Self {
        let conv = |name: &str, input, output| ConvSpec::new(input, output, 1).init(Init::FanOut).build(&path / name);
        let few = quarter(channels);
        Self { fc1: conv("fc1", channels, few), fc2: conv("fc2", few, channels) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mean = x.mean_dim([2, 3].as_slice(), true, None);
        x * self.fc2.forward(&self.fc1.forward(&mean).relu()).hardsigmoid()
    }

    fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let mean = graph.mean_map(x);
        let few = graph.conv2d(&mean, &self.fc1, 1);
        let few = graph.unary("Relu", &few);
        let factor = graph.conv2d(&few, &self.fc2, 1);
        let factor = graph.op("HardSigmoid", &[&factor], &[("alpha", Attribute::Float(1.0 / 6.0))]);
        graph.mul(x, &factor)
    }

    fn convs(&self) -> [&nn::Conv2D; 2] {
        [&self.fc1, &self.fc2]
    }
}

/// 1×1 convolution to more channels, depthwise convolution, squeeze-and-excitation, 1×1 convolution to few channels.
#[derive(Debug)]
struct Block {
    /// Not where there are as many channels inside as before.
    expand: Option<ConvBn>,
    depthwise: ConvBn,
    squeeze: Option<Squeeze>,
    project: ConvBn,
    activation: Activation,
    /// The input is added to the output.
    residual: bool,
}

impl Block {
    fn new(path: &nn::Path, input: i64, spec: BlockSpec, eps: f64) -> Self {
        let BlockSpec { kernel, inside, output, squeeze, activation, stride } = spec;
        let mut layers = 0;
        let mut next = || {
            layers += 1;
            path / (layers - 1)
        };
        Self {
            expand: (inside != input).then(|| layer(next(), ConvSpec::new(input, inside, 1), eps)),
            depthwise: {
                let depthwise = ConvSpec { groups: inside, ..ConvSpec::new(inside, inside, kernel) };
                layer(next(), depthwise.stride(stride), eps)
            },
            squeeze: squeeze.then(|| Squeeze::new(next(), inside)),
            project: layer(next(), ConvSpec::new(inside, output, 1), eps),
            activation,
            residual: stride == 1 && input == output,
        }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let expanded = self.expand.as_ref().map(|expand| self.activation.apply(&expand.forward(x, train)));
        let inside = self.depthwise.forward(expanded.as_ref().unwrap_or(x), train);
        let mut inside = self.activation.apply(&inside);
        if let Some(squeeze) = &self.squeeze {
            inside = squeeze.forward(&inside);
        }
        let out = self.project.forward(&inside, train);
        if self.residual {
            residual(x, out)
        } else {
            out
        }
    }

    fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let mut inside = x.clone();
        for layer in self.expand.iter().chain([&self.depthwise]) {
            inside = layer.onnx(graph, &inside);
            inside = self.activation.onnx(graph, &inside);
        }
        if let Some(squeeze) = &self.squeeze {
            inside = squeeze.onnx(graph, &inside);
        }
        let out = self.project.onnx(graph, &inside);
        if self.residual {
            graph.add(x, &out)
        } else {
            out
        }
    }

    fn freeze(&self) {
        self.expand.iter().chain([&self.depthwise, &self.project]).for_each(ConvBn::freeze);
        for conv in self.squeeze.iter().flat_map(Squeeze::convs) {
            [&conv.ws].into_iter().chain(&conv.bs).for_each(|weight| drop(weight.set_requires_grad(false)));
        }
    }
}

impl Flops for Block {
    fn flops(&self, size: Size, visit: &mut dyn FnMut(Layer)) -> Size {
        let size = self.expand.iter().fold(size, |size, expand| expand.flops(size, visit));
        let size = self.depthwise.flops(size, visit);
        for conv in self.squeeze.iter().flat_map(Squeeze::convs) {
            convolution(conv, 1, (1, 1), visit);
        }
        self.project.flops(size, visit)
    }
}

/// A convolution and its norm under `path`'s `0` and `1`.
fn layer(path: nn::Path, spec: ConvSpec, eps: f64) -> ConvBn {
    ConvBn::with_momentum(&path / "0", &path / "1", spec.no_bias().init(Init::FanOut), eps, MOMENTUM)
}

/// MobileNetV3-Large without its classifier.
#[derive(Debug)]
pub struct MobileNetV3 {
    stem: ConvBn,
    blocks: Vec<Block>,
    last: ConvBn,
    /// The first layer that learns.
    learns_from: usize,
    /// Batch norms keep their running statistics in training.
    freeze_norms: bool,
}

impl MobileNetV3 {
    /// Variables in torchvision's names (`0.0.weight`, `1.block.0.0.weight`, …, `16.0.weight`) under `path`.
    pub fn new(path: &nn::Path, config: &BackboneConfig) -> Result<Self> {
        let learns_from = LEARNS_FROM[frozen_stages(config, LEARNS_FROM.len() - 1)?];
        let eps = config.norm_eps;
        let mut input = STEM;
        let blocks = (1..).zip(BLOCKS).map(|(i, spec)| {
            let block = Block::new(&(path / i / "block"), input, spec, eps);
            input = spec.output;
            block
        });
        let model = Self {
            stem: layer(path / "0", ConvSpec::new(3, STEM, 3).stride(2), eps),
            blocks: blocks.collect(),
            last: layer(path / (BLOCKS.len() + 1), ConvSpec::new(input, LAST, 1), eps),
            learns_from,
            freeze_norms: config.freeze_norms,
        };
        let frozen = |layer: usize| layer < model.learns_from;
        if frozen(0) {
            model.stem.freeze();
        }
        for (block, _) in model.blocks.iter().zip(1..).filter(|(_, layer)| frozen(*layer)) {
            block.freeze();
        }
        if frozen(BLOCKS.len() + 1) {
            model.last.freeze();
        }
        Ok(model)
    }
}

impl Backbone for MobileNetV3 {
    fn channels(&self) -> &[i64] {
        &CHANNELS
    }

    fn strides(&self) -> &[i64] {
        &STRIDES
    }

    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>> {
        let norms = norms_learn(images, 32, self.freeze_norms, pass)?;
        let norms_at = |layer: usize| norms && layer >= self.learns_from;
        let mut x = self.stem.forward(&channels_last(images), norms_at(0)).hardswish();
        let mut maps = Vec::with_capacity(MAPS.len());
        for (block, layer) in self.blocks.iter().zip(1..) {
            x = block.forward(&x, norms_at(layer));
            if MAPS.contains(&layer) {
                maps.push(x.shallow_clone());
            }
        }
        maps.push(self.last.forward(&x, norms_at(self.blocks.len() + 1)).hardswish());
        Ok(maps)
    }

    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>> {
        graph.part("backbone/stem");
        let x = self.stem.onnx(graph, images);
        let mut x = graph.unary("HardSwish", &x);
        let mut maps = Vec::with_capacity(MAPS.len());
        for (block, layer) in self.blocks.iter().zip(1..) {
            graph.part(format!("backbone/features.{layer}"));
            x = block.onnx(graph, &x);
            if MAPS.contains(&layer) {
                maps.push(x.clone());
            }
        }
        let last = self.last.onnx(graph, &x);
        maps.push(graph.unary("HardSwish", &last));
        Ok(maps)
    }

    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        let mut size = self.stem.flops(image, visit);
        let mut sizes = Vec::with_capacity(MAPS.len());
        for (block, layer) in self.blocks.iter().zip(1..) {
            size = block.flops(size, visit);
            if MAPS.contains(&layer) {
                sizes.push(size);
            }
        }
        sizes.push(self.last.flops(size, visit));
        sizes
    }
}
