//! What may change when a run goes on.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use serde_json::Value;

use super::run_dir::RunDir;
use crate::config::{ClassifyConfig, Config};

/// Keys that do not change what a step computes, only how many there are and what is written.
const FREE: [&str; 6] =
    ["train.max_iters", "train.eval_every", "train.threads", "checkpoint", "data.workers", "data.root"];
/// Free in a detector's run only: of all epochs, the cosine of a classifier's learning rate spans every one.
const EPOCHS: &str = "train.epochs";

/// The config of the run in a folder, with changes.
pub fn config_of(folder: &Path, changes: &[String]) -> Result<Config> {
    let (path, text) = text_of(folder)?;
    Config::from_json_with(&text, changes).with_context(|| format!("config {}", path.display()))
}

/// The config of the classifier's run in a folder, with changes.
pub fn classify_config_of(folder: &Path, changes: &[String]) -> Result<ClassifyConfig> {
    let (path, text) = text_of(folder)?;
    ClassifyConfig::from_json_with(&text, changes).with_context(|| format!("config {}", path.display()))
}

fn text_of(folder: &Path) -> Result<(PathBuf, String)> {
    let path = RunDir::open(folder)?.config();
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((path, text))
}

/// Refuses a config that would make a resumed run another run.
pub fn check(folder: &Path, config: &Config) -> Result<()> {
    let free = [&[EPOCHS], &FREE[..]].concat();
    compare(folder, &free, config_of(folder, &[])?.to_value()?, config.to_value()?)
}

/// [`check`] of a classifier's run, whose epochs stay what they are too.
pub fn check_classify(folder: &Path, config: &ClassifyConfig) -> Result<()> {
    let value = |config: &ClassifyConfig| serde_json::to_value(config);
    compare(folder, &FREE, value(&classify_config_of(folder, &[])?)?, value(config)?)
}

fn compare(folder: &Path, free: &[&str], before: Value, now: Value) -> Result<()> {
    if let Some((key, before, now)) = difference("", free, &before, &now) {
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
fn difference(path: &str, free: &[&str], before: &Value, now: &Value) -> Option<(String, Value, Value)> {
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
    use serde_json::json;

    #[test]
    fn a_resumed_run_may_be_longer_but_not_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let config = Config::default();
        run.describe(&config.to_json().unwrap(), json!({}), false).unwrap();
        std::fs::write(run.state(), "").unwrap();
        check(folder.path(), &config).unwrap();
        let changed = |change: &str| config_of(folder.path(), &[change.to_string()]).unwrap();
        check(folder.path(), &changed("train.epochs=99")).unwrap();
        check(folder.path(), &changed("checkpoint.keep=9")).unwrap();
        let error = check(folder.path(), &changed("train.lr=7")).unwrap_err().to_string();
        assert!(error.contains("train.lr is 7.0 but the run"), "{error}");
    }

    #[test]
    fn a_classifiers_epochs_stay_because_its_learning_rate_depends_on_them() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        run.describe(&ClassifyConfig::default().to_json().unwrap(), json!({}), false).unwrap();
        std::fs::write(run.state(), "").unwrap();
        let check = |change: &str| {
            let changed = classify_config_of(folder.path(), &[change.to_string()]).unwrap();
            check_classify(folder.path(), &changed)
        };
        check("train.max_iters=99").unwrap();
        let error = check("train.epochs=99").unwrap_err().to_string();
        assert!(error.contains("train.epochs is 99 but the run") && error.contains("learning rate"), "{error}");
        assert!(!error.contains("but for train.epochs"), "{error}");
    }
}
