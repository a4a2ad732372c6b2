//! Feature extractors: images to one map per stage.

mod classifier;
pub mod layers;
pub mod pyramid_vig;
pub mod resnet;

use anyhow::{bail, ensure, Result};
use tch::{nn, Tensor};

use crate::config::BackboneConfig;
use crate::graph::GraphTrace;

pub use classifier::{Classified, Classifier};
pub use pyramid_vig::PyramidVig;
pub use resnet::ResNet;

/// Names that [`build`] knows.
pub const NAMES: [&str; 6] = ["pvig_ti", "pvig_s", "pvig_m", "pvig_b", "resnet18", "resnet50"];

/// A feature extractor: a detector owns one and never asks which.
pub trait Backbone: std::fmt::Debug {
    /// Channels of each map, fine to coarse.
    fn channels(&self) -> &[i64];

    /// Pixels of the image per place of each map, fine to coarse.
    fn strides(&self) -> &[i64];

    /// Images, float32 `[B, 3, H, W]`, normalised, of any size, to one map per stage, `[B, C_i, H_i, W_i]`, fine to coarse.
    ///
    /// `train`: batch statistics in the norms and stochastic depth. `trace` collects the graph of each block, where there is one.
    ///
    /// # Errors
    /// In training, a batch so small that a batch norm would see one value per channel: its running variance would become NaN.
    fn forward(&self, images: &Tensor, train: bool, trace: Option<&mut GraphTrace>) -> Result<Vec<Tensor>>;

    /// Tells where in a run the next forward is: what is random in training is drawn from these two numbers alone, so that a
    /// resumed run draws what the uninterrupted one would.
    fn set_iteration(&self, _seed: u64, _iteration: u64) {}
}

/// Builds the backbone that a config names, with random weights under `path`, in the published names.
pub fn build(path: &nn::Path, config: &BackboneConfig) -> Result<Box<dyn Backbone>> {
    ensure!(
        (0..=4).contains(&config.frozen_stages),
        "model.backbone.frozen_stages counts the stages 1 to 4 (0: none); {} is not one",
        config.frozen_stages
    );
    Ok(match config.name.as_str() {
        "resnet18" | "resnet50" => Box::new(ResNet::new(path, config)?),
        name if name.starts_with("pvig_") => Box::new(PyramidVig::new(path, config)?),
        name => bail!("there is no backbone `{name}`; there are {}", NAMES.join(", ")),
    })
}

/// Refuses a training batch whose smallest map has one value per channel.
fn check_batch(images: &Tensor, stride: i64) -> Result<()> {
    let size = images.size();
    let smallest =
        size[0] * (size[2] + stride - 1).div_euclid(stride) * (size[3] + stride - 1).div_euclid(stride);
    ensure!(
        smallest > 1,
        "a training batch of {} image of {}×{} pixels leaves one value per channel to the last batch norms, whose running \
         variance would become NaN: use larger images, a larger batch (or train.micro_batch), or model.backbone.freeze_norms=true",
        size[0],
        size[2],
        size[3]
    );
    Ok(())
}
