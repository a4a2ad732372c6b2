//! The `detect` program, whole: a small detector with random weights looks at images and at things that are none.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::ValueEnum;
use image::{Rgb, RgbImage};
use serde_json::Value;
use vigdet::classes::Classes;
use vigdet::config::{Config, Experiment};
use vigdet::detect;
use vigdet::predictor::{Predictor, PredictorOptions};
use vigdet::weights::{self, catalogue};
use vigdet_dataset::{Import, Layout};

#[allow(dead_code)]
#[path = "../examples/build_batch.rs"]
mod build_batch;
#[allow(dead_code)]
#[path = "../examples/detect_image.rs"]
mod detect_image;
#[allow(dead_code)]
#[path = "../crates/vigdet-coco/examples/evaluate.rs"]
mod evaluate;

/// A detector small enough for a test. Its classifier starts from a probability of one half, so that random
/// weights see much.
const TINY: &str = r#"{
  "model": {
    "backbone": { "name": "pvig_ti", "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1] },
    "fpn": { "channels": 8 }, "head": { "convs": 1, "channels": 8, "norm": "group", "prior": 0.5 },
    "test": { "score": 0.4, "max_detections": 100 }
  },
  "data": { "size": [64, 96] }
}"#;

/// A folder with weights and images, gone at the end of the test.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        let config = Config::from_json_with(TINY, &[]).unwrap();
        let classes = Classes::from_iter([(7, "star"), (40, "ring")]);
        tch::manual_seed(3);
        let store = tch::nn::VarStore::new(tch::Device::Cpu);
        detect::build(&store.root(), &config.model, 2).unwrap();
        let metadata = weights::metadata_of(&config, &classes).unwrap();
        weights::save(&store, &bench.path("tiny.safetensors"), &metadata).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes an image of random blocks; the format follows the name.
    fn image(&self, name: &str, width: u32, height: u32) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let image = RgbImage::from_fn(width, height, |x, y| {
            let v = (x / 8 * 53 + y / 8 * 97) % 251;
            Rgb([v as u8, (v * 7 % 256) as u8, (v * 13 % 256) as u8])
        });
        image.save(&path).unwrap();
        path
    }

    fn text(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Runs `detect retinanet --weights tiny.safetensors` with more arguments, which are paths where such a file
    /// exists.
    fn detect(&self, args: &[&str]) -> Output {
        let weights = self.path("tiny.safetensors");
        self.run(&[&["retinanet", "--weights", weights.to_str().unwrap(), "--device", "cpu"], args].concat())
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_detect"));
        // The user's own cache may have published weights in it.
        command.current_dir(self.folder.path()).env("OMP_NUM_THREADS", "1").env("VIGDET_CACHE", self.path("cache"));
        command.args(args).output().unwrap()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Asserts a failure that is one line and says each of `words`.
fn assert_refused(output: &Output, words: &[&str]) {
    let text = stderr(output);
    assert!(!output.status.success(), "{text}");
    let line = text.lines().last().unwrap_or_default();
    assert!(line.starts_with("error: "), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for word in words {
        assert!(line.contains(word), "no `{word}` in: {text}");
    }
}

#[test]
fn every_image_of_a_folder_gets_an_entry_and_a_picture_and_what_is_no_image_is_named() {
    let bench = Bench::new();
    bench.image("photos/a.png", 80, 60);
    bench.image("photos/b.JPG", 700, 500);
    // A PNG that calls itself a JPEG, as browsers save them.
    std::fs::rename(bench.image("photos/c.png", 64, 64), bench.path("photos/c.jpg")).unwrap();
    bench.text("photos/notes.jpg", "not an image");
    bench.text("photos/readme.txt", "passed over");
    let output = bench.detect(&["photos", "--json", "out/found.json", "--out", "pictures"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("notes.jpg") && stderr(&output).contains("1 skipped"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("readme"), "{}", stderr(&output));

    let found = json(&bench.path("out/found.json"));
    let files: Vec<&str> = found.as_array().unwrap().iter().map(|e| e["file"].as_str().unwrap()).collect();
    assert_eq!(files, ["photos/a.png", "photos/b.JPG", "photos/c.jpg"]);
    for (entry, (width, height)) in found.as_array().unwrap().iter().zip([(80.0, 60.0), (700.0, 500.0), (64.0, 64.0)]) {
        assert_eq!((entry["width"].as_f64(), entry["height"].as_f64()), (Some(width), Some(height)));
        let detections = entry["detections"].as_array().unwrap();
        assert!(!detections.is_empty() && detections.len() <= 100);
        let (mut last, mut right, mut bottom) = (1.0, 0.0f64, 0.0f64);
        for d in detections {
            let score = d["score"].as_f64().unwrap();
            assert!(score <= last && score > 0.4, "{score}");
            last = score;
            assert!(matches!(
                (d["category_id"].as_i64(), d["label"].as_str()),
                (Some(7), Some("star")) | (Some(40), Some("ring"))
            ));
            let b: Vec<f64> = d["bbox"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            assert!(b.len() == 4 && b.iter().all(|v| *v >= 0.0), "{b:?}");
            (right, bottom) = (right.max(b[0] + b[2]), bottom.max(b[1] + b[3]));
        }
        // Random boxes reach the edges, where they are cut: of the original image, not of the resized one.
        assert!((right - width).abs() < 0.01 && (bottom - height).abs() < 0.01, "{right} × {bottom}");
    }
    // Small images are enlarged to be legible.
    for (name, size) in [("a.png", (640, 480)), ("b.png", (700, 500)), ("c.png", (512, 512))] {
        let picture = image::open(bench.path("pictures").join(name)).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), size, "{name}");
    }
    let plain = image::open(bench.path("photos/b.JPG")).unwrap().into_rgb8();
    let drawn = image::open(bench.path("pictures/b.png")).unwrap().into_rgb8();
    let changed = plain.pixels().zip(drawn.pixels()).filter(|(a, b)| a != b).count();
    assert!(changed > 1000, "{changed} pixels were drawn");
}

#[test]
fn without_files_to_write_boxes_are_printed_and_the_threshold_rules() {
    let bench = Bench::new();
    bench.image("a.png", 80, 60);
    let all = stdout(&bench.detect(&["a.png", "--score-threshold", "0"]));
    assert!(all.starts_with("a.png: ") && all.contains("  star 0."), "{all}");
    let none = stdout(&bench.detect(&["a.png", "--score-threshold", "0.999"]));
    assert_eq!(none, "a.png: nothing with a score of 1.00 or more\n");
    let all = all.lines().filter(|line| line.starts_with("  ")).count();
    let few = bench.detect(&["a.png", "--score-threshold", "0", "--set", "max_detections=3"]);
    assert!(all > 3 && stdout(&few).lines().filter(|line| line.starts_with("  ")).count() == 3);
}

#[test]
fn a_config_of_ones_own_and_another_size_are_used() {
    let bench = Bench::new();
    bench.image("a.png", 80, 60);
    bench.text("other.json", &TINY.replace("\"score\": 0.4", "\"score\": 0.4, \"nms\": 0.01"));
    let boxes = |args: &[&str]| {
        assert!(bench.detect(args).status.success(), "{}", stderr(&bench.detect(args)));
        json(&bench.path("found.json"))[0]["detections"].clone()
    };
    let own = boxes(&["a.png", "--json", "found.json"]);
    assert_eq!(own, boxes(&["a.png", "--json", "found.json", "--size", "64,96"]));
    assert_ne!(own, boxes(&["a.png", "--json", "found.json", "--size", "96,128"]));
    let other = boxes(&["a.png", "--json", "found.json", "--config", "other.json"]);
    assert!(other.as_array().unwrap().len() < own.as_array().unwrap().len());
}

#[test]
fn classes_that_are_given_take_the_place_of_those_in_the_weights() {
    let bench = Bench::new();
    let open = |classes: Option<Classes>| {
        let mut options = PredictorOptions::default();
        options.classes = classes;
        Predictor::open(&bench.path("tiny.safetensors"), &options).unwrap().classes().clone()
    };
    let given = Classes::from_iter([(1, "sun"), (2, "moon")]);
    assert_eq!(open(Some(given.clone())), given);
    assert_eq!(open(None), Classes::from_iter([(7, "star"), (40, "ring")]));
}

#[test]
fn pictures_of_an_earlier_run_in_the_folder_are_not_looked_at() {
    let bench = Bench::new();
    bench.image("photos/a.png", 40, 40);
    bench.image("photos/in/b.png", 40, 40);
    for _ in 0..2 {
        let output = bench.detect(&["photos", "--out", "photos/seen"]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains("2 images, "), "{}", stderr(&output));
    }
}

#[test]
fn images_of_one_name_keep_a_picture_each() {
    let bench = Bench::new();
    bench.image("one/a.png", 40, 40);
    bench.image("two/a.png", 40, 40);
    assert!(bench.detect(&["one", "two/a.png", "--out", "pictures"]).status.success());
    assert!(bench.path("pictures/a.png").is_file() && bench.path("pictures/a-2.png").is_file());
}

#[test]
fn unreadable_images_alone_fail_and_one_stops_if_asked() {
    let bench = Bench::new();
    bench.image("a.png", 40, 40);
    bench.text("b.jpg", "not an image");
    let truncated = std::fs::read(bench.image("c.jpg", 64, 64)).unwrap();
    std::fs::write(bench.path("c.jpg"), &truncated[..truncated.len() / 2]).unwrap();
    let output = bench.detect(&["b.jpg", "c.jpg", "absent.png", "--json", "found.json"]);
    assert_refused(&output, &["none of the 3 images"]);
    for name in ["b.jpg", "c.jpg", "absent.png"] {
        assert!(stderr(&output).contains("skipped: ") && stderr(&output).contains(name));
    }
    assert!(!bench.path("found.json").exists());
    assert_refused(&bench.detect(&["b.jpg", "a.png", "--set", "on_error=stop"]), &["b.jpg"]);
}

#[test]
fn without_weights_the_best_published_detector_is_taken_from_the_cache() {
    let bench = Bench::new();
    bench.image("a.png", 64, 48);
    std::fs::create_dir_all(bench.path("cache/weights")).unwrap();
    let published = catalogue::best_detector(Some("retinanet")).unwrap();
    std::fs::copy(bench.path("tiny.safetensors"), bench.path("cache/weights").join(&published.file)).unwrap();
    let output = bench.run(&["retinanet", "a.png", "--device", "cpu"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("no --weights: retinanet_resnet50_fpn_v2 (box AP 41.5"), "{}", stderr(&output));
    assert_eq!(stdout(&output), stdout(&bench.detect(&["a.png"])));
    // The best of all is another one, and not here.
    assert_refused(&bench.run(&["a.png"]), &["without --weights", "weights get maskrcnn_resnet50_fpn_v2"]);
    assert_refused(&bench.run(&["a.png", "--config", "c.json"]), &["--config", "--weights"]);
}

#[test]
fn bad_arguments_are_one_clear_line() {
    let bench = Bench::new();
    bench.image("a.png", 40, 40);
    std::fs::create_dir(bench.path("empty")).unwrap();
    bench.text("weights.safetensors", "no weights");
    bench.text("broken.json", "{");
    assert_refused(&bench.detect(&["empty"]), &["no image", "empty"]);
    assert_refused(&bench.run(&["yolo", "--weights", "tiny.safetensors", "a.png"]), &["yolo", "retinanet"]);
    assert_refused(&bench.run(&["retinanet", "--weights", "gone.safetensors", "a.png"]), &["gone.safetensors"]);
    assert_refused(&bench.run(&["retinanet", "--weights", "weights.safetensors", "a.png"]), &["weights.safetensors"]);
    assert_refused(&bench.run(&["retinanet", "a.png"]), &["--weights"]);
    assert_refused(&bench.detect(&[]), &["IMAGE"]);
    assert_refused(&bench.detect(&["a.png", "--config", "broken.json"]), &["broken.json"]);
    assert_refused(&bench.detect(&["a.png", "--config", "gone.json"]), &["gone.json", "presets"]);
    assert_refused(&bench.detect(&["a.png", "--size", "800"]), &["--size"]);
    assert_refused(&bench.detect(&["a.png", "--amp", "maybe"]), &["--amp", "on or off", "`maybe`"]);
    let weights = ["retinanet", "--weights", "tiny.safetensors", "a.png"];
    assert_refused(&bench.run(&[&weights[..], &["--device", "tpu"]].concat()), &["tpu"]);
    assert_refused(&bench.detect(&["a.png", "--score-threshold", "2"]), &["model.test.score"]);
    assert_refused(&bench.detect(&["a.png", "--set", "test.nsm=1"]), &["test.nsm", "nms"]);
    assert_refused(&bench.detect(&["a.png", "--out", "a.png"]), &["a.png"]);
    // Weights of another model.
    let wider = TINY.replace("\"channels\": 8 }", "\"channels\": 16 }");
    bench.text("wider.json", &wider);
    assert_refused(&bench.detect(&["a.png", "--config", "wider.json"]), &["fpn", "shape"]);
}

#[test]
fn the_examples_do_what_they_say() {
    let bench = Bench::new();
    bench.image("train2017/a.png", 80, 60);
    bench.image("train2017/b.png", 60, 80);
    std::fs::create_dir(bench.path("annotations")).unwrap();
    let truth = bench.text(
        "annotations/instances_train2017.json",
        r#"{"images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 60},
                       {"id": 2, "file_name": "b.png", "width": 60, "height": 80}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 30],
          "area": 1200, "iscrowd": 0},
                            {"id": 2, "image_id": 2, "category_id": 9, "bbox": [5, 20, 30, 30],
          "area": 900, "iscrowd": 0}],
            "categories": [{"id": 7, "name": "star"}, {"id": 9, "name": "ring"}]}"#,
    );
    let config = Config::from_json_with(TINY, &[]).unwrap();
    let lines = build_batch::losses(bench.folder.path(), &config).unwrap();
    assert!(lines[0].contains("a.png") && lines[0].contains("[2, 3, "), "{lines:?}");
    assert!(lines[1].starts_with("  classification ") && lines[2].starts_with("  box "), "{lines:?}");

    let seen = detect_image::detect(&bench.path("tiny.safetensors"), &bench.path("train2017/a.png")).unwrap();
    assert!(seen.len() > 1 && seen.iter().all(|line| line.starts_with("star 0.") || line.starts_with("ring 0.")));

    let results = r#"[{"image_id": 1, "category_id": 7, "bbox": [10, 10, 40, 30], "score": 0.9}]"#;
    let text = evaluate::scores(&truth, &bench.text("results.json", results)).unwrap();
    assert!(text.contains("Average Precision") && text.contains("= 0.500"), "{text}");
    assert!(text.contains("star                 AP 1.000") && text.contains("ring                 AP 0.000"), "{text}");
}

#[test]
fn detections_become_labels_that_tools_open() {
    let bench = Bench::new();
    bench.image("photos/a.png", 96, 64);
    bench.image("photos/deep/b.png", 64, 96);
    for layout in Layout::ALL {
        let name = layout.to_possible_value().unwrap().get_name().to_string();
        let labels = format!("labels_{name}");
        let output = bench.detect(&["photos", "--json", "found.json", "--labels", &labels, "--format", &name]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let import = Import::open(bench.path(&labels)).unwrap();
        assert_eq!((import.layout, import.splits.len()), (layout, 1), "{name}");
        let split = &import.splits[0].dataset;
        let class = |id: i64| split.categories.iter().find(|c| c.id == id).unwrap().name.clone();
        for (entry, file) in json(&bench.path("found.json")).as_array().unwrap().iter().zip(["a", "b"]) {
            // Layouts with one folder for all images take the folder's name into the file's.
            let of_file = |name: &str| Path::new(name).file_stem().unwrap().to_str().unwrap().ends_with(file);
            let image = split.images.iter().find(|i| of_file(&i.file_name));
            let image = image.unwrap_or_else(|| panic!("{name}: {:?}", split.images));
            let number = |v: &Value| v.as_f64().unwrap();
            let shown = entry["detections"].as_array().unwrap().iter().filter(|d| number(&d["score"]) >= 0.3);
            let sorted = |mut boxes: Vec<(String, [f64; 4])>| {
                boxes.sort_by(|a, b| a.partial_cmp(b).unwrap());
                boxes
            };
            let expected = sorted(
                shown
                    .map(|d| (d["label"].as_str().unwrap().to_string(), [0, 1, 2, 3].map(|i| number(&d["bbox"][i]))))
                    .collect(),
            );
            let found = split.annotations.iter().filter(|a| a.image_id == image.id);
            let found = sorted(found.map(|a| (class(a.category_id), a.bbox)).collect());
            assert!(!expected.is_empty() && found.len() == expected.len(), "{name}");
            for ((class, b), (expected_class, e)) in found.iter().zip(&expected) {
                let apart = (0..4).map(|i| (b[i] - e[i]).abs()).fold(0.0, f64::max);
                assert!(class == expected_class && apart < 2e-2, "{name}: {class} {b:?}, not {expected_class} {e:?}");
            }
        }
        let again = bench.detect(&["photos", "--labels", &labels, "--format", &name]);
        assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"), "{name}");
    }
}
