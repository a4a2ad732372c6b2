//! Axial graphs as nodes of a graph. A map is rolled along a side by a slice of the map with itself behind it.
//!
//! How many rolls there are depends on the map. For images of one size each has nodes of its own; for any size they are
//! a loop (`Scan`) along each side. It begins with a roll by 0, which brings nothing: ONNX Runtime refuses to loop not
//! even once.

use tch::Tensor;

use super::axial::{doubling, every, scale, Roll};
use crate::onnx::{Dim, Graph, Kind, Value};

/// AdaptViG's rolls by 2, 4, 8, … end at this power: sides have fewer than 2³¹ nodes.
const POWERS: u32 = 30;

/// GreedyViG's graph, as [`super::axial::with_neighbours`] gives it: the channels of each node, and what they take from
/// its neighbours every `step` nodes along both sides, `[B, 2C, H, W]`, of nodes `[B, C, H, W]`. `map`: (height,
/// width), if known. `block` counts the blocks with graphs.
pub fn near(graph: &mut Graph, nodes: &Value, step: i64, map: Option<(i64, i64)>, block: usize) -> Value {
    let (sides, best) = (Side::both(graph, nodes), nothing(graph, nodes));
    let best = match map {
        Some(map) => {
            let rolls = every(step, map);
            let gates = match graph.options().neighbours_as_inputs {
                true => given(graph, block, rolls.len() as i64, map),
                false => vec![Gate::Below(limit(graph, nodes)); rolls.len()],
            };
            one_by_one(graph, &sides, &rolls, gates.iter(), best)
        }
        None => {
            let gate = Gate::Below(limit(graph, nodes));
            sides.iter().fold(best, |best, side| {
                // The multiples of the step that are below the side.
                let below = graph.plus(&side.length, -1.0);
                let step = graph.ints(&[step]);
                let last = graph.div(&below, &step);
                let count = graph.plus(&last, 1.0);
                let number = graph.range(&count);
                let by = graph.mul(&number, &step);
                side.largest_of(graph, &by, &gate, &best)
            })
        }
    };
    graph.concat(&[nodes, &best], 1)
}

/// The same for AdaptViG: neighbours at `step` nodes count fully, those at 2, 4, 8, … by a gate with this temperature.
pub fn gated(graph: &mut Graph, nodes: &Value, step: i64, temperature: &Tensor, map: Option<(i64, i64)>) -> Value {
    let gate = Gate::Decay(graph.constant(&scale(temperature), nodes.kind()));
    let (sides, best) = (Side::both(graph, nodes), nothing(graph, nodes));
    let best = match map {
        Some(map) => {
            let (rolls, free) = doubling(step, map);
            let gates = (0..rolls.len()).map(|i| if i < free { &Gate::Open } else { &gate });
            one_by_one(graph, &sides, &rolls, gates, best)
        }
        None => sides.iter().fold(best, |best, side| {
            let step = graph.ints(&[step]);
            let fits = graph.is("Less", &step, &side.length);
            let by = graph.or_number(&fits, &step, 0.0);
            let best = side.larger(graph, &by, &Gate::Open, &best);
            let powers: Vec<i64> = [0].into_iter().chain((1..=POWERS).map(|power| 1 << power)).collect();
            let powers = graph.ints(&powers);
            let fit = graph.is("Less", &powers, &side.length);
            let fit = graph.cast(&fit, Kind::Int64);
            let count = graph.reduce("ReduceSum", &fit, &[0], true);
            let by = graph.first(&powers, 0, &count, None);
            side.largest_of(graph, &by, &gate, &best)
        }),
    };
    graph.concat(&[nodes, &best], 1)
}

/// How much a neighbour counts.
#[derive(Clone)]
enum Gate {
    /// Fully.
    Open,
    /// By these factors, `[B, 1, H, W]`.
    Given(Value),
    /// Fully below this distance, else not at all.
    Below(Value),
    /// By exp(−distance / temperature).
    Decay(Value),
}

impl Gate {
    /// Differences `[B, C, H, W]` from neighbours, weighed.
    fn weigh(&self, graph: &mut Graph, apart: &Value) -> Value {
        match self {
            Self::Open => apart.clone(),
            Self::Given(factors) => graph.mul(apart, factors),
            Self::Below(limit) => {
                let distance = l1(graph, apart);
                let near = graph.is("Less", &distance, limit);
                graph.or_number(&near, apart, 0.0)
            }
            Self::Decay(temperature) => {
                let distance = l1(graph, apart);
                let distance = graph.unary("Neg", &distance);
                let weight = graph.div(&distance, temperature);
                let weight = graph.unary("Exp", &weight);
                graph.mul(apart, &weight)
            }
        }
    }
}

/// What an input `weights.{block}` `[B, N, rolls]` says that neighbours count.
fn given(graph: &mut Graph, block: usize, rolls: i64, (height, width): (i64, i64)) -> Vec<Gate> {
    let batch = graph.options().batch.map_or(Dim::Any("batch"), Dim::Fixed);
    let dims = [batch, Dim::Fixed(height * width), Dim::Fixed(rolls)];
    let weights = graph.input(&format!("weights.{block}"), Kind::Float, &dims);
    let weights = graph.transpose(&weights, &[0, 2, 1]);
    let weights = graph.reshape(&weights, &[0, rolls, height, width]);
    (0..rolls).map(|roll| Gate::Given(graph.slice(&weights, 1, roll, roll + 1))).collect()
}

/// A side that a map `[B, C, H, W]` is rolled along.
struct Side {
    map: Value,
    /// Its dimension.
    axis: i64,
    /// Nodes, int64 `[1]`.
    length: Value,
    /// The map, and behind it the map again.
    twice: Value,
}

impl Side {
    /// Height and width.
    fn both(graph: &mut Graph, map: &Value) -> [Self; 2] {
        [2, 3].map(|axis| Self::of(graph, map, axis))
    }

    fn of(graph: &mut Graph, map: &Value, axis: i64) -> Self {
        let length = graph.shape(map, axis, axis + 1);
        Self { map: map.clone(), axis, length, twice: graph.concat(&[map, map], axis) }
    }

    /// The map, moved by so many nodes, int64 `[1]`, from 0 to its length.
    fn rolled(&self, graph: &mut Graph, by: &Value) -> Value {
        let from = graph.sub(&self.length, by);
        let to = graph.add(&from, &self.length);
        let axis = graph.ints(&[self.axis]);
        graph.op("Slice", &[&self.twice, &from, &to, &axis], &[])
    }

    /// The larger of `best` and what the neighbours at one roll bring.
    fn larger(&self, graph: &mut Graph, by: &Value, gate: &Gate, best: &Value) -> Value {
        let there = self.rolled(graph, by);
        let apart = graph.sub(&there, &self.map);
        let brought = gate.weigh(graph, &apart);
        graph.max(best, &brought)
    }

    /// The largest of `best` and what those at each of these rolls bring, int64 `[n]`.
    fn largest_of(&self, graph: &mut Graph, by: &Value, gate: &Gate, best: &Value) -> Value {
        graph.fold(best, by, |graph, best, by| {
            let by = graph.unsqueeze(by, &[0]);
            self.larger(graph, &by, gate, best)
        })
    }
}

/// The same for known rolls, each with its gate.
fn one_by_one<'a>(
    graph: &mut Graph,
    [height, width]: &[Side; 2],
    rolls: &[Roll],
    gates: impl Iterator<Item = &'a Gate>,
    best: Value,
) -> Value {
    rolls.iter().zip(gates).fold(best, |best, (&(down, right), gate)| {
        let (side, by) = if down > 0 { (height, down) } else { (width, right) };
        let by = graph.ints(&[by]);
        side.larger(graph, &by, gate, &best)
    })
}

/// No difference in any channel.
fn nothing(graph: &mut Graph, nodes: &Value) -> Value {
    let shape = graph.shape(nodes, 0, 4);
    graph.full_of(0.0, nodes.kind(), &shape)
}

/// `[B, C, H, W]` to `[B, 1, H, W]`.
fn l1(graph: &mut Graph, apart: &Value) -> Value {
    let apart = graph.unary("Abs", apart);
    graph.reduce("ReduceSum", &apart, &[1], true)
}

/// The distance that GreedyViG's neighbours must be below, `[B, 1, 1, 1]` (see [`super::axial::Weight::Near`]).
fn limit(graph: &mut Graph, nodes: &Value) -> Value {
    let far = [2, 3].into_iter().fold(nodes.clone(), |map, axis| {
        let side = Side::of(graph, &map, axis);
        let more = graph.plus(&side.length, 1.0);
        let two = graph.ints(&[2]);
        let half = graph.div(&more, &two);
        side.rolled(graph, &half)
    });
    let apart = graph.sub(&far, nodes);
    let distance = l1(graph, &apart);
    // In float64, as libtorch has deviations.
    let distance = graph.cast(&distance, Kind::Double);
    let mean = graph.reduce("ReduceMean", &distance, &[1, 2, 3], true);
    let away = graph.sub(&distance, &mean);
    let squares = graph.mul(&away, &away);
    let sum = graph.reduce("ReduceSum", &squares, &[1, 2, 3], true);
    let map = graph.shape(nodes, 2, 4);
    let count = graph.reduce("ReduceProd", &map, &[0], true);
    let free = graph.plus(&count, -1.0);
    let free = graph.at_least(&free, 1.0);
    let free = graph.cast(&free, Kind::Double);
    let variance = graph.div(&sum, &free);
    let deviation = graph.unary("Sqrt", &variance);
    let [mean, deviation] = [mean, deviation].map(|value| graph.cast(&value, Kind::Float));
    graph.sub(&mean, &deviation)
}

#[cfg(all(test, feature = "onnx"))]
mod tests {
    use super::super::axial::{with_neighbours, Weight};
    use super::*;
    use crate::config::Search;
    use crate::onnx::{run_for_test, Options};
    use tch::{Device, Kind as TorchKind};

    /// With ONNX Runtime's library (`ORT_DYLIB_PATH`).
    #[test]
    fn nodes_take_from_their_neighbours_what_the_kernel_gives_them() {
        if std::env::var_os("ORT_DYLIB_PATH").is_none() {
            return;
        }
        let step = 2;
        let temperature = Tensor::from(-9.0f32);
        for [b, c, h, w] in [[2, 20, 9, 14], [1, 6, 2, 5], [1, 4, 1, 1]] {
            let count = b * c * h * w;
            let nodes = (Tensor::arange(count, (TorchKind::Float, Device::Cpu)) * 12.9898).sin().view([b, c, h, w]);
            for (is_gated, size) in [(false, None), (false, Some((h, w))), (true, None), (true, Some((h, w)))] {
                let (rolls, weight) = if is_gated {
                    let (rolls, free) = doubling(step, (h, w));
                    (rolls, Weight::Decay { temperature: &temperature, free })
                } else {
                    (every(step, (h, w)), Weight::Near)
                };
                let wanted = with_neighbours(&nodes, &rolls, weight, Search::Fused, None).unwrap();
                let linked = wanted.narrow(1, c, c).gt(0.0).sum(TorchKind::Int64).int64_value(&[]);
                assert_eq!(linked > 0, !rolls.is_empty());
                let mut graph = Graph::new(Options { size, batch: Some(b), ..Options::default() });
                let dims = match size {
                    Some(_) => [b, c, h, w].map(Dim::Fixed),
                    None => [Dim::Fixed(b), Dim::Fixed(c), Dim::Any("height"), Dim::Any("width")],
                };
                let input = graph.input("nodes", Kind::Float, &dims);
                let found = match is_gated {
                    true => gated(&mut graph, &input, step, &temperature, size),
                    false => near(&mut graph, &input, step, size, 0),
                };
                let dims = [dims[0], Dim::Fixed(2 * c), dims[2], dims[3]].into();
                let graph = graph.finish("axial", &[("linked", &found, dims)]);
                let found = run_for_test(graph, ("nodes", &nodes), &["linked"]).remove(0);
                let found = Tensor::from_slice(&found).view_as(&wanted);
                let worst = (found - wanted).abs().max().double_value(&[]);
                assert!(worst < 1e-5, "{worst:e} at {h}×{w}, gated: {is_gated}, {size:?}");
            }
        }
    }
}
