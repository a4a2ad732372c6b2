//! Pyramid ViG (Han et al., 2022, section 3.3 and Table 2): four stages of Grapher and FFN blocks on a shrinking grid.

use std::cell::Cell;

use anyhow::{ensure, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{nn, Tensor};

use super::layers::{channels_last, ConvBn, ConvSpec};
use super::{check_batch, Backbone};
use crate::config::BackboneConfig;
use crate::graph::knn::Neighbours;
use crate::graph::relative::RelativePosition;
use crate::graph::{GraphTrace, Grapher, GrapherSpec};

/// Side of the published position embedding: 224 pixels at stride 4.
pub(crate) const NATIVE_GRID: i64 = 56;
/// Average pooling that makes the candidates of each stage from its nodes.
pub(crate) const REDUCE: [i64; 4] = [4, 2, 1, 1];
const STRIDES: [i64; 4] = [4, 8, 16, 32];

/// (channels, blocks) of each stage of a published model.
pub fn preset(name: &str) -> Option<([i64; 4], [i64; 4])> {
    Some(match name {
        "pvig_ti" => ([48, 96, 240, 384], [2, 2, 6, 2]),
        "pvig_s" => ([80, 160, 400, 640], [2, 2, 6, 2]),
        "pvig_m" => ([96, 192, 384, 768], [2, 2, 16, 2]),
        "pvig_b" => ([128, 256, 512, 1024], [2, 2, 18, 2]),
        _ => return None,
    })
}

/// Pyramid ViG without its classifier.
#[derive(Debug)]
pub struct PyramidVig {
    stem: Stem,
    /// `[1, C₁, 56, 56]`, resized bicubically for other images.
    pos_embed: Tensor,
    stages: Vec<Stage>,
    channels: Vec<i64>,
    config: BackboneConfig,
    /// Seed and iteration that stochastic depth is drawn from.
    counter: Cell<(u64, u64)>,
}

#[derive(Debug)]
struct Stage {
    /// 3×3 convolution with stride 2; none before the first stage.
    down: Option<ConvBn>,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    grapher: Grapher,
    ffn1: ConvBn,
    ffn2: ConvBn,
    /// Probability that a branch of this block is left out for an image, in training.
    drop: f64,
}

#[derive(Debug)]
struct Stem {
    layers: [ConvBn; 3],
}

impl Stem {
    fn new(path: &nn::Path, channels: i64, eps: f64) -> Self {
        let half = channels / 2;
        let layer = |i: i64, spec: ConvSpec| ConvBn::new(path / i, path / (i + 1), spec, eps);
        Self {
            layers: [
                layer(0, ConvSpec::new(3, half, 3).stride(2)),
                layer(3, ConvSpec::new(half, channels, 3).stride(2)),
                layer(6, ConvSpec::new(channels, channels, 3)),
            ],
        }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let [a, b, c] = &self.layers;
        let x = a.forward(x, train).gelu("none");
        let x = b.forward(&x, train).gelu("none");
        c.forward(&x, train)
    }
}

impl Block {
    /// `noise` draws what stochastic depth leaves out; `None` outside training.
    fn forward(
        &self,
        x: &Tensor,
        train: bool,
        noise: Option<&mut ChaCha8Rng>,
        trace: Option<&mut GraphTrace>,
    ) -> Result<Tensor> {
        let images = x.size()[0];
        let (keep_graph, keep_ffn) = match noise {
            Some(noise) if self.drop > 0.0 => {
                (Some(survivors(images, self.drop, noise, x)), Some(survivors(images, self.drop, noise, x)))
            }
            _ => (None, None),
        };
        let branch = self.grapher.forward(x, train, trace)?;
        let x = x + keep(branch, keep_graph);
        let branch = self.ffn2.forward(&self.ffn1.forward(&x, train).gelu("none"), train);
        Ok(&x + keep(branch, keep_ffn))
    }

    fn layers(&self) -> impl Iterator<Item = &ConvBn> {
        self.grapher.layers().into_iter().chain([&self.ffn1, &self.ffn2])
    }
}

/// `[B, 1, 1, 1]`: 0 for an image whose branch is left out, else 1 / (probability of staying).
fn survivors(images: i64, drop: f64, noise: &mut ChaCha8Rng, like: &Tensor) -> Tensor {
    let scale = (1.0 / (1.0 - drop)) as f32;
    let values: Vec<f32> =
        (0..images).map(|_| if noise.random::<f64>() < drop { 0.0 } else { scale }).collect();
    Tensor::from_slice(&values).view([images, 1, 1, 1]).to_device(like.device()).to_kind(like.kind())
}

fn keep(branch: Tensor, mask: Option<Tensor>) -> Tensor {
    match mask {
        Some(mask) => branch * mask,
        None => branch,
    }
}

impl PyramidVig {
    /// Variables in the published names (`stem.convs.0.weight`, `backbone.0.0.graph_conv.gconv.nn.0.weight`, …) under `path`.
    pub fn new(path: &nn::Path, config: &BackboneConfig) -> Result<Self> {
        let (channels, blocks) = config.stages(preset(&config.name))?;
        ensure!(
            channels.iter().all(|c| c % 4 == 0),
            "Pyramid ViG takes channels that are multiples of 4 (position tables have four parts, updates four groups), not {channels:?}"
        );
        let eps = config.norm_eps;
        let total: i64 = blocks.iter().sum();
        let max_dilation = (NATIVE_GRID / 8).pow(2) / config.k;
        let layers = path / "backbone";
        let (mut index, mut layer, mut grid) = (0, 0, NATIVE_GRID as usize);
        let mut stages = Vec::new();
        for (s, (&c, &depth)) in channels.iter().zip(&blocks).enumerate() {
            let down = (s > 0).then(|| {
                let p = &layers / layer / "conv";
                layer += 1;
                grid /= 2;
                ConvBn::new(&p / "0", &p / "1", ConvSpec::new(channels[s - 1], c, 3).stride(2), eps)
            });
            let mut stage = Stage { down, blocks: Vec::new() };
            for _ in 0..depth {
                let p = &layers / layer;
                let spec = GrapherSpec {
                    channels: c,
                    neighbours: Neighbours {
                        k: config.k as usize,
                        dilation: (index / 4 + 1).min(max_dilation).max(1) as usize,
                        search: config.graph,
                    },
                    reduce: REDUCE[s],
                    heads: 4,
                    relative: Some(RelativePosition::new(
                        c as usize,
                        grid,
                        REDUCE[s] as usize,
                        config.relative,
                    )?),
                    norm_eps: eps,
                };
                let ffn = &p / "1";
                stage.blocks.push(Block {
                    grapher: Grapher::new(&(&p / "0"), spec),
                    ffn1: ConvBn::new(
                        &ffn / "fc1" / "0",
                        &ffn / "fc1" / "1",
                        ConvSpec::new(c, 4 * c, 1),
                        eps,
                    ),
                    ffn2: ConvBn::new(
                        &ffn / "fc2" / "0",
                        &ffn / "fc2" / "1",
                        ConvSpec::new(4 * c, c, 1),
                        eps,
                    ),
                    drop: config.drop_path * index as f64 / (total - 1).max(1) as f64,
                });
                layer += 1;
                index += 1;
            }
            stages.push(stage);
        }
        let model = Self {
            stem: Stem::new(&(path / "stem" / "convs"), channels[0], eps),
            pos_embed: path.zeros("pos_embed", &[1, channels[0], NATIVE_GRID, NATIVE_GRID]),
            stages,
            channels: channels.to_vec(),
            config: config.clone(),
            counter: Cell::new((0, 0)),
        };
        model.freeze();
        Ok(model)
    }

    /// Takes the weights of the frozen stages out of training.
    fn freeze(&self) {
        if self.config.frozen_stages < 1 {
            return;
        }
        let _ = self.pos_embed.set_requires_grad(false);
        self.stem.layers.iter().for_each(ConvBn::freeze);
        for stage in &self.stages[..self.config.frozen_stages as usize] {
            stage.down.iter().chain(stage.blocks.iter().flat_map(Block::layers)).for_each(ConvBn::freeze);
        }
    }
}

impl Backbone for PyramidVig {
    fn channels(&self) -> &[i64] {
        &self.channels
    }

    fn strides(&self) -> &[i64] {
        &STRIDES
    }

    fn forward(
        &self,
        images: &Tensor,
        train: bool,
        mut trace: Option<&mut GraphTrace>,
    ) -> Result<Vec<Tensor>> {
        let norms = train && !self.config.freeze_norms;
        if norms {
            check_batch(images, 32)?;
        }
        let norms_at = |stage: usize| norms && stage as i64 >= self.config.frozen_stages;
        let (seed, iteration) = self.counter.get();
        let mut noise = train.then(|| {
            let mut noise = ChaCha8Rng::seed_from_u64(seed);
            noise.set_stream(iteration);
            noise
        });
        let x = self.stem.forward(&channels_last(images), norms_at(0));
        let size = x.size();
        let position = if size[2..] == [NATIVE_GRID, NATIVE_GRID] {
            self.pos_embed.shallow_clone()
        } else {
            self.pos_embed.upsample_bicubic2d([size[2], size[3]], false, None, None)
        };
        let mut x = x + position;
        let mut maps = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            if let Some(down) = &stage.down {
                x = down.forward(&x, norms_at(s));
            }
            for block in &stage.blocks {
                x = block.forward(&x, norms_at(s), noise.as_mut(), trace.as_deref_mut())?;
            }
            maps.push(x.shallow_clone());
        }
        Ok(maps)
    }

    fn set_iteration(&self, seed: u64, iteration: u64) {
        self.counter.set((seed, iteration));
    }
}
