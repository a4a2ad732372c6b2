//! Max-relative aggregation: the largest value among a node's neighbours, channel by channel.
//!
//! max_j(y_j − x_i) = (max_j y_j) − x_i, so only the maximum over the candidates is needed. If any of the values is
//! NaN, the result is NaN (the last one), as in `torch.amax`: a broken activation must not be hidden. Of equal values
//! the first in `index` wins.

use super::{Isa, Work};
use rayon::prelude::*;

/// Channels that are compared together: two AVX-512, four AVX2 registers.
const LANES: usize = 32;
/// Nodes per job.
const BLOCK: usize = 256;

/// The candidates of a batch of graphs, and which of them are neighbours of each node.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours<'a> {
    /// Features of the candidates, `[batch, candidates, channels]`.
    pub values: &'a [f32],
    /// Indices of candidates, `[batch, nodes, k]`.
    pub index: &'a [i64],
    /// Graphs.
    pub batch: usize,
    /// Nodes of each.
    pub nodes: usize,
    /// Candidates of each.
    pub candidates: usize,
    /// Channels of each.
    pub channels: usize,
    /// Neighbours of each node.
    pub k: usize,
}

impl<'a> Neighbours<'a> {
    /// Values and indices of one graph.
    fn item(&self, b: usize) -> (&'a [f32], &'a [i64]) {
        let (values, index) = (self.candidates * self.channels, self.nodes * self.k);
        (&self.values[b * values..][..values], &self.index[b * index..][..index])
    }

    fn check(&self, out: usize) {
        let Neighbours { values, index, batch, nodes, candidates, channels, k } = *self;
        assert!(k > 0, "k must be at least 1");
        assert_eq!(values.len(), batch * candidates * channels, "values are not [batch, candidates, channels]");
        assert_eq!(index.len(), batch * nodes * k, "index is not [batch, nodes, k]");
        assert_eq!(out, batch * nodes * channels, "the output is not [batch, nodes, channels]");
        let bad = index.par_iter().find_any(|&&j| j < 0 || j as usize >= candidates);
        assert!(bad.is_none(), "neighbour {bad:?} of {candidates} candidates");
    }
}

/// For every node and channel, the candidate with the largest value among the node's neighbours.
///
/// `rows` is `[batch, nodes, channels]`: what `gather` along the candidates needs.
///
/// # Panics
/// If a slice does not have the stated size, `k` is 0 or an index is out of range.
pub fn arg_max_rows(isa: Isa, graph: Neighbours, rows: &mut [i32]) {
    assert!(i32::try_from(graph.candidates).is_ok(), "too many candidates: {}", graph.candidates);
    graph.check(rows.len());
    if rows.is_empty() {
        return;
    }
    let (c, k) = (graph.channels, graph.k);
    rows.par_chunks_mut(graph.nodes * c).enumerate().for_each(|(b, rows)| {
        let (y, index) = graph.item(b);
        rows.par_chunks_mut(BLOCK * c)
            .zip(index.par_chunks(BLOCK * k))
            .for_each(|(rows, index)| isa.run(Reduce { y, index, c, k, out: Out::Rows(rows) }));
    });
}

/// What the update of max-relative convolution reads, for inference: every channel of a node, and beside it how much
/// the largest of its neighbours' values is above it.
///
/// `x` is `[batch, nodes, channels]`, the nodes; `out` is `[batch, nodes, 2 · channels]`: x₀, max_j y_j₀ − x₀, x₁, ….
///
/// # Panics
/// If a slice does not have the stated size, `k` is 0 or an index is out of range.
pub fn interleave_relative(isa: Isa, x: &[f32], graph: Neighbours, out: &mut [f32]) {
    graph.check(x.len());
    assert_eq!(out.len(), 2 * x.len(), "the output is not [batch, nodes, 2 · channels]");
    if out.is_empty() {
        return;
    }
    let (n, c, k) = (graph.nodes, graph.channels, graph.k);
    out.par_chunks_mut(n * 2 * c).enumerate().for_each(|(b, out)| {
        let (y, index) = graph.item(b);
        let x = &x[b * n * c..][..n * c];
        out.par_chunks_mut(BLOCK * 2 * c)
            .zip(x.par_chunks(BLOCK * c))
            .zip(index.par_chunks(BLOCK * k))
            .for_each(|((out, x), index)| isa.run(Reduce { y, index, c, k, out: Out::Relative(x, out) }));
    });
}

/// What to write for a block of nodes.
enum Out<'a> {
    /// The row of the largest value, `[nodes, c]`.
    Rows(&'a mut [i32]),
    /// The nodes, `[nodes, c]`, and where they go beside the largest value less their own, `[nodes, 2c]`.
    Relative(&'a [f32], &'a mut [f32]),
}

/// One block of nodes: the compiler makes vectors of it.
struct Reduce<'a> {
    /// Candidates, `[candidates, c]`.
    y: &'a [f32],
    /// `[nodes, k]`.
    index: &'a [i64],
    c: usize,
    k: usize,
    out: Out<'a>,
}

impl Work for Reduce<'_> {
    #[inline(always)]
    unsafe fn run(self, _: Isa) {
        let Reduce { y, index, c, k, mut out } = self;
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

/// The first `L` values.
#[inline(always)]
fn array<const L: usize>(values: &[f32]) -> &[f32; L] {
    values[..L].try_into().expect("a slice of L values")
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
        for (batch, n, m, c, k) in [(1, 1, 1, 1, 1), (2, 300, 40, 83, 9), (1, 17, 5, 32, 5), (3, 4, 9, 7, 2)] {
            let y: Vec<f32> = numbers(batch * m * c, 6, 1).iter().map(|&v| v as f32 - 3.0).collect();
            let index: Vec<i64> = numbers(batch * n * k, m as u32, 2).iter().map(|&v| i64::from(v)).collect();
            let x: Vec<f32> = numbers(batch * n * c, 50, 5).iter().map(|&v| v as f32).collect();
            for isa in Isa::available() {
                let (mut rows, mut mixed) = (vec![-1; batch * n * c], vec![0.0; 2 * batch * n * c]);
                let graph = Neighbours { values: &y, index: &index, batch, nodes: n, candidates: m, channels: c, k };
                arg_max_rows(isa, graph, &mut rows);
                interleave_relative(isa, &x, graph, &mut mixed);
                for o in 0..rows.len() {
                    let (i, ch) = (o / c, o % c);
                    let at = |j: i64| y[(i / n * m + j as usize) * c + ch];
                    let mut best = index[i * k];
                    for &j in &index[i * k..][..k] {
                        if at(j) > at(best) {
                            best = j;
                        }
                    }
                    assert_eq!(i64::from(rows[o]), best, "{isa:?}");
                    assert_eq!(mixed[2 * o..][..2], [x[o], at(best) - x[o]], "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn nan_is_passed_on() {
        let y = [1.0, 2.0, f32::NAN, 0.0, 5.0, 6.0];
        for order in [[0, 1, 2], [1, 0, 2], [2, 0, 1]] {
            for isa in Isa::available() {
                let (mut rows, mut mixed) = ([-1; 2], [0.0; 4]);
                let graph =
                    Neighbours { values: &y, index: &order, batch: 1, nodes: 1, candidates: 3, channels: 2, k: 3 };
                arg_max_rows(isa, graph, &mut rows);
                interleave_relative(isa, &[0.5, 1.0], graph, &mut mixed);
                assert!(mixed[1].is_nan() && rows[0] == 1, "{isa:?} {order:?}");
                assert_eq!((mixed[3], rows[1]), (5.0, 2), "{isa:?} {order:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "of 2 candidates")]
    fn an_index_out_of_range_is_refused() {
        let (values, index) = (&[1.0, 2.0], &[0, 2]);
        let graph = Neighbours { values, index, batch: 1, nodes: 1, candidates: 2, channels: 1, k: 2 };
        arg_max_rows(Isa::best(), graph, &mut [0]);
    }
}
