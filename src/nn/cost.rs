//! What a network costs: multiply-adds counted layer by layer by walking the built model, so they follow every config.
//!
//! Counted, as in the ViG paper: convolutions and linear layers without their biases, and nodes × candidates × channels
//! for the distances of each Grapher, and twice that for attention. Norms, activations, pooling and resizing are not.

use tch::nn;

/// (height, width) of a map.
pub type Size = (i64, i64);

/// A layer that multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A convolution or linear layer: each of its weights is used once at each location of its output.
    Weights {
        /// Parameters in the weight.
        weights: u64,
        /// Height × width of the output; edges, where a layer belongs to edges.
        locations: u64,
    },
    /// The distances of a Grapher's nodes and candidates; one of attention's two products of queries and keys.
    Distances {
        /// Nodes.
        nodes: u64,
        /// Candidates.
        candidates: u64,
        /// Channels.
        channels: u64,
    },
}

impl Layer {
    /// Its multiply-adds.
    pub fn macs(self) -> u64 {
        match self {
            Self::Weights { weights, locations } => weights * locations,
            Self::Distances { nodes, candidates, channels } => nodes * candidates * channels,
        }
    }
}

/// A part of a network that takes one map to another.
pub trait Flops {
    /// Reports every layer for one image's input map of `size`, and gives the size of the output.
    fn flops(&self, size: Size, visit: &mut dyn FnMut(Layer)) -> Size;
}

/// Reports a convolution with padding of half its kernel, of this stride.
pub fn convolution(conv: &nn::Conv2D, stride: i64, size: Size, visit: &mut dyn FnMut(Layer)) -> Size {
    let out = ((size.0 - 1).div_euclid(stride) + 1, (size.1 - 1).div_euclid(stride) + 1);
    visit(Layer::Weights { weights: conv.ws.numel() as u64, locations: (out.0 * out.1) as u64 });
    out
}

/// Reports a linear layer that is used at each location of a map.
pub fn linear(layer: &nn::Linear, (height, width): Size, visit: &mut dyn FnMut(Layer)) {
    visit(Layer::Weights { weights: layer.ws.numel() as u64, locations: (height * width) as u64 });
}

/// Reports attention's products, of queries with keys and of what they give with values.
pub fn attention(queries: i64, keys: i64, channels: i64, visit: &mut dyn FnMut(Layer)) {
    let (nodes, candidates, channels) = (queries as u64, keys as u64, channels as u64);
    (0..2).for_each(|_| visit(Layer::Distances { nodes, candidates, channels }));
}

/// Multiply-adds for one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Macs {
    /// Of convolutions and linear layers.
    pub weights: u64,
    /// Of Grapher distances and of attention.
    pub distances: u64,
}

impl Macs {
    /// Adds a layer.
    pub fn add(&mut self, layer: Layer) {
        match layer {
            Layer::Weights { .. } => self.weights += layer.macs(),
            Layer::Distances { .. } => self.distances += layer.macs(),
        }
    }

    /// All of them.
    pub fn total(self) -> u64 {
        self.weights + self.distances
    }
}

/// Parameters that a store's model learns: what is frozen is not counted, nor are running statistics.
pub fn parameters(store: &nn::VarStore) -> u64 {
    store.variables().values().filter(|v| v.requires_grad()).map(|v| v.numel() as u64).sum()
}
