//! A file of weights, read once: its tensors, and the config and classes that it was trained with.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;
use tch::{nn, Device};

use super::catalogue;
use super::file::WeightFile;
use super::load::{load, LoadOptions, OtherClasses};
use super::load_report::LoadReport;
use super::recognise::recognise;
use super::save::{Metadata, CLASSES, CONFIG};
use crate::backbone::{self, Classifier};
use crate::classes::Classes;
use crate::config::{BackboneConfig, ClassifyConfig, Config, DetectorKind, Experiment, Task};
use crate::console::warn;

/// Classes of ImageNet, for a model without a file.
pub const IMAGENET_CLASSES: i64 = 1000;
/// Where a file of a classifier, or of a detector, says how many classes there are.
const HEADS: [&str; 5] = ["prediction.4.weight", "fc.weight", "_fc.weight", "classifier.3.weight", "head.weight"];

/// A file of weights and what it says of itself: everything about it is asked here.
pub struct Checkpoint {
    path: PathBuf,
    file: WeightFile,
    config: Option<Value>,
    task: Option<Task>,
    classes: Option<Classes>,
}

/// The name of the file that was in place of `path` before it: `best.previous.safetensors` of `best.safetensors`.
pub fn previous(path: &Path) -> PathBuf {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_extension(format!("previous.{extension}"))
}

impl Checkpoint {
    /// Reads a file: safetensors, PyTorch's (`.pth`, `.pth.tar`, `.pt`, of before version 1.6 too), or a pickle of
    /// NumPy arrays (`.pkl`). Of a damaged one, the file that was in its place before is taken if it is there
    /// ([`previous`]), with a warning.
    ///
    /// # Errors
    /// If there is none, or none that is whole; if what it says of itself cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        match Self::read(path) {
            Err(error) if !path.is_dir() => {
                let before = previous(path);
                let Ok(checkpoint) = Self::read(&before) else { return Err(error) };
                warn(&format!("{error:#}; in its place the one before it, {}", before.display()));
                Ok(checkpoint)
            }
            result => result,
        }
    }

    fn read(path: &Path) -> Result<Self> {
        let opened = || -> Result<Self> {
            let mut file = WeightFile::open(path)?;
            let metadata = file.metadata();
            let config = metadata.get(CONFIG).map(|text| serde_json::from_str(text));
            let mut config: Option<Value> = config.transpose().context("the config in it is not JSON")?;
            let classes = metadata.get(CLASSES).map(|text| serde_json::from_str(text));
            let mut classes = classes.transpose().context("the classes in it are not [[id, name], …]")?;
            if let Some(found) = config.is_none().then(|| recognise(&file, path)).flatten() {
                warn(&format!("weights: {} is {}", path.display(), found.family));
                found.notes.iter().for_each(|note| warn(&format!("weights: {note}")));
                (config, classes) = (found.config, classes.or(found.classes));
                if let Some(tensors) = found.tensors {
                    file = WeightFile::Renamed { file: Box::new(file), tensors };
                }
            }
            let task = config.as_ref().map(Task::of).transpose()?.flatten();
            Ok(Self { path: path.to_path_buf(), file, config, task, classes })
        };
        opened().with_context(|| format!("cannot load weights from {}", path.display()))
    }

    /// The file that was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors.
    pub fn file(&self) -> &WeightFile {
        &self.file
    }

    /// All that the file says of itself.
    pub fn metadata(&self) -> Metadata {
        self.file.metadata()
    }

    /// What the weights are of; `None`: the file does not say.
    pub fn task(&self) -> Option<Task> {
        self.task
    }

    /// The classes in the order of the outputs; `None`: the file does not say.
    pub fn classes(&self) -> Option<&Classes> {
        self.classes.as_ref()
    }

    /// The detector that the weights are of; `None`: of none, or the file does not say.
    pub fn detector(&self) -> Option<DetectorKind> {
        let name = self.config.as_ref()?.pointer("/model/detector")?.as_str()?;
        DetectorKind::parse(name).ok()
    }

    /// The file's own config, with changes; `None`: it has none.
    ///
    /// # Errors
    /// If it is of another task, or the changes do not fit.
    pub fn config<C: Experiment>(&self, changes: &[String]) -> Result<Option<C>> {
        self.own_config(|config| C::from_json_with(&config.to_string(), changes))
    }

    /// A detector's own config, or the backbone and the normalisation of a classifier's, with changes; `None`: the
    /// file has no config.
    ///
    /// # Errors
    /// As [`Checkpoint::config`].
    pub fn detector_config(&self, changes: &[String]) -> Result<Option<Config>> {
        self.own_config(|config| Config::of_weights(config, changes))
    }

    /// The config that the weights are fine-tuned with, as a detector of this kind ([`Config::finetuned`]).
    ///
    /// # Errors
    /// If the file has no config and no published file's name, or the config does not fit.
    pub fn finetuned(&self, detector: DetectorKind, changes: &[String]) -> Result<Config> {
        if let Some(config) = self.own_config(|config| Config::finetuned(config, detector, changes))? {
            return Ok(config);
        }
        // Published classifiers of ViG and ResNet say nothing of themselves, but have names.
        let published = catalogue::of_file(&self.path).with_context(|| {
            format!(
                "{} does not say what it is: name a config with --config, and the file with --weights",
                self.path.display()
            )
        })?;
        Config::finetuned(&ClassifyConfig::of_model(&published.model, &[])?.to_value()?, detector, changes)
    }

    /// The config that weights of a detector are used with: the one that is named, else the file's own.
    ///
    /// # Errors
    /// If there is neither, or the one there is does not fit.
    pub fn config_in_use(&self, named: Option<&Path>, changes: &[String]) -> Result<Config> {
        match named {
            Some(path) => Config::load(path, changes),
            None => self.config(changes)?.with_context(|| self.lacks_config()),
        }
    }

    /// Copies the tensors into the variables of a store that have the same name (bare, or under `state_dict_ema`,
    /// `model_ema`, `state_dict` or `model` in the file, with or without `module.` before their names; nothing in the
    /// file is executed).
    ///
    /// File and model may each be a whole detector, or a backbone or classifier, whose names lack `backbone.body.`.
    /// torchvision's older names of heads count as the newer ones. A position embedding of another grid is resized.
    /// Constants of the published ViG code (`relative_pos`) are checked and passed over, step counters of batch norms
    /// are passed over.
    ///
    /// # Errors
    /// If no name matches, if a shape differs (but see [`LoadOptions::other_classes`]), if a number is not finite, or
    /// if `complete` is asked for and a variable is missing. Nothing is copied then.
    pub fn load_into(&self, store: &nn::VarStore, options: &LoadOptions) -> Result<LoadReport> {
        load(store, &self.file, options).with_context(|| format!("cannot load weights from {}", self.path.display()))
    }

    /// How class layers are taken into a model of these classes: by name, where the file has names.
    pub fn for_classes(&self, model: &Classes) -> OtherClasses {
        match &self.classes {
            Some(file) => OtherClasses::ByName { file: file.clone(), model: model.clone() },
            None => OtherClasses::Unnamed,
        }
    }

    fn own_config<C>(&self, read: impl FnOnce(&Value) -> Result<C>) -> Result<Option<C>> {
        self.config.as_ref().map(read).transpose().with_context(|| format!("the config in {}", self.path.display()))
    }

    fn lacks_config(&self) -> String {
        format!(
            "{} does not say which config it was trained with: name it with --config ({})",
            self.path.display(),
            Config::preset_names().collect::<Vec<_>>().join(", ")
        )
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("path", &self.path).field("task", &self.task).finish()
    }
}

/// The backbone of a model, and how its images are prepared, where a classifier or any detector will do: of the config
/// that is named (`config`), else of the weights' own, else of the model's published weights. `model`: a backbone's
/// name, or a detector's.
///
/// # Errors
/// If there is no such model, or the config is of another one.
pub fn backbone_config(
    model: &str,
    weights: Option<&Checkpoint>,
    config: Option<&Path>,
    changes: &[String],
) -> Result<Config> {
    let detector = DetectorKind::parse(model).ok();
    let check = |config: Config, source: &Path| -> Result<Config> {
        let own = match detector {
            Some(_) => config.model.detector.name(),
            None => config.model.backbone.name.as_str(),
        };
        ensure!(own == model, "{} is of {own}, not of {model}", source.display());
        Ok(config)
    };
    if let Some(path) = config {
        let classifier = detector.is_none().then(|| ClassifyConfig::load(path, &[]).ok()).flatten();
        let config = match classifier {
            Some(own) => {
                Config::of_weights(&own.to_value()?, changes).with_context(|| format!("config {}", path.display()))?
            }
            None => Config::load(path, changes)?,
        };
        return check(config, path);
    }
    match (weights, detector) {
        (Some(weights), _) if weights.config.is_some() => {
            let own = weights.detector_config(changes)?.context("there is a config")?;
            check(own, weights.path())
        }
        (Some(weights), Some(_)) => bail!(weights.lacks_config()),
        (None, Some(kind)) => Config::preset(&format!("{}_pvig_s_fpn_1x_coco", kind.name()), changes),
        (_, None) => {
            ensure!(
                backbone::NAMES.contains(&model),
                "there is no model `{model}`: take one of {}, or retinanet or mask_rcnn",
                backbone::NAMES.join(", ")
            );
            Config::of_published(model, changes)
        }
    }
}

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
    let heads = ["prediction.", "fc.", "_conv_head.", "_bn1.", "_fc.", "classifier.", "head.", "dist_head.", "norm."];
    name == "cls_token" || heads.iter().any(|head| name.starts_with(head))
}

/// Builds a backbone and its classifier, for as many classes as the file has (1000 without one), and loads the file
/// (see [`Checkpoint::load_into`]). The file may be a detector's or a backbone's alone: the classifier then keeps its
/// random init.
///
/// # Errors
/// If the model cannot be built, the file is for another model, or lacks any part of the backbone.
pub fn load_classifier(
    config: &BackboneConfig,
    weights: Option<&Checkpoint>,
    device: Device,
) -> Result<LoadedClassifier> {
    let store = nn::VarStore::new(device);
    let Some(weights) = weights else {
        let model = Classifier::new(&store.root(), config, IMAGENET_CLASSES)?;
        return Ok(LoadedClassifier { model, store, report: None, head_loaded: true });
    };
    let shape = HEADS.iter().find_map(|head| weights.file.shape(head));
    let classes = shape.and_then(|shape| shape.first().copied()).unwrap_or(IMAGENET_CLASSES);
    let model = Classifier::new(&store.root(), config, classes)?;
    let report = weights.load_into(&store, &LoadOptions::default())?;
    let missing: Vec<&String> = report.missing.iter().filter(|name| !is_of_head(name)).collect();
    ensure!(
        missing.is_empty(),
        "cannot load weights from {}: {} of the tensors of {} are not in it ({}{}), {} of its own are for nothing{}",
        weights.path.display(),
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

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;
    use crate::weights::write_tensors;

    #[test]
    fn published_classifiers_are_fine_tuned_by_the_name_of_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let finetuned = |name: &str| {
            let path = folder.path().join(name);
            write_tensors(&[("x".to_string(), Tensor::from_slice(&[1f32]))], &path, &Metadata::new()).unwrap();
            Checkpoint::open(&path).unwrap().finetuned(DetectorKind::Retinanet, &[])
        };
        let config = finetuned("pvig_s_82.1.pth.tar").unwrap();
        assert_eq!((config.model.backbone.name.as_str(), config.data.mean), ("pvig_s", [0.5; 3]));
        assert!(finetuned("mine.pth").unwrap_err().to_string().contains("does not say what it is"));
    }
}
