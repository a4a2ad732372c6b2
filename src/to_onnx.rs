//! A model as an ONNX file: what goes in, what comes out, and what the file says of itself.
//!
//! `images` are RGB in 0–255, `[N, 3, H, W]`; normalisation and post-processing are inside. `sizes`, which need not be
//! given, is (height, width) of each image where it is padded to H × W at the right and the bottom.

use anyhow::{ensure, Context, Result};
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
    let found = predictor.detector().onnx(&mut graph, &images);
    let found = found.with_context(|| config.model.backbone.name.clone())?;
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
    let logits = model.onnx(&mut graph, &normalised);
    let logits = logits.with_context(|| config.model.backbone.name.clone())?;
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

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use prost::Message;
    use tch::{nn, Device};
    use vigdet_coco::output::Outputs;

    use super::*;
    use crate::config::{Config, DetectorKind};
    use crate::detect::Detections;
    use crate::onnx::messages::{GraphProto, ModelProto, TensorProto};
    use crate::predictor::PredictorOptions;
    use crate::weights::{metadata_of, save, Checkpoint};

    /// Small detectors.
    const SMALL: [(DetectorKind, &str); 4] = [
        (DetectorKind::Retinanet, "pvig_ti"),
        (DetectorKind::Retinanet, "greedyvig_s"),
        (DetectorKind::Retinanet, "adaptvig_s"),
        (DetectorKind::MaskRcnn, "resnet18"),
    ];

    /// A small detector, random but for norms that show where they belong, as a file of weights.
    fn weights(detector: DetectorKind, backbone: &str, folder: &std::path::Path) -> std::path::PathBuf {
        let small = match backbone {
            "pvig_ti" => r#", "channels": [8, 8, 16, 16], "blocks": [1, 1, 2, 1]"#,
            "greedyvig_s" | "adaptvig_s" => r#", "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1]"#,
            "swin_t" => r#", "channels": [64, 64, 64, 64], "blocks": [1, 2, 1, 1]"#,
            _ => "",
        };
        let (strides, own) = match detector {
            DetectorKind::Retinanet => ("[8, 16, 32, 64, 128]", r#""head": {"convs": 1, "channels": 16}"#),
            DetectorKind::MaskRcnn => (
                "[4, 8, 16, 32, 64]",
                r#""roi": {"channels": 16}, "mask_head": {"channels": 16, "convs": 1},
                   "rpn": {"test": {"top_k": 50, "keep": 30}}"#,
            ),
        };
        let text = format!(
            r#"{{"model": {{"detector": "{}", "backbone": {{"name": "{backbone}"{small}}}, "fpn": {{"channels": 16}},
                "anchors": {{"strides": {strides}}}, "test": {{"score": 0.001, "max_detections": 20}}, {own}}},
               "data": {{"size": [64, 96]}}}}"#,
            detector.name()
        );
        let config = Config::from_json_with(&text, &[]).unwrap();
        let store = nn::VarStore::new(Device::Cpu);
        tch::manual_seed(5);
        crate::detect::build(&store.root(), &config.model, 3).unwrap();
        tch::no_grad(|| {
            for (name, mut variable) in store.variables() {
                if name.ends_with("running_var") {
                    let _ = variable.uniform_(0.5, 1.5);
                } else if variable.dim() == 1 {
                    let noise = variable.randn_like() * 0.1;
                    variable += noise;
                } else if name.ends_with("temperature") {
                    // As large as distances are: 1 would close every gate.
                    let _ = variable.fill_(5.0);
                }
            }
        });
        let classes: Classes = [(1, "a"), (4, "b"), (9, "c")].into_iter().collect();
        let path = folder.join("weights.safetensors");
        save(&store, &path, &metadata_of(&config, &classes).unwrap()).unwrap();
        path
    }

    fn written(predictor: &Predictor, graph: Options, folder: &std::path::Path) -> (std::path::PathBuf, ModelProto) {
        let options = ExportOptions { graph, ..ExportOptions::default() };
        let path = folder.join("model.onnx");
        detector(predictor, &options).unwrap().write(&path, &Outputs::default()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        (path, ModelProto::decode(&bytes[..]).unwrap())
    }

    /// Refuses a node that uses what no earlier one gives, and a name that two have.
    fn check_order(graph: &GraphProto, known: &HashSet<String>, taken: &mut HashSet<String>) {
        let constants = graph.initializer.iter().map(|tensor| tensor.name.clone().unwrap());
        let inputs = graph.input.iter().map(|input| input.name.clone().unwrap());
        let mut known: HashSet<String> = known.iter().cloned().chain(constants).chain(inputs).collect();
        known.insert(String::new());
        for node in &graph.node {
            let lost: Vec<&String> = node.input.iter().filter(|input| !known.contains(*input)).collect();
            assert!(lost.is_empty(), "{:?} uses {lost:?}", node.name);
            for body in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
                check_order(body, &known, taken);
            }
            for output in &node.output {
                assert!(taken.insert(output.clone()), "two nodes give {output}");
                known.insert(output.clone());
            }
        }
        assert!(graph.output.iter().all(|output| known.contains(output.name.as_ref().unwrap())));
    }

    #[test]
    fn a_graph_decodes_in_an_order_that_runs_and_says_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let any = Options::default();
        let one = Options { size: Some((64, 96)), batch: Some(2), ..any };
        for (kind, backbone) in SMALL {
            let path = weights(kind, backbone, folder.path());
            let predictor = Predictor::open(&path, &PredictorOptions::default()).unwrap();
            for options in [any, one, Options { half: true, ..any }] {
                let (_, model) = written(&predictor, options, folder.path());
                let graph = model.graph.unwrap();
                check_order(&graph, &HashSet::new(), &mut HashSet::new());
                // Of one size, nothing loops.
                let loops = graph.node.iter().any(|node| node.op_type.as_deref() == Some("Scan"));
                assert_eq!(loops, options.size.is_none() && backbone != "resnet18", "{backbone} {options:?}");
                let names: Vec<&str> = graph.output.iter().filter_map(|output| output.name.as_deref()).collect();
                let masks: &[_] = if kind == DetectorKind::MaskRcnn { &["masks", "mask_grids"] } else { &[] };
                assert_eq!(names, [&["boxes", "scores", "labels", "counts"], masks].concat());
                let entries: HashMap<_, _> =
                    model.metadata_props.into_iter().map(|e| (e.key.unwrap(), e.value)).collect();
                assert_eq!(entries["classes"].as_deref(), Some(r#"[[1,"a"],[4,"b"],[9,"c"]]"#));
                let config = Config::from_json_with(entries["config"].as_ref().unwrap(), &[]).unwrap();
                assert_eq!(config.model, predictor.config().model);
                // Constants of float16 are half as large.
                let floats =
                    graph.initializer.iter().filter(|tensor| tensor.dims.len() == 4 && tensor.data_type == Some(10));
                assert_eq!(floats.count() > 0, options.half);
            }
        }
    }

    /// How many nodes of `op` there are in each graph block of an AxialVig.
    fn of_graph_blocks(graph: &GraphProto, op: &str) -> [usize; 4] {
        [1, 2, 3, 4].map(|stage| {
            let name = format!("backbone/stage{stage}.graph.0/{op}_");
            graph.node.iter().filter(|node| node.name.as_ref().unwrap().starts_with(&name)).count()
        })
    }

    #[test]
    fn a_graph_of_one_size_has_a_node_for_each_roll() {
        let folder = tempfile::tempdir().unwrap();
        // Maps of 16×24, 8×12, 4×6 and 2×3 nodes, in steps of 8, 4, 2 and 1: 1 + 2 rolls each. By 2, 4, 8, …: 3 + 4,
        // 2 + 3, 1 + 2 of them, and attention.
        for (backbone, op, expected) in [("greedyvig_s", "Where", [3; 4]), ("adaptvig_s", "Exp", [7, 5, 3, 0])] {
            let path = weights(DetectorKind::Retinanet, backbone, folder.path());
            let predictor = Predictor::open(&path, &PredictorOptions::default()).unwrap();
            let size = Some((64, 96));
            let (_, model) = written(&predictor, Options { size, ..Options::default() }, folder.path());
            assert_eq!(of_graph_blocks(&model.graph.unwrap(), op), expected, "{backbone}");
        }
    }

    /// Whether two images have the same detections: label, box (0.05 pixel) and score (1e-4), and masks.
    fn are_same(wanted: &Detections, found: &Detections) -> bool {
        let same = |i: usize, j: usize| {
            let boxes = wanted.boxes[i].iter().zip(&found.boxes[j]).all(|(a, b)| (a - b).abs() < 0.05);
            let masks = wanted.masks.get(i).zip(found.masks.get(j)).is_none_or(|(a, b)| {
                a.paste == b.paste && a.values.iter().zip(&b.values).all(|(a, b)| (a - b).abs() < 1e-3)
            });
            let score = (wanted.scores[i] - found.scores[j]).abs() < 1e-4;
            wanted.labels[i] == found.labels[j] && score && boxes && masks
        };
        let lengths = [wanted, found].map(|seen| (seen.boxes.len(), seen.masks.len()));
        let count = wanted.boxes.len();
        lengths[0] == lengths[1] && (0..count).all(|i| (0..count).any(|j| same(i, j)))
    }

    /// With the feature `onnx` and its runtime's library (`ORT_DYLIB_PATH`). Without, it is only seen that what the
    /// detector gives is what the file promises.
    #[test]
    fn a_file_detects_what_its_weights_detect() {
        let runs = cfg!(feature = "onnx") && std::env::var_os("ORT_DYLIB_PATH").is_some();
        if !runs {
            crate::console::warn("detections are not compared: no ORT_DYLIB_PATH, or no feature onnx");
        }
        let folder = tempfile::tempdir().unwrap();
        let image = |seed: u32| {
            image::RgbImage::from_fn(96, 64, |x, y| {
                let wave = |rate: u32| (128.0 + 120.0 * ((x * rate + y * (seed + 3)) as f32 * 0.11).sin()) as u8;
                image::Rgb([wave(1), wave(seed + 2), wave(5)])
            })
        };
        let images = [image(0), image(7)];
        for (kind, backbone) in SMALL {
            let path = weights(kind, backbone, folder.path());
            let predictor = Predictor::open(&path, &PredictorOptions::default()).unwrap();
            let wanted = predictor.detect(&images).unwrap();
            let most = predictor.config().model.test.max_detections as usize;
            assert!(wanted.iter().all(|seen| seen.boxes.len() == most), "{backbone} fills the rows of its output");
            let any = Options::default();
            for options in [any, Options { size: Some((64, 96)), batch: Some(2), ..any }] {
                let (path, model) = written(&predictor, options, folder.path());
                let scores = model.graph.as_ref().unwrap().output.iter().find(|o| o.name.as_deref() == Some("scores"));
                let shape = scores.unwrap().r#type.as_ref().unwrap().tensor_type.as_ref().unwrap().shape.as_ref();
                assert_eq!(shape.unwrap().dim[1].dim_value, Some(most as i64));
                if !runs {
                    continue;
                }
                let exported = Predictor::open(&path, &PredictorOptions::default()).unwrap();
                let found = exported.detect(&images).unwrap();
                for (wanted, found) in wanted.iter().zip(&found) {
                    assert!(are_same(wanted, found), "{backbone} {options:?}: {found:?}, not {wanted:?}");
                }
            }
        }
    }

    #[test]
    fn every_weight_is_a_constant_of_the_graph() {
        let folder = tempfile::tempdir().unwrap();
        for (kind, backbone) in [SMALL[0], SMALL[1], SMALL[2], (DetectorKind::MaskRcnn, "swin_t")] {
            let path = weights(kind, backbone, folder.path());
            let checkpoint = Checkpoint::open(&path).unwrap();
            let variables: HashMap<String, Tensor> = checkpoint
                .file()
                .names()
                .unwrap()
                .into_iter()
                .map(|name| (name.clone(), checkpoint.file().tensor(&name).unwrap()))
                .collect();
            let predictor = Predictor::new(&checkpoint, &PredictorOptions::default()).unwrap();
            let size = Some((64, 96));
            let (_, model) = written(&predictor, Options { size, batch: Some(1), ..Options::default() }, folder.path());
            let constants = model.graph.unwrap().initializer;
            let known: Vec<Vec<f32>> = constants.iter().map(|tensor| sorted(values(tensor))).collect();
            for (name, variable) in &variables {
                let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
                // A convolution, and the norm behind it.
                let norm = norm_of(stem, &variables);
                let is_norm = variables.contains_key(&format!("{stem}.running_var"));
                // Resized, or read by index: other numbers.
                if is_norm || name.ends_with("pos_embed") || name.ends_with("relative_position_bias_table") {
                    continue;
                }
                let expected = match norm {
                    Some(norm) => {
                        let of = |part: &str| &variables[&format!("{norm}.{part}")];
                        let scale = of("weight") / (of("running_var") + 1e-5).sqrt();
                        match name.ends_with("weight") {
                            true => variable * scale.view([-1, 1, 1, 1]),
                            false => variable * &scale + of("bias") - of("running_mean") * &scale,
                        }
                    }
                    None => variable.shallow_clone(),
                };
                let expected = sorted(Vec::try_from(expected.flatten(0, -1)).unwrap());
                let near = |known: &&Vec<f32>| {
                    known.len() == expected.len()
                        && known.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()))
                };
                assert!(known.iter().any(|known| near(&known)), "{name} is not in the graph");
            }
        }
    }

    /// The norm of a convolution at `stem`, by the names of published state dicts.
    fn norm_of(stem: &str, variables: &HashMap<String, Tensor>) -> Option<String> {
        let (path, last) = stem.rsplit_once('.')?;
        let norm = match last {
            "pw1" => "norm1".into(),
            "dw" => "norm2".into(),
            "pw2" => "norm3".into(),
            number => (number.parse::<usize>().ok()? + 1).to_string(),
        };
        let norm = format!("{path}.{norm}");
        variables.contains_key(&format!("{norm}.running_var")).then_some(norm)
    }

    fn values(tensor: &TensorProto) -> Vec<f32> {
        if tensor.data_type != Some(Kind::Float.data_type()) {
            return Vec::new();
        }
        let raw = tensor.raw_data.as_ref().unwrap();
        raw.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    /// The values in order of size: whatever the layout.
    fn sorted(mut values: Vec<f32>) -> Vec<f32> {
        values.sort_by(f32::total_cmp);
        values
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = weights(DetectorKind::Retinanet, "pvig_ti", folder.path());
        let predictor = Predictor::open(&path, &PredictorOptions::default()).unwrap();
        let failed = |graph| detector(&predictor, &ExportOptions { graph, ..ExportOptions::default() }).unwrap_err();
        let any = Options::default();
        assert!(failed(Options { size: Some((16, 96)), ..any }).to_string().contains("too small"));
        assert!(failed(Options { batch: Some(0), ..any }).to_string().contains("at least one"));
        assert!(failed(Options { neighbours_as_inputs: true, ..any }).to_string().contains("one size"));
    }
}
