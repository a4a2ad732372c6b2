//! Object detection with Vision GNN backbones.
//!
//! - [`allocator`]: how the process holds on to memory.
//! - [`classes`]: the classes of a data set or a model, compared by name.
//! - [`cli`]: what the programs share.
//! - [`commands`]: the programs, one file each.
//! - [`config`]: the types behind `configs/*.json`.
//! - [`console`]: what programs print.
//! - [`explore`]: the graphs of a model on an image, as data for pictures and numbers.
//! - [`onnx`]: ONNX files, and graphs that models write themselves into.
//! - [`nn`]: layers, their precision, cost and memory.
//! - [`graph`]: what makes ViG ViG: neighbours, aggregation, the Grapher block.
//! - [`backbone`]: Pyramid ViG and ResNet: images to one map per stage.
//! - [`data`]: COCO files, built-in shapes and folders of classes to batches of images.
//! - [`detect`]: RetinaNet, Mask R-CNN, Faster R-CNN and their parts.
//! - [`runs`]: the folder of a run, and its log.
//! - [`stats`]: parameters and multiply-adds of the named models.
//! - [`threads`]: how many there are.
//! - [`to_onnx`]: a model as an ONNX file.
//! - [`train`]: optimizer, schedule, checkpoints, and the loop around them.
//! - [`plot`]: pictures: training curves, detections on their images, graphs.
//! - [`predictor`]: a trained detector, ready for images.
//! - [`weights`]: reading and writing them, by name.

// Whoever reads along may leave: programs print by way of `console`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod allocator;
pub mod backbone;
pub mod classes;
pub mod cli;
pub mod commands;
pub mod config;
pub mod console;
pub mod data;
pub mod detect;
pub mod explore;
pub mod graph;
pub mod nn;
pub mod onnx;
pub mod plot;
pub mod predictor;
pub mod runs;
pub mod stats;
pub mod threads;
pub mod to_onnx;
pub mod train;
pub mod weights;
