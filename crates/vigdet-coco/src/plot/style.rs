//! One look for every plot: an embedded font, a palette that colour-blind readers can tell apart, quiet axes.
//!
//! ```
//! use plotters::prelude::*;
//! use vigdet_coco::plot::style::{self, Axes};
//!
//! let mut picture = String::new();
//! {
//!     let root = SVGBackend::with_string(&mut picture, style::SIZE).into_drawing_area();
//!     root.fill(&style::PAPER)?;
//!     let axes = Axes { title: "Training", x: "iteration", y: "loss", x_range: 0.0..100.0, y_range: 0.0..2.0 };
//!     let mut chart = axes.draw(&root)?;
//!     let points = (0..=100).map(|i| (f64::from(i), 2.0 / (1.0 + f64::from(i))));
//!     chart
//!         .draw_series(LineSeries::new(points, style::line(0)))?
//!         .label("focal")
//!         .legend(|at| style::legend_mark(at, 0));
//!     style::legend(&mut chart, SeriesLabelPosition::UpperRight)?;
//!     root.present()?;
//! }
//! assert!(picture.contains("iteration"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use plotters::chart::SeriesLabelPosition;
use plotters::coord::types::RangedCoordf64;
use plotters::coord::Shift;
use plotters::data::float::FloatPrettyPrinter;
use plotters::prelude::*;
use std::ops::Range;
use std::sync::Once;

/// Name under which the embedded font is registered with plotters; it is also plotters' own default family.
pub const FONT: &str = "sans-serif";
/// Width and height of a plot, in pixels.
pub const SIZE: (u32, u32) = (960, 640);
/// Labels of an axis, about.
const LABELS: usize = 8;
/// Background.
pub const PAPER: RGBColor = RGBColor(255, 255, 255);
/// Text and axes.
pub const INK: RGBColor = RGBColor(45, 45, 45);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(226, 226, 226);

/// Okabe and Ito's colours (Color Universal Design, 2008), strongest first: blue, vermilion, bluish green, orange,
/// reddish purple, sky blue, black, yellow.
pub const PALETTE: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(240, 228, 66),
];

/// Makes the embedded font (DejaVu Sans) known to plotters, once. Everything here does so by itself; call it before
/// drawing text with plotters directly.
pub fn register_font() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // The only error is a font that cannot be parsed; these two are part of the program, and a test draws with
        // them.
        let _ = plotters::style::register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
        let _ = plotters::style::register_font(FONT, FontStyle::Bold, dejavu::sans::bold());
    });
}

/// The colour of series `index`; they repeat after eight.
pub fn colour(index: usize) -> RGBColor {
    PALETTE[index % PALETTE.len()]
}

/// The line of series `index`.
pub fn line(index: usize) -> ShapeStyle {
    colour(index).stroke_width(2)
}

/// Text of `size` pixels.
pub fn text(size: f64) -> TextStyle<'static> {
    register_font();
    (FONT, size).into_font().color(&INK)
}

/// A colour between white (0) and the palette's blue (1), for heat maps.
pub fn heat(value: f64) -> RGBColor {
    let value = value.clamp(0.0, 1.0);
    let RGBColor(r, g, b) = PALETTE[0];
    let mix = |to: u8| (255.0 + (f64::from(to) - 255.0) * value).round() as u8;
    RGBColor(mix(r), mix(g), mix(b))
}

/// A chart with linear axes, as [`Axes::draw`] gives it.
pub type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// What drawing fails with.
pub type DrawResult<T, DB> = Result<T, DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// A titled pair of linear axes.
#[derive(Clone, Debug)]
pub struct Axes<'a> {
    /// Above the plot.
    pub title: &'a str,
    /// Below the x axis, with its unit.
    pub x: &'a str,
    /// Beside the y axis, with its unit.
    pub y: &'a str,
    /// Ends of the x axis. A range without length is widened.
    pub x_range: Range<f64>,
    /// Ends of the y axis. A range without length is widened.
    pub y_range: Range<f64>,
}

impl Axes<'_> {
    /// Draws title, axes and grid, and gives the chart for the series.
    pub fn draw<'b, DB: DrawingBackend + 'b>(&self, area: &DrawingArea<DB, Shift>) -> DrawResult<Chart<'b, DB>, DB> {
        register_font();
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, (FONT, 22).into_font().style(FontStyle::Bold).color(&INK))
            .margin(16)
            .margin_right(28)
            .x_label_area_size(48)
            .y_label_area_size(72)
            .build_cartesian_2d(wide(&self.x_range), wide(&self.y_range))?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .axis_desc_style(text(17.0))
            .label_style(text(14.0))
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .x_labels(LABELS)
            .x_label_formatter(&|x| label(*x, &self.x_range))
            .y_labels(8)
            .draw()?;
        Ok(chart)
    }
}

/// A number beside the x axis: whole where whole numbers are apart enough for labels of their own (steps, blocks).
fn label(x: f64, range: &Range<f64>) -> String {
    if range.end - range.start >= LABELS as f64 {
        return format!("{x:.0}");
    }
    FloatPrettyPrinter { allow_scientific: false, min_decimal: 1, max_decimal: 5 }.print(x)
}

/// A range that axes can be drawn for: finite, and not empty.
fn wide(range: &Range<f64>) -> Range<f64> {
    if !(range.start.is_finite() && range.end.is_finite()) {
        0.0..1.0
    } else if range.start == range.end {
        range.start - 0.5..range.end + 0.5
    } else {
        range.clone()
    }
}

/// The short line before a series' name in the legend.
pub fn legend_mark((x, y): (i32, i32), index: usize) -> PathElement<(i32, i32)> {
    PathElement::new(vec![(x, y), (x + 20, y)], line(index))
}

/// Draws the legend of the series that have labels.
pub fn legend<'a, DB: DrawingBackend + 'a>(
    chart: &mut Chart<'a, DB>,
    position: SeriesLabelPosition,
) -> DrawResult<(), DB> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(PAPER.mix(0.85))
        .border_style(GRID)
        .label_font(text(15.0))
        .margin(10)
        .draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_drawn_without_any_font_of_the_system() {
        let (width, height) = (200u32, 40u32);
        let mut pixels = vec![255; (width * height * 3) as usize];
        {
            let root = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
            root.draw(&Text::new("AP 0.5 · größer", (5, 5), text(20.0))).unwrap();
            root.present().unwrap();
        }
        let dark = pixels.chunks_exact(3).filter(|pixel| pixel[0] < 128).count();
        assert!((200..2000).contains(&dark), "{dark} dark pixels");
    }
}
