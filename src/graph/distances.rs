//! How far apart the ends of given edges are, in the measure that neighbours are searched by.

use anyhow::{ensure, Result};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::relative::RelativePosition;
use crate::nn::crossings::fetch;
use crate::nn::memory::{filled, rows, slice};

/// The distance along each edge, float32 `[B, N, k]` on the CPU.
///
/// `nodes` `[B, C, H, W]` and `candidates` `[B, C, h, w]` are features, `edges` int64 `[B, H·W, k]` indices of the h·w
/// candidates. The distance is what [`super::knn::Neighbours::find`] orders by: the squared Euclidean distance of the
/// features, normalised over channels to length one (0 to 4; 0 from a node to itself), less the relative position where
/// there is one.
///
/// # Errors
/// If the shapes do not fit one another, or an index is that of no candidate.
pub fn edge_distances(
    nodes: &Tensor,
    candidates: &Tensor,
    edges: &Tensor,
    position: Option<&RelativePosition>,
) -> Result<Tensor> {
    let ((_, _, h, w), (_, _, ch, cw)) = (nodes.size4()?, candidates.size4()?);
    let (x, y) = (rows(nodes)?, rows(candidates)?);
    let ((b, n, c), (by, m, cy)) = (x.size3()?, y.size3()?);
    let edges = fetch(edges).to_kind(Kind::Int64).contiguous();
    let (be, ne, k) = edges.size3()?;
    ensure!(
        (b, c) == (by, cy) && (b, n) == (be, ne),
        "edges {:?} do not fit nodes {:?} and candidates {:?}",
        edges.size(),
        nodes.size(),
        candidates.size()
    );
    let sizes = ((h as usize, w as usize), (ch as usize, cw as usize));
    let factors = position.map(|p| p.factors(sizes.0, sizes.1));
    let (n, m, c, k) = (n as usize, m as usize, c as usize, k as usize);
    // SAFETY: the slices are gone when this function ends, and until then it writes to nothing but its output.
    let (x, y, edges) = unsafe { (slice(&x)?, slice(&y)?, slice(&edges)?) };
    ensure!(edges.iter().all(|j| (0..m as i64).contains(j)), "an edge leads to none of the {m} candidates");
    let over = |row: &[f32]| 1.0 / row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
    let over_y: Vec<f32> = y.par_chunks(c.max(1)).map(over).collect();
    filled(&[b, n as i64, k as i64], |out: &mut [f32]| {
        let of_node = |(row, (out, edges)): (usize, (&mut [f32], &[i64]))| {
            let (image, node) = (row / n, row % n);
            let own = &x[row * c..][..c];
            let over_x = over(own);
            for (out, &j) in out.iter_mut().zip(edges) {
                let at = image * m + j as usize;
                let other = &y[at * c..][..c];
                let squares = own.iter().zip(other).map(|(a, b)| (a * over_x - b * over_y[at]).powi(2)).sum::<f32>();
                *out = squares
                    - factors.as_ref().map_or(0.0, |f| {
                        let (u, v) = (&f.u[node * f.rank..][..f.rank], &f.v[j as usize * f.rank..][..f.rank]);
                        u.iter().zip(v).map(|(u, v)| u * v).sum::<f32>()
                    });
            }
        };
        if k > 0 {
            out.par_chunks_mut(k).zip(edges.par_chunks(k)).enumerate().for_each(of_node);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::knn::Neighbours;
    use super::*;
    use crate::config::{RelativeKind, Search};
    use tch::Device;

    #[test]
    fn distances_are_those_of_unit_features() {
        // (3, 4) and (0, 2) are (0.6, 0.8) and (0, 1) at length one: 0.36 + 0.04 apart; (-3, -4) is opposite: 4.
        let nodes = Tensor::from_slice(&[3.0f32, 0.0, -3.0, 4.0, 2.0, -4.0]).view([1, 2, 1, 3]);
        let edges = Tensor::from_slice(&[0i64, 1, 1, 0, 2, 0]).view([1, 3, 2]);
        let found = edge_distances(&nodes, &nodes, &edges, None).unwrap();
        let found = Vec::<f32>::try_from(found.flatten(0, -1)).unwrap();
        for (found, expected) in found.iter().zip([0.0, 0.4, 0.0, 0.4, 0.0, 4.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let beyond = Tensor::from_slice(&[0i64, 1, 1, 0, 3, 0]).view([1, 3, 2]);
        assert!(edge_distances(&nodes, &nodes, &beyond, None).is_err());
        assert!(edge_distances(&nodes, &nodes, &edges.narrow(1, 0, 2), None).is_err());
    }

    #[test]
    fn neighbours_come_in_the_order_of_their_distances() {
        let (h, w, c) = (8, 12, 16);
        let x = (Tensor::arange(2 * c * h * w, (Kind::Float, Device::Cpu)) * 12.9898).sin().view([2, c, h, w]);
        let y = x.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>);
        let position = RelativePosition::new(c as usize, 8, 2, RelativeKind::Published).unwrap();
        for position in [None, Some(&position)] {
            let find = Neighbours { k: 24, dilation: 1, search: Search::Dense };
            let edges = find.find(&x, &y, position).unwrap();
            let found = edge_distances(&x, &y, &edges, position).unwrap();
            let steps = found.narrow(2, 1, 23) - found.narrow(2, 0, 23);
            assert!(steps.min().double_value(&[]) > -1e-5);
            // The whole range is there, not all the same number.
            assert!((found.max() - found.min()).double_value(&[]) > 0.5);
        }
    }
}
