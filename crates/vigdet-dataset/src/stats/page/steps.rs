//! Histograms of several splits over each other, over an axis that counts doublings.

use super::{beside_axis, most, titled, Area, Histogram};
use plotters::prelude::*;
use vigdet_coco::plot::style;

/// Fewer ranges than these are not shown alone.
const LEAST: usize = 6;

pub(super) fn draw<DB: DrawingBackend>(
    area: &Area<DB>,
    title: &str,
    x: &str,
    histograms: &[&Histogram],
    label: impl Fn(f64) -> String,
) -> style::DrawResult<(), DB> {
    let below = titled(area, title)?;
    let Some(first) = histograms.first() else { return Ok(()) };
    let (from, to) = shown(histograms);
    let edges: Vec<f64> = first.edges[from..=to].iter().map(|edge| edge.log2()).collect();
    let shares: Vec<Vec<f64>> = histograms.iter().map(|h| h.shares()[from..to].to_vec()).collect();
    let high = 1.1 * most(shares.iter().flatten());
    let mut chart = ChartBuilder::on(&below)
        .margin_right(24)
        .margin_left(8)
        .x_label_area_size(52)
        .y_label_area_size(64)
        .build_cartesian_2d(edges[0]..edges[edges.len() - 1], 0.0..high)?;
    let octaves = edges[edges.len() - 1] - edges[0];
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc("share of objects")
        .x_labels(if octaves > 4.0 { octaves as usize + 1 } else { 2 * octaves as usize + 1 })
        .y_labels(5)
        .x_label_formatter(&|doublings| label(doublings.exp2()))
        .y_label_formatter(&|share| beside_axis(*share, high))
        .axis_desc_style(style::text(14.0))
        .label_style(style::text(13.0))
        .axis_style(style::INK)
        .bold_line_style(style::GRID)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (index, shares) in shares.iter().enumerate() {
        let mut points = vec![(edges[0], 0.0)];
        for (ends, &share) in edges.windows(2).zip(shares) {
            points.extend([(ends[0], share), (ends[1], share)]);
        }
        points.push((edges[edges.len() - 1], 0.0));
        chart.draw_series([Polygon::new(points.clone(), style::colour(index).mix(0.12))])?;
        chart.draw_series([PathElement::new(points, style::line(index))])?;
    }
    Ok(())
}

/// The ranges that have something, and one beside them.
fn shown(histograms: &[&Histogram]) -> (usize, usize) {
    let used = |at: &usize| histograms.iter().any(|h| h.counts.get(*at).is_some_and(|&count| count > 0));
    let all = histograms.first().map_or(0, |histogram| histogram.counts.len());
    let (first, last) = ((0..all).find(used).unwrap_or(0), (0..all).rfind(used).unwrap_or(0));
    let (mut from, mut to) = (first.saturating_sub(1), (last + 2).min(all));
    while to - from < LEAST.min(all) {
        from = from.saturating_sub(1);
        to = (to + 1).min(all);
    }
    (from, to)
}
