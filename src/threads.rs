//! One number of threads for libtorch and for vigdet's own kernels, which take turns.

use std::sync::{Once, OnceLock};
use std::thread;

use tch::{Device, Kind, Tensor};

/// Numbers in a tensor that libtorch certainly adds up with all its threads.
const LARGE: i64 = 1 << 20;

/// Cores of this process, where it has a share of the machine's.
static SHARE: OnceLock<usize> = OnceLock::new();

/// This process is one of so many on its machine that do the same at the same time: it has its share of the cores, or
/// as many as were `given` to it. Call it before anything asks for [`cores`].
pub fn share_cores(processes: usize, given: Option<usize>) {
    let share = given.unwrap_or_else(|| cores() / processes.max(1)).max(1);
    let _ = SHARE.set(share);
}

/// Cores that this process may use.
pub fn cores() -> usize {
    let all = || thread::available_parallelism().map_or(1, usize::from);
    SHARE.get().copied().unwrap_or_else(all)
}

/// Sets the threads of libtorch and of rayon's global pool, which runs vigdet's kernels. `None`: this
/// process's share of the cores, else what `OMP_NUM_THREADS` says, else one per core.
///
/// Call it once, before the first kernel: a pool that exists keeps its threads.
pub fn set_threads(threads: Option<usize>) {
    let asked = || std::env::var("OMP_NUM_THREADS").ok()?.parse().ok().filter(|&n: &usize| n > 0);
    let threads = threads.or_else(|| SHARE.get().copied()).or_else(asked).unwrap_or_else(cores);
    tch::set_num_threads(threads as i32);
    // An error means that the pool is there already: a second run in the same process.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    if threads > 1 {
        shorten_spinning();
    }
}

/// Makes libtorch's idle threads sleep soon, so that they leave the cores to the kernels that run in between.
///
/// GNU OpenMP's threads spin for milliseconds after each of libtorch's operations (which cost a tenth of a forward
/// pass here), but only briefly where the process has more of them than there are cores. It counts the threads of
/// every thread that ever ran an operation, so one more that ran a single one and waits is enough. `GOMP_SPINCOUNT` or
/// `OMP_WAIT_POLICY` in the environment win.
fn shorten_spinning() {
    static ONCE: Once = Once::new();
    let decided = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"].iter().any(|name| std::env::var_os(name).is_some());
    if decided {
        return;
    }
    ONCE.call_once(|| {
        let (ran, wait) = std::sync::mpsc::channel();
        let waiting = thread::Builder::new().name("openmp-count".into()).spawn(move || {
            drop(Tensor::ones([LARGE], (Kind::Float, Device::Cpu)).sum(Kind::Float));
            let _ = ran.send(());
            loop {
                thread::park();
            }
        });
        // Without the thread everything works, only slower.
        if waiting.is_ok() {
            let _ = wait.recv();
        }
    });
}
