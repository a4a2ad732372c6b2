//! Each planted fault is found, and nothing else is.

use image::{DynamicImage, GrayImage, ImageFormat};
use rand::{Rng, SeedableRng};
use std::collections::HashSet;
use std::path::Path;
use std::sync::OnceLock;
use vigdet_coco::rle::Rle;
use vigdet_coco::types::{Annotation, Category, Dataset, Image, Segmentation};
use vigdet_dataset::check::{check, fix, pictures, Kind, Options};
use vigdet_dataset::{Fault, Import, Layout, Split};

const WIDTH: u32 = 240;
const HEIGHT: u32 = 210;

/// A picture of 8×7 random fields.
fn picture(seed: u64) -> DynamicImage {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let fields: Vec<u8> = (0..56).map(|_| random.random()).collect();
    let fields = GrayImage::from_raw(8, 7, fields).unwrap();
    let smooth = image::imageops::resize(&fields, WIDTH, HEIGHT, image::imageops::FilterType::Triangle);
    DynamicImage::ImageLuma8(smooth)
}

fn rectangle([x, y, w, h]: [f64; 4]) -> Option<Segmentation> {
    Some(Segmentation::Polygons(vec![vec![x, y, x + w, y, x + w, y + h, x, y + h]]))
}

fn split(root: &Path, name: &str, images: u64) -> Split {
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut dataset = Dataset::default();
    for (id, class) in [(1, "nut"), (2, "bolt")] {
        dataset.categories.push(Category { id, name: class.to_owned(), supercategory: None });
    }
    for i in 0..images {
        let ending = if i % 2 == 0 { "png" } else { "jpg" };
        let file_name = format!("{name}{i}.{ending}");
        let id = i as i64 + 1;
        dataset.images.push(Image { id, file_name, width: WIDTH, height: HEIGHT });
        for category_id in [1, 2] {
            let bbox = [5.0 + i as f64, 100.0 * category_id as f64 - 80.0, 130.0, 60.0 + i as f64];
            dataset.annotations.push(Annotation {
                id: 2 * id + category_id - 2,
                image_id: id,
                category_id,
                bbox,
                area: bbox[2] * bbox[3],
                iscrowd: false,
                segmentation: if category_id == 1 { rectangle(bbox) } else { None },
            });
        }
    }
    Split { name: name.to_owned(), folder, dataset, ..Split::default() }
}

fn sound(root: &Path) -> Import {
    static DRAWN: OnceLock<tempfile::TempDir> = OnceLock::new();
    let splits = vec![split(root, "train", 12), split(root, "val", 3)];
    let drawn = DRAWN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for (i, image) in splits.iter().flat_map(|split| &split.dataset.images).enumerate() {
            picture(i as u64).save(folder.path().join(&image.file_name)).unwrap();
        }
        folder
    });
    for split in &splits {
        for image in &split.dataset.images {
            std::fs::copy(drawn.path().join(&image.file_name), split.path(&image.file_name)).unwrap();
        }
    }
    Import { root: root.to_path_buf(), layout: Layout::Coco, splits }
}

/// What is planted, and what else follows from it.
type Plant = (Kind, &'static [Kind], fn(&mut Import, &Path));

fn objects(import: &mut Import) -> &mut Vec<Annotation> {
    &mut import.splits[0].dataset.annotations
}

fn image(import: &mut Import) -> &mut Image {
    &mut import.splits[0].dataset.images[0]
}

fn boxes(import: &mut Import, change: impl Fn([f64; 4]) -> [f64; 4]) {
    for object in objects(import) {
        object.bbox = change(object.bbox);
        object.area = object.bbox[2] * object.bbox[3];
        object.segmentation = None;
    }
}

fn set_box(import: &mut Import, bbox: [f64; 4]) {
    let object = &mut objects(import)[1];
    object.bbox = bbox;
    object.area = bbox[2] * bbox[3];
}

fn set_polygon(import: &mut Import, polygon: &[f64]) {
    objects(import)[0].segmentation = Some(Segmentation::Polygons(vec![polygon.to_vec()]));
}

fn mask(height: u32, width: u32, bbox: [usize; 4]) -> Option<Segmentation> {
    let [x, y, w, h] = bbox;
    let inside = |i: usize| {
        let (column, row) = (i % width as usize, i / width as usize);
        column >= x && column < x + w && row >= y && row < y + h
    };
    let pixels: Vec<bool> = (0..(height * width) as usize).map(inside).collect();
    Some(Segmentation::Rle(Rle::from_rows(height, width, &pixels).unwrap()))
}

/// A JPEG whose EXIF says that it is to be turned by a quarter.
fn turned_jpeg(path: &Path) {
    let mut jpeg = Vec::new();
    picture(77).write_to(&mut std::io::Cursor::new(&mut jpeg), ImageFormat::Jpeg).unwrap();
    let exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let length = (exif.len() as u16 + 2).to_be_bytes();
    let bytes = [&jpeg[..2], &[0xFF, 0xE1], &length[..], exif, &jpeg[2..]].concat();
    std::fs::write(path, bytes).unwrap();
}

const PLANTS: &[Plant] = &[
    (Kind::LabelUnclear, &[], |import, _| {
        import.splits[0].faults.push(Fault { place: "a.txt:3".into(), what: "`x` is not a number".into() });
    }),
    (Kind::ImageMissing, &[], |_, root| std::fs::remove_file(root.join("train/train0.png")).unwrap()),
    (Kind::ImageEmpty, &[], |_, root| std::fs::write(root.join("train/train0.png"), "").unwrap()),
    (Kind::ImageUnknown, &[], |_, root| std::fs::write(root.join("train/train0.png"), "<html>404</html>").unwrap()),
    (Kind::ImageBroken, &[], |_, root| {
        let path = root.join("train/train1.jpg");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
    }),
    (Kind::ImageBroken, &[], |_, root| {
        let path = root.join("train/train0.png");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    }),
    (Kind::ImageHuge, &[Kind::SizeDiffers], |_, root| {
        // A header that claims 20,000 × 20,000 pixels.
        let path = root.join("train/train0.png");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[16..24].copy_from_slice(&[0, 0, 0x4E, 0x20, 0, 0, 0x4E, 0x20]);
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        std::fs::write(path, bytes).unwrap();
    }),
    (Kind::NameLeavesFolder, &[Kind::ImageUnlisted], |import, _| image(import).file_name = "../x/train0.png".into()),
    (Kind::NameEmpty, &[Kind::ImageUnlisted], |import, _| image(import).file_name.clear()),
    (Kind::NameOtherCase, &[Kind::ImageUnlisted], |import, _| image(import).file_name = "Train0.PNG".into()),
    (Kind::EndingWrong, &[Kind::ImageUnlisted], |import, root| {
        std::fs::copy(root.join("train/train0.png"), root.join("train/other.jpg")).unwrap();
        std::fs::remove_file(root.join("train/train0.png")).unwrap();
        picture(5).save(root.join("train/extra.png")).unwrap();
        image(import).file_name = "other.jpg".into();
    }),
    (Kind::SizeUnknown, &[], |import, _| image(import).width = 0),
    (Kind::SizeDiffers, &[], |import, _| image(import).width = 300),
    (Kind::SizeSwapped, &[], |import, _| {
        let image = image(import);
        (image.width, image.height) = (HEIGHT, WIDTH);
    }),
    (Kind::TurnedByExif, &[], |import, root| {
        turned_jpeg(&root.join("train/train1.jpg"));
        let image = &mut import.splits[0].dataset.images[1];
        (image.width, image.height) = (HEIGHT, WIDTH);
    }),
    (Kind::ExifOrientation, &[], |_, root| turned_jpeg(&root.join("train/train1.jpg"))),
    (Kind::ImageTwice, &[Kind::ImageUnlisted], |import, _| {
        import.splits[0].dataset.images[2].file_name = "train0.png".into();
    }),
    (Kind::ImageIdTwice, &[Kind::ImageWithoutObjects, Kind::ObjectNearlyTwice], |import, _| {
        import.splits[0].dataset.images[2].id = 1;
        objects(import).iter_mut().filter(|object| object.image_id == 3).for_each(|object| object.image_id = 4);
    }),
    (Kind::AnnotationIdTwice, &[], |import, _| objects(import)[3].id = 1),
    (Kind::ClassIdTwice, &[], |import, _| {
        let third = Category { id: 2, name: "washer".into(), supercategory: None };
        import.splits.iter_mut().for_each(|split| split.dataset.categories.insert(0, third.clone()));
    }),
    (Kind::AnnotationIdZero, &[], |import, _| objects(import)[3].id = 0),
    (Kind::ImageIdUnknown, &[], |import, _| objects(import)[3].image_id = 99),
    (Kind::ClassIdUnknown, &[], |import, _| objects(import)[3].category_id = 99),
    (Kind::ClassIdsShifted, &[Kind::ClassIdUnknown, Kind::ClassNotInTrain], |import, _| {
        objects(import).iter_mut().for_each(|object| object.category_id -= 1);
    }),
    (Kind::ClassIdsShifted, &[Kind::LabelUnclear, Kind::ClassNotInTrain], |import, _| {
        import.layout = Layout::Yolo;
        objects(import).retain(|object| object.category_id == 2);
        let what = "class 2 is not among the 2 classes (0 to 1) of `names`".to_owned();
        import.splits[0].faults.push(Fault { place: "a.txt:1".into(), what });
    }),
    (Kind::ClassIdsDiffer, &[], |import, _| {
        let categories = &mut import.splits[1].dataset.categories;
        (categories[0].id, categories[1].id) = (2, 1);
    }),
    (Kind::ClassNameTwice, &[Kind::ClassUnused], |import, _| {
        import.splits[0].dataset.categories.push(Category { id: 3, name: "Nut ".into(), supercategory: None });
        import.splits[1].dataset.categories.push(Category { id: 3, name: "Nut ".into(), supercategory: None });
    }),
    (Kind::ClassNameEmpty, &[], |import, _| {
        import.splits.iter_mut().for_each(|split| split.dataset.categories[0].name.clear());
    }),
    (Kind::ClassUnused, &[], |import, _| {
        let root = Category { id: 0, name: "things".into(), supercategory: None };
        import.splits.iter_mut().for_each(|split| split.dataset.categories.push(root.clone()));
    }),
    (Kind::ClassNotInTrain, &[], |import, _| objects(import).retain(|object| object.category_id == 1)),
    (Kind::ClassNotInVal, &[], |import, _| {
        import.splits[1].dataset.annotations.retain(|object| object.category_id == 1);
    }),
    (Kind::ClassRare, &[], |import, _| {
        let mut left = 4;
        objects(import).retain(|object| {
            left -= i32::from(object.category_id == 2);
            object.category_id == 1 || left >= 0
        });
    }),
    (Kind::BoxNotFinite, &[], |import, _| set_box(import, [f64::NAN, 1.0, 20.0, 20.0])),
    (Kind::BoxesInFractions, &[Kind::BoxBelowPixel, Kind::ObjectsBelow8], |import, _| {
        boxes(import, |[x, y, w, h]| [x / 240.0, y / 210.0, w / 240.0, h / 210.0]);
    }),
    (Kind::BoxesInPercent, &[], |import, _| {
        boxes(import, |[x, y, w, h]| [x / 2.4, y / 2.1, w / 2.4, h / 2.1]);
    }),
    (Kind::BoxesAsCorners, &[Kind::BoxLeavesImage], |import, _| {
        boxes(import, |[x, y, w, h]| [x + 80.0, y, x + 80.0 + w, y + h]);
    }),
    (Kind::BoxesAsCentres, &[Kind::BoxLeavesImage], |import, _| {
        // The outermost touch all four edges of the image: any other place than the middle would leave it.
        boxes(import, |[x, y, w, h]| {
            let (left, top) = ((x - 5.0) * 10.0, if y < 100.0 { 0.0 } else { 210.0 - h });
            [left + w / 2.0, top + h / 2.0, w, h]
        });
    }),
    (Kind::BoxesAxesSwapped, &[Kind::BoxLeavesImage], |import, _| {
        boxes(import, |[x, y, w, h]| [y, x, h, w + 82.0]);
    }),
    (Kind::BoxNegative, &[], |import, _| set_box(import, [100.0, 100.0, -20.0, 30.0])),
    (Kind::BoxEmpty, &[], |import, _| set_box(import, [100.0, 100.0, 0.0, 30.0])),
    (Kind::BoxBelowPixel, &[Kind::ObjectsBelow16], |import, _| set_box(import, [100.0, 100.0, 0.9, 10.0])),
    (Kind::BoxOutside, &[], |import, _| set_box(import, [300.0, 20.0, 20.0, 30.0])),
    (Kind::BoxLeavesImage, &[], |import, _| set_box(import, [200.0, 20.0, 60.0, 30.0])),
    (Kind::BoxWholeImage, &[], |import, _| set_box(import, [0.0, 0.0, 240.0, 210.0])),
    (Kind::BoxThin, &[], |import, _| set_box(import, [10.0, 20.0, 200.0, 5.0])),
    (Kind::ObjectTwice, &[], |import, _| {
        let again = Annotation { id: 500, ..objects(import)[1].clone() };
        objects(import).push(again);
    }),
    (Kind::ObjectNearlyTwice, &[], |import, _| {
        let mut again = Annotation { id: 500, ..objects(import)[1].clone() };
        again.bbox[0] += 1.0;
        objects(import).push(again);
    }),
    (Kind::ObjectTwoClasses, &[], |import, _| {
        let again = Annotation { id: 500, category_id: 1, ..objects(import)[1].clone() };
        objects(import).push(again);
    }),
    (Kind::PolygonFewPoints, &[], |import, _| set_polygon(import, &[5.0, 20.0, 135.0, 80.0])),
    (Kind::PolygonOddNumbers, &[], |import, _| {
        set_polygon(import, &[5.0, 20.0, 135.0, 20.0, 135.0, 80.0, 5.0, 80.0, 7.0]);
    }),
    (Kind::PolygonNotFinite, &[], |import, _| set_polygon(import, &[5.0, f64::INFINITY, 135.0, 20.0, 135.0, 80.0])),
    (Kind::PolygonCrossesItself, &[], |import, _| {
        set_polygon(import, &[5.0, 20.0, 135.0, 80.0, 135.0, 20.0, 5.0, 80.0]);
    }),
    (Kind::PolygonOutside, &[Kind::BoxLeavesImage], |import, _| {
        set_polygon(import, &[205.0, 20.0, 335.0, 20.0, 335.0, 80.0, 205.0, 80.0]);
        objects(import)[0].bbox = [205.0, 20.0, 130.0, 60.0];
    }),
    (Kind::PolygonNotInBox, &[], |import, _| set_polygon(import, &[50.0, 20.0, 180.0, 20.0, 180.0, 80.0])),
    (Kind::MaskSizeDiffers, &[], |import, _| objects(import)[0].segmentation = mask(240, 210, [5, 20, 130, 60])),
    (Kind::MaskEmpty, &[], |import, _| objects(import)[0].segmentation = mask(210, 240, [0, 0, 0, 0])),
    (Kind::MaskNotInBox, &[], |import, _| objects(import)[0].segmentation = mask(210, 240, [50, 20, 130, 60])),
    (Kind::AreaWrong, &[], |import, _| objects(import)[0].area = 99_999.0),
    (Kind::SameInSplits, &[], |_, root| {
        std::fs::copy(root.join("train/train0.png"), root.join("val/val0.png")).map(drop).unwrap();
    }),
    (Kind::NearlySameInSplits, &[], |_, root| {
        // The same picture, compressed anew and smaller in between.
        let copy = image::open(root.join("train/train0.png")).unwrap();
        let copy = copy.resize(120, 105, image::imageops::FilterType::Triangle);
        copy.resize_exact(240, 210, image::imageops::FilterType::Triangle).save(root.join("val/val1.jpg")).unwrap();
    }),
    (Kind::SameInSplit, &[], |_, root| {
        std::fs::copy(root.join("train/train0.png"), root.join("train/train2.png")).map(drop).unwrap();
    }),
    (Kind::NearlySameInSplit, &[], |_, root| {
        image::open(root.join("train/train0.png")).unwrap().save(root.join("train/train1.jpg")).unwrap();
    }),
    (Kind::ImageWithoutObjects, &[], |import, _| objects(import).retain(|object| object.image_id != 1)),
    (Kind::ImageOnlyCrowds, &[], |import, _| {
        objects(import).iter_mut().filter(|object| object.image_id == 1).for_each(|object| object.iscrowd = true);
    }),
    (Kind::ManyObjects, &[], |import, _| {
        for id in 0..100 {
            let bbox = [f64::from(id % 20) * 11.0, f64::from(id / 20) * 12.0, 10.0, 11.0];
            let object = Annotation { id: 500 + i64::from(id), bbox, area: 110.0, ..objects(import)[1].clone() };
            objects(import).push(object);
        }
    }),
    (Kind::ImageUnlisted, &[], |_, root| picture(9).save(root.join("train/more.png")).unwrap()),
    (Kind::ObjectsBelow8, &[], |import, _| set_box(import, [20.0, 20.0, 1.5, 1.5])),
    (Kind::ObjectsBelow16, &[], |import, _| set_box(import, [20.0, 20.0, 3.0, 3.0])),
];

/// As PNG has it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

#[test]
fn sound_data_give_no_finding() {
    let folder = tempfile::tempdir().unwrap();
    let report = check(&sound(folder.path()), &Options::default());
    assert_eq!(report.findings, [], "{}", report.lines().join("\n"));
    assert_eq!((report.images, report.annotations, report.hurts()), (15, 30, false));
}

#[test]
fn each_planted_fault_is_found_and_nothing_else() {
    let mut wrong = Vec::new();
    for (kind, with_it, plant) in PLANTS {
        let folder = tempfile::tempdir().unwrap();
        let mut import = sound(folder.path());
        plant(&mut import, folder.path());
        let report = check(&import, &Options::default());
        let found: HashSet<&str> = report.findings.iter().map(|finding| finding.kind).collect();
        let mut expected: HashSet<&str> = with_it.iter().map(|kind| kind.name()).collect();
        expected.insert(kind.name());
        if found != expected {
            wrong.push(format!("{}, with {expected:?}:\n{}", kind.name(), report.lines().join("\n")));
        }
        assert_eq!(report.hurts(), report.findings.iter().any(|finding| finding.hurts));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A name that leads out of the folder makes the folder of the images one further up, up to the whole disk.
#[test]
fn no_image_is_looked_for_above_what_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let (inside, outside) = (folder.path().join("set"), folder.path().join("private"));
    for (folder, name) in [(&inside, "a.png"), (&inside, "more.png"), (&outside, "secret.png")] {
        std::fs::create_dir_all(folder).unwrap();
        picture(1).save(folder.join(name)).unwrap();
    }
    let rows = "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,240,210,nut,4,5,24,15\n";
    for far in ["../b.png", "/b.png"] {
        std::fs::write(inside.join("labels.csv"), format!("{rows}{far},240,210,nut,4,5,24,15\n")).unwrap();
        let import = Import::read(&inside).unwrap();
        let report = check(&import, &Options { decode: false, ..Options::default() });
        let unlisted = report.of(Kind::ImageUnlisted).unwrap();
        let files: Vec<&str> = unlisted.examples.iter().map(|example| example.file.as_str()).collect();
        assert!(files.len() == 1 && files[0].ends_with("set/more.png"), "{far}: {files:?}");
    }
}

#[test]
fn one_core_and_many_decode_all_images_and_find_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let import = sound(root);
    std::fs::copy(root.join("train/train4.png"), root.join("val/val2.png")).unwrap();
    std::fs::remove_file(root.join("train/train3.jpg")).unwrap();
    let bytes = std::fs::read(root.join("train/train9.jpg")).unwrap();
    std::fs::write(root.join("train/train9.jpg"), &bytes[..bytes.len() / 2]).unwrap();
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (check(&import, &Options::default()), pictures(&import.splits[0], false)))
    };
    let (report, looks) = on(1);
    assert_eq!((report.clone(), looks.clone()), on(8));
    let found: Vec<&str> = report.findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(found, ["image-missing", "image-broken", "same-in-splits"]);
    let without: Vec<usize> = (0..looks.len()).filter(|&at| looks[at].is_none()).collect();
    assert_eq!((looks.len(), without), (12, vec![3, 9]));
}

#[test]
fn every_kind_has_a_planted_fault() {
    let planted: HashSet<Kind> = PLANTS.iter().map(|(kind, _, _)| *kind).collect();
    let without: Vec<&Kind> = Kind::ALL.iter().filter(|kind| !planted.contains(kind)).collect();
    assert!(without.is_empty(), "{without:?}");
    let names: HashSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), Kind::ALL.len());
}

#[test]
fn what_is_mended_is_sound_and_the_rest_stays() {
    let mendable = [
        Kind::ImageMissing,
        Kind::ImageEmpty,
        Kind::ImageUnknown,
        Kind::SizeUnknown,
        Kind::ImageTwice,
        Kind::ImageIdTwice,
        Kind::AnnotationIdTwice,
        Kind::AnnotationIdZero,
        Kind::ImageIdUnknown,
        Kind::ClassIdUnknown,
        Kind::BoxEmpty,
        Kind::BoxNegative,
        Kind::BoxNotFinite,
        Kind::BoxOutside,
        Kind::BoxLeavesImage,
        Kind::ObjectTwice,
        Kind::PolygonFewPoints,
        Kind::PolygonOddNumbers,
        Kind::PolygonNotFinite,
        Kind::MaskSizeDiffers,
        Kind::MaskEmpty,
        Kind::AreaWrong,
    ];
    for (kind, _, plant) in PLANTS {
        let folder = tempfile::tempdir().unwrap();
        let mut import = sound(folder.path());
        plant(&mut import, folder.path());
        let (splits, did) = fix(&import);
        let mended = Import { splits, ..import };
        let found = check(&mended, &Options::default()).of(*kind).is_some();
        if mendable.contains(kind) {
            assert!(!found, "{} is mended: {did:?}", kind.name());
            assert!(!did.is_empty(), "{} is told", kind.name());
        }
        if [Kind::BoxesInFractions, Kind::SizeSwapped, Kind::ClassIdsDiffer, Kind::ClassNameTwice].contains(kind) {
            assert!(found, "{} would have to be guessed: {did:?}", kind.name());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let import = sound(folder.path());
    let (splits, did) = fix(&import);
    assert_eq!(did, Vec::<String>::new());
    assert!(splits.iter().zip(&import.splits).all(|(a, b)| a.dataset == b.dataset), "sound data stay as they are");
}
