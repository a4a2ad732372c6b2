//! Detectors and their parts.

mod detector;

pub use detector::{Detections, Detector, Losses};
