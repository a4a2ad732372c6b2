//! NVIDIA's driver and its cards, read through libcuda: libtorch tells how many cards it can use, and no more.

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::fmt;
use std::sync::OnceLock;

use anyhow::{bail, ensure, Result};

use super::libtorch;

/// What ends every message: the way out.
const OR_CPU: &str = "--device cpu runs on the CPU";

/// A version of CUDA: what a libtorch is built for, or the newest that a driver runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cuda {
    /// 13 of 13.0.
    pub major: i32,
    /// 0 of 13.0.
    pub minor: i32,
}

impl Cuda {
    /// From CUDA's own number, 13000 for 13.0.
    pub fn of_number(number: i32) -> Self {
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }

    /// The first release of the driver that runs programs for it ("CUDA Compatibility", minor version compatibility).
    fn first_driver(self) -> &'static str {
        match self.major {
            ..=11 => "450",
            12 => "525",
            _ => "580",
        }
    }

    /// The oldest cards that it has machine code for, by their compute capability.
    fn oldest_capability(self) -> Capability {
        match self.major {
            ..=11 => (3, 5),
            12 => (5, 0),
            _ => (7, 5),
        }
    }
}

impl fmt::Display for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "CUDA {}.{}", self.major, self.minor)
    }
}

/// The compute capability of a card: (8, 0) of an A100.
pub type Capability = (i32, i32);

/// A card that the driver shows; `CUDA_VISIBLE_DEVICES` hides the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its product name.
    pub name: String,
    /// What it can do.
    pub capability: Capability,
    /// All of its memory, in bytes.
    pub memory: u64,
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} (compute capability {}.{})", self.name, self.capability.0, self.capability.1)
    }
}

/// The driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA that it runs.
    pub cuda: Cuda,
    /// Its cards, in libtorch's order.
    pub cards: Vec<Card>,
}

/// Why nothing is known of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no libcuda.so.1: no driver is installed, or a container does not see it.
    Library,
    /// A function of libcuda failed with this number, `CUresult`.
    Failed(c_int),
}

/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
const CAPABILITY_MAJOR: c_int = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
const CAPABILITY_MINOR: c_int = 76;

/// Functions of libcuda, all of which give a `CUresult`: 0 is success.
macro_rules! functions {
    ($($field:ident: $symbol:literal ($($argument:ty),*)),* $(,)?) => {
        /// The functions that are used: libcuda's, or a test's own.
        struct Functions { $($field: unsafe extern "C" fn($($argument),*) -> c_int),* }

        impl Functions {
            /// libcuda's, which stays loaded; `None` where there is none.
            fn open() -> Option<Self> {
                // SAFETY: NVIDIA's library may be loaded at any time; the names end with a zero.
                let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
                if library.is_null() {
                    return None;
                }
                // SAFETY: the library is open.
                let find = |name: &CStr| unsafe { libc::dlsym(library, name.as_ptr()) };
                let find = |name: &CStr| Some(find(name)).filter(|found| !found.is_null());
                Some(Self {
                    // SAFETY: the function of this name takes these arguments (cuda.h).
                    $($field: unsafe {
                        type Function = unsafe extern "C" fn($($argument),*) -> c_int;
                        std::mem::transmute::<*mut c_void, Function>(find($symbol)?)
                    }),*
                })
            }
        }
    };
}

functions! {
    init: c"cuInit" (c_uint),
    driver_version: c"cuDriverGetVersion" (*mut c_int),
    device_count: c"cuDeviceGetCount" (*mut c_int),
    device: c"cuDeviceGet" (*mut c_int, c_int),
    name: c"cuDeviceGetName" (*mut c_char, c_int, c_int),
    attribute: c"cuDeviceGetAttribute" (*mut c_int, c_int, c_int),
    memory: c"cuDeviceTotalMem_v2" (*mut usize, c_int),
    retain_context: c"cuDevicePrimaryCtxRetain" (*mut *mut c_void, c_int),
    release_context: c"cuDevicePrimaryCtxRelease_v2" (c_int),
    push_context: c"cuCtxPushCurrent_v2" (*mut c_void),
    pop_context: c"cuCtxPopCurrent_v2" (*mut *mut c_void),
    free_memory: c"cuMemGetInfo_v2" (*mut usize, *mut usize),
}

fn succeeded(result: c_int) -> Result<(), Missing> {
    if result == 0 {
        Ok(())
    } else {
        Err(Missing::Failed(result))
    }
}

impl Functions {
    fn driver(&self) -> Result<Driver, Missing> {
        // SAFETY: here and below, each pointer is to a variable of the kind that cuda.h names, or to as many
        // characters as the call is told.
        unsafe {
            let mut number = 0;
            // It answers before `cuInit`, which fails where the driver is broken or has no card.
            succeeded((self.driver_version)(&mut number))?;
            let cuda = Cuda::of_number(number);
            match (self.init)(0) {
                NO_DEVICE => return Ok(Driver { cuda, cards: Vec::new() }),
                result => succeeded(result)?,
            }
            let mut count = 0;
            succeeded((self.device_count)(&mut count))?;
            let cards = (0..count).map(|index| self.card(index)).collect::<Result<_, _>>()?;
            Ok(Driver { cuda, cards })
        }
    }

    fn card(&self, index: c_int) -> Result<Card, Missing> {
        let (mut device, mut name, mut memory) = (0, [0; 256], 0);
        let mut capability = (0, 0);
        // SAFETY: as in `driver`.
        unsafe {
            succeeded((self.device)(&mut device, index))?;
            succeeded((self.name)(name.as_mut_ptr(), name.len() as c_int, device))?;
            succeeded((self.attribute)(&mut capability.0, CAPABILITY_MAJOR, device))?;
            succeeded((self.attribute)(&mut capability.1, CAPABILITY_MINOR, device))?;
            succeeded((self.memory)(&mut memory, device))?;
        }
        let name: Vec<u8> = name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
        Ok(Card { name: String::from_utf8_lossy(&name).into_owned(), capability, memory: memory as u64 })
    }

    /// Bytes of a card's memory that nobody has.
    fn free(&self, index: c_int) -> Result<u64, Missing> {
        let (mut device, mut context, mut free, mut total) = (0, std::ptr::null_mut(), 0, 0);
        // SAFETY: as in `driver`; the context is libtorch's own, which is kept while it is asked.
        unsafe {
            succeeded((self.device)(&mut device, index))?;
            succeeded((self.retain_context)(&mut context, device))?;
            let asked = succeeded((self.push_context)(context)).and_then(|()| {
                let asked = succeeded((self.free_memory)(&mut free, &mut total));
                succeeded((self.pop_context)(&mut context)).and(asked)
            });
            succeeded((self.release_context)(device)).and(asked)?;
        }
        Ok(free as u64)
    }
}

fn functions() -> Option<&'static Functions> {
    static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
    FUNCTIONS.get_or_init(Functions::open).as_ref()
}

/// The driver of this machine, read once.
///
/// # Errors
/// If there is none, or it does not answer.
pub fn driver() -> Result<&'static Driver, Missing> {
    static DRIVER: OnceLock<Result<Driver, Missing>> = OnceLock::new();
    let driver = DRIVER.get_or_init(|| functions().ok_or(Missing::Library)?.driver());
    driver.as_ref().map_err(|missing| *missing)
}

/// A card by libtorch's number.
pub fn card(index: usize) -> Option<&'static Card> {
    driver().ok()?.cards.get(index)
}

/// Bytes of a card's memory that nobody has.
pub fn free_memory(index: usize) -> Option<u64> {
    functions()?.free(c_int::try_from(index).ok()?).ok()
}

/// Whether libtorch can compute on a card.
///
/// # Errors
/// One line: what is missing, and what to do.
pub fn check(index: usize) -> Result<()> {
    let build = libtorch::cuda();
    let seen = if build.is_some() { tch::Cuda::device_count().max(0) as usize } else { 0 };
    check_of(build, seen, index, driver())
}

fn check_of(build: Option<Cuda>, seen: usize, index: usize, driver: Result<&Driver, Missing>) -> Result<()> {
    let Some(build) = build else {
        bail!("there is no device cuda:{index}: this libtorch is without CUDA (CUDA=1 make libtorch); {OR_CPU}")
    };
    if seen == 0 {
        bail!("there is no device cuda:{index}: {}; {OR_CPU}", why_none(build, driver));
    }
    ensure!(index < seen, "there is no device cuda:{index}: libtorch sees {seen}, from cuda:0 on");
    let card = driver.ok().and_then(|driver| driver.cards.get(index));
    if let Some(card) = card.filter(|card| card.capability < build.oldest_capability()) {
        let (major, minor) = build.oldest_capability();
        bail!(
            "cuda:{index} is too old: {card}; this libtorch, for {build}, begins at {major}.{minor}: take one for \
             an older CUDA (docs/gpu.md); {OR_CPU}"
        );
    }
    Ok(())
}

/// Why a libtorch that is built for CUDA sees no card.
fn why_none(build: Cuda, driver: Result<&Driver, Missing>) -> String {
    let first = build.first_driver();
    match driver {
        Err(Missing::Library) => {
            format!("NVIDIA's driver is not installed (no libcuda.so.1); this libtorch needs driver {first} or newer")
        }
        Err(Missing::Failed(code)) => format!("NVIDIA's driver fails with error {code}; nvidia-smi may say more"),
        Ok(driver) if driver.cuda.major < build.major => format!(
            "NVIDIA's driver is too old: it runs {} and this libtorch needs {build}; install driver {first} or newer, \
             or a libtorch for an older CUDA (docs/gpu.md)",
            driver.cuda
        ),
        Ok(driver) if driver.cards.is_empty() => {
            let hidden = std::env::var("CUDA_VISIBLE_DEVICES").map(|v| format!(" (CUDA_VISIBLE_DEVICES is `{v}`)"));
            format!("NVIDIA's driver finds no GPU{}", hidden.unwrap_or_default())
        }
        Ok(driver) => format!("libtorch cannot use {}, though the driver runs {}", driver.cards[0], driver.cuda),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI32, Ordering};

    use super::*;

    /// What a driver made up here says.
    static VERSION: AtomicI32 = AtomicI32::new(0);
    static INIT: AtomicI32 = AtomicI32::new(0);
    static CONTEXTS: AtomicI32 = AtomicI32::new(0);

    /// Writes a result, and succeeds.
    fn put<T>(to: *mut T, value: T) -> c_int {
        // SAFETY: `Functions` alone calls what is made up here, with pointers to variables of its own.
        unsafe { to.write(value) };
        0
    }

    unsafe extern "C" fn init(_: c_uint) -> c_int {
        INIT.load(Ordering::Relaxed)
    }
    unsafe extern "C" fn driver_version(out: *mut c_int) -> c_int {
        put(out, VERSION.load(Ordering::Relaxed))
    }
    unsafe extern "C" fn device_count(out: *mut c_int) -> c_int {
        put(out, 2)
    }
    unsafe extern "C" fn device(out: *mut c_int, index: c_int) -> c_int {
        put(out, 10 + index)
    }
    unsafe extern "C" fn name(out: *mut c_char, len: c_int, device: c_int) -> c_int {
        let name = [c"NVIDIA T4", c"NVIDIA H100"][device as usize - 10].to_bytes_with_nul();
        assert!(name.len() <= len as usize);
        name.iter().enumerate().map(|(i, byte)| put(out.wrapping_add(i), *byte as c_char)).sum()
    }
    unsafe extern "C" fn attribute(out: *mut c_int, which: c_int, device: c_int) -> c_int {
        let value = match (which, device) {
            (75, 10) => 7,
            (76, 10) => 5,
            (75, 11) => 9,
            (76, 11) => 0,
            _ => return 1,
        };
        put(out, value)
    }
    unsafe extern "C" fn memory(out: *mut usize, device: c_int) -> c_int {
        put(out, if device == 10 { 16 << 30 } else { 80 << 30 })
    }
    unsafe extern "C" fn retain(out: *mut *mut c_void, device: c_int) -> c_int {
        CONTEXTS.fetch_add(1, Ordering::Relaxed);
        put(out, device as usize as *mut c_void)
    }
    unsafe extern "C" fn release(_: c_int) -> c_int {
        CONTEXTS.fetch_sub(1, Ordering::Relaxed);
        0
    }
    unsafe extern "C" fn push(context: *mut c_void) -> c_int {
        c_int::from(context as usize != 11)
    }
    unsafe extern "C" fn pop(_: *mut *mut c_void) -> c_int {
        0
    }
    unsafe extern "C" fn free(free: *mut usize, total: *mut usize) -> c_int {
        put(free, 70 << 30) + put(total, 80 << 30)
    }

    const MADE_UP: Functions = Functions {
        init,
        driver_version,
        device_count,
        device,
        name,
        attribute,
        memory,
        retain_context: retain,
        release_context: release,
        push_context: push,
        pop_context: pop,
        free_memory: free,
    };

    const CUDA_12: Cuda = Cuda { major: 12, minor: 4 };
    const CUDA_13: Cuda = Cuda { major: 13, minor: 0 };

    #[test]
    fn libcuda_is_asked_for_the_driver_and_its_cards() {
        VERSION.store(12040, Ordering::Relaxed);
        INIT.store(0, Ordering::Relaxed);
        let driver = MADE_UP.driver().unwrap();
        assert_eq!(driver.cuda, CUDA_12);
        assert_eq!(driver.cuda.to_string(), "CUDA 12.4");
        let t4 = Card { name: "NVIDIA T4".into(), capability: (7, 5), memory: 16 << 30 };
        let h100 = Card { name: "NVIDIA H100".into(), capability: (9, 0), memory: 80 << 30 };
        assert_eq!(driver.cards, [t4, h100]);
        // A call that fails gives the context back all the same.
        assert_eq!((MADE_UP.free(1), MADE_UP.free(0)), (Ok(70 << 30), Err(Missing::Failed(1))));
        assert_eq!(CONTEXTS.load(Ordering::Relaxed), 0);
        // A driver without cards answers; a broken one does not.
        INIT.store(NO_DEVICE, Ordering::Relaxed);
        assert_eq!(MADE_UP.driver().unwrap(), Driver { cuda: CUDA_12, cards: Vec::new() });
        INIT.store(999, Ordering::Relaxed);
        assert_eq!(MADE_UP.driver(), Err(Missing::Failed(999)));
    }

    #[test]
    fn a_gpu_that_cannot_be_used_is_explained_in_one_line() {
        let card = |capability| Card { name: "NVIDIA X".into(), capability, memory: 1 << 30 };
        let driver = |cuda, cards: &[Card]| Driver { cuda, cards: cards.to_vec() };
        let line = |build, seen, index, driver: Result<&Driver, Missing>| {
            let line = check_of(build, seen, index, driver).unwrap_err().to_string();
            assert!(!line.contains('\n'), "{line}");
            line
        };
        let new = driver(CUDA_13, &[card((9, 0)), card((6, 1))]);
        assert!(check_of(Some(CUDA_13), 2, 0, Ok(&new)).is_ok());
        // A driver of another minor version, and a card of which nothing is known.
        assert!(check_of(Some(CUDA_12), 2, 1, Ok(&new)).is_ok());
        assert!(check_of(Some(CUDA_13), 1, 0, Err(Missing::Library)).is_ok());

        let old = driver(CUDA_12, &[card((9, 0))]);
        let said = line(Some(CUDA_13), 0, 0, Ok(&old));
        for part in ["too old", "CUDA 12.4", "CUDA 13.0", "driver 580", "docs/gpu.md", "--device cpu"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let said = line(Some(CUDA_13), 0, 0, Ok(&driver(CUDA_13, &[])));
        assert!(said.contains("finds no GPU") && said.contains("--device cpu"), "{said}");
        let said = line(Some(CUDA_12), 0, 0, Err(Missing::Library));
        assert!(said.contains("not installed") && said.contains("driver 525"), "{said}");
        assert!(line(Some(CUDA_13), 0, 0, Err(Missing::Failed(999))).contains("error 999"));
        assert!(line(Some(CUDA_13), 0, 0, Ok(&new)).contains("NVIDIA X"));
        assert!(line(Some(CUDA_13), 2, 2, Ok(&new)).contains("libtorch sees 2"));
        let said = line(Some(CUDA_13), 2, 1, Ok(&new));
        assert!(said.contains("compute capability 6.1") && said.contains("begins at 7.5"), "{said}");
        assert!(line(None, 0, 3, Ok(&new)).contains("CUDA=1 make libtorch"));
    }
}
