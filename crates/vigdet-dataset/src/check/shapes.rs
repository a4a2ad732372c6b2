//! Polygons and masks, against themselves and against their box.

use super::{at, Findings, Kind};
use crate::geometry;
use crate::types::Split;
use vigdet_coco::types::{Annotation, Image, Segmentation};

/// An outline and its box are of one object where no edge is further apart than so many pixels, or where their IoU is
/// at least this: parts of objects that are hidden may be in the one and not in the other.
const PIXELS: f64 = 2.0;
const LEAST_IOU: f64 = 0.7;
/// Sides of larger polygons are not compared with each other.
const MOST_POINTS: usize = 4000;

pub(super) fn check(split: &Split, objects: &[Vec<usize>], sizes: &[(u32, u32)], findings: &mut Findings) {
    for ((image, of_image), &size) in split.dataset.images.iter().zip(objects).zip(sizes) {
        for &place in of_image {
            let annotation = &split.dataset.annotations[place];
            match &annotation.segmentation {
                Some(Segmentation::Polygons(polygons)) => {
                    self::polygons(split, image, annotation, polygons, size, findings);
                }
                Some(Segmentation::Rle(mask)) => {
                    if mask.size() != (size.1, size.0) && size != (0, 0) {
                        let (height, width) = mask.size();
                        let detail = format!("{width}×{height}, the image is {}×{}", size.0, size.1);
                        findings.add(Kind::MaskSizeDiffers, || at(split, image, annotation, detail));
                    } else if mask.area() == 0 {
                        findings.add(Kind::MaskEmpty, || at(split, image, annotation, ""));
                    } else {
                        agrees(split, image, annotation, mask.bbox(), Kind::MaskNotInBox, findings);
                    }
                }
                None => {}
            }
        }
    }
}

fn polygons(
    split: &Split,
    image: &Image,
    annotation: &Annotation,
    polygons: &[Vec<f64>],
    (width, height): (u32, u32),
    findings: &mut Findings,
) {
    let mut found = |kind, detail: String| findings.add(kind, || at(split, image, annotation, detail));
    let mut sound = !polygons.is_empty();
    for polygon in polygons {
        if polygon.iter().any(|value| !value.is_finite()) {
            found(Kind::PolygonNotFinite, String::new());
            sound = false;
        } else if polygon.len() < 6 {
            found(Kind::PolygonFewPoints, format!("{} numbers", polygon.len()));
            sound = false;
        } else {
            if polygon.len() % 2 == 1 {
                found(Kind::PolygonOddNumbers, format!("{} numbers", polygon.len()));
            }
            if polygon.len() <= 2 * MOST_POINTS && geometry::crosses_itself(polygon) {
                found(Kind::PolygonCrossesItself, format!("{} points", polygon.len() / 2));
            }
        }
    }
    if !sound {
        return;
    }
    let extent = geometry::extent(polygons.iter().map(Vec::as_slice));
    let [x, y, w, h] = extent;
    let leaves = x < -1.0 || y < -1.0 || x + w > f64::from(width) + 1.0 || y + h > f64::from(height) + 1.0;
    if width > 0 && height > 0 && leaves {
        found(Kind::PolygonOutside, format!("{x} … {}, {y} … {} in {width}×{height}", x + w, y + h));
    }
    agrees(split, image, annotation, extent, Kind::PolygonNotInBox, findings);
}

fn agrees(
    split: &Split,
    image: &Image,
    annotation: &Annotation,
    outline: [f64; 4],
    kind: Kind,
    findings: &mut Findings,
) {
    let edges = |[x, y, w, h]: [f64; 4]| [x, y, x + w, y + h];
    let (a, b) = (edges(outline), edges(annotation.bbox));
    let apart = (0..4).any(|edge| (a[edge] - b[edge]).abs() > PIXELS);
    if apart && geometry::iou(outline, annotation.bbox) < LEAST_IOU {
        let detail = format!("outline {outline:?}, box {:?}", annotation.bbox);
        findings.add(kind, || at(split, image, annotation, detail));
    }
}
