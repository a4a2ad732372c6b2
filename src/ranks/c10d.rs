//! libtorch's c10d, the engine of PyTorch's own distributed training: a store of keys, and a group of ranks that
//! exchange tensors. The functions are those of c10d.cpp.

use std::ffi::{c_char, c_int, CStr, CString};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::ptr::{null, null_mut, NonNull};
use std::time::Duration;

use anyhow::{bail, Context, Result};
use tch::Tensor;
use torch_sys::C_tensor;

/// c10d's own types, never looked into.
#[repr(C)]
struct Opaque([u8; 0]);

extern "C" {
    fn vigdet_text_free(text: *mut c_char);
    fn vigdet_store_serve(socket: c_int, port: u16, host: *const c_char, out: *mut *mut Opaque) -> *mut c_char;
    fn vigdet_server_free(server: *mut Opaque);
    fn vigdet_store_connect(
        host: *const c_char,
        port: u16,
        prefix: *const c_char,
        timeout: i64,
        out: *mut *mut Opaque,
    ) -> *mut c_char;
    fn vigdet_store_free(store: *mut Opaque);
    fn vigdet_store_set(store: *mut Opaque, key: *const c_char, value: *const c_char, length: usize) -> *mut c_char;
    fn vigdet_store_claim(
        store: *mut Opaque,
        key: *const c_char,
        value: *const c_char,
        length: usize,
        held: *mut *mut c_char,
    ) -> *mut c_char;
    fn vigdet_store_look(store: *mut Opaque, key: *const c_char, held: *mut *mut c_char) -> *mut c_char;
    fn vigdet_store_add(store: *mut Opaque, key: *const c_char, amount: i64, sum: *mut i64) -> *mut c_char;
    fn vigdet_group_new(
        store: *mut Opaque,
        rank: c_int,
        size: c_int,
        address: *const c_char,
        interface: *const c_char,
        timeout: i64,
        gpu: c_int,
        out: *mut *mut Opaque,
    ) -> *mut c_char;
    fn vigdet_group_free(group: *mut Opaque);
    fn vigdet_group_reduces_on_gpus(group: *const Opaque) -> bool;
    fn vigdet_all_reduce(group: *mut Opaque, tensors: *const *mut C_tensor, count: usize) -> *mut c_char;
    fn vigdet_broadcast(group: *mut Opaque, tensor: *mut C_tensor, from: c_int) -> *mut c_char;
    fn vigdet_gather(
        group: *mut Opaque,
        own: *mut C_tensor,
        gathered: *const *mut C_tensor,
        count: usize,
    ) -> *mut c_char;
    fn vigdet_barrier(group: *mut Opaque) -> *mut c_char;
}

/// The text that one of the functions made, which is ours to free.
///
/// # Safety
/// `text` is null or what one of the functions gave, and nobody else frees it.
unsafe fn taken(text: *mut c_char) -> Option<String> {
    let text = NonNull::new(text)?;
    // SAFETY: the functions give C strings.
    let copy = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
    // SAFETY: it is not used after this.
    unsafe { vigdet_text_free(text.as_ptr()) };
    Some(copy)
}

/// What a function says went wrong.
///
/// # Safety
/// As [`taken`].
unsafe fn checked(error: *mut c_char) -> Result<()> {
    // SAFETY: the caller's promise.
    match unsafe { taken(error) } {
        None => Ok(()),
        Some(text) => bail!("{}", text.split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).context("a name with a zero byte in it")
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// A store that other processes connect to, until it is dropped.
#[derive(Debug)]
pub struct Server(NonNull<Opaque>);

// SAFETY: c10d's store locks what its threads share.
unsafe impl Send for Server {}
// SAFETY: as above.
unsafe impl Sync for Server {}

impl Server {
    /// Serves on a socket.
    ///
    /// # Errors
    /// If c10d cannot use it.
    pub fn start(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        let host = c_string(&address.ip().to_string())?;
        let mut out = null_mut();
        // SAFETY: the socket is handed over; all pointers live through the call.
        unsafe { checked(vigdet_store_serve(listener.into_raw_fd(), address.port(), host.as_ptr(), &mut out)) }?;
        Ok(Self(NonNull::new(out).context("no store")?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: it came from c10d, and nobody has it any more.
        unsafe { vigdet_server_free(self.0.as_ptr()) }
    }
}

/// A connection to a store. Calls of several threads wait for each other.
#[derive(Debug)]
pub struct Store(NonNull<Opaque>);

// SAFETY: c10d's store locks what its threads share.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects, waiting so long for a store to be there. All keys get the prefix.
    ///
    /// # Errors
    /// If there is none.
    pub fn connect(host: &str, port: u16, prefix: &str, patience: Duration) -> Result<Self> {
        let (host, prefix) = (c_string(host)?, c_string(prefix)?);
        let mut out = null_mut();
        // SAFETY: all pointers live through the call.
        let error =
            unsafe { vigdet_store_connect(host.as_ptr(), port, prefix.as_ptr(), milliseconds(patience), &mut out) };
        // SAFETY: it was just made.
        unsafe { checked(error) }?;
        Ok(Self(NonNull::new(out).context("no store")?))
    }

    /// Sets a key.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: all pointers live through the call.
        unsafe { checked(vigdet_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr().cast(), value.len())) }
    }

    /// Sets a key that nobody has set yet. Gives what it holds then.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn claim(&self, key: &str, value: &str) -> Result<String> {
        let key = c_string(key)?;
        let mut held = null_mut();
        // SAFETY: all pointers live through the call; the text is ours.
        unsafe {
            let (value, length) = (value.as_ptr().cast(), value.len());
            checked(vigdet_store_claim(self.0.as_ptr(), key.as_ptr(), value, length, &mut held))?;
            taken(held).context("no value")
        }
    }

    /// What a key holds, if anybody has set it.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn look(&self, key: &str) -> Result<Option<String>> {
        let key = c_string(key)?;
        let mut held = null_mut();
        // SAFETY: all pointers live through the call; the text is ours.
        unsafe {
            checked(vigdet_store_look(self.0.as_ptr(), key.as_ptr(), &mut held))?;
            Ok(taken(held))
        }
    }

    /// Adds to a key that counts, and gives the sum.
    ///
    /// # Errors
    /// If the store is gone.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let key = c_string(key)?;
        let mut sum = 0;
        // SAFETY: all pointers live through the call.
        unsafe { checked(vigdet_store_add(self.0.as_ptr(), key.as_ptr(), amount, &mut sum)) }?;
        Ok(sum)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: it came from c10d, and nobody has it any more.
        unsafe { vigdet_store_free(self.0.as_ptr()) }
    }
}

/// The ranks of a run, connected to each other: Gloo between CPUs, and NCCL between GPUs where vigdet was built with
/// it. Every rank must make the same calls in the same order.
#[derive(Debug)]
pub struct Group(NonNull<Opaque>);

// SAFETY: c10d's groups lock what their threads share.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Group {
    /// Meets the others by way of the store. Listens at `address`, or at the network `interface` where one is named.
    /// No call waits longer than `patience`. `gpu`: the rank's.
    ///
    /// # Errors
    /// If they cannot be reached.
    pub fn meet(
        store: &Store,
        (rank, size): (usize, usize),
        address: &str,
        interface: Option<&str>,
        patience: Duration,
        gpu: Option<usize>,
    ) -> Result<Self> {
        let (address, interface) = (c_string(address)?, interface.map(c_string).transpose()?);
        let interface = interface.as_ref().map_or(null(), |name| name.as_ptr());
        let gpu = gpu.map_or(-1, |gpu| gpu as c_int);
        let (rank, size, patience) = (rank as c_int, size as c_int, milliseconds(patience));
        let mut out = null_mut();
        // SAFETY: all pointers live through the call.
        unsafe {
            let store = store.0.as_ptr();
            checked(vigdet_group_new(store, rank, size, address.as_ptr(), interface, patience, gpu, &mut out))
        }?;
        Ok(Self(NonNull::new(out).context("no group")?))
    }

    /// Whether tensors of GPUs can be summed where they are.
    pub fn reduces_on_gpus(&self) -> bool {
        // SAFETY: the group lives.
        unsafe { vigdet_group_reduces_on_gpus(self.0.as_ptr()) }
    }

    /// Makes each tensor the sum of all ranks'. Dense tensors of one kind and shape on every rank.
    ///
    /// # Errors
    /// If a rank is gone or takes too long.
    pub fn all_reduce(&self, tensors: &[Tensor]) -> Result<()> {
        let pointers: Vec<_> = tensors.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect();
        // SAFETY: the tensors live through the call, which ends when all is done.
        unsafe { checked(vigdet_all_reduce(self.0.as_ptr(), pointers.as_ptr(), pointers.len())) }
    }

    /// Makes a tensor that of rank 0.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn broadcast(&self, tensor: &Tensor) -> Result<()> {
        // SAFETY: the tensor lives through the call.
        unsafe { checked(vigdet_broadcast(self.0.as_ptr(), tensor.as_ptr().cast_mut(), 0)) }
    }

    /// Fills `gathered`, on rank 0 one for each rank and elsewhere empty, with the ranks' tensors, all of one shape.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn gather(&self, own: &Tensor, gathered: &[Tensor]) -> Result<()> {
        let pointers: Vec<_> = gathered.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect();
        let own = own.as_ptr().cast_mut();
        // SAFETY: the tensors live through the call.
        unsafe { checked(vigdet_gather(self.0.as_ptr(), own, pointers.as_ptr(), pointers.len())) }
    }

    /// Waits until every rank is here.
    ///
    /// # Errors
    /// As [`Group::all_reduce`].
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: the group lives.
        unsafe { checked(vigdet_barrier(self.0.as_ptr())) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: it came from c10d, and nobody has it any more.
        unsafe { vigdet_group_free(self.0.as_ptr()) }
    }
}
