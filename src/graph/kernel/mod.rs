//! The CPU kernels behind the graph: exact nearest neighbours, max-relative aggregation and GELU, on plain slices.
//!
//! Nothing here knows about tensors or gradients. Features are row-major `[rows, channels]`, the channels of a node
//! beside each other ("channels last"). The work is split over the current rayon pool, and the result never depends
//! on how: same input, same instruction set, same answer, whatever the number of threads.

mod gelu;
mod max_relative;
mod nearest;
mod pack;
mod portable;
mod select;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use gelu::gelu_in_place;
pub use max_relative::{arg_max_rows, interleave_relative};
pub use nearest::{nearest_points, Points};

/// An instruction set that the kernels have code for.
///
/// All give right answers. Scores round differently from one to another, so near-ties (1e-6) may swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, 4 rows × 8 candidates at a time.
    Portable,
    /// AVX2 and FMA, 6 rows × 16 candidates at a time.
    Avx2,
    /// AVX-512F, 8 rows × 48 candidates at a time.
    Avx512,
}

impl Isa {
    /// The instruction sets that this processor has, slowest first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Isa::Avx2);
            }
            if is_x86_feature_detected!("avx512f") {
                found.push(Isa::Avx512);
            }
        }
        found
    }

    /// The fastest instruction set that this processor has.
    pub fn best() -> Isa {
        static BEST: std::sync::OnceLock<Isa> = std::sync::OnceLock::new();
        *BEST.get_or_init(|| Isa::available().pop().unwrap_or(Isa::Portable))
    }

    /// The micro-kernel of this instruction set.
    ///
    /// Falls back to plain Rust where the processor lacks it, so that the function pointers inside are always safe to
    /// call here.
    fn kernel(self) -> MicroKernel {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if is_x86_feature_detected!("avx512f") => x86::AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => x86::AVX2,
            _ => portable::KERNEL,
        }
    }
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
    /// `tiles[v - 1]` handles panels of `v` registers; a panel is as wide as possible, but the last is only as wide as it
    /// needs to be.
    tiles: &'static [TileFn],
}

/// Upper bounds on [`MicroKernel::rows`] and on a panel's width, for scratch space on the stack.
const MAX_ROWS: usize = 8;
const MAX_WIDTH: usize = 48;
