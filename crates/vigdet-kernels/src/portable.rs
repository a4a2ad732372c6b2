//! The micro-kernel in plain Rust, for processors without AVX2. Small enough for 16 vector registers of four lanes.

use super::{MicroKernel, Tile};

const ROWS: usize = 4;
const LANES: usize = 8;

pub(super) const KERNEL: MicroKernel = MicroKernel { rows: ROWS, lanes: LANES, tiles: &[tile] };

/// # Safety
/// The pointers of `t` must be valid for `ROWS` rows and `LANES` candidates.
unsafe fn tile(t: &Tile) -> bool {
    // SAFETY: the caller answers for the pointers; arrays of float32 may lie at any multiple of 4.
    unsafe {
        let x = std::slice::from_raw_parts(t.x.cast::<[f32; ROWS]>(), t.columns);
        let y = std::slice::from_raw_parts(t.y.cast::<[f32; LANES]>(), t.columns);
        let mut sums = [t.bias.cast::<[f32; LANES]>().read_unaligned(); ROWS];
        for (x, y) in x.iter().zip(y) {
            for (sum, x) in sums.iter_mut().zip(x) {
                for (sum, y) in sum.iter_mut().zip(y) {
                    *sum += x * y;
                }
            }
        }
        let mut any = false;
        for (r, sum) in sums.iter().enumerate() {
            let threshold = *t.threshold.add(r);
            let hits = sum.iter().enumerate().fold(0u64, |bits, (i, &s)| bits | (u64::from(s > threshold) << i));
            *t.hits.add(r) = hits;
            if hits != 0 {
                any = true;
                t.scores.add(r * LANES).cast::<[f32; LANES]>().write_unaligned(*sum);
            }
        }
        any
    }
}
