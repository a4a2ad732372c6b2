//! Pictures: training curves, boxes on images, detections beside the ground truth, graphs of patches.
//!
//! [`run`] makes all pictures of a run's folder. [`curves`], [`draw_detections`] and [`beside_truth`] make one each;
//! [`graph`] shows which patches a model links.

pub mod canvas;
mod colors;
mod contact_sheet;
mod curves;
mod deliver;
mod detections;
pub mod graph;
mod history;
mod judge;
mod overlay;
mod run_pictures;
mod sheet;
mod targets;

pub use colors::{class as class_color, of_palette as palette_color};
pub use contact_sheet::contact_sheet;
pub use curves::curves;
pub use deliver::deliver;
pub use detections::{draw_detections, png};
pub use history::{RunLog, Series};
pub use judge::{best_threshold, judge, Judgement, Truth, Verdict};
pub use overlay::{overlay, Mark, MarkMask};
pub use run_pictures::{run, RunPictures};
pub use sheet::{beside_truth, HIT};
pub use targets::{batch_images, crop_of, draw_target, target_marks};
