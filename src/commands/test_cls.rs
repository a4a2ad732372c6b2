//! `test_cls`: evaluates a classifier.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use serde_json::json;

use super::classify::open_classifier;
use crate::cli::{is_of_run, make_folder, outputs, test_folder, with_bar, AmpArgs, ClassifierArgs, FetchArgs};
use crate::console::say;
use crate::data::ImageFolder;
use crate::ranks::Ranks;
use crate::runs::{write_text, RunDir};
use crate::threads::set_threads;
use crate::train::accuracy::ClassEvaluator;
use crate::train::notices::{self, Notices};
use crate::weights::Checkpoint;

/// Classes whose accuracy is printed.
const PRINTED: usize = 20;

/// Evaluate a classifier on a folder with a folder of images for each class: top-1, top-5, per class.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A model, for example pvig_ti or resnet50 (a wrong name lists all) [default: what the weights are of]
    model: Option<String>,
    #[command(flatten)]
    classifier: ClassifierArgs,
    /// Weights: vigdet's, which know their config and classes, or PyTorch's (.pth, .pth.tar), or a name of `vigdet
    /// weights`
    #[arg(long, value_name = "FILE|NAME")]
    weights: PathBuf,
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    amp: AmpArgs,
    /// Folder for metrics.json [default: `test` in the run's folder, or beside the weights]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let device = args.classifier.config.device()?;
    let file = args.fetch.weights(&args.weights)?;
    let out = args.out.clone().unwrap_or_else(|| test_folder(&file));
    let path = RunDir::at(&out).metrics();
    ensure!(!RunDir::at(&out).config().exists(), "{} is the folder of a run: --out names another one", out.display());
    outputs([&file], (!is_of_run(&out)).then_some(&path))?;
    make_folder(&out)?;
    let weights = Checkpoint::open(&file)?;
    let changes = args.classifier.changes(Vec::new())?;
    let named = args.classifier.config.config.as_deref();
    let (config, loaded) = open_classifier(args.model.as_deref(), &weights, named, &changes, device)?;
    set_threads(config.train.threads);
    let root = config.data.root.clone().context("there is no data: --data DIR names a folder with val/CLASS/*.jpg")?;
    let val = ImageFolder::open(&config.data.val, &root)?;
    say(&format!("val: {val}"));
    let scores = loaded.model.classes();
    let val = match weights.classes() {
        Some(classes) => val.with_classes(&classes.names())?,
        // PyTorch's files name no classes: they are then the folders, sorted, as in training.
        None => {
            ensure!(
                val.classes().len() as i64 == scores,
                "{} gives scores for {scores} classes and names none of them, but {} has folders for {}",
                args.weights.display(),
                root.join(&config.data.val.folder).display(),
                val.classes().len()
            );
            val
        }
    };
    let precision = args.amp.precision(config.train.amp, device);
    let evaluator = ClassEvaluator::new(val, &config, config.train.images_of_micro_batch(), precision)?;

    let (accuracy, seconds) = with_bar(evaluator.len(), |show| {
        evaluator.evaluate(&loaded.model, device, &Ranks::default(), |done, _| {
            show(done);
            true
        })
    })?;
    let accuracy = accuracy.context("the evaluation was stopped")?;
    let unreadable = evaluator.skipped();
    Notices::default().unreadable("val", &unreadable).iter().for_each(|line| say(line));
    let mut metrics = accuracy.to_json();
    metrics.extend([("weights".to_string(), json!(args.weights)), ("seconds".to_string(), json!(seconds))]);
    metrics.extend(notices::metric(&unreadable));
    write_text(&path, &(serde_json::to_string_pretty(&metrics)? + "\n"))?;
    say(&format!("top-1 by class, the worst first:\n{}", accuracy.class_lines(PRINTED).trim_end()));
    say(&format!(
        "top-1 {:.4}, top-5 {:.4}, loss {:.4} on {} images, {:.4} s each; all classes in {}",
        accuracy.top1(),
        accuracy.top5(),
        accuracy.loss,
        evaluator.len() - unreadable.len(),
        seconds / evaluator.len() as f64,
        path.display()
    ));
    Ok(ExitCode::SUCCESS)
}
