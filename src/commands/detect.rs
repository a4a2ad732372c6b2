//! `detect`: what a trained detector sees on images of one's own.

use std::collections::HashSet;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use vigdet_dataset::images::{below, ENDINGS};
use vigdet_dataset::layouts::check_free;
use vigdet_dataset::Layout;

use super::prelabels;
use crate::classes::Classes;
use crate::cli::{change, make_folder, outputs, warn_skipped, AmpArgs, DetectorArgs, FetchArgs};
use crate::config::{DetectorKind, OnError};
use crate::console::warn;
use crate::data::decode;
use crate::plot::{draw_detections, png};
use crate::predictor::{ImageDetections, Predictor, PredictorOptions};
use crate::threads::set_threads;
use crate::weights::catalogue;

/// Detect objects on images: boxes (and masks) with names and scores, as text, JSON and pictures.
///
/// Model and class names come from the weights. Without --json and --out, the boxes are printed.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Images and folders of them; before them the detector may be named
    #[arg(required = true, value_name = "[DETECTOR] IMAGE|DIR")]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    model: DetectorArgs,
    /// Trained weights, for example runs/demo/checkpoints/best.safetensors, or a name of `vigdet weights` [default:
    /// the best COCO detector there]
    #[arg(long, value_name = "FILE|NAME")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    amp: AmpArgs,
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
    /// Write the detections into this new folder as labels to correct, beside links to the images
    #[arg(long, value_name = "DIR")]
    labels: Option<PathBuf>,
    /// What --labels writes
    #[arg(long, value_enum, requires = "labels", default_value = "labelme")]
    format: Layout,
}

/// Lowest score in pictures and text: below it, detections are mostly wrong.
const SHOWN: f64 = 0.3;

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    match detect(&args) {
        // Whoever read the output has seen enough.
        Err(e) if e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            Ok(ExitCode::SUCCESS)
        }
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

/// The detector that was named before the images, and the images.
fn named(inputs: &[PathBuf]) -> Result<(Option<DetectorKind>, &[PathBuf])> {
    let Some((first, images)) = inputs.split_first() else { return Ok((None, inputs)) };
    let name = first.to_str().unwrap_or_default();
    match DetectorKind::parse(name) {
        Ok(_) if images.is_empty() => bail!("there is no IMAGE or DIR: name them after {name}"),
        Ok(kind) => Ok((Some(kind), images)),
        // A word that is no file was meant as a detector.
        Err(error) => {
            let is_word = first.components().count() == 1 && first.extension().is_none();
            ensure!(first.exists() || images.is_empty() || !is_word, error);
            Ok((None, inputs))
        }
    }
}

fn detect(args: &Args) -> Result<()> {
    let (detector, inputs) = named(&args.inputs)?;
    let files = images(inputs, args.out.as_deref())?;
    // Before hours of detection, not after.
    args.labels.as_deref().map(check_free).transpose()?;
    let pictures = pictures(args.out.as_deref(), &files);
    let weights = weights(args, detector, &files)?;
    let read = files.iter().chain([&weights]).chain(&args.model.config.config).chain(&args.classes);
    let outputs = outputs(read, pictures.iter().chain(&args.json))?;
    let predictor = open(args, &weights, detector)?;
    let config = predictor.config();
    let shown = args.score_threshold.unwrap_or(SHOWN).max(config.model.test.score) as f32;
    let folders = [args.out.as_deref(), args.json.as_deref().and_then(Path::parent)];
    folders.into_iter().flatten().try_for_each(make_folder)?;
    // Kept where they are written at the end: memory stays flat otherwise.
    let kept = args.json.is_some() || args.labels.is_some();
    let (mut all, mut read, mut count) = (Vec::new(), Vec::new(), 0);
    let mut first_error = None;
    let mut out = std::io::stdout().lock();
    let start = Instant::now();
    for (i, file) in files.iter().enumerate() {
        let image = match decode::open(file, config.data.exif) {
            Ok(image) => image,
            Err(error) if config.data.on_error == OnError::Skip => {
                if files.len() > 1 {
                    warn_skipped(&error);
                }
                first_error.get_or_insert(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let found = predictor.detect(std::slice::from_ref(&image))?.pop().context("the detector gave no answer")?;
        let entry = predictor.describe(file, &image, &found);
        writeln!(out, "{}: {}", file.display(), summary(&entry, shown))?;
        if args.json.is_none() && args.out.is_none() && args.labels.is_none() {
            for d in entry.detections.iter().filter(|d| d.score >= shown) {
                let [x, y, w, h] = d.bbox;
                writeln!(out, "  {} {:.2}  x {x:.1} y {y:.1} width {w:.1} height {h:.1}", d.label, d.score)?;
            }
        }
        if let Some(path) = pictures.get(i) {
            let picture = png(&draw_detections(&image, &found, predictor.classes(), shown)?)?;
            outputs.write(path, |out| out.write_all(&picture))?;
        }
        count += 1;
        if kept {
            all.push(entry);
            read.push(file);
        }
    }
    if let (Some(error), 0) = (first_error, count) {
        return Err(error.context(format!("none of the {} could be read", many(files.len(), "image"))));
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&all)? + "\n";
        outputs.write(path, |out| out.write_all(text.as_bytes()))?;
    }
    if let Some(folder) = &args.labels {
        let files = read.iter().map(|file| file.canonicalize()).collect::<std::io::Result<Vec<_>>>()?;
        let seen: Vec<_> = files.into_iter().zip(all.iter().cloned()).collect();
        let lost = prelabels::write(&seen, predictor.classes(), shown, args.format, folder)?;
        lost.iter().for_each(|line| warn(&format!("labels: {line}")));
    }
    let each = start.elapsed().as_secs_f64() / count as f64;
    let mut line = format!("{}, {each:.2} s each", many(count, "image"));
    if count < files.len() {
        line += &format!("; {} skipped", files.len() - count);
    }
    for (what, path) in [("detections", &args.json), ("pictures", &args.out), ("labels", &args.labels)] {
        if let Some(path) = path {
            line += &format!("; {what} in {}", path.display());
        }
    }
    warn(&line);
    Ok(())
}

/// The weights that are named; without a name the published detector with the highest box AP on COCO.
fn weights(args: &Args, detector: Option<DetectorKind>, files: &[PathBuf]) -> Result<PathBuf> {
    if let Some(named) = &args.weights {
        return args.fetch.weights(named);
    }
    ensure!(args.model.config.config.is_none(), "--config says nothing of weights: name them with --weights");
    // Nothing is fetched for a misspelt image.
    ensure!(files.iter().any(|file| file.exists()), "there is no file {}", files[0].display());
    let best = catalogue::best_detector(detector.map(DetectorKind::name))?;
    let file = args.fetch.published(best).context("without --weights, detect takes the best published detector")?;
    warn(&format!("no --weights: {} ({}, {})", best.name, best.score(), best.trained_on));
    Ok(file)
}

fn open(args: &Args, weights: &Path, detector: Option<DetectorKind>) -> Result<Predictor> {
    let score = args.score_threshold.map(|score| change("model.test.score", score));
    let classes = args.classes.as_deref().map(classes_of).transpose()?;
    let options = PredictorOptions {
        detector,
        config: args.model.config.config.clone(),
        changes: args.model.changes(score.into_iter().collect(), None)?,
        classes,
        device: args.model.config.device()?,
        amp: args.amp.amp,
    };
    let predictor = Predictor::open(weights, &options)?;
    args.amp.precision(predictor.config().train.amp, options.device);
    set_threads(predictor.config().train.threads);
    Ok(predictor)
}

/// The categories of an annotation file, in the order in which training numbers them.
pub(super) fn classes_of(path: &Path) -> Result<Classes> {
    let dataset =
        vigdet_coco::read_dataset(path).with_context(|| format!("cannot read classes from {}", path.display()))?;
    Ok(Classes::of_categories(&dataset.categories))
}

/// The files named, and of each folder its images and those of the folders in it, by name; but for what lies in `out`.
pub(super) fn images(inputs: &[PathBuf], out: Option<&Path>) -> Result<Vec<PathBuf>> {
    let out = out.and_then(|out| out.canonicalize().ok());
    let is_output = |path: &PathBuf| {
        let whole = || path.canonicalize().ok();
        out.as_ref().is_some_and(|out| whole().is_some_and(|path| path.starts_with(out)))
    };
    let mut files = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            files.push(input.clone());
            continue;
        }
        std::fs::read_dir(input).with_context(|| format!("cannot read the folder {}", input.display()))?;
        let mut inside = below(input);
        // Where the pictures go into the folder itself, what is there was there before.
        if out != input.canonicalize().ok() {
            inside.retain(|path| !is_output(path));
        }
        ensure!(
            !inside.is_empty(),
            "there is no image ({}) in the folder {}",
            ENDINGS.map(|ending| format!(".{ending}")).join(", "),
            input.display()
        );
        files.append(&mut inside);
    }
    Ok(files)
}

/// Where each file's picture goes: under its name with .png at its end, and a number where another image of this run
/// has that name.
fn pictures(folder: Option<&Path>, files: &[PathBuf]) -> Vec<PathBuf> {
    let Some(folder) = folder else { return Vec::new() };
    let mut taken = HashSet::new();
    let mut free = |file: &PathBuf| {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let numbered = (2..).map(|n| format!("{stem}-{n}.png"));
        let name = std::iter::once(format!("{stem}.png")).chain(numbered).find(|name| taken.insert(name.clone()));
        folder.join(name.unwrap_or_default())
    };
    files.iter().map(&mut free).collect()
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
