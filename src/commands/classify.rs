//! `classify`: names the classes of images.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::detect::images;
use crate::backbone::Pass;
use crate::classes::Classes;
use crate::cli::{check_classifier, check_model, make_folder, outputs, warn_skipped, AmpArgs, ConfigArgs, FetchArgs};
use crate::config::{ClassifyConfig, Experiment};
use crate::console::say;
use crate::data::classify::prepare;
use crate::data::decode;
use crate::nn::precision::autocast;
use crate::threads::set_threads;
use crate::weights::{catalogue, load_classifier, Checkpoint, LoadedClassifier};

/// Name the classes of images with a classifier that was trained here or published.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Images (JPEG, PNG) and folders of them
    #[arg(required = true, value_name = "IMAGE|DIR")]
    inputs: Vec<PathBuf>,
    /// Weights: vigdet's, which know their config and classes, or PyTorch's (.pth, .pth.tar), with --model; or a name
    /// of `vigdet weights`
    #[arg(long, value_name = "FILE|NAME")]
    weights: PathBuf,
    #[command(flatten)]
    fetch: FetchArgs,
    /// A model, for example pvig_ti or resnet50 (a wrong name lists all) [default: what the weights are of]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    amp: AmpArgs,
    /// How many classes of each image, the most probable first
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Write them to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let files = images(&args.inputs, None)?;
    let path = args.fetch.weights(&args.weights)?;
    let outputs = outputs(files.iter().chain([&path]).chain(&args.config.config), &args.json)?;
    args.json.as_deref().and_then(Path::parent).map_or(Ok(()), make_folder)?;
    let device = args.config.device()?;
    let weights = Checkpoint::open(&path)?;
    let (model, named) = (args.model.as_deref(), args.config.config.as_deref());
    let (config, loaded) = open_classifier(model, &weights, named, &args.config.set, device)?;
    set_threads(config.train.threads);
    let mixed = args.amp.precision(config.train.amp, device).is_mixed(device);
    let unnamed = Classes::default();
    let classes = weights.classes().unwrap_or(&unnamed);
    let (mut all, mut count, mut first_error) = (Vec::new(), 0, None);
    for file in &files {
        let image = match decode::open(file, config.data.exif) {
            Ok(image) => image,
            Err(error) => {
                if files.len() > 1 {
                    warn_skipped(&error);
                }
                first_error.get_or_insert(error);
                continue;
            }
        };
        let batch = prepare(&image, &config.data).with_context(|| file.display().to_string())?.to_device(device);
        let forward = || autocast(mixed, device, || loaded.model.forward(&batch, &mut Pass::inference()));
        let logits = tch::no_grad(forward)?.logits;
        let guesses = guesses(&logits, args.top).with_context(|| file.display().to_string())?;
        say(&file.display().to_string());
        for (label, probability) in &guesses {
            say(&format!("  {probability:.4} {}", classes.name(*label)));
        }
        let entries =
            guesses.iter().map(|(label, p)| json!({ "class": label, "label": classes.name(*label), "probability": p }));
        count += 1;
        if args.json.is_some() {
            all.push(json!({ "file": file, "classes": entries.collect::<Vec<_>>() }));
        }
    }
    if let (Some(error), 0) = (first_error, count) {
        return Err(error.context(format!("none of the {} images could be read", files.len())));
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&all)? + "\n";
        outputs.write(path, |out| out.write_all(text.as_bytes()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Labels and probabilities of one image, the most probable first.
fn guesses(logits: &Tensor, top: usize) -> Result<Vec<(i64, f64)>> {
    let probabilities = logits.get(0).to_device(Device::Cpu).to_kind(Kind::Double).softmax(0, Kind::Double);
    ensure!(
        probabilities.isfinite().all().int64_value(&[]) == 1,
        "the scores are not finite: the weights are damaged, or data.mean and data.std are not theirs"
    );
    let most = i64::try_from(top).unwrap_or(i64::MAX).min(probabilities.size()[0]);
    let (values, labels) = probabilities.topk(most, 0, true, true);
    let (values, labels): (Vec<f64>, Vec<i64>) = (values.try_into()?, labels.try_into()?);
    Ok(labels.into_iter().zip(values).collect())
}

/// A classifier of weights, ready for images, with its config: the one that is named, else the weights' own, else that
/// of the model's published weights. A published file tells its model by its name.
pub(super) fn open_classifier(
    model: Option<&str>,
    weights: &Checkpoint,
    config: Option<&Path>,
    changes: &[String],
    device: Device,
) -> Result<(ClassifyConfig, LoadedClassifier)> {
    model.map_or(Ok(()), check_model)?;
    let source = weights.path().display().to_string();
    let published = || catalogue::of_file(weights.path()).map(|row| row.model.as_str());
    let config = match config {
        Some(path) => ClassifyConfig::load(path, changes)?,
        None => match (weights.config(changes)?, model.or_else(published)) {
            (Some(own), _) => own,
            (None, Some(model)) => ClassifyConfig::of_model(model, changes)?,
            (None, None) => bail!("{source} does not say which model it is of: give its name, for example pvig_s"),
        },
    };
    model.map_or(Ok(()), |model| check_classifier(&config, model, &source))?;
    let mut loaded = load_classifier(&config.model.backbone, Some(weights), device)?;
    loaded.store.freeze();
    ensure!(
        loaded.head_loaded,
        "{source} has no classifier for {}: it is a detector's, or a backbone alone",
        config.model.backbone.name
    );
    let outputs = loaded.model.classes();
    let named = weights.classes().map_or(outputs, |classes| classes.len() as i64);
    ensure!(named == outputs, "{source} names {named} classes but gives {outputs} scores");
    Ok((config, loaded))
}
