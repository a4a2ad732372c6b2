//! Detections beside the ground truth: hits, misses and false alarms told apart by colour, line and word.

use anyhow::Result;
use image::{Rgb, RgbImage};
use vigdet_coco::rle::Rle;

use super::canvas::{text_size, Canvas, Color, Line, Rect, Weight};
use super::colors;
use super::judge::{judge, Judgement, Truth, Verdict};
use super::overlay::{overlay, Mark, MarkMask};
use crate::classes::Classes;
use crate::detect::Detections;

/// IoU from which on a detection is a hit.
pub const HIT: f32 = 0.5;

// Sky blue, bluish green, vermilion and yellow of the palette.
const TRUTH: Kind = Kind { name: "object", color: Some(5), line: Line::Solid };
const FOUND: Kind = Kind { name: "hit", color: Some(2), line: Line::Solid };
const FALSE: Kind = Kind { name: "false alarm", color: Some(1), line: Line::Dashed };
const MISSED: Kind = Kind { name: "missed", color: Some(7), line: Line::Dotted };
const CROWD: Kind = Kind { name: "crowd", color: None, line: Line::Dotted };
const IN_CROWD: Kind = Kind { name: "in a crowd", color: None, line: Line::Solid };

/// One kind of box in the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind {
    name: &'static str,
    /// Place in the palette; none: grey.
    color: Option<usize>,
    line: Line,
}

impl Kind {
    fn color(self) -> Color {
        self.color.map_or(colors::GREY, colors::of_palette)
    }

    fn mark(self, bbox: [f32; 4], text: String, mask: Option<&Rle>) -> Mark {
        let mask = mask.cloned().map(MarkMask::OnImage);
        Mark { bbox, text, color: self.color(), line: self.line, mask }
    }
}

/// Two views of an image side by side: what is annotated, and what was detected with at least `score`. A line above
/// tells the counts, a line below what the frames mean.
///
/// `masks` are those of the detections, at the size of the image; fewer or none where there are no more. Those of the
/// objects are in `truths`.
pub fn beside_truth(
    image: &RgbImage,
    title: &str,
    truths: &[Truth],
    detections: &Detections,
    masks: &[Option<Rle>],
    classes: &Classes,
    score: f32,
) -> Result<RgbImage> {
    let shown: Vec<usize> = (0..detections.len()).filter(|&i| detections.scores[i] >= score).collect();
    let detections = detections.select(&shown);
    let masks: Vec<Option<&Rle>> = shown.iter().map(|&i| masks.get(i).and_then(Option::as_ref)).collect();
    let judgement = judge(&detections, truths, HIT);
    let left = overlay(image, &truth_marks(truths, classes))?;
    let right = overlay(image, &detection_marks(truths, &detections, &masks, &judgement, classes))?;

    let count = |verdict: Verdict| judgement.detections.iter().filter(|v| **v == verdict).count();
    let objects = truths.iter().filter(|t| !t.crowd).count();
    let missed = judgement.found.iter().filter(|f| !**f).count();
    let (hits, alarms) = (many(count(Verdict::Hit), "hit"), many(count(Verdict::FalseAlarm), "false alarm"));
    let heads = [
        format!("Ground truth: {}", many(objects, "object")),
        format!("Detected (score ≥ {score:.2}): {hits}, {alarms}, {missed} missed"),
    ];

    let size = (left.width().max(left.height()) as f32 / 45.0).clamp(15.0, 44.0);
    let row = (size * 1.7) as i64;
    let gap = row / 2;
    let (panel_w, panel_h) = (i64::from(left.width()), i64::from(left.height()));
    let width = 3 * gap + 2 * panel_w;
    let mut kinds = vec![TRUTH, FOUND, FALSE, MISSED];
    kinds.extend(truths.iter().any(|t| t.crowd).then_some(CROWD));
    kinds.extend((count(Verdict::Ignored) > 0).then_some(IN_CROWD));
    let height = gap + 2 * row + panel_h + gap + row;
    let mut canvas = Canvas::new(RgbImage::from_pixel(width as u32, height as u32, Rgb([255; 3])));
    canvas.text(gap, gap, &fit(title, size, width - 2 * gap)?, size, Weight::Bold, [0; 3])?;
    for (i, (head, panel)) in heads.iter().zip([&left, &right]).enumerate() {
        let x = gap + i as i64 * (panel_w + gap);
        canvas.text(x, gap + row, &fit(head, size, panel_w)?, size, Weight::Regular, [40; 3])?;
        canvas.paste(panel, x, gap + 2 * row);
    }
    let (mut x, y) = (gap, gap + 2 * row + panel_h + gap / 2);
    let thick = ((size / 6.0) as i64).max(2);
    for kind in kinds {
        let swatch = Rect { x, y, w: 2 * row, h: (size * 1.1) as i64 };
        canvas.frame(swatch, thick, kind.color(), kind.line);
        x += swatch.w + gap / 2;
        canvas.text(x, y, kind.name, size, Weight::Regular, [0; 3])?;
        x += text_size(kind.name, size, Weight::Regular)?.0 + 2 * gap;
    }
    Ok(canvas.into_image())
}

fn truth_marks(truths: &[Truth], classes: &Classes) -> Vec<Mark> {
    let mark = |t: &Truth| {
        let (kind, name) = (if t.crowd { CROWD } else { TRUTH }, classes.name(t.label));
        kind.mark(t.bbox, if t.crowd { format!("crowd: {name}") } else { name }, t.mask.as_ref())
    };
    truths.iter().map(mark).collect()
}

fn detection_marks(
    truths: &[Truth],
    detections: &Detections,
    masks: &[Option<&Rle>],
    judgement: &Judgement,
    classes: &Classes,
) -> Vec<Mark> {
    let missed = truths
        .iter()
        .zip(&judgement.found)
        .filter(|(_, found)| !**found)
        .map(|(t, _)| MISSED.mark(t.bbox, format!("missed: {}", classes.name(t.label)), t.mask.as_ref()));
    // The best last, so that it lies on top.
    let found = (0..detections.len()).rev().map(|i| {
        let text = format!("{} {:.2}", classes.name(detections.labels[i]), detections.scores[i]);
        let (kind, text) = match judgement.detections[i] {
            Verdict::Hit => (FOUND, text),
            Verdict::FalseAlarm => (FALSE, format!("false: {text}")),
            Verdict::Ignored => (IN_CROWD, text),
        };
        kind.mark(detections.boxes[i], text, masks[i])
    });
    missed.chain(found).collect()
}

fn many(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A text cut with an ellipsis where it is wider than `width` pixels.
fn fit(text: &str, size: f32, width: i64) -> Result<String> {
    let mut cut = text.to_string();
    while text_size(&cut, size, Weight::Bold)?.0 > width && cut.chars().count() > 1 {
        cut = cut.chars().take(cut.chars().count() - 2).collect::<String>() + "…";
    }
    Ok(cut)
}
