//! GreedyViG (Munir et al., CVPR 2024) and AdaptViG (Munir et al., WACV 2026): stages of local blocks, then of graph
//! blocks whose nodes are linked along their rows and columns. Names are those of the authors' files
//! (`backbone.0.0.dws.pw1.weight`, `backbone.0.2.mixer.fc1.0.weight`, …).

mod attention;
mod graph_block;
mod local_block;

use anyhow::{ensure, Result};
use tch::{nn, Tensor};

use self::graph_block::{GraphBlock, Linking};
use self::local_block::LocalBlock;
use super::{drop_of, frozen_stages, norms_learn, Backbone, Pass};
use crate::config::BackboneConfig;
use crate::nn::cost::{Flops, Layer, Size};
use crate::nn::layers::{channels_last, gelu, ConvBn, ConvSpec};
use crate::onnx::{Graph, Value};

const STRIDES: [i64; 4] = [4, 8, 16, 32];
/// Nodes between a node and its neighbours, in each stage.
const STEPS: [i64; 4] = [8, 4, 2, 1];
/// Local blocks of a stage for each graph block.
const LOCAL: [i64; 4] = [1, 1, 3, 1];
/// What the scales of the residual branches start at.
const LAYER_SCALE: f64 = 1e-5;

/// (channels, graph blocks) of each stage of a published model.
pub(super) fn preset(name: &str) -> Option<([i64; 4], [i64; 4])> {
    Some(match name {
        "greedyvig_s" => ([48, 96, 192, 384], [2; 4]),
        "greedyvig_m" => ([56, 112, 224, 448], [3; 4]),
        "greedyvig_b" => ([64, 128, 256, 512], [4, 4, 4, 3]),
        "adaptvig_s" => ([32, 64, 128, 256], [3; 4]),
        "adaptvig_m" => ([48, 96, 192, 320], [4; 4]),
        "adaptvig_b" => ([48, 96, 192, 384], [5; 4]),
        _ => return None,
    })
}

/// The scale of a residual branch, `[channels]`, under `path`.
fn layer_scale(path: &nn::Path, name: &str, channels: i64) -> Tensor {
    path.var(name, &[channels], nn::Init::Const(LAYER_SCALE))
}

/// A branch `[B, C, H, W]`, scaled.
fn scaled(branch: Tensor, scale: &Tensor) -> Tensor {
    branch * scale.view([-1, 1, 1])
}

/// [`scaled`], as nodes of a graph.
fn scaled_onnx(graph: &mut Graph, branch: &Value, scale: &Tensor) -> Value {
    let scale = graph.constant(&scale.view([-1, 1, 1]), branch.kind());
    graph.mul(branch, &scale)
}

#[derive(Debug)]
struct Stage {
    /// 3×3 convolution with stride 2; none before the first stage.
    down: Option<ConvBn>,
    local: Vec<LocalBlock>,
    graph: Vec<GraphBlock>,
}

/// A GreedyViG or AdaptViG without its classes.
#[derive(Debug)]
pub struct AxialVig {
    /// Two 3×3 convolutions with stride 2.
    stem: [ConvBn; 2],
    stages: Vec<Stage>,
    channels: [i64; 4],
    /// Stages that do not learn; the stem belongs to the first.
    frozen_stages: usize,
    /// Batch norms keep their running statistics in training.
    freeze_norms: bool,
}

impl AxialVig {
    /// Random weights under `path`, in the published names.
    ///
    /// # Errors
    /// If the config cannot be built: the message says which key of it.
    pub fn new(path: &nn::Path, config: &BackboneConfig) -> Result<Self> {
        let (channels, blocks) = config.stages(preset(&config.name))?;
        let frozen_stages = frozen_stages(config, STRIDES.len())?;
        let adaptive = config.name.starts_with("adaptvig");
        ensure!(
            channels[0] % 2 == 0 && (!adaptive || channels[3] % attention::REDUCTION == 0),
            "model.backbone.channels of {} must be even in the first stage{}, not {channels:?}",
            config.name,
            if adaptive { " and a multiple of 4 in the last" } else { "" }
        );
        let eps = config.norm_eps;
        let down = |input, output| ConvSpec::new(input, output, 3).stride(2);
        let stem = path / "stem" / "stem";
        let half = channels[0] / 2;
        let stem = [
            ConvBn::new(&stem / "0", &stem / "1", down(3, half), eps),
            ConvBn::new(&stem / "3", &stem / "4", down(half, channels[0]), eps),
        ];
        let total = blocks.iter().zip(LOCAL).map(|(graph, local)| graph * (1 + local)).sum();
        let mut index = 0;
        let mut drop = || {
            index += 1;
            drop_of(config, index - 1, &[total])
        };
        let mut stages = Vec::new();
        for (s, (&c, &count)) in channels.iter().zip(&blocks).enumerate() {
            let path = path / "backbone" / s;
            let linking = match (adaptive, s + 1 == STRIDES.len()) {
                (false, _) => Linking::Near,
                (true, false) => Linking::Gated,
                (true, true) => Linking::Attention,
            };
            let first = i64::from(s > 0);
            let locals = count * LOCAL[s];
            let local = |i| LocalBlock::new(&(&path / (first + i)), c, eps, drop());
            let local = (0..locals).map(local).collect();
            let graph = |i| {
                let path = &path / (first + locals + i);
                GraphBlock::new(&path, linking, (c, STEPS[s]), config, drop())
            };
            stages.push(Stage {
                down: (s > 0).then(|| ConvBn::at(&path / 0 / "conv", down(channels[s - 1], c), eps)),
                local,
                graph: (0..count).map(graph).collect(),
            });
        }
        let model = Self { stem, stages, channels, frozen_stages, freeze_norms: config.freeze_norms };
        if frozen_stages > 0 {
            model.stem.iter().for_each(ConvBn::freeze);
        }
        for stage in &model.stages[..frozen_stages] {
            stage.down.iter().for_each(ConvBn::freeze);
            stage.local.iter().for_each(LocalBlock::freeze);
            stage.graph.iter().for_each(GraphBlock::freeze);
        }
        Ok(model)
    }
}

impl Backbone for AxialVig {
    fn channels(&self) -> &[i64] {
        &self.channels
    }

    fn strides(&self) -> &[i64] {
        &STRIDES
    }

    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>> {
        let norms = norms_learn(images, STRIDES[3], self.freeze_norms, pass)?;
        let norms_at = |stage: usize| norms && stage >= self.frozen_stages;
        let mut x = channels_last(images);
        for layer in &self.stem {
            x = gelu(layer.forward(&x, norms_at(0)));
        }
        let mut maps = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            if let Some(down) = &stage.down {
                x = down.forward(&x, norms_at(s));
            }
            for block in &stage.local {
                x = block.forward(&x, norms_at(s), pass);
            }
            if let Some(trace) = pass.trace() {
                trace.stride = STRIDES[s];
                if s == 0 {
                    trace.keep(&x);
                }
            }
            for block in &stage.graph {
                x = block.forward(&x, norms_at(s), pass)?;
                if let Some(trace) = pass.trace() {
                    trace.keep(&x);
                }
            }
            maps.push(x.shallow_clone());
        }
        Ok(maps)
    }

    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>> {
        graph.part("backbone/stem");
        let mut x = images.clone();
        for layer in &self.stem {
            x = layer.onnx(graph, &x);
            x = graph.gelu(&x);
        }
        let (mut maps, mut index) = (Vec::new(), 0);
        for (s, stage) in self.stages.iter().enumerate() {
            let name = format!("backbone/stage{}", s + 1);
            graph.part(&*name);
            if let Some(down) = &stage.down {
                x = down.onnx(graph, &x);
            }
            for (i, block) in stage.local.iter().enumerate() {
                graph.part(format!("{name}.local.{i}"));
                x = block.onnx(graph, &x);
            }
            let map = graph.map_size(STRIDES[s]);
            for (i, block) in stage.graph.iter().enumerate() {
                graph.part(format!("{name}.graph.{i}"));
                x = block.onnx(graph, &x, map, index);
                index += 1;
            }
            maps.push(x.clone());
        }
        Ok(maps)
    }

    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        let mut size = self.stem.iter().fold(image, |size, layer| layer.flops(size, visit));
        let mut sizes = Vec::new();
        for stage in &self.stages {
            size = stage.down.iter().fold(size, |size, down| down.flops(size, visit));
            size = stage.local.iter().fold(size, |size, block| block.flops(size, visit));
            size = stage.graph.iter().fold(size, |size, block| block.flops(size, visit));
            sizes.push(size);
        }
        sizes
    }
}
