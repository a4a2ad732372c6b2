//! Neighbours and their aggregation as nodes of a graph, some rows of nodes at a time: neither all distances nor all
//! neighbours' features are ever in memory.
//!
//! `TopK` orders equal values by index, as [`super::knn`] does.

use super::grapher::GrapherSpec;
use super::relative_onnx::factors;
use crate::onnx::{Dim, Graph, Kind, Value};

/// Similarities that are in memory at a time, of graphs for one size: 16 MB.
const TILE: i64 = 4 << 20;
/// Nodes that are looked at at a time, of graphs for any size.
const ROWS: i64 = 1024;

/// The edges of a Grapher, before they are there.
#[derive(Debug)]
pub struct OnnxEdges {
    /// Channels of the nodes.
    pub channels: i64,
    nodes: Nodes,
    /// Number of candidates, int64 `[1]`, where the batch may be larger than one image.
    candidates: Option<Value>,
    /// Numbers of nodes and of candidates; `None`: any.
    counts: Option<[i64; 2]>,
}

/// What is known of each node: `[B, N, …]`.
#[derive(Debug)]
enum Nodes {
    /// Features to search with, and how.
    Searched { features: Value, search: Search },
    /// Its edges.
    Given { edges: Value },
}

/// How the nearest candidates of some nodes are found.
#[derive(Debug)]
struct Search {
    /// Candidates to search among, `[B, C', M]`.
    candidates: Value,
    /// How many of the most similar, int64 `[1]`, and which of them: every `step`-th.
    count: Value,
    step: Option<Value>,
}

/// (height, width) of the nodes' grid and of the candidates'.
type Grids = [(i64, i64); 2];

fn counts(grids: Option<Grids>) -> Option<[i64; 2]> {
    grids.map(|grids| grids.map(|(height, width)| height * width))
}

/// `[B, C, H, W]` to `[B, H·W, C]`.
fn rows(graph: &mut Graph, maps: &Value, channels: i64) -> Value {
    let flat = graph.reshape(maps, &[0, channels, -1]);
    graph.transpose(&flat, &[0, 2, 1])
}

/// Rows of norm one: times one over their norm, as the search's kernel does it. A division rounds otherwise, and more
/// neighbours that are nearly as near change places.
fn unit(graph: &mut Graph, rows: &Value) -> Value {
    let norm = graph.reduce("ReduceL2", rows, &[2], true);
    let norm = graph.at_least(&norm, 1e-12);
    let scale = graph.unary("Reciprocal", &norm);
    graph.mul(rows, &scale)
}

impl OnnxEdges {
    /// The edges that [`super::knn::Neighbours::find`] finds, from nodes and candidates `[B, C, …, …]`.
    pub fn search(graph: &mut Graph, spec: &GrapherSpec, ends: [&Value; 2], grids: Option<Grids>) -> Self {
        let (channels, neighbours) = (spec.channels, &spec.neighbours);
        let [nodes, candidates] = ends.map(|maps| {
            let rows = rows(graph, maps, channels);
            unit(graph, &rows)
        });
        let number = graph.shape(&candidates, 1, 2);
        let (mut features, mut others) = (nodes, candidates);
        if let Some(position) = &spec.relative {
            // Similarity and half the relative position are one product.
            let [u, v] = factors(graph, position, ends, grids);
            let u = graph.times(&u, 0.5);
            [features, others] = [(features, u), (others, v)].map(|(rows, factor)| {
                let (batch, shape) = (graph.shape(&rows, 0, 1), graph.shape(&factor, 0, 2));
                let shape = graph.concat(&[&batch, &shape], 0);
                let factor = graph.op("Expand", &[&factor, &shape], &[]);
                graph.concat(&[&rows, &factor], 2)
            });
        }
        let others = graph.transpose(&others, &[0, 2, 1]);
        let (count, step) = match counts(grids) {
            Some([_, candidates]) => {
                let (k, dilation) = neighbours.among(candidates as usize);
                let (k, dilation) = (k as i64, dilation as i64);
                (graph.ints(&[(k - 1) * dilation + 1]), (dilation > 1).then(|| graph.ints(&[dilation])))
            }
            None => {
                let k = graph.at_most(&number, neighbours.k as f64);
                let dilation = graph.div(&number, &k);
                let dilation = graph.at_most(&dilation, neighbours.dilation as f64);
                let before = graph.plus(&k, -1.0);
                let before = graph.mul(&before, &dilation);
                (graph.plus(&before, 1.0), (neighbours.dilation > 1).then_some(dilation))
            }
        };
        let search = Search { candidates: others, count, step };
        let nodes = Nodes::Searched { features, search };
        Self { channels, nodes, candidates: Self::stacked(graph, number), counts: counts(grids) }
    }

    /// Edges that an input gives, int64 `[B, N, k]`, instead of those that a search would find.
    pub fn given(graph: &mut Graph, spec: &GrapherSpec, block: usize, grids: Option<Grids>) -> Self {
        let (channels, counts) = (spec.channels, counts(grids));
        let batch = graph.options().batch.map_or(Dim::Any("batch"), Dim::Fixed);
        let nodes = counts.map_or(Dim::Any("nodes"), |[nodes, _]| Dim::Fixed(nodes));
        let k = |[_, candidates]: [i64; 2]| Dim::Fixed(spec.neighbours.among(candidates as usize).0 as i64);
        let k = counts.map_or(Dim::Any("neighbours"), k);
        let edges = graph.input(&format!("edges.{block}"), Kind::Int64, &[batch, nodes, k]);
        let number = graph.ints(&[counts.map_or(0, |[_, candidates]| candidates)]);
        Self { channels, nodes: Nodes::Given { edges }, candidates: Self::stacked(graph, number), counts }
    }

    /// Candidates of an image, where those of several are stacked.
    fn stacked(graph: &Graph, number: Value) -> Option<Value> {
        (graph.options().batch != Some(1)).then_some(number)
    }

    /// `[B, C, …, …]` to `[B, N, C]`, whatever C is.
    pub fn rows(&self, graph: &mut Graph, maps: &Value) -> Value {
        let shape = graph.shape(maps, 0, 2);
        let rest = graph.ints(&[-1]);
        let flat = graph.reshape_to(maps, &[&shape, &rest]);
        graph.transpose(&flat, &[0, 2, 1])
    }

    /// The inverse, on the grid of `like`.
    pub fn maps(&self, graph: &mut Graph, rows: &Value, like: &Value) -> Value {
        let flat = graph.transpose(rows, &[0, 2, 1]);
        let (shape, map) = (graph.shape(&flat, 0, 2), graph.shape(like, 2, 4));
        graph.reshape_to(&flat, &[&shape, &map])
    }

    /// `ReduceMax`, `ReduceMin`, `ReduceSum` of each node's neighbours, channel by channel: `[B, N, F]` each. `table`
    /// `[B, M, F]` is of the candidates.
    pub fn aggregate<const R: usize>(&self, graph: &mut Graph, table: &Value, how: [&str; R]) -> [Value; R] {
        let width = graph.shape(table, 2, 3);
        let rest = graph.ints(&[-1]);
        let flat = graph.reshape_to(table, &[&rest, &width]);
        let first = self.candidates.as_ref().map(|number| {
            let batch = graph.shape(table, 0, 1);
            let image = graph.range(&batch);
            let first = graph.mul(&image, number);
            graph.reshape(&first, &[-1, 1, 1])
        });
        let tile = |graph: &mut Graph, rows: &Value| {
            let edges = match &self.nodes {
                Nodes::Given { .. } => rows.clone(),
                Nodes::Searched { search, .. } => search.nearest(graph, rows),
            };
            let edges = first.as_ref().map_or(edges.clone(), |first| graph.add(&edges, first));
            let near = graph.gather(&flat, &edges, 0);
            how.map(|how| graph.reduce(how, &near, &[2], false))
        };
        let (Nodes::Searched { features: nodes, .. } | Nodes::Given { edges: nodes }) = &self.nodes;
        match self.counts {
            Some(counts) => unrolled(graph, nodes, counts, tile),
            None => looped(graph, nodes, table.kind(), tile),
        }
    }
}

impl Search {
    /// int64 `[B, R, k]`: the nearest candidates of nodes `[B, R, C']`, nearest first.
    fn nearest(&self, graph: &mut Graph, nodes: &Value) -> Value {
        let similarity = graph.matmul(nodes, &self.candidates);
        let (_, found) = graph.top_k(&similarity, &self.count);
        match &self.step {
            Some(step) => graph.first(&found, 2, &self.count, Some(step)),
            None => found,
        }
    }
}

/// Tile by tile, each with nodes of its own in the graph.
fn unrolled<const R: usize>(
    graph: &mut Graph,
    nodes: &Value,
    [count, candidates]: [i64; 2],
    tile: impl Fn(&mut Graph, &Value) -> [Value; R],
) -> [Value; R] {
    let images = graph.options().batch.unwrap_or(1);
    let most = (TILE / (images * candidates)).clamp(1, count);
    let tiles = (count + most - 1) / most;
    if tiles == 1 {
        return tile(graph, nodes);
    }
    let rows = (count + tiles - 1) / tiles;
    let mut found: [Vec<Value>; R] = std::array::from_fn(|_| Vec::new());
    for start in (0..count).step_by(rows as usize) {
        let part = graph.slice(nodes, 1, start, (start + rows).min(count));
        found.iter_mut().zip(tile(graph, &part)).for_each(|(found, part)| found.push(part));
    }
    found.map(|found| graph.concat(&found.iter().collect::<Vec<_>>(), 1))
}

/// Tile by tile, in a loop: for any number of nodes.
fn looped<const R: usize>(
    graph: &mut Graph,
    nodes: &Value,
    kind: Kind,
    tile: impl Fn(&mut Graph, &Value) -> [Value; R],
) -> [Value; R] {
    let count = graph.shape(nodes, 1, 2);
    let tiles = graph.plus(&count, (ROWS - 1) as f64);
    let rows = graph.ints(&[ROWS]);
    let tiles = graph.div(&tiles, &rows);
    let all = graph.mul(&tiles, &rows);
    let more = graph.sub(&all, &count);
    let (none, one) = (graph.ints(&[0, 0, 0, 0]), graph.ints(&[0]));
    let pads = graph.concat(&[&none, &more, &one], 0);
    let padded = graph.pad(nodes, &pads, 0.0);
    let (batch, width) = (graph.shape(nodes, 0, 1), graph.shape(nodes, 2, 3));
    let slices = graph.reshape_to(&padded, &[&batch, &tiles, &rows, &width]);
    let body = graph.body(&[nodes.kind()], |graph, slice| tile(graph, &slice[0]).to_vec());
    let found = graph.scan(&slices, body, &[kind; R]);
    std::array::from_fn(|i| {
        let (rest, width) = (graph.ints(&[-1]), graph.shape(&found[i], 3, 4));
        let rows = graph.reshape_to(&found[i], &[&batch, &rest, &width]);
        graph.first(&rows, 1, &count, None)
    })
}

#[cfg(all(test, feature = "onnx"))]
mod tests {
    use super::*;
    use crate::config::{GraphConvKind, Search as How};
    use crate::graph::knn::Neighbours;
    use crate::onnx::{run_for_test, Options};
    use tch::{Device, Kind as TorchKind, Tensor};

    /// With ONNX Runtime's library (`ORT_DYLIB_PATH`).
    #[test]
    fn of_equally_near_candidates_the_first_are_taken_as_in_the_search() {
        if std::env::var_os("ORT_DYLIB_PATH").is_none() {
            return;
        }
        let (height, width, channels) = (9, 13, 4);
        let count = height * width;
        // Each node is one of four unit vectors: a similarity is 0 or 1, exactly.
        let kinds = (Tensor::arange(count, (TorchKind::Int64, Device::Cpu)) * 7).remainder(11).remainder(channels);
        let nodes = kinds.one_hot(channels).to_kind(TorchKind::Float).transpose(0, 1).contiguous();
        let nodes = nodes.view([1, channels, height, width]);
        for dilation in [1, 3] {
            let neighbours = Neighbours { k: 5, dilation, search: How::Fused };
            let edges = neighbours.find(&nodes, &nodes, None).unwrap();
            let spec = GrapherSpec {
                channels,
                conv: GraphConvKind::Mr,
                neighbours,
                stochastic: 0.0,
                reduce: 1,
                heads: 1,
                fc: false,
                relative: None,
                norm_eps: 1e-5,
            };
            for size in [None, Some((height, width))] {
                let mut graph = Graph::new(Options { size, batch: Some(1), ..Options::default() });
                let dims = [1, channels, height, width].map(Dim::Fixed);
                let input = graph.input("nodes", Kind::Float, &dims);
                let found = OnnxEdges::search(&mut graph, &spec, [&input, &input], size.map(|size| [size, size]));
                // Each candidate's feature is its index: sums and extremes tell which were taken.
                let table = Tensor::arange(count, (TorchKind::Float, Device::Cpu)).view([1, count, 1]);
                let table = graph.constant(&table, Kind::Float);
                let how = ["ReduceSum", "ReduceMax", "ReduceMin"];
                let values = found.aggregate(&mut graph, &table, how);
                let dims = || vec![Dim::Fixed(1), Dim::Fixed(count), Dim::Fixed(1)];
                let outputs: Vec<_> = how.into_iter().zip(&values).map(|(name, value)| (name, value, dims())).collect();
                let found = run_for_test(graph.finish("ties", &outputs), ("nodes", &nodes), &how);
                let wanted = [
                    edges.sum_dim_intlist([2i64].as_slice(), false, TorchKind::Float),
                    edges.amax([2], false),
                    edges.amin([2], false),
                ];
                for (found, wanted) in found.iter().zip(wanted) {
                    let wanted = Vec::<f32>::try_from(wanted.to_kind(TorchKind::Float).flatten(0, -1)).unwrap();
                    assert_eq!(found, &wanted, "{dilation} {size:?}");
                }
            }
        }
    }
}
