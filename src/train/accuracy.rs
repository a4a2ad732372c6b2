//! A classifier on a split: how often its first guess, or one of its first five, is right.

use anyhow::{ensure, Result};
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};
use tch::{Device, Kind, Tensor};

use crate::backbone::{Classifier, Pass};
use crate::config::ClassifyConfig;
use crate::data::classify::{ClassLoader, ClassLoaderOptions};
use crate::data::ImageFolder;
use crate::nn::precision::{autocast, InferencePrecision};
use crate::ranks::Ranks;

/// Guesses that top-5 looks at; with fewer classes, all.
const GUESSES: usize = 5;

/// How many images of a class there were, and of how many the label was guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Images.
    pub images: usize,
    /// The best score was the label's.
    pub first: usize,
    /// One of the five best scores was the label's.
    pub five: usize,
}

impl Count {
    fn add(&mut self, other: &Self) {
        self.images += other.images;
        self.first += other.first;
        self.five += other.five;
    }
}

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// For each class.
    pub counts: Vec<Count>,
    /// Mean cross entropy.
    pub loss: f64,
}

impl Accuracy {
    fn total(&self) -> Count {
        let mut total = Count::default();
        self.counts.iter().for_each(|count| total.add(count));
        total
    }

    /// Share of images whose best score was the label's.
    pub fn top1(&self) -> f64 {
        let total = self.total();
        total.first as f64 / total.images.max(1) as f64
    }

    /// Share of images of whose five best scores one was the label's.
    pub fn top5(&self) -> f64 {
        let total = self.total();
        total.five as f64 / total.images.max(1) as f64
    }

    /// `{"top1", "top5", "val_loss", "images"}`.
    pub fn summary_json(&self) -> Map<String, Value> {
        let entries = [
            ("top1", json!(self.top1())),
            ("top5", json!(self.top5())),
            ("val_loss", json!(self.loss)),
            ("images", json!(self.total().images)),
        ];
        entries.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    /// [`Accuracy::summary_json`], and `"per_class": {NAME: {"top1", "top5", "images"}}` of the classes that have
    /// images.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut all = self.summary_json();
        let per_class: Map<String, Value> = self
            .classes
            .iter()
            .zip(&self.counts)
            .filter(|(_, count)| count.images > 0)
            .map(|(name, c)| {
                let [top1, top5] = [c.first, c.five].map(|right| right as f64 / c.images as f64);
                let values = json!({ "top1": top1, "top5": top5, "images": c.images });
                (name.clone(), values)
            })
            .collect();
        all.insert("per_class".into(), Value::Object(per_class));
        all
    }

    /// A line for each class that has images, worst first, at most `most` of them.
    pub fn class_lines(&self, most: usize) -> String {
        let mut classes: Vec<(&String, &Count)> =
            self.classes.iter().zip(&self.counts).filter(|(_, count)| count.images > 0).collect();
        let fraction = |c: &Count| c.first as f64 / c.images as f64;
        classes.sort_by(|a, b| fraction(a.1).total_cmp(&fraction(b.1)));
        let width = classes.iter().take(most).map(|c| c.0.chars().count()).max().unwrap_or(0);
        let lines = classes
            .iter()
            .take(most)
            .map(|(name, c)| format!("  {name:width$}  {:.3}  of {} images\n", fraction(c), c.images));
        let mut text: String = lines.collect();
        if classes.len() > most {
            text += &format!("  … and {} better ones\n", classes.len() - most);
        }
        text
    }
}

/// Runs classifiers on one split and counts.
#[derive(Debug)]
pub struct ClassEvaluator {
    loader: ClassLoader,
    precision: InferencePrecision,
}

impl ClassEvaluator {
    /// For a split with the labels of the model (see [`ImageFolder::with_classes`]).
    pub fn new(
        dataset: ImageFolder,
        config: &ClassifyConfig,
        batch_size: usize,
        precision: InferencePrecision,
    ) -> Result<Self> {
        let options =
            ClassLoaderOptions { batch_size, micro_batch: batch_size, train: false, seed: 0, label_smoothing: 0.0 };
        Ok(Self { loader: ClassLoader::new(dataset, &config.data, options)?, precision })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.loader.dataset().len()
    }

    /// Whether there are none: never so.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Images that could not be read, and why.
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.loader.skipped()
    }

    /// Counts over the whole split, of which each rank sees its share of the batches; rank 0 has the result. `progress`
    /// hears how many of how many images are done, and ends the work with `false` on any rank: then there is no result.
    ///
    /// # Errors
    /// If no image of the split can be read; if a rank is gone.
    pub fn evaluate(
        &self,
        model: &Classifier,
        device: Device,
        ranks: &Ranks,
        mut progress: impl FnMut(usize, usize) -> bool,
    ) -> Result<Option<Accuracy>> {
        let classes = self.loader.dataset().classes().to_vec();
        let mut counts = vec![Count::default(); classes.len()];
        let mut losses = Vec::new();
        let (mut done, mut stopped) = (0, false);
        let mut batches = self.loader.epoch_where(0, 0, false, |number| ranks.takes(number));
        while let Some(batch) = batches.next() {
            let batch = batch?;
            let images = batch.images.to_device(device);
            let forward =
                || autocast(self.precision.is_mixed(device), device, || model.forward(&images, &mut Pass::inference()));
            let logits = tch::no_grad(forward)?.logits;
            let logits = logits.to_device(Device::Cpu).to_kind(Kind::Float);
            let loss = cross_entropy(&logits, &batch.targets).double_value(&[]) * batch.len() as f64;
            losses.push((batches.number(), loss.to_bits()));
            let guesses = logits.topk(GUESSES.min(classes.len()) as i64, 1, true, true).1;
            let guesses: Vec<Vec<i64>> = guesses.try_into()?;
            for (label, guesses) in batch.labels.iter().zip(&guesses) {
                let count = &mut counts[*label];
                count.images += 1;
                count.first += usize::from(guesses.first() == Some(&(*label as i64)));
                count.five += usize::from(guesses.contains(&(*label as i64)));
            }
            done += batch.len();
            stopped = !progress(done * ranks.size(), self.len());
            if stopped {
                break;
            }
        }
        let Some(all) = ranks.gather((counts, losses, stopped))? else { return Ok(None) };
        if all.iter().any(|(_, _, stopped)| *stopped) {
            return Ok(None);
        }
        let mut counts = vec![Count::default(); classes.len()];
        let mut losses: Vec<(usize, u64)> = Vec::new();
        for (own, of_batches, _) in all {
            counts.iter_mut().zip(&own).for_each(|(sum, count)| sum.add(count));
            losses.extend(of_batches);
        }
        // Sums round, so their order is that of the batches, whoever made them.
        losses.sort_unstable();
        let loss: f64 = losses.iter().map(|(_, bits)| f64::from_bits(*bits)).sum();
        let done: usize = counts.iter().map(|count| count.images).sum();
        ensure!(
            done > 0,
            "none of the {} images of the validation split could be read; the first reason: {}",
            self.len(),
            self.skipped().first().map_or("unknown", |(_, reason)| reason)
        );
        Ok(Some(Accuracy { classes, counts, loss: loss / done as f64 }))
    }
}

/// Mean over images of −Σ target·log softmax(logits), both `[B, classes]`.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Tensor {
    let log = logits.log_softmax(1, Kind::Float);
    -(targets * log).sum_dim_intlist([1].as_slice(), false, Kind::Float).mean(Kind::Float)
}
