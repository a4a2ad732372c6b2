//! The folder of a run: where everything is, and what may be started in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};
use vigdet_coco::output::{write_atomically, Outputs};

use super::lines::Line;
use crate::weights::previous;

/// What a run's folder holds. A new run takes none that has any of these.
const NAMES: [&str; 12] = [
    "config.json",
    "run.json",
    "log.jsonl",
    "metrics.json",
    "bbox.json",
    "segm.json",
    "ground_truth.json",
    "ground_truth_used.json",
    "checkpoints",
    "not_finite",
    "plots",
    LOCK,
];
/// Who writes to the folder holds a lock on this file.
const LOCK: &str = "run.lock";
/// How that file begins.
const HOLDER: &str = "process ";

/// A run's folder. Whoever made or resumed it is its only writer until this is dropped.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: Option<Arc<File>>,
}

impl RunDir {
    /// The paths in a folder, to be read.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf(), _lock: None }
    }

    /// Whether a new run may have this folder, which need not be there yet.
    ///
    /// # Errors
    /// If it already holds a run, or something that a run would write over.
    pub fn check_free(path: &Path) -> Result<()> {
        if Self::at(path).is_run() {
            bail!("{} already holds a run: --resume goes on with it, --out names another folder", path.display());
        }
        let taken = |name: &&&str| path.join(name).symlink_metadata().is_ok();
        // What a start left that did not get as far as a config is ours.
        if let Some(name) = NAMES.iter().find(taken).filter(|_| !is_lock(&path.join(LOCK))) {
            bail!("{} has a {name} that is of no run: --out names another folder", path.display());
        }
        Ok(())
    }

    /// Makes the folder of a new run, if it is not there yet, and becomes its writer.
    ///
    /// # Errors
    /// As [`RunDir::check_free`]; if another program writes to it.
    pub fn create(path: &Path) -> Result<Self> {
        Self::check_free(path)?;
        make(path)?;
        let run = Self::lock(path)?;
        // Another run may have come and gone in between.
        Self::check_free(path)?;
        make(&run.checkpoints())?;
        Ok(run)
    }

    /// Makes the first of the folders `base`, `base-2`, `base-3`, … that is not there yet, and becomes its writer. Two
    /// programs at once get two folders.
    ///
    /// # Errors
    /// If folders cannot be made.
    pub fn create_numbered(base: &Path) -> Result<Self> {
        if let Some(parent) = base.parent() {
            make(parent)?;
        }
        for path in numbered(base) {
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => bail!("cannot make the folder {}: {error}", path.display()),
                Ok(()) => return Self::create(&path),
            }
        }
        bail!("every folder {}-N is there", base.display())
    }

    /// The last of `base`, `base-2`, `base-3`, … that holds a run; `base` if none does.
    pub fn last_numbered(base: &Path) -> PathBuf {
        let there = numbered(base).take_while(|path| path.exists());
        there.filter(|path| Self::at(path).is_run()).last().unwrap_or_else(|| base.to_path_buf())
    }

    /// The folder of a run that is to go on. The caller becomes its writer.
    ///
    /// # Errors
    /// If it holds none, or one without a state to go on from; if another program writes to it.
    pub fn open(path: &Path) -> Result<Self> {
        Self::at(path).check_resumable()?;
        Self::lock(path)
    }

    /// Whether there is a run that can go on.
    ///
    /// # Errors
    /// If there is none, or one without a state to go on from.
    pub fn check_resumable(&self) -> Result<()> {
        ensure!(
            self.is_run(),
            "there is no run to resume in {}: it has no config.json (without --resume, a new run starts there)",
            self.path.display()
        );
        ensure!(
            self.state().exists() || previous(&self.state()).exists(),
            "the run in {} cannot go on: {} is not there; without it, start anew in another folder (--out)",
            self.path.display(),
            self.state().display()
        );
        Ok(())
    }

    fn lock(path: &Path) -> Result<Self> {
        let file = path.join(LOCK);
        let ours = file.symlink_metadata().is_err() || is_lock(&file);
        ensure!(ours, "{} is not of a run: move it, or name another folder with --out", file.display());
        let open = || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&file);
        let mut lock = open().with_context(|| format!("cannot write {}", file.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "another program" } else { holder.trim() };
                bail!(
                    "{holder} is writing to the run in {}: wait until it ends, or name another folder with --out",
                    path.display()
                );
            }
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        let mut sign = || -> std::io::Result<()> {
            // Written over and then cut: on a full disk the file stays a lock.
            lock.rewind()?;
            let text = format!("{HOLDER}{}\n", std::process::id());
            lock.write_all(text.as_bytes())?;
            lock.set_len(text.len() as u64)
        };
        sign().with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Self { path: path.to_path_buf(), _lock: Some(Arc::new(lock)) })
    }

    /// Whether one of the folder's text files is as it was written; `true` also where nothing is known of it.
    pub fn is_intact(&self, path: &Path) -> bool {
        Outputs::default().is_intact(path)
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

    /// The part of the annotations that is used, where it is not all.
    pub fn used_ground_truth(&self) -> PathBuf {
        self.path.join("ground_truth_used.json")
    }

    /// Folder of the pictures.
    pub fn plots(&self) -> PathBuf {
        self.path.join("plots")
    }

    /// Folder of steps whose loss or gradient was not finite.
    pub fn not_finite(&self) -> PathBuf {
        self.path.join("not_finite")
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

    /// Writes the exact config, its JSON text.
    ///
    /// # Errors
    /// Names the file.
    pub fn write_config(&self, config: &str) -> Result<()> {
        write_text(&self.config(), config)
    }

    /// Writes the exact config (its JSON text), and who, what and when into run.json; a resumed run adds itself to
    /// what is there.
    pub fn describe(&self, config: &str, start: Value, resumed: bool) -> Result<()> {
        self.write_config(config)?;
        let path = self.path.join("run.json");
        let mut starts = if resumed { read_starts(&path) } else { Vec::new() };
        starts.push(start);
        write_text(&path, &(serde_json::to_string_pretty(&json!({ "starts": starts }))? + "\n"))
    }

    /// Drops the log's lines of steps after `iter`, which a resumed run does again, and, with `evaluation`, of
    /// evaluations after it as well as at it; also a last line that was cut off.
    pub fn rewind_log(&self, iter: u64, evaluation: bool) -> Result<()> {
        let path = self.log();
        if !path.exists() {
            return Ok(());
        }
        let mut kept = Vec::new();
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in BufReader::new(file).lines() {
            let line = line.with_context(|| format!("cannot read {}", path.display()))?;
            let Ok(entry) = Line::parse(&line) else { break };
            let again = evaluation && matches!(entry, Line::Evaluation(_)) && entry.iter() >= iter;
            if entry.iter() <= iter && !again {
                kept.push(line);
            }
        }
        Ok(write_atomically(&path, |out| kept.iter().try_for_each(|line| writeln!(out, "{line}")))?)
    }
}

/// `base`, `base-2`, `base-3`, …
fn numbered(base: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    (1..).map(|n| {
        let mut name = base.as_os_str().to_owned();
        if n > 1 {
            name.push(format!("-{n}"));
        }
        PathBuf::from(name)
    })
}

/// Whether a file is one that says who writes to a run, or was to say so before the disk was full.
fn is_lock(path: &Path) -> bool {
    let is_file = path.symlink_metadata().is_ok_and(|data| data.is_file());
    is_file && std::fs::read_to_string(path).is_ok_and(|text| text.is_empty() || text.starts_with(HOLDER))
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

fn read_starts(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    value["starts"].as_array().cloned().unwrap_or_default()
}

/// Writes a text file atomically into a folder that is vigdet's own, with its checksum in the folder's list.
///
/// # Errors
/// Names the file.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    Ok(Outputs::default().replace(path, |out| out.write_all(text.as_bytes()))?)
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
        let error = |result: Result<RunDir>| format!("{:#}", result.unwrap_err());
        assert!(error(RunDir::open(&path)).contains("no run to resume"));
        let run = RunDir::create(&path).unwrap();
        assert!(error(RunDir::create(&path)).contains("is writing to the run"));
        run.describe("{}", json!({"n": 1}), false).unwrap();
        assert!(error(RunDir::create(&path)).contains("--resume"));
        assert!(error(RunDir::open(&path)).contains("last.state is not there"));
        std::fs::write(run.state(), "").unwrap();
        assert!(error(RunDir::open(&path)).contains(&format!("process {} is writing", std::process::id())));
        drop(run);
        RunDir::open(&path).unwrap().describe("{}", json!({"n": 2}), true).unwrap();
        assert_eq!(read_starts(&path.join("run.json")), [json!({"n": 1}), json!({"n": 2})]);
    }

    #[test]
    fn runs_at_once_get_folders_of_their_own_and_the_last_run_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("runs").join("a");
        let start = || {
            std::thread::spawn({
                let base = base.clone();
                move || RunDir::create_numbered(&base)
            })
        };
        let threads: Vec<_> = (0..8).map(|_| start()).collect();
        let runs: Vec<RunDir> = threads.into_iter().map(|t| t.join().unwrap().unwrap()).collect();
        let mut paths: Vec<&Path> = runs.iter().map(RunDir::path).collect();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), 8);
        assert_eq!(RunDir::last_numbered(&base), base, "none of them holds a run yet");
        RunDir::at(&base.with_file_name("a-3")).describe("{}", json!({}), false).unwrap();
        assert!(RunDir::last_numbered(&base).ends_with("a-3"));
    }

    #[test]
    fn what_others_wrote_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        drop(RunDir::create(folder.path()).unwrap());
        // A start that was stopped before it had a config is no run.
        drop(RunDir::create(folder.path()).unwrap());
        // Nor one for which the disk was full at its first file.
        std::fs::write(folder.path().join(LOCK), "").unwrap();
        drop(RunDir::create(folder.path()).unwrap());
        for name in ["metrics.json", "run.lock"] {
            let other = tempfile::tempdir().unwrap();
            std::fs::write(other.path().join(name), "mine").unwrap();
            let error = RunDir::create(other.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("{name} that is of no run")), "{error}");
            assert_eq!(std::fs::read(other.path().join(name)).unwrap(), b"mine");
        }
    }

    #[test]
    fn the_log_is_rewound_to_the_step_that_a_resumed_run_starts_from() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::create(folder.path()).unwrap();
        let step = |iter| format!("{{\"iter\":{iter},\"loss\":1.0}}");
        let lines = [step(1), step(2), "{\"iter\":2,\"bbox\":{}}".into(), step(3), "{\"ite".into()];
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
