//! A backbone with the classifier it is pretrained with, in the published names.

use anyhow::{ensure, Result};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::nn::Module;
use tch::{nn, Tensor};

use super::{build_for, efficientnet_lite, Backbone, Family, Pass, Use};
use crate::config::BackboneConfig;
use crate::nn::cost::{convolution, Flops, Layer, Size};
use crate::nn::crossings::send;
use crate::nn::layers::{relu6, ConvBn, ConvSpec};
use crate::nn::tokens::linear;
use crate::onnx::{Graph, Value};

/// Width of ViG's hidden layer before the classes.
const HIDDEN: i64 = 1024;
/// Width of GreedyViG's and AdaptViG's.
const AXIAL_HIDDEN: i64 = 768;
/// Width of MobileNetV3-Large's.
const MOBILE_HIDDEN: i64 = 1280;
/// Fraction of it that a training pass leaves out.
const MOBILE_DROPOUT: f64 = 0.2;

/// A backbone, the mean over its last map, and class scores.
#[derive(Debug)]
pub struct Classifier {
    backbone: Box<dyn Backbone>,
    head: Head,
}

#[derive(Debug)]
// There is one head in a model: a few bytes of it matter less than another indirection.
#[allow(clippy::large_enum_variant)]
enum Head {
    /// ViG's: 1×1 convolution to 1024, batch norm, GELU, 1×1 convolution; variables `prediction.*`.
    Prediction { hidden: ConvBn, classes: nn::Conv2D },
    /// GreedyViG's and AdaptViG's: 1×1 convolution to 768, batch norm, GELU, then the mean of two 1×1 convolutions;
    /// variables `prediction.*`, `head.*` and `dist_head.*`. The second is the one that learns from a teacher, where
    /// there is one.
    Distilled { hidden: ConvBn, classes: nn::Conv2D, distilled: nn::Conv2D },
    /// ResNet's: one linear layer; variables `fc.*`. Transformers': `head.*`.
    Linear(nn::Linear),
    /// EfficientNet's: before the mean a 1×1 convolution, batch norm and ReLU6, after it a linear layer; variables
    /// `_conv_head.*`, `_bn1.*` and `_fc.*`.
    Wide { hidden: ConvBn, classes: nn::Linear },
    /// MobileNetV3's: linear layer to 1280, hard swish, dropout, linear layer; variables `classifier.*`.
    Mobile { hidden: nn::Linear, classes: nn::Linear },
}

/// What a classifier gives for a batch.
#[derive(Debug)]
pub struct Classified {
    /// The backbone's maps, `[B, C_i, H_i, W_i]`, fine to coarse.
    pub maps: Vec<Tensor>,
    /// Class scores before softmax, `[B, classes]`.
    pub logits: Tensor,
}

impl Classifier {
    /// The backbone that a config names and its classifier, with random weights under `path` in the names of published
    /// state dicts (`stem.convs.0.weight`, …, `prediction.0.weight`; `conv1.weight`, …, `fc.weight`;
    /// `features.0.0.weight`, …, `classifier.0.weight`).
    pub fn new(path: &nn::Path, config: &BackboneConfig, classes: i64) -> Result<Self> {
        ensure!(classes > 0, "a classifier needs at least one class, not {classes}");
        let backbone = match Family::of(&config.name) {
            Family::MobileNet => build_for(&(path / "features"), config, Use::Classifier)?,
            _ => build_for(path, config, Use::Classifier)?,
        };
        let input = backbone.channels().last().copied().unwrap_or_default();
        let eps = config.norm_eps;
        let head = match Family::of(&config.name) {
            Family::ResNet => Head::Linear(nn::linear(path / "fc", input, classes, Default::default())),
            Family::Swin | Family::Pvt | Family::PoolFormer | Family::CycleMlp => {
                Head::Linear(linear(path / "head", input, classes, true))
            }
            Family::Vig => {
                let p = path / "prediction";
                Head::Prediction {
                    hidden: ConvBn::new(&p / "0", &p / "1", ConvSpec::new(input, HIDDEN, 1), eps),
                    classes: ConvSpec::new(HIDDEN, classes, 1).build(&p / "4"),
                }
            }
            Family::Axial => {
                let p = path / "prediction";
                let classes = |name: &str| ConvSpec::new(AXIAL_HIDDEN, classes, 1).build(path / name);
                Head::Distilled {
                    hidden: ConvBn::new(&p / "1", &p / "2", ConvSpec::new(input, AXIAL_HIDDEN, 1), eps),
                    classes: classes("head"),
                    distilled: classes("dist_head"),
                }
            }
            Family::MobileNet => {
                let linear = |name: &str, input, output| {
                    let ws_init = nn::Init::Randn { mean: 0.0, stdev: 0.01 };
                    let config = nn::LinearConfig { ws_init, bs_init: Some(nn::Init::Const(0.0)), bias: true };
                    nn::linear(path / "classifier" / name, input, output, config)
                };
                Head::Mobile { hidden: linear("0", input, MOBILE_HIDDEN), classes: linear("3", MOBILE_HIDDEN, classes) }
            }
            Family::EfficientNetLite => {
                let width = efficientnet_lite::HIDDEN;
                let spec = ConvSpec::new(input, width, 1).no_bias();
                Head::Wide {
                    hidden: ConvBn::new(path / "_conv_head", path / "_bn1", spec, eps),
                    classes: nn::linear(path / "_fc", width, classes, Default::default()),
                }
            }
        };
        Ok(Self { backbone, head })
    }

    /// The backbone.
    pub fn backbone(&self) -> &dyn Backbone {
        &*self.backbone
    }

    /// Number of classes that get a score.
    pub fn classes(&self) -> i64 {
        match &self.head {
            Head::Prediction { classes, .. } | Head::Distilled { classes, .. } => classes.ws.size()[0],
            Head::Linear(linear) | Head::Mobile { classes: linear, .. } | Head::Wide { classes: linear, .. } => {
                linear.ws.size()[0]
            }
        }
    }

    /// Images `[B, 3, H, W]`, normalised, to maps and class scores.
    ///
    /// # Errors
    /// As the backbone; and in training, a single image, of which a ViG's classifier could take no batch statistics.
    pub fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Classified> {
        let train = pass.is_training();
        ensure!(
            !train || images.size()[0] > 1 || !matches!(self.head, Head::Prediction { .. } | Head::Distilled { .. }),
            "a classifier cannot train on a batch of one image: its batch norm would see one value per channel"
        );
        let (maps, last) = self.backbone.forward_to_classify(images, pass)?;
        let mean = |map: &Tensor| map.mean_dim([2, 3].as_slice(), true, None);
        let logits = match &self.head {
            Head::Prediction { hidden, classes } => {
                classes.forward(&hidden.forward(&mean(&last), train).gelu("none")).flatten(1, -1)
            }
            Head::Distilled { hidden, classes, distilled } => {
                let hidden = hidden.forward(&mean(&last), train).gelu("none");
                ((classes.forward(&hidden) + distilled.forward(&hidden)) / 2.0).flatten(1, -1)
            }
            Head::Linear(linear) => linear.forward(&mean(&last).flatten(1, -1)),
            Head::Wide { hidden, classes } => {
                classes.forward(&mean(&relu6(hidden.forward(&last, train))).flatten(1, -1))
            }
            Head::Mobile { hidden, classes } => {
                let hidden = hidden.forward(&mean(&last).flatten(1, -1)).hardswish();
                classes.forward(&dropout(hidden, pass.noise()))
            }
        };
        Ok(Classified { maps, logits })
    }

    /// Images, normalised, to class scores `[B, classes]`, float32, as nodes of a graph.
    ///
    /// # Errors
    /// As [`Backbone::onnx`].
    pub fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Value> {
        let last = self.backbone.onnx_to_classify(graph, images)?;
        graph.part("classifier");
        let flat_mean = |graph: &mut Graph, x: &Value| {
            let mean = graph.mean_map(x);
            graph.op("Flatten", &[&mean], &[])
        };
        let logits = match &self.head {
            Head::Prediction { hidden, classes } => {
                let mean = graph.mean_map(&last);
                let hidden = hidden.onnx(graph, &mean);
                let hidden = graph.gelu(&hidden);
                let logits = graph.conv2d(&hidden, classes, 1);
                graph.op("Flatten", &[&logits], &[])
            }
            Head::Distilled { hidden, classes, distilled } => {
                let mean = graph.mean_map(&last);
                let hidden = hidden.onnx(graph, &mean);
                let hidden = graph.gelu(&hidden);
                let both = [classes, distilled].map(|layer| graph.conv2d(&hidden, layer, 1));
                let logits = graph.op("Mean", &[&both[0], &both[1]], &[]);
                graph.op("Flatten", &[&logits], &[])
            }
            Head::Linear(linear) => {
                let mean = flat_mean(graph, &last);
                graph.linear(&mean, linear)
            }
            Head::Wide { hidden, classes } => {
                let hidden = hidden.onnx(graph, &last);
                let hidden = graph.relu6(&hidden);
                let mean = flat_mean(graph, &hidden);
                graph.linear(&mean, classes)
            }
            Head::Mobile { hidden, classes } => {
                let mean = flat_mean(graph, &last);
                let hidden = graph.linear(&mean, hidden);
                let hidden = graph.unary("HardSwish", &hidden);
                graph.linear(&hidden, classes)
            }
        };
        Ok(graph.full(&logits))
    }
}

/// Leaves out values in training, and scales up the others.
fn dropout(x: Tensor, noise: Option<&mut ChaCha8Rng>) -> Tensor {
    let Some(noise) = noise else { return x };
    let scale = (1.0 / (1.0 - MOBILE_DROPOUT)) as f32;
    let draw = |_| if noise.random::<f64>() < MOBILE_DROPOUT { 0.0 } else { scale };
    let mask = send(&(0..x.numel()).map(draw).collect::<Vec<f32>>(), x.device());
    let mask = mask.view_as(&x).to_kind(x.kind());
    x * mask
}

impl Flops for Classifier {
    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Size {
        let maps = self.backbone.flops(image, visit);
        let one = (1, 1);
        let linear = |linear: &nn::Linear| Layer::Weights { weights: linear.ws.numel() as u64, locations: 1 };
        match &self.head {
            Head::Prediction { hidden, classes } => {
                hidden.flops(one, visit);
                convolution(classes, 1, one, visit);
            }
            Head::Distilled { hidden, classes, distilled } => {
                hidden.flops(one, visit);
                convolution(classes, 1, one, visit);
                convolution(distilled, 1, one, visit);
            }
            Head::Linear(classes) => visit(linear(classes)),
            Head::Mobile { hidden, classes } => {
                visit(linear(hidden));
                visit(linear(classes));
            }
            Head::Wide { hidden, classes } => {
                visit(linear(classes));
                if let Some(&last) = maps.last() {
                    hidden.flops(last, visit);
                }
            }
        }
        one
    }
}
