//! Trains a detector.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde_json::Value;
use vigdet::cli::{self, change, path_value, ModelArgs};
use vigdet::config::{Config, DetectorKind};
use vigdet::plot::{self, RunPictures};
use vigdet::train::resume;
use vigdet::train::run_dir::RunDir;
use vigdet::train::trainer::{Outcome, TrainOptions, Trainer};

/// Train a detector on a data set in COCO's layout, or on built-in data.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// pvig_ti, pvig_s, pvig_m, pvig_b, resnet18 or resnet50
    #[arg(long, value_name = "NAME")]
    backbone: Option<String>,
    /// Folder with annotations/instances_{train,val}2017.json, train2017/ and val2017/ (other names: --set data.train.annotations=…)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Weights to start from: a whole detector or a backbone alone
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

/// What runs without --config and --data.
fn built_in(kind: DetectorKind) -> &'static str {
    match kind {
        DetectorKind::Retinanet => "retinanet_pvig_ti_shapes",
        DetectorKind::MaskRcnn => "mask_rcnn_pvig_ti_shapes",
    }
}

fn main() -> ExitCode {
    cli::main(run)
}

fn run(args: Arguments) -> Result<ExitCode> {
    let kind = args.model.kind()?;
    let device = args.model.device()?;
    let changes = args.changes()?;
    let name = match &args.model.config {
        Some(path) => path.file_stem().and_then(|s| s.to_str()).unwrap_or("run").to_string(),
        None if args.data.is_some() => kind.name().to_string(),
        None => built_in(kind).to_string(),
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => RunDir::numbered(&Path::new("runs").join(&name), args.resume),
    };
    let config = match &args.model.config {
        Some(path) => args.model.load_config(path, &changes)?,
        None if args.resume => resume::config_of(&out, &changes)?,
        None if args.data.is_some() => {
            Config::from_json_with(&format!("{{\"model\": {{\"detector\": \"{}\"}}}}", kind.name()), &changes)?
        }
        None => {
            println!(
                "no --data and no --config: training {} on built-in images; how long it takes is said after a few steps\n\
                 for images of your own, in COCO's layout:\n  cargo run --bin train_det -- {} --data DIR",
                built_in(kind),
                kind.name()
            );
            Config::preset(built_in(kind), &changes)?
        }
    };
    args.model.check(&config, &name)?;
    if args.resume {
        resume::check(&out, &config)?;
    }

    let options = TrainOptions {
        out,
        resume: args.resume,
        weights: args.weights,
        device,
        command: std::env::args().collect(),
        stop: cli::stop_on_ctrl_c()?,
    };
    let outcome = Trainer::new(config, options)?.run()?;
    report(kind.name(), &outcome);
    Ok(if outcome.interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

impl Arguments {
    /// The flags as changes to a config.
    fn changes(&self) -> Result<Vec<String>> {
        let mut flags = Vec::new();
        if let Some(data) = &self.data {
            flags.push(change("data.root", path_value(data)?));
            flags.push(change("data.builtin", Value::Null));
        }
        let mut flag = |key: &str, value: Option<Value>| flags.extend(value.map(|v| change(key, v)));
        flag("model.backbone.name", self.backbone.clone().map(Value::from));
        flag("train.epochs", self.epochs.map(Value::from));
        flag("train.max_iters", self.max_iters.map(Value::from));
        flag("train.batch_size", self.batch_size.map(Value::from));
        flag("train.lr", self.lr.map(Value::from));
        flag("train.seed", self.seed.map(Value::from));
        self.model.changes(flags)
    }
}

/// Where everything is, and what to do next.
fn report(detector: &str, outcome: &Outcome) {
    let run = &outcome.run;
    let folder = run.path().display();
    if outcome.interrupted {
        println!(
            "stopped; this goes on where it was:\n  cargo run --bin train_det -- {detector} --out {folder} --resume"
        );
        return;
    }
    if let Some(lines) = &outcome.best_lines {
        println!("{}", lines.trim_end());
    }
    let weights = match &outcome.best {
        Some(best) => {
            println!("best box AP {:.3}, after epoch {} (step {})", best.score, best.epoch, best.iter);
            println!("  weights     {}", run.best().display());
            println!("  scores      {}", run.metrics().display());
            println!("  detections  {}", run.detections().display());
            if run.masks().exists() {
                println!("  masks       {}", run.masks().display());
            }
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
    println!(
        "  cargo run --bin detect -- {detector} --weights {} --out {folder}/detections IMAGE...",
        weights.display()
    );
    println!("  cargo run --bin test_det -- {detector} --weights {}", weights.display());
    if outcome.best.is_some() {
        println!("  cargo run --bin coco_eval -- --dt {} --per-class", run.detections().display());
    }
}
