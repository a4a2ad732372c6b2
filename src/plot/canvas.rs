//! Drawing on 8-bit RGB images: filled rectangles, frames and text, all cut to the image.

use ab_glyph::{Font, FontRef, GlyphId, PxScale, ScaleFont};
use anyhow::{Context, Result};
use image::{Rgb, RgbImage};
use vigdet_coco::rle::Rle;

/// Red, green, blue.
pub type Color = [u8; 3];

/// How a frame's line looks, so that kinds of boxes can be told apart without their colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// One colour all along.
    Solid,
    /// Long pieces in the colour, with white between.
    Dashed,
    /// Short pieces in the colour, with black between.
    Dotted,
}

/// Which of the two fonts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Labels and legends.
    Regular,
    /// Titles.
    Bold,
}

/// A rectangle in pixels: left, top, width, height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// Left edge.
    pub x: i64,
    /// Upper edge.
    pub y: i64,
    /// Width.
    pub w: i64,
    /// Height.
    pub h: i64,
}

impl Rect {
    /// Pixels that two rectangles share.
    pub fn shared(&self, other: &Self) -> i64 {
        let w = (self.x + self.w).min(other.x + other.w) - self.x.max(other.x);
        let h = (self.y + self.h).min(other.y + other.h) - self.y.max(other.y);
        w.max(0) * h.max(0)
    }
}

/// An image that is drawn on.
#[derive(Debug)]
pub struct Canvas {
    image: RgbImage,
}

impl Canvas {
    /// Takes the image over.
    pub fn new(image: RgbImage) -> Self {
        Self { image }
    }

    /// The image as drawn so far.
    pub fn into_image(self) -> RgbImage {
        self.image
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (i64, i64) {
        (self.image.width().into(), self.image.height().into())
    }

    /// Fills a rectangle, mixing `opacity` (0 to 1) of the colour with what is there.
    pub fn fill(&mut self, rect: Rect, color: Color, opacity: f32) {
        let (width, height) = self.size();
        for y in rect.y.max(0)..(rect.y + rect.h).min(height) {
            for x in rect.x.max(0)..(rect.x + rect.w).min(width) {
                blend(self.image.get_pixel_mut(x as u32, y as u32), color, opacity);
            }
        }
    }

    /// Tints the pixels of a mask of the image's size, and draws its outline `thick` pixels wide inside it.
    pub fn mask(&mut self, mask: &Rle, color: Color, opacity: f32, thick: i64) {
        let (width, height) = self.size();
        if (i64::from(mask.width()), i64::from(mask.height())) != (width, height) {
            return;
        }
        let pixels = mask.to_columns();
        let inside =
            |x: i64, y: i64| x >= 0 && y >= 0 && x < width && y < height && pixels[(x * height + y) as usize] != 0;
        let [left, top, w, h] = mask.bbox().map(|v| v as i64);
        for x in left..left + w {
            for y in top..top + h {
                if inside(x, y) {
                    let around = [(x - thick, y), (x + thick, y), (x, y - thick), (x, y + thick)];
                    let edge = !around.into_iter().all(|(x, y)| inside(x, y));
                    let opacity = if edge { 1.0 } else { opacity };
                    blend(self.image.get_pixel_mut(x as u32, y as u32), color, opacity);
                }
            }
        }
    }

    /// Copies a picture so that its upper left corner lies at (x, y).
    pub fn paste(&mut self, picture: &RgbImage, x: i64, y: i64) {
        image::imageops::replace(&mut self.image, picture, x, y);
    }

    /// Draws a frame `thick` pixels wide inside the rectangle's edges, with a dark rim of a pixel on both sides, so
    /// that it shows on any background.
    pub fn frame(&mut self, rect: Rect, thick: i64, color: Color, line: Line) {
        let Rect { x, y, w, h } = rect;
        for (edge, _) in edges(Rect { x: x - 1, y: y - 1, w: w + 2, h: h + 2 }, thick + 2) {
            self.fill(edge, [0; 3], 0.55);
        }
        let (period, between) = match line {
            Line::Solid => (i64::MAX, color),
            Line::Dashed => (6 * thick, [255; 3]),
            Line::Dotted => (2 * thick, [0; 3]),
        };
        for (edge, horizontal) in edges(rect, thick) {
            let length = if horizontal { edge.w } else { edge.h };
            for (piece, start) in (0..length).step_by(period as usize).enumerate() {
                let size = period.min(length - start);
                let part = if horizontal {
                    Rect { x: edge.x + start, w: size, ..edge }
                } else {
                    Rect { y: edge.y + start, h: size, ..edge }
                };
                self.fill(part, if piece % 2 == 0 { color } else { between }, 1.0);
            }
        }
    }

    /// Writes a line of text whose box has its upper left corner at (x, y) and is as large as [`text_size`] says.
    pub fn text(&mut self, x: i64, y: i64, text: &str, size: f32, weight: Weight, color: Color) -> Result<()> {
        let font = font(weight)?;
        let scaled = font.as_scaled(PxScale::from(size));
        let baseline = y as f32 + scaled.ascent();
        let (width, height) = self.size();
        for (id, offset) in positions(&font, size, text).0 {
            let at = ab_glyph::point(x as f32 + offset, baseline);
            let Some(outline) = font.outline_glyph(id.with_scale_and_position(size, at)) else { continue };
            let corner = outline.px_bounds().min;
            outline.draw(|dx, dy, coverage| {
                let (px, py) = (corner.x as i64 + i64::from(dx), corner.y as i64 + i64::from(dy));
                if (0..width).contains(&px) && (0..height).contains(&py) {
                    blend(self.image.get_pixel_mut(px as u32, py as u32), color, coverage.min(1.0));
                }
            });
        }
        Ok(())
    }
}

/// The four edges of a rectangle, `thick` wide, each pixel in one of them, and whether the edge is horizontal.
fn edges(Rect { x, y, w, h }: Rect, thick: i64) -> [(Rect, bool); 4] {
    let (across, down) = (thick.min(w), thick.min(h));
    let (right, bottom, inner) =
        ((x + w - across).max(x + across), (y + h - down).max(y + down), (h - 2 * down).max(0));
    [
        (Rect { x, y, w, h: down }, true),
        (Rect { x, y: bottom, w, h: down.min(h - down) }, true),
        (Rect { x, y: y + down, w: across, h: inner }, false),
        (Rect { x: right, y: y + down, w: across.min(w - across), h: inner }, false),
    ]
}

/// Width and height in pixels of a line of text.
pub fn text_size(text: &str, size: f32, weight: Weight) -> Result<(i64, i64)> {
    let font = font(weight)?;
    let scaled = font.as_scaled(PxScale::from(size));
    Ok((positions(&font, size, text).1.ceil() as i64, (scaled.ascent() - scaled.descent()).ceil() as i64))
}

/// Black or white: what reads better on `background` (W3C's contrast of relative luminance).
pub fn ink_on(background: Color) -> Color {
    let linear = background.map(|v| (f32::from(v) / 255.0).powf(2.2));
    let luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    if luminance > 0.18 {
        [0; 3]
    } else {
        [255; 3]
    }
}

/// Each glyph of a line with its distance from the start, and the length of all.
fn positions(font: &FontRef, size: f32, text: &str) -> (Vec<(GlyphId, f32)>, f32) {
    let scaled = font.as_scaled(PxScale::from(size));
    let (mut at, mut before) = (0.0, None);
    let mut out = Vec::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        let id = font.glyph_id(c);
        if let Some(before) = before {
            at += scaled.kern(before, id);
        }
        out.push((id, at));
        at += scaled.h_advance(id);
        before = Some(id);
    }
    (out, at)
}

fn font(weight: Weight) -> Result<FontRef<'static>> {
    let bytes = match weight {
        Weight::Regular => dejavu::sans::regular(),
        Weight::Bold => dejavu::sans::bold(),
    };
    FontRef::try_from_slice(bytes).context("the embedded font cannot be read")
}

fn blend(pixel: &mut Rgb<u8>, color: Color, opacity: f32) {
    for (p, c) in pixel.0.iter_mut().zip(color) {
        *p = (f32::from(*p) + (f32::from(c) - f32::from(*p)) * opacity).round() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(side: u32) -> Canvas {
        Canvas::new(RgbImage::from_pixel(side, side, Rgb([128; 3])))
    }

    #[test]
    fn a_frame_has_its_colour_on_its_edges_and_leaves_the_inside_alone() {
        let mut canvas = grey(20);
        canvas.frame(Rect { x: 4, y: 5, w: 12, h: 10 }, 2, [10, 20, 30], Line::Solid);
        let image = canvas.into_image();
        let of = |color: Color| {
            let positions: Vec<(u32, u32)> =
                image.enumerate_pixels().filter(|(_, _, p)| p.0 == color).map(|(x, y, _)| (x, y)).collect();
            positions
        };
        let line = of([10, 20, 30]);
        assert_eq!(line.len(), 12 * 10 - 8 * 6);
        assert!(line.iter().all(|&(x, y)| (4..16).contains(&x) && (5..15).contains(&y)));
        assert_eq!(image.get_pixel(9, 9).0, [128; 3]);
        assert!(image.get_pixel(3, 9).0[0] < 128 && image.get_pixel(6, 9).0[0] < 128);
    }

    #[test]
    fn what_lies_outside_is_cut_off() {
        let mut canvas = grey(8);
        canvas.frame(Rect { x: -5, y: -5, w: 8, h: 100 }, 2, [255, 0, 0], Line::Dotted);
        canvas.frame(Rect { x: 3, y: 3, w: 1, h: 1 }, 2, [255, 0, 0], Line::Dashed);
        canvas.frame(Rect { x: 5, y: 5, w: 0, h: 0 }, 2, [255, 0, 0], Line::Solid);
        canvas.text(-4, 5, "cut", 12.0, Weight::Bold, [0; 3]).unwrap();
        assert_eq!(canvas.into_image().get_pixel(3, 3).0, [255, 0, 0]);
    }

    #[test]
    fn text_stays_inside_the_box_that_its_size_tells() {
        let (w, h) = text_size("Ågjy 0.93", 14.0, Weight::Regular).unwrap();
        let mut canvas = grey(120);
        canvas.text(10, 20, "Ågjy 0.93", 14.0, Weight::Regular, [0; 3]).unwrap();
        let image = canvas.into_image();
        let dark: Vec<(i64, i64)> =
            image.enumerate_pixels().filter(|(_, _, p)| p.0[0] < 64).map(|(x, y, _)| (x.into(), y.into())).collect();
        assert!(dark.len() > 50);
        assert!(dark.iter().all(|&(x, y)| (10..10 + w).contains(&x) && (20..20 + h).contains(&y)));
    }

    #[test]
    fn ink_is_the_one_that_reads_better() {
        assert_eq!(ink_on([240, 228, 66]), [0; 3]);
        assert_eq!(ink_on([0, 114, 178]), [255; 3]);
        assert_eq!(ink_on([0; 3]), [255; 3]);
    }
}
