//! Evaluates a classifier.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use vigdet::cli::{self, ClassifierArgs};
use vigdet::config::ClassifyConfig;
use vigdet::data::ImageFolder;
use vigdet::threads::set_threads;
use vigdet::train::classify_evaluate::ClassEvaluator;
use vigdet::train::notices::{self, Notices};
use vigdet::train::run_dir::write_text;
use vigdet::weights::{load_classifier, read_metadata};

/// Evaluate a classifier on a folder with a folder of images for each class: top-1, top-5, per class.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ClassifierArgs,
    /// Weights: vigdet's, which know their config and classes, or PyTorch's (.pth, .pth.tar)
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Folder for metrics.json [default: `test` in the run's folder, or beside the weights]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    cli::main(|args: Arguments| run(&args).map(|()| ExitCode::SUCCESS))
}

fn run(args: &Arguments) -> Result<()> {
    let device = args.model.device()?;
    let changes = args.model.changes([])?;
    let metadata = read_metadata(&args.weights)?;
    let config = match (&args.model.config, metadata.get("config")) {
        (Some(path), _) => ClassifyConfig::load(path, &changes)?,
        (None, Some(text)) => ClassifyConfig::from_json_with(text, &changes)
            .with_context(|| format!("the config in {}", args.weights.display()))?,
        (None, None) => ClassifyConfig::of_model(&args.model.model, &changes)?,
    };
    args.model.check(&config, &args.weights.display().to_string())?;
    set_threads(config.train.threads);
    let root = config.data.root.clone().context("there is no data: --data DIR names a folder with val/CLASS/*.jpg")?;
    let val = ImageFolder::open(&config.data.val, &root)?;
    println!("val: {val}");
    let mut loaded = load_classifier(&config.model.backbone, Some(&args.weights), device)?;
    loaded.store.freeze();
    ensure!(
        loaded.head_loaded,
        "{} has no classifier for {}: it is a detector's, or a backbone alone",
        args.weights.display(),
        args.model.model
    );
    let outputs = loaded.model.classes();
    let val = match metadata.get("classes") {
        Some(text) => {
            let classes: Vec<(i64, String)> = serde_json::from_str(text)
                .with_context(|| format!("the classes in {} are not [[number, name], …]", args.weights.display()))?;
            ensure!(
                classes.len() as i64 == outputs,
                "{} names {} classes but gives {outputs} scores",
                args.weights.display(),
                classes.len()
            );
            val.with_classes(&classes.into_iter().map(|c| c.1).collect::<Vec<_>>())?
        }
        // PyTorch's files name no classes: they are then the folders, sorted, as in training.
        None => {
            ensure!(
                val.classes().len() as i64 == outputs,
                "{} gives scores for {outputs} classes and names none of them, but {} has folders for {}",
                args.weights.display(),
                root.join(&config.data.val.folder).display(),
                val.classes().len()
            );
            val
        }
    };
    let batch = config.train.micro_batch.unwrap_or(config.train.batch_size);
    let evaluator = ClassEvaluator::new(val, &config, batch)?;

    let bar = ProgressBar::new(evaluator.len() as u64);
    bar.set_style(ProgressStyle::with_template("[{wide_bar}] {pos}/{len} images  {eta} left")?.progress_chars("=> "));
    let start = Instant::now();
    let accuracy = evaluator.evaluate(&loaded.model, device, |done, _| {
        bar.set_position(done as u64);
        true
    })?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let accuracy = accuracy.context("the evaluation was stopped")?;
    let unreadable = evaluator.skipped();
    if let Some(line) = Notices::default().unreadable("val", &unreadable) {
        println!("{line}");
    }
    let out = args.out.clone().unwrap_or_else(|| beside(&args.weights));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let mut metrics = accuracy.to_json();
    metrics.extend([("weights".to_string(), json!(args.weights)), ("seconds".to_string(), json!(seconds))]);
    metrics.extend(notices::metric(&unreadable));
    let path = out.join("metrics.json");
    write_text(&path, &(serde_json::to_string_pretty(&metrics)? + "\n"))?;
    println!("top-1 by class, the worst first:\n{}", accuracy.class_lines(20).trim_end());
    println!(
        "top-1 {:.4}, top-5 {:.4}, loss {:.4} on {} images, {:.4} s each; all classes in {}",
        accuracy.top1(),
        accuracy.top5(),
        accuracy.loss,
        evaluator.len() - unreadable.len(),
        seconds / evaluator.len() as f64,
        path.display()
    );
    Ok(())
}

/// The folder `test` of the run that the weights are from, or beside them.
fn beside(weights: &Path) -> PathBuf {
    let folder = weights.parent().unwrap_or(Path::new(""));
    match (folder.file_name().and_then(|name| name.to_str()), folder.parent()) {
        (Some("checkpoints"), Some(run)) => run.join("test"),
        _ => folder.join("test"),
    }
}
