//! A detector on a split: detections in COCO's format, and their scores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, Context, Result};
use serde_json::{Map, Value};
use tch::Device;
use vigdet_coco::eval::{evaluate, IouType, Params, STAT_NAMES};
use vigdet_coco::types::{Detection, Segmentation};

use super::run_dir::write_text;
use crate::config::DataConfig;
use crate::data::{CocoDataset, ImageInfo, Loader, LoaderOptions};
use crate::detect::{Detections, Detector};

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// COCO's twelve numbers, in the order of [`STAT_NAMES`]; −1 where there is nothing to score.
    pub stats: [f64; 12],
    /// pycocotools' twelve lines.
    pub lines: String,
}

impl Scores {
    /// AP: the mean over classes and IoU thresholds 0.50 to 0.95.
    pub fn ap(&self) -> f64 {
        self.stats[0]
    }

    /// `{"AP": …, "AP50": …, …}`.
    pub fn to_json(&self) -> Value {
        let entries = STAT_NAMES.iter().zip(self.stats).map(|(name, value)| (name.to_string(), value.into()));
        Value::Object(entries.collect::<Map<_, _>>())
    }
}

/// What an evaluation found: of boxes, and of masks from a detector that gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Box scores.
    pub boxes: Scores,
    /// Mask scores.
    pub masks: Option<Scores>,
}

impl Evaluation {
    /// `(bbox, scores)` and, with masks, `(segm, scores)`.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Scores)> {
        std::iter::once(("bbox", &self.boxes)).chain(self.masks.iter().map(|scores| ("segm", scores)))
    }

    /// `{"bbox": {"AP": …}, "segm": …}`.
    pub fn to_json(&self) -> Map<String, Value> {
        self.named().map(|(name, scores)| (name.to_string(), scores.to_json())).collect()
    }

    /// Tags and values for TensorBoard: `bbox/AP`, …
    pub fn scalars(&self) -> Vec<(String, f64)> {
        self.named()
            .flat_map(|(kind, scores)| {
                STAT_NAMES
                    .iter()
                    .zip(scores.stats)
                    .map(move |(name, value)| (format!("{kind}/{name}"), value))
            })
            .collect()
    }

    /// pycocotools' twelve lines, with a title each where there are masks too.
    pub fn lines(&self) -> String {
        match self.masks {
            None => self.boxes.lines.clone(),
            Some(_) => {
                self.named().map(|(name, scores)| format!("{name}:\n{}\n", scores.lines.trim_end())).collect()
            }
        }
    }

    /// `AP 0.412, AP50 0.633`, and the same of masks.
    pub fn summary(&self) -> String {
        let of = |s: &Scores| format!("AP {:.3}, AP50 {:.3}", s.stats[0], s.stats[1]);
        match &self.masks {
            None => of(&self.boxes),
            Some(masks) => format!("box {}; mask {}", of(&self.boxes), of(masks)),
        }
    }
}

/// Runs detectors on one split and scores what they see.
#[derive(Debug)]
pub struct Evaluator {
    dataset: Arc<CocoDataset>,
    loader: Loader,
    /// Category id of each label of the detector; `None`: the split has no such class.
    categories: Vec<Option<i64>>,
}

impl Evaluator {
    /// `classes`: (category id, name) of each label of the detector. `batch_size`: images that go through it at once.
    ///
    /// A class of the detector is the split's category of the same name, or else of the same id.
    ///
    /// # Errors
    /// If the split has none of the classes.
    pub fn new(
        dataset: Arc<CocoDataset>,
        config: &DataConfig,
        batch_size: usize,
        classes: &[(i64, String)],
    ) -> Result<Self> {
        let own = dataset.classes();
        let categories: Vec<Option<i64>> = classes
            .iter()
            .map(|(id, name)| {
                let named = own.iter().find(|class| class.name == *name && !name.is_empty());
                named
                    .or_else(|| own.iter().find(|class| class.id == *id && class.name.is_empty()))
                    .map(|c| c.id)
            })
            .collect();
        if categories.iter().all(Option::is_none) {
            let names = |names: Vec<&str>| names.into_iter().take(4).collect::<Vec<_>>().join(", ");
            bail!(
                "the detector's classes ({}, …) are none of those of the data ({}, …)",
                names(classes.iter().map(|c| c.1.as_str()).collect()),
                names(own.iter().map(|c| c.name.as_str()).collect())
            );
        }
        let options = LoaderOptions { batch_size, train: false, seed: 0 };
        let loader = Loader::new(dataset.clone(), config, options)?;
        Ok(Self { dataset, loader, categories })
    }

    /// Names of the detector's classes that the split does not have: what is detected of them counts for nothing.
    pub fn classes_without_category(&self) -> usize {
        self.categories.iter().filter(|c| c.is_none()).count()
    }

    /// Everything the detector sees. `progress` hears how many of how many images are done, and ends the work with `false`:
    /// then there is no result.
    pub fn detect(
        &self,
        detector: &dyn Detector,
        device: Device,
        mut progress: impl FnMut(usize, usize) -> bool,
    ) -> Result<Option<Vec<Detection>>> {
        let (mut all, mut done) = (Vec::new(), 0);
        for batch in self.loader.epoch(0, 0) {
            let mut batch = batch?;
            batch.images = batch.images.to_device(device);
            let found = detector.detect(&batch)?;
            for (info, found) in batch.infos.iter().zip(&found) {
                all.extend(self.to_coco(info, found));
            }
            done += batch.len();
            if !progress(done, self.dataset.len()) {
                return Ok(None);
            }
        }
        Ok(Some(all))
    }

    /// Images that could not be read, and why.
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.loader.skipped()
    }

    /// COCO's scores of detections on this split; of their masks too if they have any.
    pub fn score(&self, detections: &[Detection], masks: bool) -> Result<Evaluation> {
        let of = |kind: IouType| -> Result<Scores> {
            let summary =
                evaluate(self.dataset.ground_truth(), detections, kind, &Params::default())?.summary();
            Ok(Scores { stats: summary.stats, lines: summary.to_string() })
        };
        Ok(Evaluation { boxes: of(IouType::Bbox)?, masks: masks.then(|| of(IouType::Segm)).transpose()? })
    }

    /// Writes detections into a folder: boxes into bbox.json and, if they have any, masks into segm.json, without boxes: pycocotools would take
    /// its areas from those. Gives the files.
    pub fn write_results(
        &self,
        folder: &Path,
        detections: &[Detection],
        masks: bool,
    ) -> Result<Vec<PathBuf>> {
        let write = |name: &str, part: Vec<Detection>| -> Result<PathBuf> {
            let path = folder.join(name);
            vigdet_coco::write_results(&path, &part)
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        let boxes = detections.iter().map(|d| Detection { segmentation: None, ..*d }).collect();
        let mut files = vec![write("bbox.json", boxes)?];
        if masks {
            files.push(write(
                "segm.json",
                detections.iter().map(|d| Detection { bbox: None, ..d.clone() }).collect(),
            )?);
        }
        Ok(files)
    }

    /// Writes which annotations detections on this split belong to: the annotation file, or a copy of the part that is used.
    pub fn write_ground_truth(&self, annotations: &Path, whole: bool, folder: &Path) -> Result<()> {
        let mut path = std::fs::canonicalize(annotations).unwrap_or_else(|_| annotations.to_path_buf());
        if !whole {
            path = folder.join("ground_truth_used.json");
            vigdet_coco::write_dataset(&path, self.dataset.ground_truth())
                .with_context(|| format!("cannot write {}", path.display()))?;
            path = std::fs::canonicalize(&path).unwrap_or(path);
        }
        let text = serde_json::to_string_pretty(&serde_json::json!({ "annotations": path }))? + "\n";
        write_text(&folder.join("ground_truth.json"), &text)
    }

    fn to_coco<'a>(
        &'a self,
        info: &'a ImageInfo,
        found: &'a Detections,
    ) -> impl Iterator<Item = Detection> + 'a {
        found.boxes.iter().zip(&found.scores).zip(&found.labels).enumerate().filter_map(
            move |(i, ((corners, score), label))| {
                let category_id = self.categories.get(usize::try_from(*label).ok()?).copied().flatten()?;
                let [x1, y1, x2, y2] = corners.map(f64::from);
                Some(Detection {
                    image_id: info.id,
                    category_id,
                    bbox: Some([x1, y1, x2 - x1, y2 - y1].map(thousandths)),
                    score: shortest(*score),
                    segmentation: found.mask(i, info.height, info.width).map(Segmentation::Rle),
                })
            },
        )
    }
}

/// Pixels to a thousandth: what is written is what is scored, and files stay half as long.
fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The float64 of fewest digits that is this float32.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
