//! What a node takes from its neighbours, without a `[B, C, N, k]` tensor.
//!
//! The largest of the neighbours' values: a kernel without gradient finds which neighbour it is in each channel; one
//! `gather` with that index then gives the value and, by itself, the exact gradient. So max_j (y_j − x) = (max_j y_j) −
//! x (max-relative, Li et al., 2019; ViG, equation 4).

use anyhow::Result;
use tch::{Kind, Tensor};

use crate::config::Search;
use crate::nn::crossings::has_kernels;
use crate::nn::memory::{filled, slice};
use vigdet_kernels::{arg_max_rows, interleave_relative, Isa, Neighbours};

/// The largest of each node's neighbours, channel by channel: `[B, N, C]`.
///
/// `y` `[B, M, C]` are the candidates, `edges` int64 `[B, N, k]` indices of them. [`Search::Fused`] takes the kernel
/// where it can (float32 on the CPU) and else works as [`Search::Chunked`], in tensor operations, one neighbour at a
/// time: of equal neighbours the one that comes first in `edges` takes the whole gradient. [`Search::Dense`] makes the
/// `[B, N, k, C]` tensor, as the published code does, and equal neighbours share the gradient.
pub fn largest(y: &Tensor, edges: &Tensor, how: Search) -> Result<Tensor> {
    if how == Search::Dense {
        return Ok(neighbours(y, edges)?.f_amax([2], false)?);
    }
    Ok(y.f_gather(1, &largest_index(y, edges, how)?, false)?)
}

/// Which candidate has the largest value among each node's neighbours, channel by channel: `[B, N, C]`, int32 or int64.
/// Of equal ones it is the first in `edges`.
pub(super) fn largest_index(y: &Tensor, edges: &Tensor, how: Search) -> Result<Tensor> {
    let (b, m, c) = y.size3()?;
    let (_, n, k) = edges.size3()?;
    Ok(match how {
        Search::Fused if has_kernels(y.device()) && y.kind() == Kind::Float => {
            let values = y.detach().contiguous();
            let edges = edges.contiguous();
            // SAFETY: the slices are gone with the kernel, and until then this thread writes to nothing but `rows`.
            let (values, edges) = unsafe { (slice(&values)?, slice(&edges)?) };
            // gather takes 32 bits, and training keeps the index of every block until its gradient.
            filled(&[b, n, c], |rows: &mut [i32]| {
                arg_max_rows(Isa::best(), graph(values, edges, [b, n, m, c, k]), rows);
            })?
        }
        _ => tch::no_grad(|| -> Result<Tensor> {
            let neighbour = |j: i64| edges.narrow(2, j, 1).expand([b, n, c], false);
            let mut index = neighbour(0);
            let mut best = y.gather(1, &index, false);
            for j in 1..k {
                let here = neighbour(j);
                let value = y.gather(1, &here, false);
                let better = value.gt_tensor(&best).logical_or(&value.isnan());
                index = here.where_self(&better, &index);
                best = value.where_self(&better, &best);
            }
            Ok(index)
        })?,
    })
}

/// Nodes beside their max-relative features, `[B, N, 2C]` with channels interleaved: x₀, max_j y_j₀ − x₀, x₁, ….
///
/// `x` `[B, N, C]` are the nodes; `y`, `edges` and `how` as for [`largest`].
pub fn with_max_relative(x: &Tensor, y: &Tensor, edges: &Tensor, how: Search) -> Result<Tensor> {
    let (b, n, c) = x.size3()?;
    let fits = |t: &Tensor| has_kernels(t.device()) && t.kind() == Kind::Float && !t.requires_grad();
    if how == Search::Fused && fits(x) && fits(y) {
        let (m, k) = (y.size()[1], edges.size()[2]);
        let (x, y, edges) = (x.contiguous(), y.contiguous(), edges.contiguous());
        // SAFETY: the slices are gone with the kernel, and until then this thread writes to nothing but `out`.
        let (nodes, candidates, edges) = unsafe { (slice(&x)?, slice(&y)?, slice(&edges)?) };
        return filled(&[b, n, 2 * c], |out: &mut [f32]| {
            interleave_relative(Isa::best(), nodes, graph(candidates, edges, [b, n, m, c, k]), out);
        });
    }
    let relative = largest(y, edges, how)? - x;
    Ok(Tensor::stack(&[x, &relative], -1).view([b, n, 2 * c]))
}

/// What the kernels take: candidates and edges of \[batch, nodes, candidates, channels, k\].
fn graph<'a>(values: &'a [f32], index: &'a [i64], sizes: [i64; 5]) -> Neighbours<'a> {
    let [batch, nodes, candidates, channels, k] = sizes.map(|size| size as usize);
    Neighbours { values, index, batch, nodes, candidates, channels, k }
}

/// The sum of each node's neighbours, `[B, N, C]`; `y` and `edges` as for [`largest`].
pub fn sum(y: &Tensor, edges: &Tensor, how: Search) -> Result<Tensor> {
    if how == Search::Dense {
        return Ok(neighbours(y, edges)?.sum_dim_intlist([2i64].as_slice(), false, None::<Kind>));
    }
    let (b, m, c) = y.size3()?;
    let (_, n, k) = edges.size3()?;
    let flat = flat_edges(edges, m)?;
    let bags = Tensor::arange(b * n, (Kind::Int64, y.device())) * k;
    // 0: sums, with an exact gradient and nothing of size k in between.
    let (sums, ..) =
        Tensor::f_embedding_bag(&y.reshape([b * m, c]), &flat, &bags, false, 0, false, None::<Tensor>, false)?;
    Ok(sums.view([b, n, c]))
}

/// How many nodes each candidate is a neighbour of, `[B·M, 1]` in the kind of `like`.
pub fn popularity(edges: &Tensor, candidates: i64, like: &Tensor) -> Result<Tensor> {
    let batch = edges.size()[0];
    let counts = flat_edges(edges, candidates)?.f_bincount(None::<Tensor>, batch * candidates)?;
    Ok(counts.to_kind(like.kind()).unsqueeze(1))
}

/// All neighbours of all nodes, `[B, N, k, C]`.
pub fn neighbours(y: &Tensor, edges: &Tensor) -> Result<Tensor> {
    let (b, _, c) = y.size3()?;
    let (_, n, k) = edges.size3()?;
    let flat = edges.reshape([b, n * k, 1]).expand([b, n * k, c], false);
    Ok(y.f_gather(1, &flat, false)?.view([b, n, k, c]))
}

/// `[B, N, k]` indices of M candidates an image, as indices `[B·N·k]` of the batch's B·M.
fn flat_edges(edges: &Tensor, candidates: i64) -> Result<Tensor> {
    let batch = edges.size()[0];
    let first = Tensor::arange(batch, (Kind::Int64, edges.device())).view([batch, 1, 1]) * candidates;
    Ok((edges + first).flatten(0, -1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn every_way_gives_the_same_values_and_gradients() {
        let options = (Kind::Float, Device::Cpu);
        let (b, n, m, c, k) = (2, 30, 12, 35, 4);
        let values = (Tensor::arange(b * m * c, options) * 0.7).sin().view([b, m, c]);
        let edges = (Tensor::arange(b * n * k, (Kind::Int64, Device::Cpu)) * 7).remainder(m).view([b, n, k]);
        let weight = (Tensor::arange(b * n * c, options) * 0.3).cos().view([b, n, c]);
        for aggregate in [largest, sum] {
            let run = |how| {
                let y = values.copy().set_requires_grad(true);
                let out = aggregate(&y, &edges, how).unwrap();
                (&out * &weight).sum(Kind::Float).backward();
                (out.detach(), y.grad())
            };
            let (expected, gradient) = run(Search::Dense);
            for how in [Search::Fused, Search::Chunked] {
                let (out, grad) = run(how);
                assert!((out - &expected).abs().max().double_value(&[]) < 1e-6, "{how:?}");
                assert!((grad - &gradient).abs().max().double_value(&[]) < 1e-5, "{how:?}");
            }
        }
        let nodes = (Tensor::arange(b * n * c, options) * 0.9).sin().view([b, n, c]);
        let expected = with_max_relative(&nodes, &values, &edges, Search::Dense).unwrap();
        assert_eq!(expected.size(), [b, n, 2 * c]);
        for how in [Search::Fused, Search::Chunked] {
            assert_eq!(with_max_relative(&nodes, &values, &edges, how).unwrap(), expected, "{how:?}");
            let learned = values.copy().set_requires_grad(true);
            assert_eq!(with_max_relative(&nodes, &learned, &edges, how).unwrap(), expected, "{how:?}");
        }
        let counted = popularity(&edges, m, &values).unwrap();
        assert_eq!(counted.sum(Kind::Float).double_value(&[]), (b * n * k) as f64);
        assert_eq!(counted.size(), [b * m, 1]);
    }
}
