//! Writing results and annotation files.

use crate::error::Result;
use crate::output::write_atomically;
use crate::types::{Dataset, Detection};
use serde::Serialize;
use std::path::Path;

/// Writes a results file that pycocotools' `loadRes` reads. The file appears whole or not at all.
///
/// # Errors
/// The folder is not there or cannot be written to.
pub fn write_results(path: impl AsRef<Path>, detections: &[Detection]) -> Result<()> {
    write(path.as_ref(), detections)
}

/// Writes an annotation file. The file appears whole or not at all.
///
/// # Errors
/// The folder is not there or cannot be written to.
pub fn write_dataset(path: impl AsRef<Path>, dataset: &Dataset) -> Result<()> {
    write(path.as_ref(), dataset)
}

fn write<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    write_atomically(path, |out| Ok(serde_json::to_writer(out, value)?))
}
