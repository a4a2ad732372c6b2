//! Do the patches of an image become alike from layer to layer? Feature diversity of ViG, and of plain residual graph
//! convolutions (ResGCN) as deep: the same network without the fully connected layers around its graph convolutions
//! and without feed-forward networks (Han et al., 2022, Figure 3).
//!
//!     cargo run --example feature_diversity -- [--model vig_ti] [--vig FILE] [--resgcn FILE] [--out DIR] [IMAGE...]
//!
//! Without weights, both are random, as at the start of training. Without images, built-in ones are drawn.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use image::RgbImage;
use plotters::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};
use vigdet::backbone::Pass;
use vigdet::config::Config;
use vigdet::data::decode;
use vigdet::data::resize::{resize_into, Normalise, Slot};
use vigdet::data::shapes::Scene;
use vigdet::explore::diversity::diversity;
use vigdet::graph::GraphTrace;
use vigdet::weights::{backbone_config, load_classifier, Checkpoint};
use vigdet_coco::plot::style::{self, Axes};

/// Feature diversity over the layers of ViG and of ResGCN
#[derive(clap::Args)]
struct Args {
    /// vig_ti, vig_s, vig_b, pvig_ti, pvig_s, pvig_m or pvig_b
    #[arg(long, default_value = "vig_ti")]
    model: String,
    /// Weights of ViG [default: random]
    #[arg(long, value_name = "FILE")]
    vig: Option<PathBuf>,
    /// Weights of the same model with `grapher_fc` and `ffn` false [default: random]
    #[arg(long, value_name = "FILE")]
    resgcn: Option<PathBuf>,
    /// Folder for feature_diversity.png and .svg
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Photographs, resized to the model's native size
    images: Vec<PathBuf>,
}

fn main() -> std::process::ExitCode {
    vigdet::cli::main("feature_diversity", |args: Args| run(&args).map(|()| std::process::ExitCode::SUCCESS))
}

fn run(args: &Args) -> Result<()> {
    let images: Vec<RgbImage> = match args.images.is_empty() {
        true => (0..8).map(|i| Scene::draw(224, &mut ChaCha8Rng::seed_from_u64(i)).image).collect(),
        false => args.images.iter().map(|path| decode::open(path, false)).collect::<Result<_>>()?,
    };
    let curves = [
        ("ViG", of_layers(&args.model, true, args.vig.as_deref(), &images)?),
        ("ResGCN", of_layers(&args.model, false, args.resgcn.as_deref(), &images)?),
    ];
    println!("layer    ViG  ResGCN    (mean over {} images)", images.len());
    for (layer, (vig, resgcn)) in curves[0].1.iter().zip(&curves[1].1).enumerate() {
        println!("{layer:>5}  {vig:.3}   {resgcn:.3}");
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let path = |name: &str| args.out.join(name);
    plot(&BitMapBackend::new(&path("feature_diversity.png"), style::SIZE).into_drawing_area(), &args.model, &curves)?;
    plot(&SVGBackend::new(&path("feature_diversity.svg"), style::SIZE).into_drawing_area(), &args.model, &curves)
}

/// Mean feature diversity of what goes into the first block and comes out of each.
fn of_layers(model: &str, vig: bool, weights: Option<&Path>, images: &[RgbImage]) -> Result<Vec<f64>> {
    let weights = weights.map(Checkpoint::open).transpose()?;
    // ResGCN lacks the layers around its graph convolutions.
    let changes = [format!("model.backbone.grapher_fc={vig}"), format!("model.backbone.ffn={vig}")];
    let config = backbone_config(model, weights.as_ref(), None, &changes)?;
    tch::manual_seed(0);
    let loaded = load_classifier(&config.model.backbone, weights.as_ref(), Device::Cpu)?;
    let batch = batch(images, &config)?;
    let mut trace = GraphTrace::detailed();
    // Random batch norms know no statistics yet: they take the batch's, as in the first step of training.
    let pass = if weights.is_none() { Pass::training(0, 0) } else { Pass::inference() };
    tch::no_grad(|| loaded.model.backbone().forward(&batch, &mut pass.with_trace(&mut trace)))?;
    ensure!(!trace.features.is_empty(), "{model} has no graph");
    let mean = |features: &Tensor| Ok(diversity(features)?.iter().sum::<f64>() / images.len() as f64);
    trace.features.iter().map(mean).collect()
}

/// Images at the model's native size, normalised, `[B, 3, side, side]`.
fn batch(images: &[RgbImage], config: &Config) -> Result<Tensor> {
    let side = config.model.backbone.image_size as usize;
    let normalise = Normalise::new(config.data.mean, config.data.std);
    let mut data = vec![0.0; images.len() * 3 * side * side];
    for (image, data) in images.iter().zip(data.chunks_exact_mut(3 * side * side)) {
        let slot = Slot { data, rows: side, columns: side };
        resize_into(image, (side as u32, side as u32), config.data.resize, &normalise, slot)?;
    }
    Ok(Tensor::from_slice(&data).view([images.len() as i64, 3, side as i64, side as i64]))
}

fn plot<DB: DrawingBackend>(
    root: &DrawingArea<DB, plotters::coord::Shift>,
    model: &str,
    curves: &[(&str, Vec<f64>)],
) -> Result<()> {
    let draw = || -> style::DrawResult<(), DB> {
        root.fill(&style::PAPER)?;
        let layers = curves[0].1.len() as f64 - 1.0;
        let most = curves.iter().flat_map(|c| &c.1).copied().fold(0.0, f64::max);
        let title = format!("Feature diversity of {model}");
        let axes = Axes { title: &title, x: "layer", y: "diversity", x_range: 0.0..layers, y_range: 0.0..1.3 * most };
        let mut chart = axes.draw(root)?;
        for (i, (name, values)) in curves.iter().enumerate() {
            let points: Vec<(f64, f64)> = values.iter().enumerate().map(|(l, v)| (l as f64, *v)).collect();
            chart
                .draw_series(LineSeries::new(points.clone(), style::line(i)))?
                .label(*name)
                .legend(move |at| style::legend_mark(at, i));
            chart.draw_series(points.iter().map(|&p| Circle::new(p, 4, style::colour(i).filled())))?;
        }
        style::legend(&mut chart, SeriesLabelPosition::UpperRight)?;
        root.present()
    };
    draw().map_err(|error| anyhow::anyhow!("cannot draw: {error}"))
}
