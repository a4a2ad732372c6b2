//! The training loop, of detectors and classifiers alike.

mod start;
mod step;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use serde_json::json;
use tch::{nn, Device, Tensor};

pub(super) use self::step::learn_micro_batch;
use self::step::Accumulated;
use super::data_parallel::{all_remarks, DataParallel};
use super::ema::Ema;
use super::logger::{Left, Logger};
use super::notices;
use super::optimizer::Optimizer;
use super::replicas::Replicas;
use super::requests::Requests;
use super::schedule::Schedule;
use super::standby::{Standby, Statistics};
use super::state::{keep_numbered, save_weights, Best, Progress, State};
use super::task::Task;
use super::time_limit::{is_strong, TimeLimit};
use crate::config::{self, Experiment};
use crate::data::Feed;
use crate::ranks::Ranks;
use crate::runs::{check_space, write_text, Evaluation, RunDir, Skipped, Step};
use crate::weights::{Checkpoint, Metadata};

/// Where a run is written.
#[derive(Clone, Debug)]
pub enum Out {
    /// This folder.
    Named(PathBuf),
    /// The first of this folder, this folder-2, this folder-3, … that is not there yet.
    Numbered(PathBuf),
}

/// How a run starts, beside its config.
#[derive(Debug)]
pub struct TrainOptions {
    /// The run's folder; to resume, a [`Out::Named`] one.
    pub out: Out,
    /// Go on with the run that is there.
    pub resume: bool,
    /// Weights to start from. A resumed run has its own.
    pub weights: Option<Checkpoint>,
    /// Where the network runs.
    pub device: Device,
    /// The command line, for the record.
    pub command: Vec<String>,
    /// What is asked from outside while the run goes on.
    pub requests: Requests,
    /// The processes that train together; all have the same options.
    pub ranks: Ranks,
}

impl TrainOptions {
    /// A new run from random weights, on the CPU, in this process alone.
    pub fn new(out: Out) -> Self {
        Self {
            out,
            resume: false,
            weights: None,
            device: Device::Cpu,
            command: Vec::new(),
            requests: Requests::default(),
            ranks: Ranks::default(),
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit status of a run that was stopped from outside; `--resume` goes on with it.
    pub stopped: Option<u8>,
    /// The best evaluation, if there was one.
    pub best: Option<Best>,
    /// What is to be said of it, if it was done by this process.
    pub best_lines: Option<String>,
    /// Where everything is.
    pub run: RunDir,
}

/// A run of a task.
pub struct Engine<T: Task> {
    task: T,
    feed: Arc<Feed<T::Source>>,
    model: T::Model,
    // The model's variables live as long as their store.
    _store: nn::VarStore,
    variables: Vec<(String, Tensor)>,
    /// The processes that train the same model.
    parallel: DataParallel,
    /// Copies of the model for micro batches at the same time.
    replicas: Option<Replicas<T::Model>>,
    optimizer: Optimizer,
    ema: Option<Ema>,
    schedule: Schedule,
    /// Steps of the whole run.
    total: u64,
    /// What the config's numbers of epochs are multiplied by (`train.min_iters`).
    stretch: usize,
    /// Where the length of the run is a time that steps are still measured for.
    limit: Option<TimeLimit>,
    /// Forward passes of a step.
    micro_steps: usize,
    progress: Progress,
    metadata: Metadata,
    run: RunDir,
    log: Logger,
    device: Device,
    requests: Requests,
    /// The last finished step, for whoever must write it while the next one is at work.
    standby: Arc<Standby>,
    statistics: Statistics,
    /// When the last checkpoint was written.
    saved: Instant,
    /// Whether this process has left a file of a step that was not finite.
    reproducible: bool,
    best_lines: Option<String>,
}

/// The number of SIGINT: what a rank is asked by that did not hear the signal itself.
const INTERRUPT: u8 = 2;

/// What became of a piece of work.
enum Flow {
    Done,
    Interrupted,
}

impl<T: Task> Engine<T> {
    /// What is trained.
    pub fn task(&self) -> &T {
        &self.task
    }

    /// Trains to the end, or until stopped from outside.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, data or files that fail on the way. The last checkpoint stands.
    pub fn run(mut self) -> Result<Outcome> {
        let flow = self.train();
        self.log.finish();
        let stopped = matches!(flow?, Flow::Interrupted).then(|| self.requests.status());
        let Self { progress, best_lines, run, .. } = self;
        Ok(Outcome { stopped, best: progress.best, best_lines, run })
    }

    fn train(&mut self) -> Result<Flow> {
        loop {
            let before = Instant::now();
            if let Flow::Interrupted = self.train_epoch()? {
                self.save()?;
                return Ok(Flow::Interrupted);
            }
            let trained = before.elapsed();
            let last = self.progress.iter >= self.total;
            let epoch = self.progress.epoch + 1;
            let due = |every: usize| last || (every > 0 && epoch.is_multiple_of(every));
            let config = self.task.config();
            let (evaluate, save) =
                (due(self.stretched(config.train().eval_every)), due(config.checkpoint().every_epochs));
            let evaluated = self.progress.evaluated == Some(self.progress.iter);
            if self.task.is_evaluated() && evaluate && !evaluated {
                // A kill during the evaluation shall not cost the epoch.
                self.save()?;
                if let Flow::Interrupted = self.evaluate(trained)? {
                    return Ok(Flow::Interrupted);
                }
            }
            if self.progress.batch >= self.feed.batches_per_epoch() {
                self.progress.epoch += 1;
                self.progress.batch = 0;
            }
            if save {
                self.save_numbered()?;
            }
            if last {
                return Ok(Flow::Done);
            }
        }
    }

    /// The rest of the present epoch, or of the run.
    fn train_epoch(&mut self) -> Result<Flow> {
        if self.progress.iter >= self.total {
            return Ok(Flow::Done);
        }
        let checkpoint = self.task.config().checkpoint();
        let (every, minutes) = (checkpoint.every_iters.filter(|n| *n > 0), checkpoint.every_minutes);
        let feed = self.feed.clone();
        let mut batches = feed.epoch(self.progress.epoch, self.progress.batch, self.is_strong());
        let mut waited = batches.waited();
        self.offer();
        loop {
            let start = Instant::now();
            let mut sum = Accumulated::from(self.progress.batch);
            let micro_batches = self.micro_steps.min(feed.batches_per_epoch().saturating_sub(self.progress.batch));
            for numbers in self.parallel.share(micro_batches).chunks(self.at_once()) {
                let together = batches.by_ref().take(numbers.len()).collect::<Result<Vec<_>>>()?;
                ensure!(
                    together.len() == numbers.len(),
                    "the data ended after {} of {} batches",
                    self.progress.batch,
                    feed.batches_per_epoch()
                );
                let first = self.progress.forwards;
                let numbered = numbers.iter().map(|number| first + *number as u64).zip(together);
                self.learn(numbered.collect(), &mut sum)?;
            }
            self.settle(&mut sum)?;
            let mut stop = self.requests.is_stopping();
            let learned = Instant::now();
            self.reduce(micro_batches, &mut sum, &mut stop)?;
            let ranks_waited = if self.parallel.ranks().size() > 1 { learned.elapsed() } else { Duration::ZERO };
            self.progress.forwards += micro_batches as u64;
            self.progress.batch += micro_batches;
            if sum.images > 0 {
                let updated = self.update(&mut sum)?;
                let seconds = start.elapsed().as_secs_f64();
                let now_waited = batches.waited();
                self.progress.seconds += seconds;
                let images = sum.images as f64;
                let (iter, epoch) = (self.progress.iter, self.progress.epoch + 1);
                let step = updated.map(|(lr, grad_norm)| Step {
                    iter,
                    epoch,
                    loss: sum.parts.iter().map(|p| p.1).sum::<f64>() / images,
                    parts: sum.parts.iter().map(|(name, sum)| (name.to_string(), sum / images)).collect(),
                    lr,
                    grad_norm,
                    seconds,
                    data_wait: (now_waited - waited).as_secs_f64(),
                    ranks_wait: ranks_waited.as_secs_f64(),
                });
                waited = now_waited;
                let left = self.left();
                match step {
                    Ok(step) => self.log.step(step, left)?,
                    Err(reason) => self.log.skipped(Skipped { iter, epoch, reason, seconds })?,
                }
                self.plan(seconds)?;
                self.offer();
            }
            if stop || (self.parallel.ranks().size() == 1 && self.requests.is_stopping()) {
                // Another rank may have been asked.
                self.requests.stop(INTERRUPT);
                return Ok(Flow::Interrupted);
            }
            if self.progress.batch >= feed.batches_per_epoch() || self.progress.iter >= self.total {
                break;
            }
            if every.is_some_and(|n| self.progress.iter.is_multiple_of(n as u64)) {
                self.save_numbered()?;
            } else if self.is_old(minutes) {
                self.save()?;
            }
            if self.requests.take_save() {
                self.save()?;
                self.log.say(&format!("step {} is saved", self.progress.iter));
            }
        }
        self.log.unreadable("train", &all_remarks(self.parallel.ranks(), feed.skipped())?);
        self.log.resized("train", &all_remarks(self.parallel.ranks(), feed.resized())?);
        Ok(Flow::Done)
    }

    /// Whether strong augmentation is on in the present epoch.
    fn is_strong(&self) -> bool {
        is_strong(self.progress.epoch as u64 * self.steps_per_epoch(), self.total, self.task.strong_until())
    }

    /// Decides the length of a run that is limited in time, once enough of its steps have been timed. With a warm-up
    /// of as many steps, in which the learning rate does not depend on the length, `--max-iters` with the number of
    /// steps does the same again.
    fn plan(&mut self, seconds: f64) -> Result<()> {
        let Some(limit) = &mut self.limit else { return Ok(()) };
        let ranks = self.parallel.ranks();
        let Some(more) = limit.step(ranks, seconds, self.progress.seconds)? else { return Ok(()) };
        self.limit = None;
        let total = self.progress.iter.saturating_add(more).min(self.total);
        self.schedule.set_total(total as usize);
        self.total = total;
        self.progress.planned = Some(total);
        let epochs = self.epochs();
        self.log.set_length(total, epochs);
        let minutes = self.task.config().train().max_minutes.unwrap_or_default();
        let again = match T::Config::TASK {
            config::Task::Detection => format!(": --max-iters {total} does the same again"),
            // The schedule of a classifier spans its epochs, not its steps.
            config::Task::Classification => String::new(),
        };
        self.log.say(&format!("{total} steps in the {minutes} minutes of train.max_minutes{again}"));
        Ok(())
    }

    /// Holds the last finished step ready for whoever must write it.
    fn offer(&mut self) {
        let Self { variables, optimizer, ema, statistics, progress, .. } = self;
        let state = State { variables, optimizer, ema: ema.as_mut() };
        self.standby.offer(state.snapshot(progress, |name| statistics.kept(name)));
    }

    /// Whether the last checkpoint is this old.
    fn is_old(&self, minutes: Option<f64>) -> bool {
        minutes.is_some_and(|minutes| self.saved.elapsed().as_secs_f64() >= 60.0 * minutes)
    }

    /// Micro batches at the same time.
    fn at_once(&self) -> usize {
        self.replicas.as_ref().map_or(1, Replicas::count)
    }

    /// What is left of the run, as far as it is known.
    fn left(&self) -> Left {
        let evaluations = match self.stretched(self.task.config().train().eval_every) {
            0 => 0,
            every => self.epochs().div_ceil(every).saturating_sub(self.progress.epoch / every),
        };
        Left { evaluations, seconds: self.limit.as_ref().map(|limit| limit.left(self.progress.seconds)) }
    }

    fn steps_per_epoch(&self) -> u64 {
        self.feed.batches_per_epoch().div_ceil(self.micro_steps) as u64
    }

    /// Epochs of the run, the last of which may be cut short.
    fn epochs(&self) -> usize {
        self.total.div_ceil(self.steps_per_epoch().max(1)) as usize
    }

    /// Epochs of the config in this run.
    fn stretched(&self, epochs: usize) -> usize {
        epochs.saturating_mul(self.stretch)
    }

    /// Evaluates the weights (their average, where there is one); keeps them if they are the best.
    fn evaluate(&mut self, trained: Duration) -> Result<Flow> {
        self.ema.iter_mut().for_each(Ema::swap);
        let result = self.evaluate_present(trained);
        self.ema.iter_mut().for_each(Ema::swap);
        result
    }

    fn evaluate_present(&mut self, trained: Duration) -> Result<Flow> {
        let start = Instant::now();
        let (requests, log) = (&self.requests, &self.log);
        let ranks = self.parallel.ranks();
        let scored = self.task.evaluate(&self.model, self.device, ranks, &mut |done, images| {
            log.evaluating(done, images);
            !requests.is_stopping()
        })?;
        let stopped = ranks.of_first(|| Ok(scored.is_none()))?;
        let Some((scored, found)) = scored else {
            if stopped {
                return Ok(Flow::Interrupted);
            }
            // Rank 0 has the scores.
            self.progress.evaluated = Some(self.progress.iter);
            return Ok(Flow::Done);
        };
        let seconds = start.elapsed().as_secs_f64();
        let (iter, epoch) = (self.progress.iter, self.progress.epoch + 1);
        self.progress.seconds += seconds;
        self.progress.evaluated = Some(iter);
        let best = self.progress.best.as_ref().is_none_or(|best| scored.score > best.score);
        if best {
            // The weights come last but the record of them: a kill in between repeats this.
            self.task.write(&found, &self.run)?;
            let mut metrics = scored.metrics;
            metrics.extend([
                ("epoch".to_string(), json!(epoch)),
                ("iter".to_string(), json!(iter)),
                ("weights".to_string(), json!("checkpoints/best.safetensors")),
            ]);
            metrics.extend(notices::metric(&scored.unreadable));
            write_text(&self.run.metrics(), &(serde_json::to_string_pretty(&metrics)? + "\n"))?;
            save_weights(&self.run.best(), &self.variables, &self.metadata)?;
            self.progress.best = Some(Best { score: scored.score, epoch, iter });
            self.best_lines = Some(scored.lines);
        }
        let line = Evaluation { iter, epoch, found: scored.log, seconds };
        self.log.evaluation(line, &scored.scalars)?;
        self.log.unreadable("val", &scored.unreadable);
        self.log.resized("val", &scored.resized);
        self.log.warn("val", &scored.warnings);
        self.log.say(&format!(
            "epoch {epoch}/{}: {}{}; {:.0} s of training, {seconds:.0} s of evaluation",
            self.epochs(),
            scored.summary,
            if best { ", the best so far" } else { "" },
            trained.as_secs_f64()
        ));
        Ok(Flow::Done)
    }

    /// Writes the weights for others, then the state for a resumed run.
    fn save(&mut self) -> Result<()> {
        if !self.parallel.ranks().is_first() {
            return Ok(());
        }
        let start = Instant::now();
        let (variables, optimizer, ema) = (&self.variables, &mut self.optimizer, self.ema.as_mut());
        let snapshot = State { variables, optimizer, ema }.snapshot(&self.progress, |_| None);
        let bytes = snapshot.bytes();
        let kept = || format!("{} is the last one", self.run.state().display());
        check_space(&self.run.checkpoints(), bytes, "the checkpoint").with_context(kept)?;
        snapshot.write(&self.run, &self.metadata).with_context(kept)?;
        self.standby.saved(start.elapsed());
        self.saved = Instant::now();
        if let Err(error) = check_space(&self.run.checkpoints(), bytes, "the next checkpoint") {
            self.log.say(&format!("{error:#}"));
        }
        Ok(())
    }

    fn save_numbered(&mut self) -> Result<()> {
        self.save()?;
        if !self.parallel.ranks().is_first() {
            return Ok(());
        }
        keep_numbered(&self.run, self.progress.iter, self.task.config().checkpoint().keep)
    }
}

#[cfg(test)]
mod tests;
