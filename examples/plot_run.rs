//! Draws the pictures of a run's folder again: training curves, and detections beside the ground truth.
//!
//!     cargo run --example plot_run -- runs/demo [IMAGES]

use std::path::Path;

use vigdet::plot::{self, RunPictures};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(run) = args.next() else { anyhow::bail!("usage: plot_run RUN_DIR [IMAGES]") };
    let images = args.next().map_or(Ok(8), |n| n.parse())?;
    for file in plot::run(Path::new(&run), &RunPictures { images, ..RunPictures::default() })? {
        println!("{}", file.display());
    }
    Ok(())
}
