//! What a run is asked from outside: to stop, or to save and go on. Signals ask it, and so may a program.
//!
//! | signal | what the run does | exit status |
//! |---|---|---|
//! | SIGINT (Ctrl-C) | finishes the step, saves | 130 |
//! | SIGTERM | the same; short of time, saves the step before | 143 |
//! | SIGHUP | finishes the step, saves | 129 |
//! | the second of these | ends at once | 128 + its number |
//! | SIGUSR1 | saves after the step, goes on | |

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

use super::standby::Standby;
use crate::console::warn;

/// What a shell adds to a signal's number.
const BY_SIGNAL: u8 = 128;
/// The time after SIGTERM for a run that has not said how much it has: Slurm's and Kubernetes' default, in seconds.
const GRACE: f64 = 30.0;

/// The requests to a run. Copies share them.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    /// The number of the signal that asked for the end; 0: none did.
    stop: AtomicU8,
    save: AtomicBool,
    /// What is to be written where the time is too short for the step.
    standby: Mutex<Option<Arc<Standby>>>,
}

impl Requests {
    /// Asks the run to end after the step at hand, with a checkpoint. `false`: it was asked before.
    pub fn stop(&self, signal: u8) -> bool {
        self.0.stop.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether the run is to end.
    pub fn is_stopping(&self) -> bool {
        self.0.stop.load(Ordering::Relaxed) > 0
    }

    /// The exit status of a run that was asked to end.
    pub fn status(&self) -> u8 {
        BY_SIGNAL + self.0.stop.load(Ordering::Relaxed)
    }

    /// Asks for a checkpoint after the step at hand.
    pub fn save(&self) {
        self.0.save.store(true, Ordering::Relaxed);
    }

    /// Whether a checkpoint was asked for since the last call.
    pub fn take_save(&self) -> bool {
        self.0.save.swap(false, Ordering::Relaxed)
    }

    /// Names what is to be written where the time is too short for the step.
    pub(super) fn stand_by(&self, standby: Arc<Standby>) {
        *self.0.standby.lock().unwrap_or_else(PoisonError::into_inner) = Some(standby);
    }

    fn standby(&self) -> Option<Arc<Standby>> {
        self.0.standby.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests that this process's signals make from now on.
    ///
    /// # Errors
    /// If the system does not let the process listen.
    #[cfg(unix)]
    pub fn by_signals() -> Result<Self> {
        use anyhow::Context;
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1])
            .context("cannot listen for signals")?;
        let requests = Self::default();
        let asked = requests.clone();
        let listen = move || {
            for signal in signals.forever() {
                let number = signal as u8;
                if signal == SIGUSR1 {
                    warn("\nsaving after this step");
                    asked.save();
                } else if !asked.stop(number) {
                    // Asked twice: files are written atomically, so what is there is whole.
                    leave(BY_SIGNAL + number);
                } else {
                    warn("\nstopping after this step, with a checkpoint (once more: at once)");
                    if signal == SIGTERM {
                        let asked = asked.clone();
                        std::thread::spawn(move || asked.leave_in_time());
                    }
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).context("cannot listen for signals")?;
        Ok(requests)
    }

    /// Elsewhere nothing asks: Ctrl-C ends the process, and its last checkpoint stands.
    ///
    /// # Errors
    /// None.
    #[cfg(not(unix))]
    pub fn by_signals() -> Result<Self> {
        Ok(Self::default())
    }

    /// Waits as long as the time allows. If the process still is there then, the step at hand takes too long: what
    /// stands by is written in its place, and the process ends.
    #[cfg(unix)]
    fn leave_in_time(&self) {
        let time = || self.standby().map_or(Duration::from_secs_f64(GRACE), |standby| standby.time_to_wait());
        std::thread::sleep(time());
        if let Some(standby) = self.standby() {
            match standby.write() {
                Ok(Some(iter)) => warn(&format!("no time for the step at hand: step {iter} is saved")),
                Ok(None) => {}
                Err(error) => warn(&format!("error: {error:#}")),
            }
        }
        leave(self.status());
    }
}

/// Ends the process without waiting for its threads, which are in the middle of something.
#[cfg(unix)]
fn leave(status: u8) {
    signal_hook::low_level::exit(status.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_to_stop_counts_and_a_save_is_asked_for_once() {
        let requests = Requests::default();
        let other = requests.clone();
        assert!(!requests.is_stopping() && !requests.take_save());
        assert!(other.stop(15) && !other.stop(2));
        assert_eq!((requests.is_stopping(), requests.status()), (true, 143));
        other.save();
        assert_eq!([requests.take_save(), requests.take_save()], [true, false]);
    }
}
