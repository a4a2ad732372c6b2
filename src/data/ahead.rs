//! Work done on threads ahead of whoever consumes its results, in order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};

use anyhow::{anyhow, Context, Result};

/// A pool of `workers` threads (0: one per core).
pub fn pool(workers: usize) -> Result<rayon::ThreadPool> {
    let workers = match workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(workers)
        .thread_name(|i| format!("loader-{i}"))
        .build()
        .context("cannot start the loader's threads")
}

/// Batches to make ahead: two hide one slow image; small batches need more of them to keep every thread busy.
pub fn batches_ahead(pool: &rayon::ThreadPool, batch_size: usize) -> usize {
    (2 * pool.current_num_threads()).div_ceil(batch_size.max(1)).max(2)
}

/// The results of jobs, in the jobs' order, while at most `most` of them are being worked on or waiting. A job that gives `None` is passed over.
/// Dropping this stops the work ahead.
pub struct Ahead<'a, J, T> {
    pool: &'a rayon::ThreadPool,
    work: Arc<dyn Fn(J) -> Result<Option<T>> + Send + Sync>,
    most: usize,
    /// Jobs that are not started yet.
    jobs: VecDeque<J>,
    /// Results of those that are, in order.
    coming: VecDeque<mpsc::Receiver<Result<Option<T>>>>,
    stop: Arc<AtomicBool>,
    waited: Duration,
}

impl<'a, J: Send + 'static, T: Send + 'static> Ahead<'a, J, T> {
    /// Starts the first jobs.
    pub fn new(
        pool: &'a rayon::ThreadPool,
        most: usize,
        jobs: VecDeque<J>,
        work: impl Fn(J) -> Result<Option<T>> + Send + Sync + 'static,
    ) -> Self {
        let mut ahead = Self {
            pool,
            work: Arc::new(work),
            most,
            jobs,
            coming: VecDeque::new(),
            stop: Arc::new(AtomicBool::new(false)),
            waited: Duration::ZERO,
        };
        ahead.fill();
        ahead
    }

    /// How long the consumer has waited in all.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Starts jobs until as many are on their way as memory allows.
    fn fill(&mut self) {
        while self.coming.len() < self.most {
            let Some(job) = self.jobs.pop_front() else { return };
            let (sender, receiver) = mpsc::sync_channel(1);
            let (work, stop) = (self.work.clone(), self.stop.clone());
            self.pool.spawn(move || {
                if !stop.load(Ordering::Relaxed) {
                    // An error here means that nobody waits any more.
                    let _ = sender.send(work(job));
                }
            });
            self.coming.push_back(receiver);
        }
    }
}

impl<J: Send + 'static, T: Send + 'static> Iterator for Ahead<'_, J, T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let receiver = self.coming.pop_front()?;
            let start = Instant::now();
            let result = receiver
                .recv()
                .unwrap_or_else(|_| Err(anyhow!("a loader thread died; its message is above this one")));
            self.waited += start.elapsed();
            self.fill();
            match result.transpose() {
                None => continue,
                result => return result,
            }
        }
    }
}

impl<J, T> Drop for Ahead<'_, J, T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl<J, T> std::fmt::Debug for Ahead<'_, J, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Ahead").field("jobs", &self.jobs.len()).field("coming", &self.coming.len()).finish()
    }
}
