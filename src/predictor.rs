//! A trained detector, ready for images: weights, config and class names from one file.
//!
//! This is the stable part of the library: its types and methods keep their meaning, and what is added breaks no
//! caller. For that its plain types can grow (`#[non_exhaustive]`): take [`PredictorOptions::default`] and set what is
//! to be different.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use image::RgbImage;
use serde::Serialize;
use tch::{nn, Device};
use vigdet_coco::rle::Rle;

use crate::classes::{Classes, COCO_OUTPUTS};
use crate::config::{Config, DataConfig, DetectorKind};
use crate::data::{self, ImageInfo};
use crate::detect::{self, classes_of_outputs, Detections, Detector};
use crate::nn::precision::{autocast, InferencePrecision};
use crate::weights::{Checkpoint, LoadOptions};

/// What to open besides the weights. The default takes everything from the weights' own metadata, on the CPU.
///
/// ```no_run
/// use vigdet::predictor::PredictorOptions;
///
/// let mut options = PredictorOptions::default();
/// options.device = vigdet::tch::Device::cuda_if_available();
/// options.changes = vec!["model.test.score=0.5".into()];
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PredictorOptions {
    /// The detector that is expected; another one in the config is an error.
    pub detector: Option<DetectorKind>,
    /// A config to use in place of the one in the weights' metadata: a file, or a preset's name.
    pub config: Option<PathBuf>,
    /// Changes to the config, `key.path=value` (see [`crate::config::Experiment::from_json_with`]).
    pub changes: Vec<String>,
    /// The classes of the labels, in place of those in the weights' metadata.
    pub classes: Option<Classes>,
    /// Where the network runs.
    pub device: Device,
    /// Whether in mixed precision; `None`: on CUDA as it was trained, on CPUs in float32.
    pub amp: Option<bool>,
}

impl Default for PredictorOptions {
    fn default() -> Self {
        Self { detector: None, config: None, changes: Vec::new(), classes: None, device: Device::Cpu, amp: None }
    }
}

/// What is seen on one image file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ImageDetections {
    /// The file, as it was named.
    pub file: String,
    /// Width of the image, in pixels.
    pub width: u32,
    /// Height of the image, in pixels.
    pub height: u32,
    /// Best first.
    pub detections: Vec<Found>,
}

/// One object seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Found {
    /// Id of its class in the annotations that the detector was trained on.
    pub category_id: i64,
    /// Name of its class.
    pub label: String,
    /// Between 0 and 1.
    pub score: f32,
    /// Left, top, width and height in pixels of the image.
    pub bbox: [f32; 4],
    /// Its mask, run-length-coded at the size of the image, from a detector that gives masks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Rle>,
}

/// A trained detector with the names of its classes.
pub struct Predictor {
    detector: Box<dyn Detector>,
    config: Config,
    classes: Classes,
    device: Device,
    /// (height, width) that images must fit into, of a model for one size.
    canvas: Option<(i64, i64)>,
    precision: InferencePrecision,
    // The detector's variables live as long as their store.
    _store: nn::VarStore,
}

impl Predictor {
    /// Reads weights: config and classes from the file's metadata, unless the options have others.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Predictor::new`].
    pub fn open(weights: &Path, options: &PredictorOptions) -> Result<Self> {
        if weights.extension().is_some_and(|extension| extension == "onnx") {
            return Self::open_onnx(weights, options).with_context(|| format!("cannot use {}", weights.display()));
        }
        Self::new(&Checkpoint::open(weights)?, options)
    }

    /// [`Predictor::open`] of weights that were read.
    ///
    /// # Errors
    /// If the file's metadata lack what the options do not give, or if a variable of the detector is missing in it or
    /// has another shape.
    pub fn new(weights: &Checkpoint, options: &PredictorOptions) -> Result<Self> {
        let config = weights.config_in_use(options.config.as_deref(), &options.changes)?;
        check_kind(&config, options, weights.path())?;
        let classes = match (&options.classes, weights.classes()) {
            (Some(classes), _) | (None, Some(classes)) => classes.clone(),
            // torchvision's own files of COCO.
            (None, None) if config.model.outputs == Some(COCO_OUTPUTS) => Classes::coco(),
            (None, None) => bail!(
                "{} does not name its classes: give a COCO annotation file that does with --classes",
                weights.path().display()
            ),
        };
        let classes = classes_of_outputs(&config.model, &classes)?;
        let mut store = nn::VarStore::new(options.device);
        let detector = detect::build(&store.root(), &config.model, classes.len() as i64)?;
        weights.load_into(&store, &LoadOptions { complete: true, ..LoadOptions::default() })?;
        store.freeze();
        let precision = InferencePrecision { trained: config.train.amp, asked: options.amp };
        Ok(Self { detector, config, classes, device: options.device, canvas: None, precision, _store: store })
    }

    /// Opens an ONNX file that `vigdet export` wrote.
    #[cfg(feature = "onnx")]
    fn open_onnx(path: &Path, options: &PredictorOptions) -> Result<Self> {
        use crate::config::Experiment;
        ensure!(options.config.is_none(), "it has its config inside: --config would change nothing");
        ensure!(path.exists(), "there is no such file");
        let (mut detector, config, classes) = detect::Exported::open(path)?;
        let own = Config::from_json_with(&config, &[])?;
        let mut config = Config::from_json_with(&config, &options.changes)?;
        check_kind(&config, options, path)?;
        let score = config.model.test.score;
        config.model.test.score = own.model.test.score;
        ensure!(config.model == own.model, "its model is fixed: change model values when it is exported");
        if score < own.model.test.score {
            crate::console::warn(&format!(
                "{} has no detections below its own score of {}",
                path.display(),
                own.model.test.score
            ));
        }
        config.model.test.score = score;
        detector.set_mask_head(&config.model.mask_head);
        let classes = match &options.classes {
            Some(classes) => classes_of_outputs(&config.model, classes)?,
            None => serde_json::from_str(&classes).context("the classes in it are not [[id, name], …]")?,
        };
        // The model normalises, and pads by itself to the size that it is made for.
        (config.data.mean, config.data.std) = ([0.0; 3], [1.0 / 255.0; 3]);
        let canvas = detector.size();
        config.data.pad = if canvas.is_some() { 1 } else { config.data.pad.next_multiple_of(32) };
        let store = nn::VarStore::new(Device::Cpu);
        let (detector, precision) = (Box::new(detector), InferencePrecision::default());
        Ok(Self { detector, config, classes, device: Device::Cpu, canvas, precision, _store: store })
    }

    #[cfg(not(feature = "onnx"))]
    fn open_onnx(_path: &Path, _options: &PredictorOptions) -> Result<Self> {
        bail!("this vigdet was built without ONNX Runtime: cargo build --features onnx")
    }

    /// The config in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The network.
    pub fn detector(&self) -> &dyn Detector {
        self.detector.as_ref()
    }

    /// The classes of the labels.
    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// Detections of one image as `detect --json` writes them.
    pub fn describe(&self, file: &Path, image: &RgbImage, found: &Detections) -> ImageDetections {
        let (height, width) = (image.height(), image.width());
        let detections =
            found.boxes.iter().zip(&found.scores).zip(&found.labels).enumerate().map(|(i, ((b, score), &label))| {
                Found {
                    category_id: usize::try_from(label)
                        .ok()
                        .and_then(|l| self.classes.get(l))
                        .map_or(label, |class| class.id),
                    label: self.classes.name(label),
                    score: *score,
                    bbox: [b[0], b[1], b[2] - b[0], b[3] - b[1]],
                    segmentation: found.mask(i, height, width),
                }
            });
        ImageDetections {
            file: file.display().to_string(),
            width: image.width(),
            height: image.height(),
            detections: detections.collect(),
        }
    }

    /// What is seen on images of any sizes, boxes in their own pixels, best first. All go through the network at once,
    /// padded to the largest.
    ///
    /// # Errors
    /// If there is no image or one without pixels, or libtorch fails, of lack of memory for example.
    pub fn detect(&self, images: &[RgbImage]) -> Result<Vec<Detections>> {
        let infos: Vec<ImageInfo> = images
            .iter()
            .enumerate()
            .map(|(i, image)| ImageInfo {
                id: i as i64,
                file: format!("image {i}"),
                width: image.width(),
                height: image.height(),
            })
            .collect();
        let Some(canvas) = self.canvas else { return self.detect_with(images, &infos, &self.config.data) };
        let mut all = Vec::with_capacity(images.len());
        for (image, info) in images.iter().zip(&infos) {
            let data = data::fitting(&self.config.data, image.dimensions(), canvas);
            all.extend(self.detect_with(std::slice::from_ref(image), std::slice::from_ref(info), &data)?);
        }
        Ok(all)
    }

    fn detect_with(&self, images: &[RgbImage], infos: &[ImageInfo], data: &DataConfig) -> Result<Vec<Detections>> {
        let mut batch = data::prepare(images, infos, data)?;
        batch.images = batch.images.to_device(self.device);
        let mixed = self.precision.is_mixed(self.device);
        let mut found = autocast(mixed, self.device, || self.detector.detect(&batch))?;
        // An exported model has a limit of its own, which may be lower.
        let least = self.config.model.test.score as f32;
        found.iter_mut().for_each(|found| found.keep_above(least));
        Ok(found)
    }
}

/// Refuses a config of another detector than the one that is expected.
fn check_kind(config: &Config, options: &PredictorOptions, path: &Path) -> Result<()> {
    let Some(expected) = options.detector else { return Ok(()) };
    ensure!(
        config.model.detector == expected,
        "{} is for {}, not {}",
        options.config.as_deref().unwrap_or(path).display(),
        config.model.detector.name(),
        expected.name()
    );
    Ok(())
}
