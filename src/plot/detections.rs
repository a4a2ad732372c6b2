//! What a detector sees, drawn on the image.

use anyhow::Result;
use image::RgbImage;

use super::canvas::Line;
use super::colors;
use super::overlay::{overlay, Mark, MarkMask};
use crate::detect::Detections;

/// Draws detections, with their masks, of at least `score` on their image, one colour a class, the best on top. `names`
/// are those of the labels.
///
/// Small images are enlarged by a whole factor (see [`overlay`]).
pub fn draw_detections(image: &RgbImage, detections: &Detections, names: &[String], score: f32) -> Result<RgbImage> {
    let marks: Vec<Mark> = (0..detections.len())
        .rev()
        .filter(|&i| detections.scores[i] >= score)
        .map(|i| Mark {
            bbox: detections.boxes[i],
            text: format!("{} {:.2}", name_of(detections.labels[i], names), detections.scores[i]),
            color: colors::class(detections.labels[i]),
            line: Line::Solid,
            mask: detections.masks.get(i).cloned().map(MarkMask::OnBox),
        })
        .collect();
    overlay(image, &marks)
}

/// The name of a label, or its number where it has none.
pub(super) fn name_of(label: i64, names: &[String]) -> String {
    let name = usize::try_from(label).ok().and_then(|i| names.get(i)).filter(|name| !name.is_empty());
    name.cloned().unwrap_or_else(|| format!("class {label}"))
}
