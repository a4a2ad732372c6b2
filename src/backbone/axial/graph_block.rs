//! The graph block: position encoding, 1×1 convolution, graph convolution, 1×1 convolution; then a feed-forward
//! network. Each of the two has a residual sum.

use anyhow::Result;
use tch::nn::{self, Module};
use tch::Tensor;

use super::attention::Attention;
use super::{layer_scale, scaled, scaled_onnx, Pass};
use crate::config::{BackboneConfig, Search};
use crate::graph::axial::{doubling, every, with_neighbours, Weight};
use crate::graph::axial_onnx::{gated, near};
use crate::nn::cost::{convolution, Flops, Layer, Size};
use crate::nn::layers::{channels_last, gelu, residual, stochastic_depth, ConvBn, ConvSpec};
use crate::nn::precision::full_precision;
use crate::nn::tokens::Weights;
use crate::onnx::{Convolution, Graph, Value};

/// Side of the position encoding's kernel.
const ENCODING: i64 = 7;

/// How the nodes of a stage are linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linking {
    /// GreedyViG: to those of a row and a column that are near in feature space.
    Near,
    /// AdaptViG: by a learned gate.
    Gated,
    /// AdaptViG's last stage: to all, by attention.
    Attention,
}

#[derive(Debug)]
enum Links {
    Near,
    /// A learned scalar.
    Gated(Tensor),
    Attention(Box<Attention>),
}

/// The mixer along the graph, and the feed-forward network.
#[derive(Debug)]
pub struct GraphBlock {
    /// Conditional position encoding (Chu et al., 2021): a depthwise convolution that is added.
    encoding: nn::Conv2D,
    fc1: ConvBn,
    links: Links,
    /// On a node's channels and what it takes from its neighbours.
    update: ConvBn,
    fc2: ConvBn,
    ffn: [ConvBn; 2],
    scales: [Tensor; 2],
    step: i64,
    how: Search,
    /// Probability that a branch of this block is left out for an image, in training.
    drop: f64,
}

impl GraphBlock {
    /// Variables `mixer.*`, `ffn.*`, `layer_scale_1` and `layer_scale_2` under `path`.
    pub fn new(
        path: &nn::Path,
        linking: Linking,
        (channels, step): (i64, i64),
        config: &BackboneConfig,
        drop: f64,
    ) -> Self {
        let (mixer, ffn, c, eps) = (path / "mixer", path / "ffn", channels, config.norm_eps);
        let graph = &mixer / "graph_conv";
        let layer = |path: nn::Path, input, output| ConvBn::at(path, ConvSpec::new(input, output, 1), eps);
        let depthwise = ConvSpec { groups: c, ..ConvSpec::new(c, c, ENCODING) };
        Self {
            encoding: depthwise.build(&mixer / "cpe" / "pe"),
            fc1: layer(&mixer / "fc1", c, c),
            links: match linking {
                Linking::Near => Links::Near,
                Linking::Gated => Links::Gated(graph.var("temperature", &[], nn::Init::Const(1.0))),
                Linking::Attention => Links::Attention(Box::new(Attention::new(&graph, c))),
            },
            update: layer(&graph / "nn", 2 * c, c),
            fc2: layer(&mixer / "fc2", c, c),
            ffn: [layer(ffn.clone(), c, 4 * c), ConvBn::new(&ffn / "3", &ffn / "4", ConvSpec::new(4 * c, c, 1), eps)],
            scales: ["layer_scale_1", "layer_scale_2"].map(|name| layer_scale(path, name, c)),
            step,
            how: config.graph,
            drop,
        }
    }

    /// `[B, C, H, W]` to the same. `train`: batch statistics in the norms.
    pub fn forward(&self, x: &Tensor, train: bool, pass: &mut Pass) -> Result<Tensor> {
        let encoded = residual(x, self.encoding.forward(x));
        // What is small between neighbours is lost in bfloat16: the graph has float32.
        let nodes = channels_last(&full_precision(&self.fc1.forward(&encoded, train)));
        drop(encoded);
        let mixed = gelu(self.update.forward(&self.with_links(&nodes, pass)?, train));
        let [first, second] = &self.scales;
        let branch = scaled(self.fc2.forward(&mixed, train), first);
        let x = residual(x, stochastic_depth(branch, self.drop, pass.noise()));
        let [fc1, fc2] = &self.ffn;
        let branch = scaled(fc2.forward(&gelu(fc1.forward(&x, train)), train), second);
        Ok(residual(&x, stochastic_depth(branch, self.drop, pass.noise())))
    }

    /// Nodes `[B, C, H, W]` and what they take from their neighbours, `[B, 2C, H, W]`.
    fn with_links(&self, nodes: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (_, _, h, w) = nodes.size4()?;
        match &self.links {
            Links::Near => with_neighbours(nodes, &every(self.step, (h, w)), Weight::Near, self.how, pass.trace()),
            Links::Gated(temperature) => {
                let (rolls, free) = doubling(self.step, (h, w));
                with_neighbours(nodes, &rolls, Weight::Decay { temperature, free }, self.how, pass.trace())
            }
            Links::Attention(attention) => attention.with_all(nodes, pass.trace()),
        }
    }

    /// [`GraphBlock::forward`] in inference as nodes of a graph, on a grid of `map` (height, width) nodes; `None`: any.
    /// `block` counts the graph blocks.
    pub fn onnx(&self, graph: &mut Graph, x: &Value, map: Option<(i64, i64)>, block: usize) -> Value {
        let (encoding, groups) = (&self.encoding, self.encoding.ws.size()[0]);
        let how = Convolution { stride: 1, padding: Some([ENCODING / 2; 2]), groups };
        let encoded = graph.convolve(x, &encoding.ws, encoding.bs.as_ref(), how);
        let encoded = graph.add(x, &encoded);
        let nodes = self.fc1.onnx(graph, &encoded);
        let nodes = graph.full(&nodes);
        let linked = match &self.links {
            Links::Near => near(graph, &nodes, self.step, map, block),
            Links::Gated(temperature) => gated(graph, &nodes, self.step, temperature, map),
            Links::Attention(attention) => attention.onnx(graph, &nodes),
        };
        let linked = graph.working(&linked);
        let mixed = self.update.onnx(graph, &linked);
        let mixed = graph.gelu(&mixed);
        let [first, second] = &self.scales;
        let branch = self.fc2.onnx(graph, &mixed);
        let branch = scaled_onnx(graph, &branch, first);
        let x = graph.add(x, &branch);
        let [fc1, fc2] = &self.ffn;
        let hidden = fc1.onnx(graph, &x);
        let hidden = graph.gelu(&hidden);
        let branch = fc2.onnx(graph, &hidden);
        let branch = scaled_onnx(graph, &branch, second);
        graph.add(&x, &branch)
    }

    fn layers(&self) -> impl Iterator<Item = &ConvBn> {
        [&self.fc1, &self.update, &self.fc2].into_iter().chain(&self.ffn)
    }

    /// Takes the weights out of training.
    pub fn freeze(&self) {
        self.layers().for_each(ConvBn::freeze);
        let more = match &self.links {
            Links::Near => Vec::new(),
            Links::Gated(temperature) => vec![temperature],
            Links::Attention(attention) => attention.weights(),
        };
        let own = [&self.encoding.ws].into_iter().chain(&self.encoding.bs).chain(&self.scales);
        own.chain(more).for_each(|weight| drop(weight.set_requires_grad(false)));
    }
}

impl Flops for GraphBlock {
    fn flops(&self, size: Size, visit: &mut dyn FnMut(Layer)) -> Size {
        convolution(&self.encoding, 1, size, visit);
        let (nodes, channels) = ((size.0 * size.1) as u64, self.fc1.conv.ws.size()[0] as u64);
        let rolls = match &self.links {
            Links::Near => every(self.step, size).len(),
            Links::Gated(_) => doubling(self.step, size).0.len(),
            Links::Attention(attention) => {
                attention.flops(size, visit);
                0
            }
        };
        visit(Layer::Distances { nodes, candidates: rolls as u64, channels });
        self.layers().fold(size, |size, layer| layer.flops(size, visit))
    }
}
