//! Pyramid Vision Transformer, the first version (Wang et al., 2021): attention of all locations to a map that a
//! convolution has made smaller. Names are those of the authors' files (`block1.0.attn.kv.weight`, …).

use anyhow::{ensure, Context, Result};
use tch::nn::{self, Module};
use tch::Tensor;

use super::{drop_of, frozen_stages, Backbone, Pass, Use};
use crate::config::BackboneConfig;
use crate::nn::cost::{attention, linear as count, Flops, Layer, Size};
use crate::nn::layers::{channels_last, residual, stochastic_depth, ConvSpec};
use crate::nn::tokens::{layer_norm, linear, Mlp, Patches, Weights, DEVIATION};
use crate::onnx::{Graph, Resize, Value};

const STRIDES: [i64; 4] = [4, 8, 16, 32];
/// Side of a stage's patches, in locations of the stage before.
const PATCHES: [i64; 4] = [4, 2, 2, 2];
/// By how much keys and values are reduced, in each direction.
const REDUCTIONS: [i64; 4] = [8, 4, 2, 1];
/// Width of the feed-forward network's hidden layer over that of the map.
const EXPANSIONS: [i64; 4] = [8, 8, 4, 4];
/// Channels of a head of attention.
const HEAD: i64 = 64;
/// Epsilon of the blocks' norms and the classifier's.
const EPS: f64 = 1e-6;
/// Epsilon of the norms behind convolutions.
const CONV_EPS: f64 = 1e-5;
/// The smallest side of an image whose last map, and whose reduced maps, have a location.
const SMALLEST: i64 = 32;

/// (channels, blocks) of each stage of a published model.
pub(super) fn preset(name: &str) -> Option<([i64; 4], [i64; 4])> {
    let blocks = match name {
        "pvt_tiny" => [2, 2, 2, 2],
        "pvt_small" => [3, 4, 6, 3],
        "pvt_medium" => [3, 4, 18, 3],
        "pvt_large" => [3, 8, 27, 3],
        _ => return None,
    };
    Some(([64, 128, 320, 512], blocks))
}

/// Makes the map of keys and values smaller.
#[derive(Debug)]
struct Reduction {
    conv: Patches,
    norm: nn::LayerNorm,
}

/// A block: attention to the reduced map (section 3.2, "spatial-reduction attention"), and a feed-forward network.
#[derive(Debug)]
struct Block {
    norm1: nn::LayerNorm,
    q: nn::Linear,
    kv: nn::Linear,
    proj: nn::Linear,
    reduction: Option<Reduction>,
    norm2: nn::LayerNorm,
    mlp: Mlp,
    /// Probability that a branch of this block is left out for an image, in training.
    drop: f64,
}

impl Block {
    fn new(path: &nn::Path, stage: usize, channels: i64, drop: f64) -> Self {
        let (attn, reduction) = (path / "attn", REDUCTIONS[stage]);
        let layer = |name: &str, output| linear(&attn / name, channels, output, true);
        let spec = ConvSpec::new(channels, channels, reduction).stride(reduction).padding(0);
        Self {
            norm1: layer_norm(path / "norm1", channels, EPS),
            q: layer("q", channels),
            kv: layer("kv", 2 * channels),
            proj: layer("proj", channels),
            reduction: (reduction > 1).then(|| Reduction {
                conv: Patches::new(&attn / "sr", spec),
                norm: layer_norm(&attn / "norm", channels, CONV_EPS),
            }),
            norm2: layer_norm(path / "norm2", channels, EPS),
            mlp: Mlp::new(path / "mlp", channels, EXPANSIONS[stage] * channels, channels),
            drop,
        }
    }

    /// Locations `[B, N, C]` to the same.
    fn attention(&self, x: &Tensor, map: Size) -> Tensor {
        let size = x.size();
        let (images, channels) = (size[0], size[2]);
        let reduced = self.reduction.as_ref().map(|Reduction { conv, norm }| {
            let x = conv.forward_last(&x.view([images, map.0, map.1, channels]));
            norm.forward(&x.flatten(1, 2))
        });
        let heads = channels / HEAD;
        let q = self.q.forward(x).view([images, -1, heads, HEAD]).transpose(1, 2);
        let kv = self.kv.forward(reduced.as_ref().unwrap_or(x)).view([images, -1, 2, heads, HEAD]);
        let kv = kv.permute([2, 0, 3, 1, 4]);
        let (k, v) = (kv.get(0), kv.get(1));
        let found = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        self.proj.forward(&found.transpose(1, 2).reshape(size))
    }

    /// [`Block::attention`] as nodes of a graph; `map`: (height, width), int64 `[2]`.
    fn attention_onnx(&self, graph: &mut Graph, x: &Value, channels: i64, map: &Value) -> Value {
        let reduced = self.reduction.as_ref().map(|Reduction { conv, norm }| {
            let (batch, width) = (graph.shape(x, 0, 1), graph.ints(&[channels]));
            let x = graph.reshape_to(x, &[&batch, map, &width]);
            let x = conv.onnx_last(graph, &x);
            let x = graph.reshape(&x, &[0, -1, channels]);
            graph.layer_norm(&x, norm, CONV_EPS)
        });
        let heads = channels / HEAD;
        let q = graph.linear(x, &self.q);
        let q = graph.reshape(&q, &[0, -1, heads, HEAD]);
        let q = graph.transpose(&q, &[0, 2, 1, 3]);
        let q = graph.times(&q, (HEAD as f64).powf(-0.5));
        let kv = graph.linear(reduced.as_ref().unwrap_or(x), &self.kv);
        let kv = graph.reshape(&kv, &[0, -1, 2, heads, HEAD]);
        let kv = graph.transpose(&kv, &[2, 0, 3, 1, 4]);
        let [k, v] = [0, 1].map(|i| graph.select(&kv, 0, i));
        let k = graph.transpose(&k, &[0, 1, 3, 2]);
        let scores = graph.matmul(&q, &k);
        let scores = graph.softmax(&scores);
        let found = graph.matmul(&scores, &v);
        let found = graph.transpose(&found, &[0, 2, 1, 3]);
        let found = graph.reshape(&found, &[0, -1, channels]);
        graph.linear(&found, &self.proj)
    }

    fn onnx(&self, graph: &mut Graph, x: &Value, channels: i64, map: &Value) -> Value {
        let normed = graph.layer_norm(x, &self.norm1, EPS);
        let branch = self.attention_onnx(graph, &normed, channels, map);
        let x = graph.add(x, &branch);
        let normed = graph.layer_norm(&x, &self.norm2, EPS);
        let branch = self.mlp.onnx(graph, &normed);
        graph.add(&x, &branch)
    }

    fn forward(&self, x: &Tensor, map: Size, pass: &mut Pass) -> Tensor {
        let branch = self.attention(&self.norm1.forward(x), map);
        let x = residual(x, stochastic_depth(branch, self.drop, pass.noise()));
        let branch = self.mlp.forward(&self.norm2.forward(&x));
        residual(&x, stochastic_depth(branch, self.drop, pass.noise()))
    }
}

impl Weights for Block {
    fn weights(&self) -> Vec<&Tensor> {
        let reduction = self.reduction.iter().flat_map(|r| [r.conv.weights(), r.norm.weights()].concat());
        let linear = [&self.q, &self.kv, &self.proj].into_iter().flat_map(Weights::weights);
        let rest = [self.norm1.weights(), self.norm2.weights(), self.mlp.weights()].concat();
        reduction.chain(linear).chain(rest).collect()
    }
}

#[derive(Debug)]
struct Stage {
    patches: Patches,
    norm: nn::LayerNorm,
    /// Position embedding of the native grid, `[1, side², C]`; in the last stage a class token's comes before.
    positions: Tensor,
    /// Side of the native grid.
    side: i64,
    blocks: Vec<Block>,
}

impl Stage {
    /// The position embedding of a map, `[1, height · width, C]`, bilinear.
    fn positions(&self, map: Size) -> Tensor {
        let (side, size) = (self.side, self.positions.size());
        let own = self.positions.narrow(1, size[1] - side * side, side * side);
        if map == (side, side) {
            return own;
        }
        let grid = own.view([1, side, side, size[2]]).permute([0, 3, 1, 2]);
        grid.upsample_bilinear2d([map.0, map.1], false, None, None).flatten(2, 3).transpose(1, 2)
    }
}

impl Stage {
    /// The position embedding of a map as nodes of a graph: of (height, width) locations if these are known, else of
    /// those that `like` `[B, C, …, …]` has.
    fn positions_onnx(&self, graph: &mut Graph, map: Option<Size>, like: &Value) -> Value {
        if let Some(map) = map {
            return graph.constant(&self.positions(map), like.kind());
        }
        let (side, size) = (self.side, self.positions.size());
        let own = self.positions.narrow(1, size[1] - side * side, side * side);
        let grid = graph.constant(&own.view([1, side, side, size[2]]).permute([0, 3, 1, 2]), like.kind());
        let map = graph.shape(like, 2, 4);
        let grid = graph.resize(&grid, &map, Resize::Linear);
        let flat = graph.reshape(&grid, &[0, 0, -1]);
        graph.transpose(&flat, &[0, 2, 1])
    }
}

/// A classifier's last stage has one more location, whose features the classes are read from.
#[derive(Debug)]
struct ClassToken {
    token: Tensor,
    norm: nn::LayerNorm,
}

/// A Pyramid Vision Transformer without its classes.
#[derive(Debug)]
pub struct Pvt {
    stages: Vec<Stage>,
    token: Option<ClassToken>,
    channels: [i64; 4],
}

impl Pvt {
    /// Random weights under `path`, in the published names.
    ///
    /// # Errors
    /// If the config cannot be built: the message says which key of it.
    pub fn new(path: &nn::Path, config: &BackboneConfig, of: Use) -> Result<Self> {
        let (channels, blocks) = config.stages(preset(&config.name))?;
        ensure!(
            channels.iter().all(|c| c % HEAD == 0),
            "model.backbone.channels of {} must be multiples of {HEAD}, not {channels:?}",
            config.name
        );
        ensure!(
            config.image_size > 0 && config.image_size % 32 == 0,
            "model.backbone.image_size of {} must be a multiple of 32, not {}",
            config.name,
            config.image_size
        );
        let frozen = frozen_stages(config, STRIDES.len())?;
        let (mut input, mut index, mut stages) = (3, 0, Vec::new());
        for (s, (&c, &count)) in channels.iter().zip(&blocks).enumerate() {
            let n = s + 1;
            let embed = path / format!("patch_embed{n}");
            let spec = ConvSpec::new(input, c, PATCHES[s]).stride(PATCHES[s]).padding(0);
            let side = config.image_size / STRIDES[s];
            let locations = side * side + i64::from(n == STRIDES.len());
            let block =
                |i: i64| Block::new(&(path / format!("block{n}") / i), s, c, drop_of(config, index + i, &blocks));
            stages.push(Stage {
                patches: Patches::new(&embed / "proj", spec),
                norm: layer_norm(&embed / "norm", c, CONV_EPS),
                positions: path.randn(&format!("pos_embed{n}"), &[1, locations, c], 0.0, DEVIATION),
                side,
                blocks: (0..count).map(block).collect(),
            });
            (input, index) = (c, index + count);
        }
        for stage in &stages[..frozen] {
            stage.patches.freeze();
            stage.norm.freeze();
            let _ = stage.positions.set_requires_grad(false);
            stage.blocks.iter().for_each(Block::freeze);
        }
        let token = (of == Use::Classifier).then(|| ClassToken {
            token: path.randn("cls_token", &[1, 1, input], 0.0, DEVIATION),
            norm: layer_norm(path / "norm", input, EPS),
        });
        Ok(Self { stages, token, channels })
    }

    /// Maps, and the features of the class token, `[B, C, 1, 1]`, as nodes of a graph.
    fn maps_onnx(&self, graph: &mut Graph, images: &Value) -> (Vec<Value>, Option<Value>) {
        let mut x = images.clone();
        let (mut maps, mut classified) = (Vec::new(), None);
        for (s, (stage, &channels)) in self.stages.iter().zip(&self.channels).enumerate() {
            graph.part(format!("backbone/stage{}", s + 1));
            let embedded = stage.patches.onnx(graph, &x);
            let (batch, map) = (graph.shape(&embedded, 0, 1), graph.shape(&embedded, 2, 4));
            let flat = graph.reshape(&embedded, &[0, 0, -1]);
            let flat = graph.transpose(&flat, &[0, 2, 1]);
            let normed = graph.layer_norm(&flat, &stage.norm, CONV_EPS);
            // As its convolutions, each map has as many whole patches as fit.
            let known = graph.options().size.map(|(height, width)| (height / STRIDES[s], width / STRIDES[s]));
            let positions = stage.positions_onnx(graph, known, &embedded);
            let mut locations = graph.add(&normed, &positions);
            let token = self.token.as_ref().filter(|_| s + 1 == self.stages.len());
            if let Some(ClassToken { token, .. }) = token {
                let token = graph.constant(&(token + stage.positions.narrow(1, 0, 1)), locations.kind());
                let rest = graph.ints(&[1, channels]);
                let shape = graph.concat(&[&batch, &rest], 0);
                let token = graph.op("Expand", &[&token, &shape], &[]);
                locations = graph.concat(&[&token, &locations], 1);
            }
            for (i, block) in stage.blocks.iter().enumerate() {
                graph.part(format!("backbone/stage{}.{i}", s + 1));
                locations = block.onnx(graph, &locations, channels, &map);
            }
            if let Some(ClassToken { norm, .. }) = token {
                let own = graph.slice(&locations, 1, 0, 1);
                let normed = graph.layer_norm(&own, norm, EPS);
                classified = Some(graph.reshape(&normed, &[0, channels, 1, 1]));
                locations = graph.slice(&locations, 1, 1, i64::MAX);
            }
            let flat = graph.transpose(&locations, &[0, 2, 1]);
            let width = graph.ints(&[channels]);
            x = graph.reshape_to(&flat, &[&batch, &width, &map]);
            maps.push(x.clone());
        }
        (maps, classified)
    }
}

impl Backbone for Pvt {
    fn channels(&self) -> &[i64] {
        &self.channels
    }

    fn strides(&self) -> &[i64] {
        &STRIDES
    }

    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>> {
        Ok(self.forward_to_classify(images, pass)?.0)
    }

    fn forward_to_classify(&self, images: &Tensor, pass: &mut Pass) -> Result<(Vec<Tensor>, Tensor)> {
        let size = images.size();
        ensure!(
            size[2] >= SMALLEST && size[3] >= SMALLEST,
            "images of {}×{} pixels are too small for a PVT: it takes {SMALLEST}×{SMALLEST} and more",
            size[2],
            size[3]
        );
        let mut x = channels_last(images);
        let (mut maps, mut classified) = (Vec::new(), None);
        for (s, stage) in self.stages.iter().enumerate() {
            let embedded = stage.patches.forward(&x).permute([0, 2, 3, 1]);
            let (batch, height, width, channels) = embedded.size4()?;
            let mut locations = stage.norm.forward(&embedded.flatten(1, 2)) + stage.positions((height, width));
            let token = self.token.as_ref().filter(|_| s + 1 == self.stages.len());
            if let Some(ClassToken { token, .. }) = token {
                let token = (token + stage.positions.narrow(1, 0, 1)).expand([batch, -1, -1], false);
                locations = Tensor::cat(&[token, locations], 1);
            }
            for block in &stage.blocks {
                locations = block.forward(&locations, (height, width), pass);
            }
            if let Some(ClassToken { norm, .. }) = token {
                classified = Some(norm.forward(&locations.narrow(1, 0, 1)).view([batch, channels, 1, 1]));
                locations = locations.narrow(1, 1, height * width);
            }
            x = locations.reshape([batch, height, width, channels]).permute([0, 3, 1, 2]);
            maps.push(x.shallow_clone());
        }
        Ok((maps, classified.unwrap_or(x)))
    }

    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>> {
        Ok(self.maps_onnx(graph, images).0)
    }

    fn onnx_to_classify(&self, graph: &mut Graph, images: &Value) -> Result<Value> {
        self.maps_onnx(graph, images).1.context("a classifier has a class token")
    }

    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        let mut size = image;
        let mut sizes = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            size = stage.patches.flops(size, visit);
            let token = i64::from(self.token.is_some() && s + 1 == self.stages.len());
            let locations = (size.0 * size.1 + token, 1);
            for block in &stage.blocks {
                let reduced = block.reduction.as_ref().map_or(locations, |reduction| reduction.conv.flops(size, visit));
                [&block.q, &block.proj].into_iter().for_each(|layer| count(layer, locations, visit));
                count(&block.kv, reduced, visit);
                attention(locations.0, reduced.0 * reduced.1, self.channels[s], visit);
                block.mlp.flops(locations, visit);
            }
            sizes.push(size);
        }
        sizes
    }
}
