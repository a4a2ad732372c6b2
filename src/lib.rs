//! Object detection with Vision GNN backbones.
//!
//! - [`config`]: the types behind `configs/*.json`.
//! - [`data`]: COCO files and built-in shapes to batches of images.
//! - [`detect`]: RetinaNet and its parts.

pub mod config;
pub mod data;
pub mod detect;
pub mod graph;
