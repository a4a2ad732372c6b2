//! Reading annotation files and results files.

use super::fast;
use super::raw::{Bbox, Flag, Outline, RawAnnotation, RawDataset, RawDetection};
use crate::error::{shortened, Error, Result};
use crate::eval::Warning;
use crate::types::{Annotation, Category, Dataset, Detection, Image, Segmentation};
use std::collections::HashSet;
use std::path::Path;

/// Reads an annotation file (COCO's `instances_*.json`).
///
/// What an annotation lacks is filled in where there is one sensible value: `bbox` from the segmentation, `area` from
/// the box, `iscrowd` with false. Keys that COCO's data model does not have are passed over. So is, beside a `bbox`, a
/// `segmentation` that is none, such as a flat list of numbers.
///
/// # Errors
/// One line that says where and what: the file cannot be read, is not JSON, lacks a key or has a wrong type somewhere,
/// two images, categories or annotations share an id, or an annotation names an image or a category that is not there.
pub fn read_dataset(path: impl AsRef<Path>) -> Result<Dataset> {
    read_dataset_with_warnings(path).map(|(dataset, _)| dataset)
}

/// Reads an annotation file as [`read_dataset`] does. The warnings name what an evaluation does not use as one might
/// think.
///
/// # Errors
/// Those of [`read_dataset`].
pub fn read_dataset_with_warnings(path: impl AsRef<Path>) -> Result<(Dataset, Vec<Warning>)> {
    let path = path.as_ref();
    let (dataset, warnings) = read_dataset_as_found(path)?;
    check_ids(&dataset).map_err(|error| error.in_file(path))?;
    Ok((dataset, warnings))
}

/// Reads an annotation file as [`read_dataset_with_warnings`] does, but leaves the ids as they are: they may come twice
/// or name what is not there. For programs that list what is wrong with a file.
///
/// # Errors
/// Those of [`read_dataset`] that are not about ids.
pub fn read_dataset_as_found(path: impl AsRef<Path>) -> Result<(Dataset, Vec<Warning>)> {
    let path = path.as_ref();
    let bytes = read_bytes(path)?;
    let mut warnings = Vec::new();
    let raw = match fast::dataset(&bytes) {
        Some(raw) => raw,
        None => match parse(path, &bytes) {
            Ok(raw) => raw,
            // Boxes may be all that is wanted: then an outline that is none is no reason to refuse the file.
            Err(error) => {
                let lenient: Option<RawDataset<Outline>> = serde_json::from_slice(&bytes).ok();
                let (raw, bad) = lenient.and_then(RawDataset::without_bad_outlines).ok_or(error)?;
                warnings.extend(bad.first().map(|(id, reason)| Warning::SegmentationLeftOut {
                    annotations: bad.len(),
                    annotation: *id,
                    reason: shortened(reason),
                }));
                raw
            }
        },
    };
    drop(bytes);
    let overwritten = raw.annotations.iter().filter(|annotation| annotation.ignore_differs()).count();
    warnings.extend((overwritten > 0).then_some(Warning::IgnoreOverwritten { annotations: overwritten }));
    let dataset = dataset(raw).map_err(|error| error.in_file(path))?;
    Ok((dataset, warnings))
}

/// Reads a results file: a list of detections, each with `image_id`, `category_id`, `score`, and `bbox` or
/// `segmentation` or both. Whether the images are those of a ground truth is checked by the evaluation.
///
/// # Errors
/// One line that says where and what.
pub fn read_results(path: impl AsRef<Path>) -> Result<Vec<Detection>> {
    let path = path.as_ref();
    let failed = |reason| Error::Read { path: path.to_path_buf(), reason };
    let file = std::fs::File::open(path).map_err(failed)?;
    // Only a regular file can be read in parts.
    if file.metadata().map_err(failed)?.is_file() {
        if let Some(detections) = fast::detections(&file).map_err(failed)? {
            return Ok(detections);
        }
    }
    drop(file);
    let bytes = read_bytes(path)?;
    let raw: Vec<RawDetection> = parse(path, &bytes)?;
    let detections = raw.into_iter().enumerate().map(|(index, raw)| detection(index, raw));
    detections.collect::<Result<_>>().map_err(|error| error.in_file(path))
}

/// Reads results from memory.
///
/// # Errors
/// As [`read_results`].
pub fn parse_results(bytes: &[u8]) -> Result<Vec<Detection>> {
    let raw: Vec<RawDetection> = parse(Path::new("results"), bytes)?;
    raw.into_iter().enumerate().map(|(index, raw)| detection(index, raw)).collect()
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = std::fs::read(path).map_err(|reason| Error::Read { path: path.to_path_buf(), reason })?;
    // Some editors put a byte-order mark before the text.
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        bytes.drain(..3);
    }
    Ok(bytes)
}

fn parse<'a, T: serde::Deserialize<'a>>(path: &Path, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::File { path: path.to_path_buf(), message: explain::<T>(bytes, &error) })
}

/// Says where in the data an error is. Parses a second time, with the path to each value kept, which is slow but only
/// done for a file that is wrong.
fn explain<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8], error: &serde_json::Error) -> String {
    let literal = literal_at(bytes, error);
    let deserializer = &mut serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize::<_, T>(deserializer) {
        Err(found) if found.path().iter().len() > 0 => {
            // A value inside that has no name yet is a question mark.
            let path = found.path().to_string();
            let message = literal.unwrap_or_else(|| shortened(&found.inner().to_string()));
            format!("{}: {message}", path.trim_end_matches(".?"))
        }
        _ => literal.unwrap_or_else(|| shortened(&error.to_string())),
    }
}

/// What Python's `json` writes for numbers that JSON does not have, where that is what the error is about.
fn literal_at(bytes: &[u8], error: &serde_json::Error) -> Option<String> {
    if !error.is_syntax() {
        return None;
    }
    let line = bytes.split(|&byte| byte == b'\n').nth(error.line().checked_sub(1)?)?;
    // The error is at the first letter, or behind a sign.
    let near = line.get(error.column().saturating_sub(2)..)?;
    let found = ["-Infinity", "NaN", "Infinity"].into_iter().find(|literal| {
        (0..=2).any(|from| near.get(from..).is_some_and(|rest| rest.starts_with(literal.as_bytes())))
    })?;
    let place = format!("line {} column {}", error.line(), error.column());
    Some(format!("the value is {found}, which is no number in JSON, at {place}: write a number or null"))
}

/// The types of the crate, whatever the ids say.
pub(super) fn dataset(raw: RawDataset) -> Result<Dataset> {
    let images = raw.images.into_iter().map(Image::from).collect();
    let categories = raw.categories.into_iter().map(Category::from).collect();
    let annotations = raw.annotations.into_iter().map(annotation).collect::<Result<_>>()?;
    Ok(Dataset { images, annotations, categories })
}

/// Whether ids are unique and name what is there.
///
/// # Errors
/// Names the first id for which it is not so.
pub fn check_ids(dataset: &Dataset) -> Result<()> {
    let image_ids = unique("images", dataset.images.iter().map(|image| image.id))?;
    let category_ids = unique("categories", dataset.categories.iter().map(|category| category.id))?;
    unique("annotations", dataset.annotations.iter().map(|annotation| annotation.id))?;
    for Annotation { id, image_id, category_id, .. } in &dataset.annotations {
        let lacks = if !image_ids.contains(image_id) {
            format!("is in image {image_id}, which is not among the images")
        } else if !category_ids.contains(category_id) {
            format!("has category {category_id}, which is not among the categories")
        } else {
            continue;
        };
        return Err(Error::Data(format!("annotation {id} {lacks}")));
    }
    Ok(())
}

fn unique(what: &str, ids: impl ExactSizeIterator<Item = i64>) -> Result<HashSet<i64>> {
    let mut seen = HashSet::with_capacity(ids.len());
    for id in ids {
        if !seen.insert(id) {
            return Err(Error::Data(format!("two {what} have the id {id}: ids must be unique")));
        }
    }
    Ok(seen)
}

fn annotation(raw: RawAnnotation) -> Result<Annotation> {
    let id = raw.id.0;
    let bbox = match (raw.bbox.and_then(|Bbox(bbox)| bbox), &raw.segmentation) {
        (Some(bbox), _) => bbox,
        (None, Some(Segmentation::Rle(rle))) => rle.bbox(),
        (None, Some(Segmentation::Polygons(shape))) if shape.iter().any(|polygon| polygon.len() >= 2) => extent(shape),
        (None, _) => return Err(Error::Data(format!("annotation {id} has neither a `bbox` nor a `segmentation`"))),
    };
    Ok(Annotation {
        id,
        image_id: raw.image_id.0,
        category_id: raw.category_id.0,
        bbox,
        area: raw.area.unwrap_or(bbox[2] * bbox[3]),
        iscrowd: raw.iscrowd.is_some_and(|Flag(flag)| flag),
        segmentation: raw.segmentation,
    })
}

/// Smallest box around the points of polygons.
fn extent(polygons: &[Vec<f64>]) -> [f64; 4] {
    let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
    for point in polygons.iter().flat_map(|polygon| polygon.chunks_exact(2)) {
        for axis in 0..2 {
            low[axis] = low[axis].min(point[axis]);
            high[axis] = high[axis].max(point[axis]);
        }
    }
    [low[0], low[1], high[0] - low[0], high[1] - low[1]]
}

pub(super) fn detection(index: usize, raw: RawDetection) -> Result<Detection> {
    let bbox = raw.bbox.and_then(|Bbox(bbox)| bbox);
    if bbox.is_none() && raw.segmentation.is_none() {
        return Err(Error::Data(format!("result {index} has neither a `bbox` nor a `segmentation`")));
    }
    Ok(Detection {
        image_id: raw.image_id.0,
        category_id: raw.category_id.0,
        bbox,
        score: raw.score,
        segmentation: raw.segmentation,
    })
}
