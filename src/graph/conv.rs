//! The graph convolutions of ViG's Table 6: what a node makes of itself and its neighbours.
//!
//! Each ends in an update, a 1×1 convolution in groups, batch norm and GELU. EdgeConv and GraphSAGE apply one to every
//! edge, k per node; here that is done without a tensor of that size, with the same numbers:
//!
//! - a convolution is linear, so EdgeConv's W·[x_i, y_j − x_i] is A_i + P_j, with A of the nodes and P of the
//!   candidates alone;
//! - a batch norm scales and shifts each channel, and its statistics over all edges are sums over nodes and candidates;
//! - GELU falls, then rises, so the largest of GELU(v_j) is that of the largest or of the smallest v_j.

use anyhow::{ensure, Result};
use tch::nn::Module;
use tch::{nn, Kind, Tensor};

use super::aggregate::{largest, largest_index, neighbours, popularity, sum, with_max_relative};
use super::near_onnx::OnnxEdges;
use crate::config::{GraphConvKind, Search};
use crate::nn::cost::{Flops, Layer, Size};
use crate::nn::layers::{gelu, ConvBn, ConvSpec};
use crate::nn::precision::without_autocast;
use crate::nn::recompute::{after_gelu, convolution_of, keeps_less};
use crate::onnx::{Convolution, Graph as OnnxGraph, Value};

/// A graph convolution.
#[derive(Debug)]
pub struct GraphConv {
    operator: Operator,
    update: ConvBn,
    how: Search,
    /// Groups of the convolutions.
    heads: i64,
}

#[derive(Debug)]
// There is one per block: a few bytes of it matter less than another indirection.
#[allow(clippy::large_enum_variant)]
enum Operator {
    /// nn([x, max_j (y_j − x)]), channels interleaved: [x₀, m₀, x₁, m₁, …].
    Mr,
    /// max_j nn([x, y_j − x]).
    Edge,
    /// nn((1 + eps)·x + Σ_j y_j); eps is learned, from 0.
    Gin { eps: Tensor },
    /// nn2([x, max_j nn1(y_j)]).
    Sage { message: ConvBn },
}

/// Nodes, candidates and the edges between them.
#[derive(Clone, Copy, Debug)]
pub struct Graph<'a> {
    /// Nodes `[B, C, H, W]`, float32, channels last in memory.
    pub nodes: &'a Tensor,
    /// Candidates `[B, C, h, w]`, channels last in memory.
    pub candidates: &'a Tensor,
    /// int64 `[B, H·W, k]`, indices of the h·w candidates.
    pub edges: &'a Tensor,
}

impl GraphConv {
    /// From `channels` to `output` channels, in `heads` groups. Variables in the published names (`nn.0.weight`, …;
    /// `nn1`, `nn2` and `eps` where there are such) under `path`. `how` says how neighbours are aggregated.
    pub fn new(
        path: &nn::Path,
        kind: GraphConvKind,
        channels: i64,
        output: i64,
        heads: i64,
        eps: f64,
        how: Search,
    ) -> Result<Self> {
        ensure!(
            heads > 0 && channels % heads == 0 && output % heads == 0,
            "model.backbone.heads ({heads}) must divide the channels of every stage, {channels} among them"
        );
        let layer = |name: &str, input, output| {
            ConvBn::at(path / name, ConvSpec { groups: heads, ..ConvSpec::new(input, output, 1) }, eps)
        };
        let (update, operator) = match kind {
            GraphConvKind::Mr => (layer("nn", 2 * channels, output), Operator::Mr),
            GraphConvKind::Edge => (layer("nn", 2 * channels, output), Operator::Edge),
            GraphConvKind::Gin => (layer("nn", channels, output), Operator::Gin { eps: path.zeros("eps", &[1]) }),
            GraphConvKind::Sage => {
                let message = layer("nn1", channels, channels);
                (layer("nn2", 2 * channels, output), Operator::Sage { message })
            }
        };
        Ok(Self { operator, update, how, heads })
    }

    /// `[B, output, H, W]`, channels last in memory; what `next` makes of it, where there is such a layer.
    pub fn forward(&self, graph: Graph, train: bool, next: Option<&ConvBn>) -> Result<Tensor> {
        let update = &self.update;
        let keeps_less = || keeps_less(update, &[graph.nodes, graph.candidates], train);
        if matches!(self.operator, Operator::Mr) && self.how != Search::Dense && keeps_less() {
            let mixed = max_relative(update, graph, self.how)?;
            return Ok(match next {
                Some(next) => next.normalize(&after_gelu(update, next, &mixed, None)?),
                None => gelu(update.normalize(&mixed)),
            });
        }
        let out = match &self.operator {
            Operator::Mr | Operator::Gin { .. } => self.apply(graph, train),
            // What follows has differences of sums over edges and of neighbours, which bfloat16 would lose.
            Operator::Edge | Operator::Sage { .. } => {
                without_autocast(graph.nodes.device(), || self.apply(graph, train))
            }
        }?;
        Ok(next.map_or_else(|| out.shallow_clone(), |next| next.forward(&out, train)))
    }

    fn apply(&self, graph: Graph, train: bool) -> Result<Tensor> {
        let (x, update, how) = (graph.nodes, &self.update, self.how);
        let (b, c, h, w) = x.size4()?;
        match &self.operator {
            Operator::Mr => {
                let mixed = with_max_relative(&rows(x)?, &rows(graph.candidates)?, graph.edges, how)?;
                let mixed = mixed.view([b, h, w, 2 * c]).permute([0, 3, 1, 2]);
                Ok(gelu(update.forward(&mixed, train)))
            }
            Operator::Edge if how == Search::Dense => {
                let k = graph.edges.size()[2];
                let near = neighbours(&rows(graph.candidates)?, graph.edges)?;
                let own = rows(x)?.unsqueeze(2).expand([b, h * w, k, c], false);
                let pairs = Tensor::cat(&[&own, &(near - &own)], 3).permute([0, 3, 1, 2]);
                let out = update.forward(&pairs, train).gelu("none").amax([3], false);
                Ok(maps(&out.transpose(1, 2), h, w))
            }
            Operator::Edge => edge(update, graph, how, train),
            Operator::Gin { eps } => {
                let near = maps(&sum(&rows(graph.candidates)?, graph.edges, how)?, h, w);
                Ok(gelu(update.forward(&((eps + 1.0) * x + near), train)))
            }
            Operator::Sage { message } => {
                let near = if how == Search::Dense {
                    let near = neighbours(&rows(graph.candidates)?, graph.edges)?.permute([0, 3, 1, 2]);
                    message.forward(&near, train).gelu("none").amax([3], false).transpose(1, 2)
                } else {
                    let sent = rows(&message.conv.forward(graph.candidates))?;
                    let norm = if train {
                        let weight = popularity(graph.edges, sent.size()[1], &sent)?;
                        let count = graph.edges.numel() as f64;
                        let flat = sent.flatten(0, 1);
                        let mean = sum_rows(&flat * &weight) / count;
                        let apart = &flat - &mean;
                        let variance = sum_rows(&apart * &apart * &weight) / count;
                        message.batch_affine(&mean, &variance, count)
                    } else {
                        message.affine()
                    };
                    largest(&gelu(norm.apply(&sent)), graph.edges, how)?
                };
                let mixed = Tensor::cat(&[x, &maps(&near, h, w)], 1);
                Ok(gelu(update.forward(&mixed, train)))
            }
        }
    }

    /// [`GraphConv::forward`] in inference as nodes of a graph: `nodes` and `candidates` `[B, C, …, …]`, float32.
    pub fn onnx(&self, graph: &mut OnnxGraph, nodes: &Value, candidates: &Value, edges: &OnnxEdges) -> Value {
        let (c, update) = (edges.channels, &self.update);
        match &self.operator {
            Operator::Mr => {
                let table = edges.rows(graph, candidates);
                let [near] = edges.aggregate(graph, &table, ["ReduceMax"]);
                let near = edges.maps(graph, &near, nodes);
                let near = graph.sub(&near, nodes);
                // Interleaved: [B, C, 2, H, W] to [B, 2C, H, W].
                let pair = [nodes, &near].map(|x| graph.unsqueeze(x, &[2]));
                let mixed = graph.concat(&[&pair[0], &pair[1]], 2);
                let (batch, channels, map) = (graph.shape(nodes, 0, 1), graph.ints(&[2 * c]), graph.shape(nodes, 2, 4));
                let mixed = graph.reshape_to(&mixed, &[&batch, &channels, &map]);
                let mixed = graph.working(&mixed);
                let out = update.onnx(graph, &mixed);
                graph.gelu(&out)
            }
            Operator::Edge => {
                // As `edge`: what all edges of a node share, and what each candidate sends.
                let negative = graph.unary("Neg", nodes);
                let both = graph.concat(&[nodes, &negative], 1);
                let own = graph.convolve(&both, &update.conv.ws, update.conv.bs.as_ref(), self.pointwise());
                let nothing = graph.times(candidates, 0.0);
                let both = graph.concat(&[&nothing, candidates], 1);
                let sent = graph.convolve(&both, &update.conv.ws, None, self.pointwise());
                let (own, table) = (edges.rows(graph, &own), edges.rows(graph, &sent));
                let norm = update.affine();
                let extremes = edges.aggregate(graph, &table, ["ReduceMax", "ReduceMin"]);
                let [high, low] = extremes.map(|extreme| {
                    let sum = graph.add(&own, &extreme);
                    let sum = norm.onnx(graph, &sum);
                    graph.gelu(&sum)
                });
                let out = graph.max(&high, &low);
                edges.maps(graph, &out, nodes)
            }
            Operator::Gin { eps } => {
                let table = edges.rows(graph, candidates);
                let [near] = edges.aggregate(graph, &table, ["ReduceSum"]);
                let near = edges.maps(graph, &near, nodes);
                let eps = graph.constant(&(eps + 1.0), nodes.kind());
                let own = graph.mul(nodes, &eps);
                let sum = graph.add(&own, &near);
                let sum = graph.working(&sum);
                let out = update.onnx(graph, &sum);
                graph.gelu(&out)
            }
            Operator::Sage { message } => {
                let sent = message.onnx(graph, candidates);
                let sent = graph.gelu(&sent);
                let table = edges.rows(graph, &sent);
                let [near] = edges.aggregate(graph, &table, ["ReduceMax"]);
                let near = edges.maps(graph, &near, nodes);
                let mixed = graph.concat(&[nodes, &near], 1);
                let out = update.onnx(graph, &mixed);
                graph.gelu(&out)
            }
        }
    }

    /// How a 1×1 convolution of `[x, y − x]` moves.
    fn pointwise(&self) -> Convolution {
        Convolution { stride: 1, padding: Some([0; 2]), groups: self.heads }
    }

    /// Takes the weights out of training.
    pub fn freeze(&self) {
        self.update.freeze();
        match &self.operator {
            Operator::Mr | Operator::Edge => {}
            Operator::Gin { eps } => drop(eps.set_requires_grad(false)),
            Operator::Sage { message } => message.freeze(),
        }
    }

    /// Reports its layers for nodes on a grid of `size` with `k` neighbours each: as the paper counts, once per edge
    /// where a layer belongs to edges.
    pub fn flops(&self, size: Size, k: usize, visit: &mut dyn FnMut(Layer)) {
        let mut on_edges = |layer: &ConvBn| {
            layer.flops(size, &mut |layer| {
                visit(match layer {
                    Layer::Weights { weights, locations } => {
                        Layer::Weights { weights, locations: locations * k as u64 }
                    }
                    other => other,
                });
            });
        };
        match &self.operator {
            Operator::Edge => return on_edges(&self.update),
            Operator::Sage { message } => on_edges(message),
            Operator::Mr | Operator::Gin { .. } => {}
        }
        self.update.flops(size, visit);
    }
}

/// The update's convolution of nodes beside their max-relative features, which are not kept but gathered again for its
/// gradient.
fn max_relative(update: &ConvBn, graph: Graph, how: Search) -> Result<Tensor> {
    let (b, c, h, w) = graph.nodes.size4()?;
    let (_, _, ch, cw) = graph.candidates.size4()?;
    let (x, y) = (rows(graph.nodes)?.detach(), rows(graph.candidates)?.detach());
    let edges = graph.edges.shallow_clone();
    let on_grid = move |mixed: Tensor| mixed.view([b, h, w, 2 * c]).permute([0, 3, 1, 2]);
    let mixed = on_grid(with_max_relative(&x, &y, &edges, how)?);
    convolution_of(update, mixed, &[graph.nodes, graph.candidates], move || {
        let index = largest_index(&y, &edges, how)?;
        let relative = y.f_gather(1, &index, false)? - &x;
        let mixed = on_grid(Tensor::stack(&[&x, &relative], -1));
        let gradients = move |gradient: Tensor| {
            let gradient = rows(&gradient)?.view([b, h * w, c, 2]);
            let (own, relative) = (gradient.select(3, 0), gradient.select(3, 1));
            let to_candidates = y.zeros_like().f_scatter_add_(1, &index, &relative)?;
            Ok(vec![Some(maps(&(own - relative), h, w)), Some(maps(&to_candidates, ch, cw))])
        };
        Ok((mixed, gradients))
    })
}

/// EdgeConv by sums, maxima and minima.
fn edge(update: &ConvBn, graph: Graph, how: Search, train: bool) -> Result<Tensor> {
    let (x, y) = (graph.nodes, graph.candidates);
    let (_, _, h, w) = x.size4()?;
    let own = rows(&update.conv.forward(&Tensor::cat(&[x, &x.neg()], 1)))?;
    // The candidates' part has no bias: A has it.
    let sent = {
        let both = Tensor::cat(&[&y.zeros_like(), y], 1);
        let groups = 2 * x.size()[1] / update.conv.ws.size()[1];
        rows(&both.f_conv2d(&update.conv.ws, None::<Tensor>, [1], [0], [1], groups)?)?
    };
    let norm = if train {
        // v = A_i + P_j over all edges: mean, then variance of the centred parts, which does not cancel.
        let (b, n, f) = own.size3()?;
        let m = sent.size()[1];
        let k = graph.edges.size()[2] as f64;
        let count = graph.edges.numel() as f64;
        let total = |t: Tensor| sum_rows(t) / count;
        let weight = popularity(graph.edges, m, &sent)?;
        let (a, p) = (own.flatten(0, 1), sent.flatten(0, 1));
        let (mean_a, mean_p) = (total(&a * k), total(&p * &weight));
        let (a, p) = (a - &mean_a, p - &mean_p);
        let near = sum(&p.view([b, m, f]), graph.edges, how)?.view([b * n, f]);
        let variance = total(&a * (&a * k + near * 2.0)) + total(&p * &p * weight);
        update.batch_affine(&(mean_a + mean_p), &variance, count)
    } else {
        update.affine()
    };
    let at = |extreme: Tensor| gelu(norm.apply(&(&own + extreme)));
    let high = at(largest(&sent, graph.edges, how)?);
    let low = at(largest(&sent.neg(), graph.edges, how)?.neg());
    Ok(maps(&high.maximum(&low), h, w))
}

/// `[N, C]` to `[C]`.
fn sum_rows(t: Tensor) -> Tensor {
    t.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>)
}

/// `[B, C, H, W]` to `[B, H·W, C]`: a view where the map is channels-last.
pub(super) fn rows(maps: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = maps.size4()?;
    Ok(maps.permute([0, 2, 3, 1]).reshape([b, h * w, c]))
}

/// The inverse of [`rows`]: channels-last.
fn maps(rows: &Tensor, h: i64, w: i64) -> Tensor {
    rows.contiguous().unflatten(1, [h, w]).permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::nn::layers::channels_last;
    use crate::nn::precision::Autocast;

    #[test]
    fn features_gathered_again_have_the_gradients_of_the_published_tensors() {
        let options = (Kind::Float, Device::Cpu);
        let wave = |shape: &[i64], step: f64| {
            channels_last(&(Tensor::arange(shape.iter().product::<i64>(), options) * step).sin().view(shape))
        };
        let edges = (Tensor::arange(2 * 30 * 4, (Kind::Int64, Device::Cpu)) * 7).remainder(6).view([2, 30, 4]);
        let run = |how: Search| {
            let store = nn::VarStore::new(Device::Cpu);
            let conv = GraphConv::new(&store.root(), GraphConvKind::Mr, 8, 16, 2, 1e-5, how).unwrap();
            let next = ConvBn::at(store.root() / "next", ConvSpec::new(16, 4, 1), 1e-5);
            // Other tests draw from libtorch's generator, too.
            for value in store.trainable_variables() {
                let start = (Tensor::arange(value.numel() as i64, options) * 0.9 + 0.5).sin().view_as(&value);
                tch::no_grad(|| value.shallow_clone().copy_(&start));
            }
            let [nodes, candidates] =
                [wave(&[2, 8, 5, 6], 0.7), wave(&[2, 8, 2, 3], 1.3)].map(|maps| maps.set_requires_grad(true));
            let graph = Graph { nodes: &nodes, candidates: &candidates, edges: &edges };
            let out = conv.forward(graph, true, Some(&next)).unwrap();
            (&out * wave(&out.size(), 0.3)).sum(Kind::Float).backward();
            let mut found = vec![out.detach(), nodes.grad(), candidates.grad()];
            let mut variables: Vec<_> = store.variables().into_iter().collect();
            variables.sort_by(|a, b| a.0.cmp(&b.0));
            // A bias before a norm has a gradient of rounding alone.
            variables.retain(|(name, value)| value.requires_grad() && !name.ends_with("0.bias"));
            found.extend(variables.iter().map(|(_, value)| value.grad()));
            found
        };
        let expected = run(Search::Dense);
        for how in [Search::Fused, Search::Chunked] {
            for (i, (found, expected)) in run(how).iter().zip(&expected).enumerate() {
                let apart = (found - expected).abs().max().double_value(&[]);
                assert!(apart < 2e-5, "{how:?}, {i}: {apart}");
            }
        }
    }

    #[test]
    fn convolutions_with_sums_over_edges_stay_in_float32() {
        for kind in [GraphConvKind::Edge, GraphConvKind::Sage] {
            for how in [Search::Fused, Search::Dense] {
                let store = nn::VarStore::new(Device::Cpu);
                let conv = GraphConv::new(&store.root(), kind, 8, 16, 1, 1e-5, how).unwrap();
                // Neighbours that differ by what bfloat16 cannot hold.
                let base = Tensor::randn([1, 8, 1, 1], (Kind::Float, Device::Cpu));
                let nodes = channels_last(&(base + Tensor::randn([1, 8, 5, 6], (Kind::Float, Device::Cpu)) * 1e-3));
                let edges = (Tensor::arange(30 * 4, (Kind::Int64, Device::Cpu)) * 7).remainder(30).view([1, 30, 4]);
                let out = |on: bool, train: bool| {
                    let _autocast = Autocast::set(Device::Cpu, on);
                    let graph = Graph { nodes: &nodes, candidates: &nodes, edges: &edges };
                    tch::no_grad(|| conv.forward(graph, train, None)).unwrap()
                };
                for train in [true, false] {
                    assert_eq!(out(true, train), out(false, train), "{kind:?} {how:?} {train}");
                }
            }
        }
    }
}
