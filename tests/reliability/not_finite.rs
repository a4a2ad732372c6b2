//! Steps whose loss is not finite: skipped without a trace in the weights, and done again from a file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use anyhow::Result;
use tch::{nn, Device, Tensor};
use vigdet::backbone::Pass;
use vigdet::classes::Classes;
use vigdet::config::{Config, Experiment};
use vigdet::data::{Batch, DetectionSource, Feed};
use vigdet::ranks::Ranks;
use vigdet::train::detection::Detection;
use vigdet::train::engine::{Engine, Out, TrainOptions};
use vigdet::train::evaluator::Results;
use vigdet::train::not_finite::Reproducer;
use vigdet::train::schedule::Schedule;
use vigdet::train::task::{Micro, Scored, Task};
use vigdet::weights::{Checkpoint, LoadReport};

use crate::common::{log, Scene, TINY};

/// Micro batches of the run, from 0, that [`Poisoned`] spoils. Tests take turns with it.
static SPOILED: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// A detector some of whose losses are not finite.
struct Poisoned {
    inner: Detection,
    spoiled: Vec<u64>,
    calls: AtomicU64,
}

impl Task for Poisoned {
    type Config = Config;
    type Model = <Detection as Task>::Model;
    type Source = DetectionSource;
    type Found = Results;

    fn open(config: Config, known: Option<&Classes>) -> Result<(Self, Feed<DetectionSource>)> {
        let (inner, feed) = Detection::open(config, known)?;
        Ok((Self { inner, spoiled: SPOILED.lock().unwrap().clone(), calls: AtomicU64::new(0) }, feed))
    }

    fn without_data(config: Config, classes: Classes) -> Self {
        let inner = Detection::without_data(config, classes);
        Self { inner, spoiled: Vec::new(), calls: AtomicU64::new(0) }
    }

    fn config(&self) -> &Config {
        self.inner.config()
    }

    fn classes(&self) -> &Classes {
        self.inner.classes()
    }

    fn build(&self, path: &nn::Path) -> Result<Self::Model> {
        self.inner.build(path)
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn start_from(&self, store: &nn::VarStore, weights: &Checkpoint) -> Result<LoadReport> {
        self.inner.start_from(store, weights)
    }

    fn schedule(&self, steps_per_epoch: usize, total: usize) -> Schedule {
        self.inner.schedule(steps_per_epoch, total)
    }

    fn losses(&self, model: &Self::Model, batch: Batch, device: Device, pass: &mut Pass) -> Result<Micro> {
        let mut micro = self.inner.losses(model, batch, device, pass)?;
        if self.spoiled.contains(&self.calls.fetch_add(1, Ordering::Relaxed)) {
            let part = &mut micro.losses.parts[0].1;
            *part = &*part * f64::NAN;
        }
        Ok(micro)
    }

    fn relabel(&self, batch: &mut Batch) {
        self.inner.relabel(batch);
    }

    fn advice(&self) -> &'static str {
        self.inner.advice()
    }

    fn is_evaluated(&self) -> bool {
        false
    }

    fn evaluate(
        &self,
        model: &Self::Model,
        device: Device,
        ranks: &Ranks,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<(Scored, Results)>> {
        self.inner.evaluate(model, device, ranks, progress)
    }

    fn write(&self, found: &Results, run: &vigdet::runs::RunDir) -> Result<()> {
        self.inner.write(found, run)
    }
}

/// Trains with two micro batches a step; those of these numbers are spoiled.
fn train(scene: &Scene, out: &str, steps: usize, spoiled: &[u64], more: &[&str]) -> Result<()> {
    let mut held = SPOILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *held = spoiled.to_vec();
    drop(held);
    let root = format!("data.root={}", scene.data.arg());
    let steps = format!("train.max_iters={steps}");
    // The learning rate does not depend on the number of steps; one thread gives the same sums in every process.
    let steady = ["train.eval_every=0", "schedule=step", "warmup_iters=0", "train.threads=1", &root, &steps];
    let changes: Vec<String> = steady.iter().chain(more).map(|s| s.to_string()).collect();
    let options = TrainOptions::new(Out::Named(scene.path(out)));
    Engine::<Poisoned>::start(Config::from_json_with(TINY, &changes)?, options)?.run().map(drop)
}

/// The newest weights, by name.
fn weights(run: &Path) -> BTreeMap<String, Vec<f32>> {
    let all = Tensor::read_safetensors(run.join("checkpoints/last.safetensors")).unwrap();
    all.into_iter().map(|(name, tensor)| (name, Vec::try_from(tensor.reshape(-1)).unwrap())).collect()
}

#[test]
fn steps_that_are_not_finite_leave_no_trace_are_few_in_a_row_and_can_be_done_again() {
    let scene = Scene::new();
    let skip = ["on_nan=skip", "skip_most=2"];
    for replicas in ["train.replicas=1", "train.replicas=2"] {
        let name = |name: &str| format!("{name} {replicas}");
        let with = [&skip[..], &[replicas]].concat();
        train(&scene, &name("one"), 1, &[], &with).unwrap();
        // The second micro batch of the second step, the first of the third.
        train(&scene, &name("skipped"), 3, &[3, 4], &with).unwrap();
        let [one, skipped] = ["one", "skipped"].map(|run| scene.path(&name(run)));
        // Running statistics of batch norms too, of which the spoiled steps' forward passes changed all.
        let (before, after) = (weights(&one), weights(&skipped));
        let moved: Vec<&String> = before.keys().filter(|name| before[*name] != after[*name]).collect();
        assert!(moved.is_empty() && before.len() == after.len(), "{replicas}: {moved:?}");
        let lines = log(&skipped);
        assert_eq!(lines[0], log(&one)[0]);
        for (line, iter) in lines[1..].iter().zip(2..) {
            let reason = line["skipped"].as_str().unwrap();
            assert_eq!(line["iter"], iter);
            assert!(reason.contains("the loss `classification` became NaN on ") && reason.contains(".png"), "{reason}");
        }
    }

    // After the skipped step the run goes on; one more than `skip_most` in a row ends it.
    train(&scene, "goes on", 4, &[2, 4], &skip).unwrap();
    let lines = log(&scene.path("goes on"));
    assert_eq!(lines.iter().map(|line| line.get("loss").is_some()).collect::<Vec<_>>(), [true, false, false, true]);
    let error = train(&scene, "too many", 5, &[2, 4, 6], &skip).unwrap_err().to_string();
    assert!(error.contains("after 2 steps that were skipped (train.skip_most) at step 4"), "{error}");

    // The file does the step again, to the bit as it was: without the spoiling it has the loss of the other run.
    let error = train(&scene, "stopped", 2, &[2], &[]).unwrap_err().to_string();
    let said = error.split("`vigdet replay ").nth(1).and_then(|rest| rest.split('`').next());
    let file = Reproducer::open(Path::new(said.unwrap_or_else(|| panic!("{error}")))).unwrap();
    let before = Checkpoint::open(&file.weights()).unwrap();
    tch::set_num_threads(1);
    let replayed = file.replay::<Detection>(&before, Device::Cpu, &[]).unwrap();
    assert!(!replayed.is_not_finite() && replayed.variables.is_empty());
    train(&scene, "well", 2, &[], &[]).unwrap();
    let step = &log(&scene.path("well"))[1];
    for part in ["classification", "box"] {
        let of = |losses: &[(&'static str, f64)]| losses.iter().find(|(name, _)| *name == part).unwrap().1;
        let mean = replayed.batches.iter().map(|batch| of(&batch.parts) * 2.0).sum::<f64>() / 4.0;
        assert_eq!(Some(mean), step[part].as_f64(), "{part}");
    }
    assert_eq!(Some(replayed.grad_norm), step["grad_norm"].as_f64());
}
