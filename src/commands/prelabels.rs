//! Detections as labels to correct, in the layout of a labelling tool.

use std::path::{Path, PathBuf};

use anyhow::Result;
use vigdet_coco::types::{Annotation, Category, Dataset, Image, Segmentation};
use vigdet_dataset::layouts::{self, Images};
use vigdet_dataset::{Import, Layout, Split};

use crate::classes::Classes;
use crate::predictor::ImageDetections;

/// Writes a folder of this layout with links to the images. Gives a line for each thing that the layout loses.
///
/// `seen` has the path of each image beside what was seen there; detections below `least` are left out.
///
/// # Errors
/// There is something in `out`; two images would share a label file; a file cannot be written.
pub fn write(
    seen: &[(PathBuf, ImageDetections)],
    classes: &Classes,
    least: f32,
    layout: Layout,
    out: &Path,
) -> Result<Vec<String>> {
    let folder = common_folder(seen.iter().map(|(path, _)| path.as_path()));
    let mut dataset = Dataset {
        categories: classes
            .iter()
            .filter(|class| !class.name.is_empty())
            .map(|class| Category { id: class.id, name: class.name.clone(), supercategory: None })
            .collect(),
        ..Dataset::default()
    };
    let mut scores = Vec::new();
    for ((path, found), image_id) in seen.iter().zip(1..) {
        let name = path.strip_prefix(&folder).unwrap_or(path);
        let file_name = name.to_string_lossy().into_owned();
        dataset.images.push(Image { id: image_id, file_name, width: found.width, height: found.height });
        for d in found.detections.iter().filter(|d| d.score >= least) {
            let bbox = d.bbox.map(f64::from);
            let id = dataset.annotations.len() as i64 + 1;
            let segmentation = d.segmentation.clone().map(Segmentation::Rle);
            let area = bbox[2] * bbox[3];
            let category_id = d.category_id;
            dataset.annotations.push(Annotation {
                id,
                image_id,
                category_id,
                bbox,
                area,
                iscrowd: false,
                segmentation,
            });
            scores.push(f64::from(d.score));
        }
    }
    let split = Split { name: "all".into(), folder: folder.clone(), dataset, scores, ..Split::default() };
    layouts::write(&Import { root: folder, layout: Layout::Coco, splits: vec![split] }, layout, out, Images::Link)
}

/// The innermost folder that all files are in.
fn common_folder<'a>(mut files: impl Iterator<Item = &'a Path>) -> PathBuf {
    let mut folder = files.next().and_then(Path::parent).unwrap_or(Path::new("")).to_path_buf();
    for file in files {
        while !file.starts_with(&folder) {
            if !folder.pop() {
                break;
            }
        }
    }
    folder
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predictor::Found;

    #[test]
    fn what_is_not_sure_enough_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        image::RgbImage::new(64, 48).save(&path).unwrap();
        let found = |score| Found {
            category_id: 7,
            label: "star".into(),
            score,
            bbox: [4.0, 5.0, 20.0, 10.0],
            segmentation: None,
        };
        let detections = [0.9, 0.3, 0.2].map(found).to_vec();
        let seen = ImageDetections { file: "a.png".into(), width: 64, height: 48, detections };
        let out = folder.path().join("labels");
        write(&[(path, seen)], &Classes::from_iter([(7, "star")]), 0.3, Layout::Coco, &out).unwrap();
        let split = &Import::open(&out).unwrap().splits[0].dataset;
        assert_eq!((split.images.len(), split.annotations.len(), split.annotations[0].category_id), (1, 2, 7));
    }
}
