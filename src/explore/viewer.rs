//! A model whose graphs are looked at: weights and config from one file, images of any size.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{ensure, Result};
use image::RgbImage;
use tch::{Device, Tensor};

use super::patches::PatchGraph;
use crate::backbone::{self, Family, Pass};
use crate::config::{Config, DetectorKind};
use crate::data::resize::{output_size, resize_into, Normalise, Slot};
use crate::graph::GraphTrace;
use crate::weights::{backbone_config, load_classifier, Checkpoint, LoadedClassifier};

/// Most pixels of the network's input: far beyond what a picture can show, and the index of a patch stays a `u32`.
const MOST_PIXELS: u64 = 100_000_000;

/// What to open besides the model's name.
#[derive(Clone, Debug)]
pub struct ViewerOptions {
    /// Weights of a classifier, a backbone or a detector; `None`: random ones.
    pub weights: Option<PathBuf>,
    /// A config in place of the one in the weights' metadata: a file, or a preset's name, of a detector or of a
    /// classifier.
    pub config: Option<PathBuf>,
    /// Changes to the config, `key.path=value` (see [`crate::config::Experiment::from_json_with`]).
    pub changes: Vec<String>,
    /// Shorter side, and the most that the longer side may have, in pixels. `None`: a classifier takes the image as it
    /// is, a detector resizes it as its config says.
    pub size: Option<[u32; 2]>,
    /// What random weights are drawn from.
    pub seed: i64,
    /// Where the network runs.
    pub device: Device,
}

impl Default for ViewerOptions {
    fn default() -> Self {
        Self { weights: None, config: None, changes: Vec::new(), size: None, seed: 0, device: Device::Cpu }
    }
}

/// The graphs of all blocks of a model on one image.
#[derive(Clone, Debug)]
pub struct GraphView {
    /// The model's name; of a detector with its backbone.
    pub model: String,
    /// Where its weights are from.
    pub weights: String,
    /// The image's name, for titles.
    pub file: String,
    /// The image as it was given.
    pub image: RgbImage,
    /// (height, width) that the image has in the network's input, in pixels.
    pub seen: (u32, u32),
    /// (height, width) of the network's input in pixels: the image and, for a detector, padding at the right and at the
    /// bottom.
    pub input: (u32, u32),
    /// One for each block, in the order of the network.
    pub blocks: Vec<PatchGraph>,
    /// Seconds that the forward pass took, with what it keeps of the graphs: edges, their distances, features.
    pub seconds: f64,
}

impl GraphView {
    /// Pixels of the network's input per pixel of the image, (across, down).
    pub fn scale(&self) -> (f64, f64) {
        let (width, height) = self.image.dimensions();
        (f64::from(self.seen.1) / f64::from(width), f64::from(self.seen.0) / f64::from(height))
    }
}

/// A backbone with graphs, ready to show them.
#[derive(Debug)]
pub struct GraphViewer {
    model: LoadedClassifier,
    config: Config,
    name: String,
    weights: String,
    report: String,
    /// Whether images are prepared as for a detector.
    detector: bool,
    size: Option<[u32; 2]>,
    device: Device,
}

impl GraphViewer {
    /// Opens a model: a classifier with graphs (`vig_ti`, …, `adaptvig_b`), or the backbone of a detector (`retinanet`,
    /// `mask_rcnn`), whose config is in its weights' metadata unless the options name another. A classifier without one
    /// is prepared as the published ones are (see [`Config::of_published`]); a detector without weights is that of the
    /// paper's config.
    ///
    /// # Errors
    /// If there is no such model, it has no graph, or the weights cannot be read or are for another model.
    pub fn open(model: &str, options: &ViewerOptions) -> Result<Self> {
        let kind = DetectorKind::parse(model).ok();
        let weights = options.weights.as_deref().map(Checkpoint::open).transpose()?;
        let config = backbone_config(model, weights.as_ref(), options.config.as_deref(), &options.changes)?;
        let backbone = &config.model.backbone;
        ensure!(
            Family::of(&backbone.name).has_graphs(),
            "{} has no graph to look at: take vig_ti, vig_s, vig_b, pvig_ti, pvig_s, pvig_m, pvig_b, greedyvig_s, \
             greedyvig_m, greedyvig_b, adaptvig_s, adaptvig_m, adaptvig_b, or a detector on one of them",
            backbone.name
        );
        tch::manual_seed(options.seed);
        let mut loaded = load_classifier(backbone, weights.as_ref(), options.device)?;
        loaded.store.freeze();
        let name = kind.map_or_else(|| backbone.name.clone(), |kind| format!("{} on {}", kind.name(), backbone.name));
        let (weights, report) = match (&options.weights, &loaded.report) {
            (Some(path), Some(report)) => {
                let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
                (format!("weights {file}"), report.to_string())
            }
            _ => (
                format!("random weights (seed {}), not trained", options.seed),
                format!(
                    "no --weights: the weights of {} are random (seed {}); the graph is that of an untrained network",
                    backbone.name, options.seed
                ),
            ),
        };
        Ok(Self {
            model: loaded,
            name,
            weights,
            report,
            detector: kind.is_some(),
            size: options.size,
            device: options.device,
            config,
        })
    }

    /// What was loaded, or that the weights are random.
    pub fn report(&self) -> &str {
        &self.report
    }

    /// The config in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Number of blocks.
    ///
    /// # Errors
    /// If the config's blocks are none of the model's; then it could not be opened.
    pub fn blocks(&self) -> Result<usize> {
        Ok(self.stages()?.len())
    }

    /// Number of the stage of each block, from 1.
    fn stages(&self) -> Result<Vec<usize>> {
        let backbone = &self.config.model.backbone;
        let blocks = if backbone.name.starts_with("vig_") {
            backbone.stages(backbone::vig::isotropic::preset(&backbone.name))?.1.to_vec()
        } else {
            backbone.stages(backbone::stages(&backbone.name))?.1.to_vec()
        };
        Ok(blocks.iter().enumerate().flat_map(|(s, &count)| vec![s + 1; count.max(0) as usize]).collect())
    }

    /// The network's input, `[1, 3, H, W]`, for an image, and the (height, width) that the image has in it.
    fn input(&self, image: &RgbImage, file: &str) -> Result<(Tensor, (u32, u32))> {
        let (width, height) = image.dimensions();
        ensure!(width > 0 && height > 0, "{file} has no pixels");
        let data = &self.config.data;
        let size = self.size.or(self.detector.then(|| data.size_in_test()));
        let (w, h) = match size {
            Some([short, long]) => output_size(width, height, short.into(), long.into(), data.resize),
            None => (width, height),
        };
        let pad = if self.detector { data.pad } else { 1 };
        let padded = |side: u32| u64::from(side).next_multiple_of(pad.into());
        let (columns, rows) = (padded(w), padded(h));
        ensure!(
            u128::from(columns) * u128::from(rows) <= MOST_PIXELS.into(),
            "{file} would have {w}×{h} pixels in the network, more than the {} million that can be \
             drawn: name a smaller --size",
            MOST_PIXELS / 1_000_000
        );
        let (columns, rows) = (columns as u32, rows as u32);
        let mut pixels = vec![0.0; 3 * columns as usize * rows as usize];
        let normalise = Normalise::new(data.mean, data.std);
        let slot = Slot { data: &mut pixels, rows: rows as usize, columns: columns as usize };
        resize_into(image, (w, h), data.resize, &normalise, slot)?;
        let input = Tensor::from_slice(&pixels).view([1, 3, i64::from(rows), i64::from(columns)]);
        Ok((input.to_device(self.device), (h, w)))
    }

    /// Seconds of a plain forward pass of the backbone on an image, as for its features alone.
    pub fn forward_seconds(&self, image: &RgbImage, file: &str) -> Result<f64> {
        let (input, _) = self.input(image, file)?;
        let start = Instant::now();
        let maps = tch::no_grad(|| self.model.model.backbone().forward(&input, &mut Pass::inference()))?;
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
        drop(maps);
        Ok(start.elapsed().as_secs_f64())
    }

    /// Runs the backbone on an image and gives the graphs of all its blocks.
    pub fn view(&self, image: &RgbImage, file: &str) -> Result<GraphView> {
        let (input, seen) = self.input(image, file)?;
        let (_, _, rows, columns) = input.size4()?;
        let size = (rows as u32, columns as u32);
        let mut trace = GraphTrace::detailed();
        let start = Instant::now();
        let backbone = self.model.model.backbone();
        tch::no_grad(|| backbone.forward(&input, &mut Pass::inference().with_trace(&mut trace)))?;
        let seconds = start.elapsed().as_secs_f64();
        let graph = |((block, features), (i, stage)): ((_, _), (usize, usize))| {
            PatchGraph::new(block, features, (i + 1, stage), size, 0)
        };
        // The first of the features is what goes in.
        let blocks = trace.blocks.iter().zip(&trace.features[1..]).zip(self.stages()?.into_iter().enumerate());
        Ok(GraphView {
            model: self.name.clone(),
            weights: self.weights.clone(),
            file: file.to_string(),
            image: image.clone(),
            seen,
            input: size,
            blocks: blocks.map(graph).collect::<Result<_>>()?,
            seconds,
        })
    }
}
