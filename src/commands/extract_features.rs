//! `extract_features`: writes what a backbone sees: a map per stage, class scores and, if asked for, the graph of
//! every block.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::backbone::Pass;
use crate::cli::{outputs, parse_device, parse_height_width, FetchArgs};
use crate::config::{BackboneConfig, Config};
use crate::console::{say, warn};
use crate::data::decode;
use crate::data::resize::{resize_into, Normalise, Slot};
use crate::graph::GraphTrace;
use crate::nn::memory::filled;
use crate::threads::set_threads;
use crate::weights::{
    backbone_config, export_tensors, load_classifier, sorted_variables, Checkpoint, LoadedClassifier, Metadata,
    WeightFile,
};

/// Write a backbone's feature maps, class scores and graphs for an image or a batch
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A model, for example pvig_ti or resnet50 (a wrong name lists all)
    model: String,
    /// Weights: safetensors, a PyTorch state dict (.pth, .pth.tar, .pt), or a name of `vigdet weights` [default:
    /// random ones]
    #[arg(long, value_name = "FILE|NAME")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    fetch: FetchArgs,
    /// An image (JPEG or PNG), which is normalised, or a safetensors file with a tensor `images` [B, 3, H, W], used as
    /// it is
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write stage1 … stage4 (isotropic ViG: features) and logits, as safetensors
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write the neighbours of every block too: edges.0 …, int64 [B, N, k]; where they count differently, weights.0 …,
    /// float32 [B, N, k]
    #[arg(long)]
    edges: bool,
    /// Resize the image to this many pixels [default: as it is]
    #[arg(long, value_name = "H,W", value_parser = parse_height_width)]
    size: Option<(i64, i64)>,
    /// Run so many times, for the time of the fastest
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: usize,
    /// Time training mode and the gradient of the sum of the maps' means
    #[arg(long)]
    backward: bool,
    /// Print the time as JSON
    #[arg(long)]
    json: bool,
    /// Write the model's weights too, as safetensors with the published names
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// cpu, cuda or cuda:N [default: cuda where libtorch has it]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Change one config value; the key may be shortened to its last part
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    ensure!(args.repeat > 0, "--repeat must be at least 1");
    let device = parse_device(args.device.as_deref())?;
    let named = args.weights.as_deref().map(|named| args.fetch.weights(named)).transpose()?;
    let outputs = outputs([&args.input].into_iter().chain(&named), [&args.out].into_iter().chain(&args.save))?;
    let weights = named.as_deref().map(Checkpoint::open).transpose()?;
    let config = backbone_config(&args.model, weights.as_ref(), None, &args.set)?;
    let backbone = &config.model.backbone;
    set_threads(config.train.threads);
    let images = images(&args, &config)?.to_device(device);
    let mut loaded = load_classifier(backbone, weights.as_ref(), device)?;
    drop(weights);
    match &loaded.report {
        Some(report) => warn(&report.to_string()),
        None => warn(&format!("no --weights: the weights of {} are random", backbone.name)),
    }
    if !loaded.head_loaded {
        warn("the classifier is not in the file: no logits are written");
    }
    if let Some(path) = &args.save {
        let metadata = Metadata::from([("format".into(), "pt".into())]);
        export_tensors(&sorted_variables(&loaded.store), path, &metadata, &outputs)?;
    }

    if !args.backward {
        // Weights that do not learn take their batch norms in once.
        loaded.store.freeze();
    }
    let mut seconds = f64::INFINITY;
    let mut tensors = Vec::new();
    for _ in 0..if args.backward { 1 } else { args.repeat } {
        // The maps of the pass before are not kept beside this one's.
        tensors.clear();
        let mut trace = args.edges.then(GraphTrace::default);
        let mut pass = Pass::inference().with_trace(trace.as_mut());
        let start = Instant::now();
        let found = tch::no_grad(|| loaded.model.forward(&images, &mut pass))?;
        finish(&found.logits);
        seconds = seconds.min(start.elapsed().as_secs_f64());
        let logits = loaded.head_loaded.then_some(found.logits);
        tensors = name_outputs(backbone, found.maps, logits, trace);
    }
    export_tensors(&tensors, &args.out, &Metadata::new(), &outputs)?;
    let written = tensors.len();
    drop(tensors);
    if args.backward {
        seconds = f64::INFINITY;
        for _ in 0..args.repeat {
            seconds = seconds.min(backward(&loaded, &images, config.train.recompute)?);
        }
    }
    if args.json {
        say(&json!({ "seconds": seconds }).to_string());
    } else {
        let what = if args.backward { "forward and backward" } else { "forward" };
        say(&format!("{written} tensors in {}; {what}: {seconds:.3} s", args.out.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn images(args: &Args, config: &Config) -> Result<Tensor> {
    let path = &args.input;
    if path.extension().is_some_and(|e| e == "safetensors") {
        ensure!(args.size.is_none(), "--size resizes images, and a tensor is used as it is");
        let read = || -> Result<Tensor> {
            let file = WeightFile::open(path)?;
            ensure!(file.shape("images").is_some(), "it has no tensor `images`");
            let images = file.tensor("images")?.to_kind(Kind::Float);
            ensure!(
                matches!(images.size()[..], [b, 3, h, w] if b > 0 && h > 0 && w > 0),
                "`images` must be [B, 3, H, W], not {:?}",
                images.size()
            );
            Ok(images)
        };
        return read().with_context(|| format!("cannot take images from {}", path.display()));
    }
    let image = decode::open(path, config.data.exif)?;
    let (width, height) = match args.size {
        Some((height, width)) => (width as u32, height as u32),
        None => image.dimensions(),
    };
    let (rows, columns) = (height as usize, width as usize);
    let normalise = Normalise::new(config.data.mean, config.data.std);
    let mut resized = Ok(());
    let images = filled(&[1, 3, rows as i64, columns as i64], |data: &mut [f32]| {
        let slot = Slot { data, rows, columns };
        resized = resize_into(&image, (width, height), config.data.resize, &normalise, slot);
    })
    .ok()
    .with_context(|| format!("there is no memory for an image of {columns}×{rows} pixels: see --size"))?;
    resized?;
    Ok(images)
}

/// The tensors to write, in the order of the network.
fn name_outputs(
    config: &BackboneConfig,
    maps: Vec<Tensor>,
    logits: Option<Tensor>,
    trace: Option<GraphTrace>,
) -> Vec<(String, Tensor)> {
    let isotropic = config.name.starts_with("vig_");
    let name = |i: usize| if isotropic { "features".to_string() } else { format!("stage{}", i + 1) };
    let mut outputs: Vec<_> = maps.into_iter().enumerate().map(|(i, map)| (name(i), map)).collect();
    outputs.extend(logits.map(|logits| ("logits".to_string(), logits)));
    let blocks = trace.map(|trace| trace.blocks).unwrap_or_default();
    for (i, block) in blocks.into_iter().enumerate() {
        outputs.push((format!("edges.{i}"), block.edges));
        outputs.extend(block.weights.map(|weights| (format!("weights.{i}"), weights)));
    }
    outputs
}

/// Seconds of a training pass of the backbone: forward, and the gradient of the sum of the maps' means.
fn backward(loaded: &LoadedClassifier, images: &Tensor, recompute: usize) -> Result<f64> {
    let start = Instant::now();
    let mut pass = Pass::training(0, 0).recomputing(recompute);
    let maps = loaded.model.backbone().forward(images, &mut pass)?;
    let means: Vec<Tensor> = maps.iter().map(|map| map.mean(Kind::Float)).collect();
    let sum = Tensor::stack(&means, 0).sum(Kind::Float);
    sum.f_backward()?;
    finish(&sum);
    let seconds = start.elapsed().as_secs_f64();
    loaded.store.trainable_variables().iter_mut().for_each(Tensor::zero_grad);
    Ok(seconds)
}

/// Waits until a tensor is computed: on a GPU, work is only queued.
fn finish(tensor: &Tensor) {
    if let Device::Cuda(index) = tensor.device() {
        tch::Cuda::synchronize(index as i64);
    }
}
