//! `vigdet dataset check`: what is wrong.

use super::{describe, say, Resize, Source};
use crate::check::{check, fix, Options};
use crate::types::Import;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    resize: Resize,
    /// Do not decode the images: quicker, but finds neither damaged ones nor those that come twice.
    #[arg(long)]
    no_decode: bool,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
    /// COCO file for the labels with what can be mended without guessing. Several splits get their names added.
    #[arg(long, value_name = "OUT.json")]
    fix: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let import = args.source.read()?;
    let options = Options { decode: !args.no_decode, size: args.resize.size, progress: !args.json };
    let report = check(&import, &options);
    let mut mended = Vec::new();
    if let Some(out) = &args.fix {
        mended = write_fixed(&import, out)?;
    }
    if args.json {
        let value = json!({
            "layout": import.layout.to_string(), "images": report.images, "annotations": report.annotations,
            "hurts": report.hurts(), "findings": report.findings, "mended": mended,
        });
        say(&serde_json::to_string_pretty(&value)?);
    } else {
        describe(&import);
        report.lines().iter().for_each(|line| say(line));
        mended.iter().for_each(|line| say(&format!("mended: {line}")));
    }
    Ok(if report.hurts() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Writes the mended labels, and gives a line for each thing that was done.
fn write_fixed(import: &Import, out: &Path) -> Result<Vec<String>> {
    let (splits, mut did) = fix(import);
    let mut outputs = vigdet_coco::output::Outputs::default();
    if import.root.is_file() {
        outputs.reads(&import.root);
    }
    for split in &splits {
        let path = if splits.len() == 1 { out.to_path_buf() } else { named(out, &split.name)? };
        outputs.write(&path, |to| Ok(serde_json::to_writer(to, &split.dataset)?))?;
        let folder = split.folder.display();
        did.push(format!("{} is split {}, with its images in {folder}", path.display(), split.name));
    }
    Ok(did)
}

fn named(out: &Path, split: &str) -> Result<PathBuf> {
    let stem = out.file_stem().with_context(|| format!("{} is no file name", out.display()))?;
    let ending = out.extension().unwrap_or_default();
    let name = format!("{}_{split}", stem.to_string_lossy());
    Ok(out.with_file_name(name).with_extension(ending))
}
