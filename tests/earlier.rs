//! Files of earlier versions: checkpoints, configs and runs that stopped half-way still load and go on.
//!
//! `tests/fixtures/earlier` was made by version 0.1.0 of before configs named their task and files had checksums;
//! `make.sh` beside the files says how, `expected.json` what that version made of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{json, Value};
use vigdet::config::{ClassifyConfig, Config, Experiment};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/earlier")
}

/// A copy of the fixtures that programs may write to.
fn copy() -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => copy(&entry.path(), &to),
                false => drop(std::fs::copy(entry.path(), to).unwrap()),
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&fixtures(), folder.path());
    folder
}

/// Runs a command in a folder; it must succeed. Gives what it printed.
fn run(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vigdet"));
    let output = command.args(args).args(["--device", "cpu"]).current_dir(folder).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{args:?}: {text}");
    text
}

fn read(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn expected() -> Value {
    read(fixtures().join("expected.json"))
}

/// Equal words, and numbers that differ by rounding at most: `relative` of their size.
fn near(found: &Value, expected: &Value, relative: f64) {
    match (found, expected) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= relative * b.abs().max(1e-2), "{a} {b}");
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| near(a, b, relative));
        }
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{a:?} {b:?}");
            a.values().zip(b.values()).for_each(|(a, b)| near(a, b, relative));
        }
        (a, b) => assert_eq!(a, b),
    }
}

/// The steps of a run's log, without what depends on the clock.
fn steps(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("log.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let steps = lines.filter(|line| line.get("loss").is_some());
    let timeless = steps.map(|mut line| {
        line.as_object_mut().unwrap().retain(|key, _| key != "seconds" && key != "data_wait");
        line
    });
    timeless.collect()
}

/// Resumes a run to its end. The first further step has the losses that it had; what rounding adds up to comes later.
fn resumes(folder: &Path, args: &[&str], name: &str) {
    let run_dir = folder.join(name);
    let before = steps(&run_dir);
    let said = run(folder, &[args, &["--out", name, "--resume", "--set", "train.max_iters=null"]].concat());
    assert!(said.contains(&format!("resuming after step {} ", before.len())), "{said}");
    let after = steps(&run_dir);
    assert_eq!(after[..before.len()], before);
    let expected = expected()[name]["steps"].as_array().unwrap().clone();
    assert_eq!(after.len() - before.len(), expected.len());
    for (i, (found, expected)) in after[before.len()..].iter().zip(&expected).enumerate() {
        let relative = if i == 0 { 1e-3 } else { 1e-2 };
        assert_eq!((&found["iter"], &found["epoch"]), (&expected["iter"], &expected["epoch"]));
        for key in ["loss", "lr"] {
            near(&found[key], &expected[key], relative);
        }
    }
    // From now on the run is one of today's.
    assert!(read(run_dir.join("config.json"))["task"].is_string());
}

fn detections(folder: &Path, args: &[&str]) -> Value {
    run(folder, &[&["detect"], args, &["--json", "found.json"]].concat());
    read(folder.join("found.json"))[0]["detections"].clone()
}

#[test]
fn an_earlier_detectors_weights_detect_and_its_half_finished_run_goes_on() {
    let folder = copy();
    let image = "data/val2017/000.png";
    let best = ["--weights", "detector/checkpoints/best.safetensors"];
    // The name, as it had to be given then.
    let found = detections(folder.path(), &[&["retinanet", image], &best[..]].concat());
    near(&found, &expected()["detector"]["best"], 1e-4);
    near(&detections(folder.path(), &[&[image], &best[..]].concat()), &found, 0.0);
    let masks = detections(folder.path(), &["mask_rcnn", image, "--weights", "mask_rcnn.safetensors"]);
    near(&masks, &expected()["mask_rcnn"]["detections"], 1e-4);
    resumes(folder.path(), &["train_det", "retinanet"], "detector");
}

#[test]
fn an_earlier_classifiers_weights_classify_and_its_half_finished_run_goes_on() {
    let folder = copy();
    let weights = ["--weights", "classifier/checkpoints/best.safetensors"];
    run(folder.path(), &[&["test_cls", "pvig_ti"], &weights[..], &["--out", "tested"]].concat());
    let (metrics, best) = (read(folder.path().join("tested/metrics.json")), &expected()["classifier"]["best"]);
    for key in ["top1", "val_loss"] {
        near(&metrics[key], &best[key], 1e-4);
    }
    let input = ["--input", "images/val/striped/0.png", "--size", "32,32", "--out", "features.safetensors"];
    run(folder.path(), &[&["extract_features", "pvig_ti"], &weights[..], &input].concat());
    let features = tch::Tensor::read_safetensors(folder.path().join("features.safetensors")).unwrap();
    let logits = &features.iter().find(|(name, _)| name == "logits").unwrap().1;
    near(&json!(Vec::<f32>::try_from(logits.reshape(-1)).unwrap()), &best["logits"], 1e-3);
    // The classes have their names, from the file.
    let said = run(folder.path(), &[&["classify", "images/val/striped/0.png"], &weights[..]].concat());
    assert!(said.contains(" bright") && said.contains(" striped"), "{said}");
    resumes(folder.path(), &["train_cls", "pvig_ti"], "classifier");
}

#[test]
fn earlier_configs_are_read_as_they_were() {
    let mut count = 0;
    for entry in std::fs::read_dir(fixtures().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        assert!(read(path.clone()).get("task").is_none(), "{name}");
        if Config::preset_names().any(|preset| preset == name) {
            assert_eq!(Config::load(&path, &[]).unwrap(), Config::preset(&name, &[]).unwrap(), "{name}");
            let error = format!("{:#}", ClassifyConfig::load(&path, &[]).unwrap_err());
            assert!(error.contains("is a config of a detector"), "{error}");
        } else {
            assert_eq!(
                ClassifyConfig::load(&path, &[]).unwrap(),
                ClassifyConfig::preset(&name, &[]).unwrap(),
                "{name}"
            );
            let error = format!("{:#}", Config::load(&path, &[]).unwrap_err());
            assert!(error.contains("is a config of a classifier"), "{error}");
        }
        count += 1;
    }
    assert_eq!(count, 20);
}
