//! A detector on a split: detections in COCO's format, and their scores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, Result};
use serde_json::{Map, Value};
use tch::Device;
use vigdet_coco::eval::{evaluate, IouType, Params, Warning, STAT_NAMES};
use vigdet_coco::output::Outputs;
use vigdet_coco::parse_results;
use vigdet_coco::types::{Detection, Segmentation};

use crate::classes::{list, Class, Classes};
use crate::config::DataConfig;
use crate::data::{DetectionDataset, ImageInfo, Loader, LoaderOptions};
use crate::detect::{Detections, Detector};
use crate::nn::precision::{autocast, InferencePrecision};
use crate::ranks::Ranks;
use crate::runs::{write_text, RunDir};

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
    /// Where COCO's rules surprise.
    pub warnings: Vec<Warning>,
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
                STAT_NAMES.iter().zip(scores.stats).map(move |(name, value)| (format!("{kind}/{name}"), value))
            })
            .collect()
    }

    /// pycocotools' twelve lines, with a title each where there are masks too.
    pub fn lines(&self) -> String {
        match self.masks {
            None => self.boxes.lines.clone(),
            Some(_) => self.named().map(|(name, scores)| format!("{name}:\n{}\n", scores.lines.trim_end())).collect(),
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

/// Detections on a split in COCO's format: what is scored is what is written, and the other way round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// Boxes, for bbox.json.
    pub boxes: Vec<Detection>,
    /// From a detector that gives them, the masks of the same detections, for segm.json: without boxes, since
    /// pycocotools would take its areas from those.
    pub masks: Option<Vec<Detection>>,
}

impl Results {
    /// How many boxes and masks there are.
    fn counts(&self) -> [usize; 2] {
        [self.boxes.len(), self.masks.as_ref().map_or(0, Vec::len)]
    }
}

/// Runs detectors on one split and scores what they see.
#[derive(Debug)]
pub struct Evaluator {
    dataset: Arc<DetectionDataset>,
    loader: Loader,
    /// Category id of each label of the detector; `None`: the split has no such class.
    categories: Vec<Option<i64>>,
    /// What people should know of classes that only one side has.
    notes: Vec<String>,
    precision: InferencePrecision,
}

impl Evaluator {
    /// `classes`: those of the detector's labels. `masks`: whether it gives masks. `batch_size`: images that go
    /// through it at once.
    ///
    /// A class of the detector is the split's category that [`Classes::find`] finds for it.
    ///
    /// # Errors
    /// If the split has none of the classes, or no masks for a detector that gives them.
    pub fn new(
        dataset: Arc<DetectionDataset>,
        config: &DataConfig,
        batch_size: usize,
        classes: &Classes,
        masks: bool,
        precision: InferencePrecision,
    ) -> Result<Self> {
        let own = dataset.classes();
        let found: Vec<Option<&Class>> = classes.iter().map(|class| Some(&own[own.find(class)?])).collect();
        if found.iter().all(Option::is_none) {
            bail!(
                "the detector's classes ({}) are none of those of the data ({})",
                list(classes.names()),
                list(own.names())
            );
        }
        if masks {
            dataset.check_masks()?;
        }
        let unknown: Vec<&Class> = own.iter().filter(|class| !found.contains(&Some(class))).collect();
        let unknown: Vec<String> = unknown
            .into_iter()
            .map(|class| (class, dataset.objects_of(class.id)))
            .filter(|(_, objects)| *objects > 0)
            .map(|(class, objects)| format!("{} ({objects} objects)", class.name))
            .collect();
        let mut notes = Vec::new();
        if !unknown.is_empty() {
            notes.push(format!(
                "the detector does not know {} of its classes, which it cannot find and which lower AP: {}",
                unknown.len(),
                list(unknown)
            ));
        }
        let absent = classes.iter().zip(&found).filter(|(class, found)| found.is_none() && !class.name.is_empty());
        let absent: Vec<&str> = absent.map(|(class, _)| class.name.as_str()).collect();
        if !absent.is_empty() {
            notes.push(format!(
                "{} classes of the detector are not in it, and what is seen of them does not count: {}",
                absent.len(),
                list(absent)
            ));
        }
        let categories = found.into_iter().map(|class| Some(class?.id)).collect();
        let options = LoaderOptions { batch_size, train: false, seed: 0 };
        let loader = Loader::new(dataset.clone(), config, options)?;
        Ok(Self { dataset, loader, categories, notes, precision })
    }

    /// What people should know of classes that only the detector or only the split has, each a line.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Everything the detector sees, of which each rank sees its share of the batches; rank 0 has the result, in the
    /// order of the batches. `progress` hears how many of how many images are done, and ends the work with `false` on
    /// any rank: then there is no result.
    ///
    /// # Errors
    /// Images or a network that fail; a rank that is gone.
    pub fn detect(
        &self,
        detector: &dyn Detector,
        device: Device,
        ranks: &Ranks,
        mut progress: impl FnMut(usize, usize) -> bool,
    ) -> Result<Option<Results>> {
        let masks = detector.has_masks().then(Vec::new);
        let (mut all, mut done, mut stopped) = (Results { masks, ..Results::default() }, 0, false);
        let mut own = Vec::new();
        let mut batches = self.loader.epoch_where(0, 0, false, |number| ranks.takes(number));
        while let Some(batch) = batches.next() {
            let mut batch = batch?;
            let before = all.counts();
            batch.images = batch.images.to_device(device);
            let found = autocast(self.precision.is_mixed(device), device, || detector.detect(&batch))?;
            for (info, found) in batch.infos.iter().zip(&found) {
                self.to_coco(info, found, &mut all);
            }
            let now = all.counts();
            own.push((batches.number(), [now[0] - before[0], now[1] - before[1]]));
            done += batch.len();
            stopped = !progress(done * ranks.size(), self.dataset.len());
            if stopped {
                break;
            }
        }
        let mut stops = [f64::from(u8::from(stopped))];
        ranks.sum(&mut stops)?;
        match stops[0] > 0.0 {
            true => Ok(None),
            false => gathered(ranks, &own, all),
        }
    }

    /// Images that could not be read, and why.
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.loader.skipped()
    }

    /// Images seen so far whose size is not the annotated one, and what that means.
    pub fn resized(&self) -> Vec<(String, String)> {
        self.loader.resized()
    }

    /// COCO's scores of results on this split.
    pub fn score(&self, results: &Results) -> Result<Evaluation> {
        let mut warnings: Vec<Warning> = Vec::new();
        let mut of = |detections: &[Detection], kind: IouType| -> Result<Scores> {
            let found = evaluate(self.dataset.ground_truth(), detections, kind, &Params::default())?;
            warnings.extend(found.warnings.iter().filter(|w| !warnings.contains(w)).cloned().collect::<Vec<_>>());
            let summary = found.summary();
            Ok(Scores { stats: summary.stats, lines: summary.to_string() })
        };
        let boxes = of(&results.boxes, IouType::Bbox)?;
        let masks = results.masks.as_ref().map(|masks| of(masks, IouType::Segm)).transpose()?;
        Ok(Evaluation { boxes, masks, warnings })
    }

    /// Writes results into a folder: bbox.json and, if there are masks, segm.json. Gives the files.
    pub fn write_results(&self, folder: &Path, results: &Results) -> Result<Vec<PathBuf>> {
        let run = RunDir::at(folder);
        let parts = [(run.detections(), Some(&results.boxes)), (run.masks(), results.masks.as_ref())];
        parts
            .into_iter()
            .filter_map(|(path, part)| Some((path, part?)))
            .map(|(path, part)| {
                // With a checksum in the folder's list.
                Outputs::default().replace(&path, |out| Ok(serde_json::to_writer(out, part)?))?;
                Ok(path)
            })
            .collect()
    }

    /// Writes which annotations detections on this split belong to: COCO's annotation file, or a copy of what is used
    /// where that is a part of it or comes from another layout.
    pub fn write_ground_truth(&self, whole: bool, folder: &Path) -> Result<()> {
        let path = match self.dataset.source().filter(|_| whole) {
            Some(annotations) => annotations.to_path_buf(),
            None => {
                let path = RunDir::at(folder).used_ground_truth();
                let truth = self.dataset.ground_truth();
                Outputs::default().replace(&path, |out| Ok(serde_json::to_writer(out, truth)?))?;
                path
            }
        };
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        let text = serde_json::to_string_pretty(&serde_json::json!({ "annotations": path }))? + "\n";
        write_text(&RunDir::at(folder).ground_truth(), &text)
    }

    fn to_coco(&self, info: &ImageInfo, found: &Detections, out: &mut Results) {
        for (i, ((corners, score), label)) in found.boxes.iter().zip(&found.scores).zip(&found.labels).enumerate() {
            let Ok(label) = usize::try_from(*label) else { continue };
            let Some(category_id) = self.categories.get(label).copied().flatten() else { continue };
            let [x1, y1, x2, y2] = corners.map(f64::from);
            let bare = Detection { image_id: info.id, category_id, score: shortest(*score), ..Detection::default() };
            let mask = found.mask(i, info.height, info.width).map(Segmentation::Rle);
            if let (Some(masks), Some(mask)) = (&mut out.masks, mask) {
                masks.push(Detection { segmentation: Some(mask), ..bare });
            }
            let bbox = Some([x1, y1, x2 - x1, y2 - y1].map(thousandths));
            out.boxes.push(Detection { bbox, ..bare });
        }
    }
}

/// The results of all ranks, on rank 0, in the order of the batches. `own`: the numbers of this rank's batches, and how
/// many boxes and masks each has.
fn gathered(ranks: &Ranks, own: &[(usize, [usize; 2])], results: Results) -> Result<Option<Results>> {
    if ranks.size() == 1 {
        return Ok(Some(results));
    }
    let counts = ranks.gather(own.to_vec())?;
    // Every rank has masks or none has.
    let mut parts = vec![ranks.gather_bytes(serde_json::to_vec(&results.boxes)?)?];
    if let Some(masks) = &results.masks {
        parts.push(ranks.gather_bytes(serde_json::to_vec(masks)?)?);
    }
    let Some(counts) = counts else { return Ok(None) };
    let in_order = |(kind, part): (usize, Option<Vec<Vec<u8>>>)| -> Result<Vec<Detection>> {
        let mut batches = Vec::new();
        for (bytes, counts) in part.iter().flatten().zip(&counts) {
            let mut detections = parse_results(bytes)?.into_iter();
            let mut take = |count: usize| detections.by_ref().take(count).collect();
            batches.extend(counts.iter().map(|(number, count)| (*number, take(count[kind]))));
        }
        batches.sort_by_key(|(number, _): &(usize, Vec<Detection>)| *number);
        Ok(batches.into_iter().flat_map(|(_, detections)| detections).collect())
    };
    let mut parts = parts.into_iter().enumerate().map(in_order);
    let boxes = parts.next().transpose()?.unwrap_or_default();
    Ok(Some(Results { boxes, masks: parts.next().transpose()? }))
}

/// Pixels to a thousandth: what is written is what is scored, and files stay half as long.
fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The float64 of fewest digits that is this float32.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::Pass;
    use crate::data::Batch;
    use crate::detect::Losses;
    use crate::nn::cost::{Layer, Size};
    use vigdet_coco::types::{Annotation, Category, Dataset, Image};

    const FLOAT32: InferencePrecision = InferencePrecision { trained: false, asked: None };

    /// Sees exactly what is annotated, under the labels of its own classes.
    struct Oracle {
        truth: Dataset,
        /// The category that each of its labels is in `truth`.
        categories: Vec<i64>,
    }

    impl Detector for Oracle {
        fn losses(&self, _: &Batch, _: &mut Pass) -> Result<Losses> {
            bail!("it does not learn")
        }

        fn detect(&self, batch: &Batch) -> Result<Vec<Detections>> {
            let of = |info: &ImageInfo| {
                let mut found = Detections::default();
                for a in self.truth.annotations.iter().filter(|a| a.image_id == info.id) {
                    let [x, y, w, h] = a.bbox.map(|v| v as f32);
                    found.boxes.push([x, y, x + w, y + h]);
                    found.scores.push(0.9);
                    let label = self.categories.iter().position(|id| *id == a.category_id).unwrap();
                    found.labels.push(label as i64);
                }
                found
            };
            Ok(batch.infos.iter().map(of).collect())
        }

        fn flops(&self, _: Size, _: &mut dyn FnMut(Layer)) {}
    }

    /// Two images with an object of each of two categories.
    fn truth(categories: [(i64, &str); 2]) -> (tempfile::TempDir, Dataset) {
        let folder = tempfile::tempdir().unwrap();
        let mut truth = Dataset::default();
        for (id, name) in categories {
            truth.categories.push(Category { id, name: name.into(), supercategory: None });
        }
        for image in 1..=2 {
            let file_name = format!("{image}.png");
            image::RgbImage::new(64, 48).save(folder.path().join(&file_name)).unwrap();
            truth.images.push(Image { id: image, file_name, width: 64, height: 48 });
            for (at, (category_id, _)) in categories.into_iter().enumerate() {
                let bbox = [4.0 + 30.0 * at as f64, 5.0, 20.0, 10.0 + image as f64];
                let id = truth.annotations.len() as i64 + 1;
                let area = bbox[2] * bbox[3];
                let annotation = Annotation { id, image_id: image, category_id, bbox, area, ..Annotation::default() };
                truth.annotations.push(annotation);
            }
        }
        (folder, truth)
    }

    /// What an oracle that has `classes` finds on `truth`, whose category each class stands for, and its box AP.
    fn evaluated(
        folder: &Path,
        truth: &Dataset,
        classes: &[(i64, &str)],
        categories: &[i64],
    ) -> (Vec<(i64, i64)>, f64) {
        let dataset = DetectionDataset::from_dataset(truth.clone(), folder.into(), None, false, false).unwrap();
        let classes: Classes = classes.iter().copied().collect();
        let config = DataConfig { size: [48, 64], workers: 1, ..DataConfig::default() };
        let evaluator = Evaluator::new(Arc::new(dataset), &config, 2, &classes, false, FLOAT32).unwrap();
        let oracle = Oracle { truth: truth.clone(), categories: categories.to_vec() };
        let results = evaluator.detect(&oracle, Device::Cpu, &Ranks::default(), |_, _| true).unwrap().unwrap();
        let ids = results.boxes.iter().map(|d| (d.image_id, d.category_id)).collect();
        (ids, evaluator.score(&results).unwrap().boxes.ap())
    }

    #[test]
    fn who_sees_what_is_annotated_scores_one_under_the_ids_of_the_file() {
        let expected = vec![(1, 3), (1, 7), (2, 3), (2, 7)];
        let (folder, file) = truth([(3, "dark"), (7, "bright")]);
        let same = evaluated(folder.path(), &file, &[(3, "dark"), (7, "bright")], &[3, 7]);
        assert_eq!(same, (expected.clone(), 1.0));
        // Another order and numbering: the names tell.
        let renumbered = evaluated(folder.path(), &file, &[(1, "bright"), (3, "cat"), (9, "dark")], &[7, 0, 3]);
        assert_eq!(renumbered, (expected.clone(), 1.0));
        // Two categories of one name: the ids tell.
        let (folder, file) = truth([(3, "bolt"), (7, "bolt")]);
        let twins = evaluated(folder.path(), &file, &[(3, "bolt"), (7, "bolt")], &[3, 7]);
        assert_eq!(twins, (expected.clone(), 1.0));
        // No names: the ids tell.
        let (folder, file) = truth([(3, ""), (7, "")]);
        assert_eq!(evaluated(folder.path(), &file, &[(3, "bolt"), (7, "")], &[3, 7]), (expected, 1.0));
    }

    #[test]
    fn scores_of_masks_are_those_of_the_results_that_are_written() {
        let triangle = |points: [f64; 6]| Some(Segmentation::Polygons(vec![points.to_vec()]));
        let (folder, mut truth) = truth([(3, "dark"), (7, "bright")]);
        // 800 pixels, small, in a box of 1600, which would be medium.
        let (seen, bbox) = (triangle([0.0, 0.0, 40.0, 0.0, 0.0, 40.0]), [0.0, 0.0, 40.0, 40.0]);
        let first = truth.annotations.swap_remove(0);
        truth.annotations = vec![Annotation { bbox, area: 800.0, segmentation: seen.clone(), ..first }];
        let dataset = DetectionDataset::from_dataset(truth.clone(), folder.path().into(), None, false, false).unwrap();
        let classes: Classes = [(3, "dark")].into_iter().collect();
        let evaluator = Evaluator::new(Arc::new(dataset), &DataConfig::default(), 1, &classes, true, FLOAT32).unwrap();
        // A false alarm as large comes first.
        let alarm = triangle([24.0, 8.0, 64.0, 8.0, 64.0, 48.0]);
        let boxes = [(0.9, [24.0, 8.0, 40.0, 40.0]), (0.5, bbox)].map(|(score, bbox)| Detection {
            image_id: 1,
            category_id: 3,
            bbox: Some(bbox),
            score,
            ..Detection::default()
        });
        let masks = [alarm, seen].into_iter().zip(&boxes);
        let masks = masks.map(|(segmentation, d)| Detection { segmentation, bbox: None, ..d.clone() }).collect();
        let results = Results { boxes: boxes.to_vec(), masks: Some(masks) };
        let scores = evaluator.score(&results).unwrap();
        assert_eq!(scores.warnings, []);
        let small = |kind: &str| scores.to_json()[kind]["APs"].as_f64().unwrap();
        assert!((small("segm") - 0.5).abs() < 1e-12, "one of two small masks is right: {}", small("segm"));
        assert!((small("bbox") - 1.0).abs() < 1e-12, "the false alarm's box is not small: {}", small("bbox"));

        let files = evaluator.write_results(folder.path(), &results).unwrap();
        for (file, (kind, scores)) in
            files.iter().zip([(IouType::Bbox, &scores.boxes), (IouType::Segm, scores.masks.as_ref().unwrap())])
        {
            let written = vigdet_coco::read_results(file).unwrap();
            let again = evaluate(&truth, &written, kind, &Params::default()).unwrap().summary();
            assert_eq!(again.stats, scores.stats, "{}", file.display());
        }
    }
}
