//! Boxes with names and scores, drawn on their image.

use anyhow::Result;
use image::RgbImage;
use vigdet_coco::rle::Rle;

use super::canvas::{ink_on, text_size, Canvas, Color, Line, Rect, Weight};
use crate::detect::InstanceMask;

/// One box to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Corners x1, y1, x2, y2 in pixels of the image.
    pub bbox: [f32; 4],
    /// What its label says; empty: no label.
    pub text: String,
    /// Colour of frame and label.
    pub color: Color,
    /// The frame's line.
    pub line: Line,
    /// What of the box is object, where that is known.
    pub mask: Option<MarkMask>,
}

/// What of a box is object.
#[derive(Clone, Debug, PartialEq)]
pub enum MarkMask {
    /// As a detector gives it, over the box.
    OnBox(InstanceMask),
    /// As annotated or written to a file, at the size of the image.
    OnImage(Rle),
}

/// Images with a longer side below this are enlarged, so that labels are small beside objects, in pixels.
const LEAST_SIDE: u32 = 640;

/// How much of a mask's colour covers the image.
const MASK_OPACITY: f32 = 0.4;

/// Draws boxes, and masks with their outlines, on an image. Small images are enlarged by a whole factor first.
///
/// Marks are drawn in their order, the last on top; labels come after all frames and avoid one another where there is
/// room.
pub fn overlay(image: &RgbImage, marks: &[Mark]) -> Result<RgbImage> {
    let factor = LEAST_SIDE.div_ceil(image.width().max(image.height()).max(1)).min(8);
    let (width, height) = (image.width() * factor, image.height() * factor);
    let enlarged = match factor {
        1 => image.clone(),
        _ => image::imageops::resize(image, width, height, image::imageops::FilterType::CatmullRom),
    };
    let mut canvas = Canvas::new(enlarged);
    let side = width.max(height);
    let thick = (i64::from(side) / 400).clamp(2, 8);
    let size = (side as f32 / 55.0).clamp(13.0, 40.0);
    let rects: Vec<Rect> = marks.iter().map(|mark| rect_of(&mark.bbox, factor as f32, (width, height))).collect();
    for mark in marks {
        if let Some(mask) = &mark.mask {
            let pasted = match mask {
                MarkMask::OnBox(mask) => mask.paste(&mark.bbox.map(|v| v * factor as f32), height, width),
                MarkMask::OnImage(mask) => enlarged_mask(mask, factor),
            };
            canvas.mask(&pasted, mark.color, MASK_OPACITY, (thick / 2).max(1));
        }
    }
    for (mark, rect) in marks.iter().zip(&rects) {
        canvas.frame(*rect, thick, mark.color, mark.line);
    }
    let mut taken = Vec::new();
    for (mark, rect) in marks.iter().zip(&rects).filter(|(mark, _)| !mark.text.is_empty()) {
        let (w, h) = text_size(&mark.text, size, Weight::Regular)?;
        let pad = (size / 5.0).ceil() as i64;
        let label = place(*rect, (w + 2 * pad, h + pad), canvas.size(), &taken);
        canvas.fill(Rect { x: label.x - 1, y: label.y - 1, w: label.w + 2, h: label.h + 2 }, [0; 3], 0.55);
        canvas.fill(label, mark.color, 1.0);
        canvas.text(label.x + pad, label.y + pad / 2, &mark.text, size, Weight::Regular, ink_on(mark.color))?;
        taken.push(label);
    }
    Ok(canvas.into_image())
}

/// A mask with every pixel made `factor × factor` pixels. One that would be too large stays as it is.
fn enlarged_mask(mask: &Rle, factor: u32) -> Rle {
    if factor == 1 {
        return mask.clone();
    }
    let (height, columns) = (mask.height() as usize, mask.to_columns());
    let tall = |column: &[u8]| -> Vec<u8> {
        column.iter().flat_map(|&pixel| std::iter::repeat_n(pixel, factor as usize)).collect()
    };
    let pixels: Vec<u8> =
        columns.chunks(height.max(1)).flat_map(|column| tall(column).repeat(factor as usize)).collect();
    let size = (mask.height() * factor, mask.width() * factor);
    Rle::from_columns(size.0, size.1, &pixels).unwrap_or_else(|_| mask.clone())
}

/// The pixels that a box covers, on the enlarged image. Boxes that are not numbers become empty.
fn rect_of(bbox: &[f32; 4], factor: f32, (width, height): (u32, u32)) -> Rect {
    let cut = |v: f32, most: u32| (v * factor).clamp(0.0, most as f32).round() as i64;
    let (x1, y1, x2, y2) = (cut(bbox[0], width), cut(bbox[1], height), cut(bbox[2], width), cut(bbox[3], height));
    Rect { x: x1, y: y1, w: (x2 - x1).max(0), h: (y2 - y1).max(0) }
}

/// Where a label of a size goes: on the box's upper edge, outside, if there is room; else at the first of a few other
/// positions, or at the one that covers least of the labels already there.
fn place(rect: Rect, (w, h): (i64, i64), (width, height): (i64, i64), taken: &[Rect]) -> Rect {
    let Rect { x, y, .. } = rect;
    let (right, bottom) = (x + rect.w, y + rect.h);
    let corners = [
        (x, y - h),
        (x, bottom),
        (x, y),
        (right - w, y - h),
        (right - w, bottom),
        (right, y),
        (x - w, y),
        (x, bottom - h),
        (right - w, bottom - h),
    ];
    corners
        .into_iter()
        .map(|(cx, cy)| {
            let at = Rect { x: cx.min(width - w).max(0), y: cy.min(height - h).max(0), w, h };
            let moved = (at.x - cx).abs() + (at.y - cy).abs();
            (taken.iter().map(|t| at.shared(t)).sum::<i64>(), moved, at)
        })
        .min_by_key(|(covered, moved, _)| (*covered, *moved))
        .map_or(Rect { x, y, w, h }, |best| best.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PasteKind;
    use image::Rgb;

    fn mark(bbox: [f32; 4], text: &str) -> Mark {
        Mark { bbox, text: text.into(), color: [255, 0, 0], line: Line::Solid, mask: None }
    }

    #[test]
    fn small_images_are_enlarged_and_boxes_with_them() {
        let image = RgbImage::from_pixel(160, 100, Rgb([90; 3]));
        let drawn = overlay(&image, &[mark([40.0, 20.0, 80.0, 60.0], "")]).unwrap();
        assert_eq!((drawn.width(), drawn.height()), (640, 400));
        assert_eq!(drawn.get_pixel(160, 80).0, [255, 0, 0]);
        assert_eq!(drawn.get_pixel(319, 239).0, [255, 0, 0]);
        assert_eq!(drawn.get_pixel(240, 160).0, [90; 3]);
    }

    #[test]
    fn a_mask_is_tinted_inside_and_has_its_colour_on_its_outline() {
        let image = RgbImage::from_pixel(640, 64, Rgb([90; 3]));
        // The left half of the box is object.
        let values = (0..64).map(|i| if i % 8 < 4 { 1.0 } else { 0.0 }).collect();
        let mask = InstanceMask { values, side: 8, paste: PasteKind::Centres, threshold: 0.5 };
        let mask = MarkMask::OnBox(mask);
        let drawn = overlay(&image, &[Mark { mask: Some(mask), ..mark([100.0, 8.0, 180.0, 56.0], "") }]).unwrap();
        let at = |x, y| drawn.get_pixel(x, y).0;
        assert_eq!(at(139, 32), [255, 0, 0]);
        assert!(at(120, 32)[0] > 140 && at(120, 32)[1] < 70, "{:?}", at(120, 32));
        assert_eq!(at(160, 32), [90; 3]);
    }

    #[test]
    fn a_mask_of_the_image_is_enlarged_with_it() {
        let image = RgbImage::from_pixel(160, 100, Rgb([90; 3]));
        let object: Vec<bool> = (0..160 * 100).map(|i| (40..60).contains(&(i % 160)) && i / 160 < 50).collect();
        let mask = MarkMask::OnImage(Rle::from_rows(100, 160, &object).unwrap());
        let drawn = overlay(&image, &[Mark { mask: Some(mask), ..mark([20.0, 0.0, 80.0, 90.0], "") }]).unwrap();
        let at = |x, y| drawn.get_pixel(x, y).0;
        // Its outline, inside of it, and beside it.
        assert_eq!((at(160, 100), at(239, 100), at(200, 199)), ([255, 0, 0], [255, 0, 0], [255, 0, 0]));
        assert!(at(200, 100)[0] > 140 && at(200, 100)[1] < 70, "{:?}", at(200, 100));
        assert_eq!((at(158, 100), at(241, 100), at(200, 202)), ([90; 3], [90; 3], [90; 3]));
    }

    #[test]
    fn labels_of_equal_boxes_do_not_cover_each_other() {
        let rect = Rect { x: 100, y: 100, w: 80, h: 60 };
        let mut taken = Vec::new();
        for _ in 0..4 {
            let label = place(rect, (50, 15), (640, 480), &taken);
            assert_eq!(taken.iter().map(|t| label.shared(t)).sum::<i64>(), 0);
            taken.push(label);
        }
        assert_eq!(taken[0], Rect { x: 100, y: 85, w: 50, h: 15 });
    }

    #[test]
    fn labels_stay_inside_the_image() {
        for rect in [Rect { x: 0, y: 0, w: 640, h: 480 }, Rect { x: 620, y: 470, w: 20, h: 10 }] {
            let label = place(rect, (90, 20), (640, 480), &[]);
            assert!(label.x >= 0 && label.y >= 0 && label.x + 90 <= 640 && label.y + 20 <= 480, "{label:?}");
        }
    }

    #[test]
    fn boxes_that_are_no_numbers_or_far_outside_are_drawn_without_a_panic_and_change_nothing_else() {
        let image = RgbImage::from_pixel(640, 64, Rgb([90; 3]));
        let wild = [mark([f32::NAN; 4], ""), mark([1e30, 1e30, f32::INFINITY, f32::INFINITY], "")];
        let drawn = overlay(&image, &wild).unwrap();
        assert_eq!(drawn.get_pixel(320, 32).0, [90; 3]);
    }
}
