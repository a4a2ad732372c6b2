//! What a detector sees, drawn on the image.

use anyhow::Result;
use image::{ImageFormat, RgbImage};

use super::canvas::Line;
use super::colors;
use super::overlay::{overlay, Mark, MarkMask};
use crate::classes::Classes;
use crate::detect::Detections;

/// Draws detections, with their masks, of at least `score` on their image, one colour a class, the best on top.
/// `classes` are those of the labels.
///
/// Small images are enlarged by a whole factor (see [`overlay`]).
pub fn draw_detections(image: &RgbImage, detections: &Detections, classes: &Classes, score: f32) -> Result<RgbImage> {
    let marks: Vec<Mark> = (0..detections.len())
        .rev()
        .filter(|&i| detections.scores[i] >= score)
        .map(|i| Mark {
            bbox: detections.boxes[i],
            text: format!("{} {:.2}", classes.name(detections.labels[i]), detections.scores[i]),
            color: colors::class(detections.labels[i]),
            line: Line::Solid,
            mask: detections.masks.get(i).cloned().map(MarkMask::OnBox),
        })
        .collect();
    overlay(image, &marks)
}

/// A picture as the content of a PNG file.
///
/// # Errors
/// A picture without pixels.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    picture.write_to(&mut std::io::Cursor::new(&mut bytes), ImageFormat::Png)?;
    Ok(bytes)
}
