//! Training curves: losses, learning rate and box AP over the steps of a run.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::colors;
use super::log::{smooth, RunLog, Series};

/// Width and height of the picture, in pixels.
const SIZE: (u32, u32) = (1000, 1100);
/// Metrics that are drawn.
const METRICS: [&str; 3] = ["AP", "AP50", "AP75"];
/// Losses are smoothed over this share of the run.
const SMOOTH: usize = 40;

/// Draws `curves.png` and `curves.svg` into `folder` from a run's log.jsonl.
pub fn curves(log: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let run = RunLog::read(log)?;
    let (png, svg) = (folder.join("curves.png"), folder.join("curves.svg"));
    let failed = |path: &Path, error: String| anyhow!("cannot draw {}: {error}", path.display());
    colors::register_fonts()?;
    draw(&BitMapBackend::new(&png, SIZE).into_drawing_area(), &run)
        .map_err(|e| failed(&png, e.to_string()))?;
    draw(&SVGBackend::new(&svg, SIZE).into_drawing_area(), &run).map_err(|e| failed(&svg, e.to_string()))?;
    Ok(vec![png, svg])
}

type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

fn draw<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, run: &RunLog) -> Drawn<DB> {
    area.fill(&WHITE)?;
    let steps = run.steps.max(1) as f64;
    let panels = match run.metrics.is_empty() {
        true => area.split_evenly((2, 1)),
        false => area.split_evenly((3, 1)),
    };
    let losses: Vec<Line> = run.losses.iter().enumerate().map(|(i, s)| Line::smoothed(s, i)).collect();
    panel(&panels[0], "Loss (smoothed)", (steps, top_of(&losses)), &losses, false)?;
    if let Some(place) = panels.get(2) {
        let metrics: Vec<Line> = METRICS
            .iter()
            .filter_map(|name| run.metrics.iter().find(|s| s.name == *name))
            .enumerate()
            .map(|(i, s)| Line::metric(s, i))
            .collect();
        panel(&panels[1], "Box AP on the validation split", (steps, 1.0), &metrics, true)?;
        rate(place, run, steps)?;
    } else {
        rate(&panels[1], run, steps)?;
    }
    area.present()
}

fn rate<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, run: &RunLog, steps: f64) -> Drawn<DB> {
    let line =
        Line { name: String::new(), color: colors::CURVES[0], faint: Vec::new(), points: run.lr.clone() };
    let most = run.lr.iter().map(|p| p.1).fold(0.0, f64::max);
    panel(area, "Learning rate", (steps, if most > 0.0 { most * 1.05 } else { 1.0 }), &[line], false)
}

struct Line {
    name: String,
    color: [u8; 3],
    /// Unsmoothed, in a light tone beneath.
    faint: Vec<(f64, f64)>,
    points: Vec<(f64, f64)>,
}

impl Line {
    fn smoothed(series: &Series, place: usize) -> Self {
        Self {
            name: format!(
                "{} {:.3}",
                series.name,
                smooth(&series.points, SMOOTH).last().map_or(0.0, |p| p.1)
            ),
            color: colors::CURVES[place % colors::CURVES.len()],
            faint: if place == 0 { series.points.clone() } else { Vec::new() },
            points: smooth(&series.points, SMOOTH),
        }
    }

    fn metric(series: &Series, place: usize) -> Self {
        let best = series.points.iter().map(|p| p.1).fold(0.0, f64::max);
        Self {
            name: format!("{} (best {best:.3})", series.name),
            color: colors::CURVES[place % colors::CURVES.len()],
            faint: Vec::new(),
            points: series.points.clone(),
        }
    }
}

/// The upper end of the losses' axis: the first steps may be far above the rest, and are cut off there.
fn top_of(lines: &[Line]) -> f64 {
    let mut values: Vec<f64> = lines.iter().flat_map(|l| l.points.iter().map(|p| p.1)).collect();
    values.sort_by(f64::total_cmp);
    let most = values.get(values.len() * 99 / 100).copied().unwrap_or(1.0);
    if most > 0.0 {
        most * 1.15
    } else {
        1.0
    }
}

fn panel<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    title: &str,
    (steps, top): (f64, f64),
    lines: &[Line],
    markers: bool,
) -> Drawn<DB> {
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .caption(title, (colors::FONT, 22))
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..steps, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(90, 90, 90))
        .label_style((colors::FONT, 15))
        .x_desc("step")
        .x_labels(8)
        .y_labels(6)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| short(*y))
        .draw()?;
    for line in lines {
        let [r, g, b] = line.color;
        let color = RGBColor(r, g, b);
        let cut = |points: &[(f64, f64)]| points.iter().map(|p| (p.0, p.1.min(top))).collect::<Vec<_>>();
        if !line.faint.is_empty() {
            chart.draw_series(LineSeries::new(cut(&line.faint), color.mix(0.25)))?;
        }
        let series = chart.draw_series(LineSeries::new(cut(&line.points), color.stroke_width(2)))?;
        if !line.name.is_empty() {
            series
                .label(&line.name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], color.stroke_width(3)));
        }
        if markers || line.points.len() == 1 {
            chart.draw_series(
                line.points.iter().map(|p| Circle::new((p.0, p.1.min(top)), 3, color.filled())),
            )?;
        }
    }
    if lines.iter().any(|line| !line.name.is_empty()) {
        chart
            .configure_series_labels()
            .position(if markers { SeriesLabelPosition::UpperLeft } else { SeriesLabelPosition::UpperRight })
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .label_font((colors::FONT, 16))
            .draw()?;
    }
    Ok(())
}

/// A number of the vertical axis in few characters.
fn short(value: f64) -> String {
    match value.abs() {
        v if v == 0.0 => "0".into(),
        v if v < 1e-2 => format!("{value:.1e}"),
        v if v < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}
