//! Max-relative aggregation: the largest value among a node's neighbours, channel by channel.
//!
//! max_j(y_j − x_i) = (max_j y_j) − x_i, so only the maximum over rows of `y` is needed. If any of the values is NaN, the
//! result is NaN (the last one), as in `torch.amax`: a broken activation must not be hidden. Of equal values the first
//! in `index` wins.

use rayon::prelude::*;

/// Channels that are compared together: two AVX-512, four AVX2 registers.
const LANES: usize = 32;
/// Nodes per job.
const BLOCK: usize = 256;

/// For every node and channel, the row of `y` with the largest value among the node's neighbours.
///
/// `y` is `[batch, m, c]`, `index` is `[batch, n, k]` with rows of `y`, `rows` is `[batch, n, c]`: what `gather` along the
/// candidates of `y` needs.
///
/// # Panics
/// If a slice does not have the stated size, `k` is 0 or an index is out of range.
#[allow(clippy::too_many_arguments)] // the sizes of three matrices
pub fn arg_max_rows(
    y: &[f32],
    index: &[i64],
    batch: usize,
    n: usize,
    m: usize,
    c: usize,
    k: usize,
    rows: &mut [i32],
) {
    assert!(i32::try_from(m).is_ok(), "too many candidates: {m}");
    check_sizes(y, index, batch, n, m, c, k, rows.len());
    if rows.is_empty() {
        return;
    }
    rows.par_chunks_mut(n * c).enumerate().for_each(|(b, rows)| {
        let (y, index) = (&y[b * m * c..][..m * c], &index[b * n * k..][..n * k]);
        rows.par_chunks_mut(BLOCK * c)
            .zip(index.par_chunks(BLOCK * k))
            .for_each(|(rows, index)| reduce(y, index, c, k, Out::Rows(rows)));
    });
}

/// What the update of max-relative convolution reads, for inference: every channel of a node, and beside it how much the largest of its
/// neighbours' values is above it.
///
/// `x` is `[batch, n, c]`, `y` is `[batch, m, c]`, `index` is `[batch, n, k]`, `out` is `[batch, n, 2c]`: x₀, max_j y_j₀ − x₀, x₁, ….
///
/// # Panics
/// If a slice does not have the stated size, `k` is 0 or an index is out of range.
#[allow(clippy::too_many_arguments)] // the sizes of three matrices
pub fn interleave_relative(
    x: &[f32],
    y: &[f32],
    index: &[i64],
    batch: usize,
    n: usize,
    m: usize,
    c: usize,
    k: usize,
    out: &mut [f32],
) {
    check_sizes(y, index, batch, n, m, c, k, x.len());
    assert_eq!(out.len(), 2 * x.len(), "the output is not [batch, n, 2c]");
    if out.is_empty() {
        return;
    }
    out.par_chunks_mut(n * 2 * c).enumerate().for_each(|(b, out)| {
        let (x, y) = (&x[b * n * c..][..n * c], &y[b * m * c..][..m * c]);
        let index = &index[b * n * k..][..n * k];
        out.par_chunks_mut(BLOCK * 2 * c)
            .zip(x.par_chunks(BLOCK * c))
            .zip(index.par_chunks(BLOCK * k))
            .for_each(|((out, x), index)| reduce(y, index, c, k, Out::Relative(x, out)));
    });
}

#[allow(clippy::too_many_arguments)]
fn check_sizes(y: &[f32], index: &[i64], batch: usize, n: usize, m: usize, c: usize, k: usize, out: usize) {
    assert!(k > 0, "k must be at least 1");
    assert_eq!(y.len(), batch * m * c, "y is not [batch, m, c]");
    assert_eq!(index.len(), batch * n * k, "index is not [batch, n, k]");
    assert_eq!(out, batch * n * c, "the output is not [batch, n, c]");
    let bad = index.par_iter().find_any(|&&j| j < 0 || j as usize >= m);
    assert!(bad.is_none(), "neighbour {bad:?} of {m} candidates");
}

/// What to write for a block of nodes.
enum Out<'a> {
    /// The row of the largest value, `[nodes, c]`.
    Rows(&'a mut [i32]),
    /// The nodes, `[nodes, c]`, and where they go beside the largest value less their own, `[nodes, 2c]`.
    Relative(&'a [f32], &'a mut [f32]),
}

/// One block of nodes, in the widest instructions there are. The code is the same: the compiler makes vectors of it.
fn reduce(y: &[f32], index: &[i64], c: usize, k: usize, out: Out) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn wide(y: &[f32], index: &[i64], c: usize, k: usize, out: Out) {
            reduce_in(y, index, c, k, out);
        }
        #[target_feature(enable = "avx2")]
        fn middle(y: &[f32], index: &[i64], c: usize, k: usize, out: Out) {
            reduce_in(y, index, c, k, out);
        }
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            // SAFETY: the processor has these instructions.
            return unsafe { wide(y, index, c, k, out) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has these instructions.
            return unsafe { middle(y, index, c, k, out) };
        }
    }
    reduce_in(y, index, c, k, out);
}

#[inline(always)]
fn reduce_in(y: &[f32], index: &[i64], c: usize, k: usize, mut out: Out) {
    for (i, index) in index.chunks_exact(k).enumerate() {
        let mut first = 0;
        while first + LANES <= c {
            lanes::<LANES>(y, index, c, i, first, &mut out);
            first += LANES;
        }
        while first + 8 <= c {
            lanes::<8>(y, index, c, i, first, &mut out);
            first += 8;
        }
        while first < c {
            lanes::<1>(y, index, c, i, first, &mut out);
            first += 1;
        }
    }
}

/// `L` channels of node `i`, from `first` on.
#[inline(always)]
fn lanes<const L: usize>(y: &[f32], index: &[i64], c: usize, i: usize, first: usize, out: &mut Out) {
    let row = |j: i64| -> &[f32; L] { array(&y[j as usize * c + first..]) };
    let mut best = *row(index[0]);
    match out {
        Out::Rows(rows) => {
            let mut at = [index[0] as i32; L];
            for &j in &index[1..] {
                let new = row(j);
                for l in 0..L {
                    let better = new[l] > best[l] || new[l].is_nan();
                    best[l] = if better { new[l] } else { best[l] };
                    at[l] = if better { j as i32 } else { at[l] };
                }
            }
            rows[i * c + first..][..L].copy_from_slice(&at);
        }
        Out::Relative(x, out) => {
            for &j in &index[1..] {
                let new = row(j);
                for l in 0..L {
                    best[l] = if new[l] > best[l] || new[l].is_nan() { new[l] } else { best[l] };
                }
            }
            let x: &[f32; L] = array(&x[i * c + first..]);
            let out = &mut out[2 * (i * c + first)..][..2 * L];
            for l in 0..L {
                out[2 * l] = x[l];
                out[2 * l + 1] = best[l] - x[l];
            }
        }
    }
}

/// The first `L` numbers.
#[inline(always)]
fn array<const L: usize>(values: &[f32]) -> &[f32; L] {
    values[..L].try_into().expect("a slice of L numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers, so that many values are equal.
    fn numbers(len: usize, of: u32, seed: u32) -> Vec<u32> {
        (0..len as u32)
            .map(|i| (i ^ seed).wrapping_mul(2_654_435_761).rotate_left(15).wrapping_mul(97) >> 7)
            .map(|v| v % of)
            .collect()
    }

    #[test]
    fn finds_the_first_largest_row() {
        for (batch, n, m, c, k) in [(1, 1, 1, 1, 1), (2, 300, 40, 83, 9), (1, 17, 5, 32, 5), (3, 4, 9, 7, 2)]
        {
            let y: Vec<f32> = numbers(batch * m * c, 6, 1).iter().map(|&v| v as f32 - 3.0).collect();
            let index: Vec<i64> = numbers(batch * n * k, m as u32, 2).iter().map(|&v| i64::from(v)).collect();
            let mut rows = vec![-1; batch * n * c];
            arg_max_rows(&y, &index, batch, n, m, c, k, &mut rows);
            let x: Vec<f32> = numbers(batch * n * c, 50, 5).iter().map(|&v| v as f32).collect();
            let mut mixed = vec![0.0; 2 * batch * n * c];
            interleave_relative(&x, &y, &index, batch, n, m, c, k, &mut mixed);
            for o in 0..rows.len() {
                let (i, ch) = (o / c, o % c);
                let at = |j: i64| y[(i / n * m + j as usize) * c + ch];
                let mut best = index[i * k];
                for &j in &index[i * k..][..k] {
                    if at(j) > at(best) {
                        best = j;
                    }
                }
                assert_eq!(i64::from(rows[o]), best);
                assert_eq!(mixed[2 * o..][..2], [x[o], at(best) - x[o]]);
            }
        }
    }

    #[test]
    fn nan_is_passed_on() {
        let y = [1.0, 2.0, f32::NAN, 0.0, 5.0, 6.0];
        for order in [[0, 1, 2], [1, 0, 2], [2, 0, 1]] {
            let (mut rows, mut mixed) = ([-1; 2], [0.0; 4]);
            arg_max_rows(&y, &order, 1, 1, 3, 2, 3, &mut rows);
            interleave_relative(&[0.5, 1.0], &y, &order, 1, 1, 3, 2, 3, &mut mixed);
            assert!(mixed[1].is_nan() && rows[0] == 1, "{order:?}");
            assert_eq!((mixed[3], rows[1]), (5.0, 2), "{order:?}");
        }
    }

    #[test]
    #[should_panic(expected = "of 2 candidates")]
    fn an_index_out_of_range_is_refused() {
        arg_max_rows(&[1.0, 2.0], &[0, 2], 1, 1, 2, 1, 2, &mut [0]);
    }
}
