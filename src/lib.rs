//! Object detection with Vision GNN backbones: train a detector, or open one and use it.
//!
//! ```no_run
//! use std::path::Path;
//! use vigdet::data::decode;
//! use vigdet::predictor::{Predictor, PredictorOptions};
//!
//! # fn main() -> anyhow::Result<()> {
//! let predictor = Predictor::open(Path::new("best.safetensors"), &PredictorOptions::default())?;
//! let path = Path::new("photo.jpg");
//! let image = decode::open(path, false)?;
//! let found = predictor.detect(std::slice::from_ref(&image))?;
//! for object in predictor.describe(path, &image, &found[0]).detections {
//!     println!("{} {:.2} {:?}", object.label, object.score, object.bbox);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`predictor`] is the stable part; the other modules are what the programs are made of, and change with them.
//! `docs/install.md` in the sources says how a program of one's own finds libtorch.
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
//! - [`ranks`]: several processes that train together.
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

// Their types are in this crate's interface: callers need the same version.
pub use image;
pub use tch;

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
pub mod ranks;
pub mod runs;
pub mod stats;
pub mod threads;
pub mod to_onnx;
pub mod train;
pub mod weights;
