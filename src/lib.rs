//! Object detection with Vision GNN backbones.
//!
//! - [`allocator`]: how the process holds on to memory.
//! - [`cli`]: what the programs share.
//! - [`config`]: the types behind `configs/*.json`.
//! - [`explore`]: the graphs of a model on an image, as data for pictures and numbers.
//! - [`graph`]: what makes ViG ViG: neighbours, aggregation, the Grapher block. Its CPU kernels are the crate
//!   `vigdet-kernels`.
//! - [`backbone`]: Pyramid ViG and ResNet: images to one map per stage.
//! - [`data`]: COCO files, built-in shapes and folders of classes to batches of images.
//! - [`detect`]: RetinaNet, Mask R-CNN, Faster R-CNN and their parts.
//! - [`nn`]: layers, their precision, cost and memory.
//! - [`stats`]: parameters and multiply-adds of the named models.
//! - [`threads`]: how many there are.
//! - [`train`]: optimizer, schedule, checkpoints, and the loop around them.
//! - [`plot`]: pictures: training curves, detections on their images, graphs.
//! - [`predictor`]: a trained detector, ready for images.
//! - [`weights`]: reading and writing them, by name.

pub mod allocator;
pub mod backbone;
pub mod cli;
pub mod config;
pub mod data;
pub mod detect;
pub mod explore;
pub mod graph;
pub mod nn;
pub mod plot;
pub mod predictor;
pub mod stats;
pub mod threads;
pub mod train;
pub mod weights;
