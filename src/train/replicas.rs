//! Copies of a detector that work on the micro batches of a step at the same time, each with threads of its own.
//!
//! What data-parallel training does on several GPUs (PyTorch's `DistributedDataParallel`), within a process. The layers of a small image are
//! too short to be divided among threads; whole micro batches are not. Every copy computes what the detector would have computed with the
//! same micro batch, and gradients are added in order, so losses and weights are those of micro batches one after another. Running statistics of
//! batch norms, which training does not read, move once by the mean of the micro batches, and not once for each.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tch::{nn, Device, Kind, Tensor};

use crate::detect::Detector;
use crate::nn::memory::for_each_pair;
use crate::weights::sorted_variables;

/// Threads for each micro batch, and the copies beside the detector itself.
pub struct Replicas {
    /// One for each micro batch.
    pools: Vec<ThreadPool>,
    /// One less.
    copies: Vec<Replica>,
}

/// A copy: its weights are the detector's own memory, its gradients and the running statistics of its norms are not.
struct Replica {
    detector: Box<dyn Detector>,
    /// (the detector's, the copy's) of all that trains.
    parameters: Vec<(Tensor, Tensor)>,
    /// The same of running statistics.
    statistics: Vec<(Tensor, Tensor)>,
}

impl Replicas {
    /// For `count` micro batches at the same time: copies of the detector on the CPU that has the variables of `store`, each made by `build`, as it
    /// was. Its weights are in place already: what is loaded later must be written into the same memory.
    ///
    /// # Errors
    /// Those of `build`; a system that gives no more threads.
    pub fn new(
        count: usize,
        store: &nn::VarStore,
        build: impl Fn(&nn::Path) -> Result<Box<dyn Detector>>,
    ) -> Result<Self> {
        let all = tch::get_num_threads();
        let threads = (all as usize / count).max(1);
        let pools: Vec<ThreadPool> = (0..count)
            .map(|i| ThreadPoolBuilder::new().num_threads(threads).thread_name(move |_| format!("replica-{i}")).build())
            .collect::<Result<_, _>>()
            .context("no threads for train.replicas")?;
        for pool in &pools {
            // libtorch sets a thread's number from the process's when it is first asked; then the thread's own holds.
            pool.broadcast(|_| {
                tch::get_num_threads();
                tch::set_num_threads(threads as i32);
            });
        }
        tch::set_num_threads(all);
        let copies = (1..count).map(|_| Replica::new(store, &build)).collect::<Result<Vec<_>>>()?;
        Ok(Self { pools, copies })
    }

    /// Micro batches at the same time.
    pub fn count(&self) -> usize {
        self.pools.len()
    }

    /// Calls `work`, forward and backward, with each micro batch and a detector of its own. Afterwards the detector's gradients have the copies'
    /// added, and running statistics are means over the micro batches.
    ///
    /// # Panics
    /// If there are more micro batches than [`Replicas::count`].
    pub fn run<B: Send, T: Send>(
        &mut self,
        detector: &mut Box<dyn Detector>,
        batches: Vec<B>,
        work: impl Fn(&dyn Detector, B) -> T + Sync,
    ) -> Vec<T> {
        let used = batches.len();
        assert!(used <= self.count(), "{used} micro batches for {} replicas", self.count());
        if used == 0 {
            return Vec::new();
        }
        let mut results: Vec<Option<T>> = batches.iter().map(|_| None).collect();
        let detectors = std::iter::once(detector).chain(self.copies.iter_mut().map(|c| &mut c.detector));
        let tasks = self
            .pools
            .iter()
            .zip(detectors)
            .zip(batches)
            .zip(&mut results)
            .map(|(((pool, detector), batch), result)| (pool, Task { detector, batch, result }));
        in_parallel(tasks, &work);
        let working = &self.copies[..used - 1];
        tch::no_grad(|| {
            working.iter().for_each(Replica::hand_over_gradients);
            average_statistics(working, &self.copies);
        });
        results.into_iter().flatten().collect()
    }
}

/// A micro batch and who works on it.
struct Task<'a, B, T> {
    detector: &'a mut Box<dyn Detector>,
    batch: B,
    result: &'a mut Option<T>,
}

/// Starts each task in its pool and waits for all.
fn in_parallel<'a, B: Send + 'a, T: Send + 'a>(
    mut tasks: impl Iterator<Item = (&'a ThreadPool, Task<'a, B, T>)>,
    work: &(impl Fn(&dyn Detector, B) -> T + Sync),
) {
    let Some((pool, task)) = tasks.next() else { return };
    let task = Mutex::new(Some(task));
    pool.in_place_scope(|scope| {
        // Always the pool's first thread: every thread that calls libtorch gets helpers and memory of its own.
        scope.spawn_broadcast(|_, context| {
            if context.index() > 0 {
                return;
            }
            let task = task.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Task { detector, batch, result }) = task {
                *result = Some(work(&**detector, batch));
            }
        });
        in_parallel(tasks, work);
    });
}

impl Replica {
    fn new(store: &nn::VarStore, build: impl Fn(&nn::Path) -> Result<Box<dyn Detector>>) -> Result<Self> {
        let own_store = nn::VarStore::new(Device::Cpu);
        let detector = build(&own_store.root())?;
        let (mut parameters, mut statistics) = (Vec::new(), Vec::new());
        for ((name, main), (_, mut own)) in sorted_variables(store).into_iter().zip(sorted_variables(&own_store)) {
            if name.ends_with(".running_mean") || name.ends_with(".running_var") {
                tch::no_grad(|| own.copy_(&main));
                statistics.push((main, own));
                continue;
            }
            own.set_data(&main.detach());
            if main.requires_grad() {
                parameters.push((main, own));
            }
        }
        Ok(Self { detector, parameters, statistics })
    }

    /// Adds the copy's gradients to the detector's and clears them.
    fn hand_over_gradients(&self) {
        let mut pairs = Vec::new();
        for (main, own) in &self.parameters {
            let (sum, mut gradient) = (main.grad(), own.grad());
            if sum.defined() && gradient.defined() {
                pairs.push((sum, gradient));
            } else if gradient.defined() {
                // The detector's micro batch had no use for this parameter. Only a backward pass makes a gradient.
                tch::with_grad(|| (main * &gradient).sum(Kind::Float).backward());
                let _ = gradient.zero_();
            }
        }
        for_each_pair(
            pairs.iter().map(|(sum, gradient)| (sum, gradient)),
            |sum, g| *sum += std::mem::take(g),
            |sum, gradient| {
                let _ = sum.shallow_clone().g_add_(gradient);
                let _ = gradient.shallow_clone().zero_();
            },
        );
    }
}

/// Gives the detector and `all` copies the mean of its statistics and those of the copies that worked, which is what the mean of their micro batches'
/// statistics would have made of the old ones. Where nothing has moved, as in frozen norms, nothing is written.
fn average_statistics(working: &[Replica], all: &[Replica]) {
    let Some(first) = all.first() else { return };
    for (i, (main, idle)) in first.statistics.iter().enumerate() {
        let own = |copy: &Replica| copy.statistics[i].1.shallow_clone();
        let moved = match working {
            [] => main != idle,
            copies => copies.iter().any(|copy| *main != own(copy)),
        };
        if !moved {
            continue;
        }
        let mut main = main.shallow_clone();
        working.iter().for_each(|copy| main += own(copy));
        let _ = main.g_div_scalar_((working.len() + 1) as f64);
        all.iter().for_each(|copy| own(copy).copy_(&main));
    }
}

#[cfg(test)]
mod tests {
    use tch::nn::ModuleT;

    use super::*;
    use crate::backbone::Pass;
    use crate::data::Batch;
    use crate::detect::{Detections, Losses};
    use crate::nn::cost::{Layer, Size};

    /// A batch norm, a frozen one and two factors, of which the second is used only for inputs below zero.
    struct Scale {
        norm: nn::BatchNorm,
        frozen: nn::BatchNorm,
        factor: Tensor,
        seldom: Tensor,
    }

    fn build(path: &nn::Path) -> Result<Box<dyn Detector>> {
        let norm = |name| {
            let config = nn::BatchNormConfig { momentum: 0.1, ..Default::default() };
            nn::batch_norm1d(path / name, 1, config)
        };
        Ok(Box::new(Scale {
            norm: norm("norm"),
            frozen: norm("frozen"),
            factor: path.var("factor", &[1], nn::Init::Uniform { lo: 1.0, up: 2.0 }),
            seldom: path.var("seldom", &[1], nn::Init::Uniform { lo: 1.0, up: 2.0 }),
        }))
    }

    impl Detector for Scale {
        fn losses(&self, batch: &Batch, _: &mut Pass) -> Result<Losses> {
            let x = &batch.images;
            let below = x.min().double_value(&[]) < 0.0;
            let factor = if below { &self.factor * &self.seldom } else { self.factor.shallow_clone() };
            let _ = (self.norm.forward_t(x, true), self.frozen.forward_t(x, false));
            Ok(Losses { parts: vec![("product", (x * factor).sum(Kind::Float))] })
        }

        fn detect(&self, _: &Batch) -> Result<Vec<Detections>> {
            Ok(Vec::new())
        }

        fn flops(&self, _: Size, _: &mut dyn FnMut(Layer)) {}
    }

    fn batch(values: &[f32]) -> Batch {
        let images = Tensor::from_slice(values).view([-1, 1]);
        Batch { images, sizes: Vec::new(), targets: Vec::new(), infos: Vec::new() }
    }

    fn learn(detector: &dyn Detector, batch: Batch) -> f64 {
        let loss = detector.losses(&batch, &mut Pass::training(0, 0)).unwrap().total();
        loss.backward();
        loss.double_value(&[])
    }

    #[test]
    fn gradients_add_up_and_statistics_are_means_of_the_micro_batches() {
        let store = nn::VarStore::new(Device::Cpu);
        let mut detector = build(&store.root()).unwrap();
        let variables = store.variables();
        let value = |name: &str| variables[name].double_value(&[0]);
        let gradient = |name: &str| variables[name].grad().double_value(&[0]);
        let (factor, seldom) = (value("factor"), value("seldom"));
        let frozen = &variables["frozen.running_mean"];
        let _ = tch::no_grad(|| frozen.shallow_clone().fill_(0.1));
        let mut replicas = Replicas::new(3, &store, build).unwrap();
        let version = frozen.internal_version();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{a} {b}");

        // The detector's own micro batch does not use the second factor.
        let batches = vec![batch(&[1.0, 3.0]), batch(&[-2.0, 6.0]), batch(&[5.0, 5.0])];
        let losses = replicas.run(&mut detector, batches, learn);
        for (loss, expected) in losses.iter().zip([4.0 * factor, 4.0 * factor * seldom, 10.0 * factor]) {
            near(*loss, expected);
        }
        near(gradient("factor"), 4.0 + 4.0 * seldom + 10.0);
        near(gradient("seldom"), 4.0 * factor);
        // Means 2, 2, 5 and unbiased variances 2, 32, 0.
        near(value("norm.running_mean"), 0.1 * 3.0);
        near(value("norm.running_var"), 0.9 + 0.1 * 34.0 / 3.0);

        // A change of the weights in place reaches the copies; what they had added is not added again. Two micro batches leave one copy idle.
        let _ = tch::no_grad(|| variables["factor"].shallow_clone().fill_(7.0));
        let losses = replicas.run(&mut detector, vec![batch(&[0.0, 2.0]), batch(&[2.0, 4.0])], learn);
        near(losses[0], 14.0);
        near(losses[1], 42.0);
        near(gradient("factor"), 4.0 + 4.0 * seldom + 10.0 + 2.0 + 6.0);
        near(gradient("seldom"), 4.0 * factor);
        near(value("norm.running_mean"), 0.9 * 0.3 + 0.1 * 2.0);
        // A round of the detector alone.
        replicas.run(&mut detector, vec![batch(&[1.0, 1.0])], learn);
        near(value("norm.running_mean"), 0.9 * (0.9 * 0.3 + 0.1 * 2.0) + 0.1);
        assert_eq!((value("frozen.running_mean"), frozen.internal_version()), (f64::from(0.1f32), version));
        assert!(replicas.run(&mut detector, Vec::new(), learn).is_empty());
        for copy in &replicas.copies {
            for (main, own) in &copy.statistics {
                assert_eq!(main, own);
            }
        }
    }

    #[test]
    fn each_works_in_threads_of_its_own_and_the_others_keep_theirs() {
        let store = nn::VarStore::new(Device::Cpu);
        let mut detector = build(&store.root()).unwrap();
        let before = tch::get_num_threads();
        let mut replicas = Replicas::new(2, &store, build).unwrap();
        let seen = replicas.run(&mut detector, vec![0, 1], |_, number| {
            (number, std::thread::current().id(), tch::get_num_threads(), rayon::current_num_threads())
        });
        let share = (before as usize / 2).max(1);
        assert_eq!(seen.iter().map(|s| (s.0, s.2, s.3)).collect::<Vec<_>>(), [0, 1].map(|i| (i, share as i32, share)));
        assert_ne!(seen[0].1, seen[1].1);
        assert_eq!(tch::get_num_threads(), before);
    }
}
