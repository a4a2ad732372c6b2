//! ResNet-18, -50 and -101 (He et al., 2016) in torchvision's form (stride in the 3×3 convolution; in Caffe's, in the
//! first 1×1, where the config says so) and torchvision's names: the baseline that every detection paper compares with.
//! ResNeXt-50 and -101, 32x4d (Xie et al., 2017): the 3×3 convolution is twice as wide, in 32 groups.

use anyhow::{bail, ensure, Result};
use tch::{nn, Tensor};

use super::{frozen_stages, norms_learn, Backbone, Pass};
use crate::config::BackboneConfig;
use crate::nn::cost::{Flops, Layer, Size};
use crate::nn::layers::{channels_last, ConvBn, ConvSpec, Init};
use crate::onnx::{Graph, Value};

const STRIDES: [i64; 4] = [4, 8, 16, 32];
/// Groups of ResNeXt's 3×3 convolutions.
const GROUPS: i64 = 32;

/// A ResNet without its classifier.
#[derive(Debug)]
pub struct ResNet {
    stem: ConvBn,
    stages: Vec<Vec<Residual>>,
    channels: [i64; 4],
    /// Stages that do not learn; the stem belongs to the first.
    frozen_stages: usize,
    /// Batch norms keep their running statistics in training.
    freeze_norms: bool,
}

/// Kinds of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Two convolutions.
    Basic,
    /// Three, of which the second has a quarter of the channels.
    Bottleneck,
    /// Three, of which the second has half of the channels, in groups.
    Grouped,
}

/// A block.
#[derive(Debug)]
struct Residual {
    layers: Vec<ConvBn>,
    /// 1×1 convolution of the shortcut where shape changes.
    downsample: Option<ConvBn>,
}

impl Residual {
    fn new(path: nn::Path, input: i64, width: i64, stride: i64, kind: Kind, config: &BackboneConfig) -> Self {
        let (eps, bottleneck) = (config.norm_eps, kind != Kind::Basic);
        let (first, second) = if config.stride_in_1x1 { (stride, 1) } else { (1, stride) };
        let output = if bottleneck { 4 * width } else { width };
        let plain = |i, o, k| ConvSpec::new(i, o, k).no_bias().init(Init::FanOut);
        let layer =
            |n: usize, spec: ConvSpec| ConvBn::new(&path / format!("conv{n}"), &path / format!("bn{n}"), spec, eps);
        let layers = if bottleneck {
            let (inside, groups) = if kind == Kind::Grouped { (2 * width, GROUPS) } else { (width, 1) };
            vec![
                layer(1, plain(input, inside, 1).stride(first)),
                layer(2, ConvSpec { groups, ..plain(inside, inside, 3).stride(second) }),
                layer(3, plain(inside, output, 1)),
            ]
        } else {
            vec![layer(1, plain(input, width, 3).stride(stride)), layer(2, plain(width, width, 3))]
        };
        let downsample = (stride != 1 || input != output)
            .then(|| ConvBn::at(&path / "downsample", plain(input, output, 1).stride(stride), eps));
        Self { layers, downsample }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let mut out = self.layers[0].forward(x, train);
        for layer in &self.layers[1..] {
            out = layer.forward(&out.relu(), train);
        }
        let shortcut = self.downsample.as_ref().map(|downsample| downsample.forward(x, train));
        (out + shortcut.as_ref().unwrap_or(x)).relu()
    }

    fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let mut out = self.layers[0].onnx(graph, x);
        for layer in &self.layers[1..] {
            out = graph.unary("Relu", &out);
            out = layer.onnx(graph, &out);
        }
        let shortcut = self.downsample.as_ref().map(|downsample| downsample.onnx(graph, x));
        let sum = graph.add(&out, shortcut.as_ref().unwrap_or(x));
        graph.unary("Relu", &sum)
    }
}

impl ResNet {
    /// Variables in torchvision's names (`conv1.weight`, `layer1.0.conv1.weight`, …) under `path`.
    pub fn new(path: &nn::Path, config: &BackboneConfig) -> Result<Self> {
        let (blocks, kind) = match config.name.as_str() {
            "resnet18" => ([2, 2, 2, 2], Kind::Basic),
            "resnet50" => ([3, 4, 6, 3], Kind::Bottleneck),
            "resnet101" => ([3, 4, 23, 3], Kind::Bottleneck),
            "resnext50_32x4d" => ([3, 4, 6, 3], Kind::Grouped),
            "resnext101_32x4d" => ([3, 4, 23, 3], Kind::Grouped),
            name => bail!("there is no ResNet `{name}`"),
        };
        let bottleneck = kind != Kind::Basic;
        ensure!(
            bottleneck || !config.stride_in_1x1,
            "model.backbone.stride_in_1x1 is for deeper ResNets: {} has no 1×1 convolutions",
            config.name
        );
        let frozen_stages = frozen_stages(config, STRIDES.len())?;
        let eps = config.norm_eps;
        let stem = ConvSpec::new(3, 64, 7).stride(2).no_bias().init(Init::FanOut);
        let stem = ConvBn::new(path / "conv1", path / "bn1", stem, eps);
        let (mut input, mut stages, mut channels) = (64, Vec::new(), [0; 4]);
        for (s, &depth) in blocks.iter().enumerate() {
            let width = 64 << s;
            let p = path / format!("layer{}", s + 1);
            let mut stage = Vec::new();
            for i in 0..depth {
                let stride = if i == 0 && s > 0 { 2 } else { 1 };
                stage.push(Residual::new(&p / i, input, width, stride, kind, config));
                input = if bottleneck { 4 * width } else { width };
            }
            channels[s] = input;
            stages.push(stage);
        }
        let model = Self { stem, stages, channels, frozen_stages, freeze_norms: config.freeze_norms };
        if model.frozen_stages > 0 {
            model.stem.freeze();
        }
        for block in model.stages[..model.frozen_stages].iter().flatten() {
            block.layers.iter().chain(&block.downsample).for_each(ConvBn::freeze);
        }
        Ok(model)
    }
}

impl Backbone for ResNet {
    fn channels(&self) -> &[i64] {
        &self.channels
    }

    fn strides(&self) -> &[i64] {
        &STRIDES
    }

    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>> {
        let norms = norms_learn(images, 32, self.freeze_norms, pass)?;
        let norms_at = |stage: usize| norms && stage >= self.frozen_stages;
        let x = self.stem.forward(&channels_last(images), norms_at(0)).relu();
        let mut x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        let mut maps = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            for block in stage {
                x = block.forward(&x, norms_at(s));
            }
            maps.push(x.shallow_clone());
        }
        Ok(maps)
    }

    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>> {
        graph.part("backbone/stem");
        let x = self.stem.onnx(graph, images);
        let x = graph.unary("Relu", &x);
        let mut x = graph.pool("MaxPool", &x, [3, 3], [2, 2], 1);
        let mut maps = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            for (i, block) in stage.iter().enumerate() {
                graph.part(format!("backbone/layer{}.{i}", s + 1));
                x = block.onnx(graph, &x);
            }
            maps.push(x.clone());
        }
        Ok(maps)
    }

    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        let half = |(h, w): Size| ((h + 1) / 2, (w + 1) / 2);
        let mut size = half(self.stem.flops(image, visit));
        let mut sizes = Vec::new();
        for stage in &self.stages {
            for block in stage {
                if let Some(downsample) = &block.downsample {
                    downsample.flops(size, visit);
                }
                size = block.layers.iter().fold(size, |size, layer| layer.flops(size, visit));
            }
            sizes.push(size);
        }
        sizes
    }
}
