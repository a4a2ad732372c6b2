//! What can be mended without guessing.

use super::ids;
use crate::geometry;
use crate::images::{self, Header};
use crate::types::{Import, Split};
use std::collections::{BTreeMap, HashSet};
use vigdet_coco::types::{Annotation, Dataset, Image, Segmentation};

/// The splits, mended, and a line for each thing that was done.
///
/// - Sizes that the labels do not say are taken from the files.
/// - Images that are not there or are no images are left out with their annotations; so are entries that come twice.
/// - Annotations of unknown images or classes, and those without a box and an outline, are left out; so is the second
///   of two that are alike.
/// - Boxes that have no extent get that of their outline. Boxes are clipped to their image.
/// - Polygons lose a last odd number; those of fewer than three points are left out, as are empty masks and those of
///   another size than the image.
/// - Areas that cannot be right are computed. Annotations whose ids come twice, or are 0, get new ones.
///
/// What a box in another unit, an exchanged size or a shifted class id means has to be guessed: it stays as it is.
pub fn fix(import: &Import) -> (Vec<Split>, Vec<String>) {
    let mut done = BTreeMap::new();
    let splits = import.splits.iter().map(|split| fix_split(split, &mut done)).collect();
    (splits, done.into_iter().map(|(what, count): (&str, usize)| format!("{count} {what}")).collect())
}

fn fix_split(split: &Split, done: &mut BTreeMap<&'static str, usize>) -> Split {
    let mut did = |what: &'static str| *done.entry(what).or_default() += 1;
    let paths: Vec<_> = split.dataset.images.iter().map(|image| split.path(&image.file_name)).collect();
    let headers = images::headers(&paths);
    let classes: HashSet<i64> = split.dataset.categories.iter().map(|category| category.id).collect();
    let (mut names, mut image_ids) = (HashSet::new(), HashSet::new());
    let (mut kept, mut annotations, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    let objects = ids::by_image(split);
    for ((image, header), of_image) in split.dataset.images.iter().zip(headers).zip(&objects) {
        let Ok(header) = header else {
            did("images left out with their annotations: not there, or no image that can be read");
            continue;
        };
        if !image_ids.insert(image.id) || !names.insert(&image.file_name) {
            did("entries of images left out: their id or file comes twice");
            continue;
        }
        let image = sized(image, &header, &mut did);
        for &at in of_image {
            let annotation = &split.dataset.annotations[at];
            if !classes.contains(&annotation.category_id) {
                did("annotations left out: their class is not there");
                continue;
            }
            if let Some(annotation) = mended(annotation, &image, &mut did) {
                annotations.push(annotation);
                scores.extend(split.score(at));
            }
        }
        kept.push(image);
    }
    let in_images: usize = objects.iter().map(Vec::len).sum();
    for _ in in_images..split.dataset.annotations.len() {
        did("annotations left out: their image is not there");
    }
    let alike = alike(&annotations);
    let mut drop = alike.iter();
    annotations.retain(|_| !drop.next().copied().unwrap_or(false));
    let mut drop = alike.iter();
    scores.retain(|_| !drop.next().copied().unwrap_or(false));
    alike.iter().filter(|alike| **alike).for_each(|_| did("annotations left out: they come twice"));
    renumber(&mut annotations, &mut did);
    let dataset = Dataset { images: kept, annotations, categories: split.dataset.categories.clone() };
    Split { dataset, scores, faults: Vec::new(), ..split.clone() }
}

fn sized(image: &Image, header: &Header, did: &mut impl FnMut(&'static str)) -> Image {
    let mut image = image.clone();
    if image.width == 0 || image.height == 0 {
        (image.width, image.height) = (header.width, header.height);
        did("sizes of images taken from their files");
    }
    image
}

/// `None` where nothing is left.
fn mended(annotation: &Annotation, image: &Image, did: &mut impl FnMut(&'static str)) -> Option<Annotation> {
    let mut mended = annotation.clone();
    mended.segmentation = match mended.segmentation {
        Some(Segmentation::Polygons(mut polygons)) => {
            for polygon in polygons.iter_mut().filter(|polygon| polygon.len() % 2 == 1) {
                polygon.pop();
                did("last odd numbers of polygons left out");
            }
            let before = polygons.len();
            polygons.retain(|polygon| polygon.len() >= 6 && polygon.iter().all(|value| value.is_finite()));
            (polygons.len()..before)
                .for_each(|_| did("polygons of fewer than three points, or without numbers, left out"));
            Some(Segmentation::Polygons(polygons)).filter(|s| !matches!(s, Segmentation::Polygons(p) if p.is_empty()))
        }
        Some(Segmentation::Rle(mask)) if mask.area() == 0 || mask.size() != (image.height, image.width) => {
            did("masks left out: empty, or not of their image's size");
            None
        }
        other => other,
    };
    let usable = |[_, _, w, h]: [f64; 4]| w > 0.0 && h > 0.0;
    if !usable(mended.bbox) || mended.bbox.iter().any(|value| !value.is_finite()) {
        match mended.segmentation.as_ref().map(geometry::bounds).filter(|&bounds| usable(bounds)) {
            Some(bounds) => {
                mended.bbox = bounds;
                did("boxes taken from their outline");
            }
            None => {
                did("annotations left out: neither their box nor their outline has an extent");
                return None;
            }
        }
    }
    let [x, y, w, h] = mended.bbox;
    let (width, height) = (f64::from(image.width), f64::from(image.height));
    if width > 0.0 && height > 0.0 {
        let corners =
            [x.clamp(0.0, width), y.clamp(0.0, height), (x + w).clamp(0.0, width), (y + h).clamp(0.0, height)];
        let clipped = [corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]];
        if !usable(clipped) {
            did("annotations left out: their box lies outside of the image");
            return None;
        }
        if corners != [x, y, x + w, y + h] {
            mended.bbox = clipped;
            did("boxes clipped to their image");
        }
    }
    let [_, _, w, h] = mended.bbox;
    if !mended.area.is_finite() || mended.area <= 0.0 || mended.area > 1.05 * (w + 1.0) * (h + 1.0) {
        mended.area = mended.segmentation.as_ref().map_or(w * h, geometry::area);
        did("areas computed");
    }
    Some(mended)
}

/// Which annotations repeat an earlier one in all but the id.
fn alike(annotations: &[Annotation]) -> Vec<bool> {
    let mut seen: std::collections::HashMap<_, Vec<&Annotation>> = std::collections::HashMap::new();
    let mut repeats = Vec::with_capacity(annotations.len());
    for annotation in annotations {
        let key = (annotation.image_id, annotation.category_id, annotation.bbox.map(f64::to_bits), annotation.iscrowd);
        let known = seen.entry(key).or_default();
        let same = known.iter().any(|other| other.segmentation == annotation.segmentation);
        repeats.push(same);
        if !same {
            known.push(annotation);
        }
    }
    repeats
}

fn renumber(annotations: &mut [Annotation], did: &mut impl FnMut(&'static str)) {
    let mut next = annotations.iter().map(|annotation| annotation.id).max().unwrap_or(0).max(0) + 1;
    let mut used = HashSet::new();
    for annotation in annotations {
        if annotation.id == 0 || !used.insert(annotation.id) {
            annotation.id = next;
            next += 1;
            did("annotations got new ids");
        }
    }
}
