//! COCO annotations, masks and the COCO evaluation: pycocotools' numbers, without Python.
//!
//! - [`types`]: images, annotations, categories, detections
//! - [`read_dataset`], [`read_results`], [`write_results`]: the JSON files
//! - [`rle`]: run-length-coded masks

mod error;
mod json;
pub mod rle;
pub mod types;

pub use error::{Error, Result};
pub use json::read::{read_dataset, read_results};
pub use json::write::{write_dataset, write_results};
