//! Pictures on their way into a folder where other files may be.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vigdet_coco::output::Outputs;

/// Puts what `draw` draws into a folder of its own into `folder`, one file after the other, where `outputs` allows it.
///
/// # Errors
/// Those of `draw`, and of files that may not or cannot be written.
pub fn deliver(
    outputs: &Outputs,
    folder: &Path,
    draw: impl FnOnce(&Path) -> Result<Vec<PathBuf>>,
) -> Result<Vec<PathBuf>> {
    let drawn = tempfile::tempdir().context("cannot make a temporary folder")?;
    let put = |file: PathBuf| -> Result<PathBuf> {
        let to = folder.join(file.file_name().unwrap_or_default());
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        outputs.write(&to, |out| out.write_all(&bytes))?;
        Ok(to)
    };
    draw(drawn.path())?.into_iter().map(put).collect()
}
