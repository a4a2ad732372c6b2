//! Object detection with Vision GNN backbones.
//!
//! - [`config`]: the types behind `configs/*.json`.
//! - [`graph`]: what makes ViG ViG: neighbours, aggregation, the Grapher block.
//! - [`backbone`]: Pyramid ViG and ResNet: images to one map per stage.
//! - [`data`]: COCO files and built-in shapes to batches of images.
//! - [`detect`]: RetinaNet and its parts.
//! - [`weights`]: reading and writing them, by name.

pub mod backbone;
pub mod config;
pub mod data;
pub mod detect;
pub mod graph;
pub mod weights;
