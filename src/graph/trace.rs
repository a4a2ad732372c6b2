//! The graph that a forward pass built, for pictures and for comparison with other implementations.

use tch::Tensor;

/// One entry per Grapher block, in the order of the network.
#[derive(Debug, Default)]
pub struct GraphTrace {
    /// The blocks seen so far; a forward pass adds to it.
    pub blocks: Vec<BlockTrace>,
}

/// The graph of one block.
#[derive(Debug)]
pub struct BlockTrace {
    /// int64 `[B, N, k]`: the neighbours of each node, nearest first, as indices of candidates.
    pub edges: Tensor,
    /// (height, width) of the grid of nodes; N is their product, rows first.
    pub nodes: (i64, i64),
    /// (height, width) of the grid of candidates.
    pub candidates: (i64, i64),
}
