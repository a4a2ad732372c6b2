//! All pictures of a run's folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};

use super::curves::curves;
use super::judge::{best_threshold, judge, Judgement, Truth};
use super::sheet::{beside_truth, HIT};
use crate::config::Config;
use crate::data::CocoDataset;
use crate::detect::Detections;

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

/// Draws a run's pictures into its folder `plots`: `curves.png` and `curves.svg` from log.jsonl, and, once there is a bbox.json,
/// `detections_ID.png` of some validation images beside their ground truth. Gives the files written, in that order.
///
/// # Errors
/// If the folder holds no run, if the data is not where the config says, if none of the images can be read, or if a file cannot be
/// written.
pub fn run(run_dir: &Path, options: &RunPictures) -> Result<Vec<PathBuf>> {
    let plots = run_dir.join("plots");
    let log = run_dir.join("log.jsonl");
    ensure!(log.is_file(), "{} is not the folder of a run: it has no log.jsonl", run_dir.display());
    std::fs::create_dir_all(&plots).with_context(|| format!("cannot make the folder {}", plots.display()))?;
    let mut written = curves(&log, &plots)?;
    let results = run_dir.join("bbox.json");
    if options.images > 0 && results.is_file() {
        written.extend(detections(run_dir, &results, &plots, options)?);
    }
    Ok(written)
}

fn detections(run_dir: &Path, results: &Path, plots: &Path, options: &RunPictures) -> Result<Vec<PathBuf>> {
    let config = Config::load(&run_dir.join("config.json"), &[])?.data;
    let root = options.data.clone().or(config.root).with_context(|| {
        format!("{} does not name the folder of the data", run_dir.join("config.json").display())
    })?;
    let dataset = CocoDataset::open(&config.val, &root, false)?;
    let names: Vec<String> = dataset.classes().iter().map(|class| class.name.clone()).collect();
    let found = read(results, &dataset)?;
    let truths: Vec<Vec<Truth>> = (0..dataset.len()).map(|i| truths(&dataset, i)).collect();
    let judged: Vec<Judgement> = found.iter().zip(&truths).map(|(f, t)| judge(f, t, HIT)).collect();
    let all = found.iter().zip(&truths).zip(&judged).map(|((f, t), j)| (f, t.as_slice(), j));
    let score =
        options.score.or_else(|| best_threshold(all).map(|(score, _)| score)).unwrap_or(SCORE_WITHOUT_HITS);

    let mut written = Vec::new();
    let mut unreadable = None;
    for i in spread(dataset.len(), options.images) {
        let info = dataset.info(i);
        let image = match dataset.sample(i, config.exif) {
            Ok(sample) => sample.image,
            Err(error) => {
                unreadable = Some(error);
                continue;
            }
        };
        let picture = beside_truth(&image, &info.file, &truths[i], &found[i], &names, score)?;
        let path = plots.join(format!("detections_{}.png", info.id));
        picture.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
    }
    match unreadable {
        Some(error) if written.is_empty() => Err(error),
        _ => Ok(written),
    }
}

/// Detections of each image of the data set, in its order.
fn read(results: &Path, dataset: &CocoDataset) -> Result<Vec<Detections>> {
    let index: HashMap<i64, usize> = (0..dataset.len()).map(|i| (dataset.info(i).id, i)).collect();
    let mut found = vec![Detections::default(); dataset.len()];
    let all =
        vigdet_coco::read_results(results).with_context(|| format!("cannot read {}", results.display()))?;
    for detection in all {
        let place = (index.get(&detection.image_id), dataset.label(detection.category_id), detection.bbox);
        let (Some(&i), Some(label), Some([x, y, w, h])) = place else { continue };
        found[i].boxes.push([x, y, x + w, y + h].map(|v| v as f32));
        found[i].scores.push(detection.score as f32);
        found[i].labels.push(label);
    }
    Ok(found)
}

fn truths(dataset: &CocoDataset, i: usize) -> Vec<Truth> {
    let info = dataset.info(i);
    let target = dataset.target(i, info.width, info.height);
    let objects = target.boxes.iter().zip(&target.labels).zip(&target.crowd);
    objects.map(|((&bbox, &label), &crowd)| Truth { bbox, label, crowd }).collect()
}

/// `count` of `len` indices, evenly spread; all of them if there are not more.
fn spread(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(len);
    (0..count).map(move |i| i * len / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_spread_over_the_split() {
        assert_eq!(spread(200, 4).collect::<Vec<_>>(), [0, 50, 100, 150]);
        assert_eq!(spread(3, 8).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(0, 8).count(), 0);
    }
}
