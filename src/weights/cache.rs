//! The folder that published weights are fetched into, once for all projects of a user. `scripts/get_pretrained.py`
//! looks in the same places.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder: `weights` in `$VIGDET_CACHE`, else in `$XDG_CACHE_HOME/vigdet`, else in `~/.cache/vigdet`. It need not
/// be there.
///
/// # Errors
/// If the environment names no such place.
pub fn folder() -> Result<PathBuf> {
    folder_in(|name| std::env::var_os(name)).context("there is no HOME: VIGDET_CACHE names a folder for weights")
}

/// The file of this name in the cache, if it is there.
pub fn find(file: &str) -> Option<PathBuf> {
    let path = folder().ok()?.join(file);
    path.is_file().then_some(path)
}

/// Whether a path leads into the cache.
pub fn holds(path: &Path) -> bool {
    folder().is_ok_and(|folder| path.starts_with(folder))
}

fn folder_in(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = variable("VIGDET_CACHE");
    // The XDG specification has relative paths ignored.
    let shared = || Some(variable("XDG_CACHE_HOME").filter(|path| path.is_absolute())?.join("vigdet"));
    let home = || Some(variable("HOME")?.join(".cache/vigdet"));
    Some(own.or_else(shared).or_else(home)?.join("weights"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let of = |variables: &[(&str, &str)]| {
            let value = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            folder_in(value).map(|path| path.display().to_string())
        };
        let (own, xdg, home) = (("VIGDET_CACHE", "/c"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h"));
        assert_eq!(of(&[own, xdg, home]).as_deref(), Some("/c/weights"));
        assert_eq!(of(&[xdg, home]).as_deref(), Some("/x/vigdet/weights"));
        assert_eq!(of(&[home]).as_deref(), Some("/h/.cache/vigdet/weights"));
        assert_eq!(of(&[("VIGDET_CACHE", ""), ("XDG_CACHE_HOME", "x"), home]), of(&[home]));
        assert_eq!(of(&[]), None);
    }
}
