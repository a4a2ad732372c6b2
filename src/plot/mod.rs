//! Pictures: training curves, boxes on images, detections beside the ground truth.

pub mod canvas;
mod colors;
mod judge;
mod overlay;
mod sheet;

pub use judge::{best_threshold, judge, Judgement, Truth, Verdict};
pub use overlay::{overlay, Mark};
pub use sheet::{beside_truth, HIT};
