//! Work done on threads ahead of whoever consumes its results, in order.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use crate::threads::cores;

/// A pool of `workers` threads (0: one per core).
pub fn pool(workers: usize) -> Result<rayon::ThreadPool> {
    let workers = match workers {
        0 => cores(),
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

/// Runs `work`; a panic in it, which on a thread of a pool would end the whole process, becomes an error that says
/// what `doing` means.
pub fn caught<T>(doing: impl FnOnce() -> String, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What `work` leaves half done is its own, or counts that are whole at any time.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(payload) => bail!("something went wrong inside while {}: {}", doing(), message(&*payload)),
    }
}

/// What a panic was about.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_string()
}

/// The results of jobs, in the jobs' order, while at most `most` of them are being worked on or waiting. A job that
/// gives `None` is passed over. Dropping this stops the work ahead.
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
                    let _ = sender.send(caught(|| "making a batch".into(), || work(job)));
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
            // Work sends something whatever happens, unless this was dropped.
            let result = receiver.recv().context("the loader was stopped").and_then(|result| result);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_panics_is_an_error_and_the_others_go_on() {
        let pool = pool(2).unwrap();
        let jobs: VecDeque<usize> = (0..6).collect();
        let ahead = Ahead::new(&pool, 3, jobs, |job| {
            assert!(job != 2, "job {job} is broken");
            Ok((job != 4).then_some(job))
        });
        let results: Vec<Result<usize, String>> =
            ahead.map(|result| result.map_err(|error| error.to_string())).collect();
        assert_eq!(results.len(), 5);
        let error = results[2].as_ref().unwrap_err();
        assert!(error.contains("making a batch") && error.contains("job 2 is broken"), "{error}");
        let done: Vec<usize> = results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
        assert_eq!(done, [0, 1, 3, 5]);
    }
}
