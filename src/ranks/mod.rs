//! Several processes that train together, and what they tell each other. Each is a rank; rank 0 alone writes.
//!
//! The engine is libtorch's own c10d. An ordinary process is alone: every call here then does nothing.

#[cfg_attr(not(vigdet_ranks), path = "absent.rs")]
mod c10d;
mod place;
mod processes;
mod watch;

use std::net::TcpListener;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Error, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::console;
use crate::threads::share_cores;
use c10d::{Group, Server, Store};
use place::Place;
use watch::{host_key, Watch, FAILED};

/// How long the ranks wait for the last of them to start.
const JOINING: Duration = Duration::from_secs(300);
/// How long a rank waits for others that live: one may write, or evaluate.
const COLLECTIVE: Duration = Duration::from_secs(3600);
/// The exit code of a rank that ends because another one failed.
const ANOTHER_FAILED: u8 = 75;
/// Values that are summed at once.
const BUCKET: i64 = 8 << 20;

/// The processes of a training. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Ranks {
    joined: Option<Arc<Joined>>,
    restarts: u32,
}

#[derive(Debug)]
struct Joined {
    place: Place,
    group: Group,
    watch: Mutex<Option<Watch>>,
    /// Where rank 0 keeps the store.
    _server: Option<Server>,
}

/// Runs a training as what the environment says, or with `processes` in so many processes that it starts itself.
/// `work` gets the ranks and the rank's own device.
///
/// # Errors
/// Those of `work`; ranks that do not find each other.
pub fn run(
    processes: Option<usize>,
    device: Device,
    work: impl FnOnce(&Ranks, Device) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let Some(place) = Place::of_environment()? else {
        return match processes {
            Some(count) => processes::start_and_wait(count),
            None => work(&Ranks::default(), device),
        };
    };
    if let Some(count) = processes.filter(|count| *count != place.size) {
        bail!("--processes {count} in one of {} processes that were started together: leave it out", place.size);
    }
    share_cores(place.local_size, place.threads);
    if place.size == 1 {
        return work(&Ranks { joined: None, restarts: place.restarts }, device);
    }
    if place.rank > 0 {
        console::mute();
    }
    let device = own_device(device, place.local_rank, tch::Cuda::device_count().max(0) as usize)?;
    let ranks = Ranks::join(place, device)?;
    let result = catch_unwind(AssertUnwindSafe(|| work(&ranks, device))).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Err(Error::msg(format!("something went wrong inside: {}", text.unwrap_or_default())))
    });
    match result {
        Ok(code) => {
            ranks.leave()?;
            Ok(code)
        }
        Err(error) => ranks.fail(error),
    }
}

/// The device of a rank: of the machine's GPUs the one with its number, or the only one that it sees.
fn own_device(asked: Device, local_rank: usize, gpus: usize) -> Result<Device> {
    match asked {
        Device::Cuda(_) if local_rank < gpus => Ok(Device::Cuda(local_rank)),
        Device::Cuda(_) if gpus == 1 => Ok(Device::Cuda(0)),
        Device::Cuda(_) => bail!("rank {local_rank} of this machine has no GPU: libtorch sees {gpus}"),
        other => Ok(other),
    }
}

/// The machine's name.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() {
        "this machine".into()
    } else {
        name.trim().into()
    }
}

impl Ranks {
    fn join(place: Place, device: Device) -> Result<Self> {
        let (rank, size) = (place.rank, place.size);
        let address = place.store()?;
        let server = (rank == 0 && !place.store_is_theirs)
            .then(|| {
                let listener = TcpListener::bind(address)
                    .with_context(|| format!("rank 0 cannot listen at MASTER_ADDR={address}: is it this machine's?"))?;
                Server::start(listener)
            })
            .transpose()?;
        let lost = || format!("rank {rank} on {} does not reach the store at {address}", host_name());
        let prefix = format!("vigdet/{}", place.restarts);
        let connect = || Store::connect(&address.ip().to_string(), address.port(), &prefix, JOINING);
        let store = connect().with_context(lost)?;
        store.set(&host_key(rank), &host_name()).with_context(lost)?;
        let met = meet(&store, &place);
        if let Err(error) = &met {
            let _ = store.claim(FAILED, &format!("{error:#}"));
        }
        met?;
        let interface = std::env::var("GLOO_SOCKET_IFNAME").ok();
        let gpu = match device {
            Device::Cuda(index) => Some(index),
            _ => None,
        };
        let own = place.own_address()?.to_string();
        let group = Group::meet(&store, (rank, size), &own, interface.as_deref(), COLLECTIVE, gpu)
            .with_context(|| format!("rank {rank} on {} does not reach the others", host_name()))?;
        let watch = Mutex::new(Some(Watch::start(store, place.clone())?));
        let restarts = place.restarts;
        Ok(Self { joined: Some(Arc::new(Joined { place, group, watch, _server: server })), restarts })
    }

    /// Waits until all are done, and ends the watching.
    fn leave(&self) -> Result<()> {
        let Some(joined) = &self.joined else { return Ok(()) };
        let Some(watch) = lock(&joined.watch).take() else { return Ok(()) };
        let all_done = joined.group.barrier();
        if all_done.is_err() {
            watch.wait_for_the_end();
        }
        watch.end();
        // Nobody looks at the store any more when rank 0 takes it away.
        all_done.and_then(|()| joined.group.barrier())
    }

    /// Tells the others of an error, which the first to fail says.
    fn fail(&self, error: Error) -> Result<ExitCode> {
        let Some(joined) = &self.joined else { return Err(error) };
        // Its destructor would wait for others.
        std::mem::forget(joined.clone());
        let text = format!("{error:#}");
        let first = lock(&joined.watch).as_ref().is_none_or(|watch| watch.fail(&text));
        match first {
            true => Err(error.context(self.name())),
            false => Ok(ExitCode::from(ANOTHER_FAILED)),
        }
    }

    /// Whether this process is the one that writes.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// What this process is called where one of them is meant: `rank 3 on node7`.
    pub fn name(&self) -> String {
        format!("rank {} on {}", self.rank(), host_name())
    }

    /// This process's number.
    pub fn rank(&self) -> usize {
        self.joined.as_ref().map_or(0, |joined| joined.place.rank)
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.joined.as_ref().map_or(1, |joined| joined.place.size)
    }

    /// Whether torchrun or Slurm started the processes again after a failure.
    pub fn are_restarted(&self) -> bool {
        self.restarts > 0
    }

    /// Whether item `i` of work that is dealt to the ranks in turn is this one's.
    pub fn takes(&self, i: usize) -> bool {
        i % self.size() == self.rank()
    }

    /// Makes a dense tensor the sum of all ranks', in pieces that travel at the same time.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn sum_tensor(&self, tensor: &Tensor) -> Result<()> {
        let Some(joined) = &self.joined else { return Ok(()) };
        let mut flat = tensor.view(-1);
        let elsewhere = tensor.device() != Device::Cpu && !joined.group.reduces_on_gpus();
        let here = if elsewhere { flat.to_device(Device::Cpu) } else { flat.shallow_clone() };
        let summed = joined.group.all_reduce(&here.split(BUCKET, 0));
        joined.checked(summed)?;
        if elsewhere {
            flat.copy_(&here);
        }
        Ok(())
    }

    /// Sums numbers over all ranks.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn sum(&self, numbers: &mut [f64]) -> Result<()> {
        if self.joined.is_some() {
            let tensor = Tensor::from_slice(numbers);
            self.sum_tensor(&tensor)?;
            numbers.copy_from_slice(&Vec::<f64>::try_from(tensor)?);
        }
        Ok(())
    }

    /// Makes tensors those of rank 0.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn broadcast<'a>(&self, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
        let Some(joined) = &self.joined else { return Ok(()) };
        for tensor in tensors {
            let mut tensor = tensor.detach();
            let copy = tensor.to_device(Device::Cpu).contiguous();
            let sent = joined.group.broadcast(&copy);
            joined.checked(sent)?;
            if !self.is_first() {
                tensor.copy_(&copy);
            }
        }
        Ok(())
    }

    /// What rank 0 makes, for all.
    ///
    /// # Errors
    /// Those of `make` on rank 0; if a rank is gone.
    pub fn of_first<T: Serialize + DeserializeOwned>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(joined) = &self.joined else { return make() };
        let own = self.is_first().then(make).transpose()?;
        let text = own.as_ref().map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let length = Tensor::from_slice(&[text.len() as i64]);
        joined.checked(joined.group.broadcast(&length))?;
        let bytes = match self.is_first() {
            true => Tensor::from_slice(&text),
            false => Tensor::zeros([length.int64_value(&[0])], (Kind::Uint8, Device::Cpu)),
        };
        joined.checked(joined.group.broadcast(&bytes))?;
        match own {
            Some(own) => Ok(own),
            None => Ok(serde_json::from_slice(&Vec::<u8>::try_from(bytes)?)?),
        }
    }

    /// Every rank's bytes, by rank, on rank 0; `None` elsewhere.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn gather_bytes(&self, own: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(joined) = &self.joined else { return Ok(Some(vec![own])) };
        let mut lengths = vec![0.0; self.size()];
        lengths[self.rank()] = own.len() as f64;
        self.sum(&mut lengths)?;
        let longest = lengths.iter().fold(1.0, |a: f64, b| a.max(*b)) as usize;
        let mut padded = own;
        padded.resize(longest, 0);
        let own = Tensor::from_slice(&padded);
        let gathered: Vec<Tensor> = match self.is_first() {
            true => lengths.iter().map(|_| own.zeros_like()).collect(),
            false => Vec::new(),
        };
        joined.checked(joined.group.gather(&own, &gathered))?;
        let cut = |(tensor, length): (Tensor, &f64)| -> Result<Vec<u8>> {
            let mut bytes = Vec::<u8>::try_from(tensor)?;
            bytes.truncate(*length as usize);
            Ok(bytes)
        };
        let all = gathered.into_iter().zip(&lengths).map(cut).collect::<Result<Vec<_>>>()?;
        Ok(self.is_first().then_some(all))
    }

    /// Every rank's value, by rank, on rank 0; `None` elsewhere.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Option<Vec<T>>> {
        if self.joined.is_none() {
            return Ok(Some(vec![own]));
        }
        let Some(all) = self.gather_bytes(serde_json::to_vec(&own)?)? else { return Ok(None) };
        Ok(Some(all.iter().map(|bytes| serde_json::from_slice(bytes)).collect::<Result<_, _>>()?))
    }

    /// Does work that ranks of one machine must not do at the same time: first one of each machine, then the others.
    ///
    /// # Errors
    /// Those of `work`; if a rank is gone.
    pub fn one_before_the_others<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(joined) = &self.joined else { return work() };
        if joined.place.local_rank == 0 {
            let done = work()?;
            joined.checked(joined.group.barrier())?;
            return Ok(done);
        }
        joined.checked(joined.group.barrier())?;
        work()
    }

    /// A rank has met what none can go on from. Its own error is the one to be said: the others wait for their end.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn wait_for_who_failed(&self, failed: bool) -> Result<()> {
        let Some(joined) = &self.joined else { return Ok(()) };
        if !failed {
            if let Some(watch) = lock(&joined.watch).as_ref() {
                watch.wait_for_the_end();
            }
        }
        Ok(())
    }
}

impl Joined {
    /// Where a connection broke, the watch knows more than the error does, and ends the process.
    fn checked(&self, done: Result<()>) -> Result<()> {
        if done.is_err() {
            if let Some(watch) = lock(&self.watch).as_ref() {
                watch.wait_for_the_end();
            }
        }
        done.context("the ranks lost each other")
    }
}

/// Waits until every rank has come, in the same version.
fn meet(store: &Store, place: &Place) -> Result<()> {
    let size = place.size as i64;
    let version = env!("CARGO_PKG_VERSION");
    let agreed = store.claim("version", version)?;
    ensure!(agreed == version, "rank {} on {} is vigdet {version}, another one {agreed}", place.rank, host_name());
    let start = Instant::now();
    let mut here = store.add("here", 1)?;
    while here < size {
        if let Some(line) = store.look(FAILED)? {
            bail!("{line}");
        }
        if start.elapsed() > JOINING {
            let missing: Vec<String> = (0..place.size)
                .filter(|rank| matches!(store.look(&host_key(*rank)), Ok(None)))
                .map(|rank| rank.to_string())
                .collect();
            bail!(
                "of {size} ranks, {} did not come within {} minutes (in a batch script of Slurm, srun starts all)",
                missing.join(", "),
                JOINING.as_secs() / 60
            );
        }
        thread::sleep(Duration::from_millis(20));
        here = store.add("here", 0)?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ranks that are threads of a test and not processes.
#[cfg(all(test, vigdet_ranks))]
pub(crate) mod in_threads {
    use std::net::Ipv4Addr;

    use super::*;

    /// A test that fails on one rank shall not wait for the others for long.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// What each of so many ranks makes.
    pub(crate) fn each<T: Send>(size: usize, work: impl Fn(&Ranks) -> T + Sync) -> Vec<T> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let _server = Server::start(listener).unwrap();
        thread::scope(|scope| {
            let start = |rank| {
                let work = &work;
                scope.spawn(move || {
                    let ranks = join(rank, size, port);
                    let made = work(&ranks);
                    ranks.joined.as_ref().unwrap().group.barrier().unwrap();
                    made
                })
            };
            let threads: Vec<_> = (0..size).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn join(rank: usize, size: usize, port: u16) -> Ranks {
        let host = Ipv4Addr::LOCALHOST.to_string();
        let store = Store::connect(&host, port, "test", PATIENCE).unwrap();
        let group = Group::meet(&store, (rank, size), &host, None, PATIENCE, None).unwrap();
        let place = Place {
            rank,
            size,
            local_rank: rank,
            local_size: size,
            host,
            port,
            store_is_theirs: true,
            restarts: 0,
            threads: None,
        };
        Ranks { joined: Some(Arc::new(Joined { place, group, watch: Mutex::new(None), _server: None })), restarts: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(vigdet_ranks)]
    #[test]
    fn a_sum_has_every_piece_of_a_tensor_that_travels_in_several() {
        let sums = in_threads::each(2, |ranks| {
            let tensor = Tensor::full([2 * BUCKET + 3], 1.0 + ranks.rank() as f64, (Kind::Float, Device::Cpu));
            ranks.sum_tensor(&tensor).unwrap();
            (tensor.min().double_value(&[]), tensor.max().double_value(&[]))
        });
        assert_eq!(sums, [(3.0, 3.0); 2]);
    }

    #[cfg(vigdet_ranks)]
    #[test]
    fn rank_0_gets_what_each_has_and_all_get_what_rank_0_has() {
        let texts = ["", "a longer text", "ä"];
        let each = in_threads::each(3, |ranks| {
            let own = texts[ranks.rank()].to_string();
            let gathered = ranks.gather(own.clone()).unwrap();
            let heard = ranks.of_first(|| Ok(format!("{own} of {}", ranks.rank()))).unwrap();
            let tensors = [Tensor::from(ranks.rank() as f32 + 7.0), Tensor::from(ranks.rank() as i64)];
            ranks.broadcast(&tensors).unwrap();
            let taken: Vec<usize> = (0..8).filter(|i| ranks.takes(*i)).collect();
            (gathered, heard, tensors.map(|tensor| tensor.double_value(&[])), taken)
        });
        assert_eq!(each[0].0, Some(texts.map(String::from).to_vec()));
        assert!(each[1..].iter().all(|(gathered, ..)| gathered.is_none()));
        assert!(each.iter().all(|(_, heard, tensors, _)| heard == " of 0" && *tensors == [7.0, 0.0]), "{each:?}");
        let mut taken: Vec<usize> = each.iter().flat_map(|(.., taken)| taken.clone()).collect();
        taken.sort_unstable();
        assert_eq!(taken, (0..8).collect::<Vec<_>>());
    }

    #[cfg(vigdet_ranks)]
    #[test]
    fn the_first_of_a_machine_has_done_its_work_before_the_others_begin() {
        let done = std::sync::atomic::AtomicUsize::new(0);
        let before = in_threads::each(2, |ranks| {
            let work = || {
                if ranks.is_first() {
                    thread::sleep(Duration::from_millis(300));
                }
                Ok(done.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
            };
            ranks.one_before_the_others(work).unwrap()
        });
        assert_eq!(before, [0, 1]);
    }

    #[test]
    fn a_rank_has_the_gpu_of_its_number_or_the_only_one_that_it_sees() {
        let cuda = Device::Cuda(0);
        assert_eq!(own_device(cuda, 2, 4).unwrap(), Device::Cuda(2));
        assert_eq!(own_device(cuda, 2, 1).unwrap(), cuda);
        assert!(own_device(cuda, 2, 2).unwrap_err().to_string().contains("libtorch sees 2"));
        assert_eq!(own_device(Device::Cpu, 2, 0).unwrap(), Device::Cpu);
    }

    #[test]
    fn who_is_alone_takes_all_and_waits_for_nobody() {
        let ranks = Ranks::default();
        assert!((0..5).all(|i| ranks.takes(i)) && ranks.is_first());
        let mut numbers = [1.0, 2.0];
        ranks.sum(&mut numbers).unwrap();
        assert_eq!(numbers, [1.0, 2.0]);
        assert_eq!(ranks.gather(7).unwrap(), Some(vec![7]));
        assert_eq!(ranks.of_first(|| Ok(3)).unwrap(), 3);
    }
}
