//! Writing results and annotation files.

use crate::error::{Error, Result};
use crate::types::{Dataset, Detection};
use serde::Serialize;
use std::io::{BufWriter, Write};
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
    write_beside(path, value).map_err(|reason| Error::Write { path: path.to_path_buf(), reason })
}

/// Writes beside the file and renames.
fn write_beside<T: Serialize + ?Sized>(path: &Path, value: &T) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // A temporary file is private by default; this one becomes the user's.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let file = builder.tempfile_in(folder)?;
    let mut writer = BufWriter::new(file);
    serde_json::to_writer(&mut writer, value)?;
    let file = writer.into_inner().map_err(|error| error.into_error())?;
    file.as_file().flush()?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
