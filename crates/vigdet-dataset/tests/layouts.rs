//! Each layout is read as other programs read it, and comes back from a round trip.

mod common;

use common::{fixture, fixtures};
use serde_json::Value;
use std::collections::BTreeMap;
use vigdet_coco::rle::{iou, Rle};
use vigdet_coco::types::{Annotation, Segmentation};
use vigdet_dataset::layouts::{self, Images};
use vigdet_dataset::{Import, Layout};

/// Pixels.
const TOLERANCE: f64 = 1e-3;

fn close(a: [f64; 4], b: [f64; 4], tolerance: f64) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

/// An object with the name of its class, and the height and width of its image.
type Named = (String, Annotation, (u32, u32));

/// An image's split, name, width and height, and its objects with the names of their classes.
type Essence = (String, String, u32, u32, Vec<(String, Annotation)>);

/// The annotations of each image by the last part of its name, with the class.
fn by_image(import: &Import) -> BTreeMap<String, Vec<Named>> {
    let mut all = BTreeMap::new();
    for split in &import.splits {
        for image in &split.dataset.images {
            assert!(split.path(&image.file_name).is_file(), "{} is there", image.file_name);
            let name = image.file_name.rsplit('/').next().unwrap().to_owned();
            let of_image = split.dataset.annotations.iter().filter(|a| a.image_id == image.id);
            let class =
                |a: &Annotation| split.dataset.categories.iter().find(|c| c.id == a.category_id).unwrap().name.clone();
            let list = of_image.map(|a| (class(a), a.clone(), (image.height, image.width))).collect();
            all.insert(name, list);
        }
    }
    all
}

/// Compares a fixture with what `expected.json` says, and gives the number of objects.
fn compare(name: &str, layout: Layout) -> Import {
    let expected: Value = serde_json::from_slice(&std::fs::read(fixtures().join("expected.json")).unwrap()).unwrap();
    let root = fixture(name);
    let import = Import::open(&root).unwrap();
    assert_eq!(import.layout, layout);
    let found = by_image(&import);
    let mut compared = 0;
    for (file, objects) in expected[name]["images"].as_object().unwrap() {
        let objects = objects.as_array().unwrap();
        let found = &found[file];
        assert_eq!(found.len(), objects.len(), "objects of {file}");
        for (object, (class, annotation, (height, width))) in objects.iter().zip(found) {
            assert_eq!(object["class"], class.as_str(), "{file}");
            let bbox: [f64; 4] = serde_json::from_value(object["bbox"].clone()).unwrap();
            assert!(close(annotation.bbox, bbox, TOLERANCE), "{file}: {:?} is not {bbox:?}", annotation.bbox);
            let mask = || annotation.segmentation.as_ref().unwrap().to_rle(*height, *width).unwrap();
            if let Some(text) = object["mask"].as_str() {
                assert_eq!(mask(), Rle::from_compressed(*height, *width, text).unwrap(), "{file}: mask of {class}");
            }
            // Another program draws borders in another way.
            if let Some(text) = object["near"].as_str() {
                let overlap = iou(&mask(), &Rle::from_compressed(*height, *width, text).unwrap(), false);
                assert!(overlap > 0.75, "{file}: mask of {class}: {overlap}");
            }
            compared += 1;
        }
    }
    assert!(compared > 0);
    import
}

fn names(import: &Import) -> Vec<(i64, String)> {
    import.classes().into_iter().map(|class| (class.id, class.name)).collect()
}

fn splits(import: &Import) -> Vec<(&str, usize)> {
    import.splits.iter().map(|split| (split.name.as_str(), split.dataset.images.len())).collect()
}

fn owned(names: &[(i64, &str)]) -> Vec<(i64, String)> {
    names.iter().map(|(id, name)| (*id, (*name).to_owned())).collect()
}

#[test]
fn coco_keeps_its_ids_in_roboflows_and_cvats_folders() {
    let roboflow = compare("roboflow", Layout::Coco);
    assert_eq!(splits(&roboflow), [("train", 2), ("val", 1)]);
    assert_eq!(names(&roboflow), owned(&[(0, "things"), (1, "nut"), (2, "bolt")]));
    assert_eq!(splits(&compare("cvat_coco", Layout::Coco)), [("all", 1)]);
}

#[test]
fn yolo_reads_folders_and_lists_boxes_and_polygons() {
    let import = compare("yolo", Layout::Yolo);
    assert_eq!(splits(&import), [("train", 2), ("val", 2)]);
    // A name that YAML could take for a truth value stays a name.
    assert_eq!(names(&import), owned(&[(1, "nut"), (2, "no"), (3, "bolt")]));
    let roboflow = Import::open(fixture("yolo_roboflow")).unwrap();
    assert_eq!(splits(&roboflow), [("train", 1), ("val", 1)]);
    assert!(close(roboflow.splits[0].dataset.annotations[0].bbox, [24.0, 12.0, 16.0, 24.0], 1e-9));
}

#[test]
fn voc_reads_lists_difficult_objects_and_palette_masks() {
    let import = compare("voc", Layout::Voc);
    assert_eq!(splits(&import), [("train", 2), ("val", 1)]);
    assert_eq!(names(&import), owned(&[(1, "bolt"), (2, "nut")]));
    let train = &import.splits[0];
    assert_eq!(train.dataset.annotations.iter().map(|a| a.iscrowd).collect::<Vec<_>>(), [false, true, false]);
    assert!(train.notes.iter().any(|note| note.contains("difficult")), "{:?}", train.notes);
    assert_eq!(train.dataset.annotations[0].area, 190.0, "a mask's area is its pixels");
}

#[test]
fn labelme_reads_every_shape_and_joins_groups() {
    let import = compare("labelme", Layout::Labelme);
    assert_eq!(names(&import), owned(&[(1, "bolt"), (2, "nut"), (3, "washer")]));
    let split = &import.splits[0];
    assert_eq!((split.name.as_str(), split.dataset.images.len()), ("all", 2));
    assert!(split.notes.iter().any(|note| note.contains("`line`")), "{:?}", split.notes);
    let parts = split.dataset.annotations.last().unwrap();
    assert!(matches!(&parts.segmentation, Some(Segmentation::Polygons(polygons)) if polygons.len() == 2));
}

#[test]
fn cvat_reads_subsets_turned_boxes_ellipses_and_masks() {
    let import = compare("cvat", Layout::Cvat);
    assert_eq!(splits(&import), [("train", 1), ("val", 1)]);
    assert_eq!(names(&import), owned(&[(1, "nut"), (2, "bolt & washer"), (3, "unused")]));
    assert!(import.splits[0].notes[0].contains("<polyline>"), "{:?}", import.splits[0].notes);
}

#[test]
fn label_studio_reads_percent_rotation_polygons_and_brushes() {
    let import = compare("label_studio", Layout::LabelStudio);
    assert_eq!(splits(&import), [("all", 2)]);
}

#[test]
fn open_images_reads_fractions_groups_and_class_names() {
    let import = compare("open_images", Layout::OpenImages);
    assert_eq!(splits(&import), [("train", 1), ("val", 1)]);
    assert_eq!(names(&import), owned(&[(1, "Nut"), (2, "Bolt, large"), (3, "Unused")]));
    assert_eq!(import.splits[0].dataset.annotations.iter().map(|a| a.iscrowd).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_csv_is_read_by_the_names_of_its_columns() {
    let import = compare("csv", Layout::Csv);
    assert_eq!(splits(&import), [("train", 1), ("test", 1)]);
}

#[test]
fn a_folder_without_a_known_layout_says_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes.txt"), "hello").unwrap();
    let error = Import::open(folder.path()).unwrap_err().to_string();
    for words in ["data.yaml", "_annotations.coco.json", "Annotations/*.xml", "ImageID", "named columns", "\"shapes\""]
    {
        assert!(error.contains(words), "{error}");
    }
    let error = Import::open(folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("is not there"), "{error}");
}

#[test]
fn yolo_classes_that_are_hardly_meant_are_refused_before_their_names_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let read = |classes: &str| {
        std::fs::write(folder.path().join("data.yaml"), format!("train: .\n{classes}\n")).unwrap();
        format!("{:#}", Import::open(folder.path()).unwrap_err())
    };
    for classes in ["names: {406060: nut}", "names: {18446744073709551615: nut}", "nc: 99999999999999"] {
        let error = read(classes);
        assert!(error.contains("65536 are the most"), "{classes}: {error}");
    }
    assert!(!read("nc: 65536").contains("are the most"));
}

#[test]
fn a_yolo_split_that_is_above_its_data_set_is_not_walked() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::copy(fixture("labelme").join("a.png"), folder.path().join("a.png")).unwrap();
    for train in ["/".to_string(), "../".repeat(30), "..".to_string(), "../data/../.".to_string()] {
        std::fs::write(data.join("data.yaml"), format!("train: {train}\nnames: [nut]\n")).unwrap();
        let error = format!("{:#}", Import::open(&data).unwrap_err());
        assert!(error.contains("a folder with much else in it"), "{error}");
    }
}

/// What must come back: for each split and image its size and its objects, with the name of the class.
fn essence(import: &Import) -> Vec<Essence> {
    let mut all = Vec::new();
    for split in &import.splits {
        for image in &split.dataset.images {
            let of_image = split.dataset.annotations.iter().filter(|a| a.image_id == image.id);
            let class =
                |a: &Annotation| split.dataset.categories.iter().find(|c| c.id == a.category_id).unwrap().name.clone();
            let objects = of_image.map(|a| (class(a), a.clone())).collect();
            let name = image.file_name.rsplit('/').next().unwrap().to_owned();
            all.push((split.name.clone(), name, image.width, image.height, objects));
        }
    }
    all.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    all
}

/// Writes `import` in a layout, reads it back, and compares boxes to `tolerance` and, where the layout has them, masks
/// to the pixel.
fn round_trip(import: &Import, layout: Layout, tolerance: f64, masks: bool, crowds: bool) -> Import {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    layouts::write(import, layout, &out, Images::Copy).unwrap();
    let again = Import::open(&out).unwrap_or_else(|error| panic!("{layout}: {error:#}"));
    assert_eq!(again.layout, layout);
    let (mut before, after) = (essence(import), essence(&again));
    if !crowds {
        before.iter_mut().for_each(|image| image.4.retain(|(_, annotation)| !annotation.iscrowd));
    }
    if layout == Layout::OpenImages {
        before.retain(|image| !image.4.is_empty());
    }
    assert_eq!(before.len(), after.len(), "{layout}");
    for (a, b) in before.iter().zip(&after) {
        assert_eq!((&a.0, &a.1, a.2, a.3, a.4.len()), (&b.0, &b.1, b.2, b.3, b.4.len()), "{layout}");
        for ((class, object), (other_class, other)) in a.4.iter().zip(&b.4) {
            assert_eq!(class, other_class, "{layout}");
            assert!(close(object.bbox, other.bbox, tolerance), "{layout}: {:?}, {:?}", object.bbox, other.bbox);
            assert_eq!(object.iscrowd, other.iscrowd, "{layout}");
            let outlined = |s: &&Segmentation| !matches!(s, Segmentation::Polygons(polygons) if polygons.is_empty());
            if let (Some(segmentation), true) = (object.segmentation.as_ref().filter(outlined), masks) {
                let mask = |s: &Segmentation| s.to_rle(a.3, a.2).unwrap();
                let other = other.segmentation.as_ref().unwrap_or_else(|| panic!("{layout}: no mask of {class}"));
                assert_eq!(mask(segmentation), mask(other), "{layout}");
            }
        }
    }
    again
}

#[test]
fn what_is_written_in_any_layout_is_read_back_from_it() {
    let original = common::mixed();
    for layout in Layout::ALL {
        // Fractions and percent lose the last bits; YOLO has no crowds; two layouts have no masks.
        let exact = [Layout::Coco, Layout::Voc, Layout::Labelme, Layout::Cvat, Layout::Csv].contains(&layout);
        let masks = ![Layout::OpenImages, Layout::Csv].contains(&layout);
        let tolerance = if exact { 0.0 } else { 1e-9 };
        let again = round_trip(&original, layout, tolerance, masks, layout != Layout::Yolo);
        if ![Layout::Labelme, Layout::Csv].contains(&layout) {
            let names = |import: &Import| import.classes().into_iter().map(|class| class.name).collect::<Vec<_>>();
            assert_eq!(names(&again), names(&original), "{layout} keeps the order of classes");
        }
        if layout == Layout::Coco {
            assert_eq!(again.splits[0].dataset, original.splits[0].dataset, "COCO's file keeps everything");
        }
    }
}

#[test]
fn the_fixture_of_each_layout_survives_its_own_round_trip() {
    let cases = [
        ("roboflow", Layout::Coco),
        ("yolo", Layout::Yolo),
        ("voc", Layout::Voc),
        ("labelme", Layout::Labelme),
        ("cvat", Layout::Cvat),
        ("label_studio", Layout::LabelStudio),
        ("open_images", Layout::OpenImages),
        ("csv", Layout::Csv),
    ];
    for (name, layout) in cases {
        let import = Import::open(fixture(name)).unwrap();
        round_trip(&import, layout, 1e-9, !matches!(layout, Layout::OpenImages | Layout::Csv), true);
    }
}

#[test]
fn an_export_never_writes_into_a_folder_with_something_in_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.txt"), "mine").unwrap();
    let error = layouts::write(&common::mixed(), Layout::Coco, folder.path(), Images::None).unwrap_err();
    assert!(error.to_string().contains("choose another folder"), "{error}");
}
