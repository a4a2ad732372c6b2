//! A classifier from a file of weights: how published ViG and ResNet checkpoints are used.

use std::path::Path;

use anyhow::{ensure, Context, Result};
use tch::{nn, Device};

use super::{load_into, LoadOptions, LoadReport, WeightFile};
use crate::backbone::Classifier;
use crate::config::BackboneConfig;

/// Classes of ImageNet, for a model without a file.
pub const IMAGENET_CLASSES: i64 = 1000;
/// Where a file of a classifier, or of a detector, says how many classes there are.
const HEADS: [&str; 2] = ["prediction.4.weight", "fc.weight"];

/// A classifier and where its weights came from.
#[derive(Debug)]
pub struct LoadedClassifier {
    /// The model.
    pub model: Classifier,
    /// Its variables.
    pub store: nn::VarStore,
    /// What happened to each name of the file; `None`: there was no file, the weights are random.
    pub report: Option<LoadReport>,
    /// Whether the layers that give class scores came from the file; `true` if there was none.
    pub head_loaded: bool,
}

/// Whether a variable of a classifier belongs to the layers that give class scores, not to its backbone.
pub fn is_of_head(name: &str) -> bool {
    name.starts_with("prediction.") || name.starts_with("fc.")
}

/// Builds a backbone and its classifier, for as many classes as the file has (1000 without one), and loads the file
/// (see [`load_into`]). The file may be a detector's or a backbone's alone: the classifier then keeps its random start.
///
/// # Errors
/// If the model cannot be built, the file cannot be read, is for another model, or lacks any part of the backbone.
pub fn load_classifier(config: &BackboneConfig, weights: Option<&Path>, device: Device) -> Result<LoadedClassifier> {
    let store = nn::VarStore::new(device);
    let Some(path) = weights else {
        let model = Classifier::new(&store.root(), config, IMAGENET_CLASSES)?;
        return Ok(LoadedClassifier { model, store, report: None, head_loaded: true });
    };
    let file = WeightFile::open(path).with_context(|| format!("cannot load weights from {}", path.display()))?;
    let classes = HEADS.iter().find_map(|head| file.shape(head)).and_then(|shape| shape.first().copied());
    drop(file);
    let model = Classifier::new(&store.root(), config, classes.unwrap_or(IMAGENET_CLASSES))?;
    let report = load_into(&store, path, &LoadOptions::default())?;
    let missing: Vec<&String> = report.missing.iter().filter(|name| !is_of_head(name)).collect();
    ensure!(
        missing.is_empty(),
        "cannot load weights from {}: {} of the tensors of {} are not in it ({}{}), {} of its own are for nothing{}",
        path.display(),
        missing.len(),
        config.name,
        missing.first().map_or("", |name| name),
        if missing.len() > 1 { ", …" } else { "" },
        report.unused.len(),
        report.unused.first().map_or(String::new(), |name| format!(" ({name}, …)")),
    );
    let head_loaded = !report.missing.iter().any(|name| is_of_head(name));
    Ok(LoadedClassifier { model, store, report: Some(report), head_loaded })
}
