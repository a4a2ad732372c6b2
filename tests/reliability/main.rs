//! What docs/reliability.md promises: runs that survive kills, signals and full disks, and inputs that cannot hurt.
//!
//! Each test does a few of its cases here; `VIGDET_THOROUGH=1` does all of them, which takes many minutes.

#[path = "../common/mod.rs"]
mod common;

mod bad_inputs;
mod disk;
mod kills;
mod memory;
mod mutations;
mod not_finite;
mod signals;
mod torn;

/// How many cases to try: `few`, or `all` in a thorough run.
fn cases(few: usize, all: usize) -> usize {
    if is_thorough() {
        all
    } else {
        few
    }
}

fn is_thorough() -> bool {
    std::env::var_os("VIGDET_THOROUGH").is_some()
}

/// Numbers that look random and are the same in every run (xorshift64*).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `most`.
    fn below(&mut self, most: usize) -> usize {
        (self.next() >> 33) as usize % most.max(1)
    }
}
