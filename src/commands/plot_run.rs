//! `plot_run`: draws the pictures of a run anew.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::console::say;
use crate::plot::{self, RunPictures};

/// Draw the pictures of a run's folder anew: training curves, precision-recall curves, and detections beside the
/// ground truth.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The run's folder
    run: PathBuf,
    /// How many validation images to draw
    #[arg(long, value_name = "N", default_value_t = 8)]
    images: usize,
    /// Lowest score drawn [default: where F1 over the whole split is largest]
    #[arg(long, value_name = "X", value_parser = probability)]
    score: Option<f32>,
    /// Folder of the data, if it is no longer where the run's config says
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

fn probability(text: &str) -> Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| format!("{text:?} is not between 0 and 1"))
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let pictures = RunPictures { images: args.images, score: args.score, data: args.data };
    for file in plot::run(&args.run, &pictures)? {
        say(&file.display().to_string());
    }
    Ok(ExitCode::SUCCESS)
}
