//! `train_cls`: trains a classifier, which pretrains a backbone.

use std::process::ExitCode;

use anyhow::Result;
use tch::Device;

use super::training::{report, stem, Plan, RunArgs};
use crate::backbone::Family;
use crate::cli::{check_classifier, check_model, ClassifierArgs};
use crate::config::{ClassifyConfig, Experiment};
use crate::console::start_of;
use crate::ranks::{self, Ranks};
use crate::train::classification::Classification;

/// Train a classifier on a folder with a folder of images for each class (ImageNet's layout).
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A model, for example pvig_ti or resnet50 (a wrong name lists all)
    model: String,
    #[command(flatten)]
    classifier: ClassifierArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let (device, processes) = (args.classifier.config.device()?, args.run.processes);
    ranks::run(processes, device, |ranks, device| train(args, ranks, device))
}

fn train(mut args: Args, ranks: &Ranks, device: Device) -> Result<ExitCode> {
    args.run.decide_to_resume(ranks)?;
    let model = args.model.as_str();
    check_model(model)?;
    let changes = args.classifier.changes(args.run.changes())?;
    let named = args.classifier.config.config.as_deref();
    let name = named.map_or_else(|| model.to_string(), stem);
    let config = match named {
        Some(path) => Some(ClassifyConfig::load(path, &changes)?),
        None if args.run.resume => None,
        None => Some(ClassifyConfig::of_model(model, &changes)?),
    };
    let plan = Plan { config, name: name.clone(), changes, device, weights: None, ranks: ranks.clone() };
    let check = |config: &mut ClassifyConfig, _: Option<&_>, _: Option<&_>| check_classifier(config, model, &name);
    let (outcome, config) = args.run.train::<Classification>(plan, check, |_| ())?;
    Ok(report(
        ranks,
        &outcome,
        &format!("{} {model}", start_of("train_cls")),
        |top1| format!("top-1 {top1:.4}"),
        |weights| {
            let weights = weights.display();
            let mut lines = vec![format!("{} {model} --weights {weights}", start_of("test_cls"))];
            if let Some(flags) = detector(&config) {
                let start = start_of("train_det");
                lines.push(format!("{start} retinanet {flags} --weights {weights} --data DIR"));
            }
            lines
        },
    ))
}

/// The flags of a detector on this backbone: its shape, and what images are normalised with. `None` for those with one
/// map, which no detector takes.
fn detector(config: &ClassifyConfig) -> Option<String> {
    let (backbone, data) = (&config.model.backbone, &config.data);
    if backbone.name.starts_with("vig_") {
        return None;
    }
    let written = [("channels", &backbone.channels), ("blocks", &backbone.blocks)];
    // The others' shape is in their name.
    let family = Family::of(&backbone.name);
    let shaped = family.has_graphs() || !family.has_batch_norms();
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
