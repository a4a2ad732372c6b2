//! Histograms of several splits over each other, over an axis that counts doublings.

use super::{beside_axis, left, most, titled, Area, Histogram, MARGIN};
use plotters::prelude::*;
use vigdet_coco::plot::style;

/// Fewer ranges than these are not shown alone.
const LEAST: usize = 6;
/// At either end the ranges that hold at most this share of each split's objects are a tail.
const TAIL: f64 = 0.002;
/// A tail of so many ranges (an octave and a half) is cut off.
const LONG: usize = 3;

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
    if let Some(note) = beyond(histograms, (from, to), &label) {
        area.draw(&Text::new(note, (MARGIN, 32), left(12.0)))?;
    }
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

/// The ranges that have something, without long tails, and one beside them.
fn shown(histograms: &[&Histogram]) -> (usize, usize) {
    let all = histograms.first().map_or(0, |histogram| histogram.counts.len());
    let (first, last) = used(histograms, 0.0);
    let (body_first, body_last) = used(histograms, TAIL);
    let first = if body_first >= first + LONG { body_first } else { first };
    let last = if last >= body_last + LONG { body_last } else { last };
    let (mut from, mut to) = (first.saturating_sub(1), (last + 2).min(all));
    while to - from < LEAST.min(all) {
        from = from.saturating_sub(1);
        to = (to + 1).min(all);
    }
    (from, to)
}

/// The first and the last range beyond which, on either side, no histogram has more than this share of its values.
fn used(histograms: &[&Histogram], share: f64) -> (usize, usize) {
    fn end<'a>(counts: impl Iterator<Item = (usize, &'a usize)>, most: f64) -> Option<usize> {
        let mut counts = counts.scan(0, |sum, (at, count)| {
            *sum += count;
            Some((at, *sum))
        });
        counts.find(|(_, sum)| *sum as f64 > most).map(|(at, _)| at)
    }
    let most = |h: &Histogram| share * h.counts.iter().sum::<usize>() as f64;
    let firsts = histograms.iter().filter_map(|h| end(h.counts.iter().enumerate(), most(h)));
    let lasts = histograms.iter().filter_map(|h| end(h.counts.iter().enumerate().rev(), most(h)));
    (firsts.min().unwrap_or(0), lasts.max().unwrap_or(0))
}

/// What of all splits lies outside of the ranges that are shown.
fn beyond(histograms: &[&Histogram], (from, to): (usize, usize), label: impl Fn(f64) -> String) -> Option<String> {
    let edges = &histograms.first()?.edges;
    let count = |ranges: std::ops::Range<usize>| -> usize {
        histograms.iter().flat_map(|histogram| &histogram.counts[ranges.clone()]).sum()
    };
    let all = edges.len() - 1;
    let (below, above) = (count(0..from), count(to..all));
    let told = |count, side, edge| (count > 0).then(|| format!("{count} {side} {}", label(edge)));
    let ends = [told(below, "below", edges[from]), told(above, "above", edges[to])];
    let ends: Vec<String> = ends.into_iter().flatten().collect();
    (!ends.is_empty()).then(|| format!("not shown, of {}: {}", count(0..all), ends.join(", ")))
}
