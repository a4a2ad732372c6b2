//! Boxes: one by one, against their image, against each other, and all of a split together.

use super::{at, of, Example, Findings, Kind, Options};
use crate::geometry::iou;
use crate::types::Split;
use std::collections::HashMap;
use vigdet_coco::types::{Annotation, Image};

/// Corners may leave the image by this much, in pixels: annotations are rounded.
const ROUNDING: f64 = 1.0;
/// Fewer boxes than these say nothing about units.
const ENOUGH: usize = 5;

/// A box with its image's width and height.
type Placed = ([f64; 4], [f64; 2]);

pub(super) fn check(
    split: &Split,
    objects: &[Vec<usize>],
    sizes: &[(u32, u32)],
    options: &Options,
    findings: &mut Findings,
) {
    let annotations = &split.dataset.annotations;
    let mut placed: Vec<Placed> = Vec::with_capacity(annotations.len());
    for ((image, of_image), &(width, height)) in split.dataset.images.iter().zip(objects).zip(sizes) {
        let size = [f64::from(width), f64::from(height)];
        let of_image: Vec<&Annotation> = of_image.iter().map(|&at| &annotations[at]).collect();
        counts(split, image, &of_image, findings);
        pairs(split, image, &of_image, findings);
        for annotation in &of_image {
            if one(split, image, annotation, size, findings) && width > 0 && height > 0 {
                placed.push((annotation.bbox, size));
            }
        }
    }
    together(split, &placed, findings);
    small(split, &placed, options.size, findings);
}

fn counts(split: &Split, image: &Image, objects: &[&Annotation], findings: &mut Findings) {
    if objects.is_empty() {
        findings.add(Kind::ImageWithoutObjects, || of(split, image, ""));
    } else if objects.iter().all(|object| object.iscrowd) {
        findings.add(Kind::ImageOnlyCrowds, || of(split, image, ""));
    }
    if objects.len() > 100 {
        findings.add(Kind::ManyObjects, || of(split, image, format!("{} objects", objects.len())));
    }
}

/// Checks one box; whether it is one that says something about the others.
fn one(
    split: &Split,
    image: &Image,
    annotation: &Annotation,
    [width, height]: [f64; 2],
    findings: &mut Findings,
) -> bool {
    let [x, y, w, h] = annotation.bbox;
    let mut found = |kind| {
        findings.add(kind, || at(split, image, annotation, format!("[{x}, {y}, {w}, {h}] in {width}×{height}")));
    };
    if annotation.bbox.iter().any(|value| !value.is_finite()) {
        found(Kind::BoxNotFinite);
        return false;
    }
    if w < 0.0 || h < 0.0 {
        found(Kind::BoxNegative);
        return false;
    }
    if w == 0.0 || h == 0.0 {
        found(Kind::BoxEmpty);
        return false;
    }
    if w.max(h) > 20.0 * w.min(h) {
        found(Kind::BoxThin);
    }
    if !annotation.area.is_finite() || annotation.area <= 0.0 || annotation.area > 1.05 * (w + 1.0) * (h + 1.0) {
        let detail = format!("{} of a box of {w}×{h}", annotation.area);
        findings.add(Kind::AreaWrong, || at(split, image, annotation, detail));
    }
    if width == 0.0 || height == 0.0 {
        return true;
    }
    let mut found = |kind| {
        findings.add(kind, || at(split, image, annotation, format!("[{x}, {y}, {w}, {h}] in {width}×{height}")));
    };
    let inside = |start: f64, length: f64, side: f64| (start + length).min(side) - start.max(0.0);
    let (across, down) = (inside(x, w, width), inside(y, h, height));
    if across <= 0.0 || down <= 0.0 {
        found(Kind::BoxOutside);
    } else if across < 1.0 || down < 1.0 {
        found(Kind::BoxBelowPixel);
    } else if x < -ROUNDING || y < -ROUNDING || x + w > width + ROUNDING || y + h > height + ROUNDING {
        found(Kind::BoxLeavesImage);
    } else if across * down >= 0.99 * width * height {
        found(Kind::BoxWholeImage);
    }
    true
}

fn pairs(split: &Split, image: &Image, objects: &[&Annotation], findings: &mut Findings) {
    let mut seen: HashMap<[u64; 4], Vec<&Annotation>> = HashMap::with_capacity(objects.len());
    for &object in objects {
        let same = seen.entry(object.bbox.map(f64::to_bits)).or_default();
        // A mask of its own makes an object of its own.
        let again = |other: &&&Annotation| {
            other.category_id == object.category_id
                && other.iscrowd == object.iscrowd
                && (other.segmentation == object.segmentation || other.segmentation.is_none())
        };
        if let Some(first) = same.iter().find(again) {
            findings.add(Kind::ObjectTwice, || at(split, image, object, format!("and annotation {}", first.id)));
        } else if let Some(first) = same.iter().find(|other| other.category_id != object.category_id) {
            let detail = format!("class {}, annotation {} has {}", object.category_id, first.id, first.category_id);
            findings.add(Kind::ObjectTwoClasses, || at(split, image, object, detail));
        }
        same.push(object);
    }
    // From left to right, each is compared with those that begin within it.
    let mut sorted: Vec<&&Annotation> = objects.iter().filter(|o| o.bbox.iter().all(|v| v.is_finite())).collect();
    sorted.sort_by(|a, b| a.bbox[0].total_cmp(&b.bbox[0]));
    for (i, a) in sorted.iter().enumerate() {
        for b in sorted[i + 1..].iter().take_while(|b| b.bbox[0] <= a.bbox[0] + 0.05 * a.bbox[2]) {
            let overlap = if a.category_id == b.category_id && a.bbox != b.bbox { iou(a.bbox, b.bbox) } else { 0.0 };
            if overlap > 0.95 && a.iscrowd == b.iscrowd {
                let detail = format!("and annotation {}: {overlap:.3}", a.id);
                findings.add(Kind::ObjectNearlyTwice, || at(split, image, b, detail));
            }
        }
    }
}

/// What the boxes of a split say together about their unit and order.
fn together(split: &Split, placed: &[Placed], findings: &mut Findings) {
    if placed.len() < ENOUGH {
        return;
    }
    let all = |fits: &dyn Fn([f64; 4], [f64; 2]) -> bool| placed.iter().all(|&(bbox, size)| fits(bbox, size));
    let share = |fits: &dyn Fn([f64; 4], [f64; 2]) -> bool| {
        placed.iter().filter(|&&(bbox, size)| fits(bbox, size)).count() as f64 / placed.len() as f64
    };
    let within = |[x, y, w, h]: [f64; 4], [width, height]: [f64; 2]| {
        x >= -ROUNDING && y >= -ROUNDING && x + w <= width + ROUNDING && y + h <= height + ROUNDING
    };
    let mut found = |kind| {
        let ([x, y, w, h], size) = placed[0];
        let detail = format!("the first of {} boxes is [{x}, {y}, {w}, {h}] in {}×{}", placed.len(), size[0], size[1]);
        let example = || Example { split: split.name.clone(), detail, ..Example::default() };
        findings.add_many(kind, placed.len(), example);
    };
    let up_to = |most: f64| move |[x, y, w, h]: [f64; 4], _: [f64; 2]| x + w <= most && y + h <= most;
    if all(&up_to(1.001)) {
        found(Kind::BoxesInFractions);
        return;
    }
    let large = all(&|_, [width, height]| width > 200.0 && height > 200.0);
    let reach = placed.iter().map(|([x, y, w, h], _)| (x + w).max(y + h)).fold(0.0, f64::max);
    if placed.len() >= 4 * ENOUGH && large && all(&up_to(100.1)) && reach > 90.0 {
        found(Kind::BoxesInPercent);
        return;
    }
    if share(&|bbox, size| !within(bbox, size)) < 0.1 {
        return;
    }
    if all(&|[x, y, w, h], size| w > x && h > y && within([x, y, w - x, h - y], size)) {
        found(Kind::BoxesAsCorners);
    } else if all(&|[x, y, w, h], size| within([x - w / 2.0, y - h / 2.0, w, h], size)) {
        found(Kind::BoxesAsCentres);
    } else if all(&|[x, y, w, h], size| within([y, x, h, w], size)) {
        found(Kind::BoxesAxesSwapped);
    }
}

fn small(split: &Split, placed: &[Placed], (short, long): (u32, u32), findings: &mut Findings) {
    let side = |&([_, _, w, h], [width, height]): &Placed| (w * h).sqrt() * scale(width, height, short, long);
    let sides: Vec<f64> = placed.iter().map(side).collect();
    let ranges = [(Kind::ObjectsBelow8, 0.0..8.0), (Kind::ObjectsBelow16, 8.0..16.0)];
    for (kind, range) in ranges {
        let count = sides.iter().filter(|side| range.contains(*side)).count();
        if count > 0 {
            let percent = 100.0 * count as f64 / sides.len() as f64;
            let detail = format!("{percent:.1}% of {} objects, images resized to {short} and {long}", sides.len());
            findings.add_many(kind, count, || Example { split: split.name.clone(), detail, ..Example::default() });
        }
    }
}

/// By how much an image is resized: the shorter side to `short`, unless the longer one then exceeds `long`.
pub(crate) fn scale(width: f64, height: f64, short: u32, long: u32) -> f64 {
    (f64::from(short) / width.min(height)).min(f64::from(long) / width.max(height))
}
