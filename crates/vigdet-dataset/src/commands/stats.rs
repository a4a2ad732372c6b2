//! `vigdet dataset stats`: counts, sizes, shapes, anchors.

use super::{describe, say, Resize, Source};
use crate::anchors::{fitted, k_means, objects, Anchors};
use crate::stats::{lines, png, stats, svg, Stats};
use crate::types::Import;
use anyhow::{ensure, Context, Result};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vigdet_coco::output::Outputs;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    resize: Resize,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
    /// Folder for a page of plots: `stats.png` and `stats.svg`.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Strides of the pyramid's levels: `model.anchors.strides`.
    #[arg(long, num_args = 1.., default_values_t = [8.0, 16.0, 32.0, 64.0, 128.0])]
    strides: Vec<f64>,
    /// `model.anchors.base`
    #[arg(long, default_value_t = 4.0)]
    base: f64,
    /// `model.anchors.octaves`
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    octaves: u32,
    /// `model.anchors.ratios`
    #[arg(long, num_args = 1.., default_values_t = [0.5, 1.0, 2.0])]
    ratios: Vec<f64>,
    /// Of the search for anchors.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let positive = |values: &[f64]| values.iter().all(|value| value.is_finite() && *value > 0.0);
    ensure!(
        positive(&args.strides) && positive(&args.ratios) && positive(&[args.base]),
        "strides, ratios and base must be above 0"
    );
    let import = args.source.open()?;
    let all = stats(&import, args.resize.size);
    let drawn = match &args.plots {
        Some(folder) => draw(&import, &all, folder)?,
        None => Vec::new(),
    };
    let start =
        Anchors { strides: args.strides, base: args.base, octaves: args.octaves, sizes: None, ratios: args.ratios };
    // What is trained on; everything where nothing is called so.
    let training: Vec<_> = import.splits.iter().filter(|split| split.name == "train").collect();
    let training = if training.is_empty() { import.splits.iter().collect() } else { training };
    let objects = objects(training, args.resize.size);
    let per_location = start.octaves as usize * start.ratios.len();
    let enough = objects.len() >= per_location;
    let fitted = if enough { Some(fitted(&objects, &start, args.seed)?) } else { None };
    let boxes = if enough { k_means(&objects, per_location, args.seed)? } else { Vec::new() };
    let before = start.fit(&objects);
    if args.json {
        let after = fitted.as_ref().map(|anchors| json!({"anchors": anchors, "fit": anchors.fit(&objects)}));
        let anchors = json!({"given": {"anchors": start, "fit": before}, "fitted": after, "k_means": boxes});
        say(&serde_json::to_string_pretty(&json!({"splits": all, "anchors": anchors}))?);
        return Ok(ExitCode::SUCCESS);
    }
    describe(&import);
    say("");
    lines(&all).iter().for_each(|line| say(line));
    say("");
    let told = |fit: crate::anchors::Fit| {
        format!("{:.1}% of objects find an anchor of IoU 0.5, mean IoU {:.3}", 100.0 * fit.matched, fit.mean_iou)
    };
    say(&format!("anchors as given: {}", told(before)));
    match fitted {
        Some(fitted) => {
            say(&format!("anchors fitted:   {}", told(fitted.fit(&objects))));
            say(&format!("  {}", fitted.line()));
            let boxes: Vec<String> = boxes.iter().map(|[w, h]| format!("{w:.0}×{h:.0}")).collect();
            say(&format!("boxes by k-means: {}", boxes.join(" ")));
        }
        None => say(&format!("{} objects are too few to fit anchors", objects.len())),
    }
    drawn.iter().for_each(|file| say(&file.display().to_string()));
    Ok(ExitCode::SUCCESS)
}

/// Writes the page of plots, and says into which files.
fn draw(import: &Import, stats: &[Stats], folder: &Path) -> Result<Vec<PathBuf>> {
    let name = import.root.canonicalize().ok().and_then(|root| root.file_name().map(|n| n.to_string_lossy().into()));
    let title = format!("{} ({})", name.unwrap_or_else(|| import.root.display().to_string()), import.layout);
    let mut outputs = Outputs::default();
    if import.root.is_file() {
        outputs.reads(&import.root);
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let files = [("stats.png", png(stats, &title)?), ("stats.svg", svg(stats, &title)?.into_bytes())];
    let write = |(name, bytes): (&str, Vec<u8>)| -> Result<PathBuf> {
        let file = folder.join(name);
        outputs.write(&file, |out| out.write_all(&bytes))?;
        Ok(file)
    };
    files.into_iter().map(write).collect()
}
