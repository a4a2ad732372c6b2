//! The training loop, of detectors and classifiers alike.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use tch::{nn, Device, Kind, Tensor};

use super::data_parallel::{all_remarks, check_same, DataParallel, Sums};
use super::ema::Ema;
use super::initial::initial;
use super::logger::Logger;
use super::machine;
use super::not_finite;
use super::notices;
use super::optimizer::{clip_factor, Optimizer};
use super::replicas::Replicas;
use super::requests::Requests;
use super::schedule::Schedule;
use super::standby::{Standby, Statistics};
use super::state::{self, keep_numbered, progress_of, save_weights, Best, Progress, State};
use super::task::{Micro, Task};
use super::time_limit::{is_strong, TimeLimit};
use crate::backbone::Pass;
use crate::config::{self, Experiment, OnNan};
use crate::console::{say, warn};
use crate::data::{Feed, Source};
use crate::nn::crossings::fetch;
use crate::nn::precision;
use crate::ranks::Ranks;
use crate::runs::{check_space, unix_time, write_text, Evaluation, RunDir, Skipped, Step};
use crate::threads::set_threads;
use crate::weights::{metadata_of, sorted_variables, Checkpoint, Metadata};

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
    /// Opens the data, builds the model, and takes up weights or a whole run.
    ///
    /// # Errors
    /// Data, weights or folders that cannot be used. A new run's folder is made last, so a failed start leaves none.
    pub fn start(config: T::Config, options: TrainOptions) -> Result<Self> {
        set_threads(config.train().threads);
        let ranks = options.ranks;
        let resumed = match (&options.out, options.resume) {
            // Rank 0 reads and writes; the others hear from it.
            _ if !ranks.is_first() => None,
            (Out::Named(path) | Out::Numbered(path), true) => Some(RunDir::open(path)?),
            (Out::Named(path), false) => RunDir::check_free(path).map(|()| None)?,
            (Out::Numbered(_), false) => None,
        };
        let saved = resumed.as_ref().map(open_state).transpose()?;
        let t = config.train().clone();
        let micro_batch = t.images_of_micro_batch();
        ensure!(
            t.micro_batch.is_some() || t.batch_size.is_multiple_of(micro_batch),
            "train.batch_size, {}, cannot be divided evenly among {} train.replicas: change either, or set \
             train.micro_batch",
            t.batch_size,
            t.replicas
        );
        let known = match (&saved, &resumed) {
            (Some(saved), _) if saved.classes().is_some() => saved.classes().cloned(),
            // States of before they knew their classes.
            (Some(_), Some(run)) => Checkpoint::open(&run.last()).ok().and_then(|last| last.classes().cloned()),
            _ => None,
        };
        let known = ranks.of_first(|| Ok(known))?;
        let (task, mut feed) = ranks.one_before_the_others(|| T::open(config, known.as_ref()))?;
        check_same(&ranks, task.config(), &feed)?;

        // Nothing after this draws from libtorch's generator but for weights that others take the place of.
        let (store, model) = initial(t.seed, options.device, |path| task.build(path))?;
        let variables = sorted_variables(&store);
        if let (Some(weights), None) = (&options.weights, &saved) {
            say(&format!("weights: {}", task.start_from(&store, weights)?));
        }
        let mut optimizer = Optimizer::new(&variables, &t);
        let mut ema = t.ema.map(|decay| Ema::new(&variables, decay, t.ema_warmup));
        let mut progress = Progress::default();
        let mut state = State { variables: &variables, optimizer: &mut optimizer, ema: ema.as_mut() };
        if let Some(saved) = &saved {
            progress = progress_of(saved)?;
            state.load(saved, &progress)?;
        }
        let progress = ranks.of_first(|| Ok(progress))?;
        ema.iter_mut().for_each(|ema| ema.resume(progress.ema_updates));
        let parallel = DataParallel::start(ranks, &variables, &mut optimizer, ema.as_ref())?;
        let ranks = parallel.ranks();
        let state = State { variables: &variables, optimizer: &mut optimizer, ema: ema.as_mut() };

        let micro_steps = t.batch_size.div_ceil(micro_batch);
        ensure!(
            ranks.size() <= micro_steps,
            "{} processes have {micro_steps} micro batches of {micro_batch} images in a step: fewer processes, a \
             smaller train.micro_batch or a larger train.batch_size give each at least one",
            ranks.size()
        );
        let own_steps = parallel.share(micro_steps).len();
        let at_once = if options.device == Device::Cpu { t.replicas.min(own_steps) } else { 1 };
        feed.keep_ahead(at_once + 1);
        feed.take_share(ranks.rank(), ranks.size(), micro_steps);
        let steps_per_epoch = feed.batches_per_epoch().div_ceil(micro_steps);
        let all = t.epochs.saturating_mul(steps_per_epoch);
        let stretch = t.min_iters.unwrap_or(0).div_ceil(all.max(1)).max(1);
        let all = all.saturating_mul(stretch);
        let total = all.min(t.max_iters.unwrap_or(usize::MAX));
        let total = total.min(progress.planned.map_or(usize::MAX, |steps| steps as usize));
        ensure!(total > 0, "there is nothing to train: train.epochs or train.max_iters is 0");
        let limit = t.max_minutes.filter(|_| progress.planned.is_none()).map(TimeLimit::new);
        let mut schedule = task.schedule(steps_per_epoch.saturating_mul(stretch), total);
        if progress.planned.is_some() {
            schedule.set_total(total);
        }
        let replicas = (at_once > 1).then(|| Replicas::new(at_once, &store, |path| task.build(path))).transpose()?;

        let metadata = metadata_of(task.config(), task.classes())?;
        let resuming = options.resume;
        let snapshot = state.snapshot(&progress, |_| None);
        if let (true, false, Out::Named(path) | Out::Numbered(path)) = (ranks.is_first(), resuming, &options.out) {
            // Beside each checkpoint there is the one before it.
            check_space(path, 2 * snapshot.bytes(), "a checkpoint beside the one before it")?;
        }
        let run = match (resumed, &options.out) {
            (Some(run), _) => run,
            (None, Out::Named(path) | Out::Numbered(path)) if !ranks.is_first() => RunDir::at(path),
            (None, Out::Named(path)) => RunDir::create(path)?,
            (None, Out::Numbered(base)) => RunDir::create_numbered(base)?,
        };
        if !resuming && ranks.is_first() {
            // Before the config, which makes the folder a run's: whatever has a config can go on, from these weights.
            snapshot.write(&run, &metadata)?;
        } else if ranks.is_first() && state::weights_are_of_another_step(&run, &progress) {
            snapshot.write_weights(&run, &metadata)?;
        }
        let standby = Arc::new(Standby::new(run.path(), &metadata, t.grace_seconds));
        if ranks.is_first() {
            options.requests.stand_by(standby.clone());
        }
        let statistics = Statistics::new(&variables);
        let precision = precision::name(t.amp, options.device);
        precision::left_off(t.amp, options.device).iter().for_each(|line| say(line));
        let device = machine::device_name(options.device);
        let mut start = json!({
            "command": options.command,
            "unix_time": unix_time(),
            "from_iter": progress.iter,
            "vigdet": env!("CARGO_PKG_VERSION"),
            "replicas": at_once,
            "ranks": ranks.size(),
            "precision": precision,
            "classes": task.classes().names(),
            "trained_numbers": optimizer.parameters(),
            "steps": total,
        });
        start.as_object_mut().into_iter().for_each(|start| start.extend(machine::record(options.device)));
        let log = if ranks.is_first() {
            run.describe(&task.config().to_json()?, start, resuming)?;
            run.rewind_log(progress.iter, progress.evaluated != Some(progress.iter))?;
            Logger::new(&run, progress.iter, total as u64, t.epochs.saturating_mul(stretch))?
        } else {
            Logger::silent()
        };
        say(&format!(
            "{}, {:.1} M trained parameters, on {device} with {} threads{}{} in {precision}: {total} steps of {} \
             images into {}",
            task.name(),
            optimizer.parameters() as f64 / 1e6,
            tch::get_num_threads(),
            if at_once > 1 { format!(" and {at_once} replicas") } else { String::new() },
            if ranks.size() > 1 { format!(" in each of {} processes", ranks.size()) } else { String::new() },
            t.batch_size,
            run.path().display()
        ));
        if resuming {
            say(&format!("resuming after step {} (epoch {})", progress.iter, progress.epoch + 1));
        }
        Ok(Self {
            total: total as u64,
            stretch,
            task,
            feed: Arc::new(feed),
            model,
            _store: store,
            variables,
            parallel,
            replicas,
            optimizer,
            ema,
            schedule,
            limit,
            micro_steps,
            progress,
            metadata,
            run,
            log,
            device: options.device,
            requests: options.requests,
            standby,
            statistics,
            saved: Instant::now(),
            reproducible: false,
            best_lines: None,
        })
    }

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
            let mut sum = Accumulated { first: (self.progress.batch, self.progress.forwards), ..Default::default() };
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
                let left = self.evaluations_left();
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
        let steps = self.feed.batches_per_epoch().div_ceil(self.micro_steps) as u64;
        is_strong(self.progress.epoch as u64 * steps, self.total, self.task.strong_until())
    }

    /// Decides the length of a run that is limited in time, once enough of its steps have been timed. With a warm-up
    /// of as many steps, in which the learning rate does not depend on the length, `--max-iters` with the number of
    /// steps does the same again.
    fn plan(&mut self, seconds: f64) -> Result<()> {
        let Some(limit) = &mut self.limit else { return Ok(()) };
        let Some(more) = limit.step(seconds, self.progress.seconds) else { return Ok(()) };
        let more = self.parallel.ranks().of_first(|| Ok(more))?;
        self.limit = None;
        let total = self.progress.iter.saturating_add(more).min(self.total);
        self.schedule.set_total(total as usize);
        self.total = total;
        self.progress.planned = Some(total);
        self.log.set_total(total);
        let minutes = self.task.config().train().max_minutes.unwrap_or_default();
        let again = match T::Config::TASK {
            config::Task::Detection => format!(": --max-iters {total} does the same again"),
            // The schedule of a classifier spans its epochs, not its steps.
            config::Task::Classification => String::new(),
        };
        self.log.say(&format!("{total} steps in the {minutes} minutes of train.max_minutes{again}"));
        Ok(())
    }

    /// Adds the gradients of micro batches, each with its number in the run, with replicas of all at the same time.
    fn learn(&mut self, numbered: Vec<(u64, <T::Source as Source>::Batch)>, sum: &mut Accumulated) -> Result<()> {
        let (task, device) = (&self.task, self.device);
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
            sum.forwards += 1;
        }
        Ok(())
    }

    /// Adds up the losses of a step's micro batches, with one copy from the device for all.
    fn settle(&self, sum: &mut Accumulated) -> Result<()> {
        let learned = std::mem::take(&mut sum.learned);
        if learned.is_empty() {
            return Ok(());
        }
        let all: Vec<&Tensor> = learned.iter().map(|one| &one.values).collect();
        let mut values = numbers(&Tensor::cat(&all, 0))?.into_iter();
        for Learned { parts, images, names, .. } in learned {
            let parts: Vec<(&str, f64)> = parts.into_iter().zip(values.by_ref()).collect();
            if let Some((name, value)) = parts.iter().find(|(_, value)| !value.is_finite()) {
                sum.not_finite.get_or_insert_with(|| format!("the loss `{name}` became {value} on {}", some(&names)));
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

    /// Adds up what the ranks have learned from a step's micro batches. A step that is not finite ends the run: its
    /// rank alone knows of it.
    fn reduce(&mut self, micro_batches: usize, sum: &mut Accumulated, stop: &mut bool) -> Result<()> {
        if self.parallel.ranks().size() == 1 {
            return Ok(());
        }
        let step = self.progress.iter + 1;
        let advice =
            format!("{}; the last checkpoint, {}, is from before", self.task.advice(), self.run.last().display());
        if let Some(reason) = sum.not_finite.take() {
            bail!("{reason} at step {step}; {advice}");
        }
        let not_finite = format!("the gradient is not finite at step {step} on {}; {advice}", some(&sum.names));
        let sums = Sums { images: &mut sum.images, parts: &mut sum.parts, stop };
        self.parallel.reduce(micro_batches, sums, || not_finite)
    }

    /// Clips, updates, averages. Returns the learning rate and the norm of the gradient, or why the step was skipped.
    fn update(&mut self, sum: &mut Accumulated) -> Result<Result<(f64, f64), String>> {
        let t = self.task.config().train();
        // The last step of an epoch may have fewer images than a batch.
        let mut scale = t.batch_size as f64 / sum.images as f64;
        let norm = self.optimizer.gradient_norm() * scale;
        if !norm.is_finite() {
            sum.not_finite.get_or_insert_with(|| format!("the gradient became {norm} on {}", some(&sum.names)));
        }
        if let Some(reason) = sum.not_finite.take() {
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

    /// Takes back a step that is not finite, and gives the reason again; or ends the run. Leaves a file of the first.
    fn skip(&mut self, sum: &Accumulated, reason: String) -> Result<String> {
        self.statistics.restore();
        self.optimizer.clear();
        if let Some(replicas) = &mut self.replicas {
            replicas.take_statistics();
        }
        let step = self.progress.iter + 1;
        let mut again = String::new();
        if !self.reproducible {
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
        let last = self.run.last();
        let advice = self.task.advice();
        bail!("{reason} at step {step}; {advice}{again}; the last checkpoint, {}, is from before", last.display());
    }

    /// Writes what does a step again. Its batches are made anew, to the bit as they were.
    fn reproduce(&self, sum: &Accumulated, reason: &str) -> Result<PathBuf> {
        let (batch, forwards) = sum.first;
        let batches = self.feed.epoch(self.progress.epoch, batch, self.is_strong()).take(sum.forwards);
        let mut relabelled = Vec::new();
        for (number, batch) in (forwards..).zip(batches) {
            let mut batch = batch?;
            self.task.relabel(&mut batch);
            relabelled.push((number, batch));
        }
        let step = (self.progress.iter + 1, reason);
        not_finite::write(&self.run, step, &relabelled, &self.variables, &self.metadata)
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

    fn evaluations_left(&self) -> usize {
        let t = self.task.config().train();
        match self.stretched(t.eval_every) {
            0 => 0,
            every => self.stretched(t.epochs).saturating_sub(self.progress.epoch).div_ceil(every),
        }
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
            self.stretched(self.task.config().train().epochs),
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

/// The state of a run. Where only the one before it is whole, that takes its place, so that it is not lost with the
/// next.
fn open_state(run: &RunDir) -> Result<Checkpoint> {
    let saved = Checkpoint::open(&run.state())?;
    if saved.path() != run.state() {
        let rename = || std::fs::rename(saved.path(), run.state());
        rename().with_context(|| format!("cannot write {}", run.state().display()))?;
    }
    Ok(saved)
}

/// What came of a micro batch.
pub(super) struct Learned {
    /// The parts of the loss.
    parts: Vec<&'static str>,
    /// Their values on the device; not always finite.
    values: Tensor,
    images: usize,
    /// Its files.
    pub names: Vec<String>,
}

/// Adds the gradient of one micro batch, times its fraction of a full batch, to the model's. `number` counts the run's
/// micro batches.
pub(super) fn learn_micro_batch<T: Task>(
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

impl Learned {
    /// The parts of the loss, by name.
    pub(super) fn losses(&self) -> Result<Vec<(&'static str, f64)>> {
        Ok(self.parts.iter().copied().zip(numbers(&self.values)?).collect())
    }
}

/// What the micro batches of a step have added up to.
#[derive(Default)]
struct Accumulated {
    /// The numbers of its first micro batch, in the epoch and in the run.
    first: (usize, u64),
    forwards: usize,
    /// Micro batches whose losses are still on the device.
    learned: Vec<Learned>,
    images: usize,
    /// Sum over images of each part of the loss.
    parts: Vec<(&'static str, f64)>,
    names: Vec<String>,
    /// What was the first thing that is not finite.
    not_finite: Option<String>,
}

/// The first few names.
fn some(names: &[String]) -> String {
    match names {
        [first, second, _, _, _, ..] => format!("{first}, {second} and {} more images", names.len() - 2),
        few => few.join(", "),
    }
}
