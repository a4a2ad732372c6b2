//! Files to batches: decoding, resizing, annotations, the loader.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Rgb, RgbImage};
use safetensors::{Dtype, SafeTensors};
use serde_json::{json, Value};
use tempfile::TempDir;
use vigdet::config::{AffineConfig, CropConfig, DataConfig, OnError, ResizeKind, ScalePer, SplitConfig};
use vigdet::data::augment::{cut, random_crop};
use vigdet::data::mosaic::mosaic;
use vigdet::data::order::generator;
use vigdet::data::resize::{antialias, output_size};
use vigdet::data::{decode, prepare, Batch, DetectionDataset, ImageInfo, Loader, LoaderOptions, Mask, Target};
use vigdet_coco::read_dataset;
use vigdet_coco::types::Segmentation;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

/// A uint8 `[height, width, 3]` tensor as an image.
fn picture(tensors: &SafeTensors, name: &str) -> RgbImage {
    let view = tensors.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::U8);
    RgbImage::from_raw(view.shape()[1] as u32, view.shape()[0] as u32, view.data().to_vec()).unwrap()
}

fn floats(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Largest and mean absolute difference.
fn difference(a: &RgbImage, b: &RgbImage) -> (u8, f64) {
    assert_eq!(a.dimensions(), b.dimensions());
    let all = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b));
    (all.clone().max().unwrap(), all.map(f64::from).sum::<f64>() / a.as_raw().len() as f64)
}

#[test]
fn every_kind_of_png_decodes_to_pillows_rgb() {
    let bytes = std::fs::read(fixtures().join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = 0;
    for name in expected.names().into_iter().filter(|name| name.ends_with(".png")) {
        let image = decode::open(&fixtures().join(name), false).unwrap();
        assert_eq!(difference(&image, &picture(&expected, name)), (0, 0.0), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 10);
}

#[test]
fn every_kind_of_jpeg_decodes_to_pillows_rgb_within_rounding() {
    let bytes = std::fs::read(fixtures().join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut seen = 0;
    for name in expected.names().into_iter().filter(|name| name.ends_with(".jpg")) {
        let image = decode::open(&fixtures().join(name), false).unwrap();
        let (most, mean) = difference(&image, &picture(&expected, name));
        println!("{name}: {most} {mean:.3}");
        assert!(most <= 3 && mean < 0.4, "{name}: {most} at most, {mean} on average");
        seen += 1;
    }
    assert_eq!(seen, 14);
}

#[test]
fn other_formats_decode_to_pillows_rgb() {
    let bytes = std::fs::read(fixtures().join("others.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = expected.names();
    names.sort();
    assert_eq!(names.len(), 12);
    for name in names {
        let image = decode::open(&fixtures().join("others").join(name), false).unwrap();
        // libwebp and this decoder interpolate the colours of a lossy WebP each in its own way.
        let most = if name == "lossy.webp" { 4 } else { 0 };
        let (found, _) = difference(&image, &picture(&expected, name));
        assert!(found <= most, "{name}: {found}");
    }
}

#[test]
fn exif_orientation_is_honoured_only_when_asked_for() {
    let bytes = std::fs::read(fixtures().join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    for orientation in 1..=8 {
        let name = format!("exif{orientation}.jpg");
        let stored = decode::open(&fixtures().join(&name), false).unwrap();
        assert_eq!(stored.dimensions(), (31, 22));
        let turned = decode::open(&fixtures().join(&name), true).unwrap();
        let (most, _) = difference(&turned, &picture(&expected, &format!("{name}.exif")));
        assert!(most <= 3, "{name}: {most}");
        let (width, height, swaps) = decode::dimensions(&fixtures().join(&name)).unwrap();
        assert_eq!(((width, height), swaps), ((31, 22), orientation >= 5));
    }
}

#[test]
fn damaged_files_are_told_apart_and_named() {
    let folder = TempDir::new().unwrap();
    let message = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", decode::open(&path, false).unwrap_err());
        assert!(error.contains(name), "{error}");
        error
    };
    let whole = std::fs::read(fixtures().join("yuv420.jpg")).unwrap();
    assert!(message("half.jpg", &whole[..whole.len() / 2]).contains("truncated"));
    assert!(message("nearly.jpg", &whole[..whole.len() - 200]).contains("truncated"));
    let progressive = std::fs::read(fixtures().join("progressive.jpg")).unwrap();
    assert!(message("half_progressive.jpg", &progressive[..progressive.len() / 2]).contains("truncated"));
    // The end of a thumbnail in the headers is not the end of the image.
    let thumbnail = [0xFF, 0xE1, 0, 6, 0x45, 0xFF, 0xD9, 0x45];
    let with_thumbnail = [&whole[..2], &thumbnail, &whole[2..whole.len() / 2]].concat();
    assert!(message("thumbnail.jpg", &with_thumbnail).contains("truncated"));
    let png = std::fs::read(fixtures().join("rgb.png")).unwrap();
    message("half.png", &png[..png.len() / 2]);
    assert!(message("empty.jpg", b"").contains("empty"));
    assert!(message("text.png", b"hello, I am not an image").contains("neither JPEG nor PNG"));
    assert!(message("head.jpg", &whole[..30]).contains("truncated"));
    // A header that claims 65,500 × 65,500 pixels must not make us allocate them.
    let mut huge = whole.clone();
    let sof = huge.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
    huge[sof + 5..sof + 9].copy_from_slice(&[0xFF, 0xDC, 0xFF, 0xDC]);
    assert!(message("huge.jpg", &huge).contains("pixels"));
    huge[sof + 5..sof + 9].copy_from_slice(&[0, 0, 0, 61]);
    message("flat.jpg", &huge);
    let missing = decode::open(&folder.path().join("none.jpg"), false).unwrap_err();
    assert!(format!("{missing:#}").contains("none.jpg"));
}

#[test]
fn the_format_is_taken_from_the_content_not_the_name() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("really_a_png.jpg");
    std::fs::copy(fixtures().join("rgb.png"), &path).unwrap();
    assert_eq!(decode::open(&path, false).unwrap().dimensions(), (61, 45));
}

#[test]
fn antialiased_resizing_is_pillows() {
    let bytes = std::fs::read(fixtures().join("resize.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let image = picture(&tensors, "image");
    for (width, height) in [(61, 43), (20, 14), (13, 40), (41, 58)] {
        let resized = antialias(&image, width, height).unwrap();
        let (most, _) = difference(&resized, &picture(&tensors, &format!("pillow.{width}x{height}")));
        assert!(most <= 1, "{width}×{height}: {most}");
    }
}

fn info(file: &str) -> ImageInfo {
    ImageInfo { id: 1, file: file.into(), width: 0, height: 0 }
}

fn values(batch: &Batch) -> Vec<f32> {
    Vec::try_from(batch.images.reshape([-1])).unwrap()
}

#[test]
fn bilinear_batches_are_torchvisions() {
    let bytes = std::fs::read(fixtures().join("resize.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let image = picture(&tensors, "image");
    for (short, long) in [(50, 80), (20, 33), (40, 50)] {
        let config = DataConfig { size: [short, long], resize: ResizeKind::Bilinear, ..DataConfig::default() };
        let batch = prepare(std::slice::from_ref(&image), &[info("a")], &config).unwrap();
        let view = tensors.tensor(&format!("torchvision.{short}.{long}")).unwrap();
        assert_eq!(batch.images.size(), view.shape().iter().map(|s| *s as i64).collect::<Vec<_>>());
        let most = values(&batch).iter().zip(floats(view.data())).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most < 2e-5, "{short}, {long}: {most}");
    }
}

#[test]
fn sizes_are_torchvisions_to_the_pixel() {
    let bytes = std::fs::read(fixtures().join("resize.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor("sizes").unwrap();
    let rows: Vec<u32> = view.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(rows.len(), 180 * 6);
    for row in rows.chunks_exact(6) {
        let size = output_size(row[0], row[1], row[2].into(), row[3].into(), ResizeKind::Bilinear);
        assert_eq!(size, (row[4], row[5]), "{row:?}");
    }
}

#[test]
fn sizes_round_as_detectron2_and_mmdetection_do() {
    let size = |w, h| output_size(w, h, 800.0, 1333.0, ResizeKind::Antialias);
    assert_eq!(size(640, 480), (1067, 800));
    assert_eq!(size(427, 640), (800, 1199));
    assert_eq!(size(640, 361), (1333, 752));
    assert_eq!(size(100, 10_000), (13, 1333));
    assert_eq!(size(1, 10_000), (1, 1333));
    let size = |w, h| output_size(w, h, 800.0, 1333.0, ResizeKind::Opencv);
    assert_eq!((size(640, 480), size(640, 361)), ((1067, 800), (1333, 752)));
}

#[test]
fn opencvs_bilinear_is_opencvs_to_the_bit() {
    let bytes = std::fs::read(fixtures().join("opencv.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let image = picture(&tensors, "image");
    for (short, long) in [(50, 80), (20, 33), (15, 21), (40, 50), (87, 123)] {
        let (mean, std) = ([0.0; 3], [1.0 / 255.0; 3]);
        let config =
            DataConfig { size: [short, long], resize: ResizeKind::Opencv, pad: 1, mean, std, ..DataConfig::default() };
        let batch = prepare(std::slice::from_ref(&image), &[info("a")], &config).unwrap();
        let expected = picture(&tensors, &format!("{short}.{long}"));
        let (width, height) = (i64::from(expected.width()), i64::from(expected.height()));
        assert_eq!(batch.images.size(), [1, 3, height, width]);
        let interleaved = batch.images.squeeze().permute([1, 2, 0]).contiguous().reshape([-1]).round();
        let found: Vec<f32> = interleaved.try_into().unwrap();
        let apart = found.iter().zip(expected.as_raw()).filter(|(a, b)| **a != f32::from(**b)).count();
        assert_eq!(apart, 0, "{short}, {long}: {apart} of {}", found.len());
    }
}

#[test]
fn normalisation_and_padding_are_exact() {
    let image = RgbImage::from_pixel(5, 3, Rgb([255, 0, 51]));
    let config = DataConfig { size: [3, 5], pad: 4, ..DataConfig::default() };
    let wide = RgbImage::from_pixel(3, 3, Rgb([0, 0, 0]));
    let batch = prepare(&[image, wide], &[info("a"), info("b")], &config).unwrap();
    assert_eq!(batch.images.size(), [2, 3, 4, 8]);
    assert_eq!(batch.sizes, [(3, 5), (3, 3)]);
    assert_eq!((batch.infos[0].width, batch.infos[0].height), (5, 3));
    let values = values(&batch);
    for (i, (width, colour)) in [(5, [1.0, 0.0, 0.2]), (3, [0.0, 0.0, 0.0])].into_iter().enumerate() {
        for c in 0..3 {
            for y in 0..4 {
                for x in 0..8 {
                    let inside = x < width && y < 3;
                    let expected = if inside { (colour[c] - config.mean[c]) / config.std[c] } else { 0.0 };
                    let value = values[((i * 3 + c) * 4 + y) * 8 + x];
                    assert!((value - expected).abs() < 1e-6, "image {i}, channel {c}, ({x}, {y}): {value}");
                }
            }
        }
    }
}

/// A data set on disk: `images` as (id, file, width, height), each file a plain colour made from its id.
fn on_disk(images: &[(i64, &str, u32, u32)], annotations: Value, categories: Value) -> (TempDir, SplitConfig) {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("pictures")).unwrap();
    for &(id, file, width, height) in images {
        let image = RgbImage::from_pixel(width.max(1), height.max(1), Rgb([id as u8, 100, 200]));
        image.save_with_format(folder.path().join("pictures").join(file), image::ImageFormat::Png).unwrap();
    }
    let listed: Vec<Value> = images
        .iter()
        .map(|(id, file, width, height)| json!({"id": id, "file_name": file, "width": width, "height": height}))
        .collect();
    let text = json!({"images": listed, "annotations": annotations, "categories": categories});
    std::fs::write(folder.path().join("all.json"), text.to_string()).unwrap();
    (folder, SplitConfig { images: "pictures".into(), annotations: "all.json".into(), limit: None })
}

fn object(id: i64, image: i64, category: i64, bbox: [f64; 4]) -> Value {
    json!({"id": id, "image_id": image, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})
}

fn categories() -> Value {
    json!([{"id": 70, "name": "pear"}, {"id": 3, "name": "fig"}, {"id": 18, "name": "plum"}])
}

#[test]
fn labels_follow_the_category_ids_in_their_order_and_map_back() {
    let annotations = json!([
        object(1, 5, 70, [1.0, 2.0, 3.0, 4.0]),
        object(2, 5, 3, [2.0, 2.0, 3.0, 4.0]),
        object(3, 5, 18, [3.0, 2.0, 3.0, 4.0]),
    ]);
    let (folder, split) = on_disk(&[(5, "a.png", 20, 10)], annotations, categories());
    let data = DetectionDataset::open(&split, folder.path(), true).unwrap();
    let names: Vec<&str> = data.classes().iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["fig", "plum", "pear"]);
    let target = data.sample(0, false).unwrap().target;
    assert_eq!(target.labels, [2, 0, 1]);
    assert_eq!(target.labels.iter().map(|l| data.category_id(*l)).collect::<Vec<_>>(), [70, 3, 18]);
    assert_eq!([3, 18, 70, 71].map(|id| data.label(id)), [Some(0), Some(1), Some(2), None]);
    assert_eq!(target.boxes[0], [1.0, 2.0, 4.0, 6.0]);
    // The evaluation gets the ids of the file.
    let ids: Vec<i64> = data.ground_truth().annotations.iter().map(|a| a.category_id).collect();
    assert_eq!(ids, [70, 3, 18]);
}

#[test]
fn what_annotations_hold_is_kept_clipped_dropped_and_counted() {
    let mut polygon = object(1, 1, 3, [2.0, 1.0, 4.0, 4.0]);
    polygon["segmentation"] = json!([[2.0, 1.0, 6.0, 1.0, 6.0, 5.0]]);
    let mut runs = object(2, 1, 3, [0.0, 0.0, 20.0, 10.0]);
    runs["segmentation"] = json!({"size": [10, 20], "counts": [0, 200]});
    runs["iscrowd"] = json!(1);
    let mut compressed = object(3, 1, 18, [0.0, 0.0, 5.0, 5.0]);
    compressed["segmentation"] = json!({"size": [10, 20], "counts": "0X6"});
    let annotations = json!([
        polygon,
        runs,
        compressed,
        object(4, 1, 18, [-3.0, 4.0, 8.0, 100.0]),
        object(5, 1, 18, [3.0, 4.0, 0.0, 5.0]),
        object(6, 1, 18, [30.0, 4.0, 5.0, 5.0]),
        object(7, 1, 18, [3.0, 4.0, -5.0, 5.0]),
    ]);
    let images = [(1, "a.png", 20, 10), (2, "b.png", 20, 10)];
    let (folder, split) = on_disk(&images, annotations, categories());
    let data = DetectionDataset::open(&split, folder.path(), false).unwrap();
    let report = data.report();
    assert_eq!((report.images, report.objects, report.crowds, report.without_objects), (2, 3, 1, 1));
    assert_eq!((report.clipped, report.degenerate, report.dropped), (1, 3, 0));
    assert!(report.to_string().starts_with("2 images, 3 objects, 3 classes, 1 crowd regions\n"), "{report}");

    let target = data.sample(0, false).unwrap().target;
    assert_eq!(target.boxes.len(), 4);
    assert_eq!(target.boxes[3], [0.0, 4.0, 5.0, 10.0]);
    assert_eq!(target.crowd, [false, true, false, false]);
    let masks: Vec<bool> = target.masks.iter().map(Option::is_some).collect();
    assert_eq!(masks, [true, true, true, false]);
    assert!(data.sample(1, false).unwrap().target.boxes.is_empty());
    // The ground truth stays as it was written.
    assert_eq!(data.ground_truth().annotations.len(), 7);

    let training = DetectionDataset::open(&split, folder.path(), true).unwrap();
    assert_eq!((training.len(), training.report().dropped), (1, 1));
}

#[test]
fn training_drops_images_with_nothing_but_crowds() {
    let mut crowd = object(1, 1, 3, [0.0, 0.0, 20.0, 10.0]);
    crowd["iscrowd"] = json!(1);
    let images = [(1, "a.png", 20, 10), (2, "b.png", 20, 10)];
    let (folder, split) = on_disk(&images, json!([crowd, object(2, 2, 3, [0.0, 0.0, 5.0, 5.0])]), categories());
    let data = DetectionDataset::open(&split, folder.path(), true).unwrap();
    assert_eq!((data.len(), data.info(0).id), (1, 2));
}

#[test]
fn the_limit_keeps_the_first_images_by_id_and_their_annotations() {
    let images = [(9, "i.png", 20, 10), (2, "b.png", 20, 10), (4, "d.png", 20, 10), (1, "a.png", 20, 10)];
    let annotations: Vec<Value> = [9, 2, 4].iter().map(|&i| object(i * 10, i, 3, [0.0, 0.0, 5.0, 5.0])).collect();
    let (folder, mut split) = on_disk(&images, json!(annotations), categories());
    split.limit = Some(2);
    let data = DetectionDataset::open(&split, folder.path(), true).unwrap();
    assert_eq!((0..data.len()).map(|i| data.info(i).id).collect::<Vec<_>>(), [2, 4]);
    let truth = data.ground_truth();
    assert_eq!(truth.images.iter().map(|i| i.id).collect::<Vec<_>>(), [2, 4]);
    assert_eq!(truth.annotations.iter().map(|a| a.id).collect::<Vec<_>>(), [20, 40]);
    assert_eq!((data.report().dropped, data.report().over_limit), (1, 1));
    assert_eq!(data.sample(1, false).unwrap().target.boxes.len(), 1);
}

#[test]
fn names_that_leave_the_image_folder_are_refused() {
    let ok = [object(1, 1, 3, [0.0, 0.0, 5.0, 5.0])];
    for name in ["../all.json", "/etc/passwd", "a/../../b.png", ""] {
        let (folder, split) = on_disk(&[(1, "a.png", 20, 10)], json!(ok), categories());
        let path = folder.path().join("all.json");
        let text = std::fs::read_to_string(&path).unwrap().replace("a.png", name);
        std::fs::write(&path, text).unwrap();
        let error = format!("{:#}", DetectionDataset::open(&split, folder.path(), true).unwrap_err());
        assert!(error.contains("all.json") && error.contains("image 1"), "{error}");
        assert!(error.contains("leaves the image folder") || name.is_empty(), "{error}");
    }
}

#[test]
fn contradictions_in_annotations_are_one_clear_line() {
    let fine = object(1, 1, 3, [0.0, 0.0, 5.0, 5.0]);
    let image = (1, "a.png", 20, 10);
    let error = |images: &[(i64, &str, u32, u32)], annotations: Value, categories: Value| {
        let (folder, split) = on_disk(images, annotations, categories);
        let error = format!("{:#}", DetectionDataset::open(&split, folder.path(), true).unwrap_err());
        assert!(!error.contains('\n'), "{error}");
        error
    };
    assert!(error(&[image], json!([object(8, 1, 4, [0.0, 0.0, 5.0, 5.0])]), categories()).contains("category 4"));
    assert!(error(&[image], json!([object(8, 2, 3, [0.0, 0.0, 5.0, 5.0])]), categories()).contains("image 2"));
    assert!(error(&[image, (1, "b.png", 20, 10)], json!([fine]), categories()).contains("id 1"));
    let twice = json!([{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]);
    assert!(error(&[image], json!([fine]), twice).contains("id 3"));
    assert!(error(&[image], json!([fine]), json!([])).contains("categories"));
    assert!(error(&[image], json!([]), categories()).contains("no image is left to train on"));

    let (folder, split) = on_disk(&[image], json!([fine]), categories());
    // Annotations that come from memory, or from a folder in another layout, pass no reader of COCO's files.
    let read = read_dataset(folder.path().join("all.json")).unwrap();
    for (image, category, named) in [(2, 3, "image 2"), (1, 4, "category 4")] {
        let mut dataset = read.clone();
        (dataset.annotations[0].image_id, dataset.annotations[0].category_id) = (image, category);
        let opened = DetectionDataset::from_dataset(dataset, folder.path().join("pictures"), None, true, false);
        assert!(format!("{:#}", opened.unwrap_err()).contains(named));
    }
    let gone = SplitConfig { annotations: "none.json".into(), ..split.clone() };
    let text = format!("{:#}", DetectionDataset::open(&gone, folder.path(), true).unwrap_err());
    assert!(text.contains("none.json") && text.contains("--data"), "{text}");
    let gone = SplitConfig { images: "nowhere".into(), ..split.clone() };
    assert!(format!("{:#}", DetectionDataset::open(&gone, folder.path(), true).unwrap_err()).contains("nowhere"));
    std::fs::remove_file(folder.path().join("pictures/a.png")).unwrap();
    let text = format!("{:#}", DetectionDataset::open(&split, folder.path(), true).unwrap_err());
    assert!(text.contains("a.png") && text.contains("pictures"), "{text}");
}

/// Forty images of two shapes, the colour and the box of each telling its id.
fn forty() -> (TempDir, SplitConfig) {
    let names: Vec<String> = (1..=40).map(|i| format!("{i}.png")).collect();
    let images: Vec<(i64, &str, u32, u32)> = (1..=40i64)
        .zip(&names)
        .map(|(id, name)| if id % 3 == 0 { (id, name.as_str(), 24, 40) } else { (id, name.as_str(), 40, 24) })
        .collect();
    let annotations: Vec<Value> =
        (1..=40).map(|i| object(i, i, [3, 18, 70][i as usize % 3], [2.0, 3.0, 4.0 + i as f64 / 4.0, 5.0])).collect();
    on_disk(&images, json!(annotations), categories())
}

fn small(workers: usize) -> DataConfig {
    DataConfig { size: [24, 40], scale: [0.7, 1.3], color: 0.3, workers, ..DataConfig::default() }
}

/// All that changes an image in training.
fn all_changes(workers: usize) -> DataConfig {
    let affine = AffineConfig { probability: 0.6, scale: [0.5, 1.5], degrees: 15.0, shear: 5.0 };
    let crop = CropConfig { probability: 0.4, ..CropConfig::default() };
    DataConfig { hue: 0.1, mosaic: 0.4, mixup: 0.4, rotate: 0.5, affine, crop, ..small(workers) }
}

const TRAIN: LoaderOptions = LoaderOptions { batch_size: 3, train: true, seed: 11 };

/// Everything of an epoch that a training step sees.
type Seen = Vec<(Vec<i64>, Vec<f32>, Vec<Vec<[f32; 4]>>, Vec<Vec<i64>>)>;

fn run(data: &Arc<DetectionDataset>, config: &DataConfig, options: LoaderOptions, epoch: usize, first: usize) -> Seen {
    let loader = Loader::new(data.clone(), config, options).unwrap();
    loader
        .epoch(epoch, first, true)
        .map(|batch| {
            let batch = batch.unwrap();
            let ids = batch.infos.iter().map(|i| i.id).collect();
            let boxes = batch.targets.iter().map(|t| t.boxes.clone()).collect();
            let labels = batch.targets.iter().map(|t| t.labels.clone()).collect();
            (ids, values(&batch), boxes, labels)
        })
        .collect()
}

#[test]
fn batches_do_not_depend_on_the_number_of_threads_nor_on_where_an_epoch_is_entered() {
    let (folder, split) = forty();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    for small in [small, all_changes] {
        let one = run(&data, &small(1), TRAIN, 4, 0);
        assert_eq!(one.len(), 14);
        assert_eq!(one, run(&data, &small(5), TRAIN, 4, 0));
        assert_eq!(one[9..], run(&data, &small(2), TRAIN, 4, 9)[..]);
        assert_ne!(one, run(&data, &small(2), TRAIN, 5, 0));
        assert_ne!(one, run(&data, &small(2), LoaderOptions { seed: 12, ..TRAIN }, 4, 0));
        let mut ids: Vec<i64> = one.iter().flat_map(|batch| batch.0.clone()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=40).collect::<Vec<_>>());
    }
}

#[test]
fn a_batch_that_shares_its_factor_of_the_size_has_no_padding_between_its_images() {
    let (folder, split) = forty();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    let config = DataConfig { size: [48, 80], pad: 1, scale: [0.5, 1.0], ..small(2) };
    let sizes = |scale_per: ScalePer| -> Vec<Vec<(i64, i64)>> {
        let config = DataConfig { scale_per, ..config.clone() };
        let loader = Loader::new(data.clone(), &config, TRAIN).unwrap();
        // The first batches are of one aspect ratio.
        loader.epoch(4, 0, true).map(|batch| batch.unwrap().sizes).collect()
    };
    let (of_batch, of_image) = (sizes(ScalePer::Batch), sizes(ScalePer::Image));
    let shares = |all: &[Vec<(i64, i64)>]| {
        let area = |&(height, width): &(i64, i64)| height * width;
        all.iter().filter(|sizes| sizes.iter().all(|size| area(size) == area(&sizes[0]))).count()
    };
    // All but those that mix the two aspect ratios, which here have one area.
    assert_eq!(shares(&of_batch), of_batch.len());
    assert_eq!(shares(&of_image), 1, "the last batch has one image");
    let first: Vec<_> = of_batch.iter().map(|sizes| sizes[0].0 * sizes[0].1).collect();
    assert!(first.iter().any(|area| *area != first[0]), "{first:?}");
}

#[test]
fn an_epoch_without_strong_augmentation_keeps_the_other_changes_as_they_are() {
    let (folder, split) = forty();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    let first = |config: &DataConfig, strong: bool| {
        let loader = Loader::new(data.clone(), config, TRAIN).unwrap();
        let batch = loader.epoch(4, 0, strong).next().unwrap().unwrap();
        (values(&batch), batch.targets.iter().map(|t| t.boxes.clone()).collect::<Vec<_>>())
    };
    let strong = DataConfig { mosaic: 1.0, mixup: 1.0, ..small(2) };
    let (on, off) = (first(&strong, true), first(&strong, false));
    assert_eq!(off, first(&small(2), true));
    assert_ne!(on, off);
    assert!(on.1.iter().map(Vec::len).sum::<usize>() > off.1.iter().map(Vec::len).sum::<usize>());
}

#[test]
fn an_image_keeps_its_own_class_and_box_through_the_loader() {
    let (folder, split) = forty();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    let config = DataConfig { flip: 0.0, scale: [1.0, 1.0], color: 0.0, ..small(2) };
    for (ids, pixels, boxes, labels) in run(&data, &config, TRAIN, 0, 0) {
        let image_size = pixels.len() / ids.len();
        for (i, id) in ids.iter().enumerate() {
            assert_eq!(labels[i], [*id % 3]);
            assert_eq!(boxes[i], [[2.0, 3.0, 6.0 + *id as f32 / 4.0, 8.0]]);
            let red = pixels[i * image_size] * config.std[0] + config.mean[0];
            assert!((red * 255.0 - *id as f32).abs() < 1e-3, "image {id} has the pixels of {}", red * 255.0);
        }
    }
}

#[test]
fn evaluation_takes_every_image_once_unchanged() {
    let (folder, split) = forty();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), false).unwrap());
    let options = LoaderOptions { batch_size: 1, train: false, seed: 0 };
    let config = DataConfig { flip: 1.0, flip_vertical: 1.0, ..small(2) };
    let seen = run(&data, &config, options, 0, 0);
    assert_eq!(seen.iter().map(|b| b.0[0]).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    assert_eq!(seen[7].2, [[[2.0, 3.0, 8.0, 8.0]]]);
}

/// An image with a bright patch where its one box is.
fn patch() -> (TempDir, SplitConfig) {
    let (folder, split) =
        on_disk(&[(1, "a.png", 64, 32)], json!([object(1, 1, 3, [8.0, 4.0, 12.0, 6.0])]), categories());
    let image = RgbImage::from_fn(64, 32, |x, y| {
        Rgb(if (8..20).contains(&x) && (4..10).contains(&y) { [255; 3] } else { [0; 3] })
    });
    image.save(folder.path().join("pictures/a.png")).unwrap();
    (folder, split)
}

/// Asserts that the box of a one-image batch is exactly where the bright pixels are.
fn assert_box_on_patch(batch: &Batch) -> [f32; 4] {
    let (rows, columns) = (batch.images.size()[2] as usize, batch.images.size()[3] as usize);
    let values = values(batch);
    let bright: Vec<(usize, usize)> =
        (0..rows * columns).filter(|i| values[*i] > 1.5).map(|i| (i % columns, i / columns)).collect();
    let least = |f: fn(&(usize, usize)) -> usize| bright.iter().map(f).min().unwrap() as f32;
    let most = |f: fn(&(usize, usize)) -> usize| bright.iter().map(f).max().unwrap() as f32 + 1.0;
    let expected = [least(|p| p.0), least(|p| p.1), most(|p| p.0), most(|p| p.1)];
    assert_eq!(batch.targets[0].boxes, [expected]);
    expected
}

#[test]
fn flips_take_their_boxes_along() {
    let (folder, split) = patch();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    let options = LoaderOptions { batch_size: 1, train: true, seed: 0 };
    let cases = [
        (0.0, 0.0, [8.0, 4.0, 20.0, 10.0]),
        (1.0, 0.0, [44.0, 4.0, 56.0, 10.0]),
        (0.0, 1.0, [8.0, 22.0, 20.0, 28.0]),
        (1.0, 1.0, [44.0, 22.0, 56.0, 28.0]),
    ];
    for (flip, flip_vertical, expected) in cases {
        let config = DataConfig { size: [32, 64], flip, flip_vertical, workers: 1, ..DataConfig::default() };
        let loader = Loader::new(data.clone(), &config, options).unwrap();
        let batch = loader.epoch(0, 0, true).next().unwrap().unwrap();
        assert_eq!(assert_box_on_patch(&batch), expected);
    }
}

#[test]
fn a_quarter_turn_takes_its_boxes_along() {
    let (folder, split) = patch();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    let options = LoaderOptions { batch_size: 1, train: true, seed: 0 };
    let config = DataConfig { size: [32, 64], flip: 0.0, rotate: 1.0, workers: 1, ..DataConfig::default() };
    let batch = Loader::new(data, &config, options).unwrap().epoch(0, 0, true).next().unwrap().unwrap();
    assert_eq!(batch.sizes, [(64, 32)]);
    assert_eq!(assert_box_on_patch(&batch), [22.0, 8.0, 28.0, 20.0]);
}

#[test]
fn crops_take_their_boxes_along_and_keep_an_object() {
    let (folder, split) = patch();
    let data = DetectionDataset::open(&split, folder.path(), true).unwrap();
    let config = CropConfig { probability: 1.0, scale: 0.2, visible: 0.4 };
    let mut cut_sides = 0;
    for i in 0..200 {
        let mut sample = data.sample(0, false).unwrap();
        random_crop(&mut sample, &config, &mut generator(1, 0, i));
        let (width, height) = sample.image.dimensions();
        assert!((12..=64).contains(&width) && (6..=32).contains(&height), "{width}×{height}");
        let bright: Vec<(u32, u32)> =
            sample.image.enumerate_pixels().filter(|(_, _, p)| p.0[0] == 255).map(|(x, y, _)| (x, y)).collect();
        let [x1, y1, x2, y2] = sample.target.boxes[0].map(|v| v as u32);
        assert_eq!(bright.first(), Some(&(x1, y1)));
        assert_eq!(bright.last(), Some(&(x2 - 1, y2 - 1)));
        assert!(bright.len() as f64 >= 0.4 * 72.0 && !sample.target.crowd[0]);
        cut_sides += usize::from(bright.len() < 72);
    }
    assert!(cut_sides > 20, "{cut_sides}");
}

#[test]
fn what_a_window_leaves_too_little_of_is_ignored_or_gone() {
    let mask = |p: &[f64]| Mask::new(&Segmentation::Polygons(vec![p.to_vec()]), 50, 50);
    let target = Target {
        boxes: vec![[0.0, 0.0, 10.0, 10.0], [18.0, 18.0, 28.0, 28.0], [40.0, 0.0, 50.0, 5.0], [6.0, 6.0, 9.0, 9.0]],
        labels: vec![0, 1, 2, 3],
        crowd: vec![false, false, false, true],
        masks: vec![None, mask(&[18.0, 18.0, 28.0, 18.0, 28.0, 28.0, 18.0, 28.0]), None, None],
    };
    let seen = cut(&target, [4.0, 4.0, 20.0, 20.0], 0.3);
    assert_eq!(seen.boxes, [[0.0, 0.0, 6.0, 6.0], [14.0, 14.0, 16.0, 16.0], [2.0, 2.0, 5.0, 5.0]]);
    assert_eq!((seen.labels, seen.crowd), (vec![0, 1, 3], vec![false, true, true]));
    // The mask has moved with its box, and is all of it.
    let mask = seen.masks[1].as_ref().unwrap();
    assert_eq!(mask.raster(&[14.0, 14.0, 24.0, 24.0], 10), vec![1.0; 100]);
    assert_eq!(mask.raster(&[4.0, 4.0, 14.0, 14.0], 10), vec![0.0; 100]);
}

#[test]
fn a_mosaic_shows_parts_of_four_images_with_their_own_boxes() {
    // Four plain images, each with one box that covers it: the boxes must tile the result, each on its own colour.
    let names: Vec<String> = (1..=4).map(|i| format!("{i}.png")).collect();
    let images: Vec<(i64, &str, u32, u32)> = (1..=4)
        .zip(&names)
        .map(|(id, name)| (50 * id, name.as_str(), 40 + 8 * id as u32, 64 - 8 * id as u32))
        .collect();
    let annotations: Vec<Value> =
        (1..=4).map(|i| object(i, 50 * i, [3, 18, 70, 3][i as usize - 1], [0.0, 0.0, 200.0, 200.0])).collect();
    let (folder, split) = on_disk(&images, json!(annotations), categories());
    let data = DetectionDataset::open(&split, folder.path(), true).unwrap();
    for i in 0..50 {
        let four = [0, 1, 2, 3].map(|i| data.sample(i, false).unwrap());
        let all = mosaic(four, 0.0, &mut generator(2, 0, i)).unwrap();
        assert_eq!(all.image.dimensions(), (48, 56));
        assert_eq!(all.target.labels, [0, 1, 2, 0]);
        let mut covered = 0.0;
        for (b, id) in all.target.boxes.iter().zip([50, 100, 150, 200]) {
            covered += (b[2] - b[0]) * (b[3] - b[1]);
            for (x, y) in [(b[0], b[1]), (b[2] - 1.0, b[3] - 1.0)] {
                assert_eq!(all.image.get_pixel(x as u32, y as u32).0[0], id);
            }
        }
        assert!((covered - 48.0 * 56.0f32).abs() < 0.01, "{covered}");
    }
}

#[test]
fn every_augmentation_together_stays_the_same_for_the_same_seed() {
    let (folder, split) = forty();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    let crop = CropConfig { probability: 0.5, ..CropConfig::default() };
    let config = |workers| DataConfig { crop: crop.clone(), rotate: 0.5, mosaic: 0.5, ..small(workers) };
    let one = run(&data, &config(1), TRAIN, 4, 0);
    assert_eq!(one, run(&data, &config(4), TRAIN, 4, 0));
    assert_ne!(one, run(&data, &small(1), TRAIN, 4, 0));
}

#[test]
fn boxes_are_scaled_with_their_image() {
    let (folder, split) = patch();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    let config = DataConfig { size: [64, 200], scale: [0.5, 1.0], workers: 1, ..DataConfig::default() };
    let loader = Loader::new(data, &config, LoaderOptions { batch_size: 1, train: true, seed: 3 }).unwrap();
    let mut heights = Vec::new();
    for epoch in 0..20 {
        let batch = loader.epoch(epoch, 0, true).next().unwrap().unwrap();
        let (height, width) = batch.sizes[0];
        assert!((32..=64).contains(&height) && (width - 2 * height).abs() <= 1, "{height}×{width}");
        let [x1, y1, x2, y2] = batch.targets[0].boxes[0];
        assert!(((x2 - x1) * 64.0 / width as f32 - 12.0).abs() < 1e-3);
        assert!(((y2 - y1) * 32.0 / height as f32 - 6.0).abs() < 1e-3);
        assert!((y1 * 32.0 / height as f32 - 4.0).abs() < 1e-3);
        heights.push(height);
    }
    assert!(heights.iter().min().unwrap() < &42 && heights.iter().max().unwrap() > &50, "{heights:?}");
}

#[test]
fn images_that_are_not_trained_on_may_have_another_size() {
    let (folder, split) = patch();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    let config = DataConfig { size: [32, 64], test_size: Some([48, 200]), ..DataConfig::default() };
    let size = |train: bool| {
        let options = LoaderOptions { batch_size: 1, train, seed: 0 };
        Loader::new(data.clone(), &config, options).unwrap().epoch(0, 0, true).next().unwrap().unwrap().sizes[0]
    };
    assert_eq!((size(true), size(false)), ((32, 64), (48, 96)));
    let (image, info) = (RgbImage::new(64, 32), data.info(0).clone());
    assert_eq!(prepare(&[image], &[info], &config).unwrap().sizes, [(48, 96)]);
}

#[test]
fn an_unreadable_image_is_named_and_skipped_or_stops_the_run() {
    let (folder, split) = forty();
    std::fs::write(folder.path().join("pictures/7.png"), b"not an image").unwrap();
    std::fs::remove_file(folder.path().join("pictures/8.png")).unwrap();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), false).unwrap());

    let evaluation = LoaderOptions { batch_size: 1, train: false, seed: 0 };
    let loader = Loader::new(data.clone(), &small(2), evaluation).unwrap();
    let ids: Vec<i64> = loader.epoch(0, 0, true).map(|b| b.unwrap().infos[0].id).collect();
    assert_eq!(ids, (1..=40).filter(|i| ![7, 8].contains(i)).collect::<Vec<_>>());
    let skipped = loader.skipped();
    assert_eq!(skipped.iter().map(|s| s.0.as_str()).collect::<Vec<_>>(), ["7.png", "8.png"]);
    assert!(skipped[0].1.contains("neither JPEG nor PNG"), "{skipped:?}");

    // In training another image takes the place, so that steps stay where they are.
    let loader = Loader::new(data.clone(), &small(2), TRAIN).unwrap();
    let mut ids: Vec<i64> =
        loader.epoch(0, 0, true).flat_map(|b| b.unwrap().infos.iter().map(|i| i.id).collect::<Vec<_>>()).collect();
    ids.sort_unstable();
    let mut expected: Vec<i64> = (1..=40).filter(|i| ![7, 8].contains(i)).chain([9, 9]).collect();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    assert_eq!(loader.skipped().len(), 2);

    let config = DataConfig { on_error: OnError::Stop, ..small(2) };
    let loader = Loader::new(data, &config, evaluation).unwrap();
    let error = loader.epoch(0, 0, true).find_map(Result::err).unwrap();
    assert!(format!("{error:#}").contains("7.png"), "{error:#}");
}

#[test]
fn training_stops_when_no_image_can_be_read() {
    let (folder, split) = forty();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    std::fs::remove_dir_all(folder.path().join("pictures")).unwrap();
    let loader = Loader::new(data, &small(2), TRAIN).unwrap();
    let error = loader.epoch(0, 0, true).next().unwrap().unwrap_err();
    assert!(format!("{error:#}").contains("could not be read"), "{error:#}");
}

#[test]
fn no_more_batches_are_made_ahead_than_promised() {
    let (folder, split) = forty();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), false).unwrap());
    let options = LoaderOptions { batch_size: 2, train: false, seed: 0 };
    let config = DataConfig { group_by_aspect: false, ..small(3) };
    let loader = Loader::new(data, &config, options).unwrap();
    assert_eq!((loader.ahead(), loader.batches_per_epoch()), (3, 20));
    let epoch = loader.epoch(0, 0, true);
    // What is made ahead is made by now; what is not must not be there any more.
    std::thread::sleep(std::time::Duration::from_millis(300));
    for id in 7..=40 {
        std::fs::remove_file(folder.path().join(format!("pictures/{id}.png"))).unwrap();
    }
    let ids: Vec<i64> = epoch.flat_map(|b| b.unwrap().infos.iter().map(|i| i.id).collect::<Vec<_>>()).collect();
    assert_eq!(ids, (1..=6).collect::<Vec<_>>());
}

#[test]
fn an_image_of_another_size_than_annotated_counts_by_its_pixels_and_is_reported() {
    let annotations = json!([object(1, 1, 3, [0.0, 0.0, 100.0, 6.0]), object(2, 2, 3, [0.0, 0.0, 5.0, 5.0])]);
    let (folder, split) = on_disk(&[(1, "a.png", 40, 24), (2, "b.png", 40, 24)], annotations, categories());
    RgbImage::new(30, 12).save(folder.path().join("pictures/a.png")).unwrap();
    RgbImage::new(24, 40).save(folder.path().join("pictures/b.png")).unwrap();
    let data = Arc::new(DetectionDataset::open(&split, folder.path(), true).unwrap());
    let sample = data.sample(0, false).unwrap();
    assert_eq!((sample.info.width, sample.info.height), (30, 12));
    assert_eq!(sample.target.boxes, [[0.0, 0.0, 30.0, 6.0]]);
    let loader = Loader::new(data, &small(1), LoaderOptions { train: false, ..TRAIN }).unwrap();
    assert_eq!(loader.epoch(0, 0, true).count(), 1);
    let resized = loader.resized();
    assert_eq!(resized[0].0, "a.png");
    assert!(resized[0].1.contains("30×12") && resized[0].1.contains("40×24"), "{resized:?}");
    assert!(resized[1].1.contains("data.exif=true"), "{resized:?}");
}

#[test]
fn sizes_missing_from_the_annotations_are_read_from_the_image() {
    let (folder, split) =
        on_disk(&[(1, "a.png", 40, 24)], json!([object(1, 1, 3, [30.0, 0.0, 100.0, 6.0])]), categories());
    let path = folder.path().join("all.json");
    let mut all: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    all["images"][0].as_object_mut().unwrap().retain(|key, _| key == "id" || key == "file_name");
    std::fs::write(&path, all.to_string()).unwrap();
    let data = DetectionDataset::open(&split, folder.path(), true).unwrap();
    assert_eq!((data.info(0).width, data.info(0).height, data.report().sizes_missing), (40, 24, 1));
    assert_eq!(data.report().clipped, 1);
}

#[test]
fn sizes_missing_from_the_annotations_are_those_after_turning_where_images_are_turned() {
    let annotations = json!([object(1, 1, 3, [0.0, 0.0, 31.0, 22.0])]);
    let (folder, split) = on_disk(&[(1, "a.jpg", 0, 0)], annotations, categories());
    // Stored 31 × 22, and shown 22 × 31.
    std::fs::copy(fixtures().join("exif6.jpg"), folder.path().join("pictures/a.jpg")).unwrap();
    for (exif, size) in [(false, (31, 22)), (true, (22, 31))] {
        let data = DetectionDataset::open_with_exif(&split, folder.path(), true, exif).unwrap();
        assert_eq!((data.info(0).width, data.info(0).height), size);
        assert_eq!(data.report().clipped, usize::from(exif));
        let sample = data.sample(0, exif).unwrap();
        assert_eq!((sample.info.width, sample.info.height), size);
    }
}

#[test]
fn masks_that_cannot_be_used_are_counted_and_those_that_cannot_be_evaluated_are_named() {
    let with = |id: i64, segmentation: Value| {
        let mut object = object(id, 1, 3, [0.0, 0.0, 5.0, 5.0]);
        object["segmentation"] = segmentation;
        object
    };
    let triangle = json!([[0.0, 0.0, 5.0, 0.0, 5.0, 5.0]]);
    let open = |annotations: Value| {
        let (folder, split) = on_disk(&[(1, "a.png", 20, 10)], annotations, categories());
        let mut data = DetectionDataset::open(&split, folder.path(), true).unwrap();
        data.count_masks();
        let check = data.check_masks().map_err(|error| format!("{error:#}"));
        (data.has_masks(), data.report().without_mask, check)
    };
    let whole = json!({"size": [10, 20], "counts": [0, 200]});
    assert_eq!(open(json!([with(1, triangle.clone()), with(2, whole)])), (true, 0, Ok(())));
    // Another size than the image, and two points: nothing to train on, though an evaluation can draw them.
    let other = json!({"size": [20, 10], "counts": [0, 200]});
    assert_eq!(open(json!([with(1, triangle.clone()), with(2, other.clone())])), (true, 1, Ok(())));
    assert_eq!(open(json!([with(1, other)])), (false, 1, Ok(())));
    let (has, without, _) = open(json!([with(1, triangle.clone()), with(2, json!([[0.0, 0.0, 5.0, 5.0]]))]));
    assert_eq!((has, without), (true, 1));
    // None at all, in the two ways that files say it.
    for none in [json!([]), Value::Null] {
        let (has, without, check) = open(json!([with(7, none.clone())]));
        assert_eq!((has, without), (false, 1), "{none}");
        let message = check.unwrap_err();
        for part in ["annotation 7", "all.json", "model.mask=false"] {
            assert!(message.contains(part), "{none}: {message}");
        }
    }
    // A crowd needs a mask to be evaluated, not to be trained on.
    let mut crowd = object(9, 1, 3, [0.0, 0.0, 5.0, 5.0]);
    crowd["iscrowd"] = json!(1);
    let (has, without, check) = open(json!([with(1, triangle), crowd]));
    assert_eq!((has, without), (true, 0));
    assert!(check.unwrap_err().contains("annotation 9"));
}
