//! The graph that a forward pass built, for pictures and for comparison with other implementations.

use anyhow::{ensure, Context, Result};
use tch::{Device, Tensor};

/// One entry per Grapher block, in the order of the network.
#[derive(Debug, Default)]
pub struct GraphTrace {
    /// The blocks seen so far; a forward pass adds to it.
    pub blocks: Vec<BlockTrace>,
    /// Of a [`GraphTrace::detailed`] trace: what goes into the first block, then what comes out of each,
    /// `[B, C, H, W]`. Empty otherwise.
    pub features: Vec<Tensor>,
    given: Option<Vec<Tensor>>,
    /// Whether distances and features are asked for.
    pub(crate) detailed: bool,
    /// Pixels between the nodes of the blocks that follow.
    pub(crate) stride: i64,
}

/// The graph of one block.
#[derive(Debug)]
pub struct BlockTrace {
    /// int64 `[B, N, k]`: the neighbours that the search found for each node, nearest first (but see `weights`), as
    /// indices of candidates.
    pub edges: Tensor,
    /// (height, width) of the grid of nodes; N is their product, rows first.
    pub nodes: (i64, i64),
    /// (height, width) of the grid of candidates.
    pub candidates: (i64, i64),
    /// (height, width) in nodes of the average pooling that makes a candidate; (1, 1) where the nodes are the
    /// candidates. What it does not divide at the right and at the bottom is in no candidate.
    pub pooled: (i64, i64),
    /// Pixels of the image from one node to the next.
    pub stride: i64,
    /// Of a [`GraphTrace::detailed`] trace: float32 `[B, N, k]` on the CPU, the distance of each of `edges` (see
    /// [`super::edge_distances`]; of axial graphs the L1 distance of the features).
    pub distances: Option<Tensor>,
    /// Where edges count differently: float32 `[B, N, k]` on the CPU, how much each of `edges` does, from 0, not at
    /// all, to 1. Edges are then in the order of the rolls, or of their weight. `None`: all count fully.
    pub weights: Option<Tensor>,
}

impl GraphTrace {
    /// A trace whose forward pass mixes along `edges`, int64 `[B, N, k]` for each block in order, whatever its searches
    /// find. It still records what they find: given another implementation's graph, every block gets the same input as
    /// there, so both the maps and the searches can be compared, though one swapped near-tie would change all that
    /// follows.
    pub fn with_edges(edges: Vec<Tensor>) -> Self {
        Self { given: Some(edges), ..Self::default() }
    }

    /// A trace that also keeps the distances along the edges, and the features between the blocks.
    pub fn detailed() -> Self {
        Self { detailed: true, ..Self::default() }
    }

    /// Keeps what goes into the first block or comes out of one.
    pub(crate) fn keep(&mut self, features: &Tensor) {
        if self.detailed {
            self.features.push(features.shallow_clone());
        }
    }

    /// Records a block whose links are what they are, and fills in its stride. Its numbers come to the CPU.
    pub(crate) fn keep_links(&mut self, block: BlockTrace) {
        let fetched = |tensor: Option<Tensor>| tensor.map(|tensor| tensor.to_device(Device::Cpu));
        let (distances, weights) = (fetched(block.distances), fetched(block.weights));
        self.blocks.push(BlockTrace { stride: self.stride, distances, weights, ..block });
    }

    /// Records a block, fills in its stride and says which edges it mixes along.
    ///
    /// # Errors
    /// If edges were given, but none for this block, or for other nodes, or beyond its candidates.
    pub(crate) fn record(&mut self, mut block: BlockTrace) -> Result<Tensor> {
        block.stride = self.stride;
        let used = match &self.given {
            None => block.edges.shallow_clone(),
            Some(given) => {
                let (b, n, _) = block.edges.size3()?;
                let number = self.blocks.len() + 1;
                let edges = given.get(self.blocks.len()).with_context(|| {
                    format!("edges are given for {} blocks, but there is a block {number}", given.len())
                })?;
                let edges = edges.to_device(block.edges.device());
                let candidates = block.candidates.0 * block.candidates.1;
                ensure!(
                    matches!(edges.size()[..], [eb, en, k] if (eb, en) == (b, n) && k > 0)
                        && edges.kind() == tch::Kind::Int64
                        && edges.min().int64_value(&[]) >= 0
                        && edges.max().int64_value(&[]) < candidates,
                    "the edges given for block {number} must be int64 [{b}, {n}, k], below {candidates}; they \
                     are {:?} {:?}",
                    edges.kind(),
                    edges.size()
                );
                edges
            }
        };
        self.blocks.push(block);
        Ok(used)
    }
}
