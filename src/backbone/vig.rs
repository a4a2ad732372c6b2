//! ViG (Han et al., 2022): a convolutional stem, then stages of Grapher and FFN blocks. Isotropic ViG has one stage
//! (section 3.3 and Table 1); `pyramid_vig` plans the other kind.

use std::cell::Cell;

use anyhow::{ensure, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{nn, Device, Kind, Tensor};

use super::layers::{channels_last, ConvBn, ConvSpec};
use super::vig_block::Block;
use super::{check_batch, pyramid_vig, Backbone};
use crate::config::BackboneConfig;
use crate::describe::{Describe, Layer, Size};
use crate::graph::knn::Neighbours;
use crate::graph::relative::RelativePosition;
use crate::graph::{GraphTrace, GrapherSpec};

/// (channels, blocks) of a published isotropic model.
pub fn preset(name: &str) -> Option<([i64; 1], [i64; 1])> {
    Some(match name {
        "vig_ti" => ([192], [12]),
        "vig_s" => ([320], [16]),
        "vig_b" => ([640], [16]),
        _ => return None,
    })
}

/// Where the two kinds of ViG differ.
#[derive(Debug)]
pub(super) struct Plan {
    /// Channels after each stride-2 convolution of the stem; the last width comes twice in the stem.
    pub stem: Vec<i64>,
    pub stages: Vec<StagePlan>,
    /// Side of the grid of nodes in the first stage, at the native image size.
    pub grid: i64,
    /// Neighbours in the last block, unless the config says so.
    pub k_last: i64,
    /// Candidates that neighbours can spread over at the native image size, k·d at most.
    pub reach: i64,
    /// Whether relative positions enter the distances.
    pub relative: bool,
}

#[derive(Debug)]
pub(super) struct StagePlan {
    pub channels: i64,
    pub blocks: i64,
    /// Average pooling that makes candidates from nodes.
    pub reduce: i64,
}

/// The plan of isotropic ViG: patches of 16 pixels, k grows to twice its start, no relative position.
fn isotropic(config: &BackboneConfig) -> Result<Plan> {
    let ([channels], [blocks]) = config.stages(preset(&config.name))?;
    ensure!(
        channels % 8 == 0,
        "isotropic ViG takes channels that are a multiple of 8 (its stem starts with an eighth of them), not {channels}"
    );
    ensure!(
        config.image_size > 0 && config.image_size % 16 == 0,
        "model.backbone.image_size of isotropic ViG must be a multiple of 16, not {}",
        config.image_size
    );
    let grid = config.image_size / 16;
    Ok(Plan {
        stem: vec![channels / 8, channels / 4, channels / 2, channels],
        stages: vec![StagePlan { channels, blocks, reduce: 1 }],
        grid,
        k_last: 2 * config.k,
        reach: grid.pow(2),
        relative: false,
    })
}

/// ViG of either kind, without its classifier.
#[derive(Debug)]
pub struct Vig {
    stem: Vec<ConvBn>,
    /// `[1, C₁, grid, grid]`, resized bicubically for other images.
    pos_embed: Tensor,
    stages: Vec<Stage>,
    channels: Vec<i64>,
    strides: Vec<i64>,
    config: BackboneConfig,
    /// Seed and iteration that what is random in training is drawn from.
    counter: Cell<(u64, u64)>,
}

#[derive(Debug)]
struct Stage {
    /// 3×3 convolution with stride 2; none before the first stage.
    down: Option<ConvBn>,
    blocks: Vec<Block>,
}

/// A straight line from `first` to `last` in float32, as PyTorch rounds it.
fn line(first: f64, last: f64, steps: i64) -> Result<Vec<f64>> {
    let line = Tensor::f_linspace(first, last, steps, (Kind::Float, Device::Cpu))?;
    Ok(line.to_kind(Kind::Double).try_into()?)
}

impl Vig {
    /// Variables in the published names (`stem.convs.0.weight`, `backbone.0.0.graph_conv.gconv.nn.0.weight`, …) under `path`.
    ///
    /// # Errors
    /// If the config cannot be built: the message says which key of it.
    pub fn new(path: &nn::Path, config: &BackboneConfig) -> Result<Self> {
        let pyramid = config.name.starts_with("pvig_");
        let plan = if pyramid { pyramid_vig::plan(config)? } else { isotropic(config)? };
        ensure!(
            (0..=plan.stages.len() as i64).contains(&config.frozen_stages),
            "model.backbone.frozen_stages of {} is at most {}, not {}",
            config.name,
            plan.stages.len(),
            config.frozen_stages
        );
        let k_last = config.k_last.unwrap_or(plan.k_last);
        ensure!(config.k > 0 && k_last > 0, "model.backbone.k and k_last must be above 0");
        let eps = config.norm_eps;
        let total = plan.stages.iter().map(|s| s.blocks).sum();
        let ks = line(config.k as f64, k_last as f64, total)?;
        let drops = line(0.0, config.drop_path, total)?;
        let max_dilation = if config.dilation { (plan.reach / config.k.max(k_last)).max(1) } else { 1 };

        let layers = path / "backbone";
        let (mut index, mut layer, mut grid) = (0, 0, plan.grid as usize);
        let mut stages: Vec<Stage> = Vec::new();
        for (s, planned) in plan.stages.iter().enumerate() {
            let c = planned.channels;
            let down = (s > 0).then(|| {
                let p = &layers / layer / "conv";
                layer += 1;
                grid /= 2;
                ConvBn::new(
                    &p / "0",
                    &p / "1",
                    ConvSpec::new(plan.stages[s - 1].channels, c, 3).stride(2),
                    eps,
                )
            });
            let mut stage = Stage { down, blocks: Vec::new() };
            for _ in 0..planned.blocks {
                let relative =
                    || RelativePosition::new(c as usize, grid, planned.reduce as usize, config.relative);
                let spec = GrapherSpec {
                    channels: c,
                    conv: config.conv,
                    neighbours: Neighbours {
                        k: ks[index] as usize,
                        dilation: (index as i64 / 4 + 1).min(max_dilation) as usize,
                        search: config.graph,
                    },
                    stochastic: config.stochastic_dilation,
                    reduce: planned.reduce,
                    heads: config.heads,
                    fc: config.grapher_fc,
                    relative: plan.relative.then(relative).transpose()?,
                    norm_eps: eps,
                };
                stage.blocks.push(Block::new(&(&layers / layer), spec, config.ffn, drops[index])?);
                layer += 1;
                index += 1;
            }
            stages.push(stage);
        }

        let convs = path / "stem" / "convs";
        let mut stem = Vec::new();
        let last = plan.stem.last().copied().unwrap_or_default();
        let mut input = 3;
        for (i, &output) in plan.stem.iter().chain([&last]).enumerate() {
            let stride = if i < plan.stem.len() { 2 } else { 1 };
            // Convolution, norm and GELU count as three layers.
            let p = |n: usize| &convs / (3 * i + n);
            stem.push(ConvBn::new(p(0), p(1), ConvSpec::new(input, output, 3).stride(stride), eps));
            input = output;
        }
        let first = 1 << plan.stem.len();
        let model = Self {
            stem,
            pos_embed: path.zeros("pos_embed", &[1, last, plan.grid, plan.grid]),
            channels: plan.stages.iter().map(|s| s.channels).collect(),
            strides: (0..stages.len()).map(|s| first << s).collect(),
            stages,
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
        self.stem.iter().for_each(ConvBn::freeze);
        for stage in &self.stages[..self.config.frozen_stages as usize] {
            stage.down.iter().for_each(ConvBn::freeze);
            stage.blocks.iter().for_each(Block::freeze);
        }
    }
}

impl Backbone for Vig {
    fn channels(&self) -> &[i64] {
        &self.channels
    }

    fn strides(&self) -> &[i64] {
        &self.strides
    }

    fn forward(
        &self,
        images: &Tensor,
        train: bool,
        mut trace: Option<&mut GraphTrace>,
    ) -> Result<Vec<Tensor>> {
        let norms = train && !self.config.freeze_norms;
        if norms {
            check_batch(images, self.strides.last().copied().unwrap_or(1))?;
        }
        let norms_at = |stage: usize| norms && stage as i64 >= self.config.frozen_stages;
        let (seed, iteration) = self.counter.get();
        let mut noise = train.then(|| {
            let mut noise = ChaCha8Rng::seed_from_u64(seed);
            noise.set_stream(iteration);
            noise
        });
        let mut x = channels_last(images);
        for (i, layer) in self.stem.iter().enumerate() {
            if i > 0 {
                x = x.gelu("none");
            }
            x = layer.forward(&x, norms_at(0));
        }
        let size = x.size();
        x += if size[2..] == self.pos_embed.size()[2..] {
            self.pos_embed.shallow_clone()
        } else {
            self.pos_embed.upsample_bicubic2d([size[2], size[3]], false, None, None)
        };
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

    fn describe(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        let mut size = image;
        for layer in &self.stem {
            size = layer.describe(size, visit);
        }
        let mut sizes = Vec::new();
        for stage in &self.stages {
            if let Some(down) = &stage.down {
                size = down.describe(size, visit);
            }
            for block in &stage.blocks {
                size = block.describe(size, visit);
            }
            sizes.push(size);
        }
        sizes
    }
}
