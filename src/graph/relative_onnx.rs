//! The relative position as nodes of a graph: constants for images of one size, else made in the graph as
//! [`super::relative`] makes them.

use tch::Tensor;

use super::relative::RelativePosition;
use crate::config::RelativeKind;
use crate::onnx::{Graph, Kind, Value};

/// The factors for nodes and candidates `[B, C, …, …]`: `[N, rank]` and `[M, rank]`. `grids`: their (height, width), if
/// these are known.
pub fn factors(
    graph: &mut Graph,
    position: &RelativePosition,
    ends: [&Value; 2],
    grids: Option<[(i64, i64); 2]>,
) -> [Value; 2] {
    if let Some(grids) = grids {
        let [nodes, candidates] = grids.map(|(height, width)| (height as usize, width as usize));
        let factors = position.factors(nodes, candidates);
        return [&factors.u, &factors.v].map(|rows| graph.floats(rows, &[-1, factors.rank as i64]));
    }
    match position.kind {
        RelativeKind::Published => {
            let (nodes, candidates, rank) = position.native_factors();
            [(nodes, ends[0]), (candidates, ends[1])].map(|(native, maps)| {
                let map = graph.shape(maps, 2, 4);
                let count = graph.reduce("ReduceProd", &map, &[0], true);
                let native = Tensor::from_slice(&native).view([-1, rank as i64]);
                resized(graph, &native, &count)
            })
        }
        RelativeKind::Grid => of_grid(graph, position, ends),
    }
}

/// Rows resized bicubically to `count`, int64 `[1]`, with the roundings of PyTorch: where a row comes from is float32.
fn resized(graph: &mut Graph, native: &Tensor, count: &Value) -> Value {
    const A: f64 = -0.75;
    let from = native.size()[0];
    let native = graph.constant(native, Kind::Double);
    let place = graph.range(count);
    let place = graph.cast(&place, Kind::Float);
    let place = graph.plus(&place, 0.5);
    let rows = graph.floats(&[from as f32], &[1]);
    let to = graph.cast(count, Kind::Float);
    let scale = graph.div(&rows, &to);
    let [place, scale] = [place, scale].map(|value| graph.cast(&value, Kind::Double));
    let source = graph.mul(&place, &scale);
    let source = graph.plus(&source, -0.5);
    let source = graph.cast(&source, Kind::Float);
    let floor = graph.unary("Floor", &source);
    let t = graph.sub(&source, &floor);
    let t = graph.cast(&t, Kind::Double);
    let first = graph.cast(&floor, Kind::Int64);
    // Polynomials in the distance, highest power first.
    let inner = [A + 2.0, -(A + 3.0), 0.0, 1.0];
    let outer = [A, -5.0 * A, 8.0 * A, -4.0 * A];
    let mut sum: Option<Value> = None;
    for (offset, powers) in [(-1, outer), (0, inner), (1, inner), (2, outer)] {
        let away = match offset {
            -1 | 0 => graph.plus(&t, f64::from(-offset)),
            _ => {
                let minus = graph.unary("Neg", &t);
                graph.plus(&minus, f64::from(offset))
            }
        };
        let weight = polynomial(graph, &away, &powers);
        let weight = graph.unsqueeze(&weight, &[1]);
        let at = graph.plus(&first, f64::from(offset));
        let at = graph.at_least(&at, 0.0);
        let at = graph.at_most(&at, (from - 1) as f64);
        let row = graph.gather(&native, &at, 0);
        let part = graph.mul(&row, &weight);
        sum = Some(sum.map_or(part.clone(), |sum| graph.add(&sum, &part)));
    }
    let sum = sum.unwrap_or(native);
    graph.cast(&sum, Kind::Float)
}

/// Horner's scheme.
fn polynomial(graph: &mut Graph, x: &Value, [a, b, c, d]: &[f64; 4]) -> Value {
    let value = graph.times(x, *a);
    let value = graph.plus(&value, *b);
    let value = graph.mul(&value, x);
    let value = graph.plus(&value, *c);
    let value = graph.mul(&value, x);
    graph.plus(&value, *d)
}

/// The factors of the real grid: sines and cosines of each location, whose products are the cosines that
/// [`RelativePosition`] sums up.
fn of_grid(graph: &mut Graph, position: &RelativePosition, ends: [&Value; 2]) -> [Value; 2] {
    let frequencies = position.frequencies();
    let count = frequencies.len() as i64;
    let weight = (1.0 / (2.0 * count as f64)).sqrt();
    let frequencies = graph.constant(&Tensor::from_slice(&frequencies), Kind::Double);
    let nodes = graph.shape(ends[0], 2, 4);
    [(ends[0], 1.0), (ends[1], position.reduce as f64)].map(|(maps, pool)| {
        let map = graph.shape(maps, 2, 4);
        let [rows, columns] = [0, 1].map(|axis| {
            let (count, nodes) = (graph.slice(&map, 0, axis, axis + 1), graph.slice(&nodes, 0, axis, axis + 1));
            let place = graph.range(&count);
            let [place, nodes] = [place, nodes].map(|value| graph.cast(&value, Kind::Double));
            let centre = graph.plus(&place, 0.5);
            let centre = graph.times(&centre, pool * position.grid as f64);
            let at = graph.div(&centre, &nodes);
            let at = graph.plus(&at, -0.5);
            let at = graph.unsqueeze(&at, &[1]);
            let angles = graph.mul(&at, &frequencies);
            let (sines, cosines) = (graph.unary("Sin", &angles), graph.unary("Cos", &angles));
            let factor = graph.concat(&[&sines, &cosines], 1);
            let factor = graph.times(&factor, weight);
            graph.cast(&factor, Kind::Float)
        });
        // [H, 1, F] and [1, W, F] to [H, W, 2F].
        let size = graph.ints(&[2 * count]);
        let whole = graph.concat(&[&map, &size], 0);
        let (rows, columns) = (graph.unsqueeze(&rows, &[1]), graph.unsqueeze(&columns, &[0]));
        let parts = [columns, rows].map(|part| graph.op("Expand", &[&part, &whole], &[]));
        let factor = graph.concat(&[&parts[0], &parts[1]], 2);
        graph.reshape(&factor, &[-1, 4 * count])
    })
}
