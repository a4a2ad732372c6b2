//! RetinaNet's head (Lin et al., 2017, "Focal Loss for Dense Object Detection", section 4): two branches shared by all
//! levels.

use tch::nn::Module;
use tch::{nn, Tensor};

use crate::config::{HeadConfig, HeadInit, HeadNorm};
use crate::nn::cost::{convolution, Layer, Size};
use crate::nn::layers::{channels_last, ConvSpec, Init};
use crate::nn::padding::Extents;
use crate::nn::precision::full_precision;
use crate::onnx::{Graph, Value};

/// Class and box branch: `convs` × (3×3 convolution, relu), then one convolution that predicts.
#[derive(Debug)]
pub struct DenseHead {
    classification: Branch,
    regression: Branch,
    classes: i64,
}

/// What the head says of every anchor of a level, anchors in the order of [`super::anchors::AnchorGenerator`].
#[derive(Debug)]
pub struct LevelOutput {
    /// Class logits `[B, A, K]`.
    pub logits: Tensor,
    /// Box deltas `[B, A, 4]`.
    pub deltas: Tensor,
    /// (height, width) of the level's map.
    pub map: (i64, i64),
}

/// Epsilon of the group norms: PyTorch's.
const NORM_EPS: f64 = 1e-5;
/// The logit of what is not there: its probability is 0 in float32.
const NOTHING: f64 = -1e3;

#[derive(Debug)]
struct Branch {
    convs: Vec<(nn::Conv2D, Option<nn::GroupNorm>)>,
    predict: nn::Conv2D,
}

impl Branch {
    fn new(path: &nn::Path, last: &str, input: i64, output: i64, config: &HeadConfig) -> Self {
        let c = config.channels;
        let paper = Init::Normal(0.01);
        let init = match config.init {
            HeadInit::Normal => paper,
            HeadInit::FanIn => Init::FanIn,
        };
        let convs = (0..config.convs)
            .map(|i| {
                let p = path / "conv" / i;
                let conv = ConvSpec::new(if i == 0 { input } else { c }, c, 3).init(init);
                let norm = (config.norm == HeadNorm::Group).then(|| {
                    let groups = (1..=32).rev().find(|g| c % g == 0).unwrap_or(1);
                    nn::group_norm(&p / "1", groups, c, Default::default())
                });
                // With a norm behind it the convolution needs no bias (torchvision's Conv2dNormActivation).
                let conv = if norm.is_some() { conv.no_bias() } else { conv };
                (conv.build(&p / "0"), norm)
            })
            .collect();
        let width = if config.convs > 0 { c } else { input };
        Self { convs, predict: ConvSpec::new(width, output, 3).init(paper).build(path / last) }
    }

    /// `[B, C, H, W]` to `[B, H·W·A, per_anchor]`.
    fn forward(&self, x: &Tensor, per_anchor: i64) -> Tensor {
        let mut x = x.shallow_clone();
        for (conv, norm) in &self.convs {
            x = conv.forward(&x);
            if let Some(norm) = norm {
                x = norm.forward(&x);
            }
            // Neither the convolution nor the norm needs its output again.
            x = x.relu_();
        }
        let x = full_precision(&self.predict.forward(&x));
        // Channels are anchor by anchor; in channels-last memory this is a view.
        let batch = x.size()[0];
        x.permute([0, 2, 3, 1]).reshape([batch, -1, per_anchor])
    }

    /// [`Branch::forward`], as nodes: `[B, H·W·A·per_anchor]`.
    fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let mut x = x.clone();
        for (conv, norm) in &self.convs {
            x = graph.conv2d(&x, conv, 1);
            if let Some(norm) = norm {
                x = graph.group_norm(&x, norm, NORM_EPS);
            }
            x = graph.unary("Relu", &x);
        }
        let x = graph.conv2d(&x, &self.predict, 1);
        let x = graph.full(&x);
        let x = graph.transpose(&x, &[0, 2, 3, 1]);
        graph.reshape(&x, &[0, -1])
    }

    /// The same, image by image, of the part that is (height, width) large; `nothing` beyond. A group norm then sees
    /// the image alone, too.
    fn forward_each(&self, x: &Tensor, parts: &[(i64, i64)], per_anchor: i64, nothing: f64) -> Tensor {
        let (height, width) = (x.size()[2], x.size()[3]);
        let images: Vec<Tensor> = parts
            .iter()
            .enumerate()
            .map(|(i, &(h, w))| {
                let part = x.narrow(0, i as i64, 1).narrow(2, 0, h).narrow(3, 0, w);
                let said = self.forward(&channels_last(&part), per_anchor).view([1, h, w, -1]);
                said.pad([0, 0, 0, width - w, 0, height - h], "constant", nothing).view([1, -1, per_anchor])
            })
            .collect();
        Tensor::cat(&images, 0)
    }
}

impl DenseHead {
    /// A head for `anchors` per location and `classes`. Variables in torchvision's names
    /// (`classification_head.conv.0.0.weight`, `classification_head.cls_logits.weight`,
    /// `regression_head.bbox_reg.weight`, …) under `path`. The class bias is such at first that every anchor says
    /// `prior`.
    pub fn new(path: &nn::Path, input: i64, anchors: i64, classes: i64, config: &HeadConfig) -> Self {
        let classification =
            Branch::new(&(path / "classification_head"), "cls_logits", input, anchors * classes, config);
        let regression = Branch::new(&(path / "regression_head"), "bbox_reg", input, anchors * 4, config);
        if let Some(bias) = &classification.predict.bs {
            tch::no_grad(|| {
                let _ = bias.shallow_clone().fill_(-((1.0 - config.prior) / config.prior).ln());
            });
        }
        Self { classification, regression, classes }
    }

    /// Levels `[B, C, H_i, W_i]` to what is said of their anchors. Beyond `extents` it is that there is nothing.
    pub fn forward(&self, levels: &[Tensor], extents: Option<&Extents>) -> Vec<LevelOutput> {
        levels
            .iter()
            .map(|level| {
                let size = level.size();
                let map = (size[2], size[3]);
                let of = |branch: &Branch, per_anchor: i64, nothing: f64| match extents {
                    None => branch.forward(level, per_anchor),
                    Some(extents) => branch.forward_each(level, &extents.on(map), per_anchor, nothing),
                };
                LevelOutput {
                    logits: of(&self.classification, self.classes, NOTHING),
                    deltas: of(&self.regression, 4, 0.0),
                    map,
                }
            })
            .collect()
    }

    /// What [`DenseHead::forward`] says of a level in inference, as nodes: logits `[B, A·K]`, deltas `[B, A, 4]`.
    pub fn onnx(&self, graph: &mut Graph, level: &Value) -> [Value; 2] {
        let logits = self.classification.onnx(graph, level);
        let deltas = self.regression.onnx(graph, level);
        [logits, graph.reshape(&deltas, &[0, -1, 4])]
    }

    /// Reports every layer to `visit` for levels of these sizes.
    pub fn flops(&self, levels: &[Size], visit: &mut dyn FnMut(Layer)) {
        for branch in [&self.classification, &self.regression] {
            for &level in levels {
                for conv in branch.convs.iter().map(|(conv, _)| conv).chain([&branch.predict]) {
                    convolution(conv, 1, level, visit);
                }
            }
        }
    }
}
