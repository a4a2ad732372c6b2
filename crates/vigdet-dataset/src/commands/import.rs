//! `vigdet dataset import`: what is in a folder, and the same in COCO's layout.

use super::{describe, how_to_train, say, Classes, Source};
use crate::layouts::{self, Images, Layout};
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    classes: Classes,
    /// New folder to write COCO's layout into.
    #[arg(long)]
    out: Option<PathBuf>,
    /// What becomes of the images there.
    #[arg(long, value_enum, default_value = "link", requires = "out")]
    images: Images,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let mut import = args.source.open()?;
    args.classes.choose(&mut import)?;
    describe(&import);
    if let Some(out) = args.out {
        for note in layouts::write(&import, Layout::Coco, &out, args.images)? {
            say(&format!("  note: {note}"));
        }
        how_to_train(&out);
    }
    Ok(ExitCode::SUCCESS)
}
