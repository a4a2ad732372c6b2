//! The splits of a config's data.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::evaluate::Evaluator;
use crate::config::{Config, SplitConfig};
use crate::data::{shapes, CocoDataset};

/// The evaluator of the validation split, in batches of `batch` images.
pub(super) fn evaluator(config: &Config, root: &Path, batch: usize, classes: &[(i64, String)]) -> Result<Evaluator> {
    let val = open(config, &config.data.val, root, false)
        .context("validation split (--set train.eval_every=0 trains without one)")?;
    println!("val: {}", indented(&val.report().to_string()));
    let evaluator = Evaluator::new(Arc::new(val), &config.data, batch, classes, config.model.has_masks())?;
    match evaluator.classes_without_category() {
        0 => {}
        n => println!("val: {n} classes of the training split are not in it"),
    }
    Ok(evaluator)
}

/// A split of a config's data; for a detector that gives masks, with those that are missing counted.
pub fn open(config: &Config, split: &SplitConfig, root: &Path, for_training: bool) -> Result<CocoDataset> {
    let mut dataset = CocoDataset::open_with_exif(split, root, for_training, config.data.exif)?;
    if config.model.has_masks() {
        dataset.count_masks();
    }
    Ok(dataset)
}

/// The folder that a config's paths are relative to; built-in data is drawn there if it is not yet.
pub fn data_root(config: &Config) -> Result<PathBuf> {
    let root = config.data.root.clone().context(
        "there is no data: --data DIR names a folder with COCO's layout (annotations/instances_train2017.json, train2017/, …)",
    )?;
    shapes::ensure_for(&config.data, |text| println!("{text}"))?;
    Ok(root)
}

/// A report under its heading.
pub(super) fn indented(text: &str) -> String {
    text.replace('\n', "\n  ")
}
