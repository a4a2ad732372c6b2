//! The task of a detector.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use tch::{nn, Device};

use super::auto_anchors::fit_anchors;
use super::data_parallel::all_remarks;
use super::evaluator::{Evaluator, Results};
use super::schedule::{Schedule, StepSchedule};
use super::task::{Micro, Scored, Task};
use crate::backbone::{Family, Pass};
use crate::classes::{list, Class, Classes};
use crate::config::{self, Config, ModelConfig, SplitConfig};
use crate::console::say;
use crate::data::{shapes, Batch, DataFolder, DetectionDataset, DetectionSource, Feed, Loader, LoaderOptions};
use crate::detect::{self, classes_of_outputs, Detector};
use crate::nn::crossings::send_tensor;
use crate::nn::precision::{autocast, InferencePrecision};
use crate::ranks::Ranks;
use crate::runs::RunDir;
use crate::weights::{Checkpoint, LoadOptions, LoadReport};

/// Mean and deviation that the published ViG classifiers were trained with.
const VIG: [f32; 3] = [0.5; 3];

/// A detector in training.
#[derive(Debug)]
pub struct Detection {
    config: Config,
    classes: Classes,
    /// The detector's label of each of the data's.
    labels: Vec<i64>,
    evaluator: Option<Evaluator>,
    images: usize,
}

impl Detection {
    /// Images of the training split.
    pub fn images(&self) -> usize {
        self.images
    }
}

impl Task for Detection {
    type Config = Config;
    type Model = Box<dyn Detector>;
    type Source = DetectionSource;
    type Found = Results;

    fn open(mut config: Config, known: Option<&Classes>) -> Result<(Self, Feed<DetectionSource>)> {
        let t = &config.train;
        let micro_batch = t.images_of_micro_batch();
        ensure!(
            t.batch_size.is_multiple_of(micro_batch),
            "train.batch_size, {}, must be a multiple of train.micro_batch, {micro_batch} (--set micro_batch=null: \
             all at once, divided among train.replicas)",
            t.batch_size
        );
        let data = DataFolder::new(&data_root(&config)?);
        let train = open_split(&config, &config.data.train, &data, true)?;
        ensure!(
            !config.model.has_masks() || train.has_masks(),
            "no object of the training split has a mask: Mask R-CNN needs segmentations (--set model.mask=false \
             trains Faster R-CNN on boxes)"
        );
        say(&format!("train: {}", indented(&train.report().to_string())));
        if config.model.anchors.auto {
            let line = fit_anchors(&mut config.model.anchors, &train, &config.data, config.train.seed)?;
            say(&line);
        }
        let t = &config.train;
        let (classes, labels) = match_classes(&config.model, train.classes(), known)?;
        let evaluator = (t.eval_every > 0)
            .then(|| {
                let val = open_split(&config, &config.data.val, &data, false)
                    .context("validation split (--set train.eval_every=0 trains without one)")?;
                say(&format!("val: {}", indented(&val.report().to_string())));
                let masks = config.model.has_masks();
                let precision = InferencePrecision { trained: t.amp, asked: None };
                Evaluator::new(Arc::new(val), &config.data, micro_batch, &classes, masks, precision)
            })
            .transpose()?;
        evaluator.iter().flat_map(Evaluator::notes).for_each(|note| say(&format!("val: {note}")));
        let images = train.len();
        let options = LoaderOptions { batch_size: micro_batch, train: true, seed: t.seed };
        let feed = Loader::new(Arc::new(train), &config.data, options)?;
        Ok((Self { config, classes, labels, evaluator, images }, feed))
    }

    fn without_data(config: Config, classes: Classes) -> Self {
        let labels = (0..classes.len() as i64).collect();
        Self { config, classes, labels, evaluator: None, images: 0 }
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn classes(&self) -> &Classes {
        &self.classes
    }

    fn build(&self, path: &nn::Path) -> Result<Self::Model> {
        detect::build(path, &self.config.model, self.classes.len() as i64)
    }

    fn name(&self) -> String {
        format!("{} with {}", self.config.model.detector.name(), self.config.model.backbone.name)
    }

    /// Takes weights of the same detector, or the backbone of others: pyramid and heads of another detector have the
    /// same names, but not the same use.
    fn start_from(&self, store: &nn::VarStore, weights: &Checkpoint) -> Result<LoadReport> {
        let other = weights.detector().filter(|kind| *kind != self.config.model.detector);
        let options = LoadOptions {
            other_classes: weights.for_classes(&self.classes),
            backbone_only: other.is_some(),
            ..LoadOptions::default()
        };
        let report = weights.load_into(store, &options)?;
        if let Some(other) = other {
            say(&format!("weights: they are of {}: only their backbone is taken", other.name()));
        }
        Ok(report)
    }

    fn schedule(&self, steps_per_epoch: usize, total: usize) -> Schedule {
        Schedule::ByStep(StepSchedule::new(&self.config.train, steps_per_epoch, total))
    }

    fn losses(&self, model: &Self::Model, mut batch: Batch, device: Device, pass: &mut Pass) -> Result<Micro> {
        batch.images = send_tensor(&batch.images, device);
        let losses = autocast(self.config.train.amp, device, || model.losses(&batch, pass))?;
        let names = batch.infos.into_iter().map(|info| info.file).collect::<Vec<_>>();
        Ok(Micro { losses, images: names.len(), names })
    }

    fn relabel(&self, batch: &mut Batch) {
        for label in batch.targets.iter_mut().flat_map(|target| &mut target.labels) {
            *label = self.labels[*label as usize];
        }
    }

    fn advice(&self) -> &'static str {
        "a lower --lr, a longer train.warmup_iters or train.clip_norm may help"
    }

    fn strong_until(&self) -> f64 {
        self.config.data.strong_until
    }

    fn is_evaluated(&self) -> bool {
        self.evaluator.is_some()
    }

    fn evaluate(
        &self,
        model: &Self::Model,
        device: Device,
        ranks: &Ranks,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<(Scored, Results)>> {
        let Some(evaluator) = &self.evaluator else { return Ok(None) };
        let found = evaluator.detect(model.as_ref(), device, ranks, progress)?;
        let (unreadable, resized) =
            (all_remarks(ranks, evaluator.skipped())?, all_remarks(ranks, evaluator.resized())?);
        let Some(found) = found else { return Ok(None) };
        let scores = evaluator.score(&found)?;
        let scored = Scored {
            score: scores.boxes.ap(),
            log: scores.to_json(),
            metrics: scores.to_json(),
            scalars: scores.scalars(),
            summary: scores.summary(),
            lines: scores.lines(),
            unreadable,
            resized,
            warnings: scores.warnings,
        };
        Ok(Some((scored, found)))
    }

    fn write(&self, found: &Results, run: &RunDir) -> Result<()> {
        let Some(evaluator) = &self.evaluator else { return Ok(()) };
        evaluator.write_results(run.path(), found)?;
        evaluator.write_ground_truth(self.config.data.val.limit.is_none(), run.path())
    }
}

/// The classes of a detector's labels, and the label of each class of the data. `known`: those of a run that goes on,
/// which keeps them.
fn match_classes(config: &ModelConfig, data: &Classes, known: Option<&Classes>) -> Result<(Classes, Vec<i64>)> {
    let classes = match known {
        Some(known) => known.clone(),
        None => classes_of_outputs(config, data)?,
    };
    // In a run of labels that stand for ids, a gap between them is no class.
    let is_gap = |label: usize| known.is_some() && config.outputs.is_some() && classes[label].name.is_empty();
    let label = |class: &Class| classes.find(class).filter(|label| class.name.is_empty() || !is_gap(*label));
    let labels: Vec<Option<usize>> = data.iter().map(label).collect();
    let unknown = data.iter().zip(&labels).filter(|(_, label)| label.is_none());
    let unknown: Vec<&str> = unknown.map(|(class, _)| class.name.as_str()).collect();
    if !unknown.is_empty() {
        bail!(
            "the run does not know {} of the training split ({}; it knows {}): a resumed run keeps its classes, a \
             new one with \
             --weights takes others",
            if unknown.len() == 1 { "a class" } else { "classes" },
            list(unknown),
            list(classes.names())
        );
    }
    let labels: Vec<usize> = labels.into_iter().flatten().collect();
    let twin = (1..labels.len()).find(|i| labels[..*i].contains(&labels[*i]));
    if let Some(i) = twin {
        bail!("two categories of the training split are called `{}`: which is which cannot be told", data[i].name);
    }
    if data.iter().zip(&labels).any(|(class, label)| classes[*label].id != class.id) {
        say("train: the category ids are not those that the run began with; classes are matched by name");
    }
    Ok((classes, labels.into_iter().map(|label| label as i64).collect()))
}

/// A split of a config's data; for a detector that gives masks, with those that are missing counted.
///
/// # Errors
/// As [`DetectionDataset::open_with_exif`].
pub fn open_split(
    config: &Config,
    split: &SplitConfig,
    data: &DataFolder,
    for_training: bool,
) -> Result<DetectionDataset> {
    let mut dataset = DetectionDataset::open_in(data, split, for_training, config.data.exif)?;
    if !config.data.links {
        dataset.check_links()?;
    }
    if config.model.has_masks() {
        dataset.count_masks();
    }
    Ok(dataset)
}

/// The folder that a config's paths are relative to; built-in data is drawn there if it is not yet.
///
/// # Errors
/// If the config names none, or built-in data cannot be drawn.
pub fn data_root(config: &Config) -> Result<PathBuf> {
    let root = config.data.root.clone().context(
        "there is no data: --data DIR names a folder of labelled images, in COCO's layout \
         (annotations/instances_train2017.json, train2017/, …) or any other that `vigdet dataset import` reads",
    )?;
    shapes::ensure_for(&config.data, say)?;
    Ok(root)
}

/// A report under its heading.
fn indented(text: &str) -> String {
    text.replace('\n', "\n  ")
}

/// Whether changes, in `--set`'s form, say how images are normalised.
fn names_normalisation(changes: &[String]) -> bool {
    names(changes, &["data", "data.mean", "mean", "data.std", "std"])
}

/// Whether changes, in `--set`'s form, name the epsilon of the backbone's batch norms.
fn names_epsilon(changes: &[String]) -> bool {
    names(changes, &["model.backbone", "backbone", "model.backbone.norm_eps", "backbone.norm_eps", "norm_eps"])
}

/// Whether changes, in `--set`'s form, name where a ResNet strides.
fn names_stride(changes: &[String]) -> bool {
    let keys =
        ["model.backbone", "backbone", "model.backbone.stride_in_1x1", "backbone.stride_in_1x1", "stride_in_1x1"];
    names(changes, &keys)
}

fn names(changes: &[String], keys: &[&str]) -> bool {
    changes.iter().any(|change| change.split_once('=').is_some_and(|(key, _)| keys.contains(&key)))
}

/// Gives a resumed run's config what it took from the weights that it began with ([`prepare_as`]), unless `changes`
/// name it.
pub fn prepare_as_before(config: &mut Config, before: &Config, changes: &[String]) {
    if !names_normalisation(changes) {
        (config.data.mean, config.data.std) = (before.data.mean, before.data.std);
    }
    if !names_epsilon(changes) {
        config.model.backbone.norm_eps = before.model.backbone.norm_eps;
    }
    if !names_stride(changes) {
        config.model.backbone.stride_in_1x1 = before.model.backbone.stride_in_1x1;
    }
}

/// Gives a config what belongs to pretrained weights, unless `changes`, in `--set`'s form, name it: the mean and
/// deviation that images were normalised with, the epsilon of the backbone's batch norms, and where a ResNet strides
/// (Caffe's and torchvision's have the same names, and compute something else). Says what it did, or what differs.
///
/// # Errors
/// If the config in the weights cannot be read.
pub fn prepare_as(config: &mut Config, weights: &Checkpoint, changes: &[String]) -> Result<Vec<String>> {
    let flags = |mean: [f32; 3], std: [f32; 3]| {
        let list = |values: [f32; 3]| format!("[{}]", values.map(|v| v.to_string()).join(","));
        format!("--set data.mean={} --set data.std={}", list(mean), list(std))
    };
    let own = weights.detector_config(&[])?;
    let (decided, data) = (names_normalisation(changes), &mut config.data);
    let mut notes = Vec::new();
    match &own {
        Some(own) if (own.data.mean, own.data.std) == (data.mean, data.std) => {}
        Some(own) if weights.task() == Some(config::Task::Classification) && !decided => {
            (data.mean, data.std) = (own.data.mean, own.data.std);
            notes.push(format!(
                "weights: images are normalised as the classifier's were: {}",
                flags(data.mean, data.std)
            ));
        }
        Some(own) => notes.push(format!(
            "weights: they were trained on images normalised otherwise; {} does the same here",
            flags(own.data.mean, own.data.std)
        )),
        None if Family::of(&config.model.backbone.name) == Family::Vig && !decided => {
            (data.mean, data.std) = (VIG, VIG);
            notes.push(format!(
                "weights: the file does not say how its images were normalised; they are taken to be the published \
                 ViG's: {} (other numbers decide otherwise)",
                flags(VIG, VIG)
            ));
        }
        None => {}
    }
    let backbone = &mut config.model.backbone;
    if let Some(own) = own.map(|own| own.model.backbone).filter(|own| own.name == backbone.name) {
        if own.norm_eps != backbone.norm_eps && !names_epsilon(changes) {
            backbone.norm_eps = own.norm_eps;
            notes.push(format!(
                "weights: batch norms of the backbone have the file's epsilon: --set norm_eps={:e}",
                own.norm_eps
            ));
        }
        if own.stride_in_1x1 != backbone.stride_in_1x1 && !names_stride(changes) {
            backbone.stride_in_1x1 = own.stride_in_1x1;
            notes.push(format!(
                "weights: the backbone strides where the file's does: --set stride_in_1x1={}",
                own.stride_in_1x1
            ));
        }
    }
    Ok(notes)
}
