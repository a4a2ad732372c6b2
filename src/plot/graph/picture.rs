//! The picture of a graph: centres as pentagrams, their neighbours in the centres' colours, blocks side by side (Han et
//! al., 2022, Figure 4).

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::io::Write;
use std::path::Path;

use anyhow::{anyhow, Context, Result};
use base64::prelude::{Engine, BASE64_STANDARD};
use image::codecs::jpeg::JpegEncoder;
use image::{imageops, Rgb, RgbImage};
use plotters::coord::Shift;
use plotters::prelude::*;
use vigdet_coco::plot::style::{self, DrawResult};

use super::super::canvas::{text_size, Weight};
use super::super::colors;
use super::layout::{Layout, GAP, HEAD, HEAD_ROOM, LEGEND_ROOM, SMALL, TITLE};
use super::links::{BlockLinks, Centers, Links};
use crate::data::resize::antialias;
use crate::explore::GraphView;
use vigdet_coco::output::write_atomically;

/// Grid lines closer than this, in pixels of the picture, are left out: they would hide the image.
const CLOSEST_LINES: f64 = 7.0;
/// How much white is mixed into the image, so that colours stand out.
const LIGHTEN: f32 = 0.15;
/// What is not image but padding.
const PADDING: Rgb<u8> = Rgb([225, 225, 225]);
/// Quality of the JPEG inside of SVG files and pages.
const JPEG_QUALITY: u8 = 85;

/// What a picture shows besides centres and neighbours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PictureOptions {
    /// A line from each centre to each of its neighbours.
    pub edges: bool,
}

/// A picture that is ready to be written.
#[derive(Debug)]
pub struct GraphPicture {
    links: Links,
    options: PictureOptions,
    layout: Layout,
    /// Entries of the legend, with the position of each.
    legend: Vec<Placed>,
    photo: RgbImage,
}

/// What the legend explains.
#[derive(Clone, Debug, PartialEq)]
enum Entry {
    /// A centre's number and what is written beside its pentagram.
    Center(usize, String),
    Neighbour(&'static str),
    Grid(&'static str),
    Edge,
    Padding,
}

impl Entry {
    fn text(&self) -> &str {
        match self {
            Self::Center(_, text) => text,
            Self::Grid(text) | Self::Neighbour(text) => text,
            Self::Edge => "edges",
            Self::Padding => "padding",
        }
    }
}

/// Room for an entry's sign, in pixels.
const SIGN: i32 = 32;

/// What is drawn on, in pixels.
type Area<DB> = DrawingArea<DB, Shift>;
/// x and y, in pixels.
type Point = (i32, i32);
/// The centres that a patch is a neighbour of, with the strength of each link, and where the patch is.
type Linked = (Vec<(usize, f32)>, [u32; 4]);

impl GraphPicture {
    /// Blocks (indices from 0) of a view around some centres.
    ///
    /// # Errors
    /// As [`Links::new`].
    pub fn new(view: &GraphView, blocks: &[usize], centers: &Centers, options: PictureOptions) -> Result<Self> {
        let links = Links::new(view, blocks, centers)?;
        let title = text_size(&title(&links), TITLE as f32, Weight::Bold)?.0 as i32;
        let least = (title + 2 * GAP).clamp(560, 1600);
        let bare = Layout::new(&links, 0, least);
        let (legend, lines) = place(entries(&links, bare.scale, options), bare.size.0 as i32)?;
        let layout = Layout::new(&links, lines, least);
        let photo = photo(view, layout.panel, layout.scale)?;
        Ok(Self { links, options, layout, legend, photo })
    }

    /// What is drawn, as data.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The picture as pixels.
    pub fn image(&self) -> Result<RgbImage> {
        let (width, height) = self.layout.size;
        let mut image = RgbImage::from_pixel(width, height, Rgb([255; 3]));
        for &(x, y) in &self.layout.corners {
            imageops::replace(&mut image, &self.photo, x.into(), y.into());
        }
        self.draw(&BitMapBackend::with_buffer(&mut image, (width, height)).into_drawing_area())
            .map_err(|e| anyhow!("cannot draw the graph: {e}"))?;
        Ok(image)
    }

    /// Writes the picture as PNG.
    pub fn write_png(&self, path: &Path) -> Result<()> {
        self.image()?.save(path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The picture as SVG, the image inside.
    pub fn svg(&self) -> Result<String> {
        let (width, height) = self.layout.size;
        let mut drawn = String::new();
        self.draw(&SVGBackend::with_string(&mut drawn, (width, height)).into_drawing_area())
            .map_err(|e| anyhow!("cannot draw the graph: {e}"))?;
        // plotters has no JPEG in SVG, and would draw an image pixel by pixel: it goes beneath what is drawn.
        let start = drawn.find("<svg").and_then(|at| Some(at + drawn[at..].find('>')? + 1));
        let start = start.context("plotters has written no SVG")?;
        let mut beneath = format!(
            "\n<rect width=\"{width}\" height=\"{height}\" fill=\"#FFFFFF\"/>\n<defs><image id=\"photo\" \
             width=\"{}\" height=\"{}\" href=\"data:image/jpeg;base64,{}\"/></defs>",
            self.layout.panel.0,
            self.layout.panel.1,
            BASE64_STANDARD.encode(jpeg(&self.photo)?)
        );
        for (x, y) in &self.layout.corners {
            beneath += &format!("\n<use href=\"#photo\" x=\"{x}\" y=\"{y}\"/>");
        }
        drawn.insert_str(start, &beneath);
        Ok(drawn)
    }

    /// Writes the picture as SVG.
    pub fn write_svg(&self, path: &Path) -> Result<()> {
        let text = self.svg()?;
        Ok(write_atomically(path, |out| out.write_all(text.as_bytes()))?)
    }

    fn draw<DB: DrawingBackend>(&self, root: &Area<DB>) -> DrawResult<(), DB> {
        style::register_font();
        let links = &self.links;
        let bold = (style::FONT, TITLE).into_font().style(FontStyle::Bold).color(&style::INK);
        root.draw(&Text::new(title(links), (GAP, GAP), bold))?;
        let below = format!("{}, image of {}×{} pixels", links.weights, links.seen.1, links.seen.0);
        root.draw(&Text::new(below, (GAP, GAP + 38), style::text(HEAD)))?;
        for (block, &corner) in links.blocks.iter().zip(&self.layout.corners) {
            self.draw_panel(root, block, corner)?;
        }
        for (entry, line, x) in &self.legend {
            let y = self.layout.legend + line * LEGEND_ROOM;
            self.draw_entry(root, entry, (*x, y))?;
        }
        root.present()
    }

    fn draw_panel<DB: DrawingBackend>(&self, root: &Area<DB>, block: &BlockLinks, corner: Point) -> DrawResult<(), DB> {
        let (x, y) = corner;
        let bold = (style::FONT, HEAD).into_font().style(FontStyle::Bold).color(&style::INK);
        let head = format!("Block {} (stage {})", block.block, block.stage);
        root.draw(&Text::new(head, (x, y - HEAD_ROOM), bold))?;
        root.draw(&Text::new(grid_of(block), (x, y - HEAD_ROOM + 27), style::text(SMALL)))?;

        // The grid, finest lines first.
        self.draw_grid(root, corner, (block.stride, block.stride), WHITE.mix(0.5))?;
        if block.is_pooled() {
            let side = |nodes: usize, candidates: usize| (nodes / candidates.max(1)) as u32 * block.stride;
            let cell = (side(block.nodes.0, block.candidates.0), side(block.nodes.1, block.candidates.1));
            self.draw_grid(root, corner, cell, style::INK.mix(0.5))?;
        }

        // Neighbours; one of several centres is shared by them in stripes.
        let mut patches: BTreeMap<u32, Linked> = BTreeMap::new();
        for (c, center) in block.centers.iter().enumerate() {
            for (i, (&neighbour, &patch)) in center.neighbours.iter().zip(&center.patches).enumerate() {
                let strength = center.strengths.as_ref().map_or(1.0, |all| all[i] / all[0]);
                patches.entry(neighbour).or_insert_with(|| (Vec::new(), patch)).0.push((c, strength));
            }
        }
        for (centers, patch) in patches.values() {
            let [left, top, right, bottom] = self.layout.patch(corner, *patch);
            let count = centers.len() as i32;
            for (i, &(center, strength)) in centers.iter().enumerate() {
                let at = |i: i32| left + (right - left) * i / count;
                tile(root, [at(i as i32), top, at(i as i32 + 1), bottom], color_of(center), strength)?;
            }
        }
        if self.options.edges {
            for (c, center) in block.centers.iter().enumerate() {
                let from = self.middle(corner, center.patch);
                for &patch in &center.patches {
                    let line = vec![from, self.middle(corner, patch)];
                    root.draw(&PathElement::new(line.clone(), BLACK.mix(0.7).stroke_width(4)))?;
                    root.draw(&PathElement::new(line, color_of(c).stroke_width(2)))?;
                }
            }
        }
        for (c, center) in block.centers.iter().enumerate() {
            let [left, top, right, bottom] = self.layout.patch(corner, center.patch);
            let radius = (f64::from((right - left).min(bottom - top)) * 0.45).clamp(11.0, 22.0);
            pentagram(root, self.middle(corner, center.patch), radius, color_of(c))?;
        }
        Ok(())
    }

    fn middle(&self, corner: Point, patch: [u32; 4]) -> Point {
        let [left, top, right, bottom] = self.layout.patch(corner, patch);
        ((left + right) / 2, (top + bottom) / 2)
    }

    /// Lines between cells of (height, width) pixels of the input.
    fn draw_grid<DB: DrawingBackend>(
        &self,
        root: &Area<DB>,
        corner: Point,
        cell: (u32, u32),
        color: RGBAColor,
    ) -> DrawResult<(), DB> {
        if f64::from(cell.0.min(cell.1)) * self.layout.scale < CLOSEST_LINES {
            return Ok(());
        }
        let (height, width) = self.links.input;
        let [left, top, right, bottom] = self.layout.patch(corner, [0, 0, width, height]);
        let at = |v: u32| (f64::from(v) * self.layout.scale).round() as i32;
        let down = (1..).map(|i| i * cell.1).take_while(|x| *x < width).map(|x| left + at(x));
        let across = (1..).map(|i| i * cell.0).take_while(|y| *y < height).map(|y| top + at(y));
        let mut lines = down.map(|x| [(x, top), (x, bottom - 1)]).chain(across.map(|y| [(left, y), (right - 1, y)]));
        lines.try_for_each(|line| root.draw(&PathElement::new(line, color)))
    }

    fn draw_entry<DB: DrawingBackend>(&self, root: &Area<DB>, entry: &Entry, (x, y): Point) -> DrawResult<(), DB> {
        let middle = y + LEGEND_ROOM / 2;
        match entry {
            Entry::Center(c, _) => pentagram(root, (x + 11, middle), 10.0, color_of(*c))?,
            Entry::Neighbour(_) => tile(root, [x, middle - 9, x + 22, middle + 9], color_of(0), 1.0)?,
            Entry::Grid(_) => {
                for i in 0..3 {
                    let (across, down) = (x + 11 * i, middle - 9 + 9 * i);
                    let ink = style::INK.mix(0.7);
                    root.draw(&PathElement::new(vec![(across, middle - 9), (across, middle + 9)], ink))?;
                    root.draw(&PathElement::new(vec![(x, down), (x + 22, down)], ink))?;
                }
            }
            Entry::Edge => {
                root.draw(&PathElement::new(vec![(x, middle), (x + 22, middle)], color_of(0).stroke_width(3)))?
            }
            Entry::Padding => {
                let Rgb([r, g, b]) = PADDING;
                root.draw(&Rectangle::new([(x, middle - 9), (x + 22, middle + 9)], RGBColor(r, g, b).filled()))?
            }
        }
        root.draw(&Text::new(entry.text().to_string(), (x + SIGN, middle - 10), style::text(SMALL)))
    }
}

fn color_of(center: usize) -> RGBColor {
    let [r, g, b] = colors::center(center);
    RGBColor(r, g, b)
}

/// A patch: its colour, and a frame of it with a dark line around, that shows on any image. The weaker its link
/// (`strength` is at most 1), the fainter the colour. The rectangle's right and lower edge are excluded.
fn tile<DB: DrawingBackend>(
    root: &Area<DB>,
    [left, top, right, bottom]: [i32; 4],
    color: RGBColor,
    strength: f32,
) -> DrawResult<(), DB> {
    let corners = [(left + 1, top + 1), (right - 1, bottom - 1)];
    root.draw(&Rectangle::new(corners, color.mix(0.1 + 0.45 * f64::from(strength)).filled()))?;
    let frame = |inset: i32| {
        let (l, t, r, b) = (left + inset, top + inset, right - inset, bottom - inset);
        vec![(l, t), (r, t), (r, b), (l, b), (l, t)]
    };
    if right - left > 6 && bottom - top > 6 {
        root.draw(&PathElement::new(frame(0), BLACK.mix(0.8)))?;
        root.draw(&PathElement::new(frame(1), color))?;
        root.draw(&PathElement::new(frame(2), color))?;
    }
    Ok(())
}

/// A pentagram with a white and a dark rim.
fn pentagram<DB: DrawingBackend>(root: &Area<DB>, (x, y): Point, radius: f64, color: RGBColor) -> DrawResult<(), DB> {
    let star = |radius: f64| -> Vec<Point> {
        let point = |i: i32| {
            // The inner corners of a regular pentagram are at 1/φ² of its outer ones.
            let reach = if i % 2 == 0 { radius } else { radius * 0.382 + 0.5 };
            let angle = PI * (f64::from(i) / 5.0 - 0.5);
            ((f64::from(x) + reach * angle.cos()).round() as i32, (f64::from(y) + reach * angle.sin()).round() as i32)
        };
        (0..10).map(point).collect()
    };
    root.draw(&Polygon::new(star(radius + 6.0), BLACK.filled()))?;
    root.draw(&Polygon::new(star(radius + 4.0), WHITE.filled()))?;
    root.draw(&Polygon::new(star(radius), color.filled()))
}

fn title(links: &Links) -> String {
    format!("{}: neighbours of {} patches in {}", links.model, links.centers.len(), links.image)
}

fn grid_of(block: &BlockLinks) -> String {
    let side = |(rows, columns): (usize, usize)| format!("{rows}×{columns}");
    let nodes = format!("{} patches of {} pixels", side(block.nodes), block.stride);
    let most = if block.varies { "up to " } else { "" };
    if block.is_pooled() {
        format!("{nodes}, {most}{} neighbours each among {} pooled ones", block.k, side(block.candidates))
    } else {
        format!("{nodes}, {most}{} neighbours each", block.k)
    }
}

/// What the legend of a picture explains, in order.
fn entries(links: &Links, scale: f64, options: PictureOptions) -> Vec<Entry> {
    let center = |(c, (x, y)): (usize, &(f64, f64))| Entry::Center(c, format!("x {}, y {}", x.floor(), y.floor()));
    let mut entries: Vec<Entry> = links.centers.iter().enumerate().map(center).collect();
    let weighed = links.blocks.iter().flat_map(|block| &block.centers).any(|center| center.strengths.is_some());
    entries.push(Entry::Neighbour(match weighed {
        true => "its neighbours, in its colour (fainter: weaker links), at their true size",
        false => "its neighbours, in its colour, at their true size",
    }));
    if options.edges {
        entries.push(Entry::Edge);
    }
    let fine = |b: &BlockLinks| f64::from(b.stride) * scale < CLOSEST_LINES;
    let hidden = links.blocks.iter().any(|b| fine(b) && b.is_pooled());
    let pooled = links.blocks.iter().any(BlockLinks::is_pooled);
    entries.push(Entry::Grid(match (pooled, hidden) {
        (true, true) => "grid (where patches are too small: of pooled ones only)",
        (true, false) => "grid of patches, darker between pooled ones",
        (false, _) => "grid of patches",
    }));
    if links.seen != links.input {
        entries.push(Entry::Padding);
    }
    entries
}

/// An entry of the legend, its line and its first pixel in it.
type Placed = (Entry, i32, i32);

/// Places entries one after the other, in as many lines as a picture of `width` pixels needs; gives that number too.
fn place(entries: Vec<Entry>, width: i32) -> Result<(Vec<Placed>, usize)> {
    let (mut line, mut x) = (0, GAP);
    let mut placed = Vec::new();
    for entry in entries {
        let needed = SIGN + text_size(entry.text(), SMALL as f32, Weight::Regular)?.0 as i32 + GAP + 8;
        if x > GAP && x + needed > width {
            (line, x) = (line + 1, GAP);
        }
        placed.push((entry, line, x));
        x += needed;
    }
    Ok((placed, line as usize + 1))
}

/// The network's input as a panel shows it: the image, lightened, and grey padding.
fn photo(view: &GraphView, (width, height): (i32, i32), scale: f64) -> Result<RgbImage> {
    let side = |v: u32, most: i32| ((f64::from(v) * scale).round() as u32).clamp(1, most.max(1) as u32);
    let mut image = antialias(&view.image, side(view.seen.1, width), side(view.seen.0, height))?;
    for pixel in image.pixels_mut() {
        pixel.0 = pixel.0.map(|v| (f32::from(v) + (255.0 - f32::from(v)) * LIGHTEN) as u8);
    }
    let mut padded = RgbImage::from_pixel(width as u32, height as u32, PADDING);
    imageops::replace(&mut padded, &image, 0, 0);
    Ok(padded)
}

/// An image as JPEG.
pub(super) fn jpeg(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(image).context("cannot compress the image")?;
    Ok(bytes)
}
