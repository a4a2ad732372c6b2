//! `export`: writes a model as an ONNX file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use tch::Device;

use super::classify::open_classifier;
use super::detect::classes_of;
use crate::classes::Classes;
use crate::cli::{make_folder, outputs, parse_height_width, FetchArgs};
use crate::config::{Config, Experiment, Task};
use crate::console::warn;
use crate::onnx::{Model, Options};
use crate::predictor::{Predictor, PredictorOptions};
use crate::to_onnx::{self, ExportOptions};
use crate::weights::{catalogue, Checkpoint};

/// Write a trained detector or classifier as an ONNX file, with normalisation and post-processing inside
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Trained weights, or a name of `vigdet weights`
    #[arg(long, value_name = "FILE|NAME")]
    weights: PathBuf,
    #[command(flatten)]
    fetch: FetchArgs,
    /// Where to write the model, for example model.onnx
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Size of the images in pixels [default of a classifier: its own]
    #[arg(long, value_name = "H,W", value_parser = parse_height_width)]
    size: Option<(i64, i64)>,
    /// Images of any size, in multiples of 32 pixels, and batches of any number
    #[arg(long, conflicts_with = "size")]
    dynamic: bool,
    /// Images of a batch [default: 1; with --dynamic any number]
    #[arg(long, value_name = "N")]
    batch: Option<i64>,
    /// Compute in float16, but for what needs more: half the size
    #[arg(long)]
    fp16: bool,
    /// Take images as float32 in 0-255, not as uint8
    #[arg(long)]
    float_images: bool,
    /// COCO annotation file whose categories name the classes, for weights that do not
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// The model of weights that do not say it, for example pvig_ti
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Config file, or the name of a built-in one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The licence of the weights, one line for the file's metadata [default: that of published weights]
    #[arg(long, value_name = "TEXT")]
    licence: Option<String>,
    /// Change one config value; the key may be shortened to its last part
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Take the neighbours of each graph block as inputs: for comparisons
    #[arg(long, hide = true)]
    neighbours_as_inputs: bool,
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let path = args.fetch.weights(&args.weights)?;
    let read = [&path].into_iter().chain(&args.config).chain(&args.classes);
    let outputs = outputs(read, [&args.out, &Model::data_path(&args.out)])?;
    args.out.parent().map_or(Ok(()), make_folder)?;
    let weights = Checkpoint::open(&path)?;
    let is_detector = weights.task() == Some(Task::Detection)
        || args.config.as_deref().is_some_and(|config| Config::load(config, &[]).is_ok());
    let model = if is_detector { detector(&args, &weights) } else { classifier(&args, &weights) };
    let model = model.with_context(|| format!("cannot export {}", path.display()))?;
    for path in model.write(&args.out, &outputs)? {
        let bytes = std::fs::metadata(&path)?.len();
        warn(&format!("{}: {:.1} MB", path.display(), bytes as f64 / 1e6));
    }
    Ok(ExitCode::SUCCESS)
}

fn options(args: &Args, own_size: Option<(i64, i64)>) -> Result<ExportOptions> {
    let size = if args.dynamic { None } else { args.size.or(own_size) };
    ensure!(args.dynamic || size.is_some(), "give the size of the images with --size H,W, or --dynamic for any size");
    let published = catalogue::of_file(&args.weights).or_else(|| catalogue::named(args.weights.to_str()?).ok());
    Ok(ExportOptions {
        graph: Options {
            size,
            batch: args.batch.or((!args.dynamic).then_some(1)),
            half: args.fp16,
            neighbours_as_inputs: args.neighbours_as_inputs,
        },
        float_images: args.float_images,
        licence: args.licence.clone().or(published.map(|row| format!("{} ({})", row.licence(), row.project))),
    })
}

fn detector(args: &Args, weights: &Checkpoint) -> Result<Model> {
    ensure!(args.model.is_none(), "these are a detector's weights, and --model is for a classifier's");
    let predictor = Predictor::new(
        weights,
        &PredictorOptions {
            config: args.config.clone(),
            changes: args.set.clone(),
            classes: args.classes.as_deref().map(classes_of).transpose()?,
            ..PredictorOptions::default()
        },
    )?;
    let options = options(args, None)?;
    padding_note(options.graph.size, predictor.config().data.pad).iter().for_each(|note| warn(note));
    to_onnx::detector(&predictor, &options)
}

/// What `detect` would do with images of this size, and the file does not.
fn padding_note(size: Option<(i64, i64)>, pad: u32) -> Option<String> {
    let ((height, width), pad) = (size?, i64::from(pad));
    let padded = [height, width].map(|side| (side + pad - 1) / pad * pad);
    (padded != [height, width]).then(|| {
        let [h, w] = padded;
        format!(
            "`detect` pads images of {height}x{width} to {h}x{w}, this file does not: --size {h},{w} gives its scores"
        )
    })
}

fn classifier(args: &Args, weights: &Checkpoint) -> Result<Model> {
    let (model, config) = (args.model.as_deref(), args.config.as_deref());
    let (config, loaded) = open_classifier(model, weights, config, &args.set, Device::Cpu)?;
    let unnamed = Classes::default();
    let side = i64::from(config.data.size);
    let options = options(args, Some((side, side)))?;
    to_onnx::classifier(&loaded.model, &config, weights.classes().unwrap_or(&unnamed), &options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_detect_would_pad_is_named_with_the_padded_one() {
        let note = padding_note(Some((320, 500)), 32).unwrap();
        assert!(note.contains("320x500 to 320x512") && note.contains("--size 320,512"), "{note}");
        assert_eq!(padding_note(Some((320, 512)), 32), None);
        assert_eq!(padding_note(None, 32), None);
    }
}
