//! Mask R-CNN and Faster R-CNN through the programs: training, resuming, testing, detecting.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use vigdet::config::ShapesConfig;
use vigdet::data::shapes;
use vigdet_coco::types::Segmentation;

/// A detector small enough for a test; low thresholds, so that it sees something without having learnt much.
const TINY: &str = r#"{
  "model": {
    "detector": "mask_rcnn",
    "backbone": { "name": "pvig_ti", "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1] },
    "fpn": { "channels": 8 },
    "anchors": { "base": 4.0 },
    "rpn": { "sample": { "count": 32, "positive": 0.5 }, "train": { "top_k": 100, "keep": 50 },
             "test": { "top_k": 100, "keep": 30 } },
    "roi": { "channels": 16, "sample": { "count": 16, "positive": 0.25 } },
    "mask_head": { "convs": 1, "channels": 8 },
    "test": { "score": 0.0, "max_detections": 10 }
  },
  "data": { "size": [64, 96], "crop": { "probability": 0.3 }, "rotate": 0.3, "mosaic": 0.3, "flip_vertical": 0.5 },
  "train": { "lr": 0.001, "batch_size": 4, "micro_batch": 2, "warmup_iters": 1, "epochs": 1, "threads": 1 },
  "checkpoint": { "every_iters": 2 }
}"#;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    /// A folder with the config and a few images of shapes.
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(bench.path("tiny.json"), TINY).unwrap();
        shapes::ensure(&bench.path("data"), &ShapesConfig { train: 16, val: 3, side: 96, seed: 3 }).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.folder.path()).env("OMP_NUM_THREADS", "1").output().unwrap()
    }

    fn train(&self, args: &[&str]) -> Output {
        let start = ["mask_rcnn", "--config", "tiny.json", "--data", "data", "--device", "cpu"];
        self.run(env!("CARGO_BIN_EXE_train_det"), &[&start[..], args].concat())
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }
}

fn succeed(output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Boxes and masks of results: as many of each, boxes without masks, masks without boxes.
fn check_results(boxes: &Path, masks: &Path) {
    let boxes = vigdet_coco::read_results(boxes).unwrap();
    let masks = vigdet_coco::read_results(masks).unwrap();
    assert!(!boxes.is_empty() && boxes.len() == masks.len());
    assert!(boxes.iter().all(|d| d.bbox.is_some() && d.segmentation.is_none()));
    assert!(masks.iter().all(|d| matches!(d.segmentation, Some(Segmentation::Rle(_)))));
}

#[test]
fn masks_are_trained_resumed_tested_and_detected() {
    let bench = Bench::new();
    let said = succeed(bench.train(&["--out", "whole"]));
    assert!(said.contains("segm:") && said.contains("mask AP"), "{said}");
    check_results(&bench.path("whole/bbox.json"), &bench.path("whole/segm.json"));
    let metrics = bench.json("whole/metrics.json");
    assert!(metrics["bbox"]["AP"].is_number() && metrics["segm"]["AP50"].is_number(), "{metrics}");
    let log = lines(&bench.path("whole/log.jsonl"));
    for part in ["objectness", "rpn_box", "classification", "box", "mask"] {
        assert!(log[0][part].as_f64().is_some_and(f64::is_finite), "no {part} in {}", log[0]);
    }
    assert!(log.last().unwrap()["segm"]["AP"].is_number());

    // Samples are drawn from counters: a resumed run chooses what the uninterrupted one would.
    succeed(bench.train(&["--out", "parts", "--max-iters", "2"]));
    succeed(bench.train(&["--out", "parts", "--resume", "--set", "train.max_iters=null"]));
    let weights = |run: &str| std::fs::read(bench.path(run).join("checkpoints/last.safetensors")).unwrap();
    assert!(weights("whole") == weights("parts"), "the resumed run has other weights");

    let args = ["mask_rcnn", "--weights", "whole/checkpoints/last.safetensors", "--device", "cpu"];
    let said = succeed(bench.run(env!("CARGO_BIN_EXE_test_det"), &[&args[..], &["--out", "tested"]].concat()));
    assert!(said.contains("bbox:") && said.contains("segm:"), "{said}");
    check_results(&bench.path("tested/bbox.json"), &bench.path("tested/segm.json"));

    let more = ["data/val2017", "--json", "found.json", "--out", "drawn", "--score-threshold", "0.001"];
    succeed(bench.run(env!("CARGO_BIN_EXE_detect"), &[&args[..], &more].concat()));
    let found = bench.json("found.json");
    assert_eq!(found.as_array().unwrap().len(), 3);
    for image in found.as_array().unwrap() {
        let detections = image["detections"].as_array().unwrap();
        assert!(!detections.is_empty());
        for d in detections {
            let size = &d["segmentation"]["size"];
            assert_eq!((&size[0], &size[1]), (&image["height"], &image["width"]), "{d}");
            assert!(d["segmentation"]["counts"].is_string());
        }
    }
    let drawn = std::fs::read_dir(bench.path("drawn")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(drawn.filter(|name| !name.to_string_lossy().starts_with('.')).count(), 3);
}

#[test]
fn boxes_alone_train_faster_rcnn_and_are_refused_for_masks() {
    let bench = Bench::new();
    for split in ["train", "val"] {
        let path = bench.path(&format!("data/annotations/instances_{split}2017.json"));
        let mut set = vigdet_coco::read_dataset(&path).unwrap();
        set.annotations.iter_mut().for_each(|a| a.segmentation = None);
        vigdet_coco::write_dataset(&path, &set).unwrap();
    }
    let refused = bench.train(&["--out", "refused"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.starts_with("error: ") && text.contains("model.mask=false"), "{text}");
    assert!(!bench.path("refused").exists());

    // Masks to train on, but none to evaluate on: told before the training, or the test, and not after it.
    shapes::ensure(&bench.path("more"), &ShapesConfig { train: 8, val: 2, side: 96, seed: 4 }).unwrap();
    let good = bench.path("more/annotations/instances_train2017.json");
    std::fs::copy(&good, bench.path("data/annotations/masks.json")).unwrap();
    for image in std::fs::read_dir(bench.path("more/train2017")).unwrap() {
        let image = image.unwrap();
        std::fs::copy(image.path(), bench.path("data/train2017").join(image.file_name())).unwrap();
    }
    let masks = ["--set", "data.train.annotations=annotations/masks.json"];
    let refusal = |output: Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.trim_end().lines().count() == 1, "{text}");
        for part in ["error: ", "annotation 1 ", "instances_val2017.json", "model.mask=false"] {
            assert!(text.contains(part), "{text}");
        }
    };
    refusal(bench.train(&[&["--out", "refused"][..], &masks].concat()));
    assert!(!bench.path("refused").exists());
    succeed(bench.train(&[&["--out", "masks", "--max-iters", "1", "--set", "eval_every=0"][..], &masks].concat()));
    let test = |more: &[&str]| {
        let args = ["mask_rcnn", "--weights", "masks/checkpoints/last.safetensors", "--device", "cpu"];
        bench.run(env!("CARGO_BIN_EXE_test_det"), &[&args[..], more].concat())
    };
    refusal(test(&[]));
    // What the line advises works.
    succeed(test(&["--set", "model.mask=false"]));

    succeed(bench.train(&["--out", "boxes", "--max-iters", "2", "--set", "mask=false"]));
    assert!(bench.path("boxes/bbox.json").exists() && !bench.path("boxes/segm.json").exists());
    let log = lines(&bench.path("boxes/log.jsonl"));
    assert!(log[0]["box"].is_number() && log[0].get("mask").is_none());
}
