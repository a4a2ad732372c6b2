//! The loop on a network of one weight, whose steps can be followed with pencil and paper.

use std::cell::RefCell;
use std::io::Write;
use std::path::Path;

use serde_json::Value;
use tch::{nn, Device, Kind, Tensor};

use super::{Engine, Out, TrainOptions};
use crate::backbone::Pass;
use crate::classes::Classes;
use crate::config::{Config, Experiment, OnError};
use crate::data::feed::{Job, Reader};
use crate::data::order::{Grouping, Order};
use crate::data::{Feed, Record, Source};
use crate::detect::Losses;
use crate::ranks::Ranks;
use crate::runs::RunDir;
use crate::threads::cores;
use crate::train::schedule::{Schedule, StepSchedule};
use crate::train::task::{Micro, Scored, Task};
use crate::weights::{previous, Checkpoint, LoadReport};

/// Images of an epoch, of which image `i` is the number `i + 1`.
const IMAGES: usize = 5;
/// The means of the steps of an epoch, of two images each and then one.
const MEANS: [f64; 3] = [1.5, 3.5, 5.0];
/// The last image of each step.
const LAST: [f64; 3] = [2.0, 4.0, 5.0];
const WEIGHT: &str = "weight";
const MEAN: &str = "norm.running_mean";

thread_local! {
    /// What the evaluations of this thread's runs are to find; then nothing.
    static SCORES: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
    /// The weight and the running mean that each of them saw.
    static SEEN: RefCell<Vec<[f64; 2]>> = const { RefCell::new(Vec::new()) };
    /// The image that is not a number.
    static SPOILED: RefCell<Option<usize>> = const { RefCell::new(None) };
}

/// Numbers in the place of images.
struct Numbers {
    reader: Reader,
    spoiled: Option<usize>,
}

struct Batch(Vec<f64>);

impl Record for Batch {
    fn record(&self) -> (Vec<(&'static str, Tensor)>, Value) {
        (vec![("numbers", Tensor::from_slice(&self.0))], Value::Null)
    }

    fn from_record(tensor: &dyn Fn(&str) -> anyhow::Result<Tensor>, _: &Value, _: usize) -> anyhow::Result<Self> {
        Ok(Self(tensor("numbers")?.try_into()?))
    }
}

impl Source for Numbers {
    type Batch = Batch;

    fn images(&self) -> usize {
        IMAGES
    }

    fn batch(&self, job: &Job) -> anyhow::Result<Option<Batch>> {
        let number = |i: usize| if self.spoiled == Some(i) { f64::NAN } else { i as f64 + 1.0 };
        Ok(Some(Batch(job.slots.iter().map(|slot| number(slot.image)).collect())))
    }

    fn describe(&self, _: &mut dyn Write) -> anyhow::Result<()> {
        Ok(())
    }

    fn reader(&self) -> &Reader {
        &self.reader
    }
}

/// A weight, and the last number that it saw.
struct Model {
    weight: Tensor,
    mean: Tensor,
}

/// The loss is -weight · number: with a learning rate of 1 a step adds the mean of its numbers to the weight.
struct Sum {
    config: Config,
    classes: Classes,
}

impl Task for Sum {
    type Config = Config;
    type Model = Model;
    type Source = Numbers;
    type Found = ();

    fn open(config: Config, _: Option<&Classes>) -> anyhow::Result<(Self, Feed<Numbers>)> {
        let source = Numbers { reader: Reader::new(OnError::Stop), spoiled: SPOILED.take() };
        let order = Order::once(config.train.images_of_micro_batch(), None, Grouping::InOrder);
        let feed = Feed::start(source, order, 1)?;
        Ok((Self::without_data(config, Classes::default()), feed))
    }

    fn without_data(config: Config, classes: Classes) -> Self {
        Self { config, classes }
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn classes(&self) -> &Classes {
        &self.classes
    }

    fn build(&self, path: &nn::Path) -> anyhow::Result<Model> {
        let weight = path.var(WEIGHT, &[1], nn::Init::Const(0.0));
        Ok(Model { weight, mean: (path / "norm").zeros_no_train("running_mean", &[1]) })
    }

    fn name(&self) -> String {
        "sum".into()
    }

    fn start_from(&self, _: &nn::VarStore, _: &Checkpoint) -> anyhow::Result<LoadReport> {
        Ok(LoadReport::default())
    }

    fn schedule(&self, steps_per_epoch: usize, total: usize) -> Schedule {
        Schedule::ByStep(StepSchedule::new(&self.config.train, steps_per_epoch, total))
    }

    fn losses(&self, model: &Model, batch: Batch, _: Device, _: &mut Pass) -> anyhow::Result<Micro> {
        let images = batch.0.len();
        let _ = tch::no_grad(|| model.mean.shallow_clone().fill_(batch.0[images - 1]));
        let mean = batch.0.iter().sum::<f64>() / images as f64;
        let losses = Losses { parts: vec![("sum", (&model.weight * -mean).sum(Kind::Float))] };
        Ok(Micro { losses, images, names: vec!["number".into(); images] })
    }

    fn advice(&self) -> &'static str {
        "other numbers may help"
    }

    fn is_evaluated(&self) -> bool {
        self.config.train.eval_every > 0
    }

    fn evaluate(
        &self,
        model: &Model,
        _: Device,
        _: &Ranks,
        _: &mut dyn FnMut(usize, usize) -> bool,
    ) -> anyhow::Result<Option<(Scored, ())>> {
        SEEN.with_borrow_mut(|seen| seen.push([&model.weight, &model.mean].map(|t| t.double_value(&[0]))));
        let score = SCORES.with_borrow_mut(|scores| if scores.is_empty() { 0.0 } else { scores.remove(0) });
        let log = serde_json::Map::from_iter([("bbox".to_string(), score.into())]);
        Ok(Some((Scored { score, log, ..Scored::default() }, ())))
    }

    fn write(&self, (): &(), _: &RunDir) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Trains with plain gradient descent, two images a step, one a micro batch.
fn train(out: &Path, changes: &[&str], resume: bool) -> anyhow::Result<RunDir> {
    SEEN.take();
    Ok(start(out, changes, resume)?.run()?.run)
}

fn start(out: &Path, changes: &[&str], resume: bool) -> anyhow::Result<Engine<Sum>> {
    let threads = format!("train.threads={}", cores());
    let plain = [
        "optimizer=sgd",
        "train.momentum=0",
        "weight_decay=0",
        "train.lr=1",
        "warmup_iters=0",
        "batch_size=2",
        "micro_batch=1",
        "train.epochs=1",
        "train.milestones=[]",
        &threads,
    ];
    let changes: Vec<String> = plain.iter().chain(changes).map(|change| change.to_string()).collect();
    let options = TrainOptions { resume, ..TrainOptions::new(Out::Named(out.to_path_buf())) };
    Engine::start(Config::from_json_with("{}", &changes)?, options)
}

fn value(path: &Path, name: &str) -> f64 {
    Checkpoint::open(path).unwrap().file().tensor(name).unwrap().double_value(&[0])
}

/// The values of the log's lines that have this key.
fn logged(run: &RunDir, key: &str, wanted: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(run.log()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get(key).is_some()).map(|line| line[wanted].as_f64().unwrap()).collect()
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-4, "{found} {expected}");
}

#[test]
fn a_step_has_the_mean_gradient_of_its_images_and_no_longer_one_than_the_config_says() {
    let folder = tempfile::tempdir().unwrap();
    // The last step of the epoch has one image.
    for (clip, end) in [("null", 1.5 + 3.5 + 5.0), ("2", 1.5 + 2.0 + 2.0)] {
        let clip_norm = format!("clip_norm={clip}");
        let run = train(&folder.path().join(clip), &["eval_every=0", &clip_norm], false).unwrap();
        near(value(&run.last(), WEIGHT), end);
        // As it was before it was clipped.
        assert_eq!(logged(&run, "loss", "grad_norm"), MEANS);
    }
}

#[test]
fn the_average_follows_each_step_and_is_what_is_evaluated_and_saved() {
    let folder = tempfile::tempdir().unwrap();
    let run = train(folder.path(), &["train.ema=0.5"], false).unwrap();
    let (mut weight, mut averages) = (0.0, [0.0; 2]);
    for (n, (mean, last)) in MEANS.into_iter().zip(LAST).enumerate() {
        weight += mean;
        let decay = f64::min(0.5, (1.0 + n as f64) / (10.0 + n as f64));
        for (average, value) in averages.iter_mut().zip([weight, last]) {
            *average += (1.0 - decay) * (value - *average);
        }
    }
    let seen = SEEN.take();
    assert_eq!(seen.len(), 1);
    for (i, name) in [WEIGHT, MEAN].into_iter().enumerate() {
        near(seen[0][i], averages[i]);
        near(value(&run.best(), name), averages[i]);
        near(value(&run.last(), name), averages[i]);
    }
    // A resumed run goes on from the weight itself.
    assert_eq!(value(&run.state(), "model.weight"), weight);
}

#[test]
fn evaluations_come_every_so_many_epochs_and_at_the_end_and_the_highest_is_the_best() {
    let folder = tempfile::tempdir().unwrap();
    SCORES.set(vec![0.3, 0.5, 0.4]);
    let run = train(folder.path(), &["train.epochs=5", "eval_every=2"], false).unwrap();
    assert_eq!(logged(&run, "bbox", "epoch"), [2.0, 4.0, 5.0]);
    let metrics: Value = serde_json::from_slice(&std::fs::read(run.metrics()).unwrap()).unwrap();
    assert_eq!((metrics["epoch"].as_u64(), metrics["iter"].as_u64()), (Some(4), Some(12)));
    assert_eq!([run.best(), run.last()].map(|path| value(&path, WEIGHT)), [40.0, 50.0]);
}

#[test]
fn evaluations_that_are_left_are_those_that_come() {
    for (length, epochs) in [(["max_iters=null", "min_iters=60"], 20), (["max_iters=7", "min_iters=null"], 3)] {
        for every in 0..5 {
            let folder = tempfile::tempdir().unwrap();
            let every = format!("eval_every={every}");
            let engine = start(folder.path(), &["train.epochs=10", &every, length[0], length[1]], false).unwrap();
            assert_eq!(engine.epochs(), epochs);
            let left = engine.left().evaluations;
            let run = engine.run().unwrap().run;
            assert_eq!(left, logged(&run, "bbox", "epoch").len(), "{every} {length:?}");
        }
    }
}

#[test]
fn a_run_that_is_made_longer_is_evaluated_as_often_as_before() {
    let folder = tempfile::tempdir().unwrap();
    // Two epochs of three steps are not ten steps; twice as many are.
    let run = train(folder.path(), &["train.epochs=2", "min_iters=10"], false).unwrap();
    assert_eq!(logged(&run, "loss", "iter").len(), 12);
    assert_eq!(logged(&run, "bbox", "epoch"), [2.0, 4.0]);
}

#[test]
fn skipped_steps_are_counted_in_a_row() {
    let folder = tempfile::tempdir().unwrap();
    // The second step of each epoch.
    SPOILED.set(Some(2));
    let changes = ["train.epochs=3", "eval_every=0", "on_nan=skip", "skip_most=1"];
    let run = train(folder.path(), &changes, false).unwrap();
    assert_eq!(logged(&run, "skipped", "iter"), [2.0, 5.0, 8.0]);
    assert_eq!(value(&run.last(), WEIGHT), 3.0 * (1.5 + 5.0));
}

#[test]
fn seconds_that_are_left_are_those_of_the_limit_less_those_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let of = |epochs: &str, minutes: &str, resume: bool| {
        start(folder.path(), &["eval_every=0", &format!("train.epochs={epochs}"), minutes], resume).unwrap()
    };
    let engine = of("2", "max_minutes=2", false);
    assert_eq!(engine.left().seconds, Some(120.0));
    engine.run().unwrap();
    let engine = of("3", "max_minutes=2", true);
    let spent = engine.progress.seconds;
    assert!(spent > 0.0);
    assert_eq!(engine.left().seconds, Some(120.0 - spent));
    drop(engine);
    assert_eq!(of("4", "max_minutes=null", true).left().seconds, None, "a run without a limit");
}

#[test]
fn a_time_limit_makes_no_run_longer() {
    let folder = tempfile::tempdir().unwrap();
    // Sixty steps, of which thousands would fit.
    let changes = ["train.epochs=20", "max_minutes=0.2", "eval_every=0", "every_epochs=0"];
    let run = train(folder.path(), &changes, false).unwrap();
    assert_eq!(logged(&run, "loss", "iter").len(), 60);
}

#[test]
fn an_evaluation_that_was_logged_before_a_kill_is_logged_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = train(folder.path(), &[], false).unwrap();
    // What a kill leaves between the line and the state that knows of it.
    std::fs::copy(previous(&run.state()), run.state()).unwrap();
    drop(run);
    let run = train(folder.path(), &[], true).unwrap();
    assert_eq!(SEEN.take().len(), 1, "it is evaluated again");
    assert_eq!(logged(&run, "bbox", "iter"), [3.0]);
    assert_eq!(logged(&run, "loss", "iter"), [1.0, 2.0, 3.0]);
}

#[test]
fn checkpoints_are_numbered_by_the_steps_that_the_config_names_and_by_the_ends_of_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let run = train(folder.path(), &["train.epochs=2", "eval_every=0", "every_iters=2", "keep=9"], false).unwrap();
    let weight = |step: u64| {
        let path = run.checkpoints().join(format!("iter_{step:08}.safetensors"));
        path.exists().then(|| value(&path, WEIGHT))
    };
    // Steps are the run's: the fourth is the first of its epoch.
    let expected = [None, Some(1.5 + 3.5), Some(10.0), Some(10.0 + 1.5), None, Some(20.0)];
    assert_eq!([1, 2, 3, 4, 5, 6].map(weight), expected);
}

#[test]
fn a_run_goes_on_in_the_epoch_that_it_stopped_in() {
    let folder = tempfile::tempdir().unwrap();
    let of = |steps: &str, resume: bool| {
        let most = format!("max_iters={steps}");
        train(folder.path(), &["train.epochs=9", "eval_every=0", &most], resume).unwrap()
    };
    drop(of("4", false));
    let run = of("8", true);
    assert_eq!(logged(&run, "loss", "iter"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    assert_eq!(logged(&run, "loss", "epoch"), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0]);
    assert_eq!(value(&run.last(), WEIGHT), 2.0 * 10.0 + 1.5 + 3.5);
}

#[test]
fn a_run_that_goes_on_keeps_the_length_that_the_time_limit_gave_it() {
    let folder = tempfile::tempdir().unwrap();
    let changes = ["train.epochs=100", "max_minutes=1e-9", "eval_every=0", "every_epochs=0"];
    for resume in [false, true] {
        let run = train(folder.path(), &changes, resume).unwrap();
        assert_eq!(logged(&run, "loss", "iter").len(), 50);
    }
}

#[test]
fn the_whole_state_before_a_damaged_one_is_not_lost_with_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let run = train(folder.path(), &["eval_every=0"], false).unwrap();
    std::fs::write(run.state(), "damaged").unwrap();
    drop(run);
    let run = train(folder.path(), &["eval_every=0"], true).unwrap();
    assert_eq!(value(&run.state(), "model.weight"), 10.0);
    assert_eq!(value(&previous(&run.state()), "model.weight"), 0.0);
}
