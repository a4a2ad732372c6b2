//! Statistics as a page of plots.

mod bars;
mod class_rows;
mod heat;
mod steps;

use super::{Histogram, Stats, OVERLAPS};
use anyhow::{anyhow, Context, Result};
use image::{ImageFormat, RgbImage};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::io::Cursor;
use vigdet_coco::plot::{shortened, style};

/// Width of the page, in pixels. The height depends on the number of classes.
const WIDTH: u32 = 1440;
/// Height of a row of plots.
const ROW: u32 = 330;
/// Space at the sides.
const MARGIN: i32 = 24;
/// Height of a line of the legend.
const LEGEND: i32 = 22;

type Area<DB> = DrawingArea<DB, Shift>;

/// The page as a PNG file.
///
/// # Errors
/// It cannot be drawn.
pub fn png(stats: &[Stats], title: &str) -> Result<Vec<u8>> {
    let page = Page::of(stats, title);
    let mut pixels = vec![0; WIDTH as usize * page.height as usize * 3];
    let root = BitMapBackend::with_buffer(&mut pixels, (WIDTH, page.height)).into_drawing_area();
    page.draw(&root).map_err(|error| anyhow!("cannot draw: {error}"))?;
    drop(root);
    let image = RgbImage::from_raw(WIDTH, page.height, pixels).context("an image of another size")?;
    let mut file = Vec::new();
    image.write_to(&mut Cursor::new(&mut file), ImageFormat::Png)?;
    Ok(file)
}

/// The page as an SVG file.
///
/// # Errors
/// It cannot be drawn.
pub fn svg(stats: &[Stats], title: &str) -> Result<String> {
    let page = Page::of(stats, title);
    let mut file = String::new();
    let root = SVGBackend::with_string(&mut file, (WIDTH, page.height)).into_drawing_area();
    page.draw(&root).map_err(|error| anyhow!("cannot draw: {error}"))?;
    drop(root);
    Ok(file)
}

/// What is drawn, and where.
struct Page<'a> {
    stats: &'a [Stats],
    title: String,
    /// A text for each split, with its place.
    legend: Vec<(String, (i32, i32))>,
    height: u32,
    head: u32,
}

impl<'a> Page<'a> {
    fn of(stats: &'a [Stats], title: &str) -> Page<'a> {
        let (mut x, mut y) = (MARGIN, 66);
        let mut legend = Vec::new();
        for split in stats {
            let text = format!("{}: {} images, {} objects", shortened(&split.split, 24), split.images, split.objects);
            let width = 56 + 9 * text.chars().count() as i32;
            if x > MARGIN && x + width > WIDTH as i32 {
                (x, y) = (MARGIN, y + LEGEND);
            }
            legend.push((text, (x, y)));
            x += width;
        }
        let head = (y + LEGEND) as u32;
        let height = head + 2 * ROW + class_rows::height(stats);
        Page { stats, title: shortened(title, 100), legend, height, head }
    }

    fn draw<DB: DrawingBackend>(&self, root: &Area<DB>) -> style::DrawResult<(), DB> {
        root.fill(&style::PAPER)?;
        root.draw(&Text::new(self.title.clone(), (MARGIN, 18), bold(22.0)))?;
        for (index, (text, (x, y))) in self.legend.iter().enumerate() {
            let mark = Rectangle::new([(*x, y - 6), (x + 20, y + 6)], style::colour(index).filled());
            root.draw(&mark)?;
            root.draw(&Text::new(text.clone(), (x + 28, *y), left(15.0)))?;
        }
        let (_, rest) = root.split_vertically(self.head);
        let (plots, classes) = rest.split_vertically(2 * ROW);
        let panels = plots.split_evenly((2, 3));
        let [sizes, resized, aspects, counts, overlaps, positions] = &panels[..] else { return Ok(()) };
        let of = |of: fn(&Stats) -> &Histogram| self.stats.iter().map(of).collect::<Vec<_>>();
        let pixels = |size: f64| format!("{size:.0}");
        steps::draw(sizes, "Size of objects in the file", "√area, pixels", &of(|s| &s.sizes), pixels)?;
        steps::draw(resized, "Size of objects after resizing", "√area, pixels", &of(|s| &s.sizes_resized), pixels)?;
        steps::draw(aspects, "Shape of objects", "height / width", &of(|s| &s.aspects), ratio)?;
        self.counts(counts)?;
        let names: Vec<String> = OVERLAPS.iter().map(|least| format!("above {least}")).collect();
        let shares: Vec<Vec<f64>> = self.stats.iter().map(|stats| stats.overlapped.to_vec()).collect();
        bars::draw(overlaps, ["Crowding", "greatest IoU with another object", "objects"], &names, &shares)?;
        heat::draw(positions, self.stats)?;
        class_rows::draw(&classes, self.stats)?;
        root.present()
    }

    fn counts<DB: DrawingBackend>(&self, area: &Area<DB>) -> style::DrawResult<(), DB> {
        let of = |stats: &Stats| stats.images_by_objects.clone();
        let all: Vec<Histogram> = self.stats.iter().map(of).collect();
        let last = all.iter().filter_map(|h| h.counts.iter().rposition(|&count| count > 0)).max().unwrap_or(0);
        let shown = (last + 1).max(3);
        let edges = all.first().map(|histogram| histogram.edges.clone()).unwrap_or_default();
        let beyond = edges.len().saturating_sub(2);
        let name = |(at, ends): (usize, &[f64])| match ends {
            [from, _] if at == beyond => format!("{from}+"),
            [from, to] if to - from > 1.0 => format!("{from}–{}", to - 1.0),
            ends => format!("{}", ends[0]),
        };
        let names: Vec<String> = edges.windows(2).enumerate().map(name).take(shown).collect();
        let shares: Vec<Vec<f64>> = all.iter().map(|h| h.shares().into_iter().take(shown).collect()).collect();
        bars::draw(area, ["Objects an image", "objects", "images"], &names, &shares)
    }
}

/// A ratio as short as it can be read: 1/4, 0.71, 1, 1.41, 4.
fn ratio(value: f64) -> String {
    let short = |value: f64| {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let inverse = 1.0 / value;
    if value < 0.99 && (inverse - inverse.round()).abs() < 0.01 {
        return format!("1/{inverse:.0}");
    }
    short(value)
}

/// Writes the title of a plot, and gives what is left below it.
fn titled<DB: DrawingBackend>(area: &Area<DB>, title: &str) -> style::DrawResult<Area<DB>, DB> {
    let (above, below) = area.split_vertically(38);
    above.draw(&Text::new(title.to_owned(), (MARGIN, 14), bold(16.0)))?;
    Ok(below)
}

/// Text that begins at a place, centred on its height.
fn left(size: f64) -> TextStyle<'static> {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    style::text(size).pos(Pos::new(HPos::Left, VPos::Center))
}

fn percent(share: f64) -> String {
    let value = 100.0 * share;
    if value > 0.0 && value < 9.95 {
        format!("{value:.1}%")
    } else {
        format!("{value:.0}%")
    }
}

/// A share beside an axis that ends at `high`.
fn beside_axis(share: f64, high: f64) -> String {
    if high < 0.04 {
        format!("{:.1}%", 100.0 * share)
    } else {
        format!("{:.0}%", 100.0 * share)
    }
}

/// The greatest share, not below a percent.
fn most<'a>(shares: impl IntoIterator<Item = &'a f64>) -> f64 {
    shares.into_iter().copied().fold(0.01, f64::max)
}

/// Bold text of `size` pixels.
fn bold(size: f64) -> TextStyle<'static> {
    style::register_font();
    FontDesc::new(FontFamily::from(style::FONT), size, FontStyle::Bold).color(&style::INK)
}
