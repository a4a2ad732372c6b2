//! `detect`: what a trained detector sees on images of one's own.

use std::collections::HashSet;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use clap::Parser;
use vigdet::cli::{self, ModelArgs};
use vigdet::config::{DetectorKind, OnError};
use vigdet::data::decode;
use vigdet::plot::draw_detections;
use vigdet::predictor::{ImageDetections, Predictor, PredictorOptions};
use vigdet::threads::set_threads;
use vigdet::weights::write_atomically;

/// Detect objects on images: boxes (and masks) with names and scores, as text, JSON and pictures.
///
/// Model and class names come from the weights. Without --json and --out, the boxes are printed.
#[derive(Parser)]
#[command(name = "detect", version)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Images (JPEG, PNG) and folders of them
    #[arg(required = true, value_name = "IMAGE|DIR")]
    inputs: Vec<PathBuf>,
    /// Trained weights, for example runs/demo/checkpoints/best.safetensors
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// COCO annotation file whose categories name the classes, for weights that do not
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Lowest score [default: the config's in --json, 0.3 in pictures and text]
    #[arg(long, value_name = "X")]
    score_threshold: Option<f64>,
    /// Write all detections to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw each image with its detections into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Lowest score in pictures and text: below it, detections are mostly wrong.
const SHOWN: f64 = 0.3;

fn main() -> ExitCode {
    cli::main(|args: Args| match run(&args) {
        // Whoever read the output has seen enough.
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            Ok(ExitCode::SUCCESS)
        }
        result => result.map(|()| ExitCode::SUCCESS),
    })
}

fn run(args: &Args) -> Result<()> {
    let detector = args.model.kind()?;
    let files = images(&args.inputs)?;
    let predictor = open(args, detector)?;
    let config = predictor.config();
    let shown = args.score_threshold.unwrap_or(SHOWN).max(config.model.test.score) as f32;
    for folder in [args.out.as_deref(), args.json.as_deref().and_then(Path::parent)].into_iter().flatten() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let names: Vec<String> = predictor.classes().iter().map(|(_, name)| name.clone()).collect();
    let (mut all, mut pictures, mut skipped) = (Vec::new(), HashSet::new(), 0);
    let mut out = std::io::stdout().lock();
    let start = Instant::now();
    for file in &files {
        let image = match decode::open(file, config.data.exif) {
            Ok(image) => image,
            Err(error) if config.data.on_error == OnError::Skip => {
                eprintln!("skipped: {error:#}");
                skipped += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        let found = predictor.detect(std::slice::from_ref(&image))?.pop().context("the detector gave no answer")?;
        let entry = predictor.describe(file, &image, &found);
        writeln!(out, "{}: {}", file.display(), summary(&entry, shown))?;
        if args.json.is_none() && args.out.is_none() {
            for d in entry.detections.iter().filter(|d| d.score >= shown) {
                let [x, y, w, h] = d.bbox;
                writeln!(out, "  {} {:.2}  x {x:.1} y {y:.1} width {w:.1} height {h:.1}", d.label, d.score)?;
            }
        }
        if let Some(folder) = &args.out {
            let picture = draw_detections(&image, &found, &names, shown)?;
            let path = folder.join(free_name(file, &mut pictures));
            picture.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        all.push(entry);
    }
    if all.is_empty() {
        bail!("none of the {} could be read", many(files.len(), "image"));
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&all)? + "\n";
        write_atomically(path, |out| out.write_all(text.as_bytes()))?;
    }
    let each = start.elapsed().as_secs_f64() / all.len() as f64;
    eprint!("{}, {each:.2} s each", many(all.len(), "image"));
    if skipped > 0 {
        eprint!("; {skipped} skipped");
    }
    for (what, path) in [("detections", &args.json), ("pictures", &args.out)] {
        if let Some(path) = path {
            eprint!("; {what} in {}", path.display());
        }
    }
    eprintln!();
    Ok(())
}

fn open(args: &Args, detector: DetectorKind) -> Result<Predictor> {
    let score = args.score_threshold.map(|score| cli::change("model.test.score", score));
    let classes = match &args.classes {
        Some(path) => Some(classes_of(path)?),
        None => None,
    };
    let options = PredictorOptions {
        detector: Some(detector),
        config: args.model.config.clone(),
        changes: args.model.changes(score)?,
        classes,
        device: args.model.device()?,
    };
    let predictor = Predictor::open(&args.weights, &options)?;
    set_threads(predictor.config().train.threads);
    Ok(predictor)
}

/// (category id, name) of an annotation file's categories, in the order of their ids, as training numbers them.
fn classes_of(path: &Path) -> Result<Vec<(i64, String)>> {
    let dataset =
        vigdet_coco::read_dataset(path).with_context(|| format!("cannot read classes from {}", path.display()))?;
    let mut classes: Vec<(i64, String)> = dataset.categories.into_iter().map(|c| (c.id, c.name)).collect();
    classes.sort();
    Ok(classes)
}

/// The files named, and of each folder its images, by name.
fn images(inputs: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            files.push(input.clone());
            continue;
        }
        let entries = std::fs::read_dir(input).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
        let entries = entries.with_context(|| format!("cannot read the folder {}", input.display()))?;
        let mut inside: Vec<PathBuf> = entries.iter().map(|e| e.path()).filter(|path| is_image(path)).collect();
        if inside.is_empty() {
            bail!("there is no image (.jpg, .jpeg, .png) in the folder {}", input.display());
        }
        inside.sort();
        files.append(&mut inside);
    }
    Ok(files)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
    matches!(extension.as_str(), "jpg" | "jpeg" | "png") && path.is_file()
}

/// The file's name with .png at its end, and a number where another image of this run has that name.
fn free_name(file: &Path, taken: &mut HashSet<String>) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let mut name = format!("{stem}.png");
    for n in 2.. {
        if taken.insert(name.clone()) {
            break;
        }
        name = format!("{stem}-{n}.png");
    }
    name
}

/// `3 star, 1 ring`, or `nothing`.
fn summary(entry: &ImageDetections, shown: f32) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for d in entry.detections.iter().filter(|d| d.score >= shown) {
        match counts.iter_mut().find(|(name, _)| *name == d.label) {
            Some((_, count)) => *count += 1,
            None => counts.push((&d.label, 1)),
        }
    }
    if counts.is_empty() {
        return format!("nothing with a score of {shown:.2} or more");
    }
    counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

fn many(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
