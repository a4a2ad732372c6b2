//! Run directories: where training leaves its results, and what they were tested on.

use crate::error::{shortened, Error, Result};
use std::path::{Path, PathBuf};

/// Names the annotation file of a run.
const GROUND_TRUTH: &str = "ground_truth.json";

/// The folder under `runs` whose file `name` was written last.
pub fn newest(runs: &Path, name: &str) -> Option<PathBuf> {
    let written = |folder: &Path| std::fs::metadata(folder.join(name)).and_then(|data| data.modified()).ok();
    std::fs::read_dir(runs)
        .ok()?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter_map(|folder| Some((written(&folder)?, folder)))
        .max()
        .map(|(_, folder)| folder)
}

/// The annotation file that results were made for: as `ground_truth.json` in their folder, `{"annotations": path}`, says. A
/// relative path is one from the current folder, or else from the run's.
///
/// # Errors
/// There is no such file, or it does not name one.
pub fn ground_truth_beside(results: &Path) -> Result<PathBuf> {
    let folder = results.parent().unwrap_or(Path::new(""));
    let path = folder.join(GROUND_TRUTH);
    if !path.is_file() {
        return Err(Error::Data(format!(
            "there is no {} that names the annotations: give them with --gt FILE",
            path.display()
        )));
    }
    let text = std::fs::read(&path).map_err(|reason| Error::Read { path: path.clone(), reason })?;
    #[derive(serde::Deserialize)]
    struct GroundTruth {
        annotations: PathBuf,
    }
    let GroundTruth { annotations } = serde_json::from_slice(&text)
        .map_err(|error| Error::File { path: path.clone(), message: shortened(&error.to_string()) })?;
    let beside = folder.join(&annotations);
    Ok(if !annotations.exists() && beside.exists() { beside } else { annotations })
}
