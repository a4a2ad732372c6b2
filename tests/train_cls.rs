//! Training a classifier as users start it: stopping, resuming, testing, handing its weights to a detector, and
//! everything that can go wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use serde_json::{json, Value};

fn program(name: &str, args: &[&str]) -> Command {
    let path = match name {
        "train_cls" => env!("CARGO_BIN_EXE_train_cls"),
        "test_cls" => env!("CARGO_BIN_EXE_test_cls"),
        "train_det" => env!("CARGO_BIN_EXE_train_det"),
        "extract_features" => env!("CARGO_BIN_EXE_extract_features"),
        other => panic!("no program {other}"),
    };
    let mut command = Command::new(path);
    command.args(args).env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
    command
}

fn run(name: &str, args: &[&str]) -> Output {
    program(name, args).output().unwrap()
}

/// Standard output of a program that must succeed.
fn succeed(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{name} {args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The message of a program that must fail: one line, and no panic.
fn fail(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{name} {args:?} succeeded");
    assert_eq!(text.trim_end().lines().count(), 1, "{name} {args:?}: {text}");
    assert!(text.starts_with("error: ") && !text.contains("something went wrong inside"), "{name} {args:?}: {text}");
    text
}

/// A model that trains in moments, on every part of the recipe that has a state or draws numbers.
const TINY: &str = r#"{
  "model": { "backbone": { "name": "pvig_ti", "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1], "image_size": 64,
                            "drop_path": 0.3 } },
  "data": { "size": 32, "repeats": 3, "repeat_round": 4, "workers": 2 },
  "train": { "batch_size": 8, "micro_batch": 4, "epochs": 4, "lr": 0.004, "warmup_epochs": 1, "lr_every": "step",
             "ema": 0.9, "clip_norm": 5.0, "seed": 5, "threads": 1 },
  "checkpoint": { "every_iters": 2, "keep": 2 } }"#;

/// Bright, dark and striped images in the folders of three classes.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { folder: tempfile::tempdir().unwrap() };
        for (split, count) in [("train", 8), ("val", 3)] {
            for class in ["bright", "dark", "striped"] {
                (0..count).for_each(|i| scene.draw(split, class, i));
            }
        }
        std::fs::write(scene.path("tiny.json"), TINY).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn draw(&self, split: &str, class: &str, i: u32) {
        let folder = self.path("data").join(split).join(class);
        std::fs::create_dir_all(&folder).unwrap();
        let mut state = i * 7919 + split.len() as u32;
        let image = RgbImage::from_fn(30 + i, 36 - i, |x, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 16) % 40;
            let base = match class {
                "bright" => 200,
                "dark" => 20,
                _ => 200 * (x / 4 % 2),
            };
            Rgb([base + noise, base + noise / 2, base + i].map(|v| v as u8))
        });
        image.save(folder.join(format!("{i}.png"))).unwrap();
    }

    /// Arguments of a training into `out`.
    fn train(&self, out: &str, more: &[&str]) -> Vec<String> {
        let [config, data, out] = ["tiny.json", "data", out].map(|name| self.path(name).display().to_string());
        let args = ["pvig_ti", "--config", &config, "--data", &data, "--out", &out, "--device", "cpu"];
        args.iter().chain(more).map(|s| s.to_string()).collect()
    }
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn read_json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// The log's lines, without what depends on the clock.
fn log(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .map(|mut line| {
            let fields = line.as_object_mut().unwrap();
            fields.remove("seconds");
            fields.remove("data_wait");
            line
        })
        .collect()
}

fn steps(lines: &[Value]) -> usize {
    lines.iter().filter(|line| line.get("loss").is_some()).count()
}

fn wait_for_steps(child: &mut Child, run: &Path, count: usize) {
    let start = Instant::now();
    while steps(&log(run)) < count {
        assert!(child.try_wait().unwrap().is_none(), "the training ended by itself");
        assert!(start.elapsed() < Duration::from_secs(120), "the training does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn start(args: &[String]) -> Child {
    program("train_cls", &strs(args)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The tensors of a file of weights, by name.
fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    file.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

#[test]
fn a_killed_and_resumed_run_with_mixing_average_and_repeats_is_the_uninterrupted_one_to_the_bit() {
    let scene = Scene::new();
    let longer = ["--epochs", "12"];
    succeed("train_cls", &strs(&scene.train("whole", &longer)));
    let args = scene.train("killed", &longer);
    let mut resume = args.clone();
    resume.push("--resume".into());
    let run_dir = scene.path("killed");

    // In the middle of the second epoch, one step after a checkpoint.
    let mut child = start(&args);
    wait_for_steps(&mut child, &run_dir, 5);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(steps(&log(&run_dir)) < 36, "it was killed too late to tell anything");
    assert!(fail("train_cls", &strs(&args)).contains("--resume"));

    // Ctrl-C: a checkpoint, and an exit that says so.
    let mut child = start(&resume);
    wait_for_steps(&mut child, &run_dir, 10);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let done = steps(&log(&run_dir));
    assert!(done < 36, "it was stopped too late to tell anything");

    let printed = succeed("train_cls", &strs(&resume));
    assert!(printed.contains(&format!("resuming after step {done} ")), "no step was lost: {done} {printed}");
    let whole = scene.path("whole");
    assert_eq!(log(&run_dir), log(&whole));
    assert_eq!(steps(&log(&whole)), 36);
    for file in ["checkpoints/last.safetensors", "checkpoints/best.safetensors", "metrics.json"] {
        let same = std::fs::read(run_dir.join(file)).unwrap() == std::fs::read(whole.join(file)).unwrap();
        assert!(same, "{file} differs");
    }
    for (key, value) in [("data.mixup", "0.3"), ("train.epochs", "13")] {
        let mut other = resume.clone();
        other.extend(["--set".into(), format!("{key}={value}")]);
        assert!(fail("train_cls", &strs(&other)).contains(&format!("{key} is {value} but the run")));
    }
}

#[test]
fn a_run_learns_explains_itself_and_its_best_weights_test_the_same() {
    let scene = Scene::new();
    let easy = [
        "--epochs",
        "14",
        "--set",
        "data.mixup=0",
        "--set",
        "data.cutmix=0",
        "--set",
        "rand_augment=null",
        "--set",
        "color_jitter=0",
        "--set",
        "erase.probability=0",
        "--set",
        "data.repeats=1",
        "--set",
        "ema_warmup=true",
    ];
    let printed = succeed("train_cls", &strs(&scene.train("run", &easy)));
    let next = printed.lines().find(|line| line.contains("--bin train_det")).unwrap();
    for flag in ["--backbone pvig_ti", "channels=[8,8,16,16]", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"] {
        assert!(next.contains(flag), "{next}");
    }
    assert!(printed.contains("train: 24 images, 3 classes of 8 images each"), "{printed}");
    let run_dir = scene.path("run");
    let metrics = read_json(run_dir.join("metrics.json"));
    assert!(metrics["top1"].as_f64() > Some(0.6), "{metrics}");
    assert_eq!(metrics["top5"], 1.0, "three classes");
    let per_class: f64 = ["bright", "dark", "striped"]
        .iter()
        .map(|class| {
            assert_eq!(metrics["per_class"][class]["images"], 3);
            metrics["per_class"][class]["top1"].as_f64().unwrap()
        })
        .sum();
    assert!((per_class / 3.0 - metrics["top1"].as_f64().unwrap()).abs() < 1e-9);
    let lines = log(&run_dir);
    assert!(lines[0]["cross_entropy"].is_number() && lines[0]["grad_norm"].is_number());
    assert_eq!(lines.iter().filter(|line| line.get("top1").is_some()).count(), 14);
    assert!(run_dir.join("plots/curves.png").exists());
    assert_eq!(read_json(run_dir.join("config.json"))["data"]["size"], 32);

    let weights = run_dir.join("checkpoints/best.safetensors").display().to_string();
    let tested = succeed("test_cls", &["pvig_ti", "--weights", &weights, "--device", "cpu"]);
    assert!(tested.contains("top-1"), "{tested}");
    let again = read_json(run_dir.join("test/metrics.json"));
    for key in ["top1", "top5", "per_class"] {
        assert_eq!(again[key], metrics[key], "{key}");
    }
    assert!((again["val_loss"].as_f64().unwrap() - metrics["val_loss"].as_f64().unwrap()).abs() < 1e-6);
    // Fewer folders, in another order than the outputs: labels go by name.
    std::fs::remove_dir_all(scene.path("data/val/bright")).unwrap();
    succeed("test_cls", &["pvig_ti", "--weights", &weights, "--device", "cpu"]);
    let fewer = read_json(run_dir.join("test/metrics.json"));
    assert_eq!(fewer["per_class"]["dark"], metrics["per_class"]["dark"]);
    assert_eq!(fewer["images"], 6);
    // The features of a backbone that was trained so.
    let (image, out) = (scene.path("data/val/dark/0.png"), scene.path("f.safetensors"));
    let args = ["pvig_ti", "--weights", &weights, "--input", image.to_str().unwrap(), "--out", out.to_str().unwrap()];
    succeed("extract_features", &args);
    assert_eq!(tensors(&out)["logits"].len(), 3);
}

#[test]
fn a_run_that_is_limited_in_time_ends_its_cosine_there_and_replicas_train_too() {
    let scene = Scene::new();
    let limit = ["train.max_minutes=1e-9", "train.eval_every=0", "checkpoint.every_iters=null", "train.replicas=2"];
    let limit: Vec<&str> = limit.iter().flat_map(|change| ["--set", change]).collect();
    let epochs = ["--epochs", "100"];
    let said = succeed("train_cls", &strs(&scene.train("timed", &[&limit[..], &epochs].concat())));
    assert!(said.contains("50 steps in the 0.000000001 minutes") && said.contains("and 2 replicas"), "{said}");
    let rates: Vec<f64> = log(&scene.path("timed")).iter().map(|line| line["lr"].as_f64().unwrap()).collect();
    assert_eq!(rates.len(), 50);
    // The length is known after the last of them; a run that goes on keeps to it.
    succeed("train_cls", &strs(&scene.train("timed", &[&limit[..], &epochs, &["--resume"]].concat())));
    assert_eq!(log(&scene.path("timed")).len(), 50);
}

#[test]
fn gradients_of_micro_batches_add_up_to_those_of_the_batch() {
    let scene = Scene::new();
    // Fixed norms, no mixing, no noise: then nothing depends on who shares a micro batch. ViG's classifier keeps a
    // norm of its own, ResNet's has none.
    let step = |micro: &str| {
        let micro_batch = format!("train.micro_batch={micro}");
        let args = scene.train(
            micro,
            &[
                "--max-iters",
                "1",
                "--set",
                "train.eval_every=0",
                "--set",
                "freeze_norms=true",
                "--set",
                "data.mixup=0",
                "--set",
                "data.cutmix=0",
                "--set",
                "model.backbone.name=resnet18",
                "--set",
                &micro_batch,
            ],
        );
        let mut args = strs(&args);
        args[0] = "resnet18";
        succeed("train_cls", &args);
        let line = log(&scene.path(micro)).remove(0);
        ["loss", "grad_norm"].map(|key| line[key].as_f64().unwrap())
    };
    let whole = step("8");
    for micro in ["1", "3"] {
        for (value, expected) in step(micro).iter().zip(whole) {
            assert!((value / expected - 1.0).abs() < 1e-3, "{micro}: {value} {expected}");
        }
    }
}

/// A detector's data: two images of two classes.
fn coco(scene: &Scene) -> String {
    let root = scene.path("coco");
    for split in ["train2017", "val2017"] {
        std::fs::create_dir_all(root.join(split)).unwrap();
        for i in 0..2u8 {
            RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 4) as u8, (y * 4) as u8, 90 * i]))
                .save(root.join(split).join(format!("{i}.png")))
                .unwrap();
        }
    }
    let images: Vec<Value> =
        (0..2).map(|i| json!({ "id": i, "file_name": format!("{i}.png"), "width": 64, "height": 64 })).collect();
    let annotations: Vec<Value> = (0..2)
        .map(|i| {
            let (id, bbox) = (i + 1, [8, 8, 30, 40]);
            json!({ "id": id, "image_id": i, "category_id": id, "bbox": bbox, "area": 1200, "iscrowd": 0 })
        })
        .collect();
    let categories = json!([{ "id": 1, "name": "a" }, { "id": 2, "name": "b" }]);
    let file = json!({ "images": images, "annotations": annotations, "categories": categories });
    std::fs::create_dir_all(root.join("annotations")).unwrap();
    for split in ["train", "val"] {
        std::fs::write(root.join(format!("annotations/instances_{split}2017.json")), file.to_string()).unwrap();
    }
    root.display().to_string()
}

#[test]
fn a_detector_starts_from_the_classifiers_backbone() {
    let scene = Scene::new();
    succeed("train_cls", &strs(&scene.train("cls", &["--max-iters", "3", "--set", "train.eval_every=0"])));
    let weights = scene.path("cls/checkpoints/last.safetensors");
    let pretrained = tensors(&weights);
    let (weights, data) = (weights.display().to_string(), coco(&scene));
    let config = scene.path("det.json").display().to_string();
    let text = r#"{ "model": {
        "backbone": { "name": "pvig_ti", "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1],
                      "image_size": 64, "drop_path": 0.0 },
        "fpn": { "channels": 16 }, "head": { "convs": 1, "channels": 16 } },
      "data": { "size": [64, 64], "flip": 0, "workers": 1, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5] },
      "train": { "batch_size": 2, "micro_batch": 2, "max_iters": 1, "optimizer": "sgd", "momentum": 0, "lr": 0.01,
                 "weight_decay": 0,
                 "warmup_iters": 0, "eval_every": 0 } }"#;
    std::fs::write(&config, text).unwrap();
    let train = |out: &str, more: &[&str]| {
        let out = scene.path(out);
        let args =
            ["retinanet", "--config", &config, "--data", &data, "--weights", &weights, "--device", "cpu", "--out"];
        let printed = succeed("train_det", &[&args[..], &[out.to_str().unwrap()], more].concat());
        (printed, tensors(&out.join("checkpoints/last.safetensors")))
    };
    let body = |name: &str| format!("backbone.body.{name}");
    let backbone: Vec<&String> = pretrained.keys().filter(|name| !name.starts_with("prediction.")).collect();
    assert!(backbone.len() > 40);

    let (printed, frozen) = train("frozen", &["--set", "frozen_stages=4", "--set", "freeze_norms=true"]);
    assert!(printed.contains(&format!("weights: {} tensors loaded", backbone.len())), "{printed}");
    for name in &backbone {
        assert_eq!(frozen[&body(name)], pretrained[*name], "{name}: a frozen backbone is as it was pretrained");
    }

    // Norms alone: weights learn, running statistics do not.
    let (_, norms) = train("norms", &["--set", "freeze_norms=true"]);
    let stem = "stem.convs.0.weight";
    assert_ne!(norms[&body(stem)], pretrained[stem]);
    for name in backbone.iter().filter(|name| name.contains("running_")) {
        assert_eq!(norms[&body(name)], pretrained[*name], "{name}");
    }

    // One step of plain gradient descent goes as far as the learning rate says.
    let (_, slow) = train("slow", &["--set", "freeze_norms=true", "--set", "train.backbone_lr=0.1"]);
    let change = |weights: &BTreeMap<String, Vec<f32>>| -> Vec<f32> {
        weights[&body(stem)].iter().zip(&pretrained[stem]).map(|(new, old)| new - old).collect()
    };
    let (fast, slow) = (change(&norms), change(&slow));
    let largest = fast.iter().fold(0f32, |most, v| most.max(v.abs()));
    assert!(largest > 1e-5, "{largest}");
    assert!(fast.iter().zip(&slow).all(|(f, s)| (s - 0.1 * f).abs() < 2e-3 * largest + 1e-7));

    // What the images were normalised with comes from the file, and the same command line goes on with it.
    let plain = text.replace(r#", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]"#, "");
    assert_ne!(plain, text);
    std::fs::write(&config, &plain).unwrap();
    let (printed, _) = train("taken", &[]);
    assert!(printed.contains("images are normalised as the classifier's were"), "{printed}");
    assert_eq!(read_json(scene.path("taken/config.json"))["data"]["mean"], json!([0.5, 0.5, 0.5]));
    let (printed, _) = train("taken", &["--resume", "--max-iters", "2"]);
    assert!(printed.contains("resuming after step 1 "), "{printed}");
    std::fs::write(&config, text).unwrap();

    // What the images were normalised with is said where it differs.
    let (printed, _) = train("other", &["--set", "data.mean=[0.4,0.4,0.4]"]);
    assert!(printed.contains("data.mean"), "{printed}");
}

#[test]
fn bad_folders_images_arguments_and_weights_give_one_clear_line() {
    let scene = Scene::new();
    let train = |more: &[&str]| fail("train_cls", &strs(&scene.train("bad", more)));
    assert!(train(&["--set", "data.mixupp=1"]).contains("data.mixup"));
    assert!(train(&["--set", "data.train.folder=nowhere"]).contains("no folder"));
    assert!(train(&["--batch-size", "25"]).contains("drop_last"));
    let single = ["--batch-size", "23", "--set", "data.repeats=1", "--set", "data.drop_last=false"];
    let message = train(&single);
    assert!(
        ["train.batch_size, 23", "train.micro_batch, 4", "drop_last"].iter().all(|w| message.contains(w)),
        "{message}"
    );
    assert!(!scene.path("bad").exists());
    let message = fail("train_cls", &["pvig_ti", "--config", "nothing.json", "--data", "nowhere"]);
    assert!(message.contains("pvig_ti_300e_imagenet"), "{message}");
    let mut other = scene.train("bad", &[]);
    other[0] = "vig_ti".into();
    assert!(fail("train_cls", &strs(&other)).contains("is a config of pvig_ti, not of vig_ti"));
    other[0] = "vig".into();
    assert!(fail("train_cls", &strs(&other)).contains("vig_ti"));
    assert!(fail("train_cls", &["pvig_ti"]).contains("--data"));

    std::fs::create_dir(scene.path("data/val/new")).unwrap();
    let message = train(&[]);
    assert!(message.contains("`new`") && message.contains("has no image"), "{message}");
    scene.draw("val", "new", 0);
    let message = train(&[]);
    assert!(message.contains("the class `new`") && message.contains("not among the 3"), "{message}");
    std::fs::remove_dir_all(scene.path("data/val/new")).unwrap();

    for entry in std::fs::read_dir(scene.path("data/val/dark")).unwrap() {
        std::fs::write(entry.unwrap().path(), "no image").unwrap();
    }
    let printed = succeed("train_cls", &strs(&scene.train("skips", &["--max-iters", "1"])));
    assert!(printed.contains("val: 3 images could not be read: dark/0.png"), "{printed}");
    let stops = ["--max-iters", "1", "--set", "on_error=stop"];
    let stops = fail("train_cls", &strs(&scene.train("stops", &stops)));
    assert!(stops.contains("dark/0.png") && stops.contains("on_error"), "{stops}");
    for class in ["bright", "striped"] {
        for entry in std::fs::read_dir(scene.path("data/val").join(class)).unwrap() {
            std::fs::write(entry.unwrap().path(), "no image").unwrap();
        }
    }
    let message = fail("train_cls", &strs(&scene.train("none", &["--max-iters", "1"])));
    assert!(message.contains("none of the 9 images"), "{message}");

    let weights = scene.path("skips/checkpoints/last.safetensors").display().to_string();
    let message = fail("test_cls", &["vig_ti", "--weights", &weights, "--device", "cpu"]);
    assert!(message.contains("of pvig_ti, not of vig_ti"), "{message}");
    let config = scene.path("tiny.json").display().to_string();
    let message = fail("test_cls", &["pvig_ti", "--weights", &config, "--device", "cpu"]);
    assert!(message.contains("tiny.json"), "{message}");
    for split in ["train", "val"] {
        std::fs::remove_dir_all(scene.path("data").join(split)).unwrap();
        std::fs::create_dir(scene.path("data").join(split)).unwrap();
    }
    assert!(train(&[]).contains("has no folders"));
}
