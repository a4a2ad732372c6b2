//! Training curves: losses, learning rate and AP (of boxes, where it does not say masks) over the steps of a run.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use vigdet_coco::plot::style::{self, Axes, DrawResult};

use super::log::{smooth, RunLog, Series};

/// Width and height of the picture, in pixels.
const SIZE: (u32, u32) = (1000, 1100);
/// Metrics that are drawn.
const METRICS: [&str; 6] = ["AP", "AP50", "AP75", "mask AP", "top-1", "top-5"];
/// Losses are smoothed over one part in so many of the run.
const SMOOTH: usize = 40;

/// Draws `curves.png` and `curves.svg` into `folder` from a run's log.jsonl.
pub fn curves(log: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let run = RunLog::read(log)?;
    let (png, svg) = (folder.join("curves.png"), folder.join("curves.svg"));
    let failed = |path: &Path, error: String| anyhow!("cannot draw {}: {error}", path.display());
    draw(&BitMapBackend::new(&png, SIZE).into_drawing_area(), &run)
        .map_err(|e| failed(&png, e.to_string()))?;
    draw(&SVGBackend::new(&svg, SIZE).into_drawing_area(), &run).map_err(|e| failed(&svg, e.to_string()))?;
    Ok(vec![png, svg])
}

fn draw<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, run: &RunLog) -> DrawResult<(), DB> {
    area.fill(&style::PAPER)?;
    let steps = run.steps.max(1) as f64;
    let losses: Vec<Line> = run.losses.iter().map(Line::smoothed).collect();
    let top = top_of(&losses);
    let mut panels = vec![Panel { title: "Loss", y: "loss, smoothed", top, lines: losses, low: false }];
    let shown = METRICS.iter().filter_map(|name| run.metrics.iter().find(|s| s.name == *name));
    let metrics: Vec<Line> = shown.map(Line::metric).collect();
    if !metrics.is_empty() {
        panels.push(Panel {
            title: "Validation",
            y: if run.is_of_classifier() { "accuracy" } else { "AP" },
            top: 1.0,
            lines: metrics,
            low: true,
        });
    }
    if !run.lr.is_empty() {
        let line = Line { name: String::new(), faint: Vec::new(), points: run.lr.clone(), markers: false };
        let lines = vec![line];
        panels.push(Panel { title: "Schedule", y: "learning rate", top: top_of(&lines), lines, low: false });
    }
    for (place, panel) in area.split_evenly((panels.len(), 1)).iter().zip(&panels) {
        panel.draw(place, steps)?;
    }
    area.present()
}

/// One line of a panel.
struct Line {
    /// In the legend; empty: not there.
    name: String,
    /// Unsmoothed, in a light tone beneath.
    faint: Vec<(f64, f64)>,
    points: Vec<(f64, f64)>,
    markers: bool,
}

impl Line {
    fn smoothed(series: &Series) -> Self {
        let points = smooth(&series.points, SMOOTH);
        let last = points.last().map_or(0.0, |p| p.1);
        let faint = if series.name == "loss" { series.points.clone() } else { Vec::new() };
        Self { name: format!("{} (last {last:.3})", series.name), faint, markers: points.len() == 1, points }
    }

    fn metric(series: &Series) -> Self {
        let best = series.points.iter().map(|p| p.1).fold(0.0, f64::max);
        let (name, points) = (format!("{} (best {best:.3})", series.name), series.points.clone());
        Self { name, faint: Vec::new(), points, markers: true }
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

/// One chart over the steps of a run.
struct Panel<'a> {
    title: &'a str,
    y: &'a str,
    /// Upper end of the vertical axis, which starts at 0; what is above is drawn at it.
    top: f64,
    lines: Vec<Line>,
    /// Whether the lines start low, so that the legend has room at the upper left.
    low: bool,
}

impl Panel<'_> {
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, steps: f64) -> DrawResult<(), DB> {
        let axes =
            Axes { title: self.title, x: "step", y: self.y, x_range: 0.0..steps, y_range: 0.0..self.top };
        let mut chart = axes.draw(area)?;
        let cut = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().map(|p| (p.0, p.1.clamp(0.0, self.top))).collect()
        };
        for (i, line) in self.lines.iter().enumerate() {
            if !line.faint.is_empty() {
                chart.draw_series(LineSeries::new(cut(&line.faint), style::colour(i).mix(0.25)))?;
            }
            let series = chart.draw_series(LineSeries::new(cut(&line.points), style::line(i)))?;
            if !line.name.is_empty() {
                series.label(&line.name).legend(move |at| style::legend_mark(at, i));
            }
            if line.markers {
                let dots = cut(&line.points).into_iter();
                chart.draw_series(dots.map(|p| Circle::new(p, 3, style::colour(i).filled())))?;
            }
        }
        if self.lines.iter().any(|line| !line.name.is_empty()) {
            let corner =
                if self.low { SeriesLabelPosition::UpperLeft } else { SeriesLabelPosition::UpperRight };
            style::legend(&mut chart, corner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_hold_losses_metrics_and_the_learning_rate() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.jsonl");
        let step =
            |i: i32| format!("{{\"iter\":{i},\"loss\":{},\"box\":0.5,\"lr\":0.01}}\n", 9.0 / f64::from(i));
        let evaluation = "{\"iter\":50,\"bbox\":{\"AP\":0.25,\"AP50\":0.5},\"segm\":{\"AP\":0.125}}\n";
        std::fs::write(&log, (1..=50).map(step).collect::<String>() + evaluation).unwrap();
        let files = curves(&log, folder.path()).unwrap();
        let png = image::open(&files[0]).unwrap();
        assert_eq!((png.width(), png.height()), SIZE);
        let svg = std::fs::read_to_string(&files[1]).unwrap();
        for words in
            ["box (last 0.500)", "AP50 (best 0.500)", "mask AP (best 0.125)", "learning rate", "step"]
        {
            assert!(svg.contains(words), "{words}");
        }
        assert!(svg.contains("\n20\n") && !svg.contains("\n20.0\n"), "steps are whole numbers");
    }

    #[test]
    fn the_first_losses_do_not_flatten_the_rest() {
        let points: Vec<(f64, f64)> =
            (0..200).map(|i| (f64::from(i), if i == 0 { 1e9 } else { 2.0 })).collect();
        let line = Line { name: String::new(), faint: Vec::new(), points, markers: false };
        assert!((top_of(&[line]) - 2.3).abs() < 1e-9);
        assert!(top_of(&[]) > 0.0);
    }
}
