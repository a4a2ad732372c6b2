//! A small data set, a model that trains in moments, programs as users start them, and the device of tests of numbers.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use serde_json::{json, Value};
use tch::{Device, Tensor};

/// Where tests of numbers run: `VIGDET_TEST_DEVICE`, as in `cuda:0`; the CPU where it is not set.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        // TF32 keeps ten bits of what is multiplied. NVIDIA's libraries read this when they are first used.
        std::env::set_var("NVIDIA_TF32_OVERRIDE", "0");
        let name = std::env::var("VIGDET_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
        vigdet::cli::parse_device(Some(&name)).unwrap()
    })
}

/// The tolerance on [`device`] where this is the CPU's. Elsewhere it is ten times as large: other libraries add in
/// another order, and some of their sums come out otherwise at each run.
pub fn tolerance(cpu: f64) -> f64 {
    match device() {
        Device::Cpu => cpu,
        _ => 10.0 * cpu,
    }
}

/// The tensors of a file, on [`device`].
pub fn read_tensors(path: &Path) -> HashMap<String, Tensor> {
    let tensors = Tensor::read_safetensors(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    tensors.into_iter().map(|(name, tensor)| (name, tensor.to_device(device()))).collect()
}

/// The tensors of a file in tests/fixtures, on [`device`].
pub fn read_fixture(name: &str) -> HashMap<String, Tensor> {
    read_tensors(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name))
}

/// A program with its arguments. libtorch has one thread in it: tests run side by side, and on two cores four threads
/// that wait for each other take five times as long.
pub fn program(name: &str, args: &[&str]) -> Command {
    let path = match name {
        "train_det" => env!("CARGO_BIN_EXE_train_det"),
        "test_det" => env!("CARGO_BIN_EXE_test_det"),
        "detect" => env!("CARGO_BIN_EXE_detect"),
        "extract_features" => env!("CARGO_BIN_EXE_extract_features"),
        "plot_graph" => env!("CARGO_BIN_EXE_plot_graph"),
        "plot_run" => env!("CARGO_BIN_EXE_plot_run"),
        "shapes" => env!("CARGO_BIN_EXE_shapes"),
        "vigdet" => env!("CARGO_BIN_EXE_vigdet"),
        other => panic!("no program {other}"),
    };
    let mut command = Command::new(path);
    command.args(args).env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
    command
}

pub fn run(name: &str, args: &[&str]) -> Output {
    program(name, args).output().unwrap()
}

/// Standard output of a program that must succeed.
pub fn succeed(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{name} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The message of a program that must fail: one line, and no panic.
pub fn fail(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{name} {args:?} succeeded");
    assert!(output.status.code().is_some(), "{name} {args:?} was killed");
    assert_eq!(text.trim_end().lines().count(), 1, "{name} {args:?}: {text}");
    assert!(text.starts_with("error: ") && !text.contains("something went wrong inside"), "{name} {args:?}: {text}");
    text
}

/// A small data set in COCO's layout: bright rectangles (category 7) and dark ones (category 3) on noise, wide and
/// tall images.
pub struct Data {
    folder: tempfile::TempDir,
}

impl Data {
    pub fn new() -> Self {
        let data = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(data.root().join("annotations")).unwrap();
        data.draw("train", 10);
        data.draw("val", 4);
        data
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn arg(&self) -> &str {
        self.root().to_str().unwrap()
    }

    pub fn annotations(&self, split: &str) -> PathBuf {
        self.root().join(format!("annotations/instances_{split}2017.json"))
    }

    fn draw(&self, split: &str, count: u32) {
        std::fs::create_dir(self.root().join(format!("{split}2017"))).unwrap();
        let (mut images, mut annotations) = (Vec::new(), Vec::new());
        for i in 0..count {
            let (width, height) = if i % 3 == 0 { (64, 96) } else { (96, 64) };
            let name = format!("{i:03}.png");
            let mut state = i * 7919 + split.len() as u32;
            let mut noise = move || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 16
            };
            let mut image = RgbImage::from_fn(width, height, |_, _| Rgb([(); 3].map(|()| 100 + (noise() % 50) as u8)));
            for object in 0..2 {
                let (w, h) = (20 + noise() % 20, 20 + noise() % 20);
                let (x, y) = (noise() % (width - w), noise() % (height - h));
                let bright = (i + object) % 2 == 0;
                for (px, py) in (x..x + w).flat_map(|px| (y..y + h).map(move |py| (px, py))) {
                    image.put_pixel(px, py, Rgb(if bright { [230, 220, 90] } else { [10, 30, 60] }));
                }
                annotations.push(json!({
                    "id": annotations.len() + 1, "image_id": 100 + i, "category_id": if bright { 7 } else { 3 },
                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                }));
            }
            image.save(self.root().join(format!("{split}2017")).join(&name)).unwrap();
            images.push(json!({ "id": 100 + i, "file_name": name, "width": width, "height": height }));
        }
        let categories = json!([{ "id": 3, "name": "dark" }, { "id": 7, "name": "bright" }]);
        let file = json!({ "images": images, "annotations": annotations, "categories": categories });
        std::fs::write(self.annotations(split), file.to_string()).unwrap();
    }
}

/// A model that trains in moments, on every feature that has a state: average, clipping, stochastic depth, flips,
/// micro batches.
pub const TINY: &str = r#"{
  "model": {
    "backbone": { "name": "pvig_ti", "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1], "drop_path": 0.3 },
    "fpn": { "channels": 16 }, "head": { "convs": 1, "channels": 16, "prior": 0.1 }, "anchors": { "base": 2.0 },
    "test": { "score": 0.001 } },
  "data": { "size": [64, 96], "flip": 0.5, "scale": [0.8, 1.2], "color": 0.2, "workers": 2,
            "hue": 0.05, "mosaic": 0.3, "mixup": 0.3, "strong_until": 0.5,
            "affine": { "probability": 0.5, "scale": [0.7, 1.4], "degrees": 10.0, "shear": 3.0 } },
  "train": { "batch_size": 4, "micro_batch": 2, "epochs": 4, "lr": 0.002, "warmup_iters": 3, "schedule": "cosine",
             "clip_norm": 1.0, "ema": 0.9, "seed": 5, "threads": 1 },
  "checkpoint": { "every_iters": 2, "keep": 2 } }"#;

pub struct Scene {
    pub data: Data,
    folder: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Self {
        let scene = Self { data: Data::new(), folder: tempfile::tempdir().unwrap() };
        std::fs::write(scene.path("tiny.json"), TINY).unwrap();
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Arguments of a training into `out`.
    pub fn train(&self, out: &str, more: &[&str]) -> Vec<String> {
        let config = self.path("tiny.json").display().to_string();
        let out = self.path(out).display().to_string();
        let args = ["retinanet", "--config", &config, "--data", self.data.arg(), "--out", &out, "--device", "cpu"];
        args.iter().chain(more).map(|s| s.to_string()).collect()
    }
}

/// `--set` before each change.
pub fn set<'a>(changes: &[&'a str]) -> Vec<&'a str> {
    changes.iter().flat_map(|change| ["--set", change]).collect()
}

pub fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

pub fn read_json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// The log's lines, without what depends on the clock.
pub fn log(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .map(|mut line| {
            let fields = line.as_object_mut().unwrap();
            assert!(fields.remove("seconds").is_some_and(|s| s.as_f64() > Some(0.0)));
            fields.remove("ranks_wait");
            assert_eq!(fields.remove("data_wait").is_some(), fields.contains_key("loss"));
            line
        })
        .collect()
}

/// Waits until a running training has logged so many steps.
pub fn wait_for_steps(child: &mut Child, run: &Path, steps: usize) {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
        if text.lines().filter(|line| line.contains("\"loss\"")).count() >= steps {
            return;
        }
        assert!(child.try_wait().unwrap().is_none(), "the training ended by itself");
        assert!(start.elapsed() < Duration::from_secs(120), "the training does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn start(args: &[String]) -> Child {
    program("train_det", &strs(args)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}
