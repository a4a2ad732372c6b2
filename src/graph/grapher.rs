//! The Grapher block of ViG (Han et al., 2022, section 3.2): nodes look up their neighbours and mix with them.

use anyhow::Result;
use rand::seq::index::sample;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::{nn, Kind, Tensor};

use super::conv::{Graph, GraphConv};
use super::distances::edge_distances;
use super::knn::Neighbours;
use super::near_onnx::OnnxEdges;
use super::pass::Pass;
use super::relative::RelativePosition;
use super::trace::BlockTrace;
use crate::config::GraphConvKind;
use crate::nn::cost::{Flops, Layer, Size};
use crate::nn::crossings::send;
use crate::nn::layers::{channels_last, ConvBn, ConvSpec};
use crate::nn::precision::full_precision;
use crate::onnx::{Graph as OnnxGraph, Value};

/// What a Grapher is made from.
#[derive(Clone, Debug)]
pub struct GrapherSpec {
    /// Channels C.
    pub channels: i64,
    /// The graph convolution.
    pub conv: GraphConvKind,
    /// How many neighbours, how far apart, and how they are found.
    pub neighbours: Neighbours,
    /// Training: probability of taking k random ones of the k·d nearest in place of every d-th.
    pub stochastic: f64,
    /// Side of the average pooling that makes candidates from nodes; 1: the nodes themselves.
    pub reduce: i64,
    /// Groups of the update convolution (the paper's heads).
    pub heads: i64,
    /// Whether there are fully connected layers (1×1 convolutions) around the graph convolution.
    pub fc: bool,
    /// The relative position that is added to similarities; `None`: none (isotropic ViG).
    pub relative: Option<RelativePosition>,
    /// Epsilon of the batch norms.
    pub norm_eps: f64,
}

/// 1×1 convolution, graph convolution to 2C channels, 1×1 convolution. The residual sum is the caller's. Without fully
/// connected layers, the graph convolution alone, to C channels.
#[derive(Debug)]
pub struct Grapher {
    fc: Option<[ConvBn; 2]>,
    conv: GraphConv,
    spec: GrapherSpec,
}

impl Grapher {
    /// Variables `fc1.*`, `graph_conv.gconv.*` and `fc2.*` under `path`.
    ///
    /// # Errors
    /// If the heads do not divide the channels.
    pub fn new(path: &nn::Path, spec: GrapherSpec) -> Result<Self> {
        let c = spec.channels;
        let layer = |name: &str, input, output| ConvBn::at(path / name, ConvSpec::new(input, output, 1), spec.norm_eps);
        let conv = GraphConv::new(
            &(path / "graph_conv" / "gconv"),
            spec.conv,
            c,
            if spec.fc { 2 * c } else { c },
            spec.heads,
            spec.norm_eps,
            spec.neighbours.search,
        )?;
        let fc = spec.fc.then(|| [layer("fc1", c, c), layer("fc2", 2 * c, c)]);
        Ok(Self { fc, conv, spec })
    }

    /// `[B, C, H, W]` to `[B, C, H, W]`, without the residual sum. `train`: batch statistics in the norms.
    pub fn forward(&self, x: &Tensor, train: bool, pass: &mut Pass) -> Result<Tensor> {
        let (_, _, h, w) = x.size4()?;
        // What is small between neighbours is lost in bfloat16: the graph has float32.
        let nodes = channels_last(&full_precision(&match &self.fc {
            Some([fc1, _]) => fc1.forward(x, train),
            None => x.shallow_clone(),
        }));
        let pooled = (self.spec.reduce > 1).then(|| {
            let kernel = [self.spec.reduce.min(h), self.spec.reduce.min(w)];
            channels_last(&nodes.avg_pool2d(kernel, kernel, [0, 0], false, true, None::<i64>))
        });
        let candidates = pooled.as_ref().unwrap_or(&nodes);
        let mut edges = match pass.edges_found_before() {
            Some(edges) => edges,
            None => {
                let edges = match pass.extents().cloned() {
                    Some(extents) => self.find_each(&nodes, candidates, &extents.on((h, w)), pass)?,
                    None => self.find(&nodes, candidates, pass.noise())?,
                };
                pass.keep_edges(&edges);
                edges
            }
        };
        if let Some(trace) = pass.trace() {
            let (_, _, ch, cw) = candidates.size4()?;
            let relative = self.spec.relative.as_ref();
            let distances = || edge_distances(&nodes, candidates, &edges, relative);
            edges = trace.record(BlockTrace {
                nodes: (h, w),
                candidates: (ch, cw),
                pooled: (self.spec.reduce.min(h), self.spec.reduce.min(w)),
                stride: 0,
                distances: trace.detailed.then(distances).transpose()?,
                weights: None,
                edges,
            })?;
        }
        let graph = Graph { nodes: &nodes, candidates, edges: &edges };
        self.conv.forward(graph, train, self.fc.as_ref().map(|[_, fc2]| fc2))
    }

    /// [`Grapher::forward`] in inference as nodes of a graph, on a grid of `map` (height, width) nodes; `None`: any, of
    /// at least as many as a candidate is pooled from. `block` counts the Graphers.
    pub fn onnx(&self, graph: &mut OnnxGraph, x: &Value, map: Option<(i64, i64)>, block: usize) -> Value {
        let nodes = match &self.fc {
            Some([fc1, _]) => fc1.onnx(graph, x),
            None => x.clone(),
        };
        let nodes = graph.full(&nodes);
        let reduce = self.spec.reduce;
        let kernel = map.map_or([reduce; 2], |(height, width)| [reduce.min(height), reduce.min(width)]);
        let candidates = if reduce > 1 { graph.pool("AveragePool", &nodes, kernel, kernel, 0) } else { nodes.clone() };
        let grids = map.map(|(height, width)| [(height, width), (height / kernel[0], width / kernel[1])]);
        let edges = match graph.options().neighbours_as_inputs {
            true => OnnxEdges::given(graph, &self.spec, block, grids),
            false => OnnxEdges::search(graph, &self.spec, [&nodes, &candidates], grids),
        };
        let out = self.conv.onnx(graph, &nodes, &candidates, &edges);
        let out = graph.working(&out);
        match &self.fc {
            Some([_, fc2]) => fc2.onnx(graph, &out),
            None => out,
        }
    }

    /// The edges of each image in the part of the grids that is its own, `extents` (height, width) nodes large. Nodes
    /// beyond it point to the first candidate, and nothing reads them.
    fn find_each(
        &self,
        nodes: &Tensor,
        candidates: &Tensor,
        extents: &[(i64, i64)],
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let (b, _, height, width) = nodes.size4()?;
        let columns = candidates.size4()?.3;
        let pooled = |side: i64| (side / self.spec.reduce.min(side)).max(1);
        if self.spec.stochastic == 0.0 || pass.noise().is_none() {
            let grid = |h: i64, w: i64| (h as usize, w as usize);
            let grids: Vec<_> = extents.iter().map(|&(h, w)| [grid(h, w), grid(pooled(h), pooled(w))]).collect();
            let relative = self.spec.relative.as_ref();
            if let Some(edges) = self.spec.neighbours.find_together(nodes, candidates, relative, &grids)? {
                return Ok(edges);
            }
        }
        let mut found = Vec::with_capacity(extents.len());
        for (i, &(h, w)) in extents.iter().enumerate() {
            let own = |maps: &Tensor, h: i64, w: i64| {
                channels_last(&maps.narrow(0, i as i64, 1).narrow(2, 0, h).narrow(3, 0, w))
            };
            let edges = self.find(&own(nodes, h, w), &own(candidates, pooled(h), pooled(w)), pass.noise())?;
            // From the image's own grid of candidates to the batch's.
            let row = edges.f_divide_scalar_mode(pooled(w), "floor")?;
            let edges = &edges + row * (columns - pooled(w));
            found.push(edges.view([h, w, -1]));
        }
        let k = found.iter().map(|edges| edges.size()[2]).max().unwrap_or(1);
        let all = Tensor::zeros([b, height, width, k], (Kind::Int64, nodes.device()));
        for ((i, edges), &(h, w)) in found.iter().enumerate().zip(extents) {
            let part = all.get(i as i64).narrow(0, 0, h).narrow(1, 0, w);
            // With fewer candidates than k the farthest neighbour repeats. A maximum does not notice; GIN's sum does.
            let own = edges.size()[2];
            part.narrow(2, 0, own).copy_(edges);
            if own < k {
                part.narrow(2, own, k - own).copy_(&edges.narrow(2, own - 1, 1));
            }
        }
        Ok(all.view([b, height * width, k]))
    }

    fn find(&self, nodes: &Tensor, candidates: &Tensor, noise: Option<&mut ChaCha8Rng>) -> Result<Tensor> {
        let relative = self.spec.relative.as_ref();
        if let Some(noise) = noise.filter(|_| self.spec.stochastic > 0.0) {
            if noise.random::<f64>() < self.spec.stochastic {
                let (_, _, ch, cw) = candidates.size4()?;
                let (k, dilation) = self.spec.neighbours.among((ch * cw) as usize);
                let all = Neighbours { k: k * dilation, dilation: 1, ..self.spec.neighbours };
                let found = all.find(nodes, candidates, relative)?;
                let drawn: Vec<i64> = sample(noise, k * dilation, k).into_iter().map(|i| i as i64).collect();
                return Ok(found.index_select(2, &send(&drawn, found.device())));
            }
        }
        self.spec.neighbours.find(nodes, candidates, relative)
    }

    /// Takes the weights out of training.
    pub fn freeze(&self) {
        self.fc.iter().flatten().for_each(ConvBn::freeze);
        self.conv.freeze();
    }
}

impl Flops for Grapher {
    fn flops(&self, size: Size, visit: &mut dyn FnMut(Layer)) -> Size {
        let reduce = self.spec.reduce;
        let pooled = |side: i64| side / reduce.min(side);
        let candidates = (pooled(size.0) * pooled(size.1)) as u64;
        let (k, _) = self.spec.neighbours.among(candidates as usize);
        if let Some([fc1, _]) = &self.fc {
            fc1.flops(size, visit);
        }
        let nodes = (size.0 * size.1) as u64;
        visit(Layer::Distances { nodes, candidates, channels: self.spec.channels as u64 });
        self.conv.flops(size, k, visit);
        if let Some([_, fc2]) = &self.fc {
            fc2.flops(size, visit);
        }
        size
    }
}
