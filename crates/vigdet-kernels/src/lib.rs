//! The CPU kernels of Vision GNN (Han et al., 2022): exact nearest neighbours, max-relative aggregation, axial graphs
//! and GELU, on plain slices.
//!
//! Nothing here knows about tensors or gradients. Features are row-major `[rows, channels]`, the channels of a node
//! beside each other ("channels last"). Every kernel takes the instruction set to use, [`Isa::best`] for the fastest.
//! The work is split over the current rayon pool, and the result never depends on how: same input, same instruction
//! set, same answer, whatever the number of threads.
//!
//! ```
//! use vigdet_kernels::{nearest_points, Isa, Points};
//!
//! // The nearest two of three candidates, for each of two nodes with two channels.
//! let (nodes, candidates) = ([1.0, 0.0, 0.0, 1.0], [0.0, 2.0, 1.0, 1.0, 3.0, 0.0]);
//! let side = |features, rows| Points { normalize: true, ..Points::raw(features, rows, 2) };
//! let mut edges = [0; 4];
//! nearest_points(Isa::best(), side(&nodes, 2), side(&candidates, 3), 2, 1, &mut edges);
//! assert_eq!(edges, [2, 1, 0, 1]);
//! ```

use std::sync::OnceLock;

mod gelu;
mod max_relative;
mod nearest;
mod pack;
mod portable;
mod rolls;
mod top_k;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use gelu::gelu_in_place;
pub use max_relative::{arg_max_rows, interleave_relative, Neighbours};
pub use nearest::{nearest_points, Points};
pub use rolls::{arg_roll_max, roll_distances, roll_max, Gate, Rolled};

/// An instruction set that the kernels have code for.
///
/// All give right answers. Scores round differently from one to another, so near-ties (1e-6) may swap. A kernel that is
/// given a set that the processor lacks takes [`Isa::Portable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, 4 rows × 8 candidates at a time.
    Portable,
    /// AVX2 and FMA, 6 rows × 16 candidates at a time.
    Avx2,
    /// AVX-512 (F, BW, DQ and VL), 8 rows × 48 candidates at a time.
    Avx512,
}

impl Isa {
    /// The instruction sets that this processor has, slowest first.
    pub fn available() -> Vec<Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest instruction set that this processor has.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available().pop().unwrap_or(Isa::Portable))
    }

    fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Does the work with this instruction set, or in plain Rust where the processor lacks it. All kernels come here to
    /// choose their code.
    fn run<W: Work>(self, work: W) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<W: Work>(work: W) {
                // SAFETY: this function runs only where the processor has the set.
                unsafe { work.run(Isa::Avx512) }
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2<W: Work>(work: W) {
                // SAFETY: this function runs only where the processor has the set.
                unsafe { work.run(Isa::Avx2) }
            }
            match self {
                // SAFETY: the processor has the set.
                Isa::Avx512 if self.is_available() => return unsafe { avx512(work) },
                // SAFETY: the processor has the set.
                Isa::Avx2 if self.is_available() => return unsafe { avx2(work) },
                _ => {}
            }
        }
        // SAFETY: every processor has plain Rust.
        unsafe { work.run(Isa::Portable) }
    }
}

/// Work that is compiled once for each instruction set: an implementation must be `#[inline(always)]`, so that the
/// compiler makes it with the instructions of [`Isa::run`]'s functions, where `isa` is a constant.
trait Work {
    /// Does the work with the instruction set `isa`.
    ///
    /// # Safety
    /// The processor must have `isa`.
    unsafe fn run(self, isa: Isa);
}

/// What a micro-kernel reads and writes: the scores of [`MicroKernel::rows`] nodes against one panel of candidates.
struct Tile {
    /// Columns of both packed operands.
    columns: usize,
    /// Packed nodes, `[columns, rows]`.
    x: *const f32,
    /// Packed panel of candidates, `[columns, width]`.
    y: *const f32,
    /// Where the sums start, one value per candidate of the panel; minus infinity for padding.
    bias: *const f32,
    /// A score must be above this to be of interest, one value per row; plus infinity for padding.
    threshold: *const f32,
    /// Where rows with an interesting score are written, `[rows, width]`; other rows are left as they are.
    scores: *mut f32,
    /// One bit per candidate of the panel above its row's threshold (never for a NaN), one value per row.
    hits: *mut u64,
}

/// Scores one [`Tile`]; true if any row has a hit.
///
/// # Safety
/// The pointers must be valid for the sizes that [`Tile`] states, and the processor must have the instruction set.
type TileFn = unsafe fn(&Tile) -> bool;

/// The innermost loop for one instruction set.
#[derive(Clone, Copy)]
struct MicroKernel {
    /// Nodes per tile.
    rows: usize,
    /// Candidates per vector register.
    lanes: usize,
    /// `tiles[v - 1]` handles panels of `v` registers; a panel is as wide as possible, but the last is only as wide as
    /// it needs to be.
    tiles: &'static [TileFn],
}

impl MicroKernel {
    /// The micro-kernel of an instruction set, or of plain Rust where the processor lacks it, so that the function
    /// pointers inside are always safe to call here.
    fn of(isa: Isa) -> MicroKernel {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if isa.is_available() => x86::AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if isa.is_available() => x86::AVX2,
            _ => portable::KERNEL,
        }
    }
}

/// Upper bounds on [`MicroKernel::rows`] and on a panel's width, for scratch space on the stack.
const MAX_ROWS: usize = 8;
const MAX_WIDTH: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe<'a>(&'a mut Option<Isa>);

    impl Work for Probe<'_> {
        unsafe fn run(self, isa: Isa) {
            *self.0 = Some(isa);
        }
    }

    #[test]
    fn work_is_done_with_the_set_that_was_asked_for() {
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            let mut seen = None;
            isa.run(Probe(&mut seen));
            assert_eq!(seen, Some(if isa.is_available() { isa } else { Isa::Portable }));
        }
    }
}
