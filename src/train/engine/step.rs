//! One step of a run: the gradients of its micro batches, their sum over ranks, the update.

use std::path::PathBuf;

use anyhow::{bail, Result};
use tch::{Device, Kind, Tensor};

use super::Engine;
use crate::backbone::Pass;
use crate::config::{Experiment, OnNan};
use crate::console::warn;
use crate::data::Source;
use crate::nn::crossings::fetch;
use crate::train::data_parallel::{NotFinite, Sums};
use crate::train::not_finite;
use crate::train::optimizer::clip_factor;
use crate::train::task::{Micro, Task};

/// What the micro batches of a step have added up to.
#[derive(Default)]
pub(super) struct Accumulated {
    /// The number in the epoch of its first micro batch.
    first: usize,
    /// The numbers in the run of this rank's micro batches.
    numbers: Vec<u64>,
    /// Micro batches whose losses are still on the device.
    learned: Vec<Learned>,
    pub images: usize,
    /// Sum over images of each part of the loss.
    pub parts: Vec<(&'static str, f64)>,
    names: Vec<String>,
    /// What was the first thing that is not finite.
    not_finite: NotFinite,
}

impl Accumulated {
    /// A step whose first micro batch has this number in the epoch.
    pub fn from(batch: usize) -> Self {
        Self { first: batch, ..Self::default() }
    }
}

impl<T: Task> Engine<T> {
    /// Adds the gradients of micro batches, each with its number in the run, with replicas of all at the same time.
    pub(super) fn learn(
        &mut self,
        numbered: Vec<(u64, <T::Source as Source>::Batch)>,
        sum: &mut Accumulated,
    ) -> Result<()> {
        let (task, device) = (&self.task, self.device);
        sum.numbers.extend(numbered.iter().map(|(number, _)| *number));
        let work = |model: &T::Model, (number, mut batch)| {
            task.relabel(&mut batch);
            learn_micro_batch(task, model, number, batch, device)
        };
        let learned: Vec<Result<Learned>> = match &mut self.replicas {
            Some(replicas) => replicas.run(&mut self.model, numbered, work),
            None => numbered.into_iter().map(|one| work(&self.model, one)).collect(),
        };
        for one in learned {
            sum.learned.push(one?);
        }
        Ok(())
    }

    /// Adds up the losses of a step's micro batches, with one copy from the device for all.
    pub(super) fn settle(&self, sum: &mut Accumulated) -> Result<()> {
        let learned = std::mem::take(&mut sum.learned);
        if learned.is_empty() {
            return Ok(());
        }
        let all: Vec<&Tensor> = learned.iter().map(|one| &one.values).collect();
        let mut values = numbers(&Tensor::cat(&all, 0))?.into_iter();
        for Learned { parts, images, names, .. } in learned {
            let parts: Vec<(&str, f64)> = parts.into_iter().zip(values.by_ref()).collect();
            if let Some((name, value)) = parts.iter().find(|(_, value)| !value.is_finite()) {
                let words = || format!("the loss `{name}` became {value} on {}", some(&names));
                sum.not_finite.reason.get_or_insert_with(words);
            }
            sum.parts.resize(parts.len(), ("", 0.0));
            for (sum, (name, value)) in sum.parts.iter_mut().zip(parts) {
                *sum = (name, sum.1 + value * images as f64);
            }
            sum.images += images;
            sum.names.extend(names);
        }
        Ok(())
    }

    /// Adds up what the ranks have learned from a step's micro batches.
    pub(super) fn reduce(&mut self, micro_batches: usize, sum: &mut Accumulated, stop: &mut bool) -> Result<()> {
        let Accumulated { images, parts, names, not_finite, .. } = sum;
        let sums = Sums { images, parts, stop, not_finite };
        self.parallel.reduce(micro_batches, sums, || format!("the gradient is not finite on {}", some(names)))
    }

    /// Clips, updates, averages. Returns the learning rate and the norm of the gradient, or why the step was skipped.
    pub(super) fn update(&mut self, sum: &mut Accumulated) -> Result<Result<(f64, f64), String>> {
        let t = self.task.config().train();
        // The last step of an epoch may have fewer images than a batch.
        let mut scale = t.batch_size as f64 / sum.images as f64;
        let norm = self.optimizer.gradient_norm() * scale;
        if !norm.is_finite() {
            let words = || format!("the gradient became {norm} on {}", some(&sum.names));
            sum.not_finite.reason.get_or_insert_with(words);
        }
        if let Some(reason) = sum.not_finite.reason.take() {
            return self.skip(sum, reason).map(Err);
        }
        if let Some(most) = t.clip_norm {
            scale *= clip_factor(norm, most);
        }
        let lr = self.schedule.lr(self.progress.iter as usize);
        self.standby.take_back();
        self.optimizer.step(lr, scale);
        if let Some(ema) = &mut self.ema {
            ema.update();
            self.progress.ema_updates = ema.updates();
        }
        self.statistics.keep();
        self.progress.iter += 1;
        self.progress.skipped = 0;
        Ok(Ok((lr, norm)))
    }

    /// Takes back a step that is not finite, and gives the reason again; or ends the run. Leaves a file of the first,
    /// where rank 0 has met it.
    fn skip(&mut self, sum: &Accumulated, reason: String) -> Result<String> {
        self.statistics.restore();
        self.optimizer.clear();
        if let Some(replicas) = &mut self.replicas {
            replicas.take_statistics();
        }
        let step = self.progress.iter + 1;
        let mut again = String::new();
        if !self.reproducible && self.parallel.ranks().is_first() && !sum.not_finite.elsewhere {
            self.reproducible = true;
            match self.reproduce(sum, &reason) {
                Ok(path) => again = format!("; `vigdet replay {}` does the step again", path.display()),
                Err(error) => warn(&format!("step {step} cannot be kept: {error:#}")),
            }
        }
        let t = self.task.config().train();
        let reason = match t.on_nan {
            OnNan::Stop => reason,
            OnNan::Skip if self.progress.skipped < t.skip_most => {
                self.standby.take_back();
                self.progress.iter = step;
                self.progress.skipped += 1;
                return Ok(reason + &again);
            }
            OnNan::Skip => format!("{reason}, after {} steps that were skipped (train.skip_most)", t.skip_most),
        };
        // The one that has met it says so, if it lives.
        self.parallel.ranks().wait_for_who_failed(!sum.not_finite.elsewhere)?;
        let last = self.run.last();
        let advice = self.task.advice();
        bail!("{reason} at step {step}; {advice}{again}; the last checkpoint, {}, is from before", last.display());
    }

    /// Writes what does a step again. Its batches are made anew, to the bit as they were.
    fn reproduce(&self, sum: &Accumulated, reason: &str) -> Result<PathBuf> {
        let batches = self.feed.epoch(self.progress.epoch, sum.first, self.is_strong());
        let mut relabelled = Vec::new();
        for (number, batch) in sum.numbers.iter().copied().zip(batches) {
            let mut batch = batch?;
            self.task.relabel(&mut batch);
            relabelled.push((number, batch));
        }
        let step = (self.progress.iter + 1, reason);
        not_finite::write(&self.run, step, &relabelled, &self.variables, &self.metadata)
    }
}

/// What came of a micro batch.
pub(in crate::train) struct Learned {
    /// The parts of the loss.
    parts: Vec<&'static str>,
    /// Their values on the device; not always finite.
    values: Tensor,
    images: usize,
    /// Its files.
    pub names: Vec<String>,
}

impl Learned {
    /// The parts of the loss, by name.
    pub(in crate::train) fn losses(&self) -> Result<Vec<(&'static str, f64)>> {
        Ok(self.parts.iter().copied().zip(numbers(&self.values)?).collect())
    }
}

/// Adds the gradient of one micro batch, times its fraction of a full batch, to the model's. `number` counts the run's
/// micro batches.
pub(in crate::train) fn learn_micro_batch<T: Task>(
    task: &T,
    model: &T::Model,
    number: u64,
    batch: <T::Source as Source>::Batch,
    device: Device,
) -> Result<Learned> {
    let t = task.config().train();
    let mut pass = Pass::training(t.seed, number).recomputing(t.recompute);
    let Micro { losses, images, names } = task.losses(model, batch, device, &mut pass)?;
    let total = losses.total();
    let fraction = images as f64 / t.batch_size as f64;
    if fraction == 1.0 { total } else { total * fraction }.backward();
    // In float32: MPS has no float64.
    let values = losses.parts.iter().map(|(_, part)| part.detach().to_kind(Kind::Float).reshape([]));
    let values = Tensor::stack(&values.collect::<Vec<_>>(), 0);
    let parts = losses.parts.iter().map(|(name, _)| *name).collect();
    Ok(Learned { parts, values, images, names })
}

/// Values of a device in float64.
fn numbers(values: &Tensor) -> Result<Vec<f64>> {
    Ok(fetch(values).to_kind(Kind::Double).try_into()?)
}

/// The first few names.
fn some(names: &[String]) -> String {
    match names {
        [first, second, _, _, _, ..] => format!("{first}, {second} and {} more images", names.len() - 2),
        few => few.join(", "),
    }
}
