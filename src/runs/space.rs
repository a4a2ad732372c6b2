//! Room on the disk for what is to be written.

use std::path::Path;

use anyhow::{ensure, Result};

/// Refuses to begin with `bytes` that the disk of a folder has no room for. The folder may be yet to be made. A disk
/// that does not say how much room it has is taken to have enough.
///
/// # Errors
/// Says how much there is.
pub fn check_space(folder: &Path, bytes: u64, what: &str) -> Result<()> {
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let Some(free) = free_bytes(there) else { return Ok(()) };
    let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
    ensure!(
        free >= bytes,
        "there is no room for {what}: it takes {} MiB, and the disk of {} has {} MiB left",
        megabytes(bytes),
        folder.display(),
        free >> 20
    );
    Ok(())
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    // Some network drives say nothing.
    (disk.f_blocks > 0).then(|| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_disk_has_is_refused_in_folders_that_are_yet_to_be_made_too() {
        let folder = tempfile::tempdir().unwrap();
        check_space(folder.path(), 1, "a byte").unwrap();
        let error = check_space(folder.path(), u64::MAX, "the next checkpoint").unwrap_err().to_string();
        assert!(error.contains("no room for the next checkpoint: it takes 17592186044416 MiB"), "{error}");
        assert!(check_space(&folder.path().join("a/b"), u64::MAX, "anything").is_err());
        check_space(Path::new("a/b"), 1, "a byte").unwrap();
    }
}
