//! Trains a classifier: pretrains a backbone.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde_json::Value;
use vigdet::cli::{self, change, ClassifierArgs};
use vigdet::config::ClassifyConfig;
use vigdet::plot::{self, RunPictures};
use vigdet::train::classify::ClassTrainer;
use vigdet::train::resume;
use vigdet::train::run_dir::RunDir;
use vigdet::train::trainer::{Outcome, TrainOptions};

/// Train a classifier on a folder with a folder of images for each class (ImageNet's layout).
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ClassifierArgs,
    /// Weights to start from; a classifier of other classes starts anew
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Folder of the run (default: the first free of runs/NAME, runs/NAME-2, …)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in --out (default: the last of runs/NAME, runs/NAME-2, …)
    #[arg(long)]
    resume: bool,
    /// Passes through the training data
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// Stop after so many steps
    #[arg(long, value_name = "N")]
    max_iters: Option<u64>,
    /// Images of a step
    #[arg(long, value_name = "N")]
    batch_size: Option<u64>,
    /// Peak learning rate
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
    /// Seed of everything random
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    cli::main(run)
}

fn run(args: Arguments) -> Result<ExitCode> {
    let device = args.model.device()?;
    let changes = args.changes()?;
    let name = match &args.model.config {
        Some(path) => path.file_stem().and_then(|s| s.to_str()).unwrap_or("run").to_string(),
        None => args.model.model.clone(),
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => RunDir::numbered(&Path::new("runs").join(&name), args.resume),
    };
    let config = match &args.model.config {
        Some(path) => ClassifyConfig::load(path, &changes)?,
        None if args.resume => resume::classify_config_of(&out, &changes)?,
        None => ClassifyConfig::of_model(&args.model.model, &changes)?,
    };
    args.model.check(&config, &name)?;
    if args.resume {
        resume::check_classify(&out, &config)?;
    }
    let detector = detector(&config);
    let options = TrainOptions {
        out,
        resume: args.resume,
        weights: args.weights,
        device,
        command: std::env::args().collect(),
        stop: cli::stop_on_ctrl_c()?,
    };
    let outcome = ClassTrainer::new(config, options)?.run()?;
    report(&args.model.model, detector.as_deref(), &outcome);
    Ok(if outcome.interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

impl Arguments {
    /// The flags as changes to a config.
    fn changes(&self) -> Result<Vec<String>> {
        let mut flags = Vec::new();
        let mut flag = |key: &str, value: Option<Value>| flags.extend(value.map(|v| change(key, v)));
        flag("train.epochs", self.epochs.map(Value::from));
        flag("train.max_iters", self.max_iters.map(Value::from));
        flag("train.batch_size", self.batch_size.map(Value::from));
        flag("train.lr", self.lr.map(Value::from));
        flag("train.seed", self.seed.map(Value::from));
        self.model.changes(flags)
    }
}

/// The flags of a detector on this backbone: its shape, and what images are normalised with. `None` for those with one map, which no detector takes.
fn detector(config: &ClassifyConfig) -> Option<String> {
    let (backbone, data) = (&config.model.backbone, &config.data);
    if backbone.name.starts_with("vig_") {
        return None;
    }
    let written = [("channels", &backbone.channels), ("blocks", &backbone.blocks)];
    // A ResNet's shape is in its name; the config's numbers are for ViG.
    let shaped = !backbone.name.starts_with("resnet");
    let mut values: Vec<(String, String)> = written
        .iter()
        .filter(|_| shaped)
        .filter_map(|(key, values)| Some((format!("model.backbone.{key}"), list(values.as_ref()?))))
        .collect();
    values.push(("data.mean".into(), list(&data.mean)));
    values.push(("data.std".into(), list(&data.std)));
    let flags: String = values.iter().map(|(key, values)| format!(" --set {key}={values}")).collect();
    Some(format!("--backbone {}{flags}", backbone.name))
}

/// Numbers as `--set` takes them.
fn list(values: &[impl ToString]) -> String {
    format!("[{}]", values.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

/// Where everything is, and what to do next.
fn report(model: &str, detector: Option<&str>, outcome: &Outcome) {
    let run = &outcome.run;
    let folder = run.path().display();
    if outcome.interrupted {
        println!("stopped; this goes on where it was:\n  cargo run --bin train_cls -- {model} --out {folder} --resume");
        return;
    }
    if let Some(lines) = &outcome.best_lines {
        println!("top-1 by class, the worst first:\n{}", lines.trim_end());
    }
    let weights = match &outcome.best {
        Some(best) => {
            println!("best top-1 {:.4}, after epoch {} (step {})", best.score, best.epoch, best.iter);
            println!("  weights     {}", run.best().display());
            println!("  scores      {}", run.metrics().display());
            run.best()
        }
        None => {
            println!("done (never evaluated: train.eval_every is 0)");
            println!("  weights     {}", run.last().display());
            run.last()
        }
    };
    println!("  log         {} (tensorboard --logdir {folder})", run.log().display());
    match plot::run(run.path(), &RunPictures::default()) {
        Ok(files) => println!("  pictures    {} ({} files)", run.path().join("plots").display(), files.len()),
        // The training stands whatever becomes of its pictures.
        Err(error) => eprintln!("no pictures: {error:#}"),
    }
    println!("next:");
    println!("  cargo run --bin test_cls -- {model} --weights {}", weights.display());
    if let Some(flags) = detector {
        println!("  cargo run --bin train_det -- retinanet {flags} --weights {} --data DIR", weights.display());
    }
}
