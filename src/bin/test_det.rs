//! Evaluates a detector.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{json, Value};
use vigdet::cli::{self, change, path_value, ModelArgs};
use vigdet::config::Config;
use vigdet::data::CocoDataset;
use vigdet::predictor::{Predictor, PredictorOptions};
use vigdet::threads::set_threads;
use vigdet::train::evaluate::Evaluator;
use vigdet::train::notices::{self, Notices};
use vigdet::train::run_dir::write_text;
use vigdet::train::splits::{data_root, open};
use vigdet::weights::read_metadata;

/// Evaluate a detector on a validation split in COCO's layout.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// Weights: vigdet's, which know their config and classes, or PyTorch's, with --config
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Folder with annotations/instances_val2017.json and val2017/ [default: the one that the weights were trained with]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder for bbox.json, segm.json, metrics.json and ground_truth.json [default: `test` in the run's folder, or beside the weights]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    cli::main(|args: Arguments| run(&args).map(|()| ExitCode::SUCCESS))
}

fn run(args: &Arguments) -> Result<()> {
    let (detector, device) = (args.model.kind()?, args.model.device()?);
    let mut flags = Vec::new();
    if let Some(data) = &args.data {
        flags.push(change("data.root", path_value(data)?));
        flags.push(change("data.builtin", Value::Null));
    }
    let changes = args.model.changes(flags)?;
    // PyTorch's files name no classes: labels are then the split's categories in the order of their ids, as in training.
    let classes = match &args.model.config {
        Some(path) if !read_metadata(&args.weights)?.contains_key("classes") => {
            Some(classes_of(&dataset(&args.model.load_config(path, &changes)?)?))
        }
        _ => None,
    };
    let options =
        PredictorOptions { detector: Some(detector), config: args.model.config.clone(), changes, classes, device };
    let predictor = Predictor::open(&args.weights, &options)?;
    let config = predictor.config();
    set_threads(config.train.threads);
    let dataset = Arc::new(dataset(config)?);
    println!("{}", dataset.report());
    let batch = config.train.images_of_micro_batch();
    let masks = predictor.detector().has_masks();
    let evaluator = Evaluator::new(dataset.clone(), &config.data, batch, predictor.classes(), masks)?;
    let without = evaluator.classes_without_category();
    if without > 0 {
        println!("{without} classes of the detector are not in the data: what is seen of them does not count");
    }

    let bar = ProgressBar::new(dataset.len() as u64);
    bar.set_style(ProgressStyle::with_template("[{wide_bar}] {pos}/{len} images  {eta} left")?.progress_chars("=> "));
    let start = Instant::now();
    let found = evaluator.detect(predictor.detector(), device, |done, _| {
        bar.set_position(done as u64);
        true
    })?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let found = found.unwrap_or_default();
    let mut notices = Notices::default();
    let unreadable = evaluator.skipped();
    let lines = [notices.unreadable("val", &unreadable), notices.resized("val", &evaluator.resized())];
    lines.iter().flatten().for_each(|line| println!("{line}"));

    let out = args.out.clone().unwrap_or_else(|| beside(&args.weights));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let detections = evaluator.write_results(&out, &found)?;
    let split = &config.data.val;
    let annotations = data_root(config)?.join(&split.annotations);
    evaluator.write_ground_truth(&annotations, split.limit.is_none(), &out)?;
    // Detections that took hours are written before anything can be wrong with their scores.
    let scores = evaluator.score(&found)?;
    let lines = scores.warnings.iter().filter_map(|warning| notices.warning("val", warning));
    lines.for_each(|line| println!("{line}"));
    let mut metrics = scores.to_json();
    metrics.extend([
        ("weights".to_string(), json!(args.weights)),
        ("images".to_string(), json!(dataset.len())),
        ("seconds".to_string(), json!(seconds)),
    ]);
    metrics.extend(notices::metric(&unreadable));
    write_text(&out.join("metrics.json"), &(serde_json::to_string_pretty(&metrics)? + "\n"))?;
    println!("{}", scores.lines().trim_end());
    let images = dataset.len() - unreadable.len();
    println!(
        "{images} images, {:.3} s each; scores in {}, detections in {}",
        seconds / images.max(1) as f64,
        out.join("metrics.json").display(),
        detections.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
    );
    Ok(())
}

fn dataset(config: &Config) -> Result<CocoDataset> {
    open(config, &config.data.val, &data_root(config)?, false)
}

fn classes_of(dataset: &CocoDataset) -> Vec<(i64, String)> {
    dataset.classes().iter().map(|class| (class.id, class.name.clone())).collect()
}

/// The folder `test` of the run that the weights are from, or beside them.
fn beside(weights: &Path) -> PathBuf {
    let folder = weights.parent().unwrap_or(Path::new(""));
    match (folder.file_name().and_then(|name| name.to_str()), folder.parent()) {
        (Some("checkpoints"), Some(run)) => run.join("test"),
        _ => folder.join("test"),
    }
}
