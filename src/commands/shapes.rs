//! `shapes`: draws a set of the built-in data.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::config::ShapesConfig;
use crate::console::{say, start_of};
use crate::data::shapes;

/// Draws images of shapes with boxes and masks, in COCO's layout: a detection data set that needs no download.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Seed: the same one gives the same bytes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images to train on.
    #[arg(long, default_value_t = 1000)]
    images: usize,
    /// Images to validate on [default: a fifth of --images].
    #[arg(long)]
    val: Option<usize>,
    /// Longest side that an image may have, in pixels.
    #[arg(long, default_value_t = 256)]
    side: u32,
    /// Folder to draw into; a set of shapes with other settings there is replaced.
    #[arg(long, default_value = "datasets/shapes")]
    out: PathBuf,
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { seed, images, val, side, out } = args;
    let val = val.unwrap_or(images.div_ceil(5));
    shapes::ensure(&out, &ShapesConfig { train: images, val, side, seed })?;
    say(&format!("{}: {images} images to train on, {val} to validate on", out.display()));
    say(&format!("train on it: {} retinanet --data {}", start_of("train_det"), out.display()));
    Ok(ExitCode::SUCCESS)
}
