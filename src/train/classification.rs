//! The task of a classifier: pretraining of a backbone.

use anyhow::{ensure, Context, Result};
use tch::{nn, Device};

use super::accuracy::{cross_entropy, ClassEvaluator};
use super::data_parallel::all_remarks;
use super::schedule::{EpochCosine, Schedule};
use super::task::{Micro, Scored, Task};
use crate::backbone::{Classifier, Family, Pass};
use crate::classes::{list, Classes};
use crate::config::ClassifyConfig;
use crate::console::say;
use crate::data::classify::{ClassBatch, ClassLoader, ClassLoaderOptions, FolderSource};
use crate::data::{Feed, ImageFolder};
use crate::detect::Losses;
use crate::nn::crossings::send_tensor;
use crate::nn::precision::{autocast, InferencePrecision};
use crate::ranks::Ranks;
use crate::runs::RunDir;
use crate::weights::{Checkpoint, LoadOptions, LoadReport};

/// The one part of the loss.
const LOSS: &str = "cross_entropy";
/// Classes whose accuracy is printed at the end.
const PRINTED: usize = 10;

/// A classifier in training.
#[derive(Debug)]
pub struct Classification {
    config: ClassifyConfig,
    classes: Classes,
    evaluator: Option<ClassEvaluator>,
}

impl Task for Classification {
    type Config = ClassifyConfig;
    type Model = Classifier;
    type Source = FolderSource;
    type Found = ();

    fn open(config: ClassifyConfig, known: Option<&Classes>) -> Result<(Self, Feed<FolderSource>)> {
        let t = &config.train;
        let micro_batch = t.images_of_micro_batch();
        let root = config
            .data
            .root
            .clone()
            .context("there is no data: --data DIR names a folder with train/CLASS/*.jpg and val/CLASS/*.jpg")?;
        let mut train = ImageFolder::open(&config.data.train, &root)?;
        say(&format!("train: {train}"));
        if let Some(known) = known {
            train = train
                .with_classes(&known.names())
                .context("a resumed run keeps its classes; a new one with --weights takes others")?;
        }
        let names = train.classes().to_vec();
        ensure!(names.len() > 1, "there is only one class, {}: a classifier needs two", list(&names));
        let evaluator = (t.eval_every > 0)
            .then(|| {
                let val = ImageFolder::open(&config.data.val, &root)
                    .and_then(|val| {
                        say(&format!("val: {val}"));
                        val.with_classes(&names)
                    })
                    .context("validation split (--set train.eval_every=0 trains without one)")?;
                let precision = InferencePrecision { trained: t.amp, asked: None };
                ClassEvaluator::new(val, &config, micro_batch, precision)
            })
            .transpose()?;
        let options = ClassLoaderOptions {
            batch_size: t.batch_size,
            micro_batch,
            train: true,
            seed: t.seed,
            label_smoothing: t.label_smoothing,
        };
        let feed = ClassLoader::new(train, &config.data, options)?;
        check_micro_batches(&feed, &config)?;
        Ok((Self { classes: Classes::numbered(&names), config, evaluator }, feed))
    }

    fn without_data(config: ClassifyConfig, classes: Classes) -> Self {
        Self { config, classes, evaluator: None }
    }

    fn config(&self) -> &ClassifyConfig {
        &self.config
    }

    fn classes(&self) -> &Classes {
        &self.classes
    }

    fn build(&self, path: &nn::Path) -> Result<Classifier> {
        Classifier::new(path, &self.config.model.backbone, self.classes.len() as i64)
    }

    fn name(&self) -> String {
        format!("{} for {} classes", self.config.model.backbone.name, self.classes.len())
    }

    fn start_from(&self, store: &nn::VarStore, weights: &Checkpoint) -> Result<LoadReport> {
        let other_classes = weights.for_classes(&self.classes);
        weights.load_into(store, &LoadOptions { other_classes, ..LoadOptions::default() })
    }

    fn schedule(&self, steps_per_epoch: usize, _total: usize) -> Schedule {
        Schedule::ByEpoch(EpochCosine::new(&self.config.train, steps_per_epoch))
    }

    fn losses(&self, model: &Classifier, batch: ClassBatch, device: Device, pass: &mut Pass) -> Result<Micro> {
        let (images, targets) = (send_tensor(&batch.images, device), send_tensor(&batch.targets, device));
        let logits = autocast(self.config.train.amp, device, || model.forward(&images, pass))?.logits;
        let losses = Losses { parts: vec![(LOSS, cross_entropy(&logits, &targets))] };
        Ok(Micro { losses, images: batch.len(), names: batch.names })
    }

    fn advice(&self) -> &'static str {
        "a lower --lr, a longer train.warmup_epochs or train.clip_norm may help"
    }

    fn is_evaluated(&self) -> bool {
        self.evaluator.is_some()
    }

    fn evaluate(
        &self,
        model: &Classifier,
        device: Device,
        ranks: &Ranks,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<(Scored, ())>> {
        let Some(evaluator) = &self.evaluator else { return Ok(None) };
        let accuracy = evaluator.evaluate(model, device, ranks, progress)?;
        let unreadable = all_remarks(ranks, evaluator.skipped())?;
        let Some(accuracy) = accuracy else { return Ok(None) };
        let (top1, top5, loss) = (accuracy.top1(), accuracy.top5(), accuracy.loss);
        let scalars = [("val/top1", top1), ("val/top5", top5), ("val/loss", loss)];
        let scored = Scored {
            score: top1,
            log: accuracy.summary_json(),
            metrics: accuracy.to_json(),
            scalars: scalars.map(|(tag, value)| (tag.to_string(), value)).to_vec(),
            summary: format!("top-1 {top1:.4}, top-5 {top5:.4}, loss {loss:.3}"),
            lines: format!("top-1 by class, the worst first:\n{}", accuracy.class_lines(PRINTED)),
            unreadable,
            ..Scored::default()
        };
        Ok(Some((scored, ())))
    }

    fn write(&self, (): &(), _run: &RunDir) -> Result<()> {
        Ok(())
    }
}

/// Refuses a single image as a micro batch where a batch norm would see one value per channel: an epoch may have one
/// at its end only, after hours.
fn check_micro_batches(feed: &ClassLoader, config: &ClassifyConfig) -> Result<()> {
    let (t, backbone) = (&config.train, &config.model.backbone);
    // Classifiers of ViGs have a norm after the mean over the image; the others' last map has one location for images
    // of up to 32 pixels.
    let family = Family::of(&backbone.name);
    let small = !backbone.freeze_norms && config.data.size <= 32;
    let one_value = family.has_graphs() || (family.has_batch_norms() && small);
    ensure!(
        !one_value || feed.smallest_batch() > 1,
        "the last micro batch of a step of an epoch has one image, which {} cannot train on (its batch norm would \
         see one value per channel): \
         change train.batch_size, {}, or train.micro_batch, {}, or set data.drop_last=true, which leaves out a \
         smaller last step",
        backbone.name,
        t.batch_size,
        t.images_of_micro_batch()
    );
    Ok(())
}
