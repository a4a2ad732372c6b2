//! Data for tests.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use vigdet_coco::rle::Rle;
use vigdet_coco::types::{Annotation, Category, Dataset, Image, Segmentation};
use vigdet_dataset::{Import, Layout, Split};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub fn fixture(name: &str) -> PathBuf {
    fixtures().join(name)
}

/// Two splits with boxes in whole pixels: a polygon, two polygons as one object, a mask with a hole, a crowd, a class
/// without objects, a name with a space, another alphabet and a folder, an image without objects.
pub fn mixed() -> Import {
    let category = |id, name: &str| Category { id, name: name.to_owned(), supercategory: None };
    let categories = vec![category(3, "nut & <bolt>"), category(7, "ключ, \"big\""), category(9, "unused")];
    let hole: Vec<bool> =
        (0..48 * 64).map(|i| (i % 64) / 8 == 2 && i / 64 > 9 && i / 64 < 30 && i != 64 * 15 + 18).collect();
    let mask = Rle::from_rows(48, 64, &hole).unwrap();
    let annotation = |id, image_id, category_id, bbox: [f64; 4], segmentation: Option<Segmentation>| Annotation {
        id,
        image_id,
        category_id,
        bbox,
        area: segmentation.as_ref().map_or(bbox[2] * bbox[3], vigdet_dataset::geometry::area),
        iscrowd: false,
        segmentation,
    };
    let polygons = |all: &[&[f64]]| Some(Segmentation::Polygons(all.iter().map(|p| p.to_vec()).collect()));
    let folder = fixture("yolo/images/train");
    let train = Dataset {
        images: vec![
            Image { id: 5, file_name: "a.png".into(), width: 64, height: 48 },
            Image { id: 8, file_name: "b c.jpg".into(), width: 40, height: 30 },
        ],
        annotations: vec![
            annotation(11, 5, 7, [2.0, 3.0, 10.0, 8.0], None),
            annotation(12, 5, 3, [40.0, 4.0, 12.0, 6.0], polygons(&[&[40.0, 4.0, 52.0, 4.0, 52.0, 10.0]])),
            annotation(13, 5, 3, mask.bbox(), Some(Segmentation::Rle(mask))),
            annotation(
                14,
                5,
                7,
                [40.0, 20.0, 20.0, 10.0],
                polygons(&[
                    &[40.0, 20.0, 44.0, 20.0, 44.0, 30.0, 40.0, 30.0],
                    &[50.0, 20.0, 60.0, 20.0, 60.0, 25.0, 50.0, 25.0],
                ]),
            ),
            Annotation { iscrowd: true, ..annotation(15, 5, 7, [30.0, 40.0, 20.0, 8.0], None) },
        ],
        categories: categories.clone(),
    };
    let val = Dataset {
        images: vec![
            Image { id: 1, file_name: "v.png".into(), width: 50, height: 50 },
            Image { id: 2, file_name: "w.png".into(), width: 33, height: 21 },
        ],
        annotations: vec![annotation(1, 1, 3, [0.0, 0.0, 50.0, 50.0], None)],
        categories,
    };
    let split = |name: &str, folder, dataset| Split { name: name.to_owned(), folder, dataset, ..Split::default() };
    let val = split("val", fixture("yolo/images/val"), val);
    Import { root: fixtures(), layout: Layout::Coco, splits: vec![split("train", folder, train), val] }
}
