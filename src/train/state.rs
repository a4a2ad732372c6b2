//! What is written so that a run can be used and can go on: its newest weights, and its state.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::ema::Ema;
use super::optimizer::Optimizer;
use crate::runs::RunDir;
use crate::weights::{self, previous, write_tensors, Checkpoint, Metadata, WeightFile};

/// Prefixes of the parts of a state file.
const MODEL: &str = "model.";
const OPTIMIZER: &str = "optimizer.";
const EMA: &str = "ema.";
const PROGRESS: &str = "progress";
/// The entry of a file's metadata that says which step it is of.
const ITER: &str = "iter";

/// Where a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub iter: u64,
    /// Epochs done, and so the number of the present one, from 0.
    pub epoch: usize,
    /// Batches of the present epoch that are done. All of them: only its evaluation is left.
    pub batch: usize,
    /// Forward passes of training done.
    pub forwards: u64,
    /// Updates of the average of the weights.
    pub ema_updates: u64,
    /// The step after which the last evaluation was.
    pub evaluated: Option<u64>,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Steps of the whole run, where `train.max_minutes` decided them.
    #[serde(default)]
    pub planned: Option<u64>,
    /// Steps that were skipped just now, in a row (`train.on_nan`).
    #[serde(default)]
    pub skipped: usize,
    /// What the training data was: [`crate::data::Feed::digest`].
    #[serde(default)]
    pub data: Option<String>,
    /// Seconds spent in all, evaluations included.
    pub seconds: f64,
}

/// An evaluation that no other has beaten.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Box AP of a detector, top-1 accuracy of a classifier.
    #[serde(alias = "ap")]
    pub score: f64,
    /// The epoch it came after, from 1.
    pub epoch: usize,
    /// The step it came after.
    pub iter: u64,
}

/// What a run goes on from, beside its weights.
pub struct State<'a> {
    /// Variables of the model, by name.
    pub variables: &'a [(String, Tensor)],
    /// What its optimizer remembers.
    pub optimizer: &'a mut Optimizer,
    /// The average of the weights, where there is one.
    pub ema: Option<&'a mut Ema>,
}

/// The state of a run after a step. The tensors share the run's memory.
#[derive(Debug)]
pub struct Snapshot {
    /// Variables of the model, by name.
    variables: Vec<(String, Tensor)>,
    optimizer: Vec<(String, Tensor)>,
    averages: Vec<(String, Tensor)>,
    progress: Progress,
}

impl Snapshot {
    /// The step that it is of.
    pub fn iter(&self) -> u64 {
        self.progress.iter
    }

    /// Writes a run's newest weights for others (their average, where there is one), then everything that a resumed
    /// run needs: variables, optimizer, average, progress. The files that were there before stay beside them
    /// ([`previous`]). Both files say which step they are of.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, run: &RunDir, metadata: &Metadata) -> Result<()> {
        self.write_weights(run, metadata)?;
        let mut metadata = self.with_iter(metadata);
        metadata.insert(PROGRESS.to_string(), serde_json::to_string(&self.progress)?);
        keep_previous(&run.state())?;
        write_tensors(&self.everything(), &run.state(), &metadata)
    }

    /// Writes the newest weights alone.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_weights(&self, run: &RunDir, metadata: &Metadata) -> Result<()> {
        save_weights(&run.last(), &self.averaged(), &self.with_iter(metadata))
    }

    fn with_iter(&self, metadata: &Metadata) -> Metadata {
        let mut metadata = metadata.clone();
        metadata.insert(ITER.to_string(), self.progress.iter.to_string());
        metadata
    }

    /// Bytes of the tensors in both files.
    pub fn bytes(&self) -> u64 {
        let of = |tensors: &[(String, Tensor)]| -> usize {
            tensors.iter().map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
        };
        (of(&self.averaged()) + of(&self.everything())) as u64
    }

    /// The variables, with averages in place of those that have one.
    fn averaged(&self) -> Vec<(String, Tensor)> {
        let averages: HashMap<&str, &Tensor> = self.averages.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let own = |(name, variable): &(String, Tensor)| {
            let value = averages.get(name.as_str()).copied().unwrap_or(variable);
            (name.clone(), value.shallow_clone())
        };
        self.variables.iter().map(own).collect()
    }

    fn everything(&self) -> Vec<(String, Tensor)> {
        let parts = [(MODEL, &self.variables), (OPTIMIZER, &self.optimizer), (EMA, &self.averages)];
        let named = |prefix: &'static str| {
            move |(name, tensor): &(String, Tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())
        };
        parts.into_iter().flat_map(|(prefix, entries)| entries.iter().map(named(prefix))).collect()
    }
}

impl State<'_> {
    /// The state now; `kept` has the values of variables that count in place of their present ones.
    pub fn snapshot(&self, progress: &Progress, kept: impl Fn(&str) -> Option<Tensor>) -> Snapshot {
        let variable = |(name, variable): &(String, Tensor)| {
            (name.clone(), kept(name).unwrap_or_else(|| variable.shallow_clone()))
        };
        Snapshot {
            variables: self.variables.iter().map(variable).collect(),
            optimizer: self.optimizer.state(),
            averages: self.ema.as_deref().map(Ema::averages).unwrap_or_default(),
            progress: progress.clone(),
        }
    }

    /// Takes up what [`Snapshot::write`] wrote.
    ///
    /// # Errors
    /// If the file is for another model or optimizer.
    pub fn load(&mut self, saved: &Checkpoint, progress: &Progress) -> Result<()> {
        self.load_parts(saved, progress).with_context(|| format!("cannot resume from {}", saved.path().display()))
    }

    fn load_parts(&mut self, saved: &Checkpoint, progress: &Progress) -> Result<()> {
        let names = saved.file().names()?;
        let part = |prefix: &str| -> Result<HashMap<String, Tensor>> {
            let names = names.iter().filter_map(|name| Some((name, name.strip_prefix(prefix)?)));
            names.map(|(name, own)| Ok((own.to_string(), saved.file().tensor(name)?))).collect()
        };
        copy(self.variables, &part(MODEL)?)?;
        self.optimizer.load_state(&part(OPTIMIZER)?)?;
        if let Some(ema) = &mut self.ema {
            copy(&ema.averages(), &part(EMA)?)?;
            ema.resume(progress.ema_updates);
        }
        Ok(())
    }
}

/// Writes weights in place of older ones, which stay beside them ([`previous`]).
///
/// # Errors
/// If the file cannot be written.
pub fn save_weights(path: &Path, variables: &[(String, Tensor)], metadata: &Metadata) -> Result<()> {
    keep_previous(path)?;
    weights::write_tensors(variables, path, metadata)
}

/// Where the run was that wrote a state.
///
/// # Errors
/// If the file does not say.
pub fn progress_of(saved: &Checkpoint) -> Result<Progress> {
    let metadata = saved.metadata();
    let read = || serde_json::from_str(metadata.get(PROGRESS)?).ok();
    read().with_context(|| format!("cannot resume from {}: it does not say where its run was", saved.path().display()))
}

/// Whether a run's newest weights are of another step than its state, as after a kill between the two files. Those of
/// versions that did not say so are taken to be of the same.
pub fn weights_are_of_another_step(run: &RunDir, progress: &Progress) -> bool {
    let Ok(last) = WeightFile::open(&run.last()) else { return true };
    last.metadata().get(ITER).is_some_and(|iter| *iter != progress.iter.to_string())
}

fn keep_previous(path: &Path) -> Result<()> {
    match path.exists() {
        true => link(path, &previous(path)),
        false => Ok(()),
    }
}

/// Gives variables the values of those with their names.
///
/// # Errors
/// If one is missing or has another shape.
pub(super) fn copy(to: &[(String, Tensor)], from: &HashMap<String, Tensor>) -> Result<()> {
    for (name, tensor) in to {
        let saved = from.get(name).with_context(|| format!("it has no {name}: another model?"))?;
        ensure!(
            saved.size() == tensor.size(),
            "{name} has shape {:?} in it and {:?} in the model",
            saved.size(),
            tensor.size()
        );
        tch::no_grad(|| tensor.shallow_clone().copy_(saved));
    }
    Ok(())
}

/// Gives the newest weights a numbered name too, and removes the oldest numbered ones but `keep`.
pub fn keep_numbered(run: &RunDir, iter: u64, keep: usize) -> Result<()> {
    if keep > 0 {
        link(&run.last(), &run.checkpoints().join(format!("iter_{iter:08}.safetensors")))?;
    }
    let mut numbered = numbered(run)?;
    numbered.sort();
    for old in &numbered[..numbered.len().saturating_sub(keep)] {
        std::fs::remove_file(old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(())
}

fn numbered(run: &RunDir) -> Result<Vec<PathBuf>> {
    let folder = run.checkpoints();
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let is_numbered = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let digits = name.strip_prefix("iter_").and_then(|n| n.strip_suffix(".safetensors"));
        digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
    };
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_numbered).collect())
}

/// A second name for a file, at once. Files are replaced whole and never changed, so two names can share one.
fn link(from: &Path, to: &Path) -> Result<()> {
    let beside = to.with_extension("linking");
    let link = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&beside);
        // Some file systems know no second names.
        std::fs::hard_link(from, &beside).or_else(|_| std::fs::copy(from, &beside).map(drop))?;
        std::fs::rename(&beside, to)
    };
    // Two names of the same file: renaming one to the other does nothing and leaves both.
    let result = link().with_context(|| format!("cannot write {}", to.display()));
    let _ = std::fs::remove_file(&beside);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_goes_on_with_as_many_updates_as_it_had() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let variables = vec![("v".to_string(), Tensor::zeros([3], (tch::Kind::Float, tch::Device::Cpu)))];
        let decay_after = |updates: Option<u64>| {
            let mut optimizer = Optimizer::new(&variables, &Default::default());
            let mut ema = Ema::new(&variables, 0.999, true);
            (0..updates.unwrap_or(0)).for_each(|_| ema.update());
            let progress = Progress { ema_updates: ema.updates(), ..Progress::default() };
            let mut state = State { variables: &variables, optimizer: &mut optimizer, ema: Some(&mut ema) };
            match updates {
                Some(_) => state.snapshot(&progress, |_| None).write(&run, &Metadata::new()).unwrap(),
                None => {
                    let saved = Checkpoint::open(&run.state()).unwrap();
                    state.load(&saved, &progress_of(&saved).unwrap()).unwrap();
                }
            }
            ema.decay()
        };
        let before = decay_after(Some(7));
        assert_eq!((before, decay_after(None)), (8.0 / 17.0, before));
    }

    #[test]
    fn numbered_checkpoints_are_the_newest_few_and_keep_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        for iter in [5, 10, 15, 100] {
            vigdet_coco::output::write_atomically(&run.last(), |out| {
                std::io::Write::write_all(out, iter.to_string().as_bytes())
            })
            .unwrap();
            keep_numbered(&run, iter, 2).unwrap();
            keep_numbered(&run, iter, 2).unwrap();
        }
        let mut names: Vec<String> = std::fs::read_dir(run.checkpoints())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["iter_00000015.safetensors", "iter_00000100.safetensors", "last.safetensors"]);
        let content = |name: &str| std::fs::read_to_string(run.checkpoints().join(name)).unwrap();
        assert_eq!(content("iter_00000015.safetensors"), "15");
        assert_eq!(content("last.safetensors"), "100");
    }
}
