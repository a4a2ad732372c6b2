//! PoolFormer (Yu et al., 2022): a transformer whose attention is an average over 3×3 locations. Names are those of the
//! authors' files (`network.0.0.mlp.fc1.weight`, …).

use anyhow::Result;
use tch::nn::{self, Module};
use tch::Tensor;

use super::{check_side, drop_of, frozen_stages, map_norms, Backbone, Pass, Use};
use crate::config::BackboneConfig;
use crate::nn::cost::{convolution, Flops, Layer, Size};
use crate::nn::layers::{channels_last, gelu, residual, stochastic_depth, ConvSpec, Init};
use crate::nn::tokens::{Patches, Weights, DEVIATION};
use crate::onnx::{Attribute, Graph, Value};

const STRIDES: [i64; 4] = [4, 8, 16, 32];
/// Of an image, in pixels: the first patches have 7, two of them beyond each edge.
const LEAST_SIDE: i64 = 3;

/// (channels, blocks) of each stage of a published model.
pub(super) fn preset(name: &str) -> Option<([i64; 4], [i64; 4])> {
    let (small, medium) = ([64, 128, 320, 512], [96, 192, 384, 768]);
    Some(match name {
        "poolformer_s12" => (small, [2, 2, 6, 2]),
        "poolformer_s24" => (small, [4, 4, 12, 4]),
        "poolformer_s36" => (small, [6, 6, 18, 6]),
        "poolformer_m36" => (medium, [6, 6, 18, 6]),
        "poolformer_m48" => (medium, [8, 8, 24, 8]),
        _ => return None,
    })
}

/// Epsilon of the norms: PyTorch's.
const EPS: f64 = 1e-5;

/// A norm over the channels and locations of each image.
fn norm(path: nn::Path, channels: i64) -> nn::GroupNorm {
    nn::group_norm(path, 1, channels, Default::default())
}

/// A block: average pooling and a feed-forward network, each with a norm before it and a scale of each channel behind.
#[derive(Debug)]
struct Block {
    norm1: nn::GroupNorm,
    norm2: nn::GroupNorm,
    fc1: nn::Conv2D,
    fc2: nn::Conv2D,
    scales: [Tensor; 2],
    /// Probability that a branch of this block is left out for an image, in training.
    drop: f64,
}

impl Block {
    fn new(path: &nn::Path, channels: i64, scale: f64, drop: f64) -> Self {
        let layer = |name: &str, input, output| {
            ConvSpec::new(input, output, 1).init(Init::Normal(DEVIATION)).build(path / "mlp" / name)
        };
        Self {
            norm1: norm(path / "norm1", channels),
            norm2: norm(path / "norm2", channels),
            fc1: layer("fc1", channels, 4 * channels),
            fc2: layer("fc2", 4 * channels, channels),
            scales: ["layer_scale_1", "layer_scale_2"].map(|name| path.var(name, &[channels], nn::Init::Const(scale))),
            drop,
        }
    }

    /// `[B, C, H, W]` to the same.
    fn forward(&self, x: &Tensor, pass: &mut Pass) -> Tensor {
        let [first, second] = self.scales.each_ref().map(|scale| scale.view([-1, 1, 1]));
        let normed = self.norm1.forward(x);
        // The mean of what lies on the map, without the location's own value: the residual sum has that.
        let mixed = normed.avg_pool2d([3, 3], [1, 1], [1, 1], false, false, None) - normed;
        let x = residual(x, stochastic_depth(mixed * first, self.drop, pass.noise()));
        let branch = self.fc2.forward(&gelu(self.fc1.forward(&self.norm2.forward(&x))));
        residual(&x, stochastic_depth(branch * second, self.drop, pass.noise()))
    }

    fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let [first, second] = self.scales.each_ref().map(|scale| graph.constant(&scale.view([-1, 1, 1]), x.kind()));
        let normed = graph.group_norm(x, &self.norm1, EPS);
        let around = [
            ("kernel_shape", Attribute::Ints(&[3, 3])),
            ("pads", Attribute::Ints(&[1, 1, 1, 1])),
            ("count_include_pad", Attribute::Int(0)),
        ];
        let mixed = graph.op("AveragePool", &[&normed], &around);
        let mixed = graph.sub(&mixed, &normed);
        let mixed = graph.mul(&mixed, &first);
        let x = graph.add(x, &mixed);
        let normed = graph.group_norm(&x, &self.norm2, EPS);
        let hidden = graph.conv2d(&normed, &self.fc1, 1);
        let hidden = graph.gelu(&hidden);
        let branch = graph.conv2d(&hidden, &self.fc2, 1);
        let branch = graph.mul(&branch, &second);
        graph.add(&x, &branch)
    }
}

impl Weights for Block {
    fn weights(&self) -> Vec<&Tensor> {
        let convs = [&self.fc1, &self.fc2].into_iter().flat_map(|conv| [&conv.ws].into_iter().chain(&conv.bs));
        let norms = [&self.norm1, &self.norm2].into_iter().flat_map(|norm| norm.ws.iter().chain(&norm.bs));
        convs.chain(norms).chain(&self.scales).collect()
    }
}

#[derive(Debug)]
struct Stage {
    patches: Patches,
    blocks: Vec<Block>,
}

/// A PoolFormer without its classes.
#[derive(Debug)]
pub struct PoolFormer {
    stages: Vec<Stage>,
    /// Of the maps.
    norms: [Option<nn::GroupNorm>; 4],
    channels: [i64; 4],
}

impl PoolFormer {
    /// Random weights under `path`, in the published names.
    ///
    /// # Errors
    /// If the config cannot be built: the message says which key of it.
    pub fn new(path: &nn::Path, config: &BackboneConfig, of: Use) -> Result<Self> {
        let (channels, blocks) = config.stages(preset(&config.name))?;
        let frozen = frozen_stages(config, STRIDES.len())?;
        // As published: the deeper ones begin nearer to the identity.
        let scale = if blocks.iter().sum::<i64>() < 36 { 1e-5 } else { 1e-6 };
        let network = path / "network";
        let (mut input, mut index, mut stages) = (3, 0, Vec::new());
        for (s, (&c, &count)) in channels.iter().zip(&blocks).enumerate() {
            let patches = match s {
                0 => Patches::new(path / "patch_embed" / "proj", ConvSpec::new(input, c, 7).stride(4).padding(2)),
                _ => Patches::new(&network / (2 * s - 1) / "proj", ConvSpec::new(input, c, 3).stride(2)),
            };
            let block = |i| Block::new(&(&network / (2 * s) / i), c, scale, drop_of(config, index + i, &blocks));
            stages.push(Stage { patches, blocks: (0..count).map(block).collect() });
            (input, index) = (c, index + count);
        }
        for stage in &stages[..frozen] {
            stage.patches.freeze();
            stage.blocks.iter().for_each(Block::freeze);
        }
        Ok(Self { stages, norms: map_norms(path, of, 2, |path, s| norm(path, channels[s])), channels })
    }
}

impl Backbone for PoolFormer {
    fn channels(&self) -> &[i64] {
        &self.channels
    }

    fn strides(&self) -> &[i64] {
        &STRIDES
    }

    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>> {
        check_side(images, LEAST_SIDE)?;
        let mut x = channels_last(images);
        let mut maps = Vec::new();
        for (stage, norm) in self.stages.iter().zip(&self.norms) {
            x = stage.patches.forward(&x);
            for block in &stage.blocks {
                x = block.forward(&x, pass);
            }
            maps.push(norm.as_ref().map_or(x.shallow_clone(), |norm| norm.forward(&x)));
        }
        Ok(maps)
    }

    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>> {
        let mut x = images.clone();
        let mut maps = Vec::new();
        for (s, (stage, norm)) in self.stages.iter().zip(&self.norms).enumerate() {
            graph.part(format!("backbone/stage{}", s + 1));
            x = stage.patches.onnx(graph, &x);
            for (i, block) in stage.blocks.iter().enumerate() {
                graph.part(format!("backbone/stage{}.{i}", s + 1));
                x = block.onnx(graph, &x);
            }
            maps.push(norm.as_ref().map_or(x.clone(), |norm| graph.group_norm(&x, norm, EPS)));
        }
        Ok(maps)
    }

    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        let mut size = image;
        let mut sizes = Vec::new();
        for stage in &self.stages {
            size = stage.patches.flops(size, visit);
            for conv in stage.blocks.iter().flat_map(|block| [&block.fc1, &block.fc2]) {
                convolution(conv, 1, size, visit);
            }
            sizes.push(size);
        }
        sizes
    }
}
