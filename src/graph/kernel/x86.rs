//! Micro-kernels for x86-64. The accumulators of a whole tile stay in registers, and are compared with the rows'
//! thresholds there: in most tiles nothing is near enough, and nothing is written.

use super::{MicroKernel, Tile};
use std::arch::x86_64::*;

/// 24 of the 32 registers hold sums, 3 the candidates.
pub(super) const AVX512: MicroKernel =
    MicroKernel { rows: 8, lanes: 16, tiles: &[tile_avx512::<1>, tile_avx512::<2>, tile_avx512::<3>] };

/// 12 of the 16 registers hold sums, 2 the candidates.
pub(super) const AVX2: MicroKernel =
    MicroKernel { rows: 6, lanes: 8, tiles: &[tile_avx2::<1>, tile_avx2::<2>] };

#[target_feature(enable = "avx512f")]
unsafe fn tile_avx512<const V: usize>(t: &Tile) -> bool {
    const ROWS: usize = 8;
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
        for v in 0..V {
            let bias = _mm512_loadu_ps(t.bias.add(16 * v));
            for sum in &mut sums {
                sum[v] = bias;
            }
        }
        let (mut x, mut y) = (t.x, t.y);
        for _ in 0..t.columns {
            let mut panel = [_mm512_setzero_ps(); V];
            for (v, p) in panel.iter_mut().enumerate() {
                *p = _mm512_loadu_ps(y.add(16 * v));
            }
            for (r, sum) in sums.iter_mut().enumerate() {
                let node = _mm512_set1_ps(*x.add(r));
                for (s, p) in sum.iter_mut().zip(&panel) {
                    *s = _mm512_fmadd_ps(node, *p, *s);
                }
            }
            x = x.add(ROWS);
            y = y.add(16 * V);
        }
        let mut any = 0;
        for (r, sum) in sums.iter().enumerate() {
            let threshold = _mm512_set1_ps(*t.threshold.add(r));
            let mut hits = 0u64;
            for (v, s) in sum.iter().enumerate() {
                hits |= u64::from(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(*s, threshold)) << (16 * v);
            }
            *t.hits.add(r) = hits;
            any |= hits;
            if hits != 0 {
                for (v, s) in sum.iter().enumerate() {
                    _mm512_storeu_ps(t.scores.add(16 * (r * V + v)), *s);
                }
            }
        }
        any != 0
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const V: usize>(t: &Tile) -> bool {
    const ROWS: usize = 6;
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); V]; ROWS];
        for v in 0..V {
            let bias = _mm256_loadu_ps(t.bias.add(8 * v));
            for sum in &mut sums {
                sum[v] = bias;
            }
        }
        let (mut x, mut y) = (t.x, t.y);
        for _ in 0..t.columns {
            let mut panel = [_mm256_setzero_ps(); V];
            for (v, p) in panel.iter_mut().enumerate() {
                *p = _mm256_loadu_ps(y.add(8 * v));
            }
            for (r, sum) in sums.iter_mut().enumerate() {
                let node = _mm256_set1_ps(*x.add(r));
                for (s, p) in sum.iter_mut().zip(&panel) {
                    *s = _mm256_fmadd_ps(node, *p, *s);
                }
            }
            x = x.add(ROWS);
            y = y.add(8 * V);
        }
        let mut any = 0;
        for (r, sum) in sums.iter().enumerate() {
            let threshold = _mm256_set1_ps(*t.threshold.add(r));
            let mut hits = 0u64;
            for (v, s) in sum.iter().enumerate() {
                let above = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(*s, threshold));
                hits |= (above as u64) << (8 * v);
            }
            *t.hits.add(r) = hits;
            any |= hits;
            if hits != 0 {
                for (v, s) in sum.iter().enumerate() {
                    _mm256_storeu_ps(t.scores.add(8 * (r * V + v)), *s);
                }
            }
        }
        any != 0
    }
}
