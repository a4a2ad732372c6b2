//! Feature extractors: images to one map per stage.

pub mod axial;
mod classifier;
pub mod cycle_mlp;
pub mod efficientnet_lite;
pub mod mobilenet_v3;
pub mod poolformer;
pub mod pvt;
pub mod resnet;
pub mod swin;
pub mod vig;

use anyhow::{ensure, Context, Result};
use tch::{nn, Tensor};

use crate::config::BackboneConfig;
use crate::nn::cost::{Layer, Size};
use crate::onnx::{Graph, Value};

pub use crate::graph::Pass;
pub use axial::AxialVig;
pub use classifier::{Classified, Classifier};
pub use cycle_mlp::CycleMlp;
pub use efficientnet_lite::EfficientNetLite;
pub use mobilenet_v3::MobileNetV3;
pub use poolformer::PoolFormer;
pub use pvt::Pvt;
pub use resnet::ResNet;
pub use swin::Swin;
pub use vig::Vig;

/// Names that [`build`] knows.
pub const NAMES: [&str; 40] = [
    "pvig_n",
    "pvig_ti",
    "pvig_s",
    "pvig_m",
    "pvig_b",
    "vig_ti",
    "vig_s",
    "vig_b",
    "greedyvig_s",
    "greedyvig_m",
    "greedyvig_b",
    "adaptvig_s",
    "adaptvig_m",
    "adaptvig_b",
    "resnet18",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "swin_t",
    "swin_s",
    "swin_b",
    "pvt_tiny",
    "pvt_small",
    "pvt_medium",
    "pvt_large",
    "poolformer_s12",
    "poolformer_s24",
    "poolformer_s36",
    "poolformer_m36",
    "poolformer_m48",
    "cyclemlp_b1",
    "cyclemlp_b2",
    "cyclemlp_b3",
    "cyclemlp_b4",
    "cyclemlp_b5",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "mobilenet_v3_large",
];

/// Backbones of one kind: what differs between them is numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Vision GNNs, pyramids and not.
    Vig,
    /// GreedyViGs and AdaptViGs: Vision GNNs linked along rows and columns.
    Axial,
    /// Residual networks, ResNeXts too.
    ResNet,
    /// Swin Transformers.
    Swin,
    /// Pyramid Vision Transformers.
    Pvt,
    /// PoolFormers.
    PoolFormer,
    /// CycleMLPs.
    CycleMlp,
    /// EfficientNet-Lite.
    EfficientNetLite,
    /// MobileNetV3.
    MobileNet,
}

impl Family {
    /// Whether its batch norms take statistics in training.
    pub fn has_batch_norms(self) -> bool {
        !matches!(self, Self::Swin | Self::Pvt | Self::PoolFormer | Self::CycleMlp)
    }

    /// Whether its blocks build graphs.
    pub fn has_graphs(self) -> bool {
        matches!(self, Self::Vig | Self::Axial)
    }

    /// The family of a backbone, by its name.
    pub fn of(name: &str) -> Self {
        match name {
            _ if name.starts_with("greedyvig") || name.starts_with("adaptvig") => Self::Axial,
            _ if name.starts_with("resnet") || name.starts_with("resnext") => Self::ResNet,
            _ if name.starts_with("swin") => Self::Swin,
            _ if name.starts_with("pvt") => Self::Pvt,
            _ if name.starts_with("poolformer") => Self::PoolFormer,
            _ if name.starts_with("cyclemlp") => Self::CycleMlp,
            _ if name.starts_with("efficientnet_lite") => Self::EfficientNetLite,
            _ if name.starts_with("mobilenet") => Self::MobileNet,
            _ => Self::Vig,
        }
    }
}

/// A feature extractor: a detector owns one and never asks which.
pub trait Backbone: std::fmt::Debug + Send {
    /// Channels of each map, fine to coarse.
    fn channels(&self) -> &[i64];

    /// Pixels of the image per location of each map, fine to coarse.
    fn strides(&self) -> &[i64];

    /// Images, float32 `[B, 3, H, W]`, normalised, of any size, to one map per stage, `[B, C_i, H_i, W_i]`, fine to
    /// coarse.
    ///
    /// # Errors
    /// In training, a batch so small that a batch norm would see one value per channel: its running variance would
    /// become NaN.
    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>>;

    /// The maps, and what a classifier takes the mean of, `[B, C, …, …]`: the last map, if the network has no class
    /// token.
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    fn forward_to_classify(&self, images: &Tensor, pass: &mut Pass) -> Result<(Vec<Tensor>, Tensor)> {
        let maps = self.forward(images, pass)?;
        let last = maps[maps.len() - 1].shallow_clone();
        Ok((maps, last))
    }

    /// [`Backbone::forward`] in inference, as nodes of a graph.
    ///
    /// # Errors
    /// If it cannot be written with the graph's options.
    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>>;

    /// [`Backbone::forward_to_classify`] in inference, as nodes of a graph: what a classifier takes the mean of.
    ///
    /// # Errors
    /// As [`Backbone::onnx`].
    fn onnx_to_classify(&self, graph: &mut Graph, images: &Value) -> Result<Value> {
        self.onnx(graph, images)?.pop().context("a backbone gives a map")
    }

    /// Reports every layer to `visit` for one image of this size in pixels, and gives the size of each stage's map.
    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size>;
}

/// What a backbone is built for. Published transformers differ in their ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A detector: a norm on each map.
    Detector,
    /// A classifier: one on the last map, or a class token.
    Classifier,
}

/// Builds the backbone of a detector that a config names, with random weights under `path`, in the published names.
///
/// # Errors
/// If there is no such backbone, or the config asks it for what it cannot do.
pub fn build(path: &nn::Path, config: &BackboneConfig) -> Result<Box<dyn Backbone>> {
    build_for(path, config, Use::Detector)
}

/// As [`build`], for this use.
fn build_for(path: &nn::Path, config: &BackboneConfig, of: Use) -> Result<Box<dyn Backbone>> {
    ensure!(
        NAMES.contains(&config.name.as_str()),
        "there is no backbone `{}`; there are {}",
        config.name,
        NAMES.join(", ")
    );
    Ok(match Family::of(&config.name) {
        Family::Vig => Box::new(Vig::new(path, config)?),
        Family::Axial => Box::new(AxialVig::new(path, config)?),
        Family::ResNet => Box::new(ResNet::new(path, config)?),
        Family::EfficientNetLite => Box::new(EfficientNetLite::new(path, config)?),
        Family::MobileNet => Box::new(MobileNetV3::new(path, config)?),
        Family::Swin => Box::new(Swin::new(path, config, of)?),
        Family::Pvt => Box::new(Pvt::new(path, config, of)?),
        Family::PoolFormer => Box::new(PoolFormer::new(path, config, of)?),
        Family::CycleMlp => Box::new(CycleMlp::new(path, config, of)?),
    })
}

/// Channels and blocks of the four stages of a published model whose config can change them; `None`: there is no such.
pub fn stages(name: &str) -> Option<([i64; 4], [i64; 4])> {
    match Family::of(name) {
        Family::Vig => vig::pyramid::preset(name),
        Family::Axial => axial::preset(name),
        Family::Swin => swin::preset(name),
        Family::Pvt => pvt::preset(name),
        Family::PoolFormer => poolformer::preset(name),
        Family::CycleMlp => cycle_mlp::preset(name),
        Family::ResNet | Family::EfficientNetLite | Family::MobileNet => None,
    }
}

/// The norms of four maps: `norm0`, and on in steps of `step`, of a detector; `norm`, of the last, of a classifier.
fn map_norms<T>(path: &nn::Path, of: Use, step: usize, norm: impl Fn(nn::Path, usize) -> T) -> [Option<T>; 4] {
    std::array::from_fn(|s| match of {
        Use::Detector => Some(norm(path / format!("norm{}", s * step), s)),
        Use::Classifier => (s == 3).then(|| norm(path / "norm", s)),
    })
}

/// Stochastic depth of block `index` of all `blocks`: it rises linearly from 0 to the config's.
fn drop_of(config: &BackboneConfig, index: i64, blocks: &[i64]) -> f64 {
    config.drop_path * index as f64 / (blocks.iter().sum::<i64>() - 1).max(1) as f64
}

/// How many of a backbone's stages do not train.
fn frozen_stages(config: &BackboneConfig, stages: usize) -> Result<usize> {
    let frozen = usize::try_from(config.frozen_stages).ok().filter(|frozen| *frozen <= stages);
    frozen.with_context(|| {
        format!(
            "model.backbone.frozen_stages counts the stages 1 to {stages} of {} (0: none); {} is not one",
            config.name, config.frozen_stages
        )
    })
}

/// Refuses images with a side below `least` pixels, on which a first convolution without enough padding has no place.
fn check_side(images: &Tensor, least: i64) -> Result<()> {
    let size = images.size();
    ensure!(
        size[2].min(size[3]) >= least,
        "an image of {}×{} pixels is too small: the sides must have at least {least} for this backbone",
        size[2],
        size[3]
    );
    Ok(())
}

/// Whether batch norms use the statistics of this batch.
///
/// # Errors
/// If they would, and the smallest map, of this stride in pixels, has one value per channel.
fn norms_learn(images: &Tensor, stride: i64, frozen: bool, pass: &Pass) -> Result<bool> {
    if !pass.is_training() || frozen {
        return Ok(false);
    }
    let size = images.size();
    let smallest = size[0] * (size[2] + stride - 1).div_euclid(stride) * (size[3] + stride - 1).div_euclid(stride);
    ensure!(
        smallest > 1,
        "a training batch of {} image of {}×{} pixels leaves one value per channel to the last batch norms, \
         whose running variance would become NaN: use larger images, a larger batch (or train.micro_batch), or \
         model.backbone.freeze_norms=true",
        size[0],
        size[2],
        size[3]
    );
    Ok(true)
}
