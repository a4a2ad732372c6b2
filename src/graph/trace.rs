//! The graph that a forward pass built, for pictures and for comparison with other implementations.

use anyhow::{ensure, Result};
use tch::Tensor;

/// One entry per Grapher block, in the order of the network.
#[derive(Debug, Default)]
pub struct GraphTrace {
    /// The blocks seen so far; a forward pass adds to it.
    pub blocks: Vec<BlockTrace>,
    given: Option<Vec<Tensor>>,
}

/// The graph of one block.
#[derive(Debug)]
pub struct BlockTrace {
    /// int64 `[B, N, k]`: the neighbours that the search found for each node, nearest first, as indices of candidates.
    pub edges: Tensor,
    /// (height, width) of the grid of nodes; N is their product, rows first.
    pub nodes: (i64, i64),
    /// (height, width) of the grid of candidates.
    pub candidates: (i64, i64),
}

impl GraphTrace {
    /// A trace whose forward pass mixes along `edges`, int64 `[B, N, k]` for each block in order, whatever its searches find. It
    /// still records what they find: given another implementation's graph, every block gets the same input as there, so both
    /// the maps and the searches can be compared, though one swapped near-tie would change all that follows.
    pub fn with_edges(edges: Vec<Tensor>) -> Self {
        Self { blocks: Vec::new(), given: Some(edges) }
    }

    /// Records a block and says which edges it mixes along.
    ///
    /// # Errors
    /// If edges were given, but none for this block, or for other nodes, or beyond its candidates.
    pub(crate) fn record(&mut self, block: BlockTrace) -> Result<Tensor> {
        let used = match &self.given {
            None => block.edges.shallow_clone(),
            Some(given) => {
                let (b, n, _) = block.edges.size3()?;
                let number = self.blocks.len() + 1;
                let edges = given.get(self.blocks.len());
                ensure!(
                    edges.is_some(),
                    "edges are given for {} blocks, but there is a block {number}",
                    given.len()
                );
                let edges = edges.map(|e| e.to_device(block.edges.device())).unwrap_or_default();
                let candidates = block.candidates.0 * block.candidates.1;
                ensure!(
                    matches!(edges.size()[..], [eb, en, k] if (eb, en) == (b, n) && k > 0)
                        && edges.kind() == tch::Kind::Int64
                        && edges.min().int64_value(&[]) >= 0
                        && edges.max().int64_value(&[]) < candidates,
                    "the edges given for block {number} must be int64 [{b}, {n}, k], below {candidates}; they are {:?} {:?}",
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
