//! A detector's results as labels to correct.

use crate::types::Import;
use anyhow::{ensure, Result};
use std::collections::HashSet;
use std::path::Path;
use vigdet_coco::types::{Annotation, Detection};

/// The images and classes of `import` with the detections of a COCO results file in place of its objects. Detections
/// below `least` are left out.
///
/// # Errors
/// The file cannot be read, or none of its images is in a split whose ids it may mean.
pub fn instead_of_objects(import: &Import, results: &Path, least: f64) -> Result<Import> {
    let detections = vigdet_coco::read_results(results)?;
    let mut labelled = import.clone();
    let of_file: HashSet<i64> = detections.iter().map(|detection| detection.image_id).collect();
    let in_split = |split: &crate::Split| split.dataset.images.iter().filter(|i| of_file.contains(&i.id)).count();
    // Ids count anew in each split: the results are those of one.
    let best = (0..labelled.splits.len()).max_by_key(|&at| (in_split(&import.splits[at]), usize::MAX - at));
    let best = best.filter(|&at| in_split(&import.splits[at]) > 0 || detections.is_empty());
    ensure!(best.is_some(), "{} has results of none of the images of {}", results.display(), import.root.display());
    labelled.splits = best.map(|at| labelled.splits.swap_remove(at)).into_iter().collect();
    for split in &mut labelled.splits {
        let images: HashSet<i64> = split.dataset.images.iter().map(|image| image.id).collect();
        let categories: HashSet<i64> = split.dataset.categories.iter().map(|category| category.id).collect();
        let known = |detection: &&Detection| {
            images.contains(&detection.image_id) && categories.contains(&detection.category_id)
        };
        let strangers = detections.iter().filter(|detection| !known(detection)).count();
        if strangers > 0 {
            split
                .notes
                .push(format!("{strangers} results are left out: their image or class is not in {}", split.name));
        }
        let kept: Vec<&Detection> =
            detections.iter().filter(known).filter(|detection| detection.score >= least).collect();
        split.scores = kept.iter().map(|detection| detection.score).collect();
        split.dataset.annotations =
            kept.into_iter().zip(1..).map(|(detection, id)| annotation(detection, id)).collect();
    }
    Ok(labelled)
}

fn annotation(detection: &Detection, id: i64) -> Annotation {
    let segmentation = detection.segmentation.clone();
    let bounds = || segmentation.as_ref().map_or([0.0; 4], crate::geometry::bounds);
    let bbox = detection.bbox.unwrap_or_else(bounds);
    Annotation {
        id,
        image_id: detection.image_id,
        category_id: detection.category_id,
        bbox,
        area: segmentation.as_ref().map_or(bbox[2] * bbox[3], crate::geometry::area),
        iscrowd: false,
        segmentation,
    }
}
