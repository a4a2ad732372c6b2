//! EfficientNet-Lite 0, 1 and 2: EfficientNet (Tan and Le, 2019) without squeeze-and-excitation and with ReLU6, by its
//! authors for small machines. Names are those of the published PyTorch files (`_conv_stem.weight`,
//! `_blocks.0._depthwise_conv.weight`, …); padding is TensorFlow's, so that any image size works.

use anyhow::{bail, Result};
use tch::{nn, Tensor};

use super::{frozen_stages, norms_learn, Backbone, Pass};
use crate::config::BackboneConfig;
use crate::nn::cost::{Flops, Layer, Size};
use crate::nn::layers::{channels_last, relu6, residual, stochastic_depth, ConvBn, ConvSpec};
use crate::onnx::{Graph, Value};

/// Channels after the stem, in all sizes.
const STEM: i64 = 32;
/// Channels of the last convolution, before the classes, in all sizes.
pub const HIDDEN: i64 = 1280;
/// Blocks of one kind: how many, side of the depthwise kernel, stride of the first, expansion, channels (of Lite0).
const KINDS: [(i64, i64, i64, i64, i64); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];
/// The last kind of each stage: the one before the map gets smaller again.
const STAGE_ENDS: [usize; 4] = [1, 2, 4, 6];
const STRIDES: [i64; 4] = [4, 8, 16, 32];

/// Factors of the channels and of the number of blocks.
fn factors(name: &str) -> Option<(f64, f64)> {
    match name {
        "efficientnet_lite0" => Some((1.0, 1.0)),
        "efficientnet_lite1" => Some((1.0, 1.1)),
        "efficientnet_lite2" => Some((1.1, 1.2)),
        _ => None,
    }
}

/// Channels times `factor`, to a multiple of 8, and by no more than a tenth less.
fn scaled(channels: i64, factor: f64) -> i64 {
    let exact = channels as f64 * factor;
    let near = ((exact + 4.0) as i64 / 8 * 8).max(8);
    if (near as f64) < 0.9 * exact {
        near + 8
    } else {
        near
    }
}

/// An EfficientNet-Lite without its last convolution and its classes.
#[derive(Debug)]
pub struct EfficientNetLite {
    stem: Same,
    stages: Vec<Vec<Block>>,
    channels: [i64; 4],
    /// Stages that do not learn; the stem belongs to the first.
    frozen_stages: usize,
    /// Batch norms keep their running statistics in training.
    freeze_norms: bool,
}

/// A convolution with TensorFlow's padding `SAME`, and its batch norm: ⌈size / stride⌉ outputs; of the pixels of
/// padding that this takes, the odd one is at the right and the bottom.
#[derive(Debug)]
struct Same {
    layer: ConvBn,
    kernel: i64,
    stride: i64,
}

impl Same {
    fn new(conv: nn::Path, norm: nn::Path, spec: ConvSpec, eps: f64) -> Self {
        let ConvSpec { kernel, stride, .. } = spec;
        // With stride 1 the padding is the same on both sides, and the convolution can do it.
        let spec = if stride == 1 { spec } else { spec.padding(0) };
        Self { layer: ConvBn::new(conv, norm, spec.no_bias(), eps), kernel, stride }
    }

    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        if self.stride == 1 {
            return self.layer.forward(x, train);
        }
        let size = x.size();
        let around = |side: i64| {
            let outputs = (side + self.stride - 1) / self.stride;
            let all = ((outputs - 1) * self.stride + self.kernel - side).max(0);
            [all / 2, all - all / 2]
        };
        let ([top, bottom], [left, right]) = (around(size[2]), around(size[3]));
        self.layer.forward(&x.constant_pad_nd([left, right, top, bottom]), train)
    }

    fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        match self.stride {
            1 => self.layer.onnx(graph, x),
            _ => self.layer.onnx_padded(graph, x, None),
        }
    }
}

/// An inverted residual block: 1×1 convolution that expands, depthwise convolution, 1×1 convolution that projects.
#[derive(Debug)]
struct Block {
    expand: Option<Same>,
    depthwise: Same,
    project: Same,
    /// Whether the input is added.
    residual: bool,
    /// Probability that an image passes without the block's own part.
    drop: f64,
}

impl Block {
    fn forward(&self, x: &Tensor, train: bool, pass: &mut Pass) -> Tensor {
        let wide = self.expand.as_ref().map(|expand| relu6(expand.forward(x, train)));
        let wide = relu6(self.depthwise.forward(wide.as_ref().unwrap_or(x), train));
        let out = self.project.forward(&wide, train);
        if self.residual {
            residual(x, stochastic_depth(out, self.drop, pass.noise()))
        } else {
            out
        }
    }

    fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let mut wide = x.clone();
        for layer in self.expand.iter().chain([&self.depthwise]) {
            wide = layer.onnx(graph, &wide);
            wide = graph.relu6(&wide);
        }
        let out = self.project.onnx(graph, &wide);
        if self.residual {
            graph.add(x, &out)
        } else {
            out
        }
    }

    fn layers(&self) -> impl Iterator<Item = &Same> {
        self.expand.iter().chain([&self.depthwise, &self.project])
    }
}

impl EfficientNetLite {
    /// Random weights under `path`, in the published names.
    ///
    /// # Errors
    /// If there is no such size, or more stages are to be frozen than there are.
    pub fn new(path: &nn::Path, config: &BackboneConfig) -> Result<Self> {
        let Some((width, depth)) = factors(&config.name) else {
            bail!("there is no EfficientNet-Lite `{}`; there are efficientnet_lite0, 1 and 2", config.name);
        };
        let frozen_stages = frozen_stages(config, STRIDES.len())?;
        let eps = config.norm_eps;
        let stem = ConvSpec::new(3, STEM, 3).stride(2);
        let stem = Same::new(path / "_conv_stem", path / "_bn0", stem, eps);
        // The first and the last kind have as many blocks in all sizes.
        let repeats = |kind: usize| match kind {
            0 | 6 => KINDS[kind].0,
            _ => (KINDS[kind].0 as f64 * depth).ceil() as i64,
        };
        let total: i64 = (0..KINDS.len()).map(repeats).sum();
        let (mut index, mut input) = (0, STEM);
        let (mut stages, mut stage, mut channels) = (Vec::new(), Vec::new(), [0; 4]);
        for (kind, &(_, kernel, stride, expansion, output)) in KINDS.iter().enumerate() {
            let output = scaled(output, width);
            for i in 0..repeats(kind) {
                let stride = if i == 0 { stride } else { 1 };
                let wide = input * expansion;
                let path = path / "_blocks" / index;
                let same = |conv: &str, norm: &str, spec| Same::new(&path / conv, &path / norm, spec, eps);
                let depthwise = ConvSpec { groups: wide, ..ConvSpec::new(wide, wide, kernel) };
                let block = Block {
                    expand: (expansion > 1).then(|| same("_expand_conv", "_bn0", ConvSpec::new(input, wide, 1))),
                    depthwise: same("_depthwise_conv", "_bn1", depthwise.stride(stride)),
                    project: same("_project_conv", "_bn2", ConvSpec::new(wide, output, 1)),
                    residual: stride == 1 && input == output,
                    drop: config.drop_path * index as f64 / total as f64,
                };
                stage.push(block);
                (index, input) = (index + 1, output);
            }
            if STAGE_ENDS.contains(&kind) {
                channels[stages.len()] = output;
                stages.push(std::mem::take(&mut stage));
            }
        }
        let model = Self { stem, stages, channels, frozen_stages, freeze_norms: config.freeze_norms };
        if frozen_stages > 0 {
            model.stem.layer.freeze();
        }
        let frozen = model.stages[..frozen_stages].iter().flatten();
        frozen.flat_map(Block::layers).for_each(|same| same.layer.freeze());
        Ok(model)
    }
}

impl Backbone for EfficientNetLite {
    fn channels(&self) -> &[i64] {
        &self.channels
    }

    fn strides(&self) -> &[i64] {
        &STRIDES
    }

    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>> {
        let norms = norms_learn(images, 32, self.freeze_norms, pass)?;
        let norms_at = |stage: usize| norms && stage >= self.frozen_stages;
        let mut x = relu6(self.stem.forward(&channels_last(images), norms_at(0)));
        let mut maps = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            for block in stage {
                x = block.forward(&x, norms_at(s), pass);
            }
            maps.push(x.shallow_clone());
        }
        Ok(maps)
    }

    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>> {
        graph.part("backbone/stem");
        let x = self.stem.onnx(graph, images);
        let mut x = graph.relu6(&x);
        let mut maps = Vec::new();
        for (s, stage) in self.stages.iter().enumerate() {
            for (i, block) in stage.iter().enumerate() {
                graph.part(format!("backbone/stage{}.{i}", s + 1));
                x = block.onnx(graph, &x);
            }
            maps.push(x.clone());
        }
        Ok(maps)
    }

    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        let mut size = self.stem.layer.flops(image, visit);
        let mut sizes = Vec::new();
        for stage in &self.stages {
            for same in stage.iter().flat_map(Block::layers) {
                size = same.layer.flops(size, visit);
            }
            sizes.push(size);
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_rounded_to_eights() {
        // 1.1 times the channels of Lite0, as the published files of Lite2 have them.
        let lite2: Vec<i64> = KINDS.iter().map(|kind| scaled(kind.4, 1.1)).collect();
        assert_eq!(lite2, [16, 24, 48, 88, 120, 208, 352]);
        // Rounding takes at most a tenth away.
        assert_eq!(scaled(10, 1.1), 16);
    }
}
