//! CycleMLP (Chen et al., 2022): fully connected layers that take each channel from the location itself or from one
//! beside it, in turn. Names are those of the authors' files (`network.0.0.attn.sfc_h.weight`, …).

use anyhow::Result;
use tch::nn::{self, Module};
use tch::{Kind, Tensor};

use super::{check_side, drop_of, frozen_stages, map_norms, Backbone, Pass, Use};
use crate::config::BackboneConfig;
use crate::nn::cost::{convolution, linear as count, Flops, Layer, Size};
use crate::nn::crossings::send;
use crate::nn::layers::{channels_last, residual, stochastic_depth, ConvSpec, Init};
use crate::nn::tokens::{layer_norm, linear, Mlp, Patches, Weights, DEVIATION};
use crate::onnx::{Convolution, Graph, Value};

const STRIDES: [i64; 4] = [4, 8, 16, 32];
/// Of an image, in pixels: the first patches have 7, two of them beyond each edge.
const LEAST_SIDE: i64 = 3;
const EPS: f64 = 1e-5;

/// (channels, blocks) of each stage of a published model.
pub(super) fn preset(name: &str) -> Option<([i64; 4], [i64; 4])> {
    let channels = [64, 128, 320, 512];
    Some(match name {
        "cyclemlp_b1" => (channels, [2, 2, 4, 2]),
        "cyclemlp_b2" => (channels, [2, 3, 10, 3]),
        "cyclemlp_b3" => (channels, [3, 4, 18, 3]),
        "cyclemlp_b4" => (channels, [3, 8, 27, 3]),
        "cyclemlp_b5" => ([96, 192, 384, 768], [3, 4, 24, 3]),
        _ => return None,
    })
}

/// Width of the feed-forward network's hidden layer over that of the map.
fn expansion(name: &str, stage: usize) -> i64 {
    match name {
        "cyclemlp_b3" | "cyclemlp_b4" if stage < 2 => 8,
        _ => 4,
    }
}

/// A fully connected layer on channels that come from three locations in a row (section 3.2, CycleFC): channel i from
/// the one at (i + 1) mod 3 − 1; beyond the edge all are 0.
#[derive(Debug)]
struct CycleFc {
    fc: nn::Conv2D,
    /// Takes the channels together: a depthwise kernel that has a single 1 for each.
    pick: Tensor,
}

impl CycleFc {
    /// `side`: (height, width) of the row of locations.
    fn new(path: nn::Path, channels: i64, side: Size) -> Self {
        let places: Vec<i64> = (0..channels).map(|i| (i + 1) % 3).collect();
        let pick = send(&places, path.device()).one_hot(3).view([channels, 1, side.0, side.1]);
        Self { fc: ConvSpec::new(channels, channels, 1).init(Init::Normal(DEVIATION)).build(path), pick }
    }

    /// `[B, C, H, W]` to the same.
    fn forward(&self, x: &Tensor) -> Tensor {
        let size = self.pick.size();
        let pick = self.pick.to_kind(x.kind());
        self.fc.forward(&x.conv2d(&pick, None::<&Tensor>, [1, 1], [size[2] / 2, size[3] / 2], [1, 1], size[0]))
    }

    fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let size = self.pick.size();
        let how = Convolution { stride: 1, padding: Some([size[2] / 2, size[3] / 2]), groups: size[0] };
        let picked = graph.convolve(x, &self.pick, None, how);
        graph.conv2d(&picked, &self.fc, 1)
    }
}

/// A block: CycleFC along both sides and a plain layer, weighed against each other for each channel of the image; then
/// a feed-forward network.
#[derive(Debug)]
struct Block {
    norm1: nn::LayerNorm,
    /// Across and down.
    cycles: [CycleFc; 2],
    plain: nn::Linear,
    weigh: Mlp,
    proj: nn::Linear,
    norm2: nn::LayerNorm,
    mlp: Mlp,
    /// Probability that a branch of this block is left out for an image, in training.
    drop: f64,
}

impl Block {
    fn new(path: &nn::Path, channels: i64, expansion: i64, drop: f64) -> Self {
        let attn = path / "attn";
        let cycle = |name: &str, side| CycleFc::new(&attn / name, channels, side);
        Self {
            norm1: layer_norm(path / "norm1", channels, EPS),
            cycles: [cycle("sfc_h", (1, 3)), cycle("sfc_w", (3, 1))],
            plain: linear(&attn / "mlp_c", channels, channels, false),
            weigh: Mlp::new(&attn / "reweight", channels, channels / 4, 3 * channels),
            proj: linear(&attn / "proj", channels, channels, true),
            norm2: layer_norm(path / "norm2", channels, EPS),
            mlp: Mlp::new(path / "mlp", channels, expansion * channels, channels),
            drop,
        }
    }

    /// A map `[B, H, W, C]` to the same.
    fn mix(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let map = x.permute([0, 3, 1, 2]);
        let [across, down] = self.cycles.each_ref().map(|cycle| cycle.forward(&map).permute([0, 2, 3, 1]));
        let plain = self.plain.forward(x);
        let mean = (&across + &down + &plain).mean_dim([1, 2].as_slice(), false, None);
        let weights = self.weigh.forward(&mean).view([size[0], 1, 1, size[3], 3]).softmax(-1, None::<Kind>);
        let weight = |i| weights.select(4, i);
        self.proj.forward(&(across * weight(0) + down * weight(1) + plain * weight(2)))
    }

    /// [`Block::mix`] as nodes of a graph, of `channels` channels.
    fn mix_onnx(&self, graph: &mut Graph, x: &Value, channels: i64) -> Value {
        let map = graph.transpose(x, &[0, 3, 1, 2]);
        let [across, down] = self.cycles.each_ref().map(|cycle| {
            let mixed = cycle.onnx(graph, &map);
            graph.transpose(&mixed, &[0, 2, 3, 1])
        });
        let plain = graph.linear(x, &self.plain);
        let sum = graph.add(&across, &down);
        let sum = graph.add(&sum, &plain);
        let mean = graph.reduce("ReduceMean", &sum, &[1, 2], false);
        let weights = self.weigh.onnx(graph, &mean);
        let weights = graph.reshape(&weights, &[0, 1, 1, channels, 3]);
        let weights = graph.softmax(&weights);
        let parts = [(across, 0), (down, 1), (plain, 2)].map(|(part, i)| {
            let weight = graph.select(&weights, 4, i);
            graph.mul(&part, &weight)
        });
        let sum = graph.add(&parts[0], &parts[1]);
        let sum = graph.add(&sum, &parts[2]);
        graph.linear(&sum, &self.proj)
    }

    fn onnx(&self, graph: &mut Graph, x: &Value, channels: i64) -> Value {
        let normed = graph.layer_norm(x, &self.norm1, EPS);
        let branch = self.mix_onnx(graph, &normed, channels);
        let x = graph.add(x, &branch);
        let normed = graph.layer_norm(&x, &self.norm2, EPS);
        let branch = self.mlp.onnx(graph, &normed);
        graph.add(&x, &branch)
    }

    fn forward(&self, x: &Tensor, pass: &mut Pass) -> Tensor {
        let branch = self.mix(&self.norm1.forward(x));
        let x = residual(x, stochastic_depth(branch, self.drop, pass.noise()));
        let branch = self.mlp.forward(&self.norm2.forward(&x));
        residual(&x, stochastic_depth(branch, self.drop, pass.noise()))
    }
}

impl Weights for Block {
    fn weights(&self) -> Vec<&Tensor> {
        let cycles = self.cycles.iter().flat_map(|cycle| [&cycle.fc.ws].into_iter().chain(&cycle.fc.bs));
        let norms = [self.norm1.weights(), self.norm2.weights()].concat();
        let layers = [self.plain.weights(), self.weigh.weights(), self.proj.weights(), self.mlp.weights()].concat();
        cycles.chain(norms).chain(layers).collect()
    }
}

#[derive(Debug)]
struct Stage {
    patches: Patches,
    blocks: Vec<Block>,
}

/// A CycleMLP without its classes.
#[derive(Debug)]
pub struct CycleMlp {
    stages: Vec<Stage>,
    /// Of the maps.
    norms: [Option<nn::LayerNorm>; 4],
    channels: [i64; 4],
}

impl CycleMlp {
    /// Random weights under `path`, in the published names.
    ///
    /// # Errors
    /// If the config cannot be built: the message says which key of it.
    pub fn new(path: &nn::Path, config: &BackboneConfig, of: Use) -> Result<Self> {
        let (channels, blocks) = config.stages(preset(&config.name))?;
        let frozen = frozen_stages(config, STRIDES.len())?;
        let network = path / "network";
        let (mut input, mut index, mut stages) = (3, 0, Vec::new());
        for (s, (&c, &count)) in channels.iter().zip(&blocks).enumerate() {
            let patches = match s {
                0 => Patches::new(path / "patch_embed" / "proj", ConvSpec::new(input, c, 7).stride(4).padding(2)),
                _ => Patches::new(&network / (2 * s - 1) / "proj", ConvSpec::new(input, c, 3).stride(2)),
            };
            let block = |i: i64| {
                let drop = drop_of(config, index + i, &blocks);
                Block::new(&(&network / (2 * s) / i), c, expansion(&config.name, s), drop)
            };
            stages.push(Stage { patches, blocks: (0..count).map(block).collect() });
            (input, index) = (c, index + count);
        }
        for stage in &stages[..frozen] {
            stage.patches.freeze();
            stage.blocks.iter().for_each(Block::freeze);
        }
        Ok(Self { stages, norms: map_norms(path, of, 2, |path, s| layer_norm(path, channels[s], EPS)), channels })
    }
}

impl Backbone for CycleMlp {
    fn channels(&self) -> &[i64] {
        &self.channels
    }

    fn strides(&self) -> &[i64] {
        &STRIDES
    }

    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>> {
        check_side(images, LEAST_SIDE)?;
        let mut x = channels_last(images).permute([0, 2, 3, 1]);
        let mut maps = Vec::new();
        for (stage, norm) in self.stages.iter().zip(&self.norms) {
            x = stage.patches.forward_last(&x);
            for block in &stage.blocks {
                x = block.forward(&x, pass);
            }
            maps.push(norm.as_ref().map_or(x.shallow_clone(), |norm| norm.forward(&x)).permute([0, 3, 1, 2]));
        }
        Ok(maps)
    }

    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>> {
        let mut x = graph.transpose(images, &[0, 2, 3, 1]);
        let mut maps = Vec::new();
        for (s, (stage, norm)) in self.stages.iter().zip(&self.norms).enumerate() {
            graph.part(format!("backbone/stage{}", s + 1));
            x = stage.patches.onnx_last(graph, &x);
            for (i, block) in stage.blocks.iter().enumerate() {
                graph.part(format!("backbone/stage{}.{i}", s + 1));
                x = block.onnx(graph, &x, self.channels[s]);
            }
            let map = norm.as_ref().map_or(x.clone(), |norm| graph.layer_norm(&x, norm, EPS));
            maps.push(graph.transpose(&map, &[0, 3, 1, 2]));
        }
        Ok(maps)
    }

    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        let mut size = image;
        let mut sizes = Vec::new();
        for stage in &self.stages {
            size = stage.patches.flops(size, visit);
            for block in &stage.blocks {
                for cycle in &block.cycles {
                    convolution(&cycle.fc, 1, size, visit);
                }
                [&block.plain, &block.proj].into_iter().for_each(|layer| count(layer, size, visit));
                block.weigh.flops((1, 1), visit);
                block.mlp.flops(size, visit);
            }
            sizes.push(size);
        }
        sizes
    }
}
