//! Statistics of links over the blocks of a model, as curves.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use vigdet_coco::plot::style::{self, Axes, DrawResult};

use crate::explore::link_stats::LinkStats;

/// Width and height of the picture, in pixels.
const SIZE: (u32, u32) = (960, 1040);

/// Draws `links.png` and `links.svg` into `folder`: the mean distance of neighbours by block, and the share of them in
/// the same object where there are objects, each beside what chance would give.
///
/// # Errors
/// If a file cannot be written.
pub fn draw_links(stats: &[LinkStats], model: &str, folder: &Path) -> Result<Vec<PathBuf>> {
    let (png, svg) = (folder.join("links.png"), folder.join("links.svg"));
    let failed = |path: &Path, error: String| anyhow!("cannot draw {}: {error}", path.display());
    let objects = stats.iter().any(|s| s.same_object.is_some());
    let size = if objects { SIZE } else { (SIZE.0, SIZE.1 / 2) };
    draw(&BitMapBackend::new(&png, size).into_drawing_area(), stats, model).map_err(|e| failed(&png, e.to_string()))?;
    draw(&SVGBackend::new(&svg, size).into_drawing_area(), stats, model).map_err(|e| failed(&svg, e.to_string()))?;
    Ok(vec![png, svg])
}

/// Name and value by block of one curve.
type Curve = (&'static str, Vec<(f64, f64)>);

fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, stats: &[LinkStats], model: &str) -> DrawResult<(), DB> {
    root.fill(&style::PAPER)?;
    let curve = |name, of: &dyn Fn(&LinkStats) -> Option<f64>| -> Curve {
        (name, stats.iter().filter_map(|s| Some((s.block as f64, of(s)?))).collect())
    };
    let mut panels = vec![(
        format!("{model}: how far neighbours are"),
        "mean distance, pixels",
        vec![curve("neighbours", &|s| Some(s.mean_distance)), curve("random candidates", &|s| Some(s.random_distance))],
    )];
    if stats.iter().any(|s| s.same_object.is_some()) {
        panels.push((
            format!("{model}: neighbours inside the same object"),
            "share of links",
            vec![
                curve("neighbours", &|s| s.same_object),
                curve("random candidates", &|s| s.same_object_random),
                curve("nearest on the image", &|s| s.same_object_nearest),
            ],
        ));
    }
    let last = stats.iter().map(|s| s.block).max().unwrap_or(1) as f64;
    for (area, (title, y, curves)) in root.split_evenly((panels.len(), 1)).iter().zip(&panels) {
        let most = curves.iter().flat_map(|c| c.1.iter().map(|p| p.1)).fold(0.0, f64::max);
        let axes =
            // Room for the legend above the curves.
            Axes { title, x: "block", y, x_range: 1.0..last.max(2.0), y_range: 0.0..(most * 1.45).max(1e-6) };
        let mut chart = axes.draw(area)?;
        for (i, (name, points)) in curves.iter().enumerate() {
            chart
                .draw_series(LineSeries::new(points.clone(), style::line(i)))?
                .label(*name)
                .legend(move |at| style::legend_mark(at, i));
            let dots = points.iter().map(|&p| Circle::new(p, 4, style::colour(i).filled()));
            chart.draw_series(dots)?;
        }
        style::legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    }
    root.present()
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
