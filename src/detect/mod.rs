//! Detectors and their parts.

pub mod anchors;
pub mod boxes;
pub mod dense_head;
pub mod dense_losses;
mod detector;
pub mod fpn;
pub mod losses;
pub mod matcher;
pub mod nms;
pub mod retinanet;
pub mod select;

use anyhow::Result;
use tch::nn;

use crate::config::{DetectorKind, ModelConfig};

pub use detector::{Detections, Detector, Losses};
pub use retinanet::RetinaNet;

/// Builds the detector that a config names, with random weights under `path`, for `classes` classes.
pub fn build(path: &nn::Path, config: &ModelConfig, classes: i64) -> Result<Box<dyn Detector>> {
    Ok(match config.detector {
        DetectorKind::Retinanet => Box::new(RetinaNet::new(path, config, classes)?),
    })
}
