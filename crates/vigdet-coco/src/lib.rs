//! COCO annotations, masks and the COCO evaluation: pycocotools' numbers, without Python.
//!
//! Read a ground truth and results, and evaluate them: [`eval`] has an example.
//!
//! - [`types`]: images, annotations, categories, detections
//! - [`read_dataset`], [`read_results`], [`write_results`]: the JSON files
//! - [`eval`]: the evaluation
//! - [`analysis`]: kinds of errors, confusions, comparisons
//! - `plot`: pictures of results, and the style that they share (feature `plots`)
//! - [`rle`]: run-length-coded masks
//! - [`output`]: files written whole, and never over somebody else's
//!
//! Features: `plots` adds the module `plot`; `cli`, the default, adds the program `coco_eval`.

#![warn(missing_docs)]

pub mod analysis;
mod error;
pub mod eval;
mod json;
pub mod output;
#[cfg(feature = "plots")]
pub mod plot;
pub mod rle;
pub mod types;

#[cfg(fuzzing)]
pub use json::fuzzing;

pub use error::{Error, Result};
pub use json::reader::{
    check_ids, parse_results, read_dataset, read_dataset_as_found, read_dataset_with_warnings, read_results,
};
pub use json::write::{write_dataset, write_results};

/// Keeps the README's example compiling.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
