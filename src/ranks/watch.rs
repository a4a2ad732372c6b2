//! Signs of life: every rank gives one a second to the store, and ends when another is gone or has failed.
//!
//! A collective call alone would not do: it waits for whoever computes, reads or writes for long, and cannot tell that
//! from a machine whose network is cut.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::c10d::Store;
use super::place::Place;
use crate::console::error;

/// Time between signs.
const BEAT: Duration = Duration::from_secs(1);
/// Without a sign for so long, a rank is gone.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same once a connection broke.
const LESS_PATIENCE: Duration = Duration::from_secs(5);
/// So long a rank that keeps the store waits for the others to hear what went wrong.
const HEARING: Duration = Duration::from_secs(4);

/// Keys: what went wrong, that a connection broke, how many have heard of it.
pub const FAILED: &str = "failed";
const BROKEN: &str = "broken";
const HEARD: &str = "heard";

/// The threads of a rank that give signs and look for those of others.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    /// Who keeps it, with its machine: asked for as long as it answers.
    keeper: String,
    place: Place,
    began: Instant,
    /// Milliseconds from the beginning to the store's last answer.
    answered: AtomicU64,
    stop: AtomicBool,
}

/// The key of a rank's machine.
pub fn host_key(rank: usize) -> String {
    format!("host/{rank}")
}

fn beat_key(rank: usize) -> String {
    format!("beat/{rank}")
}

impl Watch {
    /// Starts to give signs, and to end the process when it must.
    ///
    /// # Errors
    /// If threads cannot be started, or the store is gone already.
    pub fn start(store: Store, place: Place) -> Result<Self> {
        let keeper = match place.store_is_theirs {
            true => "whoever started the ranks".to_string(),
            false => format!("rank 0 on {}", store.look(&host_key(0))?.unwrap_or_default()),
        };
        let (began, answered, stop) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { store, keeper, place, began, answered, stop });
        let spawn = |name: &str, work: fn(&Shared)| {
            let shared = shared.clone();
            thread::Builder::new().name(name.into()).spawn(move || work(&shared))
        };
        // The first waits for the store, however long that takes; the second sees how long.
        let threads = vec![spawn("beat", Shared::beat)?, spawn("watch", Shared::watch_store)?];
        Ok(Self { shared, threads })
    }

    /// Ends the watching, before the others may go.
    pub fn end(self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }

    /// This rank has failed: tells the others. Gives whether it is the first, who has to say so.
    pub fn fail(&self, text: &str) -> bool {
        let shared = &self.shared;
        shared.stop.store(true, Ordering::Relaxed);
        let line = format!("{}: {text}", shared.name(shared.place.rank));
        let first = shared.store.claim(FAILED, &line).map_or(true, |held| held == line);
        if !first {
            let _ = shared.store.add(HEARD, 1);
        }
        if shared.place.rank == 0 && !shared.place.store_is_theirs {
            let start = Instant::now();
            let others = shared.place.size as i64 - 1;
            while start.elapsed() < HEARING && shared.store.add(HEARD, 0).is_ok_and(|heard| heard < others) {
                thread::sleep(BEAT / 20);
            }
        }
        first
    }

    /// Waits for the end: a connection broke, and the threads find out whose fault it is. Comes back only where they
    /// do not.
    pub fn wait_for_the_end(&self) {
        let _ = self.shared.store.set(BROKEN, "1");
        thread::sleep(2 * LESS_PATIENCE + 2 * BEAT);
    }
}

impl Shared {
    /// `rank 3 on node7`.
    fn name(&self, rank: usize) -> String {
        match self.store.look(&host_key(rank)) {
            Ok(Some(host)) => format!("rank {rank} on {host}"),
            _ => format!("rank {rank}"),
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Gives signs, and looks for those of the others: rank 0 for all, the others for rank 0.
    fn beat(&self) {
        let place = &self.place;
        let watched: Vec<usize> = if place.rank == 0 { (1..place.size).collect() } else { vec![0] };
        let mut signs = vec![(0, Instant::now()); watched.len()];
        while !self.is_over() {
            if let Err(cause) = self.round(&watched, &mut signs) {
                if !self.is_over() {
                    self.end(Some(&self.without_store(&format!("{cause:#}"))));
                }
            }
            self.answered.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
            thread::park_timeout(BEAT);
        }
    }

    fn round(&self, watched: &[usize], signs: &mut [(i64, Instant)]) -> Result<()> {
        self.store.add(&beat_key(self.place.rank), 1)?;
        if self.store.look(FAILED)?.is_some() {
            self.end(None);
        }
        let patience = if self.store.look(BROKEN)?.is_some() { LESS_PATIENCE } else { PATIENCE };
        for (rank, (sign, when)) in watched.iter().zip(signs) {
            let now = self.store.add(&beat_key(*rank), 0)?;
            if now != *sign {
                (*sign, *when) = (now, Instant::now());
            } else if when.elapsed() > patience {
                let gone = format!(
                    "{} is gone: no sign of life for {} seconds (killed, out of memory, or its machine or network \
                     is down?)",
                    self.name(*rank),
                    patience.as_secs()
                );
                let first = self.store.claim(FAILED, &gone)? == gone;
                self.end(first.then_some(&gone));
            }
        }
        Ok(())
    }

    /// Ends the process when the store has not answered for too long.
    fn watch_store(&self) {
        while !self.is_over() {
            thread::park_timeout(BEAT);
            let answered = Duration::from_millis(self.answered.load(Ordering::Relaxed));
            if !self.is_over() && self.began.elapsed() > answered + PATIENCE {
                self.end(Some(&self.without_store(&format!("no answer for {} seconds", PATIENCE.as_secs()))));
            }
        }
    }

    fn without_store(&self, cause: &str) -> String {
        let Place { rank, host, port, .. } = &self.place;
        let (keeper, own) = (&self.keeper, super::host_name());
        format!("{keeper} is gone: rank {rank} on {own} has lost its store at {host}:{port} ({cause})")
    }

    /// Ends the process at once: the main thread may wait for ever. Files are written whole or not at all.
    fn end(&self, line: Option<&str>) -> ! {
        if let Some(line) = line {
            error(line);
        } else {
            let _ = self.store.add(HEARD, 1);
        }
        // SAFETY: it only ends the process, without destructors that other threads would still need.
        unsafe { libc::_exit(i32::from(super::ANOTHER_FAILED)) }
    }
}
