//! Statistics of links over the blocks of a model, as curves.

use std::path::{Path, PathBuf};

use anyhow::Result;
use plotters::prelude::SeriesLabelPosition;

use super::super::curves::{save, Line, Panel};
use crate::explore::link_stats::LinkStats;

/// Width and height of the picture, in pixels.
const SIZE: (u32, u32) = (960, 1040);

/// Draws `links.png` and `links.svg` into `folder`: the mean distance of neighbours by block, and the fraction of them
/// in the same object where there are objects, each beside what chance would give.
///
/// # Errors
/// If a file cannot be written.
pub fn draw_links(stats: &[LinkStats], model: &str, folder: &Path) -> Result<Vec<PathBuf>> {
    let line = |name: &str, of: &dyn Fn(&LinkStats) -> Option<f64>| {
        let points = stats.iter().filter_map(|s| Some((s.block as f64, of(s)?))).collect();
        Line { name: name.into(), faint: Vec::new(), points, dots: 4 }
    };
    let panel = |title: &str, y, lines: Vec<Line>| {
        let most = lines.iter().flat_map(|l| l.points.iter().map(|p| p.1)).fold(0.0, f64::max);
        // Room for the legend above the curves.
        let (top, legend) = ((most * 1.45).max(1e-6), SeriesLabelPosition::UpperRight);
        Panel { title: format!("{model}: {title}"), y, top, lines, legend }
    };
    let near = line("neighbours", &|s| Some(s.mean_distance));
    let random = line("random candidates", &|s| Some(s.random_distance));
    let mut panels = vec![panel("how far neighbours are", "mean distance, pixels", vec![near, random])];
    let mut size = (SIZE.0, SIZE.1 / 2);
    if stats.iter().any(|s| s.same_object.is_some()) {
        let same = line("neighbours", &|s| s.same_object);
        let random = line("random candidates", &|s| s.same_object_random);
        let nearest = line("nearest on the image", &|s| s.same_object_nearest);
        panels.push(panel("neighbours inside the same object", "share of links", vec![same, random, nearest]));
        size = SIZE;
    }
    let last = stats.iter().map(|s| s.block).max().unwrap_or(1) as f64;
    save(folder, "links", size, ("block", 1.0..last.max(2.0)), &panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curves_of_objects_are_there_where_there_are_objects() {
        let folder = tempfile::tempdir().unwrap();
        let stats = |same: Option<f64>| LinkStats {
            block: 1,
            links: 1,
            mean_distance: 3.0,
            random_distance: 4.0,
            within: Vec::new(),
            object_nodes: 1,
            same_object: same,
            same_object_random: same,
            same_object_nearest: same,
        };
        for (same, there) in [(Some(0.5), true), (None, false)] {
            let files = draw_links(&[stats(same)], "vig_ti", folder.path()).unwrap();
            assert_eq!(image::open(&files[0]).unwrap().height(), if there { 1040 } else { 520 });
            let svg = std::fs::read_to_string(&files[1]).unwrap();
            assert!(svg.contains("mean distance, pixels") && svg.contains("random candidates"));
            assert_eq!(svg.contains("nearest on the image"), there);
        }
    }
}
