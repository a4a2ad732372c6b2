//! What is written so that a run can be used and can go on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use tch::{nn, Tensor};

use super::ema::Ema;
use super::optimizer::Optimizer;
use super::run_dir::RunDir;
use crate::weights::{self, sorted_variables, write_tensors, Metadata, WeightFile};

/// Prefixes of the parts of a state file.
const MODEL: &str = "model.";
const OPTIMIZER: &str = "optimizer.";
const EMA: &str = "ema.";
const PROGRESS: &str = "progress";

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

/// Writes a run's newest weights for others (their average, where there is one), then the state for a resumed run.
pub fn save(
    run: &RunDir,
    store: &nn::VarStore,
    metadata: &Metadata,
    optimizer: &Optimizer,
    mut ema: Option<&mut Ema>,
    progress: &Progress,
) -> Result<()> {
    if let Some(ema) = &mut ema {
        ema.swap();
    }
    let saved = weights::save(store, &run.last(), metadata);
    if let Some(ema) = &mut ema {
        ema.swap();
    }
    saved?;
    save_state(&run.state(), &sorted_variables(store), optimizer, ema.as_deref(), progress)
}

/// Writes everything that a resumed run needs: variables, optimizer, average, progress.
pub fn save_state(
    path: &Path,
    variables: &[(String, Tensor)],
    optimizer: &Optimizer,
    ema: Option<&Ema>,
    progress: &Progress,
) -> Result<()> {
    let mut tensors = Vec::new();
    let mut add = |prefix: &str, entries: Vec<(String, Tensor)>| {
        tensors.extend(entries.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
    };
    add(MODEL, variables.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect());
    add(OPTIMIZER, optimizer.state());
    add(EMA, ema.map(Ema::averages).unwrap_or_default());
    let metadata = Metadata::from([(PROGRESS.to_string(), serde_json::to_string(progress)?)]);
    write_tensors(&tensors, path, &metadata)
}

/// Takes up what [`save_state`] wrote.
///
/// # Errors
/// If the file is broken or is for another model or optimizer.
pub fn load_state(
    path: &Path,
    variables: &[(String, Tensor)],
    optimizer: &mut Optimizer,
    ema: Option<&mut Ema>,
) -> Result<Progress> {
    load_parts(path, variables, optimizer, ema).with_context(|| format!("cannot resume from {}", path.display()))
}

fn load_parts(
    path: &Path,
    variables: &[(String, Tensor)],
    optimizer: &mut Optimizer,
    ema: Option<&mut Ema>,
) -> Result<Progress> {
    let file = WeightFile::open(path)?;
    let metadata = file.metadata();
    let progress = metadata.get(PROGRESS).context("it does not say where its run was")?;
    let progress: Progress = serde_json::from_str(progress).context("it does not say where its run was")?;
    let names = file.names()?;
    let part = |prefix: &str| -> Result<HashMap<String, Tensor>> {
        let names = names.iter().filter_map(|name| Some((name, name.strip_prefix(prefix)?)));
        names.map(|(name, own)| Ok((own.to_string(), file.tensor(name)?))).collect()
    };
    copy(variables, &part(MODEL)?)?;
    optimizer.load_state(&part(OPTIMIZER)?)?;
    if let Some(ema) = ema {
        copy(&ema.averages(), &part(EMA)?)?;
        ema.resume(progress.ema_updates);
    }
    Ok(progress)
}

fn copy(to: &[(String, Tensor)], from: &HashMap<String, Tensor>) -> Result<()> {
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
pub fn number(run: &RunDir, iter: u64, keep: usize) -> Result<()> {
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
    fn numbered_checkpoints_are_the_newest_few_and_keep_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        for iter in [5, 10, 15, 100] {
            crate::weights::write_atomically(&run.last(), |out| {
                std::io::Write::write_all(out, iter.to_string().as_bytes())
            })
            .unwrap();
            number(&run, iter, 2).unwrap();
            number(&run, iter, 2).unwrap();
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
