//! The folder of a run: where everything is, and what may be started in it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};

use crate::weights::write_atomically;

/// What only the log's lines of evaluations have: a detector's, a classifier's.
const EVALUATIONS: [&str; 2] = ["bbox", "top1"];

/// Paths inside a run's folder.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The paths of a new run's folder, which need not be there yet.
    ///
    /// # Errors
    /// If it already holds a run.
    pub fn free(path: &Path) -> Result<Self> {
        let run = Self { path: path.to_path_buf() };
        if run.is_run() {
            bail!("{} already holds a run: --resume goes on with it, --out names another folder", path.display());
        }
        Ok(run)
    }

    /// [`RunDir::free`], and makes the folder.
    pub fn create(path: &Path) -> Result<Self> {
        let run = Self::free(path)?;
        for folder in [run.path.clone(), run.checkpoints()] {
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        Ok(run)
    }

    /// The folder of a run that is to go on.
    ///
    /// # Errors
    /// If it holds none, or one without a state to go on from.
    pub fn open(path: &Path) -> Result<Self> {
        let run = Self { path: path.to_path_buf() };
        ensure!(
            run.is_run(),
            "there is no run to resume in {}: it has no config.json (without --resume, a new run starts there)",
            path.display()
        );
        ensure!(
            run.state().exists(),
            "the run in {} cannot go on: {} is not there; without it, start anew in another folder (--out)",
            path.display(),
            run.state().display()
        );
        Ok(run)
    }

    /// The first of `base`, `base-2`, `base-3`, … that holds no run; or, to resume, the last one that does.
    pub fn numbered(base: &Path, resume: bool) -> PathBuf {
        let mut last = base.to_path_buf();
        for n in 1.. {
            let mut name = base.as_os_str().to_owned();
            if n > 1 {
                name.push(format!("-{n}"));
            }
            let path = PathBuf::from(name);
            let taken = Self { path: path.clone() }.is_run();
            if !taken {
                return if resume { last } else { path };
            }
            last = path;
        }
        last
    }

    fn is_run(&self) -> bool {
        self.config().exists()
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's config.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// One JSON line for each step and each evaluation.
    pub fn log(&self) -> PathBuf {
        self.path.join("log.jsonl")
    }

    /// The best evaluation's scores.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.json")
    }

    /// The best evaluation's detections, in COCO's format.
    pub fn detections(&self) -> PathBuf {
        self.path.join("bbox.json")
    }

    /// The masks of the best evaluation's detections, in COCO's format.
    pub fn masks(&self) -> PathBuf {
        self.path.join("segm.json")
    }

    /// Which annotations the detections are to be compared with.
    pub fn ground_truth(&self) -> PathBuf {
        self.path.join("ground_truth.json")
    }

    /// Folder of weights and state.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Newest weights.
    pub fn last(&self) -> PathBuf {
        self.checkpoints().join("last.safetensors")
    }

    /// Weights of the best evaluation.
    pub fn best(&self) -> PathBuf {
        self.checkpoints().join("best.safetensors")
    }

    /// Everything else that a resumed run needs.
    pub fn state(&self) -> PathBuf {
        self.checkpoints().join("last.state")
    }

    /// Writes the exact config (its JSON text), and who, what and when into run.json; a resumed run adds itself to what is there.
    pub fn describe(&self, config: &str, start: Value, resumed: bool) -> Result<()> {
        write_text(&self.config(), config)?;
        let path = self.path.join("run.json");
        let mut starts = if resumed { read_starts(&path) } else { Vec::new() };
        starts.push(start);
        write_text(&path, &(serde_json::to_string_pretty(&json!({ "starts": starts }))? + "\n"))
    }

    /// Drops the log's lines of steps after `iter`, which a resumed run does again, and, with `evaluation`, of evaluations
    /// after it as well as at it; also a last line that was cut off.
    pub fn rewind_log(&self, iter: u64, evaluation: bool) -> Result<()> {
        let path = self.log();
        if !path.exists() {
            return Ok(());
        }
        let mut kept = Vec::new();
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in BufReader::new(file).lines() {
            let line = line.with_context(|| format!("cannot read {}", path.display()))?;
            let Ok(entry) = serde_json::from_str::<Value>(&line) else { break };
            let at = entry["iter"].as_u64().unwrap_or(0);
            let is_evaluation = EVALUATIONS.iter().any(|key| entry.get(key).is_some());
            let again = evaluation && is_evaluation && at >= iter;
            if at <= iter && !again {
                kept.push(line);
            }
        }
        write_atomically(&path, |out| kept.iter().try_for_each(|line| writeln!(out, "{line}")))
    }
}

fn read_starts(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    value["starts"].as_array().cloned().unwrap_or_default()
}

/// Writes a text file atomically.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |out| out.write_all(text.as_bytes()))
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_holds_a_run_is_refused_for_a_new_one_and_needed_to_resume() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs").join("a");
        assert!(format!("{:#}", RunDir::open(&path).unwrap_err()).contains("no run to resume"));
        let run = RunDir::create(&path).unwrap();
        assert!(RunDir::create(&path).is_ok(), "an empty folder holds no run");
        assert_eq!(RunDir::numbered(&path, false), path);
        run.describe("{}", json!({"n": 1}), false).unwrap();
        assert!(format!("{:#}", RunDir::create(&path).unwrap_err()).contains("--resume"));
        assert!(format!("{:#}", RunDir::open(&path).unwrap_err()).contains("last.state is not there"));
        std::fs::write(run.state(), "").unwrap();
        assert!(RunDir::numbered(&path, false).ends_with("a-2"));
        assert_eq!(RunDir::numbered(&path, true), path);
        RunDir::open(&path).unwrap().describe("{}", json!({"n": 2}), true).unwrap();
        assert_eq!(read_starts(&path.join("run.json")), [json!({"n": 1}), json!({"n": 2})]);
    }

    #[test]
    fn the_log_is_rewound_to_the_step_that_a_resumed_run_starts_from() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let lines = ["{\"iter\":1}", "{\"iter\":2}", "{\"iter\":2,\"bbox\":{}}", "{\"iter\":3}", "{\"ite"];
        let left = |iter, evaluation| {
            std::fs::write(run.log(), lines.join("\n")).unwrap();
            run.rewind_log(iter, evaluation).unwrap();
            std::fs::read_to_string(run.log()).unwrap()
        };
        assert_eq!(left(2, false), lines[..3].join("\n") + "\n");
        assert_eq!(left(2, true), lines[..2].join("\n") + "\n");
        assert_eq!(left(0, false), "");
    }
}
