//! The program `coco_eval`, run as a user runs it.

use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let binary = env!("CARGO_BIN_EXE_coco_eval");
        Command::new(binary).args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    /// Standard output of a run that must succeed.
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line of a run that must fail.
    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success() && output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        text
    }
}

fn truth() -> Value {
    json!({
        "images": [{"id": 1, "width": 100, "height": 80}, {"id": 2, "width": 100, "height": 80}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0,
             "ignore": 1, "segmentation": [[10, 10, 50, 10, 50, 50, 10, 50]]},
            {"id": 2, "image_id": 2, "category_id": 8, "bbox": [20, 20, 30, 30], "area": 900, "iscrowd": 0,
             "segmentation": [[20, 20, 50, 20, 50, 50, 20, 50]]}
        ]
    })
}

fn results() -> Value {
    json!([
        {"image_id": 1, "category_id": 3, "bbox": [30, 10, 40, 40], "score": 0.9},
        {"image_id": 2, "category_id": 8, "bbox": [20, 20, 30, 30], "score": 0.8},
        {"image_id": 2, "category_id": 99, "bbox": [20, 20, 30, 30], "score": 0.8}
    ])
}

/// A folder with both files.
fn ready() -> Folder {
    let folder = Folder::new();
    folder.write("gt.json", &truth().to_string());
    folder.write("dt.json", &results().to_string());
    folder
}

const FILES: [&str; 4] = ["--gt", "gt.json", "--dt", "dt.json"];

const LINES: &str = " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.500
 Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 0.500
 Average Precision  (AP) @[ IoU=0.75      | area=   all | maxDets=100 ] = 0.500
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = 1.000
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.000
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = -1.000
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.500
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets= 10 ] = 0.500
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.500
 Average Recall     (AR) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = 1.000
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.000
 Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = -1.000
";

#[test]
fn the_output_is_pycocotools_twelve_lines_and_warnings_go_elsewhere() {
    let folder = ready();
    let output = folder.run(&FILES);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), LINES);
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(warnings.contains("`ignore` of 1 annotations is not used"), "{warnings}");
    assert!(warnings.contains("1 results are left out: their category (such as 99)"), "{warnings}");
}

#[test]
fn a_table_of_classes_and_a_file_of_numbers_are_given_on_request() {
    let folder = ready();
    let text = folder.succeed(&[&FILES[..], &["--per-class", "--json", "out.json"]].concat());
    let table: Vec<&str> = text.strip_prefix(LINES).unwrap().trim().lines().collect();
    assert!(table[0].starts_with("class") && table[1].starts_with("dog") && table[2].starts_with("cat"), "{text}");
    let numbers: Value = serde_json::from_slice(&std::fs::read(folder.path("out.json")).unwrap()).unwrap();
    assert_eq!(numbers["stats"].as_array().unwrap().len(), 12);
    assert_eq!(numbers["stats"][5], -1.0);
    assert_eq!(numbers["per_class"][1]["name"], "dog");
    assert!((numbers["per_class"][1]["ap"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    assert_eq!(numbers["per_iou"].as_array().unwrap().len(), 10);
}

#[test]
fn an_area_range_with_a_name_of_ones_own_is_shown_and_missing_ones_are_named() {
    let folder = ready();
    let areas = ["--area", "all:0:1e10", "--area", "tiny:0:1000", "--area", "wide plain:1e9:1e10"];
    let output = folder.run(&[&FILES[..], &areas, &["--per-class", "--json", "out.json"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], LINES.lines().next().unwrap());
    assert!(lines[3].ends_with("area= small | maxDets=100 ] = -1.000"), "{text}");
    let extra = [
        " Average Precision  (AP) @[ IoU=0.50:0.95 | area=  tiny | maxDets=100 ] = 1.000",
        " Average Recall     (AR) @[ IoU=0.50:0.95 | area=  tiny | maxDets=100 ] = 1.000",
        " Average Precision  (AP) @[ IoU=0.50:0.95 | area=wide plain | maxDets=100 ] = -1.000",
        " Average Recall     (AR) @[ IoU=0.50:0.95 | area=wide plain | maxDets=100 ] = -1.000",
    ];
    assert_eq!(lines[12..16], extra);
    let table: Vec<Vec<&str>> = lines[17..].iter().map(|line| line.split_whitespace().collect()).collect();
    assert!(table[0].ends_with(&["AR", "tiny", "wide", "plain"]), "{text}");
    assert_eq!((table[1][9], table[2][9], table[1][10]), ("1.000", "-", "-"), "{text}");
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(warnings.contains("no area range is named small or medium or large: their lines are -1"), "{warnings}");
    let numbers: Value = serde_json::from_slice(&std::fs::read(folder.path("out.json")).unwrap()).unwrap();
    let tiny = json!({"area": "tiny", "min": 0.0, "max": 1000.0, "ap": numbers["per_area"][1]["ap"], "ar": 1.0});
    assert_eq!(numbers["per_area"][1], tiny);
    assert!((tiny["ap"].as_f64().unwrap() - 1.0).abs() < 1e-12);
    let message = folder.fail(&[&FILES[..], &["--area", "a:0:1", "--area", "a:1:2"]].concat());
    assert!(message.contains("two ranges are named a"), "{message}");
}

#[test]
fn without_arguments_the_newest_run_is_evaluated() {
    let folder = ready();
    let age = |name: &str, seconds: u64| {
        let file = std::fs::File::options().append(true).open(folder.path(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    let ground_truth = json!({"annotations": folder.path("gt.json")}).to_string();
    for (run, results) in [("old", results()), ("new", json!([])), ("unfinished", json!([]))] {
        if run != "unfinished" {
            folder.write(&format!("runs/{run}/bbox.json"), &results.to_string());
        }
        folder.write(&format!("runs/{run}/ground_truth.json"), &ground_truth);
    }
    age("runs/old/bbox.json", 10);
    age("runs/new/bbox.json", 500);
    assert_eq!(folder.succeed(&[]), LINES);
    age("runs/old/bbox.json", 1000);
    assert_eq!(folder.succeed(&[]).matches("= 0.000").count(), 10);
    // The same for a results file without its ground truth; a path beside it does.
    folder.write("runs/old/ground_truth.json", r#"{"annotations": "truth.json"}"#);
    folder.write("runs/old/truth.json", &truth().to_string());
    assert_eq!(folder.succeed(&["--dt", "runs/old/bbox.json"]), LINES);
}

#[test]
fn without_arguments_and_without_a_run_one_line_says_what_to_do() {
    let folder = Folder::new();
    let text = folder.fail(&[]);
    assert!(text.contains("no run with a bbox.json under runs/") && text.contains("--gt ANNOTATIONS"), "{text}");
    folder.write("dt.json", "[]");
    let text = folder.fail(&["--dt", "dt.json"]);
    assert!(text.contains("--gt FILE"), "{text}");
    let text = folder.fail(&["--gt", "gt.json"]);
    assert!(text.contains("--dt FILE"), "{text}");
}

#[test]
fn wrong_files_give_one_line() {
    let folder = ready();
    let mut cases = vec![
        (json!([{"image_id": 5, "category_id": 3, "bbox": [1, 1, 2, 2], "score": 1}]).to_string(), "image 5"),
        ("[".to_owned(), "EOF"),
        ("[{\"image_id\": 1, \"category_id\": 3, \"bbox\": [1, 1, 2, 2], \"score\": NaN}]".to_owned(), "[0].score"),
        ("[".repeat(100_000), "invalid type"),
    ];
    for (text, expected) in cases.drain(..) {
        folder.write("dt.json", &text);
        let message = folder.fail(&FILES);
        assert!(message.contains("dt.json") && message.contains(expected), "{message}");
    }
    folder.write("dt.json", &results().to_string());
    folder.write("gt.json", &truth().to_string()[..200]);
    let message = folder.fail(&FILES);
    assert!(message.contains("gt.json") && message.contains("EOF"), "{message}");
    let mut no_masks = truth();
    no_masks["annotations"][1].as_object_mut().unwrap().remove("segmentation");
    folder.write("gt.json", &no_masks.to_string());
    let message = folder.fail(&[&FILES[..], &["--type", "segm"]].concat());
    assert!(message.contains("annotation 2 has no segmentation"), "{message}");
    let mut no_size = truth();
    no_size["images"][1].as_object_mut().unwrap().remove("width");
    folder.write("gt.json", &no_size.to_string());
    let message = folder.fail(&[&FILES[..], &["--type", "segm"]].concat());
    assert!(message.contains("annotation 2, segmentation: to draw it the width and the height"), "{message}");
    folder.write("gt.json", &truth().to_string());
    for (flags, expected) in [
        (["--iou", "0.5,NaN"], "thresholds must be between 0 and 1"),
        (["--iou", "2"], "thresholds must be between 0 and 1"),
        (["--area", "small:5:3"], "the area range small goes from 5 to 3"),
        (["--area", "small:NaN:3"], "\"NaN\" is not a number"),
        (["--area", "small:5"], "not NAME:MIN:MAX"),
        (["--type", "keypoints"], "[possible values: bbox, segm]"),
        (["--resamples", "0"], "0 is not in 1.."),
        (["--plot", "plots"], "a similar argument exists: '--plots'"),
        (["--gt", "no/such/file.json"], "cannot be used multiple times"),
    ] {
        let message = folder.fail(&[&FILES[..], &flags].concat());
        assert!(message.contains(expected), "{message}");
    }
    // What the system says is said once.
    let message = folder.fail(&["--gt", "no/such/file.json", "--dt", "dt.json"]);
    assert_eq!(message.matches("os error").count(), 1, "{message}");
}

#[test]
fn files_are_written_even_where_nobody_reads_the_output() {
    let folder = ready();
    let mut child = Command::new(env!("CARGO_BIN_EXE_coco_eval"))
        .args([&FILES[..], &["--per-class", "--json", "out.json"]].concat())
        .current_dir(folder.0.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert!(folder.path("out.json").exists());
}

#[test]
fn empty_results_give_zeros() {
    let folder = ready();
    folder.write("dt.json", "[]");
    let text = folder.succeed(&FILES);
    assert_eq!(text.matches("= 0.000").count(), 10, "{text}");
    assert_eq!(text.matches("= -1.000").count(), 2, "{text}");
}

#[test]
fn warnings_about_the_other_results_are_given_with_their_name() {
    let folder = ready();
    folder.write("empty.json", "[]");
    let output = folder.run(&[&FILES[..], &["--compare", "empty.json", "--resamples", "5"]].concat());
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(warnings.contains("warning: empty.json: there are no results"), "{warnings}");
    let output = folder.run(&[&FILES[..], &["--compare", "dt.json", "--resamples", "5", "--max-dets", "5"]].concat());
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert_eq!(warnings.matches("1 results are left out").count(), 2, "{warnings}");
    assert_eq!(warnings.matches("the first line is for 100").count(), 1, "{warnings}");
}

#[test]
fn without_classes_nothing_is_said_about_them() {
    let folder = ready();
    let message = folder.fail(&[&FILES[..], &["--class-agnostic", "--per-class"]].concat());
    assert!(message.contains("'--class-agnostic' cannot be used with '--per-class'"), "{message}");
    let mut other = results();
    other[1]["category_id"] = json!(3);
    folder.write("dt.json", &other.to_string());
    let flags = ["--class-agnostic", "--errors", "--plots", "plots", "--json", "out.json"];
    let text = folder.succeed(&[&FILES[..], &flags].concat());
    let count = |kind: &str| {
        let line = text.lines().find(|line| line.starts_with(kind)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    // The dog that is taken for a cat is an object all the same.
    assert_eq!((count("classification"), count("localisation")), ("0".to_owned(), "1".to_owned()), "{text}");
    let numbers: Value = serde_json::from_slice(&std::fs::read(folder.path("out.json")).unwrap()).unwrap();
    assert!((numbers["errors"]["ap50"].as_f64().unwrap() - numbers["stats"][1].as_f64().unwrap()).abs() < 1e-12);
    assert!(numbers["stats"][1].as_f64().unwrap() > 0.2);
    assert!(is_picture(&folder.path("plots/confusion.png")) && !folder.path("plots/class_ap.png").exists());
}

#[test]
fn an_object_without_a_mask_where_nothing_of_its_class_is_detected_is_no_error() {
    let folder = ready();
    let mut truth = truth();
    truth["annotations"]
        .as_array_mut()
        .unwrap()
        .push(json!({"id": 3, "image_id": 1, "category_id": 8, "bbox": [10, 10, 40, 40], "area": 1600, "iscrowd": 0}));
    folder.write("gt.json", &truth.to_string());
    let flags = ["--type", "segm", "--errors", "--plots", "plots"];
    let text = folder.succeed(&[&FILES[..], &flags].concat());
    let missed = text.lines().find(|line| line.starts_with("missed")).unwrap();
    assert_eq!(missed.split_whitespace().nth(1), Some("1"), "{text}");
    // Where something is, one line says so, with the files, and nothing else is printed.
    let mut results = results();
    results[0]["category_id"] = json!(8);
    folder.write("dt.json", &results.to_string());
    let message = folder.fail(&[&FILES[..], &flags].concat());
    assert!(message.contains("dt.json on gt.json: annotation 3 has no segmentation"), "{message}");
    folder.write("other.json", "{");
    folder.write("gt.json", &self::truth().to_string());
    assert!(folder.fail(&[&FILES[..], &["--compare", "other.json"]].concat()).contains("other.json"));
}

fn is_picture(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.starts_with(b"\x89PNG") && bytes.len() > 2000
}

#[test]
fn plots_errors_and_comparison_are_made_on_request() {
    let folder = ready();
    let mut better = results();
    better[0]["bbox"] = json!([10, 10, 40, 40]);
    folder.write("better.json", &better.to_string());
    let extra = ["--plots", "plots", "--errors", "--compare", "better.json", "--resamples", "50", "--json", "out.json"];
    let text = folder.succeed(&[&FILES[..], &extra].concat());
    for name in ["precision_recall", "class_ap", "size_ap", "confusion", "errors"] {
        assert!(is_picture(&folder.path(&format!("plots/{name}.png"))), "{name}");
    }
    let localisation = text.lines().find(|line| line.starts_with("localisation")).unwrap();
    assert_eq!(localisation.split_whitespace().collect::<Vec<_>>(), ["localisation", "1", "+0.5000"]);
    let numbers: Value = serde_json::from_slice(&std::fs::read(folder.path("out.json")).unwrap()).unwrap();
    let ap = &numbers["comparison"]["differences"][0];
    assert!((ap["difference"].as_f64().unwrap() - 0.5).abs() < 1e-12, "{ap}");
    assert_eq!(numbers["errors"]["kinds"][1]["kind"], "localisation");
}

#[test]
fn nothing_that_is_read_or_was_not_written_by_vigdet_is_replaced() {
    let folder = ready();
    folder.write("other.json", "[]");
    folder.write("mine.json", "notes");
    folder.write("pictures/size_ap.png", "a photo");
    let compare = [&FILES[..], &["--compare", "other.json", "--resamples", "5"]].concat();
    let read = "is read by this command: choose another name for what is written";
    let not_ours = "is there and vigdet did not write it: choose another folder or name";
    for (flags, message) in [
        (["--json", "gt.json"], format!("error: gt.json {read}")),
        (["--json", "./dt.json"], format!("error: ./dt.json {read}")),
        (["--json", "other.json"], format!("error: other.json {read}")),
        (["--json", "mine.json"], format!("error: mine.json {not_ours}")),
        (["--plots", "pictures"], format!("error: pictures/size_ap.png {not_ours}")),
        (["--plots", "mine.json"], "cannot write mine.json/precision_recall.png: Not a directory".to_owned()),
    ] {
        let found = folder.fail(&[&compare[..], &flags].concat());
        assert!(found.contains(&message), "{found}");
    }
    assert_eq!(std::fs::read_to_string(folder.path("dt.json")).unwrap(), results().to_string());
    assert_eq!(std::fs::read_to_string(folder.path("gt.json")).unwrap(), truth().to_string());
    assert_eq!(std::fs::read_to_string(folder.path("pictures/size_ap.png")).unwrap(), "a photo");
    // Refused before any file is read.
    folder.write("dt.json", "[");
    assert!(folder.fail(&[&FILES[..], &["--json", "mine.json"]].concat()).contains(not_ours));
    folder.write("dt.json", &results().to_string());
    // What it wrote itself it writes again.
    let flags = ["--json", "out.json", "--plots", "plots"];
    folder.succeed(&[&FILES[..], &flags].concat());
    folder.write("dt.json", "[]");
    folder.succeed(&[&FILES[..], &flags].concat());
    let numbers: Value = serde_json::from_slice(&std::fs::read(folder.path("out.json")).unwrap()).unwrap();
    assert_eq!(numbers["stats"][0], 0.0);
}
