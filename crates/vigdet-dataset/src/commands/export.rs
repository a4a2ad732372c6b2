//! `vigdet dataset export`: labels, or results, in another layout.

use super::{describe, say, Classes, Source};
use crate::layouts::{self, Images, Layout};
use crate::predictions;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    classes: Classes,
    /// The layout to write.
    #[arg(long, value_enum)]
    to: Layout,
    /// New folder to write into.
    #[arg(long)]
    out: PathBuf,
    /// What becomes of the images there.
    #[arg(long, value_enum, default_value = "link")]
    images: Images,
    /// COCO results file whose detections take the place of the labels, to be corrected.
    #[arg(long, value_name = "RESULTS.json")]
    results: Option<PathBuf>,
    /// Detections with a lower score are left out.
    #[arg(long, default_value_t = 0.3, requires = "results")]
    score: f64,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let mut import = args.source.open()?;
    if let Some(results) = &args.results {
        import = predictions::instead_of_objects(&import, results, args.score)?;
    }
    args.classes.choose(&mut import)?;
    describe(&import);
    let notes = layouts::write(&import, args.to, &args.out, args.images)?;
    say(&format!("{}: {}", args.out.display(), args.to));
    notes.iter().for_each(|note| say(&format!("  note: {note}")));
    Ok(ExitCode::SUCCESS)
}
