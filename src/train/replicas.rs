//! Copies of a model that work on the micro batches of a step at the same time, each with threads of its own.
//!
//! What data-parallel training does on several GPUs (PyTorch's `DistributedDataParallel`), within a process. The
//! layers of a small image are too short to be divided among threads; whole micro batches are not. Every copy computes
//! what the model would have computed with the same micro batch, and gradients are added in order, so losses and
//! weights are those of micro batches one after another. Running statistics of batch norms, which training does not
//! read, move once by the mean of the micro batches, and not once for each.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tch::{nn, Device, Kind, Tensor};

use crate::nn::memory::for_each_pair;
use crate::weights::sorted_variables;

/// Threads for each micro batch, and the copies beside the model itself.
pub struct Replicas<M> {
    /// One for each micro batch.
    pools: Vec<ThreadPool>,
    /// One less.
    copies: Vec<Replica<M>>,
}

/// A copy: its weights are the model's own memory, its gradients and the running statistics of its norms are not.
struct Replica<M> {
    model: M,
    /// (the model's, the copy's) of all that trains.
    parameters: Vec<(Tensor, Tensor)>,
    /// The same of running statistics.
    statistics: Vec<(Tensor, Tensor)>,
}

impl<M: Send> Replicas<M> {
    /// For `count` micro batches at the same time: copies of the model on the CPU that has the variables of `store`,
    /// each made by `build`, as it was. Its weights are in place already: what is loaded later must be written into
    /// the same memory.
    ///
    /// # Errors
    /// Those of `build`; a system that gives no more threads.
    pub fn new(count: usize, store: &nn::VarStore, build: impl Fn(&nn::Path) -> Result<M>) -> Result<Self> {
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

    /// Gives all copies the model's statistics, as they are when a step is taken back.
    pub fn take_statistics(&mut self) {
        let own = self.copies.iter().flat_map(|copy| &copy.statistics);
        tch::no_grad(|| own.for_each(|(main, own)| own.shallow_clone().copy_(main)));
    }

    /// Calls `work`, forward and backward, with each micro batch and a model of its own. Afterwards the model's
    /// gradients have the copies' added, and running statistics are means over the micro batches.
    ///
    /// # Panics
    /// If there are more micro batches than [`Replicas::count`].
    pub fn run<B: Send, T: Send>(
        &mut self,
        model: &mut M,
        batches: Vec<B>,
        work: impl Fn(&M, B) -> T + Sync,
    ) -> Vec<T> {
        let used = batches.len();
        assert!(used <= self.count(), "{used} micro batches for {} replicas", self.count());
        if used == 0 {
            return Vec::new();
        }
        let mut results: Vec<Option<T>> = batches.iter().map(|_| None).collect();
        let models = std::iter::once(model).chain(self.copies.iter_mut().map(|c| &mut c.model));
        let tasks = self
            .pools
            .iter()
            .zip(models)
            .zip(batches)
            .zip(&mut results)
            .map(|(((pool, model), batch), result)| (pool, Work { model, batch, result }));
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
struct Work<'a, M, B, T> {
    model: &'a mut M,
    batch: B,
    result: &'a mut Option<T>,
}

/// Starts each task in its pool and waits for all.
fn in_parallel<'a, M: Send + 'a, B: Send + 'a, T: Send + 'a>(
    mut tasks: impl Iterator<Item = (&'a ThreadPool, Work<'a, M, B, T>)>,
    work: &(impl Fn(&M, B) -> T + Sync),
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
            if let Some(Work { model, batch, result }) = task {
                *result = Some(work(model, batch));
            }
        });
        in_parallel(tasks, work);
    });
}

impl<M> Replica<M> {
    fn new(store: &nn::VarStore, build: impl Fn(&nn::Path) -> Result<M>) -> Result<Self> {
        let own_store = nn::VarStore::new(Device::Cpu);
        let model = build(&own_store.root())?;
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
        Ok(Self { model, parameters, statistics })
    }

    /// Adds the copy's gradients to the model's and clears them.
    fn hand_over_gradients(&self) {
        let mut pairs = Vec::new();
        for (main, own) in &self.parameters {
            let (sum, mut gradient) = (main.grad(), own.grad());
            if sum.defined() && gradient.defined() {
                pairs.push((sum, gradient));
            } else if gradient.defined() {
                // The micro batch had no use for this parameter. Only a backward pass makes a gradient.
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

/// Gives the model and `all` copies the mean of its statistics and those of the copies that worked, which is what the
/// mean of their micro batches' statistics would have made of the old ones. Where nothing has moved, as in frozen
/// norms, nothing is written.
fn average_statistics<M>(working: &[Replica<M>], all: &[Replica<M>]) {
    let Some(first) = all.first() else { return };
    for (i, (main, idle)) in first.statistics.iter().enumerate() {
        let own = |copy: &Replica<M>| copy.statistics[i].1.shallow_clone();
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

    /// A batch norm, a frozen one and two factors, of which the second is used only for inputs below zero.
    struct Scale {
        norm: nn::BatchNorm,
        frozen: nn::BatchNorm,
        factor: Tensor,
        seldom: Tensor,
    }

    fn build(path: &nn::Path) -> Result<Scale> {
        let norm = |name| {
            let config = nn::BatchNormConfig { momentum: 0.1, ..Default::default() };
            nn::batch_norm1d(path / name, 1, config)
        };
        Ok(Scale {
            norm: norm("norm"),
            frozen: norm("frozen"),
            factor: path.var("factor", &[1], nn::Init::Uniform { lo: 1.0, up: 2.0 }),
            seldom: path.var("seldom", &[1], nn::Init::Uniform { lo: 1.0, up: 2.0 }),
        })
    }

    fn learn(model: &Scale, x: Tensor) -> f64 {
        let below = x.min().double_value(&[]) < 0.0;
        let factor = if below { &model.factor * &model.seldom } else { model.factor.shallow_clone() };
        let _ = (model.norm.forward_t(&x, true), model.frozen.forward_t(&x, false));
        let loss = (x * factor).sum(Kind::Float);
        loss.backward();
        loss.double_value(&[])
    }

    fn batch(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).view([-1, 1])
    }

    #[test]
    fn gradients_add_up_and_statistics_are_means_of_the_micro_batches() {
        let store = nn::VarStore::new(Device::Cpu);
        let mut model = build(&store.root()).unwrap();
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
        let losses = replicas.run(&mut model, batches, learn);
        for (loss, expected) in losses.iter().zip([4.0 * factor, 4.0 * factor * seldom, 10.0 * factor]) {
            near(*loss, expected);
        }
        near(gradient("factor"), 4.0 + 4.0 * seldom + 10.0);
        near(gradient("seldom"), 4.0 * factor);
        // Means 2, 2, 5 and unbiased variances 2, 32, 0.
        near(value("norm.running_mean"), 0.1 * 3.0);
        near(value("norm.running_var"), 0.9 + 0.1 * 34.0 / 3.0);

        // A change of the weights in place reaches the copies; what they had added is not added again. Two micro
        // batches leave one copy idle.
        let _ = tch::no_grad(|| variables["factor"].shallow_clone().fill_(7.0));
        let losses = replicas.run(&mut model, vec![batch(&[0.0, 2.0]), batch(&[2.0, 4.0])], learn);
        near(losses[0], 14.0);
        near(losses[1], 42.0);
        near(gradient("factor"), 4.0 + 4.0 * seldom + 10.0 + 2.0 + 6.0);
        near(gradient("seldom"), 4.0 * factor);
        near(value("norm.running_mean"), 0.9 * 0.3 + 0.1 * 2.0);
        // A round of the model alone.
        replicas.run(&mut model, vec![batch(&[1.0, 1.0])], learn);
        near(value("norm.running_mean"), 0.9 * (0.9 * 0.3 + 0.1 * 2.0) + 0.1);
        assert_eq!((value("frozen.running_mean"), frozen.internal_version()), (f64::from(0.1f32), version));
        assert!(replicas.run(&mut model, Vec::new(), learn).is_empty());
        for copy in &replicas.copies {
            for (main, own) in &copy.statistics {
                assert_eq!(main, own);
            }
        }
    }

    #[test]
    fn after_a_step_that_is_taken_back_all_start_from_the_models_statistics() {
        let store = nn::VarStore::new(Device::Cpu);
        let mut model = build(&store.root()).unwrap();
        let mut replicas = Replicas::new(2, &store, build).unwrap();
        let mean = &store.variables()["norm.running_mean"];
        let step = |replicas: &mut Replicas<Scale>, model: &mut Scale| {
            replicas.run(model, vec![batch(&[1.0, 3.0]), batch(&[5.0, 7.0])], learn);
        };
        step(&mut replicas, &mut model);
        let _ = tch::no_grad(|| mean.shallow_clone().fill_(0.5));
        replicas.take_statistics();
        step(&mut replicas, &mut model);
        let (found, expected) = (mean.double_value(&[0]), 0.9 * 0.5 + 0.1 * 4.0);
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }

    #[test]
    fn each_works_in_threads_of_its_own_and_the_others_keep_theirs() {
        let store = nn::VarStore::new(Device::Cpu);
        let mut model = build(&store.root()).unwrap();
        let before = tch::get_num_threads();
        let mut replicas = Replicas::new(2, &store, build).unwrap();
        let seen = replicas.run(&mut model, vec![0, 1], |_, number| {
            (number, std::thread::current().id(), tch::get_num_threads(), rayon::current_num_threads())
        });
        let share = (before as usize / 2).max(1);
        assert_eq!(seen.iter().map(|s| (s.0, s.2, s.3)).collect::<Vec<_>>(), [0, 1].map(|i| (i, share as i32, share)));
        assert_ne!(seen[0].1, seen[1].1);
        assert_eq!(tch::get_num_threads(), before);
    }
}
