//! Axial graphs (GreedyViG, Munir et al., 2024; AdaptViG, Munir et al., 2026): a node's neighbours lie in its column
//! and its row of the map, at fixed steps. Rolling the map brings each to the node's place.
//!
//! Of a neighbour y of x counts w · (y − x), with a weight w by its L1 distance; of all of them the largest in each
//! channel, or 0. A kernel without gradient finds which neighbour that is; one `gather` with that index gives its value
//! and the exact gradient. No rolled map is kept.

use anyhow::Result;
use tch::{Device, Kind, Reduction, Tensor};

use super::trace::{BlockTrace, GraphTrace};
use crate::config::Search;
use crate::nn::memory::{filled, slice, Plain};
use vigdet_kernels::{arg_roll_max, roll_distances, roll_max, Gate, Isa, Rolled};

/// Rows and columns by which a map moves, down and to the right; one of them is 0.
pub type Roll = (i64, i64);

/// Which neighbours count, and by how much.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// Those nearer than the mean less the deviation of some distances of the image: those of its nodes from the nodes
    /// half the map away, along both sides. They count fully.
    Near,
    /// By exp(−distance / |temperature|); those of the first `free` rolls fully.
    Decay {
        /// A learned scalar.
        temperature: &'a Tensor,
        /// Rolls without a gate.
        free: usize,
    },
}

/// GreedyViG's rolls of a map: every `step` nodes, along the height, then along the width.
pub fn every(step: i64, (height, width): (i64, i64)) -> Vec<Roll> {
    let steps = |side: i64| (step..side).step_by(step as usize);
    steps(height).map(|down| (down, 0)).chain(steps(width).map(|right| (0, right))).collect()
}

/// AdaptViG's rolls of a map: by `step` along both sides, then by 2, 4, 8, …. The number of the former comes beside
/// them. A roll by the whole side or more is none.
pub fn doubling(step: i64, (height, width): (i64, i64)) -> (Vec<Roll>, usize) {
    let near = [(step, 0), (0, step)].into_iter().filter(|&(down, right)| down < height && right < width);
    let mut rolls: Vec<Roll> = near.collect();
    let free = rolls.len();
    let doubled = |side: i64| (1..).map(|i| 1i64 << i).take_while(move |by| *by < side);
    rolls.extend(doubled(height).map(|down| (down, 0)));
    rolls.extend(doubled(width).map(|right| (0, right)));
    (rolls, free)
}

/// The channels of each node and then what they take from its neighbours, `[B, 2C, H, W]`, of nodes `[B, C, H, W]` in
/// float32 or float64.
///
/// [`Search::Fused`] takes the kernel where it can (float32 on the CPU); all else are tensor operations, one roll at a
/// time. Of equal neighbours the first roll's takes the whole gradient. `trace` records the links.
///
/// # Errors
/// If the tensor does not have four dimensions.
pub fn with_neighbours(
    x: &Tensor,
    rolls: &[Roll],
    weight: Weight,
    how: Search,
    trace: Option<&mut GraphTrace>,
) -> Result<Tensor> {
    let nodes = x.permute([0, 2, 3, 1]).contiguous();
    let (b, h, w, c) = nodes.size4()?;
    let search = Links { nodes: nodes.detach(), rolls, threshold: Threshold::of(weight, &nodes), how };
    if let Some(trace) = trace {
        let distances = search.distances()?;
        let edges = partners(rolls, (h, w), x.device()).narrow(2, 1, rolls.len() as i64);
        trace.keep_links(BlockTrace {
            edges: edges.expand([b, -1, -1], false).to_kind(Kind::Int64),
            nodes: (h, w),
            candidates: (h, w),
            pooled: (1, 1),
            stride: 0,
            weights: Some(search.threshold.weights(&distances)),
            distances: Some(distances),
        });
    }
    let beside = if nodes.requires_grad() {
        let by = search.winners()?;
        let rows = nodes.view([b, h * w, c]);
        let winners = partners(rolls, (h, w), x.device()).expand([b, -1, -1], false).gather(2, &by, false);
        let relative = rows.gather(1, &winners, false) - &rows;
        let relative = match weight {
            Weight::Near => relative,
            Weight::Decay { temperature, free } => {
                relative * gates(&nodes, rolls, temperature, free)?.gather(2, &by, false)
            }
        };
        Tensor::cat(&[rows, relative], 2)
    } else {
        search.beside()?
    };
    Ok(beside.view([b, h, w, 2 * c]).permute([0, 3, 1, 2]))
}

/// [`Weight`] in numbers.
enum Threshold {
    /// The distance of each image that others must be below, `[B]`.
    Near(Tensor),
    /// What distances are divided by, and the rolls without a gate.
    Decay { temperature: Tensor, free: usize },
}

impl Threshold {
    /// Of nodes `[B, H, W, C]`.
    fn of(weight: Weight, nodes: &Tensor) -> Self {
        tch::no_grad(|| match weight {
            Weight::Near => {
                let size = nodes.size();
                let half = |side: i64| (side + 1) / 2;
                let apart = nodes.roll([half(size[1]), half(size[2])], [1, 2]).g_sub_(nodes);
                let distance = l1(&apart).flatten(1, -1);
                let mean = distance.mean_dim([1i64].as_slice(), false, None::<Kind>);
                // A single node has no neighbours, and no deviation.
                let is_one = distance.size()[1] == 1;
                Self::Near(if is_one { mean } else { mean - distance.std_dim([1i64].as_slice(), true, false) })
            }
            Weight::Decay { temperature, free } => Self::Decay { temperature: scale(temperature), free },
        })
    }

    /// What neighbours at these distances `[B, N, rolls]` count.
    fn weights(&self, distances: &Tensor) -> Tensor {
        match self {
            Self::Near(limits) => distances.lt_tensor(&limits.view([-1, 1, 1])).to_kind(distances.kind()),
            Self::Decay { temperature, free } => {
                let weights = (distances / -temperature).exp();
                let _ = weights.narrow(2, 0, *free as i64).fill_(1.0);
                weights
            }
        }
    }
}

/// What distances are divided by.
pub(super) fn scale(temperature: &Tensor) -> Tensor {
    temperature.abs() + 1e-6
}

/// The sum of the absolute values of `[…, C]`.
fn l1(x: &Tensor) -> Tensor {
    x.abs().sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>)
}

/// The search for a map's largest differences, without gradient.
struct Links<'a> {
    /// `[B, H, W, C]`, contiguous.
    nodes: Tensor,
    rolls: &'a [Roll],
    threshold: Threshold,
    how: Search,
}

impl Links<'_> {
    /// Nodes and differences, `[B, N, 2C]`.
    fn beside(&self) -> Result<Tensor> {
        let (b, h, w, c) = self.nodes.size4()?;
        match self.has_kernel() {
            true => self.kernel(&[b, h * w, 2 * c], |rolled, out| roll_max(Isa::best(), rolled, out)),
            false => Ok(Tensor::cat(&[&self.nodes, &self.one_by_one(false)?.0], 3).view([b, h * w, 2 * c])),
        }
    }

    /// The roll that brings the largest difference, int32 `[B, N, C]`, from 1; 0 where none is above 0.
    fn winners(&self) -> Result<Tensor> {
        let (b, h, w, c) = self.nodes.size4()?;
        match self.has_kernel() {
            // gather takes 32 bits, and training keeps the index of every block until its gradient.
            true => self.kernel(&[b, h * w, c], |rolled, out: &mut [i32]| arg_roll_max(Isa::best(), rolled, out)),
            false => Ok(self.one_by_one(true)?.1.view([b, h * w, c])),
        }
    }

    /// L1 distances of all neighbours, `[B, N, rolls]`.
    fn distances(&self) -> Result<Tensor> {
        let (b, h, w, _) = self.nodes.size4()?;
        let shape = [b, h * w, self.rolls.len() as i64];
        if self.has_kernel() {
            return self.kernel(&shape, |rolled, out| roll_distances(Isa::best(), rolled, out));
        }
        let all = Tensor::empty(shape, (self.nodes.kind(), self.nodes.device()));
        for (i, &roll) in self.rolls.iter().enumerate() {
            all.select(2, i as i64).copy_(&l1(&(rolled(&self.nodes, roll) - &self.nodes)).flatten(1, -1));
        }
        Ok(all)
    }

    fn has_kernel(&self) -> bool {
        self.how == Search::Fused && self.nodes.device() == Device::Cpu && self.nodes.kind() == Kind::Float
    }

    fn kernel<T: Plain>(&self, shape: &[i64], run: impl FnOnce(Rolled, &mut [T])) -> Result<Tensor> {
        let (b, h, w, c) = self.nodes.size4()?;
        let limits: Vec<f32> = match &self.threshold {
            Threshold::Near(limits) => limits.try_into()?,
            Threshold::Decay { .. } => Vec::new(),
        };
        let gate = match &self.threshold {
            Threshold::Near(_) => Gate::Below(&limits),
            Threshold::Decay { temperature, free } => Gate::Decay { temperature: temperature.try_into()?, free: *free },
        };
        let rolls: Vec<(usize, usize)> = self.rolls.iter().map(|r| (r.0 as usize, r.1 as usize)).collect();
        let [batch, height, width, channels] = [b, h, w, c].map(|size| size as usize);
        // SAFETY: the slice is gone with the kernel, and until then this thread writes to nothing but the new tensor.
        let values = unsafe { slice(&self.nodes)? };
        filled(shape, |out: &mut [T]| {
            run(Rolled { values, batch, height, width, channels, rolls: &rolls, gate }, out);
        })
    }

    /// In tensor operations: the largest differences `[B, H, W, C]`, and if asked for the rolls they are from.
    fn one_by_one(&self, winners: bool) -> Result<(Tensor, Tensor)> {
        tch::no_grad(|| {
            let (b, h, w, _) = self.nodes.size4()?;
            let mut best = self.nodes.zeros_like();
            let mut by = if winners { best.to_kind(Kind::Int) } else { Tensor::new() };
            for (i, &roll) in self.rolls.iter().enumerate() {
                let mut new = rolled(&self.nodes, roll) - &self.nodes;
                let weight = match &self.threshold {
                    Threshold::Near(limits) => l1(&new).lt_tensor(&limits.view([-1, 1, 1])).to_kind(new.kind()),
                    Threshold::Decay { free, .. } if i < *free => Tensor::ones([b, h, w], (new.kind(), new.device())),
                    Threshold::Decay { temperature, .. } => (l1(&new) / -temperature).exp(),
                };
                let _ = new.g_mul_(&weight.unsqueeze(3));
                if winners {
                    let _ = by.masked_fill_(&new.gt_tensor(&best), i as i64 + 1);
                }
                best = best.maximum(&new);
            }
            Ok((best, by))
        })
    }
}

/// A map `[B, H, W, …]`, moved.
fn rolled(map: &Tensor, (down, right): Roll) -> Tensor {
    match down {
        0 => map.roll([right], [2]),
        _ => map.roll([down], [1]),
    }
}

/// Where the neighbours of each node of a grid are, int32 `[1, N, 1 + rolls]`; first comes the node itself.
fn partners(rolls: &[Roll], (h, w): (i64, i64), device: Device) -> Tensor {
    let own = Tensor::arange(h * w, (Kind::Int, device)).view([1, h, w]);
    let all = [(0, 0)].iter().chain(rolls).map(|roll| rolled(&own, *roll).flatten(1, -1));
    Tensor::stack(&all.collect::<Vec<_>>(), 2)
}

/// The weight of each neighbour with its gradient, `[B, N, 1 + rolls]`; the first, of the node itself, is 1.
fn gates(nodes: &Tensor, rolls: &[Roll], temperature: &Tensor, free: usize) -> Result<Tensor> {
    let (b, h, w, _) = nodes.size4()?;
    // libtorch keeps what both sides of this loss are, here parts of `nodes`, where abs would keep a copy for each
    // roll. A kink this narrow leaves |x − y| as it is.
    const KINK: f64 = 1e-30;
    let apart = |axis: i64, to: i64, from: i64, count: i64| {
        let (to, from) = (nodes.narrow(axis, to, count), nodes.narrow(axis, from, count));
        to.smooth_l1_loss(&from, Reduction::None, KINK).sum_dim_intlist([3i64].as_slice(), false, None::<Kind>)
    };
    let distance = |&(down, right): &Roll| {
        let (axis, by, side) = if down > 0 { (1, down, h) } else { (2, right, w) };
        let (first, rest) = (apart(axis, 0, side - by, by), apart(axis, by, 0, side - by));
        Tensor::cat(&[first, rest], axis).view([b, h * w, 1])
    };
    let open = Tensor::ones([b, h * w, 1 + free as i64], (nodes.kind(), nodes.device()));
    let distances: Vec<Tensor> = rolls[free..].iter().map(distance).collect();
    if distances.is_empty() {
        return Ok(open);
    }
    let gates = (-Tensor::cat(&distances, 2) / scale(temperature)).exp();
    Ok(Tensor::cat(&[open, gates], 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn map(size: [i64; 4]) -> Tensor {
        (Tensor::arange(size.iter().product::<i64>(), OPTIONS) * 12.9898).sin().view(size)
    }

    #[test]
    fn rolls_are_the_published_ones() {
        assert_eq!(every(2, (5, 3)), [(2, 0), (4, 0), (0, 2)]);
        assert_eq!(every(8, (8, 8)), []);
        // 2 of 2 is the whole height.
        assert_eq!(doubling(2, (2, 5)), (vec![(0, 2), (0, 2), (0, 4)], 1));
        let (rolls, free) = doubling(8, (200, 320));
        assert_eq!((rolls.len(), free, rolls[1], rolls[8], rolls[16]), (17, 2, (0, 8), (128, 0), (0, 256)));
    }

    /// The published order of operations, with what autograd makes of it.
    fn published(x: &Tensor, rolls: &[Roll], weight: Weight) -> Tensor {
        let nodes = x.permute([0, 2, 3, 1]);
        let mut best = nodes.zeros_like();
        for (i, &roll) in rolls.iter().enumerate() {
            let apart = rolled(&nodes, roll) - &nodes;
            let distance = l1(&apart);
            let weights = match weight {
                Weight::Near => {
                    let (h, w) = (x.size()[2], x.size()[3]);
                    let far = l1(&(nodes.roll([(h + 1) / 2, (w + 1) / 2], [1, 2]) - &nodes)).flatten(1, -1).detach();
                    let limit = far.mean_dim([1i64].as_slice(), false, None::<Kind>)
                        - far.std_dim([1i64].as_slice(), true, false);
                    distance.lt_tensor(&limit.view([-1, 1, 1])).to_kind(Kind::Float)
                }
                Weight::Decay { free, .. } if i < free => distance.ones_like(),
                Weight::Decay { temperature, .. } => (-distance / scale(temperature)).exp(),
            };
            best = best.maximum(&(apart * weights.unsqueeze(3)));
        }
        Tensor::cat(&[nodes, best], 3).permute([0, 3, 1, 2])
    }

    #[test]
    fn every_way_gives_the_published_values_and_gradients() {
        let sizes = [[2, 20, 7, 10], [1, 3, 1, 5], [2, 4, 1, 1]];
        for (size, gated) in sizes.into_iter().flat_map(|size| [(size, false), (size, true)]) {
            let sides = (size[2], size[3]);
            let (rolls, free) = if gated { doubling(2, sides) } else { (every(1, sides), 0) };
            // None: as published.
            let run = |how: Option<Search>, learns: bool| {
                let x = map(size).set_requires_grad(learns);
                let temperature = Tensor::from(-0.4f32 * size[1] as f32).set_requires_grad(learns);
                let weight = if gated { Weight::Decay { temperature: &temperature, free } } else { Weight::Near };
                let out = match how {
                    Some(how) => with_neighbours(&x, &rolls, weight, how, None).unwrap(),
                    None => published(&x, &rolls, weight),
                };
                if learns {
                    let factors = (Tensor::arange(out.numel() as i64, OPTIONS) * 0.3).cos().view_as(&out);
                    (&out * &factors).sum(Kind::Float).backward();
                }
                (out.detach(), x.grad(), temperature.grad())
            };
            let (expected, gradient, of_temperature) = run(None, true);
            let linked = expected.narrow(1, size[1], size[1]).gt(0.0).sum(Kind::Int64).int64_value(&[]);
            assert_eq!(linked > 0, !rolls.is_empty(), "{size:?}");
            let near = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-5;
            for how in [Search::Fused, Search::Chunked] {
                let (out, grad, own) = run(Some(how), true);
                assert!(near(&out, &expected) && near(&grad, &gradient), "{how:?} {size:?} {gated}");
                let gates = gated && rolls.len() > free;
                assert!(!gates || near(&own, &of_temperature), "{how:?} {size:?}");
                assert!(near(&run(Some(how), false).0, &expected), "{how:?} {size:?} {gated}");
            }
        }
    }

    #[test]
    fn a_trace_holds_what_each_neighbour_counts() {
        let x = map([1, 6, 4, 4]);
        let temperature = Tensor::from(3.0f32);
        let (rolls, free) = doubling(1, (4, 4));
        for how in [Search::Fused, Search::Chunked] {
            let mut trace = GraphTrace::default();
            let weight = Weight::Decay { temperature: &temperature, free };
            let _ = with_neighbours(&x, &rolls, weight, how, Some(&mut trace)).unwrap();
            let block = &trace.blocks[0];
            // Node 5, row 1 and column 1: from above, from the left, then from two above and two to the left.
            let edges = Vec::<i64>::try_from(block.edges.get(0).get(5)).unwrap();
            assert_eq!(edges, [1, 4, 13, 7]);
            let apart = |a: i64, b: i64| {
                let rows = x.flatten(2, 3).get(0);
                (rows.select(1, a) - rows.select(1, b)).abs().sum(Kind::Float).double_value(&[])
            };
            let (distances, weights) = (block.distances.as_ref().unwrap(), block.weights.as_ref().unwrap());
            for (i, &other) in edges.iter().enumerate() {
                let distance = apart(5, other);
                let expected = if i < 2 { 1.0 } else { (-distance / 3.0).exp() };
                assert!((distances.double_value(&[0, 5, i as i64]) - distance).abs() < 1e-5, "{how:?}");
                assert!((weights.double_value(&[0, 5, i as i64]) - expected).abs() < 1e-6, "{how:?}");
            }
        }
    }
}
