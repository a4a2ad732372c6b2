//! The training loop, of detectors and classifiers alike.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use tch::{nn, Device, Kind, Tensor};

use super::ema::Ema;
use super::initial::initial;
use super::logger::Logger;
use super::machine;
use super::notices;
use super::optimizer::{clip_factor, Optimizer};
use super::replicas::Replicas;
use super::schedule::Schedule;
use super::state::{keep_numbered, progress_of, save_weights, Best, Progress, State};
use super::task::{Micro, Task};
use super::time_limit::{is_strong, TimeLimit};
use crate::backbone::Pass;
use crate::config::{self, Experiment};
use crate::console::say;
use crate::data::{Feed, Source};
use crate::nn::precision;
use crate::runs::{unix_time, write_text, Evaluation, RunDir, Step};
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
    /// Set from outside to end the run after the step at hand, with a checkpoint.
    pub stop: Arc<AtomicBool>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether it was stopped from outside; `--resume` goes on with it.
    pub interrupted: bool,
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
    stop: Arc<AtomicBool>,
    best_lines: Option<String>,
}

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
        let resumed = match (&options.out, options.resume) {
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
        let (task, mut feed) = T::open(config, known.as_ref())?;

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

        let micro_steps = t.batch_size.div_ceil(micro_batch);
        let at_once = if options.device == Device::Cpu { t.replicas.min(micro_steps) } else { 1 };
        feed.keep_ahead(at_once + 1);
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
        let resuming = resumed.is_some();
        let run = match (resumed, &options.out) {
            (Some(run), _) => run,
            (None, Out::Named(path)) => RunDir::create(path)?,
            (None, Out::Numbered(base)) => RunDir::create_numbered(base)?,
        };
        if !resuming {
            // Before the config, which makes the folder a run's: whatever has a config can go on, from these weights.
            state.save(&run, &metadata, &progress)?;
        }
        let precision = precision::name(t.amp, options.device);
        precision::left_off(t.amp, options.device).iter().for_each(|line| say(line));
        let device = machine::device_name(options.device);
        let mut start = json!({
            "command": options.command,
            "unix_time": unix_time(),
            "from_iter": progress.iter,
            "vigdet": env!("CARGO_PKG_VERSION"),
            "replicas": at_once,
            "precision": precision,
            "classes": task.classes().names(),
            "trained_numbers": optimizer.parameters(),
            "steps": total,
        });
        start.as_object_mut().into_iter().for_each(|start| start.extend(machine::record(options.device)));
        run.describe(&task.config().to_json()?, start, resuming)?;
        run.rewind_log(progress.iter, progress.evaluated != Some(progress.iter))?;
        let log = Logger::new(&run, progress.iter, total as u64, t.epochs.saturating_mul(stretch))?;
        say(&format!(
            "{}, {:.1} M trained parameters, on {device} with {} threads{} in {precision}: {total} steps of {} \
             images into {}",
            task.name(),
            optimizer.parameters() as f64 / 1e6,
            tch::get_num_threads(),
            if at_once > 1 { format!(" and {at_once} replicas") } else { String::new() },
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
            stop: options.stop,
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
        let interrupted = matches!(flow?, Flow::Interrupted);
        let Self { progress, best_lines, run, .. } = self;
        Ok(Outcome { interrupted, best: progress.best, best_lines, run })
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
        let every = self.task.config().checkpoint().every_iters.filter(|n| *n > 0);
        let feed = self.feed.clone();
        let mut batches = feed.epoch(self.progress.epoch, self.progress.batch, self.is_strong());
        let mut waited = batches.waited();
        loop {
            let start = Instant::now();
            let mut sum = Accumulated::default();
            while sum.forwards < self.micro_steps {
                let most = (self.micro_steps - sum.forwards).min(self.at_once());
                let together = batches.by_ref().take(most).collect::<Result<Vec<_>>>()?;
                if together.is_empty() {
                    break;
                }
                self.learn(together, &mut sum)?;
            }
            if sum.images > 0 {
                let (lr, grad_norm) = self.update(&sum)?;
                let seconds = start.elapsed().as_secs_f64();
                let now_waited = batches.waited();
                self.progress.seconds += seconds;
                let images = sum.images as f64;
                let step = Step {
                    iter: self.progress.iter,
                    epoch: self.progress.epoch + 1,
                    loss: sum.parts.iter().map(|p| p.1).sum::<f64>() / images,
                    parts: sum.parts.iter().map(|(name, sum)| (name.to_string(), sum / images)).collect(),
                    lr,
                    grad_norm,
                    seconds,
                    data_wait: (now_waited - waited).as_secs_f64(),
                };
                waited = now_waited;
                let left = self.evaluations_left();
                self.log.step(step, left)?;
                self.plan(seconds);
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(Flow::Interrupted);
            }
            if self.progress.batch >= feed.batches_per_epoch() || self.progress.iter >= self.total {
                break;
            }
            if sum.images == 0 {
                bail!("the data ended after {} of {} batches", self.progress.batch, feed.batches_per_epoch());
            }
            if every.is_some_and(|n| self.progress.iter.is_multiple_of(n as u64)) {
                self.save_numbered()?;
            }
        }
        self.log.unreadable("train", &feed.skipped());
        self.log.resized("train", &feed.resized());
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
    fn plan(&mut self, seconds: f64) {
        let Some(limit) = &mut self.limit else { return };
        let Some(more) = limit.step(seconds, self.progress.seconds) else { return };
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
    }

    /// Adds the gradients of micro batches, with replicas of all at the same time.
    fn learn(&mut self, batches: Vec<<T::Source as Source>::Batch>, sum: &mut Accumulated) -> Result<()> {
        let numbered = (self.progress.forwards..).zip(batches).collect::<Vec<_>>();
        let (task, device) = (&self.task, self.device);
        let work = |model: &T::Model, (number, batch)| learn_micro_batch(task, model, number, batch, device);
        let learned: Vec<Result<Learned>> = match &mut self.replicas {
            Some(replicas) => replicas.run(&mut self.model, numbered, work),
            None => numbered.into_iter().map(|one| work(&self.model, one)).collect(),
        };
        for one in learned {
            let Learned { parts, images, names } = one?;
            for (name, value) in &parts {
                ensure!(
                    value.is_finite(),
                    "the loss `{name}` became {value} at step {} on {}; {}",
                    self.progress.iter + 1,
                    some(&names),
                    self.advice()
                );
            }
            sum.parts.resize(parts.len(), ("", 0.0));
            for (sum, (name, value)) in sum.parts.iter_mut().zip(parts) {
                *sum = (name, sum.1 + value * images as f64);
            }
            sum.images += images;
            sum.forwards += 1;
            sum.names.extend(names);
            self.progress.forwards += 1;
            self.progress.batch += 1;
        }
        Ok(())
    }

    /// Clips, updates, averages. Returns the learning rate and the norm of the gradient.
    fn update(&mut self, sum: &Accumulated) -> Result<(f64, f64)> {
        let t = self.task.config().train();
        // The last step of an epoch may have fewer images than a batch.
        let mut scale = t.batch_size as f64 / sum.images as f64;
        let norm = self.optimizer.gradient_norm() * scale;
        ensure!(
            norm.is_finite(),
            "the gradient became {norm} at step {} on {}; {}",
            self.progress.iter + 1,
            some(&sum.names),
            self.advice()
        );
        if let Some(most) = t.clip_norm {
            scale *= clip_factor(norm, most);
        }
        let lr = self.schedule.lr(self.progress.iter as usize);
        self.optimizer.step(lr, scale);
        if let Some(ema) = &mut self.ema {
            ema.update();
            self.progress.ema_updates = ema.updates();
        }
        self.progress.iter += 1;
        Ok((lr, norm))
    }

    /// Micro batches at the same time.
    fn at_once(&self) -> usize {
        self.replicas.as_ref().map_or(1, Replicas::count)
    }

    fn advice(&self) -> String {
        let last = self.run.last();
        format!("{}; the last checkpoint, {}, is from before", self.task.advice(), last.display())
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
        let (stop, log) = (self.stop.clone(), &self.log);
        let scored = self.task.evaluate(&self.model, self.device, &mut |done, images| {
            log.evaluating(done, images);
            !stop.load(Ordering::Relaxed)
        })?;
        let Some((scored, found)) = scored else { return Ok(Flow::Interrupted) };
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
        let (variables, optimizer, ema) = (&self.variables, &mut self.optimizer, self.ema.as_mut());
        State { variables, optimizer, ema }.save(&self.run, &self.metadata, &self.progress)
    }

    fn save_numbered(&mut self) -> Result<()> {
        self.save()?;
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
struct Learned {
    /// The parts of the loss; not always finite.
    parts: Vec<(&'static str, f64)>,
    images: usize,
    names: Vec<String>,
}

/// Adds the gradient of one micro batch, times its fraction of a full batch, to the model's. `number` counts the run's
/// micro batches.
fn learn_micro_batch<T: Task>(
    task: &T,
    model: &T::Model,
    number: u64,
    batch: <T::Source as Source>::Batch,
    device: Device,
) -> Result<Learned> {
    let t = task.config().train();
    let Micro { losses, images, names } = task.losses(model, batch, device, &mut Pass::training(t.seed, number))?;
    let total = losses.total();
    let fraction = images as f64 / t.batch_size as f64;
    if fraction == 1.0 { total } else { total * fraction }.backward();
    // One transfer from the device for all parts.
    let parts = losses.parts.iter().map(|(_, part)| part.detach().to_kind(Kind::Double).reshape([]));
    let values = Tensor::stack(&parts.collect::<Vec<_>>(), 0).to_device(Device::Cpu);
    let values: Vec<f64> = values.try_into()?;
    let parts = losses.parts.iter().map(|(name, _)| *name).zip(values).collect();
    Ok(Learned { parts, images, names })
}

/// What the micro batches of a step have added up to.
#[derive(Default)]
struct Accumulated {
    forwards: usize,
    images: usize,
    /// Sum over images of each part of the loss.
    parts: Vec<(&'static str, f64)>,
    names: Vec<String>,
}

/// The first few names.
fn some(names: &[String]) -> String {
    match names {
        [first, second, _, _, _, ..] => format!("{first}, {second} and {} more images", names.len() - 2),
        few => few.join(", "),
    }
}
