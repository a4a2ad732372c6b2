//! Feature pyramid network (Lin et al., 2017, "Feature Pyramid Networks for Object Detection").

use anyhow::{ensure, Result};
use tch::nn::Module;
use tch::{nn, Tensor};

use crate::config::P6Source;
use crate::nn::cost::{convolution, Layer, Size};
use crate::nn::layers::{ConvSpec, Init};
use crate::nn::precision::strided;

/// Feature pyramid network (Lin et al., 2017, section 3).
///
/// Takes one map per stage, `[B, C_i, H_i, W_i]`, fine to coarse; gives one map per level, `[B, channels, H_i, W_i]`,
/// then the extra coarser levels that the detector asks for.
#[derive(Debug)]
pub struct Fpn {
    /// 1×1 convolutions, one per stage, that bring every stage to `channels`.
    inner: Vec<nn::Conv2D>,
    /// 3×3 convolutions that smooth each sum.
    layer: Vec<nn::Conv2D>,
    coarse: Coarse,
    /// RetinaNet's P6 and P7: a 3×3 convolution with stride 2, and another on relu(P6).
    extra: Option<[nn::Conv2D; 2]>,
}

/// Levels above the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coarse {
    /// None.
    None,
    /// RetinaNet's P6 and P7, P6 from this map.
    P6P7(P6Source),
    /// Mask R-CNN's P6: every second pixel of P5 both ways.
    Halved,
}

impl Fpn {
    /// A pyramid of `channels` on stages of these channels, with these levels above. Variables in torchvision's names
    /// (`inner_blocks.0.0.weight`, `layer_blocks.0.0.weight`, `extra_blocks.p6.weight`, …) under `path`.
    pub fn new(path: &nn::Path, stages: &[i64], channels: i64, coarse: Coarse) -> Result<Self> {
        ensure!(!stages.is_empty(), "a feature pyramid needs at least one stage");
        let c = channels;
        let conv = |p: nn::Path, input, kernel, stride| {
            ConvSpec::new(input, c, kernel).stride(stride).init(Init::UniformFanIn).build(p)
        };
        let (inner, layer, extra) = (path / "inner_blocks", path / "layer_blocks", path / "extra_blocks");
        let p6p7 = |input| [conv(&extra / "p6", input, 3, 2), conv(&extra / "p7", c, 3, 2)];
        Ok(Self {
            inner: stages.iter().enumerate().map(|(i, &input)| conv(&inner / i / "0", input, 1, 1)).collect(),
            layer: (0..stages.len()).map(|i| conv(&layer / i / "0", c, 3, 1)).collect(),
            coarse,
            extra: match coarse {
                Coarse::P6P7(P6Source::C5) => stages.last().copied().map(p6p7),
                Coarse::P6P7(P6Source::P5) => Some(p6p7(c)),
                Coarse::None | Coarse::Halved => None,
            },
        })
    }

    /// Stage maps, fine to coarse, to level maps, fine to coarse.
    pub fn forward(&self, maps: &[Tensor]) -> Vec<Tensor> {
        let mut levels = Vec::with_capacity(maps.len() + 2);
        let mut above: Option<Tensor> = None;
        for ((map, inner), layer) in maps.iter().zip(&self.inner).zip(&self.layer).rev() {
            let lateral = inner.forward(map);
            let sum = match above {
                Some(above) => {
                    let size = lateral.size();
                    lateral + above.upsample_nearest2d([size[2], size[3]], None, None)
                }
                None => lateral,
            };
            levels.push(layer.forward(&sum));
            above = Some(sum);
        }
        levels.reverse();
        if let (Some([p6, p7]), Some(c5), Some(p5)) = (&self.extra, maps.last(), levels.last()) {
            let source = if self.coarse == Coarse::P6P7(P6Source::C5) { c5 } else { p5 };
            let p6 = strided(source, |x| p6.forward(x));
            let p7 = strided(&p6.relu(), |x| p7.forward(x));
            levels.extend([p6, p7]);
        }
        if let (Coarse::Halved, Some(p5)) = (self.coarse, levels.last()) {
            levels.push(p5.slice(2, None, None, 2).slice(3, None, None, 2));
        }
        levels
    }

    /// Reports every layer to `visit` for stage maps of these sizes, and gives the sizes of the levels.
    pub fn flops(&self, maps: &[Size], visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        for ((&map, inner), layer) in maps.iter().zip(&self.inner).zip(&self.layer) {
            convolution(inner, 1, map, visit);
            convolution(layer, 1, map, visit);
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
