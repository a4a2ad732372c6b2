//! What the two training programs share: arguments, the run, and what is said at its end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Result};
use serde_json::Value;
use tch::Device;

use crate::cli::{change, FetchArgs};
use crate::config::Experiment;
use crate::console::{say, warn};
use crate::plot::{self, RunPictures};
use crate::ranks::Ranks;
use crate::runs::RunDir;
use crate::train::engine::{Engine, Out, Outcome, TrainOptions};
use crate::train::requests::Requests;
use crate::train::resume;
use crate::train::task::Task;
use crate::weights::Checkpoint;

/// A run, and the most common values of its config.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    /// Weights to start from, a file or a name of `vigdet weights`; rows of classes with equal names are kept
    #[arg(long, value_name = "FILE|NAME")]
    pub weights: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub fetch: FetchArgs,
    /// Train in so many processes on this machine, which divide each step's micro batches: with GPUs one for each. (On
    /// several machines torchrun or Slurm's srun starts them.)
    #[arg(long, value_name = "N")]
    pub processes: Option<usize>,
    /// Folder of the run (default: the first of runs/NAME, runs/NAME-2, … that is not there yet)
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Go on with the run in --out (default: the last of runs/NAME, runs/NAME-2, …)
    #[arg(long)]
    pub resume: bool,
    /// Passes through the training data
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// Stop after so many steps
    #[arg(long, value_name = "N")]
    max_iters: Option<u64>,
    /// Images of a step
    #[arg(long, value_name = "N")]
    batch_size: Option<u64>,
    /// Peak learning rate
    #[arg(long, value_name = "X")]
    lr: Option<f64>,
    /// Seed of everything random
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// What a training program decides before the run.
pub struct Plan<C> {
    /// The config, unless a resumed run's own is to be read.
    pub config: Option<C>,
    /// What the run's folder is called.
    pub name: String,
    /// Changes to a resumed run's config, in `--set`'s form.
    pub changes: Vec<String>,
    /// Where the network runs.
    pub device: Device,
    /// Weights to start from that were read already.
    pub weights: Option<Checkpoint>,
    /// The processes that train together.
    pub ranks: Ranks,
}

impl RunArgs {
    /// The flags as changes to a config.
    pub fn changes(&self) -> Vec<String> {
        let flags = [
            ("train.epochs", self.epochs.map(Value::from)),
            ("train.max_iters", self.max_iters.map(Value::from)),
            ("train.batch_size", self.batch_size.map(Value::from)),
            ("train.lr", self.lr.map(Value::from)),
            ("train.seed", self.seed.map(Value::from)),
        ];
        flags.into_iter().filter_map(|(key, value)| Some(change(key, value?))).collect()
    }

    /// Processes that were started again after a failure go on with the run that they began, if --out says which.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn decide_to_resume(&mut self, ranks: &Ranks) -> Result<()> {
        let began = |out: &PathBuf| RunDir::at(out).check_resumable().is_ok();
        let again = || ranks.are_restarted() && self.out.as_ref().is_some_and(began);
        self.resume = ranks.of_first(|| Ok(self.resume || again()))?;
        Ok(())
    }

    /// Trains. `check` sees the config, the weights, and of a resumed run its own config, before it starts, and may
    /// change the first; `hint` has a word once it has started.
    ///
    /// # Errors
    /// Those of the run.
    pub fn train<T: Task>(
        &self,
        plan: Plan<T::Config>,
        check: impl FnOnce(&mut T::Config, Option<&Checkpoint>, Option<&T::Config>) -> Result<()>,
        hint: impl FnOnce(&T),
    ) -> Result<(Outcome, T::Config)> {
        let ranks = plan.ranks;
        let base = Path::new("runs").join(&plan.name);
        let resume = self.resume;
        let out = match (&self.out, resume) {
            (Some(out), _) => Out::Named(out.clone()),
            (None, true) => Out::Named(RunDir::last_numbered(&base)),
            (None, false) => Out::Numbered(base),
        };
        let before = match (&out, resume) {
            (Out::Named(folder), true) => {
                let text = ranks.of_first(|| resume::config_of::<T::Config>(folder)?.to_json())?;
                Some(T::Config::from_json_with(&text, &[])?)
            }
            _ => None,
        };
        let mut config = match (plan.config, &before) {
            (Some(config), _) => config,
            (None, Some(before)) => T::Config::from_json_with(&before.to_json()?, &plan.changes)?,
            (None, None) => bail!("there is no config"),
        };
        let weights = match (resume, plan.weights) {
            (true, _) => None,
            (false, Some(weights)) => Some(weights),
            (false, None) => {
                self.weights.as_deref().map(|named| Checkpoint::open(&self.fetch.weights(named)?)).transpose()?
            }
        };
        check(&mut config, weights.as_ref(), before.as_ref())?;
        if let (Out::Named(folder), Some(before)) = (&out, &before) {
            resume::check(folder, before, &config)?;
        }
        let options = TrainOptions {
            out,
            resume,
            weights,
            device: plan.device,
            command: std::env::args().collect(),
            requests: Requests::by_signals()?,
            ranks,
        };
        let engine = Engine::<T>::start(config.clone(), options)?;
        hint(engine.task());
        Ok((engine.run()?, config))
    }
}

/// Says where everything is, and what to do next: `program` is how the training was started, `next` are command lines,
/// given the weights.
pub fn report(
    ranks: &Ranks,
    outcome: &Outcome,
    program: &str,
    score: impl FnOnce(f64) -> String,
    next: impl FnOnce(&Path) -> Vec<String>,
) -> ExitCode {
    let run = &outcome.run;
    let folder = run.path().display();
    if let Some(status) = outcome.stopped {
        say(&format!("stopped; this goes on where it was:\n  {program} --out {folder} --resume"));
        return ExitCode::from(status);
    }
    if !ranks.is_first() {
        return ExitCode::SUCCESS;
    }
    if let Some(lines) = &outcome.best_lines {
        say(lines.trim_end());
    }
    let file = |what: &str, path: &Path| say(&format!("  {what:11} {}", path.display()));
    let weights = match &outcome.best {
        Some(best) => {
            say(&format!("best {}, after epoch {} (step {})", score(best.score), best.epoch, best.iter));
            file("weights", &run.best());
            file("scores", &run.metrics());
            for (what, path) in [("detections", run.detections()), ("masks", run.masks())] {
                if path.exists() {
                    file(what, &path);
                }
            }
            run.best()
        }
        None => {
            say("done (never evaluated: train.eval_every is 0)");
            file("weights", &run.last());
            run.last()
        }
    };
    say(&format!("  log         {} (tensorboard --logdir {folder})", run.log().display()));
    match plot::run(run.path(), &RunPictures::default()) {
        Ok(files) => say(&format!("  pictures    {} ({} files)", run.plots().display(), files.len())),
        // The training stands whatever becomes of its pictures.
        Err(error) => warn(&format!("no pictures: {error:#}")),
    }
    say("next:");
    next(&weights).iter().for_each(|line| say(&format!("  {line}")));
    ExitCode::SUCCESS
}

/// The name of a run with this config file.
pub fn stem(config: &Path) -> String {
    config.file_stem().and_then(|s| s.to_str()).unwrap_or("run").to_string()
}
