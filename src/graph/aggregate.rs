//! Max-relative aggregation (Li et al., 2019; ViG, equation 4) without a `[B, C, N, k]` tensor.
//!
//! max_j (y_j − x) = (max_j y_j) − x: a kernel without gradient finds which neighbour is the largest in each channel; one
//! `gather` with that index then gives the value and, by itself, the exact gradient.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::kernel::arg_max_rows;
use super::slices::{f32_slice, i64_slice, i64_tensor};

/// The largest difference between a node and its neighbours, channel by channel.
///
/// `x` `[B, N, C]` are the nodes, `y` `[B, M, C]` the candidates, `edges` int64 `[B, N, k]` indices into the M candidates. Gives
/// `[B, N, C]`. `fused` takes the kernel where it can (float32 on the CPU): of equal neighbours the one that comes first in `edges` then takes
/// the whole gradient. Otherwise plain tensor operations make the `[B, N, k, C]` tensor, and equal neighbours share the gradient.
pub fn max_relative(x: &Tensor, y: &Tensor, edges: &Tensor, fused: bool) -> Result<Tensor> {
    let (b, n, c) = x.size3()?;
    let (_, m, _) = y.size3()?;
    let (_, _, k) = edges.size3()?;
    if !fused || x.device() != Device::Cpu || x.kind() != Kind::Float {
        let flat = edges.reshape([b, n * k, 1]).expand([b, n * k, c], false);
        let neighbours = y.gather(1, &flat, false).view([b, n, k, c]);
        return Ok((neighbours - x.unsqueeze(2)).amax([2], false));
    }
    let values = y.detach().contiguous();
    let (values, edges) = (f32_slice(&values)?, edges.contiguous());
    let edges = i64_slice(&edges)?;
    let largest = i64_tensor(&[b, n, c], |rows| {
        arg_max_rows(values, edges, b as usize, n as usize, m as usize, c as usize, k as usize, rows, None);
    });
    Ok(y.gather(1, &largest, false) - x)
}
