//! Feature pyramid network (Lin et al., 2017, "Feature Pyramid Networks for Object Detection").

use anyhow::{ensure, Result};
use tch::nn::Module;
use tch::{nn, Tensor};

use super::head_conv::HeadConv;
use crate::config::{FpnConfig, P6Source};
use crate::nn::cost::{convolution, Layer, Size};
use crate::nn::layers::{ConvSpec, Init};
use crate::nn::padding::{clear, Extents};
use crate::nn::precision::strided;
use crate::onnx::{Graph, Resize, Value};

/// Feature pyramid network (Lin et al., 2017, section 3).
///
/// Takes one map per stage, `[B, C_i, H_i, W_i]`, fine to coarse; gives one map per level, `[B, channels, H_i, W_i]`,
/// then the extra coarser levels that the detector asks for.
#[derive(Debug)]
pub struct Fpn {
    /// 1×1 convolutions, one per stage, that bring every stage to `channels`.
    inner: Vec<HeadConv>,
    /// 3×3 convolutions that smooth each sum.
    layer: Vec<HeadConv>,
    coarse: Coarse,
    /// RetinaNet's P6 and P7: a 3×3 convolution with stride 2, and another on P6.
    extra: Option<[nn::Conv2D; 2]>,
}

/// Levels above the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coarse {
    /// None.
    None,
    /// RetinaNet's P6 and P7.
    P6P7 {
        /// What P6 comes from.
        p6: P6Source,
        /// P7 comes from relu(P6), not from P6.
        relu: bool,
    },
    /// Mask R-CNN's P6: every second pixel of P5 both ways.
    Halved,
}

/// The stages of a backbone that have these strides, fine to coarse, up to its last one; of several with the same
/// stride the last ones. `None`: there are none such.
pub fn stages_of(backbone: &[i64], strides: &[i64]) -> Option<Vec<usize>> {
    if strides.is_empty() || strides.last() != backbone.last() {
        return None;
    }
    let mut left = backbone.iter().enumerate().rev();
    let mut found = Vec::with_capacity(strides.len());
    for wanted in strides.iter().rev() {
        found.push(left.find(|(_, stride)| *stride == wanted)?.0);
    }
    found.reverse();
    Some(found)
}

impl Fpn {
    /// A pyramid on stages of these channels, with these levels above. Variables in torchvision's names
    /// (`inner_blocks.0.0.weight`, `layer_blocks.0.0.weight`, `extra_blocks.p6.weight`, …) under `path`.
    pub fn new(path: &nn::Path, stages: &[i64], config: &FpnConfig, coarse: Coarse) -> Result<Self> {
        ensure!(!stages.is_empty(), "a feature pyramid needs at least one stage");
        let c = config.channels;
        let spec = |input, kernel| ConvSpec::new(input, c, kernel).init(Init::UniformFanIn);
        let on_stage = |p: nn::Path, input, kernel| HeadConv::new(p, spec(input, kernel), config.norm);
        let (inner, layer, extra) = (path / "inner_blocks", path / "layer_blocks", path / "extra_blocks");
        let above = |name: &str, input| spec(input, 3).stride(2).build(&extra / name);
        let p6p7 = |input| [above("p6", input), above("p7", c)];
        Ok(Self {
            inner: stages.iter().enumerate().map(|(i, &input)| on_stage(&inner / i, input, 1)).collect(),
            layer: (0..stages.len()).map(|i| on_stage(&layer / i, c, 3)).collect(),
            coarse,
            extra: match coarse {
                Coarse::P6P7 { p6: P6Source::C5, .. } => stages.last().copied().map(p6p7),
                Coarse::P6P7 { p6: P6Source::P5, .. } => Some(p6p7(c)),
                Coarse::None | Coarse::Halved => None,
            },
        })
    }

    /// Stage maps, fine to coarse, to level maps, fine to coarse, both with zeros beyond `extents`. `train`: batch
    /// statistics in the norms.
    pub fn forward(&self, maps: &[Tensor], train: bool, extents: Option<&Extents>) -> Vec<Tensor> {
        let mut levels = Vec::with_capacity(maps.len() + 2);
        let mut above: Option<Tensor> = None;
        for ((map, inner), layer) in maps.iter().zip(&self.inner).zip(&self.layer).rev() {
            let lateral = clear(inner.forward(map, train), extents);
            let sum = match above {
                Some(above) => {
                    let size = lateral.size();
                    lateral + above.upsample_nearest2d([size[2], size[3]], None, None)
                }
                None => lateral,
            };
            levels.push(clear(layer.forward(&sum, train), extents));
            above = Some(sum);
        }
        levels.reverse();
        if let (Coarse::P6P7 { p6: from, relu }, Some([p6, p7]), Some(c5), Some(p5)) =
            (self.coarse, &self.extra, maps.last(), levels.last())
        {
            let source = if from == P6Source::C5 { c5 } else { p5 };
            let p6 = clear(strided(source, |x| p6.forward(x)), extents);
            let below = if relu { p6.relu() } else { p6.shallow_clone() };
            let p7 = clear(strided(&below, |x| p7.forward(x)), extents);
            levels.extend([p6, p7]);
        }
        if let (Coarse::Halved, Some(p5)) = (self.coarse, levels.last()) {
            levels.push(p5.slice(2, None, None, 2).slice(3, None, None, 2));
        }
        levels
    }

    /// [`Fpn::forward`] in inference, as nodes.
    pub fn onnx(&self, graph: &mut Graph, maps: &[Value]) -> Vec<Value> {
        graph.part("fpn");
        let mut levels = Vec::with_capacity(maps.len() + 2);
        let mut above: Option<Value> = None;
        for ((map, inner), layer) in maps.iter().zip(&self.inner).zip(&self.layer).rev() {
            let mut sum = inner.onnx(graph, map);
            if let Some(above) = above {
                let size = graph.shape(&sum, 2, 4);
                let above = graph.resize(&above, &size, Resize::Nearest);
                sum = graph.add(&sum, &above);
            }
            levels.push(layer.onnx(graph, &sum));
            above = Some(sum);
        }
        levels.reverse();
        if let (Coarse::P6P7 { p6: from, relu }, Some([p6, p7]), Some(c5), Some(p5)) =
            (self.coarse, &self.extra, maps.last(), levels.last())
        {
            let source = if from == P6Source::C5 { c5 } else { p5 };
            let p6 = graph.conv2d(source, p6, 2);
            let below = if relu { graph.unary("Relu", &p6) } else { p6.clone() };
            let p7 = graph.conv2d(&below, p7, 2);
            levels.extend([p6, p7]);
        }
        if let (Coarse::Halved, Some(p5)) = (self.coarse, levels.last()) {
            // Of windows of one location the largest is its own.
            levels.push(graph.pool("MaxPool", p5, [1, 1], [2, 2], 0));
        }
        levels
    }

    /// Reports every layer to `visit` for stage maps of these sizes, and gives the sizes of the levels.
    pub fn flops(&self, maps: &[Size], visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        for ((&map, inner), layer) in maps.iter().zip(&self.inner).zip(&self.layer) {
            convolution(inner.conv(), 1, map, visit);
            convolution(layer.conv(), 1, map, visit);
        }
        let mut levels = maps.to_vec();
        if let (Some([p6, p7]), Some(&last)) = (&self.extra, maps.last()) {
            let p6 = convolution(p6, 2, last, visit);
            levels.extend([p6, convolution(p7, 2, p6, visit)]);
        }
        if let (Coarse::Halved, Some(&(height, width))) = (self.coarse, maps.last()) {
            levels.push(((height + 1) / 2, (width + 1) / 2));
        }
        levels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_found_by_their_strides_and_of_equal_ones_the_last() {
        let resnet = [4, 8, 16, 32];
        assert_eq!(stages_of(&resnet, &[8, 16, 32]), Some(vec![1, 2, 3]));
        assert_eq!(stages_of(&resnet, &[8, 32]), Some(vec![1, 3]));
        for strides in [&[8, 16][..], &[8, 16, 64], &[2, 4, 8, 16, 32], &[32, 32], &[]] {
            assert_eq!(stages_of(&resnet, strides), None, "{strides:?}");
        }
        let mobilenet = [4, 8, 16, 32, 32];
        assert_eq!(stages_of(&mobilenet, &[32, 32]), Some(vec![3, 4]));
        assert_eq!(stages_of(&mobilenet, &[4, 8, 16, 32]), Some(vec![0, 1, 2, 4]));
    }
}
