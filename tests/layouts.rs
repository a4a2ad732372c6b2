//! Folders of other layouts than COCO's, as training takes them.

use std::path::Path;

use serde_json::Value;
use vigdet::config::DataConfig;
use vigdet::data::{DataFolder, DetectionDataset};
use vigdet_dataset::layouts::{self, Images};
use vigdet_dataset::{Import, Layout};

mod common;
use common::*;

/// Losses of the first steps of a training on a folder, and what it printed.
fn train(scene: &Scene, data: &Path, out: &str) -> (Vec<Value>, String) {
    let more = ["--data", data.to_str().unwrap(), "--max-iters", "4", "--set", "train.eval_every=0"];
    let mut args = scene.train(out, &more);
    // Not twice: the folder of the scene stands before.
    args.drain(3..5);
    let printed = succeed("train_det", &strs(&args));
    let steps = log(&scene.path(out));
    assert_eq!(steps.len(), 4);
    (steps, printed)
}

#[test]
fn every_layout_trains_as_cocos_does() {
    let scene = Scene::new();
    let mut import = Import::open(scene.data.root()).unwrap();
    // In the order of their ids and of their names: some layouts know no other order than that of the names.
    let names = ["a dark one", "b, a bright one"];
    for split in &mut import.splits {
        split.dataset.categories.iter_mut().zip(names).for_each(|(category, name)| category.name = name.into());
    }
    let (expected, _) = train(&scene, scene.data.root(), "coco");
    for layout in Layout::ALL {
        let name = format!("{layout:?}");
        let folder = scene.path(&format!("data_{name}"));
        layouts::write(&import, layout, &folder, Images::Copy).unwrap();
        let (steps, printed) = train(&scene, &folder, &name);
        assert_eq!(printed.contains(&format!("read as {layout}, split train")), layout != Layout::Coco, "{printed}");
        for (step, expected) in steps.iter().zip(&expected) {
            let [loss, expected] = [step, expected].map(|step| step["loss"].as_f64().unwrap());
            // Fractions of the image are not whole pixels to the last digit.
            let fractions = [Layout::Yolo, Layout::LabelStudio, Layout::OpenImages].contains(&layout);
            let least = if fractions { 1e-3 * expected } else { 0.0 };
            assert!((loss - expected).abs() <= least, "{layout}: {loss}, not {expected}");
        }
    }
}

#[test]
fn a_folder_of_another_layout_is_read_once_for_all_its_splits() {
    let data = Data::new();
    let home = tempfile::tempdir().unwrap();
    let yolo = home.path().join("yolo");
    layouts::write(&Import::open(data.root()).unwrap(), Layout::Yolo, &yolo, Images::Copy).unwrap();
    let (config, folder) = (DataConfig::default(), DataFolder::new(&yolo));
    let train = DetectionDataset::open_in(&folder, &config.train, true, false).unwrap();
    std::fs::remove_dir_all(yolo.join("labels")).unwrap();
    let val = DetectionDataset::open_in(&folder, &config.val, false, false).unwrap();
    let objects = |split: &DetectionDataset| -> usize { split.classes().iter().map(|c| split.objects_of(c.id)).sum() };
    assert_eq!([(train.len(), objects(&train)), (val.len(), objects(&val))], [(10, 20), (4, 8)]);
}

#[test]
fn a_yolo_folder_is_validated_tested_and_evaluated() {
    let scene = Scene::new();
    let folder = scene.path("yolo");
    layouts::write(&Import::open(scene.data.root()).unwrap(), Layout::Yolo, &folder, Images::Copy).unwrap();
    let folder = folder.to_str().unwrap();
    let mut args = scene.train("run", &["--data", folder, "--epochs", "1"]);
    args.drain(3..5);
    let printed = succeed("train_det", &strs(&args));
    assert!(printed.contains("read as YOLO, split val"), "{printed}");
    // The annotations that the detections belong to are in the run's folder.
    let truth = read_json(scene.path("run/ground_truth.json"));
    let truth = read_json(truth["annotations"].as_str().unwrap().into());
    let coco = read_json(scene.data.annotations("val"));
    let boxes = |file: &Value| -> Vec<Vec<f64>> {
        let of = |a: &Value| a["bbox"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap().round()).collect();
        file["annotations"].as_array().unwrap().iter().map(of).collect()
    };
    assert_eq!(boxes(&truth), boxes(&coco));
    let weights = scene.path("run/checkpoints/best.safetensors").display().to_string();
    let out = scene.path("tested").display().to_string();
    succeed("test_det", &["retinanet", "--weights", &weights, "--device", "cpu", "--out", &out]);
    let ap = |folder: &str| read_json(scene.path(folder).join("metrics.json"))["bbox"]["AP"].as_f64().unwrap();
    assert_eq!(ap("run"), ap("tested"));
}

#[test]
fn a_folder_without_the_split_that_is_needed_is_refused() {
    let scene = Scene::new();
    let mut import = Import::open(scene.data.root()).unwrap();
    import.splits.truncate(1);
    let folder = scene.path("one");
    layouts::write(&import, Layout::Yolo, &folder, Images::Copy).unwrap();
    let mut args = scene.train("run", &["--data", folder.to_str().unwrap()]);
    args.drain(3..5);
    let error = fail("train_det", &strs(&args));
    assert!(error.contains("validate on") && error.contains("vigdet dataset split"), "{error}");
    let empty = scene.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let mut args = scene.train("run", &["--data", empty.to_str().unwrap()]);
    args.drain(3..5);
    let error = fail("train_det", &strs(&args));
    assert!(error.contains("instances_train2017.json") && error.contains("YOLO"), "{error}");
}
