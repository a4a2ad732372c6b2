//! The graph of one block on one image, with the locations of its patches.

use anyhow::{ensure, Context, Result};
use tch::{Kind, Tensor};

use crate::graph::BlockTrace;
use crate::nn::memory::{rows, slice, values};

/// A rectangle of pixels: left, top, right, bottom, right and bottom excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Left edge.
    pub left: u32,
    /// Upper edge.
    pub top: u32,
    /// Right edge, the first column that is not in it.
    pub right: u32,
    /// Lower edge, the first row that is not in it.
    pub bottom: u32,
}

impl Patch {
    /// x and y of the middle, in pixels.
    pub fn middle(&self) -> (f64, f64) {
        (f64::from(self.left + self.right) / 2.0, f64::from(self.top + self.bottom) / 2.0)
    }

    /// `[x, y, width, height]`.
    pub fn xywh(&self) -> [u32; 4] {
        [self.left, self.top, self.right - self.left, self.bottom - self.top]
    }
}

/// In the place of a neighbour that a node does not have.
pub const NONE: u32 = u32::MAX;
/// Links that count less than this are none.
const FAINTEST: f32 = 0.01;
/// Links of a node where their number differs from node to node, at most: the strongest.
const MOST: usize = 16;

/// The graph of one block on one image. Nodes are patches of `stride` pixels, numbered from 0 along rows; neighbours
/// are candidates, numbered alike: the nodes themselves, or in the first stages of a pyramid groups of `pooled` nodes.
///
/// Pixels are those of the image as the network got it. Patches are cut off at its right and lower edge.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchGraph {
    /// Number of the block, from 1: its edges are `edges.(number − 1)` of `extract_features`.
    pub number: usize,
    /// Number of its stage, from 1.
    pub stage: usize,
    /// Pixels from one node to the next.
    pub stride: u32,
    /// (rows, columns) of nodes.
    pub nodes: (usize, usize),
    /// (rows, columns) of candidates.
    pub candidates: (usize, usize),
    /// (rows, columns) of nodes that make one candidate.
    pub pooled: (usize, usize),
    /// (height, width) of the image in pixels.
    pub image: (u32, u32),
    /// Neighbours of each node, at most.
    pub k: usize,
    /// Candidates that are neighbours, `k` for each node, strongest link first, then nearest. A node with fewer has
    /// [`NONE`] for the rest.
    pub edges: Vec<u32>,
    /// The distance along each of `edges` (see [`crate::graph::BlockTrace::distances`]).
    pub distances: Vec<f32>,
    /// How much each of `edges` counts, from 0 to 1; `None`: all do fully.
    pub strengths: Option<Vec<f32>>,
    /// How much each node stands out: the length of the difference of its feature, as the block gives it, from the mean
    /// of all.
    pub salience: Vec<f32>,
}

impl PatchGraph {
    /// The graph of image `index` of a batch of `image` (height, width) pixels, from a
    /// [`crate::graph::GraphTrace::detailed`] trace's block and its output, `features` `[B, C, H, W]`. `number` and
    /// `stage` count from 1.
    ///
    /// # Errors
    /// If the trace was not a detailed one, or there is no such image in it.
    pub fn new(
        block: &BlockTrace,
        features: &Tensor,
        (number, stage): (usize, usize),
        image: (u32, u32),
        index: i64,
    ) -> Result<Self> {
        let (batch, n, k) = block.edges.size3()?;
        ensure!(index < batch, "there is no image {index} in a batch of {batch}");
        let distances = block.distances.as_ref().context("the trace holds no distances")?;
        let edges = block.edges.get(index).to_device(tch::Device::Cpu).to_kind(Kind::Int64).contiguous();
        let distances = distances.get(index).contiguous();
        let features = rows(&features.narrow(0, index, 1))?;
        ensure!(features.size()[1] == n, "{n} nodes, but features {:?}", features.size());
        // SAFETY: the slices are gone when this function ends, and until then nothing is written.
        let (edges, distances, features) = unsafe { (slice(&edges)?, slice(&distances)?, slice(&features)?) };
        let edges: Vec<u32> = edges.iter().map(|&j: &i64| j as u32).collect();
        let links = match &block.weights {
            None => Links { k: k as usize, edges, distances: distances.to_vec(), strengths: None },
            Some(weights) => Links::strongest(k as usize, &edges, distances, &values(&weights.get(index))?),
        };
        let side = |(rows, columns): (i64, i64)| (rows as usize, columns as usize);
        Ok(Self {
            number,
            stage,
            stride: block.stride as u32,
            nodes: side(block.nodes),
            candidates: side(block.candidates),
            pooled: side(block.pooled),
            image,
            k: links.k,
            edges: links.edges,
            distances: links.distances,
            strengths: links.strengths,
            salience: salience(features, n as usize),
        })
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.0 * self.nodes.1
    }

    /// Whether there is no node; there always is one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of candidates.
    pub fn candidate_count(&self) -> usize {
        self.candidates.0 * self.candidates.1
    }

    /// The neighbours of a node, strongest link first, then nearest.
    pub fn neighbours(&self, node: usize) -> &[u32] {
        let all = &self.edges[node * self.k..][..self.k];
        &all[..all.iter().position(|&candidate| candidate == NONE).unwrap_or(self.k)]
    }

    /// Whether some nodes have fewer neighbours than others.
    pub fn varies(&self) -> bool {
        self.edges.contains(&NONE)
    }

    /// The pixels of a node.
    pub fn node_patch(&self, node: usize) -> Patch {
        self.patch((node / self.nodes.1, node % self.nodes.1), (1, 1))
    }

    /// The pixels of a candidate.
    pub fn candidate_patch(&self, candidate: usize) -> Patch {
        self.patch((candidate / self.candidates.1, candidate % self.candidates.1), self.pooled)
    }

    fn patch(&self, (row, column): (usize, usize), (height, width): (usize, usize)) -> Patch {
        let stride = self.stride;
        let cut = |nodes: usize, most: u32| (nodes as u32 * stride).min(most);
        Patch {
            left: cut(column * width, self.image.1),
            top: cut(row * height, self.image.0),
            right: cut((column + 1) * width, self.image.1),
            bottom: cut((row + 1) * height, self.image.0),
        }
    }

    /// The node at a location of the image; `None` outside of it.
    pub fn node_at(&self, (x, y): (f64, f64)) -> Option<usize> {
        let inside = x >= 0.0 && y >= 0.0 && x < f64::from(self.image.1) && y < f64::from(self.image.0);
        let at = |v: f64| (v / f64::from(self.stride)) as usize;
        inside.then(|| at(y).min(self.nodes.0 - 1) * self.nodes.1 + at(x).min(self.nodes.1 - 1))
    }

    /// The candidate that a node is part of; `None` where pooling left the node out.
    pub fn candidate_of(&self, node: usize) -> Option<usize> {
        let (row, column) = (node / self.nodes.1 / self.pooled.0, node % self.nodes.1 / self.pooled.1);
        (row < self.candidates.0 && column < self.candidates.1).then(|| row * self.candidates.1 + column)
    }
}

/// What [`PatchGraph`] has of links.
struct Links {
    k: usize,
    edges: Vec<u32>,
    distances: Vec<f32>,
    strengths: Option<Vec<f32>>,
}

impl Links {
    /// Of `all` links of each node those that count, at most [`MOST`].
    fn strongest(all: usize, edges: &[u32], distances: &[f32], weights: &[f32]) -> Self {
        let of_node = |node: usize| {
            let mut own: Vec<usize> = (node * all..(node + 1) * all).filter(|&i| weights[i] >= FAINTEST).collect();
            let stronger =
                |&a: &usize, &b: &usize| weights[b].total_cmp(&weights[a]).then(distances[a].total_cmp(&distances[b]));
            own.sort_by(stronger);
            own.truncate(MOST);
            own
        };
        let nodes = edges.len() / all.max(1);
        let found: Vec<Vec<usize>> = (0..nodes).map(of_node).collect();
        let k = found.iter().map(Vec::len).max().unwrap_or(0);
        let rows = |none: f32, of: &[f32]| -> Vec<f32> {
            let row = |own: &Vec<usize>| {
                own.iter().map(|&i| of[i]).chain(std::iter::repeat(none)).take(k).collect::<Vec<_>>()
            };
            found.iter().flat_map(row).collect()
        };
        let places = found
            .iter()
            .flat_map(|own| own.iter().map(|&i| edges[i]).chain(std::iter::repeat(NONE)).take(k).collect::<Vec<_>>());
        let strengths = found.iter().flatten().any(|&i| weights[i] < 1.0).then(|| rows(0.0, weights));
        Self { k, edges: places.collect(), distances: rows(f32::INFINITY, distances), strengths }
    }
}

/// The distance of each of `n` rows from the mean row.
fn salience(features: &[f32], n: usize) -> Vec<f32> {
    let c = features.len() / n.max(1);
    let mut mean = vec![0f64; c];
    for row in features.chunks_exact(c.max(1)) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v));
    }
    mean.iter_mut().for_each(|m| *m /= n as f64);
    let apart = |row: &[f32]| row.iter().zip(&mean).map(|(v, m)| (f64::from(*v) - m).powi(2)).sum::<f64>();
    features.chunks_exact(c.max(1)).map(|row| apart(row).sqrt() as f32).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// 5 × 7 nodes of 4 pixels on an image of 18 × 27, pooled by 2; neighbours are candidates 0, 1 and 5.
    pub(crate) fn pooled() -> PatchGraph {
        PatchGraph {
            number: 1,
            stage: 1,
            stride: 4,
            nodes: (5, 7),
            candidates: (2, 3),
            pooled: (2, 2),
            image: (18, 27),
            k: 3,
            edges: [0, 1, 5].repeat(35),
            distances: [0.0, 0.5, 1.5].repeat(35),
            strengths: None,
            salience: (0..35).map(|i| i as f32).collect(),
        }
    }

    #[test]
    fn patches_have_their_true_size_and_end_with_the_image() {
        let graph = pooled();
        assert_eq!(graph.node_patch(0).xywh(), [0, 0, 4, 4]);
        assert_eq!(graph.node_patch(34).xywh(), [24, 16, 3, 2]);
        assert_eq!(graph.candidate_patch(5).xywh(), [16, 8, 8, 8]);
        assert_eq!(graph.candidate_patch(5).middle(), (20.0, 12.0));
        assert_eq!(graph.node_at((26.9, 17.9)), Some(34));
        assert_eq!(graph.node_at((8.0, 3.9)), Some(2));
        for outside in [(27.0, 3.0), (3.0, 18.0), (-0.1, 3.0), (f64::NAN, 3.0)] {
            assert_eq!(graph.node_at(outside), None);
        }
    }

    #[test]
    fn nodes_that_pooling_left_out_are_in_no_candidate() {
        let graph = pooled();
        assert_eq!(graph.candidate_of(0), Some(0));
        assert_eq!(graph.candidate_of(3 * 7 + 5), Some(5));
        assert_eq!(graph.candidate_of(6), None);
        assert_eq!(graph.candidate_of(4 * 7), None);
    }

    #[test]
    fn links_that_count_come_first_and_in_the_order_of_their_strength() {
        // Three links of two nodes: the second node has one of them.
        let (edges, distances) = ([7, 8, 9, 7, 8, 9], [3.0, 2.0, 1.0, 3.0, 2.0, 1.0]);
        let found = Links::strongest(3, &edges, &distances, &[0.5, 1.0, 0.0, 0.001, 0.2, 0.0]);
        assert_eq!((found.k, &found.edges[..]), (2, &[8, 7, 8, NONE][..]));
        assert_eq!(found.strengths.unwrap(), [1.0, 0.5, 0.2, 0.0]);
        // A mask: nearest first, and nothing to say of strengths.
        let found = Links::strongest(3, &edges, &distances, &[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!((&found.edges[..], &found.distances[..2]), (&[8, 7, NONE, NONE][..], &[2.0, 3.0][..]));
        assert!(found.strengths.is_none());
        let none = Links::strongest(0, &[], &[], &[]);
        assert_eq!((none.k, none.edges.len()), (0, 0));
    }

    #[test]
    fn what_differs_from_the_mean_is_salient() {
        // Mean (1, 2): the differences are (−1, 0), (−1, 0), (2, 0), ….
        let found = salience(&[0.0, 2.0, 0.0, 2.0, 3.0, 2.0], 3);
        assert_eq!(found, [1.0, 1.0, 2.0]);
    }
}
