//! What a picture of the graph shows, as data.

use anyhow::{ensure, Result};
use serde::Serialize;

use crate::explore::centers::{locations, salient};
use crate::explore::{Center, GraphView, PatchGraph};

/// Which patches are drawn with their neighbours.
#[derive(Clone, Debug, PartialEq)]
pub enum Centers {
    /// So many that stand out and lie apart (see [`salient`]).
    Salient(usize),
    /// These.
    Given(Vec<Center>),
}

/// The links that a picture shows. Patches are `[x, y, width, height]` in pixels of the network's input.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Links {
    /// The model's name.
    pub model: String,
    /// Where its weights are from.
    pub weights: String,
    /// The image's name.
    pub image: String,
    /// (height, width) of the network's input, in pixels.
    pub input: (u32, u32),
    /// (height, width) that the image has in it.
    pub seen: (u32, u32),
    /// x and y of the centres, in pixels of the original image.
    pub centers: Vec<(f64, f64)>,
    /// In the order in which they are drawn.
    pub blocks: Vec<BlockLinks>,
}

/// The links of one block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockLinks {
    /// Number of the block, from 1.
    pub block: usize,
    /// Number of its stage, from 1.
    pub stage: usize,
    /// Pixels from one node to the next.
    pub stride: u32,
    /// (rows, columns) of nodes.
    pub nodes: (usize, usize),
    /// (rows, columns) of candidates.
    pub candidates: (usize, usize),
    /// Neighbours of each node, at most.
    pub k: usize,
    /// Some nodes have fewer.
    pub varies: bool,
    /// One for each centre.
    pub centers: Vec<CenterLinks>,
}

/// The links of one patch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CenterLinks {
    /// The node.
    pub node: usize,
    /// Where it is.
    pub patch: [u32; 4],
    /// Its neighbours, as indices of candidates, nearest first (strongest link first, where links have strengths): of
    /// the row `node` of `extract_features --edges`.
    pub neighbours: Vec<u32>,
    /// Their distances.
    pub distances: Vec<f32>,
    /// How much they count, from 0 to 1, where they do so differently.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strengths: Option<Vec<f32>>,
    /// Where they are.
    pub patches: Vec<[u32; 4]>,
}

impl Links {
    /// The links of `centers` in these blocks of a view (indices from 0).
    ///
    /// # Errors
    /// If there is no block or no centre, or a centre is outside of the image.
    pub fn new(view: &GraphView, blocks: &[usize], centers: &Centers) -> Result<Self> {
        let count = view.blocks.len();
        ensure!(!blocks.is_empty(), "there is no block to draw");
        if let Some(beyond) = blocks.iter().find(|b| **b >= count) {
            anyhow::bail!("there is no block {}: the model has blocks 1 to {count}", beyond + 1);
        }
        let graphs: Vec<&PatchGraph> = blocks.iter().map(|&b| &view.blocks[b]).collect();
        let locations = match centers {
            Centers::Salient(count) => salient(view, &graphs, *count),
            Centers::Given(centers) => locations(view, graphs[0], centers)?,
        };
        ensure!(!locations.is_empty(), "there is no centre to draw");
        let (across, down) = view.scale();
        Ok(Self {
            model: view.model.clone(),
            weights: view.weights.clone(),
            image: view.file.clone(),
            input: view.input,
            seen: view.seen,
            centers: locations.iter().map(|(x, y)| (x / across, y / down)).collect(),
            blocks: graphs.into_iter().map(|graph| BlockLinks::new(graph, &locations)).collect(),
        })
    }
}

impl BlockLinks {
    fn new(graph: &PatchGraph, locations: &[(f64, f64)]) -> Self {
        let nodes = locations.iter().filter_map(|&location| graph.node_at(location));
        let of_links = |node: usize, all: &[f32]| all[node * graph.k..][..graph.neighbours(node).len()].to_vec();
        let of_node = |node: usize| CenterLinks {
            node,
            patch: graph.node_patch(node).xywh(),
            neighbours: graph.neighbours(node).to_vec(),
            distances: of_links(node, &graph.distances),
            strengths: graph.strengths.as_ref().map(|all| of_links(node, all)),
            patches: graph.neighbours(node).iter().map(|&c| graph.candidate_patch(c as usize).xywh()).collect(),
        };
        Self {
            block: graph.number,
            stage: graph.stage,
            stride: graph.stride,
            nodes: graph.nodes,
            candidates: graph.candidates,
            k: graph.k,
            varies: graph.varies(),
            centers: nodes.map(of_node).collect(),
        }
    }

    /// Whether neighbours are groups of nodes.
    pub fn is_pooled(&self) -> bool {
        self.nodes != self.candidates
    }
}
