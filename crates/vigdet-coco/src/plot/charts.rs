//! Curves and bars.

use super::style::{self, Axes};
use super::{picture, shortened};
use crate::analysis::sizes::SizeResult;
use crate::analysis::tide::Errors;
use crate::error::Result;
use crate::eval::Evaluation;
use ndarray::s;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

/// Precision against recall, a curve for each IoU threshold, mean over the classes.
///
/// # Errors
/// The picture cannot be written.
pub fn precision_recall(path: &Path, evaluation: &Evaluation) -> Result<()> {
    let params = &evaluation.params;
    let last = params.max_dets.len() - 1;
    // As `ap_per_iou`; with areas of the user's own the first is drawn.
    let area = params.areas.iter().position(|area| area.label == "all").unwrap_or(0);
    let aps = evaluation.ap_per_iou();
    // Ten curves fill the plot, so the legend stands beside it.
    const LEGEND: u32 = 190;
    const LINE: i32 = 24;
    const LINES: usize = 22;
    let (width, height) = style::SIZE;
    picture(path, (width + LEGEND, height), |root| {
        let (plot, beside) = root.split_horizontally(width);
        let axes = Axes {
            title: "Precision and recall, mean over classes",
            x: "recall",
            y: "precision",
            x_range: 0.0..1.0,
            y_range: 0.0..1.02,
        };
        let mut chart = axes.draw(&plot)?;
        for (t, (iou, ap)) in params.iou_thresholds.iter().zip(&aps).enumerate() {
            let of_iou = evaluation.precision.slice(s![t, .., .., area, last]);
            let mean = |r: usize| {
                let row = of_iou.slice(s![r, ..]);
                let present: Vec<f64> = row.iter().copied().filter(|&value| value > -1.0).collect();
                present.iter().sum::<f64>() / present.len().max(1) as f64
            };
            let points = params.recall_thresholds.iter().enumerate().map(|(r, &recall)| (recall, mean(r)));
            // Ten curves, eight colours: thresholds are ordered, so they go from dark to light instead.
            let colour = shade(t, params.iou_thresholds.len());
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
            // Of more thresholds than there is room for, some go without a name.
            let nth = params.iou_thresholds.len().div_ceil(LINES);
            if t % nth != 0 {
                continue;
            }
            let label = if *ap < 0.0 { format!("IoU {iou:.2}") } else { format!("IoU {iou:.2}: AP {ap:.3}") };
            let y = 60 + LINE * (t / nth) as i32;
            beside.draw(&PathElement::new(vec![(0, y), (20, y)], colour.stroke_width(3)))?;
            beside.draw(&Text::new(label, (28, y), style::text(15.0).pos(Pos::new(HPos::Left, VPos::Center))))?;
        }
        Ok(())
    })
}

/// From dark blue to orange, for an ordered series: lightness tells neighbours apart too.
fn shade(index: usize, count: usize) -> RGBColor {
    let fraction = index as f64 / count.saturating_sub(1).max(1) as f64;
    let (from, to) = (RGBColor(0, 45, 100), style::PALETTE[3]);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * fraction).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

/// AP of each class, best first, with AP at IoU 0.5 as a pale bar behind it.
///
/// # Errors
/// The picture cannot be written.
pub fn class_ap(path: &Path, evaluation: &Evaluation) -> Result<()> {
    let mut classes = evaluation.per_class();
    classes.retain(|class| class.ap >= 0.0);
    classes.sort_by(|a, b| b.ap.total_cmp(&a.ap));
    let rows: Vec<Row> = classes
        .iter()
        .map(|class| Row {
            name: class.label(),
            value: class.ap,
            behind: class.ap50.max(0.0),
            note: format!("{:.3}  ({})", class.ap, counted(class.objects, "object")),
        })
        .collect();
    bars(path, "AP of each class (pale: AP at IoU 0.5)", &rows, 1.0)
}

/// What each kind of error costs.
///
/// # Errors
/// The picture cannot be written.
pub fn errors(path: &Path, errors: &Errors) -> Result<()> {
    let row = |name: &str, value: f64, note: String| Row { name: name.to_owned(), value, behind: 0.0, note };
    let mut rows: Vec<Row> = (errors.kinds.iter())
        .map(|cost| row(cost.kind.name(), cost.cost, format!("{:+.4}  ({})", cost.cost, counted(cost.count, "error"))))
        .collect();
    for (name, cost) in [("false positives", errors.false_positives), ("false negatives", errors.false_negatives)] {
        rows.push(row(name, cost, format!("{cost:+.4}")));
    }
    let most = rows.iter().map(|row| row.value).fold(0.01, f64::max);
    let title = format!("Errors: how much AP50 ({:.3}) rises without them", errors.ap50.max(0.0));
    bars(path, &title, &rows, most * 1.2)
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

struct Row {
    name: String,
    value: f64,
    /// A second value, drawn pale behind the first.
    behind: f64,
    note: String,
}

/// Level bars, one below the other.
fn bars(path: &Path, title: &str, rows: &[Row], most: f64) -> Result<()> {
    const ROW: i32 = 22;
    const TOP: i32 = 56;
    const LEFT: i32 = 200;
    const WIDTH: i32 = 560;
    let height = TOP + ROW * rows.len() as i32 + 24;
    picture(path, (style::SIZE.0, height as u32), |root| {
        let caption = (style::FONT, 22.0).into_font().style(FontStyle::Bold).color(&style::INK);
        root.draw(&Text::new(title.to_owned(), (24, 18), caption))?;
        let x = |value: f64| LEFT + (value.max(0.0) / most * f64::from(WIDTH)).round() as i32;
        for (row, y) in rows.iter().zip((TOP..).step_by(ROW as usize)) {
            let bar = |to: f64, style: ShapeStyle| Rectangle::new([(LEFT, y + 3), (x(to), y + ROW - 4)], style);
            root.draw(&bar(row.behind, style::colour(5).mix(0.4).filled()))?;
            root.draw(&bar(row.value, style::colour(0).filled()))?;
            let middle = y + ROW / 2;
            let right = style::text(14.0).pos(Pos::new(HPos::Right, VPos::Center));
            root.draw(&Text::new(shortened(&row.name, 24), (LEFT - 8, middle), right))?;
            let end = x(row.value.max(row.behind));
            let left = style::text(13.0).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(row.note.clone(), (end + 8, middle), left))?;
        }
        Ok(())
    })
}

/// AP against the size of objects.
///
/// # Errors
/// The picture cannot be written.
pub fn ap_by_size(path: &Path, sizes: &[SizeResult]) -> Result<()> {
    const BOTTOM: f64 = 4.0;
    let last = sizes.last().map_or(256.0, |size| size.from) * 2.0;
    // Sizes double from step to step, so the axis counts doublings.
    let middle = |size: &SizeResult| {
        let (from, to) = (size.from.max(BOTTOM), if size.to.is_finite() { size.to } else { last });
        (from.log2() + to.log2()) / 2.0
    };
    let present: Vec<&SizeResult> = sizes.iter().filter(|size| size.ap >= 0.0).collect();
    picture(path, style::SIZE, |root| {
        style::register_font();
        let title = (style::FONT, 22).into_font().style(FontStyle::Bold).color(&style::INK);
        let below = root
            .margin(12, 0, 0, 0)
            .titled("AP against the size of objects (above: how many there are)", title)?
            .margin(20, 0, 0, 0);
        let mut chart = ChartBuilder::on(&below)
            .margin(16)
            .margin_right(28)
            .x_label_area_size(48)
            .y_label_area_size(72)
            .build_cartesian_2d(BOTTOM.log2()..last.log2(), 0.0..1.02)?;
        chart
            .configure_mesh()
            .x_desc("square root of the area, pixels")
            .y_desc("AP")
            .x_label_formatter(&|doublings| format!("{:.0}", doublings.exp2()))
            .axis_desc_style(style::text(17.0))
            .label_style(style::text(14.0))
            .axis_style(style::INK)
            .bold_line_style(style::GRID)
            .light_line_style(TRANSPARENT)
            .draw()?;
        chart.draw_series(LineSeries::new(present.iter().map(|size| (middle(size), size.ap)), style::line(0)))?;
        let dots = present.iter().map(|size| Circle::new((middle(size), size.ap), 5, style::colour(0).filled()));
        chart.draw_series(dots)?;
        // In a row above the plot, where no curve comes.
        for size in present {
            let (x, y) = chart.backend_coord(&(middle(size), 1.02));
            let centred = style::text(13.0).pos(Pos::new(HPos::Center, VPos::Bottom));
            root.draw(&Text::new(size.objects.to_string(), (x, y - 6), centred))?;
        }
        Ok(())
    })
}
