//! Names as other systems and other people write them, in each layout that names files.

mod common;

use std::fs;
use std::path::Path;
use vigdet_dataset::layouts::{self, Images};
use vigdet_dataset::{Import, Layout};

/// A folder with a space, a name in three alphabets with a space, an ending in capitals.
const FOLDER: &str = "sub dir";
const STEM: &str = "Bild ключ 図 1";
/// The image's size, and its one box as x, y, width, height.
const SIZE: [u32; 2] = [40, 30];
const BOX: [f64; 4] = [4.0, 6.0, 10.0, 12.0];

fn image(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let image = image::GrayImage::from_pixel(SIZE[0], SIZE[1], image::Luma([90]));
    image.save_with_format(path, image::ImageFormat::Png).unwrap();
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Reads the folder: it has one image, which is there and has the box.
fn read(root: &Path, layout: Layout) -> Import {
    let import = Import::open(root).unwrap_or_else(|error| panic!("{layout}: {error:#}"));
    assert_eq!(import.layout, layout);
    let [split] = import.splits.as_slice() else { panic!("{layout}: {:?}", import.splits) };
    let [image] = split.dataset.images.as_slice() else { panic!("{layout}: {:?}", split.dataset.images) };
    assert!(split.path(&image.file_name).is_file(), "{layout}: {} in {}", image.file_name, split.folder.display());
    assert!(image.file_name.ends_with(&format!("{STEM}.PNG")), "{layout}: {}", image.file_name);
    assert_eq!([image.width, image.height], SIZE, "{layout}");
    let [object] = split.dataset.annotations.as_slice() else { panic!("{layout}: {:?}", split.dataset.annotations) };
    assert!(object.bbox.iter().zip(BOX).all(|(a, b)| (a - b).abs() < 1e-9), "{layout}: {:?}", object.bbox);
    import
}

fn name(separator: &str) -> String {
    format!("{FOLDER}{separator}{STEM}.PNG")
}

fn coco(file_name: &str) -> String {
    let [x, y, w, h] = BOX;
    serde_json::json!({
        "images": [{"id": 3, "file_name": file_name, "width": SIZE[0], "height": SIZE[1]}],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 2, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}],
        "categories": [{"id": 2, "name": "nut"}],
    })
    .to_string()
}

#[test]
fn coco_finds_files_named_with_either_separator() {
    for separator in ["/", "\\"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        image(&root.join("train2017").join(name("/")));
        write(&root.join("annotations/instances_train2017.JSON"), &coco(&name(separator)));
        let import = read(root, Layout::Coco);
        assert_eq!(import.splits[0].notes.len(), usize::from(separator == "\\"), "{:?}", import.splits[0].notes);
    }
}

#[cfg(unix)]
#[test]
fn a_file_whose_name_has_a_backslash_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    image(&root.join("train2017").join(name("\\")));
    write(&root.join("annotations/instances_train2017.json"), &coco(&name("\\")));
    assert_eq!(read(root, Layout::Coco).splits[0].dataset.images[0].file_name, name("\\"));
}

#[test]
fn yolo_finds_files_in_folders_and_in_lists_with_either_separator() {
    for separator in ["/", "\\"] {
        for list in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            image(&root.join("images/train").join(name("/")));
            let [x, y, w, h] = [9.0 / 40.0, 12.0 / 30.0, 10.0 / 40.0, 12.0 / 30.0];
            let label = root.join("labels/train").join(FOLDER).join(format!("{STEM}.TXT"));
            write(&label, &format!("0 {x} {y} {w} {h}\r\n"));
            let place = ["images", "train"].join(separator);
            write(&root.join("train.txt"), &format!(".{separator}{place}{separator}{}\r\n", name(separator)));
            let train = if list { "train.txt" } else { &place };
            write(&root.join("data.yaml"), &format!("path: .\ntrain: '{train}'\nnames: [nut]\n"));
            read(root, Layout::Yolo);
        }
    }
}

fn voc(file_name: &str) -> String {
    let [x, y, w, h] = BOX;
    format!(
        "<annotation><filename>{file_name}</filename><size><width>{}</width><height>{}</height></size><object>\
         <name>nut</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>\
         </annotation>",
        SIZE[0],
        SIZE[1],
        x + 1.0,
        y + 1.0,
        x + w,
        y + h
    )
}

#[test]
fn voc_finds_files_by_their_list_in_the_devkit_and_beside_the_xml() {
    for separator in ["/", "\\"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        image(&root.join("JPEGImages").join(name("/")));
        write(&root.join("Annotations").join(FOLDER).join(format!("{STEM}.XML")), &voc(&name(separator)));
        write(&root.join("ImageSets/Main/train.txt"), &format!("{FOLDER}{separator}{STEM}\r\n"));
        assert_eq!(read(root, Layout::Voc).splits[0].name, "train");

        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        image(&root.join(name("/")));
        write(&root.join(FOLDER).join(format!("{STEM}.xml")), &voc(&name(separator)));
        read(root, Layout::Voc);
    }
}

#[test]
fn labelme_finds_files_in_another_folder() {
    let [x, y, w, h] = BOX;
    for separator in ["/", "\\"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        image(&root.join("images").join(name("/")));
        let shape = serde_json::json!({
            "label": "nut", "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle", "group_id": null
        });
        let path = format!("..{separator}images{separator}{}", name(separator));
        let file = serde_json::json!({
            "shapes": [shape], "imagePath": path, "imageWidth": SIZE[0], "imageHeight": SIZE[1], "imageData": null
        });
        write(&root.join("labels").join(format!("{STEM}.JSON")), &file.to_string());
        read(root, Layout::Labelme);
    }
}

#[test]
fn cvat_finds_files_with_either_separator() {
    let [x, y, w, h] = BOX;
    for separator in ["/", "\\"] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        image(&root.join("images").join(name("/")));
        let text = format!(
            "<annotations><image id=\"0\" name=\"{}\" width=\"{}\" height=\"{}\"><box label=\"nut\" xtl=\"{x}\" \
             ytl=\"{y}\" xbr=\"{}\" ybr=\"{}\"/></image></annotations>",
            name(separator),
            SIZE[0],
            SIZE[1],
            x + w,
            y + h
        );
        write(&root.join("annotations.XML"), &text);
        read(root, Layout::Cvat);
    }
}

#[test]
fn label_studio_finds_uploads_and_local_files() {
    let [x, y, w, h] = [10.0, 20.0, 25.0, 40.0];
    let escaped = "Bild%20%D0%BA%D0%BB%D1%8E%D1%87%20%E5%9B%B3%201.PNG";
    for image_of in [
        format!("/data/upload/7/0a1b2c3d-{escaped}"),
        format!("/data/local-files/?d=sub%20dir%5C{escaped}"),
        format!("/data/local-files/?d=sub%20dir/{escaped}"),
        format!("C:\\data\\{}", name("\\")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        image(&root.join("images").join(name("/")));
        let region = serde_json::json!({
            "id": "a", "type": "rectanglelabels", "original_width": SIZE[0], "original_height": SIZE[1],
            "value": {"x": x, "y": y, "width": w, "height": h, "rotation": 0, "rectanglelabels": ["nut"]}
        });
        let task = serde_json::json!([{"id": 1, "data": {"image": image_of}, "annotations": [{"result": [region]}]}]);
        write(&root.join("project.JSON"), &task.to_string());
        read(root, Layout::LabelStudio);
    }
}

#[test]
fn open_images_finds_files_by_the_name_without_its_ending() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    image(&root.join("train").join(name("/")));
    let text = format!("ImageID,LabelName,XMin,XMax,YMin,YMax\r\n{STEM},/m/1,0.1,0.35,0.2,0.6\r\n");
    write(&root.join("train-annotations-bbox.CSV"), &text);
    read(root, Layout::OpenImages);
}

#[test]
fn a_csv_finds_files_with_either_separator_and_by_their_name_alone() {
    let [x, y, w, h] = BOX;
    for file_name in [name("/"), name("\\"), format!("{STEM}.PNG"), format!("D:\\old place\\{STEM}.PNG")] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        image(&root.join("images").join(name("/")));
        let text = format!("filename,class,x,y,w,h\r\n{file_name},nut,{x},{y},{w},{h}\r\n");
        write(&root.join("boxes.CSV"), &text);
        read(root, Layout::Csv);
    }
}

#[test]
fn such_names_come_back_from_every_layout_that_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("data");
    image(&root.join("train2017").join(name("/")));
    write(&root.join("annotations/instances_train2017.json"), &coco(&name("\\")));
    let import = read(&root, Layout::Coco);
    for layout in Layout::ALL {
        let out = folder.path().join(format!("{layout}"));
        layouts::write(&import, layout, &out, Images::Copy).unwrap();
        read(&out, layout);
    }
}

#[test]
fn a_keypoint_set_of_coco_is_read_as_boxes_and_masks() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let person = |id: i64, crowd: u8, segmentation: serde_json::Value| {
        serde_json::json!({
            "id": id, "image_id": 3, "category_id": 1, "bbox": BOX, "area": 60.0, "iscrowd": crowd,
            "segmentation": segmentation, "num_keypoints": 2, "keypoints": [5, 7, 2, 0, 0, 0, 8, 9, 1]
        })
    };
    let polygon = serde_json::json!([[4.0, 6.0, 14.0, 6.0, 14.0, 18.0]]);
    let file = serde_json::json!({
        "info": {}, "licenses": [],
        "images": [{"id": 3, "file_name": "a.png", "width": SIZE[0], "height": SIZE[1], "license": 1}],
        "annotations": [
            person(11, 0, polygon.clone()), person(12, 1, serde_json::json!({"counts": [0, 1200], "size": [30, 40]}))
        ],
        "categories": [{
            "id": 1, "name": "person", "supercategory": "person", "keypoints": ["nose", "left_eye", "right_eye"],
            "skeleton": [[1, 2], [1, 3]]
        }]
    });
    image(&root.join("train2017/a.png"));
    write(&root.join("annotations/person_keypoints_train2017.json"), &file.to_string());
    let import = Import::open(root).unwrap();
    let split = &import.splits[0];
    assert_eq!((import.layout, split.name.as_str()), (Layout::Coco, "train"));
    assert!(split.path("a.png").is_file());
    let [whole, crowd] = split.dataset.annotations.as_slice() else { panic!("{:?}", split.dataset.annotations) };
    assert_eq!((whole.id, whole.bbox, whole.area, whole.iscrowd), (11, BOX, 60.0, false));
    let outline: serde_json::Value = serde_json::to_value(whole.segmentation.as_ref().unwrap()).unwrap();
    assert_eq!(outline, polygon);
    assert!(crowd.iscrowd && vigdet_dataset::geometry::area(crowd.segmentation.as_ref().unwrap()) == 1200.0);
    // Beside a file of objects it is not a split of its own.
    write(&root.join("annotations/instances_train2017.json"), &coco("a.png"));
    assert_eq!(Import::open(root).unwrap().classes()[0].name, "nut");
}
