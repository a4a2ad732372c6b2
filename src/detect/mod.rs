//! Detectors and their parts.

pub mod anchors;
pub mod box_head;
pub mod boxes;
pub mod classes;
pub mod dense_head;
pub mod dense_losses;
mod detector;
pub mod fpn;
pub mod losses;
pub mod mask;
pub mod mask_head;
pub mod mask_rcnn;
pub mod matcher;
pub mod nms;
pub mod retinanet;
pub mod roi_align;
pub mod roi_heads;
pub mod rpn;
pub mod sampler;
pub mod select;

use anyhow::Result;
use tch::nn;

use crate::config::{DetectorKind, ModelConfig};

pub use detector::{Detections, Detector, Losses};
pub use mask::InstanceMask;
pub use mask_rcnn::MaskRcnn;
pub use retinanet::RetinaNet;

/// Builds the detector that a config names, with random weights under `path`, for `classes` classes.
pub fn build(path: &nn::Path, config: &ModelConfig, classes: i64) -> Result<Box<dyn Detector>> {
    Ok(match config.detector {
        DetectorKind::Retinanet => Box::new(RetinaNet::new(path, config, classes)?),
        DetectorKind::MaskRcnn => Box::new(MaskRcnn::new(path, config, classes)?),
    })
}
