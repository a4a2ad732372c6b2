//! `test_det`: evaluates a detector.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{ensure, Result};
use serde_json::json;

use crate::cli::{is_of_run, make_folder, outputs, test_folder, with_bar, AmpArgs, DetectorArgs, FetchArgs};
use crate::config::{Config, DetectorKind};
use crate::console::say;
use crate::data::{DataFolder, DetectionDataset};
use crate::predictor::{Predictor, PredictorOptions};
use crate::ranks::Ranks;
use crate::runs::{write_text, RunDir};
use crate::threads::set_threads;
use crate::train::detection::{data_root, open_split};
use crate::train::evaluator::Evaluator;
use crate::train::notices::{self, Notices};
use crate::weights::Checkpoint;

/// Evaluate a detector on a validation split in COCO's layout.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// retinanet or mask_rcnn [default: what the weights are of]
    detector: Option<String>,
    #[command(flatten)]
    model: DetectorArgs,
    /// Weights: vigdet's, which know their config and classes, or PyTorch's, or a name of `vigdet weights`
    #[arg(long, value_name = "FILE|NAME")]
    weights: PathBuf,
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    amp: AmpArgs,
    /// Folder of labelled images, as train_det takes it [default: the one that the weights were trained with]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder for bbox.json, segm.json, metrics.json and ground_truth.json [default: `test` in the run's folder, or
    /// beside the weights]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let device = args.model.config.device()?;
    let detector = args.detector.as_deref().map(DetectorKind::parse).transpose()?;
    let changes = args.model.changes(Vec::new(), args.data.as_deref())?;
    let path = args.fetch.weights(&args.weights)?;
    let out = args.out.clone().unwrap_or_else(|| test_folder(&path));
    let files = RunDir::at(&out);
    ensure!(!files.config().exists(), "{} is the folder of a run: --out names another one", out.display());
    let weights = Checkpoint::open(&path)?;
    let mut opened = None;
    let config = args.model.config.config.clone();
    let mut options = PredictorOptions { detector, config, changes, classes: None, device, amp: args.amp.amp };
    if weights.classes().is_none() {
        // PyTorch's files name no classes: labels are then the split's categories in the order of their ids, as in
        // training.
        let split = dataset(&weights.config_in_use(options.config.as_deref(), &options.changes)?)?;
        options.classes = Some(split.classes().clone());
        opened = Some(split);
    }
    let predictor = Predictor::new(&weights, &options)?;
    let config = predictor.config();
    set_threads(config.train.threads);
    let annotations = data_root(config)?.join(&config.data.val.annotations);
    let results = [files.metrics(), files.detections(), files.masks(), files.ground_truth(), files.used_ground_truth()];
    let read = [Some(&path), Some(&annotations), options.config.as_ref()];
    outputs(read.into_iter().flatten(), results.iter().filter(|_| !is_of_run(&out)))?;
    make_folder(&out)?;
    let dataset = Arc::new(opened.map_or_else(|| dataset(config), Ok)?);
    say(&dataset.report().to_string());
    let batch = config.train.images_of_micro_batch();
    let masks = predictor.detector().has_masks();
    let precision = args.amp.precision(config.train.amp, device);
    let evaluator = Evaluator::new(dataset.clone(), &config.data, batch, predictor.classes(), masks, precision)?;
    evaluator.notes().iter().for_each(|note| say(&format!("val: {note}")));

    let (found, seconds) = with_bar(dataset.len(), |show| {
        evaluator.detect(predictor.detector(), device, &Ranks::default(), |done, _| {
            show(done);
            true
        })
    })?;
    let found = found.unwrap_or_default();
    let mut notices = Notices::default();
    let unreadable = evaluator.skipped();
    let lines = [notices.unreadable("val", &unreadable), notices.resized("val", &evaluator.resized())];
    lines.iter().flatten().for_each(|line| say(line));

    let detections = evaluator.write_results(&out, &found)?;
    let split = &config.data.val;
    evaluator.write_ground_truth(split.limit.is_none(), &out)?;
    // Detections that took hours are written before anything can be wrong with their scores.
    let scores = evaluator.score(&found)?;
    let lines = scores.warnings.iter().filter_map(|warning| notices.warning("val", warning));
    lines.for_each(|line| say(&line));
    let mut metrics = scores.to_json();
    metrics.extend([
        ("weights".to_string(), json!(args.weights)),
        ("images".to_string(), json!(dataset.len())),
        ("precision".to_string(), json!(precision.name(device))),
        ("seconds".to_string(), json!(seconds)),
    ]);
    metrics.extend(notices::metric(&unreadable));
    write_text(&files.metrics(), &(serde_json::to_string_pretty(&metrics)? + "\n"))?;
    say(scores.lines().trim_end());
    let images = dataset.len() - unreadable.len();
    say(&format!(
        "{images} images, {:.3} s each; scores in {}, detections in {}",
        seconds / images.max(1) as f64,
        files.metrics().display(),
        detections.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
    ));
    Ok(ExitCode::SUCCESS)
}

fn dataset(config: &Config) -> Result<DetectionDataset> {
    open_split(config, &config.data.val, &DataFolder::new(&data_root(config)?), false)
}
