//! The state of the last finished step, which another thread may write while the next step is at work.
//!
//! Until the optimizer's update a step changes gradients, which are not saved, and the running statistics of batch
//! norms, of which there are copies here. All else is the run's own memory: it is taken back before it changes.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tch::Tensor;

use super::state::Snapshot;
use crate::runs::RunDir;
use crate::weights::Metadata;

/// How often it is looked whether a step has come to its end.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How many times the last save's seconds are set aside for this one, and how many seconds beside them.
const RESERVE: (f64, f64) = (2.0, 1.0);

/// What stands by.
#[derive(Debug)]
enum Ready {
    /// Nothing: memory is being changed.
    Nothing,
    /// The files are of the last finished step already.
    Saved,
    /// The last finished step.
    State(Box<Snapshot>),
}

/// Holds the state of the last finished step ready.
#[derive(Debug)]
pub(super) struct Standby {
    run: RunDir,
    metadata: Metadata,
    /// Seconds between SIGTERM and the end.
    grace: f64,
    ready: Mutex<(Ready, Duration)>,
}

impl Standby {
    /// For a run in this folder, whose files are of its last finished step, that has `grace` seconds to end in.
    pub fn new(run: &Path, metadata: &Metadata, grace: f64) -> Self {
        let ready = Mutex::new((Ready::Saved, Duration::ZERO));
        Self { run: RunDir::at(run), metadata: metadata.clone(), grace, ready }
    }

    fn lock(&self) -> MutexGuard<'_, (Ready, Duration)> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the state back before its memory changes. Where it is just being written, waits.
    pub fn take_back(&self) {
        self.lock().0 = Ready::Nothing;
    }

    /// A step is finished.
    pub fn offer(&self, snapshot: Snapshot) {
        self.lock().0 = Ready::State(Box::new(snapshot));
    }

    /// The last finished step is in the files, which took so long.
    pub fn saved(&self, took: Duration) {
        *self.lock() = (Ready::Saved, took);
    }

    /// How long the run may go on after SIGTERM before its state must be written.
    pub fn time_to_wait(&self) -> Duration {
        let reserve = RESERVE.0 * self.lock().1.as_secs_f64() + RESERVE.1;
        Duration::from_secs_f64((self.grace - reserve).max(0.0))
    }

    /// Writes the state of the last finished step, unless the files are of it already, and gives its number.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self) -> Result<Option<u64>> {
        loop {
            let ready = self.lock();
            match &ready.0 {
                Ready::Saved => return Ok(None),
                Ready::State(snapshot) => {
                    snapshot.write(&self.run, &self.metadata)?;
                    return Ok(Some(snapshot.iter()));
                }
                Ready::Nothing => {
                    drop(ready);
                    std::thread::sleep(LOOK_EVERY);
                }
            }
        }
    }
}

/// The running statistics of batch norms, and copies from before the step at hand.
#[derive(Debug)]
pub(super) struct Statistics(Vec<(String, Tensor, Tensor)>);

impl Statistics {
    /// Of a model with these variables, as they are now.
    pub fn new(variables: &[(String, Tensor)]) -> Self {
        let running = |name: &str| name.ends_with(".running_mean") || name.ends_with(".running_var");
        let own = variables.iter().filter(|(name, _)| running(name));
        Self(own.map(|(name, variable)| (name.clone(), variable.shallow_clone(), variable.detach().copy())).collect())
    }

    /// Copies what they are now.
    pub fn keep(&mut self) {
        tch::no_grad(|| self.0.iter_mut().for_each(|(_, variable, kept)| kept.copy_(variable)));
    }

    /// Makes them what they were.
    pub fn restore(&mut self) {
        tch::no_grad(|| self.0.iter_mut().for_each(|(_, variable, kept)| variable.copy_(kept)));
    }

    /// The copy of a variable, if it is one of them.
    pub fn kept(&self, name: &str) -> Option<Tensor> {
        self.0.binary_search_by(|own| own.0.as_str().cmp(name)).ok().map(|at| self.0[at].2.shallow_clone())
    }
}
