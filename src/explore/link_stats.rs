//! Where the neighbours of patches lie, block by block: how far away, and whether inside the same object.

use std::collections::HashMap;

use anyhow::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

use super::patches::PatchGraph;
use super::viewer::{GraphView, GraphViewer};
use crate::data::{decode, DetectionDataset};

/// Distances, in pixels, within which the fraction of neighbours is counted.
pub const WITHIN: [f64; 4] = [32.0, 64.0, 128.0, 256.0];
/// Pairs of a node and a candidate that the mean distance of random neighbours is taken from, at least, on one image.
const PAIRS: usize = 2_000_000;

/// What the links of one block come to, on any number of images.
///
/// A link leads from a node to one of its neighbours. The link to the candidate that the node itself is part of is left
/// out: nearly every node has it, and it says nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkStats {
    /// Number of the block, from 1.
    pub block: usize,
    /// Links counted.
    pub links: u64,
    /// Mean distance between the middles of the patches at both ends, in pixels of the network's input.
    pub mean_distance: f64,
    /// What the mean distance would be if every node chose its neighbours at random.
    pub random_distance: f64,
    /// (pixels, fraction of the links that are at most so long) for each of [`WITHIN`].
    pub within: Vec<(f64, f64)>,
    /// Nodes in objects; a node in two objects counts twice.
    pub object_nodes: u64,
    /// Of the links of those nodes, the fraction that end in the same object. `None` without such links.
    pub same_object: Option<f64>,
    /// What that fraction would be if every node chose its neighbours at random.
    pub same_object_random: Option<f64>,
    /// What it would be if every node chose the candidates nearest to it on the image.
    pub same_object_nearest: Option<f64>,
}

/// Sums over the links of one block, image by image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinkCounts {
    block: usize,
    links: u64,
    within: [u64; WITHIN.len()],
    distance: f64,
    random_distance: f64,
    object_nodes: u64,
    object_links: u64,
    same: u64,
    same_random: f64,
    same_nearest: f64,
}

impl LinkCounts {
    /// Adds the block's graph on one image, of which `objects` are the masks; see [`PatchGraph`] for `seen`.
    ///
    /// `seen` is the (height, width) that the image has in the network's input, in pixels; masks have the size of the
    /// original image. A patch is in an object if at least half of its pixels are. Nodes that lie in the padding beyond
    /// the image are left out, whatever they are linked to.
    pub fn add(&mut self, graph: &PatchGraph, objects: &[Rle], seen: (u32, u32)) {
        self.block = graph.number;
        let m = graph.candidate_count();
        let nodes: Vec<(f64, f64)> = (0..graph.len()).map(|n| graph.node_patch(n).middle()).collect();
        let candidates: Vec<(f64, f64)> = (0..m).map(|c| graph.candidate_patch(c).middle()).collect();
        let between = |n: usize, c: usize| {
            let (a, b) = (nodes[n], candidates[c]);
            (a.0 - b.0).hypot(a.1 - b.1)
        };
        let corner = |n: usize| (graph.node_patch(n).top, graph.node_patch(n).left);
        let is_seen = |n: &usize| corner(*n).0 < seen.0 && corner(*n).1 < seen.1;
        let of_image: Vec<usize> = (0..graph.len()).filter(is_seen).collect();
        let mut links = 0;
        for &node in &of_image {
            for candidate in others(graph, node) {
                let distance = between(node, candidate);
                links += 1;
                self.distance += distance;
                for (count, most) in self.within.iter_mut().zip(WITHIN) {
                    *count += u64::from(distance <= most);
                }
            }
        }
        self.links += links;

        // Of large grids, every so many nodes are enough for a mean.
        let step = (of_image.len() * m / PAIRS).max(1);
        let (mut sum, mut pairs) = (0.0, 0u64);
        for &node in of_image.iter().step_by(step) {
            let own = graph.candidate_of(node);
            for candidate in (0..m).filter(|&c| own != Some(c)) {
                sum += between(node, candidate);
                pairs += 1;
            }
        }
        // As many random links as there are real ones, so that images weigh the same in both means.
        self.random_distance += sum / pairs.max(1) as f64 * links as f64;

        for object in objects {
            let inside = Inside::new(object, graph, seen);
            for &node in of_image.iter().filter(|&&n| inside.nodes[n]) {
                self.add_node(graph, node, &inside.candidates, |c| between(node, c));
            }
        }
    }

    /// Adds the links of a node that is in an object. `inside` tells which candidates are in it, `distance` how far
    /// each is.
    fn add_node(&mut self, graph: &PatchGraph, node: usize, inside: &[bool], distance: impl Fn(usize) -> f64) {
        self.object_nodes += 1;
        let own = graph.candidate_of(node);
        let links = others(graph, node).count();
        let free: Vec<(f64, bool)> =
            (0..inside.len()).filter(|&c| own != Some(c)).map(|c| (distance(c), inside[c])).collect();
        if links == 0 || free.is_empty() {
            return;
        }
        self.object_links += links as u64;
        self.same += others(graph, node).filter(|&c| inside[c]).count() as u64;
        let of_all = free.iter().filter(|c| c.1).count() as f64 / free.len() as f64;
        self.same_random += of_all * links as f64;
        // The nearest on the image; of those equally far, all with the same chance.
        let mut distances: Vec<f64> = free.iter().map(|c| c.0).collect();
        let most = *distances.select_nth_unstable_by(links - 1, f64::total_cmp).1;
        let count = |test: &dyn Fn(f64) -> bool| {
            let of = || free.iter().filter(|c| test(c.0));
            (of().count() as f64, of().filter(|c| c.1).count() as f64)
        };
        let near = count(&|d| d < most - 1e-6);
        let last = count(&|d| (d - most).abs() <= 1e-6);
        self.same_nearest += near.1 + last.1 * (links as f64 - near.0) / last.0;
    }

    /// The means.
    pub fn stats(&self) -> LinkStats {
        let links = self.links.max(1) as f64;
        let of_objects = |sum: f64| (self.object_links > 0).then(|| sum / self.object_links as f64);
        LinkStats {
            block: self.block,
            links: self.links,
            mean_distance: self.distance / links,
            random_distance: self.random_distance / links,
            within: WITHIN.iter().zip(self.within).map(|(&most, count)| (most, count as f64 / links)).collect(),
            object_nodes: self.object_nodes,
            same_object: of_objects(self.same as f64),
            same_object_random: of_objects(self.same_random),
            same_object_nearest: of_objects(self.same_nearest),
        }
    }
}

/// The statistics of all blocks of one view, without objects.
pub fn of_view(view: &GraphView) -> Vec<LinkStats> {
    let mut counts = Vec::new();
    add(&mut counts, view, &[]);
    counts.iter().map(LinkCounts::stats).collect()
}

fn add(counts: &mut Vec<LinkCounts>, view: &GraphView, objects: &[Rle]) {
    counts.resize_with(view.blocks.len(), LinkCounts::default);
    counts.par_iter_mut().zip(&view.blocks).for_each(|(counts, graph)| counts.add(graph, objects, view.seen));
}

/// The statistics of a model over a data set, with its masks but for crowds; the number of images; and what is wrong
/// with those that could not be read. `progress` is told how many images are done.
///
/// # Errors
/// If the model cannot run.
pub fn of_dataset(
    viewer: &GraphViewer,
    dataset: &DetectionDataset,
    mut progress: impl FnMut(usize),
) -> Result<(Vec<LinkStats>, usize, Vec<Error>)> {
    let mut masks: HashMap<i64, Vec<&Segmentation>> = HashMap::new();
    for annotation in dataset.ground_truth().annotations.iter().filter(|a| !a.iscrowd) {
        masks.entry(annotation.image_id).or_default().extend(&annotation.segmentation);
    }
    let (mut counts, mut images, mut skipped) = (Vec::new(), 0, Vec::new());
    for i in 0..dataset.len() {
        let info = dataset.info(i);
        let image = match decode::open(&dataset.path(i), viewer.config().data.exif) {
            Ok(image) => image,
            Err(error) => {
                skipped.push(error);
                continue;
            }
        };
        let (width, height) = image.dimensions();
        let of_image = masks.get(&info.id).into_iter().flatten();
        // Masks of another size than the image are no masks of it.
        let objects: Vec<Rle> =
            of_image.filter_map(|s| s.to_rle(height, width).ok()).filter(|rle| rle.size() == (height, width)).collect();
        add(&mut counts, &viewer.view(&image, &info.file)?, &objects);
        images += 1;
        progress(i + 1);
    }
    Ok((counts.iter().map(LinkCounts::stats).collect(), images, skipped))
}

/// The statistics as a table for people: a line for each block, fractions in percent.
pub fn table(stats: &[LinkStats]) -> String {
    let percent = |fraction: Option<f64>| fraction.map_or("-".into(), |s| format!("{:.1}", 100.0 * s));
    let mut text = format!("{:>5} {:>9} {:>9}", "block", "distance", "(random)");
    for most in WITHIN {
        text += &format!(" {:>8}", format!("≤ {most:.0} px"));
    }
    text += &format!(" {:>12} {:>9} {:>10}\n", "same object", "(random)", "(nearest)");
    for s in stats {
        text += &format!("{:>5} {:>9.1} {:>9.1}", s.block, s.mean_distance, s.random_distance);
        for (_, fraction) in &s.within {
            text += &format!(" {:>8}", percent(Some(*fraction)));
        }
        text += &format!(
            " {:>12} {:>9} {:>10}\n",
            percent(s.same_object),
            percent(s.same_object_random),
            percent(s.same_object_nearest)
        );
    }
    text
}

/// The neighbours of a node but for the candidate that it is part of.
fn others(graph: &PatchGraph, node: usize) -> impl Iterator<Item = usize> + '_ {
    let own = graph.candidate_of(node);
    graph.neighbours(node).iter().map(|&c| c as usize).filter(move |&c| own != Some(c))
}

/// Which nodes and candidates of a graph are in an object.
struct Inside {
    nodes: Vec<bool>,
    candidates: Vec<bool>,
}

impl Inside {
    fn new(object: &Rle, graph: &PatchGraph, seen: (u32, u32)) -> Self {
        let pixels = object.to_columns();
        let of = |grid: (usize, usize), pooled: (usize, usize)| {
            let side = |pooled: usize| f64::from(graph.stride) * pooled as f64;
            covered(&pixels, object.size(), seen, grid, (side(pooled.0), side(pooled.1)))
        };
        let candidates = of(graph.candidates, graph.pooled);
        let nodes = if graph.pooled == (1, 1) { candidates.clone() } else { of(graph.nodes, (1, 1)) };
        Self { nodes, candidates }
    }
}

/// Which cells of a grid, each of `cell` (height, width) pixels of the network's input, a mask covers by half or more
/// of the image's pixels in them. `pixels` are column by column.
fn covered(
    pixels: &[u8],
    (height, width): (u32, u32),
    seen: (u32, u32),
    (rows, columns): (usize, usize),
    cell: (f64, f64),
) -> Vec<bool> {
    let indices = |length: u32, seen: u32, cell: f64| -> Vec<usize> {
        let scale = f64::from(seen) / f64::from(length.max(1));
        (0..length).map(|at| ((f64::from(at) + 0.5) * scale / cell) as usize).collect()
    };
    let (row_of, column_of) = (indices(height, seen.0, cell.0), indices(width, seen.1, cell.1));
    let (mut object, mut all) = (vec![0u32; rows * columns], vec![0u32; rows * columns]);
    for (x, &column) in column_of.iter().enumerate().filter(|(_, c)| **c < columns) {
        for (y, &row) in row_of.iter().enumerate().filter(|(_, r)| **r < rows) {
            all[row * columns + column] += 1;
            object[row * columns + column] += u32::from(pixels[x * height as usize + y] != 0);
        }
    }
    object.iter().zip(all).map(|(object, all)| all > 0 && 2 * object >= all).collect()
}

#[cfg(test)]
mod tests {
    use super::super::patches::tests::pooled;
    use super::*;

    fn mask(height: u32, width: u32, inside: impl Fn(u32, u32) -> bool) -> Rle {
        let pixels: Vec<bool> = (0..height * width).map(|i| inside(i % width, i / width)).collect();
        Rle::from_rows(height, width, &pixels).unwrap()
    }

    /// 2 × 3 nodes of 8 pixels, each linked to itself and to the next of the row, or the first.
    fn rows() -> PatchGraph {
        PatchGraph {
            number: 4,
            stage: 3,
            stride: 8,
            nodes: (2, 3),
            candidates: (2, 3),
            pooled: (1, 1),
            image: (16, 24),
            k: 2,
            edges: vec![0, 1, 1, 2, 2, 0, 3, 4, 4, 5, 5, 3],
            distances: vec![0.0; 12],
            strengths: None,
            salience: vec![0.0; 6],
        }
    }

    #[test]
    fn links_are_measured_between_the_middles_and_not_to_oneself() {
        let mut counts = LinkCounts::default();
        counts.add(&rows(), &[], (16, 24));
        let stats = counts.stats();
        // Two of 8 pixels and one of 16 in each row.
        assert_eq!((stats.block, stats.links), (4, 6));
        assert!((stats.mean_distance - 32.0 / 3.0).abs() < 1e-9);
        assert_eq!(stats.within[0], (32.0, 1.0));
        // From a corner: 8, 16, 8, √128, √320; from the middle of a row: 8, 8, 8, √128 twice.
        let corner = 32.0 + 128f64.sqrt() + 320f64.sqrt();
        let middle = 24.0 + 2.0 * 128f64.sqrt();
        assert!((stats.random_distance - (4.0 * corner + 2.0 * middle) / 30.0).abs() < 1e-9);
        assert_eq!((stats.object_nodes, stats.same_object), (0, None));
    }

    #[test]
    fn nodes_in_the_padding_are_left_out() {
        // Of 16 × 24 pixels the image has 7 × 9: the upper row's first two nodes, the second cut by the padding.
        let mut counts = LinkCounts::default();
        counts.add(&rows(), &[], (7, 9));
        let stats = counts.stats();
        assert_eq!(stats.links, 2);
        assert!((stats.mean_distance - 8.0).abs() < 1e-9);
        let corner = 32.0 + 128f64.sqrt() + 320f64.sqrt();
        let middle = 24.0 + 2.0 * 128f64.sqrt();
        assert!((stats.random_distance - (corner + middle) / 10.0).abs() < 1e-9);
    }

    #[test]
    fn links_inside_an_object_are_counted_beside_what_chance_and_nearness_would_give() {
        // The image is twice as large as what the network got. The object: the two left patches of the upper row.
        let object = mask(32, 48, |x, y| x < 32 && y < 16);
        let mut counts = LinkCounts::default();
        counts.add(&rows(), &[object], (16, 24));
        let stats = counts.stats();
        // Node 0 leads to 1, inside; node 1 to 2, outside.
        assert_eq!((stats.object_nodes, stats.same_object), (2, Some(0.5)));
        // One of the five others.
        assert!((stats.same_object_random.unwrap() - 0.2).abs() < 1e-9);
        // Node 0: one of 1 and 3, both 8 pixels away. Node 1: one of 0, 2 and 4.
        assert!((stats.same_object_nearest.unwrap() - (0.5 + 1.0 / 3.0) / 2.0).abs() < 1e-9);
    }

    #[test]
    fn half_a_patch_is_in_the_object_and_less_is_not() {
        for (edge, expected) in [(4, [true, false]), (3, [false, false]), (12, [true, true])] {
            let object = mask(8, 16, |x, _| x < edge);
            let found = covered(&object.to_columns(), (8, 16), (8, 16), (1, 2), (8.0, 8.0));
            assert_eq!(found, expected, "{edge}");
        }
    }

    #[test]
    fn pooled_candidates_are_as_large_as_they_are() {
        // Pixels below 8: two nodes across, one candidate of 8 × 8.
        let inside = Inside::new(&mask(18, 27, |x, y| x < 8 && y < 8), &pooled(), (18, 27));
        assert_eq!(inside.nodes.iter().filter(|n| **n).count(), 4);
        assert_eq!(inside.candidates, [true, false, false, false, false, false]);
        let mut counts = LinkCounts::default();
        counts.add(&pooled(), &[mask(18, 27, |x, y| x < 16 && y < 8)], (18, 27));
        let stats = counts.stats();
        // Eight nodes with links to 1 and 5, or to 0 and 5: one of two inside each.
        assert_eq!((stats.object_nodes, stats.same_object), (8, Some(0.5)));
        assert!((stats.same_object_random.unwrap() - 0.2).abs() < 1e-9);
    }
}
