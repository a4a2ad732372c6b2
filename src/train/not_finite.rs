//! A step whose loss or gradient is not finite: as a file, and done again from that file.
//!
//! The file is a safetensors file: the images of each micro batch and all else that its loss takes, the numbers that
//! its random draws come from, the config and the classes, and the name of the file of weights beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{nn, Device};

use super::engine::learn_micro_batch;
use super::optimizer::Optimizer;
use super::state::copy;
use super::task::Task;
use crate::config::{self, Experiment};
use crate::data::{Record, Source};
use crate::runs::RunDir;
use crate::weights::{sorted_variables, write_tensors, Checkpoint, Metadata};

/// The entry of the file's metadata that holds [`About`] as JSON.
const ABOUT: &str = "not_finite";

/// What the file says beside tensors, config and classes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct About {
    /// The step, from 1.
    step: u64,
    /// What became of it.
    reason: String,
    /// The weights before the step, a file in the same folder.
    weights: PathBuf,
    /// The micro batches: their numbers in the run, and all of them but tensors.
    batches: Vec<(u64, Value)>,
}

/// Writes what does a step again into the run's folder: `batches` with their numbers in the run, and the variables of
/// the model as they were before. Gives the file.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn write<B: Record>(
    run: &RunDir,
    (step, reason): (u64, &str),
    batches: &[(u64, B)],
    variables: &[(String, tch::Tensor)],
    metadata: &Metadata,
) -> Result<PathBuf> {
    let folder = run.not_finite();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let weights = PathBuf::from(format!("step_{step:08}.weights.safetensors"));
    write_tensors(variables, &folder.join(&weights), metadata)?;
    let (mut tensors, mut rest) = (Vec::new(), Vec::new());
    for (number, batch) in batches {
        let (of_batch, about) = batch.record();
        tensors.extend(of_batch.into_iter().map(|(name, tensor)| (format!("{number}.{name}"), tensor)));
        rest.push((*number, about));
    }
    let about = About { step, reason: reason.to_string(), weights, batches: rest };
    let mut metadata = metadata.clone();
    metadata.insert(ABOUT.to_string(), serde_json::to_string(&about)?);
    let path = folder.join(format!("step_{step:08}.safetensors"));
    write_tensors(&tensors, &path, &metadata)?;
    Ok(path)
}

/// A step that can be done again.
#[derive(Debug)]
pub struct Reproducer {
    file: Checkpoint,
    about: About,
}

/// A micro batch that was done again.
#[derive(Debug)]
pub struct ReplayedBatch {
    /// Its number in the run.
    pub number: u64,
    /// Its files.
    pub images: Vec<String>,
    /// The parts of its loss.
    pub parts: Vec<(&'static str, f64)>,
}

/// What a step that was done again gave.
#[derive(Debug)]
pub struct Replayed {
    /// Its micro batches.
    pub batches: Vec<ReplayedBatch>,
    /// 2-norm of the gradient.
    pub grad_norm: f64,
    /// Variables whose gradient is not finite, in the order of their names.
    pub variables: Vec<String>,
}

impl Replayed {
    /// Whether something was not finite again.
    pub fn is_not_finite(&self) -> bool {
        let mut losses = self.batches.iter().flat_map(|batch| &batch.parts);
        !self.grad_norm.is_finite() || losses.any(|(_, value)| !value.is_finite())
    }
}

impl Reproducer {
    /// Reads a file that a run left where its loss or gradient was not finite.
    ///
    /// # Errors
    /// If it is no such file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Checkpoint::open(path)?;
        let metadata = file.metadata();
        let other = || format!("{} is no file of a step: a run leaves those in its folder not_finite", path.display());
        let about = metadata.get(ABOUT).with_context(other)?;
        let about = serde_json::from_str(about).with_context(other)?;
        Ok(Self { file, about })
    }

    /// The number of the step, from 1.
    pub fn step(&self) -> u64 {
        self.about.step
    }

    /// What became of it.
    pub fn reason(&self) -> &str {
        &self.about.reason
    }

    /// What was trained; `None`: the file does not say.
    pub fn task(&self) -> Option<config::Task> {
        self.file.task()
    }

    /// The weights before the step.
    pub fn weights(&self) -> PathBuf {
        self.file.path().with_file_name(&self.about.weights)
    }

    /// Does the step again, up to its gradient, from these weights, with changes to the config in `--set`'s form.
    ///
    /// # Errors
    /// If the file is of another task, or something in it or in the weights does not fit.
    pub fn replay<T: Task>(&self, weights: &Checkpoint, device: Device, changes: &[String]) -> Result<Replayed> {
        let config = self.file.config::<T::Config>(changes)?.context("the file has no config")?;
        let classes = self.file.classes().cloned().context("the file has no classes")?;
        let train = config.train().clone();
        let count = classes.len();
        let task = T::without_data(config, classes);
        let store = nn::VarStore::new(device);
        let model = task.build(&store.root())?;
        let variables = sorted_variables(&store);
        // Not as weights are loaded elsewhere: these may hold numbers that are not finite.
        let saved = variables.iter().filter_map(|(name, _)| Some((name.clone(), weights.file().tensor(name).ok()?)));
        copy(&variables, &saved.collect()).with_context(|| format!("weights {}", weights.path().display()))?;
        let mut batches = Vec::new();
        for (number, rest) in &self.about.batches {
            let tensor = |name: &str| self.file.file().tensor(&format!("{number}.{name}"));
            let batch = <<T::Source as Source>::Batch as Record>::from_record(&tensor, rest, count)
                .with_context(|| format!("micro batch {number} in {}", self.file.path().display()))?;
            let learned = learn_micro_batch(&task, &model, *number, batch, device)?;
            let parts = learned.losses()?;
            batches.push(ReplayedBatch { number: *number, images: learned.names, parts });
        }
        let grad_norm = Optimizer::new(&variables, &train).gradient_norm();
        let broken = |(name, variable): (String, tch::Tensor)| {
            let gradient = variable.grad();
            let finite = !gradient.defined() || gradient.isfinite().all().int64_value(&[]) == 1;
            (!finite).then_some(name)
        };
        Ok(Replayed { batches, grad_norm, variables: variables.into_iter().filter_map(broken).collect() })
    }
}
