//! RetinaNet (Lin et al., 2017, "Focal Loss for Dense Object Detection") on any backbone.

use anyhow::{ensure, Result};
use rayon::prelude::*;
use tch::{nn, Tensor};

use super::anchors::AnchorGenerator;
use super::boxes::{Box4, BoxCoder};
use super::candidates::{fetch_best, Candidates, LevelOutputs};
use super::dense_head::{DenseHead, LevelOutput};
use super::dense_losses::{Assigner, DenseLoss};
use super::detector::{Detections, Detector, Losses};
use super::fpn::{stages_of, Coarse, Fpn};
use super::postprocess::{OnnxDetections, OnnxImages};
use super::select::{LevelValues, Limits, OnnxLevel, Selector};
use crate::backbone::{self, Backbone, Pass};
use crate::config::{ModelConfig, Padding};
use crate::data::{Batch, ImageInfo};
use crate::nn::cost::{Layer, Size};
use crate::nn::crossings::has_kernels;
use crate::nn::memory::values;
use crate::nn::padding::Extents;
use crate::onnx::Graph;

/// Backbone, pyramid on its last stages, dense head.
///
/// The strides of the anchors say which stages: from the one whose stride is the first (8, so C3 to C5, in the paper; 4
/// adds C2, for small objects). As many strides as stages: those levels alone; two more: P6 and P7 above.
#[derive(Debug)]
pub struct RetinaNet {
    backbone: Box<dyn Backbone>,
    /// The backbone's stages that the pyramid stands on.
    stages: Vec<usize>,
    fpn: Fpn,
    head: DenseHead,
    anchors: AnchorGenerator,
    loss: DenseLoss,
    selector: Selector,
    /// Batch norms of the pyramid take batch statistics in training.
    train_norms: bool,
    padding: Padding,
}

/// Stages that the paper's pyramid is built on: C3 to C5.
const STAGES: usize = 3;

impl RetinaNet {
    /// Random weights for `classes` classes; variables `backbone.body.*`, `backbone.fpn.*` and `head.*` under `path`.
    pub fn new(path: &nn::Path, config: &ModelConfig, classes: i64) -> Result<Self> {
        ensure!(classes > 0, "a detector needs at least one class");
        let anchors = AnchorGenerator::new(&config.anchors);
        let backbone = backbone::build(&(path / "backbone" / "body"), &config.backbone)?;
        let channels = backbone.channels();
        ensure!(
            channels.len() >= STAGES,
            "RetinaNet's pyramid stands on {STAGES} stages, and {} has {}: use a pyramid (pvig_…), a ResNet or a \
             MobileNet",
            config.backbone.name,
            channels.len()
        );
        let (strides, anchor_strides) = (backbone.strides(), &config.anchors.strides);
        let p6p7 = Coarse::P6P7 { p6: config.fpn.p6, relu: config.fpn.p7_relu };
        // P6 and P7 have strides, but no stages.
        let below = anchor_strides.len().checked_sub(2).map_or(&[][..], |below| &anchor_strides[..below]);
        let named = [(&anchor_strides[..], Coarse::None), (below, p6p7)];
        let (stages, coarse) = named
            .into_iter()
            .find_map(|(named, coarse)| Some((stages_of(strides, named)?, coarse)))
            .unwrap_or_else(|| {
                // What was meant, to say what is wrong with it: a pyramid from the first stride on, or the paper's.
                let first = strides.iter().position(|stride| anchor_strides.first() == Some(stride));
                ((first.unwrap_or(strides.len() - STAGES)..strides.len()).collect(), p6p7)
            });
        let of_stages = |values: &[i64]| -> Vec<i64> { stages.iter().map(|&stage| values[stage]).collect() };
        let levels = stages.len() + if coarse == Coarse::None { 0 } else { 2 };
        config.anchors.check_levels(&of_stages(strides), levels, &config.backbone.name)?;
        let width = config.fpn.channels;
        let fpn = Fpn::new(&(path / "backbone" / "fpn"), &of_stages(channels), &config.fpn, coarse)?;
        let head = DenseHead::new(&(path / "head"), width, anchors.num_anchors(), classes, &config.head);
        let coder = BoxCoder { limit_shrinking: config.test.limit_shrinking, ..BoxCoder::default() };
        Ok(Self {
            backbone,
            stages,
            fpn,
            head,
            anchors,
            loss: DenseLoss::new(Assigner::new(&config.matching), coder, &config.loss),
            selector: Selector {
                limits: Limits::new(&config.test),
                top_k: config.test.top_k as usize,
                coder,
                classes: classes as usize,
            },
            train_norms: !config.backbone.freeze_norms,
            padding: config.padding,
        })
    }

    fn outputs(&self, images: &Tensor, extents: Option<&Extents>, pass: &mut Pass) -> Result<Vec<LevelOutput>> {
        let maps = self.backbone.forward(images, pass.within(extents.cloned()))?;
        let maps: Vec<Tensor> = self.stages.iter().map(|&stage| maps[stage].shallow_clone()).collect();
        let train = pass.is_training() && self.train_norms;
        Ok(self.head.forward(&self.fpn.forward(&maps, train, extents), extents))
    }

    fn anchors_of(&self, outputs: &[LevelOutput], images: &Tensor) -> Vec<Vec<Box4>> {
        let maps: Vec<(i64, i64)> = outputs.iter().map(|o| o.map).collect();
        let size = images.size();
        self.anchors.anchors(&maps, (size[2], size[3]))
    }
}

impl Detector for RetinaNet {
    fn losses(&self, batch: &Batch, pass: &mut Pass) -> Result<Losses> {
        let extents = batch.extents(self.padding)?;
        let outputs = self.outputs(&batch.images, extents.as_ref(), pass)?;
        let anchors = self.anchors_of(&outputs, &batch.images).concat();
        self.loss.losses(outputs, &anchors, &batch.targets, extents.as_ref())
    }

    fn detect(&self, batch: &Batch) -> Result<Vec<Detections>> {
        tch::no_grad(|| {
            let extents = batch.extents(self.padding)?;
            let outputs = self.outputs(&batch.images, extents.as_ref(), &mut Pass::inference())?;
            let anchors = self.anchors_of(&outputs, &batch.images);
            let finish = |mut found: Detections, (size, info): (&(i64, i64), &ImageInfo)| {
                found.rescale(*size, (i64::from(info.height), i64::from(info.width)));
                found
            };
            let selector = &self.selector;
            if !has_kernels(batch.images.device()) {
                let levels: Vec<LevelOutputs> =
                    outputs.iter().map(|o| (o.logits.flatten(1, -1), o.deltas.shallow_clone())).collect();
                let anchors: Vec<&[Box4]> = anchors.iter().map(|anchors| &anchors[..]).collect();
                let best = fetch_best(&levels, selector.top_k)?;
                let of_image = |(best, of): (&Vec<Candidates>, (&(i64, i64), &ImageInfo))| {
                    finish(selector.choose(&anchors, best, *of.0), of)
                };
                return Ok(best.par_iter().zip(batch.sizes.par_iter().zip(&batch.infos)).map(of_image).collect());
            }
            let mut images = Vec::with_capacity(batch.len());
            for i in 0..batch.len() as i64 {
                let levels = outputs.iter().zip(&anchors).map(|(o, anchors)| {
                    Ok(LevelValues { logits: values(&o.logits.get(i))?, deltas: values(&o.deltas.get(i))?, anchors })
                });
                images.push(levels.collect::<Result<Vec<_>>>()?);
            }
            let of_image = |(levels, of): (&Vec<LevelValues>, (&(i64, i64), &ImageInfo))| {
                finish(selector.select(levels, *of.0), of)
            };
            Ok(images.par_iter().zip(batch.sizes.par_iter().zip(&batch.infos)).map(of_image).collect())
        })
    }

    fn onnx(&self, graph: &mut Graph, images: &OnnxImages) -> Result<OnnxDetections> {
        let maps = self.backbone.onnx(graph, &images.pixels)?;
        let maps: Vec<_> = self.stages.iter().map(|&stage| maps[stage].clone()).collect();
        let levels = self.fpn.onnx(graph, &maps);
        let mut said = Vec::with_capacity(levels.len());
        for (l, level) in levels.iter().enumerate() {
            graph.part(format!("head/level{l}"));
            let [logits, deltas] = self.head.onnx(graph, level);
            said.push(OnnxLevel { logits, deltas, map: graph.shape(level, 2, 4) });
        }
        Ok(self.selector.onnx(graph, &said, &self.anchors, images))
    }

    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) {
        let maps = self.backbone.flops(image, visit);
        let maps: Vec<Size> = self.stages.iter().map(|&stage| maps[stage]).collect();
        let levels = self.fpn.flops(&maps, visit);
        self.head.flops(&levels, visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HeadNorm, LossNormalizer, MatchKind};
    use crate::data::Target;
    use crate::graph::GraphTrace;
    use crate::nn::precision::Autocast;
    use tch::{Device, Kind};

    #[test]
    fn what_the_head_says_is_float32_whatever_the_network_computes_in() {
        let mut config = ModelConfig::default();
        config.backbone.name = "pvig_ti".into();
        (config.fpn.channels, config.head.channels, config.head.convs) = (8, 8, 1);
        let store = nn::VarStore::new(Device::Cpu);
        let model = RetinaNet::new(&store.root(), &config, 2).unwrap();
        let images = Tensor::randn([1, 3, 64, 64], (Kind::Float, Device::Cpu));
        let autocast = Autocast::set(Device::Cpu, true);
        let outputs = tch::no_grad(|| model.outputs(&images, None, &mut Pass::training(0, 0)).unwrap());
        drop(autocast);
        for output in outputs {
            assert_eq!((output.logits.kind(), output.deltas.kind()), (Kind::Float, Kind::Float));
        }
    }

    #[test]
    fn the_strides_say_on_which_stages_the_pyramid_stands() {
        let (height, width) = (64, 96);
        let images = Tensor::randn([1, 3, height, width], (Kind::Float, Device::Cpu));
        for strides in [vec![8, 16, 32, 64, 128], vec![8, 16, 32], vec![4, 8, 16, 32], vec![4, 8, 16, 32, 64, 128]] {
            let mut config = ModelConfig::default();
            config.backbone.name = "pvig_ti".into();
            (config.fpn.channels, config.head.channels, config.head.convs) = (8, 8, 1);
            config.anchors.strides = strides.clone();
            let store = nn::VarStore::new(Device::Cpu);
            let model = RetinaNet::new(&store.root(), &config, 2).unwrap();
            let outputs = tch::no_grad(|| model.outputs(&images, None, &mut Pass::training(0, 0)).unwrap());
            let found: Vec<(i64, i64)> = outputs.iter().map(|o| o.map).collect();
            let expected: Vec<(i64, i64)> =
                strides.iter().map(|s| ((height + s - 1) / s, (width + s - 1) / s)).collect();
            assert_eq!(found, expected, "{strides:?}");
            // The location in the middle of a level's first row stands where its stride says.
            for ((anchors, &(_, columns)), stride) in
                model.anchors_of(&outputs, &images).iter().zip(&expected).zip(&strides)
            {
                let location = columns / 2;
                let b = anchors[(location * model.anchors.num_anchors()) as usize];
                assert_eq!((b[0] + b[2]) / 2.0, (location * stride) as f32, "{strides:?}, stride {stride}");
            }
            let coarse = store.variables().keys().any(|name| name.contains("extra_blocks"));
            assert_eq!(coarse, strides.contains(&128), "{strides:?}");
        }
    }

    /// A large and a small image with an object each, one beside the other in a batch, and each alone.
    fn together_and_alone() -> (Batch, [Batch; 2]) {
        let (large, small) = ((96, 128), (64, 96));
        let target = |b| Target { boxes: vec![b], labels: vec![1], crowd: vec![false], masks: vec![None] };
        // The second one's object lies in its corner, where anchors of the padding overlap it.
        let targets = [target([10.0, 12.0, 60.0, 50.0]), target([70.0, 40.0, 96.0, 64.0])];
        let batch = |images: Tensor, sizes: &[(i64, i64)], targets: &[Target]| Batch {
            images,
            sizes: sizes.to_vec(),
            padded: sizes.to_vec(),
            targets: targets.to_vec(),
            infos: Vec::new(),
        };
        let of = |(h, w): (i64, i64)| (Tensor::arange(3 * h * w, (Kind::Float, Device::Cpu)) * 12.9898).sin();
        let images = [large, small].map(|(h, w)| of((h, w)).view([1, 3, h, w]));
        let padded = images[1].constant_pad_nd([0, large.1 - small.1, 0, large.0 - small.0]);
        let both = batch(Tensor::cat(&[&images[0], &padded], 0), &[large, small], &targets);
        let [first, second] = images;
        (both, [batch(first, &[large], &targets[..1]), batch(second, &[small], &targets[1..])])
    }

    fn tiny(padding: Padding) -> (nn::VarStore, RetinaNet) {
        let mut config = ModelConfig { padding, ..ModelConfig::default() };
        config.backbone.name = "pvig_ti".into();
        config.backbone.channels = Some(vec![8, 16, 24, 32]);
        config.backbone.blocks = Some(vec![1; 4]);
        (config.fpn.channels, config.head.channels, config.head.convs) = (8, 8, 2);
        (config.head.norm, config.loss.normalizer) = (HeadNorm::Group, LossNormalizer::Image);
        (config.matching.kind, config.anchors.octaves) = (MatchKind::Atss, 1);
        tch::manual_seed(0);
        let store = nn::VarStore::new(Device::Cpu);
        let model = RetinaNet::new(&store.root(), &config, 2).unwrap();
        // Position embeddings start at zero, where a wrong one would not be seen.
        let _ = tch::no_grad(|| store.variables()["backbone.body.pos_embed"].shallow_clone().normal_(0.0, 0.5));
        (store, model)
    }

    #[test]
    fn with_masked_padding_an_image_gives_what_it_gives_alone() {
        let (both, alone) = together_and_alone();
        let furthest_apart = |padding| {
            let (_store, model) = tiny(padding);
            let total = |batch: &Batch| {
                let losses = tch::no_grad(|| model.losses(batch, &mut Pass::inference())).unwrap();
                losses.total().double_value(&[])
            };
            (total(&both) - (total(&alone[0]) + total(&alone[1])) / 2.0).abs()
        };
        let (masked, published) = (furthest_apart(Padding::Masked), furthest_apart(Padding::Published));
        assert!(masked < 1e-4, "{masked}");
        assert!(published > 1e-3, "{published}");
    }

    #[test]
    fn with_masked_padding_no_node_of_an_image_links_to_padding() {
        let (both, _) = together_and_alone();
        let (_store, model) = tiny(Padding::Masked);
        let mut trace = GraphTrace::default();
        let extents = both.extents(Padding::Masked).unwrap();
        tch::no_grad(|| model.outputs(&both.images, extents.as_ref(), &mut Pass::inference().with_trace(&mut trace)))
            .unwrap();
        assert_eq!(trace.blocks.len(), 4);
        for block in &trace.blocks {
            let own = |(h, w): (i64, i64)| (h * 64 / 96, w * 96 / 128);
            let ((_, columns), (h, w)) = (block.nodes, own(block.nodes));
            let ((_, across), (ch, cw)) = (block.candidates, own(block.candidates));
            for node in (0..h * w).map(|n| n / w * columns + n % w) {
                for edge in Vec::<i64>::try_from(block.edges.get(1).get(node)).unwrap() {
                    assert!(edge / across < ch && edge % across < cw, "node {node} of {:?}: {edge}", block.nodes);
                }
            }
        }
    }
}
