//! The training loop of a classifier: pretraining of a backbone.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde_json::json;
use tch::nn;

use super::checkpoint::{load_state, number, save, Best, Progress};
use super::classify_evaluate::{cross_entropy, ClassEvaluator};
use super::ema::Ema;
use super::epoch_cosine::EpochCosine;
use super::log::{Logger, Step};
use super::notices;
use super::optimizer::Optimizer;
use super::run_dir::{unix_time, write_text, RunDir};
use super::trainer::{clip_factor, device_name, Flow, Outcome, TrainOptions};
use crate::backbone::{Classifier, Pass};
use crate::config::ClassifyConfig;
use crate::data::classify::{ClassBatch, ClassLoader, ClassLoaderOptions};
use crate::data::ImageFolder;
use crate::nn::precision::autocast;
use crate::threads::set_threads;
use crate::weights::{self, load_into, sorted_variables, LoadOptions, Metadata};

/// The one part of the loss.
const LOSS: &str = "cross_entropy";

/// A classifier in training.
pub struct ClassTrainer {
    config: ClassifyConfig,
    options: TrainOptions,
    run: RunDir,
    store: nn::VarStore,
    model: Classifier,
    optimizer: Optimizer,
    ema: Option<Ema>,
    schedule: EpochCosine,
    loader: std::sync::Arc<ClassLoader>,
    evaluator: Option<ClassEvaluator>,
    metadata: Metadata,
    progress: Progress,
    log: Logger,
    /// Steps of the whole run.
    total: u64,
    best_lines: Option<String>,
}

impl ClassTrainer {
    /// Opens the data, builds the classifier, and takes up weights or a whole run.
    ///
    /// # Errors
    /// Data, weights or folders that cannot be used. A new run's folder is made last, so a failed start leaves none.
    pub fn new(config: ClassifyConfig, options: TrainOptions) -> Result<Self> {
        set_threads(config.train.threads);
        let run = if options.resume { RunDir::open(&options.out)? } else { RunDir::free(&options.out)? };
        let t = &config.train;
        let micro_batch = t.micro_batch.unwrap_or(t.batch_size).min(t.batch_size);
        let root = config
            .data
            .root
            .clone()
            .context("there is no data: --data DIR names a folder with train/CLASS/*.jpg and val/CLASS/*.jpg")?;
        let train = ImageFolder::open(&config.data.train, &root)?;
        println!("train: {train}");
        let classes = train.classes().to_vec();
        ensure!(classes.len() > 1, "there is only one class, `{}`: a classifier needs two", classes.join(", "));
        let evaluator = match t.eval_every {
            0 => None,
            _ => {
                let val = ImageFolder::open(&config.data.val, &root)
                    .and_then(|val| {
                        println!("val: {val}");
                        val.with_classes(&classes)
                    })
                    .context("validation split (--set train.eval_every=0 trains without one)")?;
                Some(ClassEvaluator::new(val, &config, micro_batch)?)
            }
        };

        // Initial weights come from libtorch's generator; nothing after this draws from it.
        tch::manual_seed(t.seed as i64);
        let store = nn::VarStore::new(options.device);
        let model = Classifier::new(&store.root(), &config.model.backbone, classes.len() as i64)?;
        let variables = sorted_variables(&store);
        if let (Some(path), false) = (&options.weights, options.resume) {
            let report = load_into(&store, path, &LoadOptions { other_classes: true, ..Default::default() })?;
            println!("weights: {report}");
        }
        let mut optimizer = Optimizer::new(&variables, &t.optimisation());
        let mut ema = t.ema.map(|decay| Ema::new(&variables, decay, t.ema_warmup));
        let mut progress = Progress::default();
        if options.resume {
            progress = load_state(&run.state(), &variables, &mut optimizer, ema.as_mut())?;
        }

        let loader_options = ClassLoaderOptions {
            batch_size: t.batch_size,
            micro_batch,
            train: true,
            seed: t.seed,
            label_smoothing: t.label_smoothing,
        };
        let loader = ClassLoader::new(train, &config.data, loader_options)?;
        check_micro_batches(&loader, &config)?;
        let steps_per_epoch = loader.steps_per_epoch();
        let total = (t.epochs * steps_per_epoch).min(t.max_iters.unwrap_or(usize::MAX));
        ensure!(total > 0, "there is nothing to train: train.epochs or train.max_iters is 0");
        let schedule = EpochCosine::new(t, steps_per_epoch);

        let metadata = weights::metadata_of_classifier(&config, &classes)?;
        if !options.resume {
            RunDir::create(&options.out)?;
            // Before the config, which makes the folder a run's: whatever has a config can go on, from these weights.
            save(&run, &store, &metadata, &optimizer, ema.as_mut(), &progress)?;
        }
        let start = json!({
            "command": options.command,
            "unix_time": unix_time(),
            "from_iter": progress.iter,
            "vigdet": env!("CARGO_PKG_VERSION"),
            "libtorch": "2.13.0",
            "device": device_name(options.device),
            "threads": tch::get_num_threads(),
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            "classes": classes,
            "trained_numbers": optimizer.numbers(),
            "steps": total,
        });
        run.describe(&config.to_json()?, start, options.resume)?;
        run.rewind_log(progress.iter, progress.evaluated != Some(progress.iter))?;
        let log = Logger::new(&run, progress.iter, total as u64, t.epochs)?;
        println!(
            "{} for {} classes, {:.1} M trained numbers, on {} with {} threads: {total} steps of {} images into {}",
            config.model.backbone.name,
            classes.len(),
            optimizer.numbers() as f64 / 1e6,
            device_name(options.device),
            tch::get_num_threads(),
            t.batch_size,
            run.path().display()
        );
        if options.resume {
            println!("resuming after step {} (epoch {})", progress.iter, progress.epoch + 1);
        }
        Ok(Self {
            total: total as u64,
            config,
            options,
            run,
            store,
            model,
            optimizer,
            ema,
            schedule,
            loader: loader.into(),
            evaluator,
            metadata,
            progress,
            log,
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
        let t = &self.config.train;
        let micro_batch = t.micro_batch.unwrap_or(t.batch_size).min(t.batch_size);
        let micro_steps = t.batch_size.div_ceil(micro_batch);
        let mut batches = loader.epoch(self.progress.epoch, self.progress.batch);
        let mut waited = batches.waited();
        loop {
            let start = Instant::now();
            let mut step = Accumulated::default();
            while step.forwards < micro_steps {
                let Some(batch) = batches.next() else { break };
                self.forward_backward(&batch?, &mut step)?;
            }
            if step.images > 0 {
                let (lr, grad_norm) = self.update(&step)?;
                let seconds = start.elapsed();
                let now_waited = batches.waited();
                self.progress.seconds += seconds.as_secs_f64();
                let loss = step.loss / step.images as f64;
                let line = Step {
                    iter: self.progress.iter,
                    epoch: self.progress.epoch + 1,
                    loss,
                    parts: vec![(LOSS, loss)],
                    lr,
                    grad_norm,
                    seconds: seconds.as_secs_f64(),
                    data_wait: (now_waited - waited).as_secs_f64(),
                };
                waited = now_waited;
                let left = self.evaluations_left();
                self.log.step(&line, left)?;
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
            let every = self.config.checkpoint.every_iters;
            if every.is_some_and(|n| n > 0 && self.progress.iter.is_multiple_of(n as u64)) {
                self.save()?;
                number(&self.run, self.progress.iter, self.config.checkpoint.keep)?;
            }
        }
        self.log.unreadable("train", &loader.skipped());
        Ok(Flow::Done)
    }

    /// Adds the gradient of one micro batch, times its share of a full batch.
    fn forward_backward(&mut self, batch: &ClassBatch, step: &mut Accumulated) -> Result<()> {
        let (t, device) = (&self.config.train, self.options.device);
        let mut pass = Pass::training(t.seed, self.progress.forwards);
        let (images, targets) = (batch.images.to_device(device), batch.targets.to_device(device));
        let logits = autocast(t.amp, device, || self.model.forward(&images, &mut pass))?.logits;
        let loss = cross_entropy(&logits, &targets);
        let value = loss.double_value(&[]);
        ensure!(
            value.is_finite(),
            "the loss became {value} at step {} on {}; {}",
            self.progress.iter + 1,
            some(&batch.names),
            self.advice()
        );
        (loss * (batch.len() as f64 / t.batch_size as f64)).backward();
        step.loss += value * batch.len() as f64;
        step.images += batch.len();
        step.forwards += 1;
        step.names.extend(batch.names.iter().cloned());
        self.progress.forwards += 1;
        self.progress.batch += 1;
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
            some(&step.names),
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

    fn advice(&self) -> String {
        let advice = "a lower --lr, a longer train.warmup_epochs or train.clip_norm may help";
        if self.run.last().exists() {
            format!("{advice}; the last checkpoint, {}, is from before", self.run.last().display())
        } else {
            format!("{advice}; there was no checkpoint yet")
        }
    }

    fn evaluations_left(&self) -> usize {
        match self.config.train.eval_every {
            0 => 0,
            every => self.config.train.epochs.saturating_sub(self.progress.epoch).div_ceil(every),
        }
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
        let found = evaluator.evaluate(&self.model, self.options.device, |done, images| {
            log.evaluating(done, images);
            !stop.load(Ordering::Relaxed)
        })?;
        let Some(accuracy) = found else { return Ok(Flow::Interrupted) };
        let seconds = start.elapsed().as_secs_f64();
        let (iter, epoch) = (self.progress.iter, self.progress.epoch + 1);
        self.progress.seconds += seconds;
        self.progress.evaluated = Some(iter);
        let (top1, top5) = (accuracy.top1(), accuracy.top5());
        let best = self.progress.best.as_ref().is_none_or(|best| top1 > best.score);
        if best {
            // The weights come last but the record of them: a kill in between repeats this.
            let mut metrics = accuracy.to_json();
            metrics.extend([
                ("epoch".to_string(), json!(epoch)),
                ("iter".to_string(), json!(iter)),
                ("weights".to_string(), json!("checkpoints/best.safetensors")),
            ]);
            metrics.extend(notices::metric(&evaluator.skipped()));
            write_text(&self.run.metrics(), &(serde_json::to_string_pretty(&metrics)? + "\n"))?;
            weights::save(&self.store, &self.run.best(), &self.metadata)?;
            self.progress.best = Some(Best { score: top1, epoch, iter });
            self.best_lines = Some(accuracy.class_lines(10));
        }
        let scalars = [("val/top1", top1), ("val/top5", top5), ("val/loss", accuracy.loss)];
        let scalars = scalars.map(|(tag, value)| (tag.to_string(), value));
        self.log.evaluation(iter, epoch, accuracy.summary_json(), &scalars, seconds)?;
        self.log.unreadable("val", &evaluator.skipped());
        self.log.say(&format!(
            "epoch {epoch}/{}: top-1 {top1:.4}, top-5 {top5:.4}, loss {:.3}{}; {:.0} s of training, {seconds:.0} s of evaluation",
            self.config.train.epochs,
            accuracy.loss,
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

/// Refuses a single image as a micro batch where a batch norm would see one value per channel: an epoch may have one at its end only, after hours.
fn check_micro_batches(loader: &ClassLoader, config: &ClassifyConfig) -> Result<()> {
    let (t, backbone) = (&config.train, &config.model.backbone);
    // ViG's classifier has a norm after the mean over the image; ResNet's last map has one place for images of up to 32 pixels.
    let one_value = !backbone.name.starts_with("resnet") || (!backbone.freeze_norms && config.data.size <= 32);
    ensure!(
        !one_value || loader.smallest_batch() > 1,
        "the last micro batch of a step of an epoch has one image, which {} cannot train on (its batch norm would see one value per channel): \
         change train.batch_size, {}, or train.micro_batch, {}, or set data.drop_last=true, which leaves out a smaller last step",
        backbone.name,
        t.batch_size,
        t.micro_batch.unwrap_or(t.batch_size).min(t.batch_size)
    );
    Ok(())
}

/// What the micro batches of a step have added up to.
#[derive(Default)]
struct Accumulated {
    forwards: usize,
    images: usize,
    /// Sum over images.
    loss: f64,
    names: Vec<String>,
}

/// The first few names.
fn some(names: &[String]) -> String {
    match names {
        few if few.len() <= 4 => few.join(", "),
        [first, second, ..] => format!("{first}, {second} and {} more images", names.len() - 2),
        _ => String::new(),
    }
}

impl std::fmt::Debug for ClassTrainer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("ClassTrainer").field("run", &self.run).field("progress", &self.progress).finish()
    }
}
