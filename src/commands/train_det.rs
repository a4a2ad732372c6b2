//! `train_det`: trains a detector.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use tch::Device;

use super::training::{report, stem, Plan, RunArgs};
use crate::cli::{change, check_detector, DetectorArgs};
use crate::config::{Config, DetectorKind, Experiment};
use crate::console::{say, start_of};
use crate::ranks::{self, Ranks};
use crate::train::detection::{prepare_as, prepare_as_before, Detection};
use crate::train::engine::Outcome;
use crate::weights::Checkpoint;

/// Below so many images a data set is small: the recipe of 12 epochs of COCO would not get far with it.
const SMALL: usize = 5000;
/// The recipe for small data sets.
const SMALL_RECIPE: &str = "retinanet_pvig_n_small";

/// Train a detector on a data set in COCO's layout, or on built-in data.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// retinanet or mask_rcnn
    detector: String,
    #[command(flatten)]
    model: DetectorArgs,
    /// The backbone, for example pvig_ti or resnet18 (a wrong name lists all)
    #[arg(long, value_name = "NAME")]
    backbone: Option<String>,
    /// Folder of labelled images: COCO's layout (annotations/instances_{train,val}2017.json, train2017/ and val2017/;
    /// other names: --set data.train.annotations=…), YOLO, Pascal VOC, LabelMe, CVAT, Label Studio, Open Images or CSV
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Weights to fine-tune, a file or a name of `vigdet weights`: a detector's, or a classifier's as backbone. They
    /// bring their own config, with a recipe for small sets
    #[arg(long, value_name = "FILE|NAME", conflicts_with_all = ["weights", "config", "backbone"])]
    finetune: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

/// What runs without --config and --data.
fn built_in(kind: DetectorKind) -> &'static str {
    match kind {
        DetectorKind::Retinanet => "retinanet_pvig_n_shapes",
        DetectorKind::MaskRcnn => "mask_rcnn_pvig_ti_shapes",
    }
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let (device, processes) = (args.model.config.device()?, args.run.processes);
    ranks::run(processes, device, |ranks, device| train(args, ranks, device))
}

fn train(mut args: Args, ranks: &Ranks, device: Device) -> Result<ExitCode> {
    args.run.decide_to_resume(ranks)?;
    let kind = DetectorKind::parse(&args.detector)?;
    let mut flags = args.run.changes();
    flags.extend(args.backbone.as_deref().map(|name| change("model.backbone.name", name)));
    let changes = args.model.changes(flags, args.data.as_deref())?;
    let named = args.model.config.config.as_deref();
    let finetune = args.finetune.as_deref().filter(|_| !args.run.resume);
    let weights = finetune.map(|named| Checkpoint::open(&args.run.fetch.weights(named)?)).transpose()?;
    let name = match named {
        Some(path) => stem(path),
        None if args.finetune.is_some() => format!("{}_finetuned", kind.name()),
        None if args.data.is_some() => kind.name().to_string(),
        None => built_in(kind).to_string(),
    };
    let config = match named {
        Some(path) => Some(Config::load(path, &changes)?),
        None if args.run.resume => None,
        None if weights.is_some() => weights.as_ref().map(|weights| finetuned(weights, kind, &changes)).transpose()?,
        None if args.data.is_some() => {
            let text = format!("{{\"model\": {{\"detector\": \"{}\"}}}}", kind.name());
            Some(Config::from_json_with(&text, &changes)?)
        }
        None => {
            say(&format!(
                "no --data and no --config: training {} on built-in images; how long it takes is said after a few \
                 steps\n\
                 for images of your own, in COCO's layout:\n  {} {} --data DIR",
                built_in(kind),
                start_of("train_det"),
                kind.name()
            ));
            Some(Config::preset(built_in(kind), &changes)?)
        }
    };
    let default_recipe = named.is_none() && args.finetune.is_none() && args.data.is_some() && !args.run.resume;
    let plan = Plan { config, name: name.clone(), changes: changes.clone(), device, weights, ranks: ranks.clone() };
    let (outcome, _) = args.run.train::<Detection>(
        plan,
        |config, weights, before| {
            check_detector(config, kind, &name)?;
            if let Some(before) = before {
                prepare_as_before(config, before, &changes);
                if config.model.anchors.auto {
                    // Fitted once: the run has the numbers.
                    config.model.anchors = before.model.anchors.clone();
                }
            }
            let notes = weights.map(|weights| prepare_as(config, weights, &changes)).transpose()?;
            notes.iter().flatten().for_each(|note| say(note));
            Ok(())
        },
        |task| {
            if default_recipe && kind == DetectorKind::Retinanet && task.images() < SMALL {
                say(&format!(
                    "{} images are few for this recipe, which is COCO's; for small data sets there are --finetune \
                     efficientnet_lite0, after `make pretrained`, and --config {SMALL_RECIPE}, from scratch",
                    task.images()
                ));
            }
        },
    )?;
    let detector = kind.name();
    Ok(report(
        ranks,
        &outcome,
        &format!("{} {detector}", start_of("train_det")),
        |ap| format!("box AP {ap:.3}"),
        |weights| next(detector, weights, &outcome),
    ))
}

/// The config that weights are fine-tuned with.
fn finetuned(weights: &Checkpoint, kind: DetectorKind, changes: &[String]) -> Result<Config> {
    let config = weights.finetuned(kind, changes)?;
    say(&format!(
        "fine-tuning: {} on {}, images of {} to {} pixels, batch norms {}",
        kind.name(),
        config.model.backbone.name,
        config.data.size[0],
        config.data.size[1],
        if config.model.backbone.freeze_norms { "frozen" } else { "learning" }
    ));
    Ok(config)
}

fn next(detector: &str, weights: &Path, outcome: &Outcome) -> Vec<String> {
    let (weights, run) = (weights.display(), &outcome.run);
    let out = run.path().join("detections");
    let mut lines = vec![
        format!("{} {detector} --weights {weights} --out {} IMAGE...", start_of("detect"), out.display()),
        format!("{} {detector} --weights {weights}", start_of("test_det")),
    ];
    if outcome.best.is_some() {
        lines.push(format!("{} --dt {} --per-class", start_of("coco_eval"), run.detections().display()));
    }
    lines
}
