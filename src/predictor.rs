//! A trained detector, ready for images: weights, config and class names from one file.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Result};
use image::RgbImage;
use serde::Serialize;
use tch::{nn, Device};
use vigdet_coco::rle::Rle;

use crate::classes::{Classes, COCO_OUTPUTS};
use crate::config::{Config, DetectorKind};
use crate::data::{self, ImageInfo};
use crate::detect::{self, classes_of_outputs, Detections, Detector};
use crate::nn::precision::{autocast, InferencePrecision};
use crate::weights::{Checkpoint, LoadOptions};

/// What to open besides the weights. The default takes everything from the weights' own metadata, on the CPU.
#[derive(Clone, Debug)]
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
        Self::new(&Checkpoint::open(weights)?, options)
    }

    /// [`Predictor::open`] of weights that were read.
    ///
    /// # Errors
    /// If the file's metadata lack what the options do not give, or if a variable of the detector is missing in it or
    /// has another shape.
    pub fn new(weights: &Checkpoint, options: &PredictorOptions) -> Result<Self> {
        let config = weights.config_in_use(options.config.as_deref(), &options.changes)?;
        if let Some(expected) = options.detector {
            ensure!(
                config.model.detector == expected,
                "{} is for {}, not {}",
                options.config.as_deref().unwrap_or(weights.path()).display(),
                config.model.detector.name(),
                expected.name()
            );
        }
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
        Ok(Self { detector, config, classes, device: options.device, precision, _store: store })
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
        let mut batch = data::prepare(images, &infos, &self.config.data)?;
        batch.images = batch.images.to_device(self.device);
        autocast(self.precision.is_mixed(self.device), self.device, || self.detector.detect(&batch))
    }
}
