//! ViG (Han et al., 2022): a convolutional stem, then stages of Grapher and FFN blocks. Isotropic ViG has one stage
//! (section 3.3 and Table 1), Pyramid ViG four.

mod block;
pub mod isotropic;
pub mod pyramid;

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{ensure, Result};
use tch::{nn, Device, Kind, Tensor};

use self::block::Block;
use super::{norms_learn, Backbone, Pass};
use crate::config::BackboneConfig;
use crate::graph::knn::Neighbours;
use crate::graph::relative::RelativePosition;
use crate::graph::GrapherSpec;
use crate::nn::cost::{Flops, Layer, Size};
use crate::nn::layers::{channels_last, gelu, ConvBn, ConvSpec};
use crate::nn::padding::{clear, Extents};
use crate::nn::recompute::{after_gelu, checkpoint, keeps_less};
use crate::onnx::{Graph, Resize, Value};

/// Where the two kinds of ViG differ.
#[derive(Debug)]
pub(super) struct Plan {
    /// Channels after each stride-2 convolution of the stem; the last width comes twice in the stem.
    pub stem: Vec<i64>,
    /// Channels and blocks of each stage.
    pub channels: Vec<i64>,
    pub blocks: Vec<i64>,
    /// Average pooling that makes the candidates of each stage from its nodes.
    pub reduce: &'static [i64],
    /// Side of the grid of nodes in the first stage, at the native image size.
    pub grid: i64,
    /// Neighbours in the last block, unless the config says so.
    pub k_last: i64,
    /// Candidates that neighbours can spread over at the native image size, k·d at most.
    pub reach: i64,
    /// Whether relative positions enter the distances.
    pub relative: bool,
}

/// ViG of either kind, without its classifier.
#[derive(Debug)]
pub struct Vig {
    stem: Vec<ConvBn>,
    /// `[1, C₁, grid, grid]`, resized bicubically for other images.
    pos_embed: Tensor,
    /// The last such embedding, channels last, of one that does not learn, and how often libtorch had changed that.
    resized: RefCell<Option<(Tensor, i64)>>,
    stages: Vec<Shared>,
    channels: Vec<i64>,
    strides: Vec<i64>,
    /// Stages that do not learn; the stem belongs to the first.
    frozen_stages: usize,
    /// Batch norms keep their running statistics in training.
    freeze_norms: bool,
    /// Dilation is drawn, too.
    stochastic_dilation: bool,
}

#[derive(Debug)]
struct Stage {
    /// 3×3 convolution with stride 2; none before the first stage.
    down: Option<ConvBn>,
    blocks: Vec<Block>,
}

impl Stage {
    /// `norms`: batch statistics; `stride`: pixels between its nodes.
    fn forward(&self, x: &Tensor, norms: bool, stride: i64, pass: &mut Pass) -> Result<Tensor> {
        let mut x = x.shallow_clone();
        if let Some(down) = &self.down {
            x = down.forward(&clear(x, pass.extents()), norms);
        }
        if let Some(trace) = pass.trace() {
            trace.stride = stride;
            if self.down.is_none() {
                trace.keep(&x);
            }
        }
        for block in &self.blocks {
            x = block.forward(&x, norms, pass)?;
            if let Some(trace) = pass.trace() {
                trace.keep(&x);
            }
        }
        Ok(x)
    }
}

/// A stage that the graph of a pass may hold, too, to run it again: on whichever thread a backward pass runs.
#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Stage>>);

impl Shared {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Stage::forward`], of which nothing in between is kept: it is run again for its gradient.
    fn forward_again(&self, x: &Tensor, norms: bool, stride: i64, pass: &mut Pass) -> Result<Tensor> {
        let (start, mut first) = (pass.part(), pass.part());
        let out = tch::no_grad(|| self.stage().forward(x, norms, stride, &mut first))?;
        let tape = pass.go_on_from(first).rewound();
        let shared = self.clone();
        checkpoint(x, out, move |x| shared.stage().forward(x, norms, stride, &mut start.with_tape(tape)))
    }
}

/// A straight line from `first` to `last` in float32, as PyTorch rounds it.
fn line(first: f64, last: f64, steps: i64) -> Result<Vec<f64>> {
    let line = Tensor::f_linspace(first, last, steps, (Kind::Float, Device::Cpu))?;
    Ok(line.to_kind(Kind::Double).try_into()?)
}

impl Vig {
    /// Variables in the published names (`stem.convs.0.weight`, `backbone.0.0.graph_conv.gconv.nn.0.weight`, …) under
    /// `path`.
    ///
    /// # Errors
    /// If the config cannot be built: the message says which key of it.
    pub fn new(path: &nn::Path, config: &BackboneConfig) -> Result<Self> {
        let pyramid = config.name.starts_with("pvig_");
        let plan = if pyramid { pyramid::plan(config)? } else { isotropic::plan(config)? };
        ensure!(
            (0..=plan.channels.len() as i64).contains(&config.frozen_stages),
            "model.backbone.frozen_stages of {} is at most {}, not {}",
            config.name,
            plan.channels.len(),
            config.frozen_stages
        );
        let k_last = config.k_last.unwrap_or(plan.k_last);
        ensure!(config.k > 0 && k_last > 0, "model.backbone.k and k_last must be above 0");
        let eps = config.norm_eps;
        let total = plan.blocks.iter().sum();
        let ks = line(config.k as f64, k_last as f64, total)?;
        let drops = line(0.0, config.drop_path, total)?;
        let max_dilation = if config.dilation { (plan.reach / config.k.max(k_last)).max(1) } else { 1 };

        let layers = path / "backbone";
        let (mut index, mut layer, mut grid) = (0, 0, plan.grid as usize);
        let mut stages: Vec<Shared> = Vec::new();
        for (s, ((&c, &blocks), &reduce)) in plan.channels.iter().zip(&plan.blocks).zip(plan.reduce).enumerate() {
            let down = (s > 0).then(|| {
                let spec = ConvSpec::new(plan.channels[s - 1], c, 3).stride(2);
                let down = ConvBn::at(&layers / layer / "conv", spec, eps);
                (layer, grid) = (layer + 1, grid / 2);
                down
            });
            let mut stage = Stage { down, blocks: Vec::new() };
            for _ in 0..blocks {
                let relative = || RelativePosition::new(c as usize, grid, reduce as usize, config.relative);
                let spec = GrapherSpec {
                    channels: c,
                    conv: config.conv,
                    neighbours: Neighbours {
                        k: ks[index] as usize,
                        dilation: (index as i64 / 4 + 1).min(max_dilation) as usize,
                        search: config.graph,
                    },
                    stochastic: config.stochastic_dilation,
                    reduce,
                    heads: config.heads,
                    fc: config.grapher_fc,
                    relative: plan.relative.then(relative).transpose()?,
                    norm_eps: eps,
                };
                stage.blocks.push(Block::new(&(&layers / layer), spec, config.ffn, drops[index])?);
                layer += 1;
                index += 1;
            }
            stages.push(Shared(Arc::new(Mutex::new(stage))));
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
            resized: RefCell::new(None),
            channels: plan.channels,
            strides: (0..stages.len()).map(|s| first << s).collect(),
            stages,
            frozen_stages: config.frozen_stages as usize,
            freeze_norms: config.freeze_norms,
            stochastic_dilation: config.stochastic_dilation > 0.0,
        };
        if model.frozen_stages > 0 {
            let _ = model.pos_embed.set_requires_grad(false);
            model.stem.iter().for_each(ConvBn::freeze);
        }
        for stage in &model.stages[..model.frozen_stages] {
            stage.stage().down.iter().for_each(ConvBn::freeze);
            stage.stage().blocks.iter().for_each(Block::freeze);
        }
        Ok(model)
    }

    /// The probabilities of stochastic depth of all branches.
    fn depth(&self) -> Vec<f64> {
        let of_stage = |stage: &Shared| stage.stage().blocks.iter().flat_map(Block::depth).collect::<Vec<_>>();
        self.stages.iter().flat_map(of_stage).collect()
    }

    /// The stem: images to nodes, `[B, C₁, H / 4, W / 4]` in a pyramid.
    fn embed(&self, images: &Tensor, norms: bool, extents: Option<&Extents>) -> Result<Tensor> {
        let x = channels_last(images);
        let [first, others @ ..] = &self.stem[..] else { return Ok(x) };
        if !keeps_less(first, &[&x], norms) {
            let next = |x: Tensor, layer: &ConvBn| layer.forward(&clear(gelu(x), extents), norms);
            return Ok(others.iter().fold(first.forward(&x, norms), next));
        }
        let (mut x, mut last) = (first.convolve(&x), first);
        for layer in others {
            let mask = extents.map(|extents| extents.mask(&x));
            x = after_gelu(last, layer, &x, mask.as_ref())?;
            last = layer;
        }
        Ok(last.normalize(&x))
    }

    /// The position embeddings for grids of nodes in a batch's grid, `[B, C₁, height, width]`: each image has its own.
    fn positions(&self, height: i64, width: i64, extents: &Extents) -> Tensor {
        let own = |(h, w)| self.position(h, w).constant_pad_nd([0, width - w, 0, height - h]);
        Tensor::cat(&extents.on((height, width)).into_iter().map(own).collect::<Vec<_>>(), 0)
    }

    /// The position embedding for a grid of nodes, `[1, C₁, height, width]`.
    fn position(&self, height: i64, width: i64) -> Tensor {
        let resize = || {
            if self.pos_embed.size()[2..] == [height, width] {
                self.pos_embed.shallow_clone()
            } else {
                self.pos_embed.upsample_bicubic2d([height, width], false, None, None)
            }
        };
        if self.pos_embed.requires_grad() {
            return resize();
        }
        let version = self.pos_embed.internal_version();
        let mut resized = self.resized.borrow_mut();
        match &*resized {
            Some((kept, then)) if *then == version && kept.size()[2..] == [height, width] => kept.shallow_clone(),
            _ => {
                let kept = channels_last(&resize());
                *resized = Some((kept.shallow_clone(), version));
                kept
            }
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

    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>> {
        let norms = norms_learn(images, self.strides.last().copied().unwrap_or(1), self.freeze_norms, pass)?;
        let norms_at = |stage: usize| norms && stage >= self.frozen_stages;
        let extents = pass.extents().cloned();
        let extents = extents.as_ref();
        let mut x = self.embed(images, norms_at(0), extents)?;
        let (_, _, height, width) = x.size4()?;
        x += match extents {
            Some(extents) => self.positions(height, width, extents),
            None => self.position(height, width),
        };
        if !self.stochastic_dilation {
            pass.draw_depth(self.depth(), x.size()[0], x.device());
        }
        let mut maps = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            let (norms, stride) = (norms_at(s), self.strides[s]);
            let again = (self.frozen_stages..pass.recomputed()).contains(&s) && pass.trace().is_none();
            x = match again {
                true => stage.forward_again(&x, norms, stride, pass)?,
                false => stage.stage().forward(&x, norms, stride, pass)?,
            };
            maps.push(x.shallow_clone());
        }
        Ok(maps)
    }

    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>> {
        graph.part("backbone/stem");
        let mut x = images.clone();
        for (i, layer) in self.stem.iter().enumerate() {
            if i > 0 {
                x = graph.gelu(&x);
            }
            x = layer.onnx(graph, &x);
        }
        let positions = match graph.map_size(self.strides[0]) {
            Some((height, width)) => graph.constant(&self.position(height, width), x.kind()),
            None => {
                let (native, size) = (graph.constant(&self.pos_embed, x.kind()), graph.shape(&x, 2, 4));
                graph.resize(&native, &size, Resize::Cubic)
            }
        };
        x = graph.add(&x, &positions);
        let (mut maps, mut index) = (Vec::new(), 0);
        for (s, stage) in self.stages.iter().enumerate() {
            let stage = stage.stage();
            graph.part(format!("backbone/stage{}", s + 1));
            if let Some(down) = &stage.down {
                x = down.onnx(graph, &x);
            }
            let map = graph.map_size(self.strides[s]);
            for (i, block) in stage.blocks.iter().enumerate() {
                graph.part(format!("backbone/stage{}.{i}", s + 1));
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
            let stage = stage.stage();
            size = stage.down.iter().fold(size, |size, down| down.flops(size, visit));
            size = stage.blocks.iter().fold(size, |size, block| block.flops(size, visit));
            sizes.push(size);
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::graph::GraphTrace;

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn config(name: &str, changes: impl FnOnce(&mut BackboneConfig)) -> BackboneConfig {
        let channels = if name.starts_with("pvig") { vec![8; 4] } else { vec![8] };
        let blocks = if name.starts_with("pvig") { vec![1, 1, 2, 1] } else { vec![12] };
        let mut config = BackboneConfig {
            name: name.into(),
            channels: Some(channels),
            blocks: Some(blocks),
            drop_path: 0.0,
            ..Default::default()
        };
        changes(&mut config);
        config
    }

    fn build(config: &BackboneConfig) -> (nn::VarStore, Vig) {
        let store = nn::VarStore::new(Device::Cpu);
        let model = Vig::new(&store.root(), config).unwrap();
        (store, model)
    }

    fn images(size: &[i64]) -> Tensor {
        (Tensor::arange(size.iter().product::<i64>(), OPTIONS) * 12.9898).sin().view(size)
    }

    fn neighbours(config: &BackboneConfig, side: i64) -> Vec<i64> {
        let mut trace = GraphTrace::default();
        let (_, model) = build(config);
        tch::no_grad(|| model.forward(&images(&[1, 3, side, side]), &mut Pass::inference().with_trace(&mut trace)))
            .unwrap();
        trace.blocks.iter().map(|b| b.edges.size()[2]).collect()
    }

    #[test]
    fn neighbours_grow_in_isotropic_vig_and_stay_in_pyramids() {
        let growing = [9, 9, 10, 11, 12, 13, 13, 14, 15, 16, 17, 18];
        assert_eq!(neighbours(&config("vig_ti", |_| ()), 128), growing);
        assert_eq!(neighbours(&config("vig_ti", |c| c.k_last = Some(9)), 128), [9; 12]);
        assert_eq!(neighbours(&config("pvig_ti", |_| ()), 128), [9; 5]);
        // 32 pixels: 2 × 2 candidates, 2 × 2, 2 × 2, one.
        assert_eq!(neighbours(&config("pvig_ti", |_| ()), 32), [4, 4, 4, 4, 1]);
    }

    #[test]
    fn initial_weights_are_as_published() {
        let (store, _) = build(&config("pvig_ti", |c| c.channels = Some(vec![64; 4])));
        for (name, value) in store.variables() {
            let (mean, deviation) = (value.mean(Kind::Float), value.std(false));
            let (mean, deviation) = (mean.double_value(&[]), deviation.double_value(&[]));
            if value.dim() == 4 && name != "pos_embed" {
                let expected = (2.0 / value.get(0).numel() as f64).sqrt();
                assert!((deviation / expected - 1.0).abs() < 0.1, "{name}: {deviation}, not {expected}");
            } else {
                let expected = if name.ends_with(".weight") || name.ends_with("running_var") { 1.0 } else { 0.0 };
                assert_eq!((mean, deviation), (expected, 0.0), "{name}");
            }
        }
    }

    #[test]
    fn what_is_random_in_training_is_drawn_from_seed_and_iteration_alone() {
        for changes in [
            (|c| c.drop_path = 0.5) as fn(&mut BackboneConfig),
            // Of the 16 nearest of 64 candidates 4, in the second block of stage 3.
            |c| (c.stochastic_dilation, c.k, c.blocks) = (1.0, 4, Some(vec![1, 1, 8, 1])),
        ] {
            let (_, model) = build(&config("pvig_ti", changes));
            let x = images(&[2, 3, 128, 128]);
            let run = |mut pass: Pass| tch::no_grad(|| model.forward(&x, &mut pass)).unwrap().remove(3);
            // Running statistics do not enter a training pass.
            let first = run(Pass::training(7, 3));
            assert_eq!(run(Pass::training(7, 3)), first);
            assert_ne!(run(Pass::training(7, 4)), first);
            assert_ne!(run(Pass::training(8, 3)), first);
            assert_eq!(run(Pass::inference()), run(Pass::inference()));
        }
    }

    #[test]
    fn stochastic_depth_rises_linearly_from_nothing() {
        let (_, model) = build(&config("pvig_ti", |c| c.drop_path = 0.8));
        // Each block has two branches.
        let drops: Vec<f64> = model.depth().into_iter().step_by(2).collect();
        let expected = [0.0, 0.2, 0.4, 0.6, 0.8];
        assert!(drops.iter().zip(expected).all(|(d, e)| (d - e).abs() < 1e-6), "{drops:?}");
    }

    #[test]
    fn ablations_leave_out_what_they_say() {
        let names = |changes: fn(&mut BackboneConfig)| -> Vec<String> {
            let (store, model) = build(&config("vig_ti", changes));
            let out = model.forward(&images(&[2, 3, 64, 64]), &mut Pass::training(0, 0)).unwrap();
            assert_eq!(out[0].size(), [2, 8, 4, 4]);
            let mut names: Vec<String> = store.variables().into_keys().collect();
            names.retain(|n| n.starts_with("backbone.0.") && n.ends_with(".weight") && !n.ends_with(".1.weight"));
            names.sort();
            names
        };
        let (fc1, conv, fc2) =
            ("backbone.0.0.fc1.0.weight", "backbone.0.0.graph_conv.gconv.nn.0.weight", "backbone.0.0.fc2.0.weight");
        let ffn = ["backbone.0.1.fc1.0.weight", "backbone.0.1.fc2.0.weight"];
        assert_eq!(names(|_| ()), [fc1, fc2, conv, ffn[0], ffn[1]]);
        assert_eq!(names(|c| c.grapher_fc = false), [conv, ffn[0], ffn[1]]);
        assert_eq!(names(|c| c.ffn = false), [fc1, fc2, conv]);
        assert_eq!(names(|c| (c.ffn, c.grapher_fc) = (false, false)), [conv]);
    }

    #[test]
    fn a_training_batch_that_would_break_a_norm_is_refused() {
        let (_, model) = build(&config("pvig_ti", |_| ()));
        let error = model.forward(&images(&[1, 3, 32, 32]), &mut Pass::training(0, 0)).unwrap_err().to_string();
        assert!(error.contains("1 image of 32×32"), "{error}");
        model.forward(&images(&[2, 3, 32, 32]), &mut Pass::training(0, 0)).unwrap();
        model.forward(&images(&[1, 3, 32, 32]), &mut Pass::inference()).unwrap();
    }

    #[test]
    fn frozen_stages_do_not_learn_and_keep_their_statistics() {
        let (store, model) = build(&config("pvig_ti", |c| c.frozen_stages = 2));
        let x = images(&[2, 3, 64, 64]);
        let before = store.variables()["stem.convs.1.running_mean"].copy();
        model.forward(&x, &mut Pass::training(0, 0)).unwrap()[3].mean(Kind::Float).backward();
        assert_eq!(store.variables()["stem.convs.1.running_mean"], before);
        for (name, value) in store.variables() {
            // Stage 2 ends with layer 2; layer 3 leads to stage 3.
            let layer: Option<usize> = name.strip_prefix("backbone.").and_then(|n| n.split('.').next()?.parse().ok());
            let learns = layer.is_some_and(|layer| layer >= 3) && !name.contains("running");
            assert_eq!(value.requires_grad(), learns, "{name}");
        }
    }

    #[test]
    fn stages_that_are_run_again_give_the_same_maps_gradients_and_statistics() {
        let x = images(&[2, 3, 128, 128]);
        let extents = Extents::new((128, 128), &[(128, 128), (96, 64)]);
        for (changes, extents) in [
            ((|c| c.drop_path = 0.5) as fn(&mut BackboneConfig), extents),
            (|c| (c.stochastic_dilation, c.k, c.drop_path, c.frozen_stages) = (1.0, 4, 0.5, 1), None),
        ] {
            // Other tests draw from libtorch's generator, too: all have the weights of one.
            let (first, _) = build(&config("pvig_ti", changes));
            let run = |stages: usize| {
                let (mut store, model) = build(&config("pvig_ti", changes));
                store.copy(&first).unwrap();
                let mut pass = Pass::training(7, 3).recomputing(stages);
                let maps = model.forward(&x, pass.within(extents.clone())).unwrap();
                // All maps have readers, and the last two of them more than the next stage.
                let loss: Tensor =
                    maps.iter().zip(1..).map(|(map, i)| (map * f64::from(i)).sin().sum(Kind::Float)).sum();
                loss.backward();
                let mut found: Vec<(String, Tensor)> = store
                    .variables()
                    .into_iter()
                    .map(|(name, value)| {
                        let gradient = value.requires_grad().then(|| value.grad());
                        (name, gradient.unwrap_or_else(|| value.shallow_clone()))
                    })
                    .collect();
                found.sort_by(|a, b| a.0.cmp(&b.0));
                found.extend(maps.into_iter().map(|map| ("map".to_string(), map.detach())));
                // What is drawn after the pass.
                found.push(("noise".into(), Tensor::from(pass.noise().unwrap().random::<f64>())));
                found
            };
            let expected = run(0);
            for stages in [1, 4, 9] {
                for ((name, found), (_, expected)) in run(stages).into_iter().zip(&expected) {
                    assert!(found == *expected, "{name} with {stages} stages run again");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_built_is_named() {
        let error = |name: &str, changes: fn(&mut BackboneConfig)| {
            let store = nn::VarStore::new(Device::Cpu);
            Vig::new(&store.root(), &config(name, changes)).unwrap_err().to_string()
        };
        assert!(error("pvig_ti", |c| c.channels = Some(vec![8; 3])).contains("channels"));
        assert!(error("pvig_ti", |c| c.channels = Some(vec![8, 8, 8, 9])).contains("multiples of 4"));
        assert!(error("vig_ti", |c| c.blocks = Some(vec![0])).contains("blocks"));
        assert!(error("vig_ti", |c| c.heads = 3).contains("heads"));
        assert!(error("vig_ti", |c| c.frozen_stages = 2).contains("frozen_stages"));
        assert!(error("pvig_ti", |c| c.image_size = 100).contains("image_size"));
        assert!(error("vig_ti", |c| c.k = 0).contains("model.backbone.k"));
    }
}
