//! `vigdet dataset split`: new splits of the same images.

use super::{how_to_train, say, Source};
use crate::check::{pictures, Picture};
use crate::split::{assign, merged, part, units, write, Group};
use anyhow::{bail, Context, Result};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Folder for the annotation files. Images stay where they are.
    #[arg(long)]
    out: PathBuf,
    /// Parts and their shares.
    #[arg(long, value_delimiter = ',', default_value = "train=0.8,val=0.2", value_parser = fraction)]
    fractions: Vec<(String, f64)>,
    /// So many folds, each in a folder of its own: one part to validate on, the others to train on.
    #[arg(long, conflicts_with = "fractions", value_parser = clap::value_parser!(u32).range(2..))]
    folds: Option<u32>,
    /// Images that stay together: `folder`, `prefix:TEXT` (names that are alike up to this text), or
    /// `column:FILE.csv:NAME`.
    #[arg(long, value_parser = group)]
    group: Option<Group>,
    /// Another seed gives other splits.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Do not decode images: nearly the same pictures may then come apart.
    #[arg(long)]
    no_decode: bool,
}

fn fraction(text: &str) -> Result<(String, f64)> {
    let (name, value) = text.split_once('=').with_context(|| format!("`{text}` is not NAME=FRACTION"))?;
    crate::layouts::safe(name)?;
    Ok((name.to_owned(), value.parse().with_context(|| format!("`{value}` is not a number"))?))
}

/// [`parse_group`] with all of what went wrong, which the reader of arguments asks of a string alone.
fn group(text: &str) -> Result<Group, String> {
    parse_group(text).map_err(|error| format!("{error:#}"))
}

fn parse_group(text: &str) -> Result<Group> {
    match text.split_once(':') {
        None if text == "folder" => Ok(Group::Folder),
        Some(("prefix", end)) if !end.is_empty() => Ok(Group::Prefix(end.to_owned())),
        Some(("column", rest)) => {
            let (file, column) = rest.rsplit_once(':').context("a column is given as column:FILE.csv:NAME")?;
            Group::from_column(file.as_ref(), column)
        }
        _ => bail!("`{text}` is none of folder, prefix:TEXT, column:FILE.csv:NAME"),
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let whole = merged(&args.source.open()?)?;
    let seen: Vec<Option<Picture>> = if args.no_decode { Vec::new() } else { pictures(&whole, true) };
    let units = units(&whole, &args.group.unwrap_or_default(), &seen);
    say(&format!("{} images in {} groups that stay together", whole.dataset.images.len(), units.len()));
    let report = |splits: &[crate::Split]| {
        for split in splits {
            let (images, objects) = (split.dataset.images.len(), split.dataset.annotations.len());
            say(&format!("  {}: {images} images, {objects} annotations", split.name));
        }
    };
    if let Some(folds) = args.folds {
        let parts = assign(&whole, &units, &vec![1.0; folds as usize], args.seed)?;
        for fold in 0..folds as usize {
            let train = part(&whole, "train", |image| parts[image] != fold);
            let splits = [train, part(&whole, "val", |image| parts[image] == fold)];
            let out = args.out.join(format!("fold{fold}"));
            write(&splits, &out)?;
            say(&format!("{}", out.display()));
            report(&splits);
        }
        how_to_train(&args.out.join("fold0"));
    } else {
        let shares: Vec<f64> = args.fractions.iter().map(|(_, share)| *share).collect();
        let parts = assign(&whole, &units, &shares, args.seed)?;
        let names = args.fractions.iter().enumerate();
        let splits: Vec<_> = names.map(|(i, (name, _))| part(&whole, name, |image| parts[image] == i)).collect();
        write(&splits, &args.out)?;
        report(&splits);
        how_to_train(&args.out);
    }
    Ok(ExitCode::SUCCESS)
}
