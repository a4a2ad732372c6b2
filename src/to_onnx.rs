//! A model as an ONNX file: what goes in, what comes out, and what the file says of itself.
//!
//! `images` are RGB in 0–255, `[N, 3, H, W]`; normalisation and post-processing are inside. `sizes`, which need not be
//! given, is (height, width) of each image where it is padded to H × W at the right and the bottom.

use anyhow::{ensure, Result};
use tch::Tensor;

use crate::backbone::Classifier;
use crate::classes::Classes;
use crate::config::{ClassifyConfig, Experiment};
use crate::data::resize::Normalise;
use crate::detect::{OnnxDetections, OnnxImages, OnnxMasks};
use crate::onnx::{Dim, Graph, Kind, Model, Options, Value};
use crate::predictor::Predictor;

/// The input with the pixels.
pub const IMAGES: &str = "images";
/// The input with (height, width) of each image.
pub const SIZES: &str = "sizes";
/// Sides of images for any size must be multiples of this, in pixels.
pub const MULTIPLE: i64 = 32;
/// More pixels than a side has: an image fills what it is in.
const ALL: i64 = 1 << 30;

/// How a model is written.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Sizes, batch and precision.
    pub graph: Options,
    /// `images` are float32, not uint8.
    pub float_images: bool,
    /// Under which licence the weights are, as one line.
    pub licence: Option<String>,
}

/// A detector.
///
/// # Errors
/// If its backbone cannot be written, or not with these options.
pub fn detector(predictor: &Predictor, options: &ExportOptions) -> Result<Model> {
    check(options)?;
    let (config, mut graph) = (predictor.config(), Graph::new(options.graph));
    let input = pixels(&mut graph, options);
    let images = images(&mut graph, &input, &Normalise::new(config.data.mean, config.data.std));
    let found = predictor.detector().onnx(&mut graph, &images)?;
    let batch = batch(options.graph);
    let OnnxDetections { boxes, scores, labels, counts, rows, masks } = &found;
    let rows = Dim::Fixed(*rows);
    let mut outputs = vec![
        ("boxes", boxes, vec![batch, rows, Dim::Fixed(4)]),
        ("scores", scores, vec![batch, rows]),
        ("labels", labels, vec![batch, rows]),
        ("counts", counts, vec![batch]),
    ];
    if let Some(OnnxMasks { grids, side, pixels }) = masks {
        let [height, width] = sides(options.graph);
        outputs.push(("masks", pixels, vec![batch, rows, height, width]));
        outputs.push(("mask_grids", grids, vec![batch, rows, Dim::Fixed(*side), Dim::Fixed(*side)]));
    }
    let graph = graph.finish(config.model.detector.name(), &outputs);
    let (mean, std) = (config.data.mean, config.data.std);
    Ok(Model::new(graph, DETECTOR, metadata(config, predictor.classes(), [mean, std], options)?))
}

/// A classifier.
///
/// # Errors
/// As [`detector`].
pub fn classifier(
    model: &Classifier,
    config: &ClassifyConfig,
    classes: &Classes,
    options: &ExportOptions,
) -> Result<Model> {
    check(options)?;
    let mut graph = Graph::new(options.graph);
    let input = pixels(&mut graph, options);
    let normalised = normalise(&mut graph, &input, &Normalise::new(config.data.mean, config.data.std));
    let normalised = graph.working(&normalised);
    let logits = model.onnx(&mut graph, &normalised)?;
    let probabilities = graph.softmax(&logits);
    let dims = || vec![batch(options.graph), Dim::Fixed(model.classes())];
    let outputs = [("probabilities", &probabilities, dims()), ("logits", &logits, dims())];
    let graph = graph.finish(&config.model.backbone.name, &outputs);
    let (mean, std) = (config.data.mean, config.data.std);
    Ok(Model::new(graph, CLASSIFIER, metadata(config, classes, [mean, std], options)?))
}

const DETECTOR: &str = "images: RGB in 0-255. sizes (optional): height and width of each image inside its padding. \
                        boxes: x1, y1, x2, y2 in pixels of the input; the first counts[i] rows of image i are \
                        detections, best first. labels: indices of `classes` in the metadata, [[id, name], ...].";
const CLASSIFIER: &str = "images: RGB in 0-255. probabilities and logits: one for each of `classes` in the metadata.";

fn check(options: &ExportOptions) -> Result<()> {
    let Options { size, batch, .. } = options.graph;
    if let Some((height, width)) = size {
        ensure!(
            height >= MULTIPLE && width >= MULTIPLE,
            "images of {height}×{width} pixels are too small to export for: {MULTIPLE}×{MULTIPLE} is the least"
        );
    }
    ensure!(batch.is_none_or(|batch| batch > 0), "a batch has at least one image");
    ensure!(size.is_some() || !options.graph.neighbours_as_inputs, "neighbours can be given for images of one size");
    Ok(())
}

fn batch(options: Options) -> Dim {
    options.batch.map_or(Dim::Any("batch"), Dim::Fixed)
}

fn sides(options: Options) -> [Dim; 2] {
    match options.size {
        Some((height, width)) => [Dim::Fixed(height), Dim::Fixed(width)],
        None => [Dim::Any("height"), Dim::Any("width")],
    }
}

/// The input with the pixels.
fn pixels(graph: &mut Graph, options: &ExportOptions) -> Value {
    graph.part("input");
    let [height, width] = sides(options.graph);
    let kind = if options.float_images { Kind::Float } else { Kind::Uint8 };
    graph.input(IMAGES, kind, &[batch(options.graph), Dim::Fixed(3), height, width])
}

/// Pixels in 0–255, normalised as [`crate::data::prepare`] does it.
fn normalise(graph: &mut Graph, pixels: &Value, how: &Normalise) -> Value {
    let pixels = graph.full(pixels);
    let [scale, shift] = how.factors().map(|values| graph.floats(&values, &[3, 1, 1]));
    let scaled = graph.mul(&pixels, &scale);
    graph.add(&scaled, &shift)
}

/// Images as a detector sees them: normalised, with zeros beyond each.
fn images(graph: &mut Graph, pixels: &Value, how: &Normalise) -> OnnxImages {
    let all = Tensor::from_slice(&[ALL, ALL]).view([1, 2]);
    let sizes = graph.optional_input(SIZES, &all, Kind::Int64, &[Dim::Any("sizes"), Dim::Fixed(2)]);
    let (count, padded) = (graph.shape(pixels, 0, 1), graph.shape(pixels, 2, 4));
    let sizes = graph.min(&sizes, &padded);
    let two = graph.ints(&[2]);
    let shape = graph.concat(&[&count, &two], 0);
    let sizes = graph.op("Expand", &[&sizes, &shape], &[]);
    let normalised = normalise(graph, pixels, how);
    let inside = [0, 1].map(|axis| {
        let pixels = graph.slice(&padded, 0, axis, axis + 1);
        let place = graph.range(&pixels);
        let end = graph.slice(&sizes, 1, axis, axis + 1);
        let inside = graph.is("Less", &place, &end);
        // [N, 1, H, 1] and [N, 1, 1, W].
        graph.unsqueeze(&inside, if axis == 0 { &[1, 3] } else { &[1, 2] })
    });
    let inside = graph.is("And", &inside[0], &inside[1]);
    let cleared = graph.or_number(&inside, &normalised, 0.0);
    let pixels = graph.working(&cleared);
    OnnxImages { pixels, sizes: graph.cast(&sizes, Kind::Float), padded }
}

/// What a file says of itself.
fn metadata(
    config: &impl Experiment,
    classes: &Classes,
    [mean, std]: [[f32; 3]; 2],
    options: &ExportOptions,
) -> Result<Vec<(String, String)>> {
    let licence = options.licence.clone().unwrap_or_else(|| "not stated: ask who trained the weights".into());
    Ok([
        ("config", config.to_value()?.to_string()),
        ("classes", serde_json::to_string(classes)?),
        ("mean", serde_json::to_string(&mean)?),
        ("std", serde_json::to_string(&std)?),
        ("licence", licence),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into())
}
