//! How a run starts: data, model and saved state, then its length, then its folder.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use serde_json::{json, Value};
use tch::Device;

use super::{Engine, Out, TrainOptions};
use crate::config::{Experiment, TrainConfig};
use crate::console::{say, warn};
use crate::nn::precision;
use crate::ranks::Ranks;
use crate::runs::{check_space, unix_time, RunDir};
use crate::threads::set_threads;
use crate::train::data_parallel::{check_same, DataParallel};
use crate::train::ema::Ema;
use crate::train::initial::initial;
use crate::train::logger::Logger;
use crate::train::machine;
use crate::train::optimizer::Optimizer;
use crate::train::replicas::Replicas;
use crate::train::standby::{Standby, Statistics};
use crate::train::state::{self, progress_of, Progress, State};
use crate::train::task::Task;
use crate::train::time_limit::TimeLimit;
use crate::weights::{metadata_of, sorted_variables, Checkpoint};

impl<T: Task> Engine<T> {
    /// Opens the data, builds the model, and takes up weights or a whole run.
    ///
    /// # Errors
    /// Data, weights or folders that cannot be used. A new run's folder is made last, so a failed start leaves none.
    pub fn start(config: T::Config, options: TrainOptions) -> Result<Self> {
        set_threads(config.train().threads);
        let ranks = options.ranks;
        let (out, resuming) = (options.out, options.resume);
        let resumed = resumed(&out, resuming, &ranks)?;
        let saved = resumed.as_ref().map(open_state).transpose()?;
        let t = config.train().clone();
        let micro_steps = micro_steps(&t, &ranks)?;
        let known = match (&saved, &resumed) {
            (Some(saved), _) if saved.classes().is_some() => saved.classes().cloned(),
            // States of before they knew their classes.
            (Some(_), Some(run)) => Checkpoint::open(&run.last()).ok().and_then(|last| last.classes().cloned()),
            _ => None,
        };
        let known = ranks.of_first(|| Ok(known))?;
        let (task, mut feed) = ranks.one_before_the_others(|| T::open(config, known.as_ref()))?;
        let data = feed.digest()?;
        check_same(&ranks, task.config(), &data)?;

        // Nothing after this draws from libtorch's generator but for weights that others take the place of.
        let (store, model) = initial(t.seed, options.device, |path| task.build(path))?;
        let variables = sorted_variables(&store);
        if let (Some(weights), None) = (&options.weights, &saved) {
            say(&format!("weights: {}", task.start_from(&store, weights)?));
        }
        let mut optimizer = Optimizer::new(&variables, &t);
        let mut ema = t.ema.map(|decay| Ema::new(&variables, decay, t.ema_warmup));
        let mut progress = Progress::default();
        if let Some(saved) = &saved {
            progress = progress_of(saved)?;
            let mut state = State { variables: &variables, optimizer: &mut optimizer, ema: ema.as_mut() };
            state.load(saved, &progress)?;
            warn_of_other_data(progress.data.as_deref(), &data);
        }
        progress.data = Some(data);
        let progress = ranks.of_first(|| Ok(progress))?;
        ema.iter_mut().for_each(|ema| ema.resume(progress.ema_updates));
        let parallel = DataParallel::start(ranks, &variables, &mut optimizer, ema.as_ref())?;
        let ranks = parallel.ranks();

        let own_steps = parallel.share(micro_steps).len();
        let at_once = if options.device == Device::Cpu { t.replicas.min(own_steps) } else { 1 };
        feed.keep_ahead(at_once + 1);
        feed.take_share(ranks.rank(), ranks.size(), micro_steps);
        let steps_per_epoch = feed.batches_per_epoch().div_ceil(micro_steps);
        let Length { total, stretch } = Length::of(&t, &progress, steps_per_epoch)?;
        let limit = t.max_minutes.filter(|_| progress.planned.is_none()).map(TimeLimit::new);
        let mut schedule = task.schedule(steps_per_epoch.saturating_mul(stretch), total);
        if progress.planned.is_some() {
            schedule.set_total(total);
        }
        let replicas = (at_once > 1).then(|| Replicas::new(at_once, &store, |path| task.build(path))).transpose()?;

        let metadata = metadata_of(task.config(), task.classes())?;
        let state = State { variables: &variables, optimizer: &mut optimizer, ema: ema.as_mut() };
        let snapshot = state.snapshot(&progress, |_| None);
        let run = match resumed {
            Some(run) => run,
            None => new_run(&out, ranks, snapshot.bytes())?,
        };
        if ranks.is_first() {
            if !resuming {
                // Before the config, which makes the folder a run's: whatever has a config can go on, from these
                // weights.
                snapshot.write(&run, &metadata)?;
            } else if state::weights_are_of_another_step(&run, &progress) {
                snapshot.write_weights(&run, &metadata)?;
            }
        }
        let standby = Arc::new(Standby::new(run.path(), &metadata, t.grace_seconds));
        if ranks.is_first() {
            options.requests.stand_by(standby.clone());
        }
        let statistics = Statistics::new(&variables);
        let engine = Self {
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
            log: Logger::silent(),
            device: options.device,
            requests: options.requests,
            standby,
            statistics,
            saved: Instant::now(),
            reproducible: false,
            best_lines: None,
        };
        engine.begin(options.command, resuming)
    }

    /// Writes down and says what is about to be done.
    fn begin(mut self, command: Vec<String>, resuming: bool) -> Result<Self> {
        let t = self.task.config().train();
        let Progress { iter, epoch, evaluated, .. } = self.progress;
        precision::left_off(t.amp, self.device).iter().for_each(|line| say(line));
        if self.parallel.ranks().is_first() {
            self.run.describe(&self.task.config().to_json()?, self.record(command), resuming)?;
            self.run.rewind_log(iter, evaluated != Some(iter))?;
            self.log = Logger::new(&self.run, iter, self.total, self.epochs())?;
        }
        let (at_once, ranks) = (self.at_once(), self.parallel.ranks().size());
        say(&format!(
            "{}, {:.1} M trained parameters, on {} with {} threads{}{} in {}: {}{} steps of {} images into {}",
            self.task.name(),
            self.optimizer.parameters() as f64 / 1e6,
            machine::device_name(self.device),
            tch::get_num_threads(),
            if at_once > 1 { format!(" and {at_once} replicas") } else { String::new() },
            if ranks > 1 { format!(" in each of {ranks} processes") } else { String::new() },
            precision::name(t.amp, self.device),
            if self.limit.is_some() { "at most " } else { "" },
            self.total,
            t.batch_size,
            self.run.path().display()
        ));
        if resuming {
            say(&format!("resuming after step {iter} (epoch {})", epoch + 1));
        }
        Ok(self)
    }

    /// What run.json says of this start.
    fn record(&self, command: Vec<String>) -> Value {
        let mut start = json!({
            "command": command,
            "unix_time": unix_time(),
            "from_iter": self.progress.iter,
            "vigdet": env!("CARGO_PKG_VERSION"),
            "replicas": self.at_once(),
            "ranks": self.parallel.ranks().size(),
            "precision": precision::name(self.task.config().train().amp, self.device),
            "classes": self.task.classes().names(),
            "trained_numbers": self.optimizer.parameters(),
            "steps": self.total,
        });
        start.as_object_mut().into_iter().for_each(|start| start.extend(machine::record(self.device)));
        start
    }
}

/// `before`: the digest of the data that a run began with; states of older versions have none.
fn warn_of_other_data(before: Option<&str>, now: &str) {
    if before.is_some_and(|before| before != now) {
        warn(
            "the training split is not the one that this run began with: other images, or other labels. The run goes \
             on with what is there now, and may end with other weights than without the stop",
        );
    }
}

/// The run that goes on. Rank 0 reads and writes; the others hear from it. A new run's named folder must be free.
fn resumed(out: &Out, resume: bool, ranks: &Ranks) -> Result<Option<RunDir>> {
    match (out, resume) {
        _ if !ranks.is_first() => Ok(None),
        (Out::Named(path) | Out::Numbered(path), true) => RunDir::open(path).map(Some),
        (Out::Named(path), false) => RunDir::check_free(path).map(|()| None),
        (Out::Numbered(_), false) => Ok(None),
    }
}

/// The folder of a new run, where there is space for its checkpoints.
fn new_run(out: &Out, ranks: &Ranks, checkpoint_bytes: u64) -> Result<RunDir> {
    let (Out::Named(path) | Out::Numbered(path)) = out;
    if !ranks.is_first() {
        return Ok(RunDir::at(path));
    }
    // Beside each checkpoint there is the one before it.
    check_space(path, 2 * checkpoint_bytes, "a checkpoint beside the one before it")?;
    match out {
        Out::Named(path) => RunDir::create(path),
        Out::Numbered(base) => RunDir::create_numbered(base),
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

/// Micro batches of a step, of which each rank has at least one.
fn micro_steps(t: &TrainConfig, ranks: &Ranks) -> Result<usize> {
    ensure!(
        t.micro_batch.is_some() || t.batch_size.is_multiple_of(t.images_of_micro_batch()),
        "train.batch_size, {}, cannot be divided evenly among {} train.replicas: change either, or set \
         train.micro_batch",
        t.batch_size,
        t.replicas
    );
    let micro_batch = t.images_of_micro_batch();
    let micro_steps = t.batch_size.div_ceil(micro_batch);
    ensure!(
        ranks.size() <= micro_steps,
        "{} processes have {micro_steps} micro batches of {micro_batch} images in a step: fewer processes, a smaller \
         train.micro_batch or a larger train.batch_size give each at least one",
        ranks.size()
    );
    Ok(micro_steps)
}

/// How long a run is.
struct Length {
    /// Steps of the whole run.
    total: usize,
    /// What the config's numbers of epochs are multiplied by (`train.min_iters`).
    stretch: usize,
}

impl Length {
    fn of(t: &TrainConfig, progress: &Progress, steps_per_epoch: usize) -> Result<Self> {
        let epochs = t.epochs.saturating_mul(steps_per_epoch);
        let stretch = t.min_iters.unwrap_or(0).div_ceil(epochs.max(1)).max(1);
        let planned = progress.planned.map_or(usize::MAX, |steps| steps as usize);
        let total = epochs.saturating_mul(stretch).min(t.max_iters.unwrap_or(usize::MAX)).min(planned);
        ensure!(total > 0, "there is nothing to train: train.epochs or train.max_iters is 0");
        Ok(Self { total, stretch })
    }
}
