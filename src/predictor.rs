//! A trained detector, ready for images: weights, config and class names from one file.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use image::RgbImage;
use serde::Serialize;
use tch::{nn, Device};
use vigdet_coco::rle::Rle;

use crate::config::{Config, DetectorKind};
use crate::data::{self, ImageInfo};
use crate::detect::classes::{classes_of_outputs, coco_classes, COCO_OUTPUTS};
use crate::detect::{self, Detections, Detector};
use crate::weights::{self, LoadOptions};

/// What to open besides the weights. The default takes everything from the weights' own metadata, on the CPU.
#[derive(Clone, Debug)]
pub struct PredictorOptions {
    /// The detector that is expected; another one in the config is an error.
    pub detector: Option<DetectorKind>,
    /// A config to use in place of the one in the weights' metadata: a file, or a preset's name.
    pub config: Option<PathBuf>,
    /// Changes to the config, `key.path=value` (see [`Config::from_json_with`]).
    pub changes: Vec<String>,
    /// (category id, name) of each label, in place of those in the weights' metadata.
    pub classes: Option<Vec<(i64, String)>>,
    /// Where the network runs.
    pub device: Device,
}

impl Default for PredictorOptions {
    fn default() -> Self {
        Self { detector: None, config: None, changes: Vec::new(), classes: None, device: Device::Cpu }
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
    classes: Vec<(i64, String)>,
    device: Device,
    // The detector's variables live as long as their store.
    _store: nn::VarStore,
}

impl Predictor {
    /// Reads weights: config and classes from the file's metadata, unless the options have others.
    ///
    /// # Errors
    /// If the file is not there or no weights, if its metadata lack what the options do not give, or if a variable of the detector
    /// is missing in it or has another shape.
    pub fn open(weights: &Path, options: &PredictorOptions) -> Result<Self> {
        let metadata = weights::read_metadata(weights)?;
        let config = match (&options.config, metadata.get("config")) {
            (Some(path), _) => Config::load(path, &options.changes)?,
            (None, Some(text)) => Config::from_json_with(text, &options.changes)
                .with_context(|| format!("the config in {}", weights.display()))?,
            (None, None) => bail!(
                "{} does not say which config it was trained with: name it with --config ({})",
                weights.display(),
                Config::preset_names().collect::<Vec<_>>().join(", ")
            ),
        };
        if let Some(expected) = options.detector {
            ensure!(
                config.model.detector == expected,
                "{} is for {}, not {}",
                options.config.as_deref().unwrap_or(weights).display(),
                config.model.detector.name(),
                expected.name()
            );
        }
        let classes: Vec<(i64, String)> = match (&options.classes, metadata.get("classes")) {
            (Some(classes), _) => classes.clone(),
            (None, Some(text)) => serde_json::from_str(text)
                .with_context(|| format!("the classes in {} are not [[id, name], …]", weights.display()))?,
            // torchvision's own files of COCO.
            (None, None) if config.model.outputs == Some(COCO_OUTPUTS) => coco_classes(),
            (None, None) => bail!(
                "{} does not name its classes: give a COCO annotation file that does with --classes",
                weights.display()
            ),
        };
        let classes = classes_of_outputs(&config.model, classes)?;
        let mut store = nn::VarStore::new(options.device);
        let detector = detect::build(&store.root(), &config.model, classes.len() as i64)?;
        weights::load_into(&store, weights, &LoadOptions { complete: true, ..Default::default() })?;
        store.freeze();
        Ok(Self { detector, config, classes, device: options.device, _store: store })
    }

    /// The config in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The network.
    pub fn detector(&self) -> &dyn Detector {
        self.detector.as_ref()
    }

    /// (category id, name) of each label.
    pub fn classes(&self) -> &[(i64, String)] {
        &self.classes
    }

    /// The name of a label, or its number where it has none.
    pub fn name(&self, label: i64) -> String {
        let class = usize::try_from(label).ok().and_then(|label| self.classes.get(label));
        class.map(|(_, name)| name.clone()).filter(|name| !name.is_empty()).unwrap_or_else(|| format!("class {label}"))
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
                        .map_or(label, |class| class.0),
                    label: self.name(label),
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

    /// What is seen on images of any sizes, boxes in their own pixels, best first. All go through the network at once, padded to
    /// the largest.
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
        self.detector.detect(&batch)
    }
}
