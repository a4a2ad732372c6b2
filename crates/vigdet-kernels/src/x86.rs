//! Micro-kernels for x86-64. The accumulators of a whole tile stay in registers, and are compared with the rows'
//! thresholds there: in most tiles nothing is near enough, and nothing is written.

use super::top_k::{Hits, LANES};
use super::{MicroKernel, Tile};
use std::arch::x86_64::*;

/// 24 of the 32 registers hold sums, 3 the candidates.
pub(super) const AVX512: MicroKernel =
    MicroKernel { rows: 8, lanes: 16, tiles: &[tile_avx512::<1>, tile_avx512::<2>, tile_avx512::<3>] };

/// 12 of the 16 registers hold sums, 2 the candidates.
pub(super) const AVX2: MicroKernel = MicroKernel { rows: 6, lanes: 8, tiles: &[tile_avx2::<1>, tile_avx2::<2>] };

/// A micro-kernel, row by row: each row's sums are variables of their own. As an array, the compiler writes them to the
/// stack in every step.
macro_rules! tile {
    ($name:ident, $features:literal, $lanes:literal, [$($row:ident $r:literal),*], $rows:literal,
     $load:ident, $set:ident, $fma:ident, $store:ident, |$sum:ident, $threshold:ident| $above:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const V: usize>(t: &Tile) -> bool {
            // SAFETY: the caller's pointers are valid for the sizes that Tile states; all offsets below stay within
            // those.
            unsafe {
                let load = |from: *const f32, v: usize| $load(from.wrapping_add($lanes * if v < V { v } else { 0 }));
                let start = (load(t.bias, 0), load(t.bias, 1), load(t.bias, 2));
                $(let mut $row = start;)*
                let (mut x, mut y) = (t.x, t.y);
                for _ in 0..t.columns {
                    let panel = (load(y, 0), load(y, 1), load(y, 2));
                    $(
                        let node = $set(*x.wrapping_add($r));
                        $row.0 = $fma(node, panel.0, $row.0);
                        if V > 1 {
                            $row.1 = $fma(node, panel.1, $row.1);
                        }
                        if V > 2 {
                            $row.2 = $fma(node, panel.2, $row.2);
                        }
                    )*
                    x = x.wrapping_add($rows);
                    y = y.wrapping_add($lanes * V);
                }
                let mut any = 0;
                $(
                    let $threshold = $set(*t.threshold.wrapping_add($r));
                    let above = |$sum| -> u64 { $above };
                    let mut hits = above($row.0);
                    if V > 1 {
                        hits |= above($row.1) << $lanes;
                    }
                    if V > 2 {
                        hits |= above($row.2) << (2 * $lanes);
                    }
                    *t.hits.wrapping_add($r) = hits;
                    any |= hits;
                    if hits != 0 {
                        let to = t.scores.wrapping_add($lanes * V * $r);
                        $store(to, $row.0);
                        if V > 1 {
                            $store(to.wrapping_add($lanes), $row.1);
                        }
                        if V > 2 {
                            $store(to.wrapping_add(2 * $lanes), $row.2);
                        }
                    }
                )*
                any != 0
            }
        }
    };
}

tile!(
    tile_avx512, "avx512f", 16, [a 0, b 1, c 2, d 3, e 4, f 5, g 6, h 7], 8,
    _mm512_loadu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_storeu_ps,
    |sum, threshold| u64::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(sum, threshold))
);

tile!(
    tile_avx2, "avx2,fma", 8, [a 0, b 1, c 2, d 3, e 4, f 5], 6,
    _mm256_loadu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_storeu_ps,
    |sum, threshold| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(sum, threshold)) as u64
);

/// Puts the keys of `hits` where they belong in a row of keys in falling order, a multiple of [`LANES`], of which as
/// many fall out.
///
/// # Panics
/// If the row is longer than 9 registers or does not fill them.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn insert_avx512(row: &mut [u64], hits: Hits) {
    match row.len() / LANES {
        1 => insert_registers::<1>(row, hits),
        2 => insert_registers::<2>(row, hits),
        3 => insert_registers::<3>(row, hits),
        4 => insert_registers::<4>(row, hits),
        5 => insert_registers::<5>(row, hits),
        6 => insert_registers::<6>(row, hits),
        7 => insert_registers::<7>(row, hits),
        8 => insert_registers::<8>(row, hits),
        9 => insert_registers::<9>(row, hits),
        n => unreachable!("a row of {n} registers"),
    }
}

/// [`insert_avx512`] for a row of `N` registers, which stays in them: every key becomes the larger of itself and the
/// smaller of the new one and the key before it.
#[target_feature(enable = "avx512f")]
#[inline]
fn insert_registers<const N: usize>(row: &mut [u64], mut hits: Hits) {
    assert_eq!(row.len(), N * LANES);
    let to = row.as_mut_ptr().cast::<i64>();
    // SAFETY: N registers are as long as the row.
    let mut keys: [__m512i; N] = std::array::from_fn(|i| unsafe { _mm512_loadu_epi64(to.add(i * LANES)) });
    let above_all = _mm512_set1_epi64(-1);
    while let Some(new) = hits.next_key() {
        let new = _mm512_set1_epi64(new as i64);
        for i in (0..N).rev() {
            let last = if i > 0 { keys[i - 1] } else { above_all };
            let before = _mm512_alignr_epi64::<7>(keys[i], last);
            keys[i] = _mm512_max_epu64(keys[i], _mm512_min_epu64(before, new));
        }
    }
    for (i, keys) in keys.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_storeu_epi64(to.add(i * LANES), keys) };
    }
}
