//! `dataset`: the commands of the crate `vigdet-dataset`, and those that need the network's config.

use std::process::ExitCode;

use anyhow::Result;

use super::preview;

/// Looks at labelled images in any usual layout: COCO, Pascal VOC, YOLO, LabelMe, CVAT, Label Studio, Open Images, CSV.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Labels(vigdet_dataset::commands::Command),
    /// Draws images and objects as they are, and as training sees them
    Preview(preview::Args),
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Labels(command) => command.run(),
        Command::Preview(args) => preview::run(args),
    }
}
