//! Axial graphs: the neighbours of a node are those that rolling the map puts in its place (GreedyViG, AdaptViG).
//!
//! Of each channel the largest of weight · (neighbour − node) is taken, and 0 if none is above it. Nothing of the size
//! of a rolled map is made.

use super::{Isa, Work};
use rayon::prelude::*;

/// Channels that are summed side by side.
const LANES: usize = 16;

/// How much a neighbour counts, by its L1 distance from the node.
#[derive(Clone, Copy, Debug)]
pub enum Gate<'a> {
    /// Fully below this distance, of which each map has its own; else not at all.
    Below(&'a [f32]),
    /// By exp(−distance / temperature); neighbours of the first `free` rolls fully.
    Decay {
        /// Distance at which the weight is 1/e.
        temperature: f32,
        /// Rolls without a gate.
        free: usize,
    },
}

impl Gate<'_> {
    #[inline(always)]
    fn weight(&self, map: usize, roll: usize, distance: f32) -> f32 {
        match *self {
            Gate::Below(limits) => f32::from(distance < limits[map]),
            Gate::Decay { free, .. } if roll < free => 1.0,
            Gate::Decay { temperature, .. } => (-distance / temperature).exp(),
        }
    }
}

/// Maps, and the rolls that link their nodes.
#[derive(Clone, Copy, Debug)]
pub struct Rolled<'a> {
    /// Features, `[batch, height, width, channels]`.
    pub values: &'a [f32],
    /// Maps.
    pub batch: usize,
    /// Rows of nodes.
    pub height: usize,
    /// Nodes of a row.
    pub width: usize,
    /// Channels of a node.
    pub channels: usize,
    /// (down, right): by how many nodes the map moves, below its height and width; what leaves it comes back at the
    /// other side.
    pub rolls: &'a [(usize, usize)],
    /// How much they count.
    pub gate: Gate<'a>,
}

/// What the convolution behind an axial graph reads, for inference: every channel of a node, then the largest
/// difference in each.
///
/// `out` is `[batch, height, width, 2 · channels]`.
///
/// # Panics
/// If a slice does not have the stated size, or a roll is as large as the map.
pub fn roll_max(isa: Isa, rolled: Rolled, out: &mut [f32]) {
    rolled.each_row(out, 2 * rolled.channels, |row, out| isa.run(Row { row, out: Out::Beside(out) }));
}

/// For every node and channel, the roll that brings the largest difference, from 1; 0 where none is above 0. Of equal
/// differences the first roll's counts.
///
/// `out` is `[batch, height, width, channels]`.
///
/// # Panics
/// As [`roll_max`].
pub fn arg_roll_max(isa: Isa, rolled: Rolled, out: &mut [i32]) {
    rolled.each_row(out, rolled.channels, |row, out| isa.run(Row { row, out: Out::Rolls(out) }));
}

/// For every node, the L1 distance of each neighbour, as the other two weigh it.
///
/// `out` is `[batch, height, width, rolls]`.
///
/// # Panics
/// As [`roll_max`].
pub fn roll_distances(isa: Isa, rolled: Rolled, out: &mut [f32]) {
    rolled.each_row(out, rolled.rolls.len(), |row, out| isa.run(Row { row, out: Out::Distances(out) }));
}

impl<'a> Rolled<'a> {
    /// Works on every row of nodes, and on what it has of an output with so many values a node.
    fn each_row<T: Send>(self, out: &mut [T], per_node: usize, work: impl Fn(Place<'a>, &mut [T]) + Sync) {
        let Rolled { values, batch, height, width, channels, rolls, gate } = self;
        let nodes = batch * height * width;
        assert_eq!(values.len(), nodes * channels, "values are not [batch, height, width, channels]");
        assert_eq!(out.len(), nodes * per_node, "the output has not {per_node} values for each of {nodes} nodes");
        assert!(rolls.iter().all(|(down, right)| *down < height && *right < width), "a roll is as large as the map");
        assert!(!matches!(gate, Gate::Below(limits) if limits.len() != batch), "each map has its own limit");
        if out.is_empty() {
            return;
        }
        let place = |row: usize| Place { rolled: self, map: row / height, y: row % height };
        out.par_chunks_mut(width * per_node).enumerate().for_each(|(row, out)| work(place(row), out));
    }
}

/// A row of nodes.
struct Place<'a> {
    rolled: Rolled<'a>,
    map: usize,
    y: usize,
}

/// What to write for a row of nodes.
enum Out<'a> {
    /// Nodes and differences, `[width, 2 · channels]`.
    Beside(&'a mut [f32]),
    /// `[width, channels]`.
    Rolls(&'a mut [i32]),
    /// `[width, rolls]`.
    Distances(&'a mut [f32]),
}

/// A row of nodes and its output: the compiler makes vectors of it.
struct Row<'a> {
    row: Place<'a>,
    out: Out<'a>,
}

impl Work for Row<'_> {
    #[inline(always)]
    unsafe fn run(self, _: Isa) {
        let Row { row: Place { rolled, map, y }, mut out } = self;
        let Rolled { values, height, width, channels, rolls, gate, .. } = rolled;
        let row = |y: usize| &values[(map * height + y) * width * channels..][..width * channels];
        let own = row(y);
        // The largest differences so far: in the output, if they go there.
        let mut best = vec![0.0; if matches!(out, Out::Rolls(_)) { width * channels } else { 0 }];
        match &mut out {
            Out::Beside(beside) => {
                for (beside, own) in beside.chunks_exact_mut(2 * channels).zip(own.chunks_exact(channels)) {
                    beside[..channels].copy_from_slice(own);
                    beside[channels..].fill(0.0);
                }
            }
            Out::Rolls(by) => by.fill(0),
            Out::Distances(_) => {}
        }
        for (number, &(down, right)) in rolls.iter().enumerate() {
            let others = row(if y >= down { y - down } else { y + height - down });
            for x in 0..width {
                let at = if x >= right { x - right } else { x + width - right };
                let (node, other) = (&own[x * channels..][..channels], &others[at * channels..][..channels]);
                let apart = distance(node, other);
                if let Out::Distances(distances) = &mut out {
                    distances[x * rolls.len() + number] = apart;
                    continue;
                }
                let weight = gate.weight(map, number, apart);
                if weight == 0.0 {
                    continue;
                }
                let differences = other.iter().zip(node).map(|(other, node)| (other - node) * weight);
                match &mut out {
                    Out::Beside(beside) => {
                        let best = &mut beside[(2 * x + 1) * channels..][..channels];
                        for (best, new) in best.iter_mut().zip(differences) {
                            *best = if new > *best { new } else { *best };
                        }
                    }
                    Out::Rolls(by) => {
                        let found = best[x * channels..].iter_mut().zip(&mut by[x * channels..][..channels]);
                        for ((best, by), new) in found.zip(differences) {
                            let better = new > *best;
                            *best = if better { new } else { *best };
                            *by = if better { number as i32 + 1 } else { *by };
                        }
                    }
                    Out::Distances(_) => {}
                }
            }
        }
    }
}

/// The L1 distance of two nodes.
#[inline(always)]
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_parts, b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_parts.remainder().iter().zip(b_parts.remainder()).map(|(a, b)| (a - b).abs()).sum();
    for (a, b) in a_parts.zip(b_parts) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += (a - b).abs();
        }
    }
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, node by node: the largest difference of each channel and its roll, and all distances.
    fn definition(rolled: &Rolled) -> (Vec<(f32, i32)>, Vec<f32>) {
        let Rolled { values, batch, height, width, channels, rolls, gate } = *rolled;
        let (mut found, mut distances) = (Vec::new(), Vec::new());
        for map in 0..batch {
            let at = |y: usize, x: usize| &values[((map * height + y) * width + x) * channels..][..channels];
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                let mut best = vec![(0.0, 0); channels];
                for (number, (down, right)) in rolls.iter().enumerate() {
                    let (from, column) = ((y + height - down) % height, (x + width - right) % width);
                    let (node, other) = (at(y, x), at(from, column));
                    let apart: f32 = node.iter().zip(other).map(|(a, b)| (a - b).abs()).sum();
                    distances.push(apart);
                    let weight = match gate {
                        Gate::Below(limits) => f32::from(apart < limits[map]),
                        Gate::Decay { free, .. } if number < free => 1.0,
                        Gate::Decay { temperature, .. } => (-apart / temperature).exp(),
                    };
                    for c in 0..channels {
                        let new = weight * (other[c] - node[c]);
                        if new > best[c].0 {
                            best[c] = (new, number as i32 + 1);
                        }
                    }
                }
                found.extend(best);
            }
        }
        (found, distances)
    }

    #[test]
    fn every_set_finds_the_largest_difference_of_the_definition() {
        let rolls = [(0, 2), (1, 0), (4, 0), (0, 5), (3, 1)];
        for (batch, height, width, channels) in [(1, 5, 6, 1), (2, 5, 7, 19), (1, 6, 6, 32)] {
            // Quarters: sums are exact, and no two sets round otherwise.
            let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 24) as f32 / 4.0;
            let values: Vec<f32> = (0..batch * height * width * channels).map(value).collect();
            let limits = vec![21.0 * channels as f32; batch];
            let decay = Gate::Decay { temperature: 8.0 * channels as f32, free: 2 };
            for gate in [Gate::Below(&limits), decay] {
                let rolled = Rolled { values: &values, batch, height, width, channels, rolls: &rolls, gate };
                let (expected, apart) = definition(&rolled);
                let moved = expected.iter().filter(|(best, _)| *best > 0.0).count();
                assert!(moved > expected.len() / 4 && moved < expected.len(), "{moved} of {}", expected.len());
                for isa in Isa::available() {
                    let n = batch * height * width;
                    let (mut beside, mut by) = (vec![-1.0; 2 * n * channels], vec![-1; n * channels]);
                    let mut distances = vec![-1.0; n * rolls.len()];
                    roll_max(isa, rolled, &mut beside);
                    arg_roll_max(isa, rolled, &mut by);
                    roll_distances(isa, rolled, &mut distances);
                    assert_eq!(distances, apart, "{isa:?}");
                    for (o, &(best, roll)) in expected.iter().enumerate() {
                        let (node, c) = (o / channels, o % channels);
                        assert_eq!(beside[2 * node * channels + c], values[o], "{isa:?}");
                        assert_eq!(beside[(2 * node + 1) * channels + c], best, "{isa:?} {gate:?} {o}");
                        assert_eq!(by[o], roll, "{isa:?} {gate:?} {o}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "as large as the map")]
    fn a_roll_that_is_as_large_as_the_map_is_refused() {
        let gate = Gate::Decay { temperature: 1.0, free: 0 };
        let rolled = Rolled { values: &[0.0; 4], batch: 1, height: 2, width: 2, channels: 1, rolls: &[(2, 0)], gate };
        roll_max(Isa::best(), rolled, &mut [0.0; 8]);
    }
}
