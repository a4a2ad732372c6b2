//! All pictures of a run's folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use vigdet_coco::eval::{evaluate, IouType, Params};
use vigdet_coco::output::{Outputs, MANIFEST};
use vigdet_coco::rle::Rle;
use vigdet_coco::types::Detection;

use super::curves::curves;
use super::deliver::deliver;
use super::history::RunLog;
use super::judge::{best_threshold, judge, Judgement, Truth};
use super::sheet::{beside_truth, HIT};
use crate::config::{Config, Experiment};
use crate::data::mask::Mask;
use crate::data::DetectionDataset;
use crate::detect::Detections;
use crate::runs::RunDir;

/// Which pictures [`run`] makes.
#[derive(Clone, Debug)]
pub struct RunPictures {
    /// How many images to draw with their detections, spread evenly over the validation split, whatever is on them.
    pub images: usize,
    /// Lowest score drawn; `None`: where F1 over the whole split is largest.
    pub score: Option<f32>,
    /// Folder of the data, if it is no longer where the run's config says.
    pub data: Option<PathBuf>,
}

impl Default for RunPictures {
    fn default() -> Self {
        Self { images: 8, score: None, data: None }
    }
}

/// Score from which on detections are drawn when none of them hits anything.
const SCORE_WITHOUT_HITS: f32 = 0.3;

/// Draws a run's pictures into its folder `plots`: `curves.png` and `curves.svg` from log.jsonl, and, once there is a
/// bbox.json, `precision_recall.png`, of masks too where there is a segm.json, and `detections_ID.png` of some
/// validation images beside their ground truth, with masks where there are any. Gives the files written, in that order.
///
/// # Errors
/// If the folder holds no run, if the data is not where the config says, if none of the images can be read, or if a
/// file cannot be written.
pub fn run(run_dir: &Path, options: &RunPictures) -> Result<Vec<PathBuf>> {
    let run = RunDir::at(run_dir);
    let (plots, log) = (run.plots(), run.log());
    ensure!(log.is_file(), "{} is not the folder of a run: it has no log.jsonl", run_dir.display());
    // A log that cannot be read leaves no folder.
    RunLog::read(&log)?;
    std::fs::create_dir_all(&plots).with_context(|| format!("cannot make the folder {}", plots.display()))?;
    let outputs = Outputs::default();
    if run.config().exists() && !plots.join(MANIFEST).exists() {
        // Those of versions that kept no list.
        let files = std::fs::read_dir(&plots).into_iter().flatten().flatten();
        let files = files.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        files.map(|entry| entry.path()).try_for_each(|path| outputs.adopt(&path))?;
    }
    let mut written = deliver(&outputs, &plots, |folder| curves(&log, folder))?;
    if options.images > 0 && run.detections().is_file() {
        written.extend(deliver(&outputs, &plots, |folder| detections(&run, folder, options))?);
    }
    Ok(written)
}

fn detections(run: &RunDir, plots: &Path, options: &RunPictures) -> Result<Vec<PathBuf>> {
    let path = run.config();
    let config = Config::load(&path, &[])?.data;
    let root = options
        .data
        .clone()
        .or(config.root)
        .with_context(|| format!("{} does not name the folder of the data", path.display()))?;
    let dataset = DetectionDataset::open_with_exif(&config.val, &root, false, config.exif)?;
    if !config.links {
        dataset.check_links()?;
    }
    let boxes = read_results(&run.detections())?;
    let masks = if run.masks().is_file() { read_results(&run.masks())? } else { Vec::new() };
    let mut written = Vec::new();
    for (found, kind, name) in
        [(&boxes, IouType::Bbox, "precision_recall.png"), (&masks, IouType::Segm, "precision_recall_masks.png")]
    {
        if !found.is_empty() {
            let path = plots.join(name);
            let evaluation = evaluate(dataset.ground_truth(), found, kind, &Params::default())?;
            vigdet_coco::plot::precision_recall(&path, &evaluation)?;
            written.push(path);
        }
    }
    let (found, masks) = by_image(boxes, masks, &dataset);
    let truths: Vec<Vec<Truth>> = (0..dataset.len()).map(|i| truths(&dataset, i)).collect();
    let judged: Vec<Judgement> = found.iter().zip(&truths).map(|(f, t)| judge(f, t, HIT)).collect();
    let all = found.iter().zip(&truths).zip(&judged).map(|((f, t), j)| (f, t.as_slice(), j));
    let score = options.score.or_else(|| best_threshold(all).map(|(score, _)| score)).unwrap_or(SCORE_WITHOUT_HITS);

    let before = written.len();
    let mut unreadable = Ok(());
    for i in spread(dataset.len(), options.images) {
        let info = dataset.info(i);
        let image = match dataset.sample(i, config.exif) {
            Ok(sample) => sample.image,
            Err(error) => {
                unreadable = Err(error);
                continue;
            }
        };
        let picture = beside_truth(&image, &info.file, &truths[i], &found[i], &masks[i], dataset.classes(), score)?;
        let path = plots.join(format!("detections_{}.png", info.id));
        picture.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
    }
    if written.len() == before {
        unreadable?;
    }
    Ok(written)
}

fn read_results(path: &Path) -> Result<Vec<Detection>> {
    vigdet_coco::read_results(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Detections of each image of the data set, in its order, and their masks. The files of boxes and of masks hold the
/// same detections in the same order; if they do not, they are of different evaluations, and the masks are left out.
fn by_image(
    boxes: Vec<Detection>,
    masks: Vec<Detection>,
    dataset: &DetectionDataset,
) -> (Vec<Detections>, Vec<Vec<Option<Rle>>>) {
    let same =
        |(a, b): (&Detection, &Detection)| (a.image_id, a.category_id, a.score) == (b.image_id, b.category_id, b.score);
    let paired = boxes.len() == masks.len() && boxes.iter().zip(&masks).all(same);
    let index: HashMap<i64, usize> = (0..dataset.len()).map(|i| (dataset.info(i).id, i)).collect();
    let mut found = vec![Detections::default(); dataset.len()];
    let mut of_image = vec![Vec::new(); dataset.len()];
    let mut masks = masks.into_iter();
    for detection in boxes {
        let mask = masks.next().filter(|_| paired).and_then(|m| m.segmentation);
        let known = (index.get(&detection.image_id), dataset.label(detection.category_id), detection.bbox);
        let (Some(&i), Some(label), Some([x, y, w, h])) = known else { continue };
        found[i].boxes.push([x, y, x + w, y + h].map(|v| v as f32));
        found[i].scores.push(detection.score as f32);
        found[i].labels.push(label);
        let info = dataset.info(i);
        of_image[i].push(mask.and_then(|m| m.to_rle(info.height, info.width).ok()));
    }
    (found, of_image)
}

fn truths(dataset: &DetectionDataset, i: usize) -> Vec<Truth> {
    let info = dataset.info(i);
    let target = dataset.target(i, info.width, info.height);
    let truth = |o: usize| Truth {
        bbox: target.boxes[o],
        label: target.labels[o],
        crowd: target.crowd[o],
        mask: target.masks[o].as_ref().and_then(Mask::annotated),
    };
    (0..target.boxes.len()).map(truth).collect()
}

/// `count` of `len` indices, evenly spread; all of them if there are not more.
fn spread(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(len);
    (0..count).map(move |i| i * len / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ShapesConfig;
    use vigdet_coco::types::Segmentation;

    /// A run whose detections are the objects of a small set of shapes, moved by a pixel, with and without their masks.
    fn make_run(folder: &Path, masks: bool) -> PathBuf {
        let root = folder.join("data");
        let shapes = ShapesConfig { train: 1, val: 4, side: 96, seed: 3 };
        crate::data::shapes::ensure(&root, &shapes).unwrap();
        let run = folder.join("run");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::write(run.join("log.jsonl"), "{\"iter\":1,\"loss\":2.0,\"lr\":0.1}\n").unwrap();
        let changes = [format!("data.root={}", serde_json::json!(root))];
        let config = Config::preset("mask_rcnn_pvig_ti_shapes", &changes).unwrap();
        std::fs::write(run.join("config.json"), config.to_json().unwrap()).unwrap();
        let dataset = DetectionDataset::open(&config.data.val, &root, false).unwrap();
        let truth = dataset.ground_truth();
        let of = |a: &vigdet_coco::types::Annotation| Detection {
            image_id: a.image_id,
            category_id: a.category_id,
            bbox: Some([a.bbox[0] + 1.0, a.bbox[1], a.bbox[2], a.bbox[3]]),
            score: 0.9,
            segmentation: a.segmentation.as_ref().map(|s| {
                let image = truth.images.iter().find(|image| image.id == a.image_id).unwrap();
                Segmentation::Rle(s.to_rle(image.height, image.width).unwrap())
            }),
        };
        let found: Vec<Detection> = truth.annotations.iter().filter(|a| !a.iscrowd).map(of).collect();
        let boxes: Vec<Detection> = found.iter().map(|d| Detection { segmentation: None, ..d.clone() }).collect();
        vigdet_coco::write_results(run.join("bbox.json"), &boxes).unwrap();
        if masks {
            let masks: Vec<Detection> = found.into_iter().map(|d| Detection { bbox: None, ..d }).collect();
            vigdet_coco::write_results(run.join("segm.json"), &masks).unwrap();
        }
        run
    }

    #[test]
    fn a_run_with_masks_has_their_curves_and_draws_them() {
        let folder = tempfile::tempdir().unwrap();
        let options = RunPictures { images: 2, ..RunPictures::default() };
        let with = run(&make_run(folder.path(), true), &options).unwrap();
        let names: Vec<String> = with.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names[..4], ["curves.png", "curves.svg", "precision_recall.png", "precision_recall_masks.png"]);
        assert!(names.len() == 6 && names[4..].iter().all(|n| n.starts_with("detections_")), "{names:?}");
        assert_eq!(image::open(&with[3]).unwrap().height(), image::open(&with[2]).unwrap().height());
        // The half with what was detected: without masks less is coloured.
        let sheet = image::open(&with[4]).unwrap().into_rgb8();
        let without = tempfile::tempdir().unwrap();
        let plain = run(&make_run(without.path(), false), &options).unwrap();
        assert_eq!(plain.len(), 5);
        let plain = image::open(&plain[3]).unwrap().into_rgb8();
        assert_eq!(sheet.dimensions(), plain.dimensions());
        let middle = sheet.width() / 2;
        let changed = |side: &dyn Fn(u32) -> bool| {
            let pixels = sheet.enumerate_pixels().filter(|(x, ..)| side(*x));
            pixels.filter(|(x, y, p)| *p != plain.get_pixel(*x, *y)).count()
        };
        assert!(changed(&|x| x > middle) > 2000);
        assert_eq!(changed(&|x| x <= middle), 0);
    }

    #[test]
    fn masks_of_other_detections_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = make_run(folder.path(), true);
        let boxes = read_results(&run_dir.join("bbox.json")).unwrap();
        let mut masks = read_results(&run_dir.join("segm.json")).unwrap();
        let config = Config::load(&run_dir.join("config.json"), &[]).unwrap().data;
        let dataset = DetectionDataset::open(&config.val, &config.root.unwrap(), false).unwrap();
        let some = |masks: &[Detection]| {
            by_image(boxes.clone(), masks.to_vec(), &dataset).1.iter().flatten().flatten().count()
        };
        assert_eq!(some(&masks), boxes.len());
        masks[0].score = 0.8;
        assert_eq!(some(&masks), 0);
    }

    #[test]
    fn pictures_are_spread_over_the_split() {
        assert_eq!(spread(200, 4).collect::<Vec<_>>(), [0, 50, 100, 150]);
        assert_eq!(spread(3, 8).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(0, 8).count(), 0);
    }
}
