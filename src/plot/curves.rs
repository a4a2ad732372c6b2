//! Training curves: losses, learning rate and AP (of boxes, where it does not say masks) over the steps of a run.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use vigdet_coco::plot::style::{self, Axes, DrawResult};

use super::history::{smooth, RunLog, Series};

/// Width and height of the picture, in pixels.
const SIZE: (u32, u32) = (1000, 1100);
/// Metrics that are drawn.
const METRICS: [&str; 6] = ["AP", "AP50", "AP75", "mask AP", "top-1", "top-5"];
/// Losses are smoothed over one part in so many of the run.
const SMOOTH: usize = 40;
/// Radius of dots, in pixels.
const DOT: i32 = 3;

/// Draws `curves.png` and `curves.svg` into `folder` from a run's log.jsonl.
pub fn curves(log: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let run = RunLog::read(log)?;
    let losses: Vec<Line> = shown_losses(&run).iter().map(Line::smoothed).collect();
    let (top, legend) = (top_of(&losses), SeriesLabelPosition::UpperRight);
    let mut panels = vec![Panel { title: "Loss".into(), y: "loss, smoothed", top, lines: losses, legend }];
    let shown = METRICS.iter().filter_map(|name| run.metrics.iter().find(|s| s.name == *name));
    let lines: Vec<Line> = shown.map(Line::metric).collect();
    if !lines.is_empty() {
        // AP starts low; accuracies may start anywhere, and end high.
        let (y, legend) = match run.metrics.iter().any(|series| series.name == "top-1") {
            true => ("accuracy", SeriesLabelPosition::LowerRight),
            false => ("AP", SeriesLabelPosition::UpperLeft),
        };
        panels.push(Panel { title: "Validation".into(), y, top: 1.0, lines, legend });
    }
    if !run.lr.is_empty() {
        let lines = vec![Line { points: run.lr.clone(), ..Line::default() }];
        let (top, legend) = (top_of(&lines), SeriesLabelPosition::UpperRight);
        panels.push(Panel { title: "Schedule".into(), y: "learning rate", top, lines, legend });
    }
    save(folder, "curves", SIZE, ("step", 0.0..run.steps.max(1) as f64), &panels)
}

/// The losses to draw: a single part that is the loss itself would only hide it.
fn shown_losses(run: &RunLog) -> &[Series] {
    match run.losses.as_slice() {
        [loss, part] if loss.points == part.points => &run.losses[..1],
        all => all,
    }
}

/// One line of a panel.
#[derive(Default)]
pub(super) struct Line {
    /// In the legend; empty: not there.
    pub name: String,
    /// Unsmoothed, in a light tone beneath.
    pub faint: Vec<(f64, f64)>,
    /// (x, y).
    pub points: Vec<(f64, f64)>,
    /// Radius of a dot at each point, in pixels; 0: none.
    pub dots: i32,
}

impl Line {
    fn smoothed(series: &Series) -> Self {
        let points = smooth(&series.points, SMOOTH);
        let last = points.last().map_or(0.0, |p| p.1);
        let faint = if series.name == "loss" { series.points.clone() } else { Vec::new() };
        let dots = if points.len() == 1 { DOT } else { 0 };
        Self { name: format!("{} (last {last:.3})", series.name), faint, points, dots }
    }

    fn metric(series: &Series) -> Self {
        let best = series.points.iter().map(|p| p.1).fold(0.0, f64::max);
        let name = format!("{} (best {best:.3})", series.name);
        Self { name, faint: Vec::new(), points: series.points.clone(), dots: DOT }
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

/// One chart.
pub(super) struct Panel {
    /// Above the chart.
    pub title: String,
    /// Beside the vertical axis.
    pub y: &'static str,
    /// Upper end of the vertical axis, which starts at 0; what is above is drawn at it.
    pub top: f64,
    /// In the palette's order.
    pub lines: Vec<Line>,
    /// Where the lines leave room for the legend.
    pub legend: SeriesLabelPosition,
}

/// A horizontal axis: what is under it, and its ends.
type X = (&'static str, Range<f64>);

/// Draws panels, one under the other over the same `x`, as `name`.png and `name`.svg of `size` pixels into `folder`.
pub(super) fn save(folder: &Path, name: &str, size: (u32, u32), x: X, panels: &[Panel]) -> Result<Vec<PathBuf>> {
    let (png, svg) = (folder.join(format!("{name}.png")), folder.join(format!("{name}.svg")));
    let failed = |path: &Path, error: String| anyhow!("cannot draw {}: {error}", path.display());
    draw(&BitMapBackend::new(&png, size).into_drawing_area(), &x, panels).map_err(|e| failed(&png, e.to_string()))?;
    draw(&SVGBackend::new(&svg, size).into_drawing_area(), &x, panels).map_err(|e| failed(&svg, e.to_string()))?;
    Ok(vec![png, svg])
}

fn draw<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, x: &X, panels: &[Panel]) -> DrawResult<(), DB> {
    area.fill(&style::PAPER)?;
    for (part, panel) in area.split_evenly((panels.len(), 1)).iter().zip(panels) {
        let y_range = 0.0..panel.top;
        let mut chart = Axes { title: &panel.title, x: x.0, y: panel.y, x_range: x.1.clone(), y_range }.draw(part)?;
        let cut = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().map(|p| (p.0, p.1.clamp(0.0, panel.top))).collect()
        };
        for (i, line) in panel.lines.iter().enumerate() {
            if !line.faint.is_empty() {
                chart.draw_series(LineSeries::new(cut(&line.faint), style::colour(i).mix(0.25)))?;
            }
            let series = chart.draw_series(LineSeries::new(cut(&line.points), style::line(i)))?;
            if !line.name.is_empty() {
                series.label(&line.name).legend(move |at| style::legend_mark(at, i));
            }
            if line.dots > 0 {
                let dots = cut(&line.points).into_iter();
                chart.draw_series(dots.map(|p| Circle::new(p, line.dots, style::colour(i).filled())))?;
            }
        }
        if panel.lines.iter().any(|line| !line.name.is_empty()) {
            style::legend(&mut chart, panel.legend.clone())?;
        }
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_hold_losses_metrics_and_the_learning_rate() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.jsonl");
        let step = |i: i32| format!("{{\"iter\":{i},\"loss\":{},\"box\":0.5,\"lr\":0.01}}\n", 9.0 / f64::from(i));
        let evaluation = "{\"iter\":50,\"bbox\":{\"AP\":0.25,\"AP50\":0.5},\"segm\":{\"AP\":0.125}}\n";
        std::fs::write(&log, (1..=50).map(step).collect::<String>() + evaluation).unwrap();
        let files = curves(&log, folder.path()).unwrap();
        let png = image::open(&files[0]).unwrap();
        assert_eq!((png.width(), png.height()), SIZE);
        let svg = std::fs::read_to_string(&files[1]).unwrap();
        for words in ["box (last 0.500)", "AP50 (best 0.500)", "mask AP (best 0.125)", "learning rate", "step"] {
            assert!(svg.contains(words), "{words}");
        }
        assert!(svg.contains("\n20\n") && !svg.contains("\n20.0\n"), "steps are whole numbers");
    }

    #[test]
    fn a_classifiers_only_part_is_left_out_and_its_legend_is_below_the_accuracies() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.jsonl");
        let draw = |part: f64| {
            let step = format!("{{\"iter\":1,\"loss\":0.5,\"cross_entropy\":{part},\"lr\":0.01}}\n");
            let evaluations = "{\"iter\":1,\"top1\":0.5,\"top5\":0.9}\n{\"iter\":2,\"top1\":0.6,\"top5\":0.95}\n";
            std::fs::write(&log, step + evaluations).unwrap();
            std::fs::read_to_string(&curves(&log, folder.path()).unwrap()[1]).unwrap()
        };
        assert!(draw(0.4).contains("cross_entropy"));
        let svg = draw(0.5);
        assert!(svg.contains("loss (last 0.500)") && !svg.contains("cross_entropy"));
        // The last of the texts and of the curves' dots before a position, by their y.
        let y_of = |at: usize, name: &str| -> f64 {
            let from = at + svg[at..].find(name).unwrap() + name.len();
            svg[from..from + svg[from..].find('"').unwrap()].parse().unwrap()
        };
        let label = svg[..svg.find("top-5 (best 0.950)").unwrap()].rfind("<text").unwrap();
        let dots: Vec<f64> = svg.match_indices("<circle").map(|(at, _)| y_of(at, "cy=\"")).collect();
        assert!(dots.len() >= 4 && dots.iter().skip(1).all(|y| *y < y_of(label, " y=\"")), "{dots:?}");
    }

    #[test]
    fn the_first_losses_do_not_flatten_the_rest() {
        let points: Vec<(f64, f64)> = (0..200).map(|i| (f64::from(i), if i == 0 { 1e9 } else { 2.0 })).collect();
        let line = Line { points, ..Line::default() };
        assert!((top_of(&[line]) - 2.3).abs() < 1e-9);
        assert!(top_of(&[]) > 0.0);
        // The 99th of a hundred, and 15% above it.
        let rising = Line { points: (0..100).map(|i| (f64::from(i), f64::from(i))).collect(), ..Line::default() };
        assert!((top_of(&[rising]) - 99.0 * 1.15).abs() < 1e-9);
    }
}
