//! The training loop.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Result};
use serde_json::json;
use tch::{nn, Device};

use super::checkpoint::{load_state, number, save, Best, Progress};
use super::ema::Ema;
use super::evaluate::Evaluator;
use super::log::{Logger, Step};
use super::micro_batch::{Micro, MicroBatches};
use super::notices;
use super::optimizer::Optimizer;
use super::replicas::Replicas;
use super::run_dir::{unix_time, write_text, RunDir};
use super::schedule::Schedule;
use super::splits::{data_root, evaluator, indented, open};
use super::start::start_from;
use super::time_limit::TimeLimit;
use crate::config::Config;
use crate::data::{Batch, Loader, LoaderOptions};
use crate::detect::classes::classes_of_outputs;
use crate::detect::{self, Detector};
use crate::nn::precision::has_bfloat16;
use crate::threads::set_threads;
use crate::weights::{self, sorted_variables, Metadata};

/// How a run starts, beside its config.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The run's folder.
    pub out: PathBuf,
    /// Go on with the run that is there.
    pub resume: bool,
    /// Weights to start from: a whole detector or a backbone alone. A resumed run has its own.
    pub weights: Option<PathBuf>,
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
    /// Its twelve lines, if it was done by this process.
    pub best_lines: Option<String>,
    /// Where everything is.
    pub run: RunDir,
    /// Whether evaluations were done at all.
    pub evaluated: bool,
}

/// A detector in training.
pub struct Trainer {
    config: Config,
    options: TrainOptions,
    run: RunDir,
    store: nn::VarStore,
    detector: Box<dyn Detector>,
    /// Copies of the detector for micro batches at the same time.
    replicas: Option<Replicas>,
    optimizer: Optimizer,
    ema: Option<Ema>,
    schedule: Schedule,
    loader: Arc<Loader>,
    evaluator: Option<Evaluator>,
    metadata: Metadata,
    progress: Progress,
    log: Logger,
    /// Steps of the whole run.
    total: u64,
    /// Where the length of the run is a time that steps are still measured for.
    limit: Option<TimeLimit>,
    /// Forward passes of a step.
    micro_steps: usize,
    /// The detector's label of each of the data's.
    labels: Vec<i64>,
    best_lines: Option<String>,
}

/// What became of a piece of work.
pub(super) enum Flow {
    Done,
    Interrupted,
}

impl Trainer {
    /// Opens the data, builds the detector, and takes up weights or a whole run. Draws built-in data that is not there yet.
    ///
    /// # Errors
    /// Data, weights or folders that cannot be used. A new run's folder is made last, so a failed start leaves none.
    pub fn new(config: Config, options: TrainOptions) -> Result<Self> {
        set_threads(config.train.threads);
        let run = if options.resume { RunDir::open(&options.out)? } else { RunDir::free(&options.out)? };
        let t = &config.train;
        let micro_batch = t.images_of_micro_batch();
        ensure!(
            t.micro_batch.is_some() || t.batch_size.is_multiple_of(micro_batch),
            "train.batch_size, {}, cannot be divided evenly among {} train.replicas: change either, or set train.micro_batch",
            t.batch_size,
            t.replicas
        );
        ensure!(
            t.batch_size.is_multiple_of(micro_batch),
            "train.batch_size, {}, must be a multiple of train.micro_batch, {micro_batch} (--set micro_batch=null: all at once, divided among train.replicas)",
            t.batch_size
        );
        let root = data_root(&config)?;
        let train = open(&config, &config.data.train, &root, true)?;
        ensure!(
            !config.model.has_masks() || train.has_masks(),
            "no object of the training split has a mask: Mask R-CNN needs segmentations (--set model.mask=false trains Faster R-CNN on boxes)"
        );
        println!("train: {}", indented(&train.report().to_string()));
        let categories: Vec<(i64, String)> = train.classes().iter().map(|c| (c.id, c.name.clone())).collect();
        let ids: Vec<i64> = categories.iter().map(|c| c.0).collect();
        let classes = classes_of_outputs(&config.model, categories)?;
        // Where the detector's label is for each of the data's.
        let labels = ids.iter().map(|id| classes.iter().position(|c| c.0 == *id).unwrap_or(0) as i64).collect();
        let evaluator = (t.eval_every > 0).then(|| evaluator(&config, &root, micro_batch, &classes)).transpose()?;

        // Initial weights come from libtorch's generator; nothing after this draws from it but for weights that others take the place of.
        tch::manual_seed(t.seed as i64);
        let store = nn::VarStore::new(options.device);
        let detector = detect::build(&store.root(), &config.model, classes.len() as i64)?;
        let variables = sorted_variables(&store);
        if let (Some(path), false) = (&options.weights, options.resume) {
            start_from(&store, path, &config)?;
        }
        let mut optimizer = Optimizer::new(&variables, t);
        let mut ema = t.ema.map(|decay| Ema::new(&variables, decay, true));
        let mut progress = Progress::default();
        if options.resume {
            progress = load_state(&run.state(), &variables, &mut optimizer, ema.as_mut())?;
        }

        let loader_options = LoaderOptions { batch_size: micro_batch, train: true, seed: t.seed };
        let micro_steps = t.batch_size / micro_batch;
        let at_once = if options.device == Device::Cpu { t.replicas.min(micro_steps) } else { 1 };
        let loader = Loader::new(Arc::new(train), &config.data, loader_options)?.keep_ahead(at_once + 1);
        let loader = Arc::new(loader);
        let replicas = (at_once > 1)
            .then(|| Replicas::new(at_once, &store, |path| detect::build(path, &config.model, classes.len() as i64)))
            .transpose()?;
        let steps_per_epoch = loader.batches_per_epoch().div_ceil(micro_steps);
        let total = t.epochs.saturating_mul(steps_per_epoch).min(t.max_iters.unwrap_or(usize::MAX));
        let total = total.min(progress.planned.map_or(usize::MAX, |steps| steps as usize));
        let limit = t.max_minutes.filter(|_| progress.planned.is_none()).map(TimeLimit::new);
        ensure!(total > 0, "there is nothing to train: train.epochs or train.max_iters is 0");
        let schedule = Schedule::new(t, steps_per_epoch, total);

        let metadata = weights::metadata_of(&config, &classes)?;
        if !options.resume {
            RunDir::create(&options.out)?;
            // Before the config, which makes the folder a run's: whatever has a config can go on, from these weights.
            save(&run, &store, &metadata, &optimizer, ema.as_mut(), &progress)?;
        }
        let precision = if t.amp && has_bfloat16(options.device) { "float32 and bfloat16" } else { "float32" };
        let start = json!({
            "command": options.command,
            "unix_time": unix_time(),
            "from_iter": progress.iter,
            "vigdet": env!("CARGO_PKG_VERSION"),
            "libtorch": "2.13.0",
            "device": device_name(options.device),
            "threads": tch::get_num_threads(),
            "replicas": at_once,
            "precision": precision,
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            "classes": classes.iter().map(|c| &c.1).collect::<Vec<_>>(),
            "trained_numbers": optimizer.numbers(),
            "steps": total,
        });
        run.describe(&config.to_json()?, start, options.resume)?;
        let evaluation_pending = progress.evaluated != Some(progress.iter);
        run.rewind_log(progress.iter, evaluation_pending)?;
        let log = Logger::new(&run, progress.iter, total as u64, t.epochs)?;
        println!(
            "{} with {}, {:.1} M trained numbers, on {} with {} threads{} in {precision}: {total} steps of {} images into {}",
            config.model.detector.name(),
            config.model.backbone.name,
            optimizer.numbers() as f64 / 1e6,
            device_name(options.device),
            tch::get_num_threads(),
            if at_once > 1 { format!(" and {at_once} replicas") } else { String::new() },
            t.batch_size,
            run.path().display()
        );
        if options.resume {
            println!("resuming after step {} (epoch {})", progress.iter, progress.epoch + 1);
        }
        Ok(Self {
            total: total as u64,
            limit,
            config,
            options,
            run,
            store,
            detector,
            replicas,
            optimizer,
            ema,
            schedule,
            loader,
            evaluator,
            metadata,
            progress,
            log,
            micro_steps,
            labels,
            best_lines: None,
        })
    }

    /// Trains to the end, or until stopped from outside.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, data or files that fail on the way. The last checkpoint stands.
    pub fn run(mut self) -> Result<Outcome> {
        let flow = self.train();
        self.log.finish();
        let interrupted = matches!(flow?, Flow::Interrupted);
        Ok(Outcome {
            interrupted,
            best: self.progress.best,
            best_lines: self.best_lines,
            run: self.run,
            evaluated: self.evaluator.is_some(),
        })
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
            let number_of_epoch = self.progress.epoch + 1;
            let every = self.config.train.eval_every;
            let due = last || (every > 0 && number_of_epoch.is_multiple_of(every));
            if self.evaluator.is_some() && due && self.progress.evaluated != Some(self.progress.iter) {
                // A kill during the evaluation shall not cost the epoch.
                self.save()?;
                if let Flow::Interrupted = self.evaluate(trained)? {
                    return Ok(Flow::Interrupted);
                }
            }
            if self.progress.batch == self.loader.batches_per_epoch() {
                self.progress.epoch += 1;
                self.progress.batch = 0;
            }
            let every = self.config.checkpoint.every_epochs;
            if last || (every > 0 && number_of_epoch.is_multiple_of(every)) {
                self.save()?;
                number(&self.run, self.progress.iter, self.config.checkpoint.keep)?;
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
        let loader = self.loader.clone();
        let mut batches = loader.epoch(self.progress.epoch, self.progress.batch);
        let mut waited = batches.waited();
        loop {
            let start = Instant::now();
            let mut step = Accumulated::default();
            while step.forwards < self.micro_steps {
                let most = (self.micro_steps - step.forwards).min(self.at_once());
                let together = batches.by_ref().take(most).collect::<Result<Vec<_>>>()?;
                if together.is_empty() {
                    break;
                }
                self.learn(together, &mut step)?;
            }
            if step.images > 0 {
                let (lr, grad_norm) = self.update(&step)?;
                let seconds = start.elapsed();
                let now_waited = batches.waited();
                self.progress.seconds += seconds.as_secs_f64();
                let line = Step {
                    iter: self.progress.iter,
                    epoch: self.progress.epoch + 1,
                    loss: step.parts.iter().map(|p| p.1).sum::<f64>() / step.images as f64,
                    parts: step.parts.iter().map(|(name, sum)| (*name, sum / step.images as f64)).collect(),
                    lr,
                    grad_norm,
                    seconds: seconds.as_secs_f64(),
                    data_wait: (now_waited - waited).as_secs_f64(),
                };
                waited = now_waited;
                let left = self.evaluations_left();
                self.log.step(&line, left)?;
                self.plan(line.seconds);
            }
            if self.options.stop.load(Ordering::Relaxed) {
                return Ok(Flow::Interrupted);
            }
            if self.progress.batch >= loader.batches_per_epoch() || self.progress.iter >= self.total {
                break;
            }
            if step.images == 0 {
                bail!("the data ended after {} of {} batches", self.progress.batch, loader.batches_per_epoch());
            }
            if self.config.checkpoint.every_iters.is_some_and(|n| n > 0 && self.progress.iter.is_multiple_of(n as u64))
            {
                self.save()?;
                number(&self.run, self.progress.iter, self.config.checkpoint.keep)?;
            }
        }
        self.log.unreadable("train", &loader.skipped());
        self.log.resized("train", &loader.resized());
        Ok(Flow::Done)
    }

    /// Decides the length of a run that is limited in time, once enough of its steps have been timed. With a warm-up of as many steps, in which the
    /// learning rate does not depend on the length, `--max-iters` with the number of steps does the same again.
    fn plan(&mut self, seconds: f64) {
        let Some(limit) = &mut self.limit else { return };
        let Some(more) = limit.step(seconds, self.progress.seconds) else { return };
        self.limit = None;
        let total = (self.progress.iter + more).min(self.total);
        self.schedule.set_total(total as usize);
        self.total = total;
        self.progress.planned = Some(total);
        self.log.set_total(total);
        let minutes = self.config.train.max_minutes.unwrap_or_default();
        self.log.say(&format!(
            "{total} steps in the {minutes} minutes of train.max_minutes: --max-iters {total} does the same again"
        ));
    }

    /// Adds the gradients of micro batches, with replicas of all at the same time.
    fn learn(&mut self, batches: Vec<Batch>, step: &mut Accumulated) -> Result<()> {
        let micro = MicroBatches { config: &self.config.train, device: self.options.device, labels: &self.labels };
        let numbered: Vec<(u64, Batch)> = (self.progress.forwards..).zip(batches).collect();
        let detector = &mut self.detector;
        let learned: Vec<Result<Micro>> = match &mut self.replicas {
            Some(replicas) => replicas.run(detector, numbered, |d, (number, batch)| micro.learn(d, number, batch)),
            None => numbered.into_iter().map(|(number, batch)| micro.learn(&**detector, number, batch)).collect(),
        };
        for one in learned {
            let Micro { parts, images, names } = one?;
            for (name, value) in &parts {
                ensure!(
                    value.is_finite(),
                    "the loss `{name}` became {value} at step {} on {names}; {}",
                    self.progress.iter + 1,
                    self.advice()
                );
            }
            step.parts.resize(parts.len(), ("", 0.0));
            for (sum, (name, value)) in step.parts.iter_mut().zip(parts) {
                *sum = (name, sum.1 + value * images as f64);
            }
            step.images += images;
            step.forwards += 1;
            step.names.push(names);
            self.progress.forwards += 1;
            self.progress.batch += 1;
        }
        Ok(())
    }

    /// Clips, updates, averages. Returns the learning rate and the norm of the gradient.
    fn update(&mut self, step: &Accumulated) -> Result<(f64, f64)> {
        let t = &self.config.train;
        // The last step of an epoch may have fewer images than a batch.
        let mut scale = t.batch_size as f64 / step.images as f64;
        let norm = self.optimizer.gradient_norm() * scale;
        ensure!(
            norm.is_finite(),
            "the gradient became {norm} at step {} on {}; {}",
            self.progress.iter + 1,
            step.names.join(", "),
            self.advice()
        );
        if let Some(most) = t.clip_norm {
            scale *= clip_factor(norm, most);
        }
        let lr = t.lr * self.schedule.factor(self.progress.iter as usize);
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
        format!(
            "a lower --lr, a longer train.warmup_iters or train.clip_norm may help; the last checkpoint, {}, is from before",
            self.run.last().display()
        )
    }

    fn evaluations_left(&self) -> usize {
        let every = self.config.train.eval_every;
        if every == 0 {
            return 0;
        }
        self.config.train.epochs.saturating_sub(self.progress.epoch).div_ceil(every)
    }

    /// Evaluates the weights (their average, where there is one); keeps them if they are the best.
    fn evaluate(&mut self, trained: Duration) -> Result<Flow> {
        self.swap();
        let result = self.evaluate_present(trained);
        self.swap();
        result
    }

    fn evaluate_present(&mut self, trained: Duration) -> Result<Flow> {
        let Some(evaluator) = &self.evaluator else { return Ok(Flow::Done) };
        let start = Instant::now();
        let (stop, log) = (self.options.stop.clone(), &self.log);
        let found = evaluator.detect(self.detector.as_ref(), self.options.device, |done, images| {
            log.evaluating(done, images);
            !stop.load(Ordering::Relaxed)
        })?;
        let Some(found) = found else { return Ok(Flow::Interrupted) };
        let scores = evaluator.score(&found)?;
        let seconds = start.elapsed().as_secs_f64();
        let (iter, epoch) = (self.progress.iter, self.progress.epoch + 1);
        self.progress.seconds += seconds;
        self.progress.evaluated = Some(iter);
        let best = self.progress.best.as_ref().is_none_or(|best| scores.boxes.ap() > best.score);
        if best {
            // The weights come last but the record of them: a kill in between repeats this.
            evaluator.write_results(self.run.path(), &found)?;
            let split = &self.config.data.val;
            let annotations = data_root(&self.config)?.join(&split.annotations);
            evaluator.write_ground_truth(&annotations, split.limit.is_none(), self.run.path())?;
            let mut metrics = scores.to_json();
            metrics.extend([
                ("epoch".to_string(), json!(epoch)),
                ("iter".to_string(), json!(iter)),
                ("weights".to_string(), json!("checkpoints/best.safetensors")),
            ]);
            metrics.extend(notices::metric(&evaluator.skipped()));
            write_text(&self.run.metrics(), &(serde_json::to_string_pretty(&metrics)? + "\n"))?;
            weights::save(&self.store, &self.run.best(), &self.metadata)?;
            self.progress.best = Some(Best { score: scores.boxes.ap(), epoch, iter });
            self.best_lines = Some(scores.lines());
        }
        self.log.evaluation(iter, epoch, scores.to_json(), &scores.scalars(), seconds)?;
        self.log.unreadable("val", &evaluator.skipped());
        self.log.resized("val", &evaluator.resized());
        self.log.warn("val", &scores.warnings);
        self.log.say(&format!(
            "epoch {epoch}/{}: {}{}; {:.0} s of training, {seconds:.0} s of evaluation",
            self.config.train.epochs,
            scores.summary(),
            if best { ", the best so far" } else { "" },
            trained.as_secs_f64()
        ));
        Ok(Flow::Done)
    }

    /// Writes the weights for others, then the state for a resumed run.
    fn save(&mut self) -> Result<()> {
        let (run, store, ema) = (&self.run, &self.store, self.ema.as_mut());
        save(run, store, &self.metadata, &self.optimizer, ema, &self.progress)
    }

    fn swap(&mut self) {
        if let Some(ema) = &mut self.ema {
            ema.swap();
        }
    }
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

/// What gradients of norm `norm` are multiplied with so that it is at most `most` (`torch.nn.utils.clip_grad_norm_`).
pub fn clip_factor(norm: f64, most: f64) -> f64 {
    (most / (norm + 1e-6)).min(1.0)
}

pub(super) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".into(),
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Trainer").field("run", &self.run).field("progress", &self.progress).finish()
    }
}
