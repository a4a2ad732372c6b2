//! What may change when a run goes on.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;

use crate::config::{Experiment, Task};
use crate::console::warn;
use crate::runs::RunDir;
use crate::weights::Checkpoint;

/// Keys that do not change what a step computes, only how many there are and what is written.
const FREE: [&str; 9] = [
    "train.max_iters",
    "train.eval_every",
    "train.threads",
    "train.on_nan",
    "train.skip_most",
    "train.grace_seconds",
    "checkpoint",
    "data.workers",
    "data.root",
];
/// Free in a detector's run only: of all epochs, the cosine of a classifier's learning rate spans every one.
const EPOCHS: &str = "train.epochs";

/// The config of the run in a folder. Of a config.json that was changed since it was written, or damaged, the copy in
/// the run's state counts, with a warning; what was in config.json is kept beside it.
///
/// # Errors
/// If there is no run, or no whole config in it.
pub fn config_of<C: Experiment>(folder: &Path) -> Result<C> {
    let run = RunDir::at(folder);
    run.check_resumable()?;
    let path = run.config();
    let read = || -> Result<C> {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        C::from_json_with(&text, &[]).with_context(|| format!("config {}", path.display()))
    };
    if run.is_intact(&path) {
        return read();
    }
    let kept = Checkpoint::open(&run.state()).and_then(|state| state.config::<C>(&[]));
    let Ok(Some(config)) = kept else { return read() };
    let aside = path.with_file_name("config.changed.json");
    ensure!(!aside.exists(), "{} was changed since it was written, and {} is there", path.display(), aside.display());
    std::fs::rename(&path, &aside).with_context(|| format!("cannot write {}", aside.display()))?;
    run.write_config(&config.to_json()?)?;
    warn(&format!(
        "{} is not as it was written: the config in {} is used; what was there is in {}",
        path.display(),
        run.state().display(),
        aside.display()
    ));
    Ok(config)
}

/// Refuses a config that would make a resumed run another run than it was `before`.
///
/// # Errors
/// Names the first key that may not change.
pub fn check<C: Experiment>(folder: &Path, before: &C, config: &C) -> Result<()> {
    let mut free = FREE.to_vec();
    if C::TASK == Task::Detection {
        free.insert(0, EPOCHS);
    }
    if let Some((key, before, now)) = difference("", &free, &before.to_value()?, &config.to_value()?) {
        bail!(
            "{key} is {now} but the run in {} has {before}: a resumed run keeps its config (but for {}){}",
            folder.display(),
            free.join(", "),
            if key == EPOCHS { "; the learning rate of all steps depends on the epochs" } else { "" }
        );
    }
    Ok(())
}

/// The first key that differs and may not, with both values.
pub(super) fn difference(path: &str, free: &[&str], before: &Value, now: &Value) -> Option<(String, Value, Value)> {
    if free.contains(&path) || before == now {
        return None;
    }
    match (before, now) {
        (Value::Object(before), Value::Object(now)) => now.iter().find_map(|(key, value)| {
            let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            difference(&here, free, before.get(key).unwrap_or(&Value::Null), value)
        }),
        _ => Some((path.to_string(), before.clone(), now.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClassifyConfig, Config};
    use serde_json::json;

    #[test]
    fn a_resumed_run_may_be_longer_but_not_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let config = Config::default();
        run.describe(&config.to_json().unwrap(), json!({}), false).unwrap();
        std::fs::write(run.state(), "").unwrap();
        let before: Config = config_of(folder.path()).unwrap();
        assert_eq!(before, config);
        let check = |change: &str| {
            let changed = Config::from_json_with(&before.to_json().unwrap(), &[change.to_string()]).unwrap();
            super::check(folder.path(), &before, &changed)
        };
        check("train.epochs=99").unwrap();
        check("checkpoint.keep=9").unwrap();
        let error = check("train.lr=7").unwrap_err().to_string();
        assert!(error.contains("train.lr is 7.0 but the run"), "{error}");
    }

    #[test]
    fn a_classifiers_epochs_stay_because_its_learning_rate_depends_on_them() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        run.describe(&ClassifyConfig::default().to_json().unwrap(), json!({}), false).unwrap();
        std::fs::write(run.state(), "").unwrap();
        let before: ClassifyConfig = config_of(folder.path()).unwrap();
        let check = |change: &str| {
            let changed = ClassifyConfig::from_json_with(&before.to_json().unwrap(), &[change.to_string()]).unwrap();
            super::check(folder.path(), &before, &changed)
        };
        check("train.max_iters=99").unwrap();
        let error = check("train.epochs=99").unwrap_err().to_string();
        assert!(error.contains("train.epochs is 99 but the run") && error.contains("learning rate"), "{error}");
        assert!(!error.contains("but for train.epochs"), "{error}");
    }
}
