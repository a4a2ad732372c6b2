//! Faults found by trying public bug reports: files written over, classes mixed up, damaged checkpoints, runs that
//! collide, readers that leave.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use image::RgbImage;
use serde_json::{json, Value};

mod common;
use common::*;

/// Weights of a detector that was trained for a step.
fn weights(scene: &Scene, out: &str) -> String {
    let few = ["--max-iters", "1", "--set", "train.eval_every=0"];
    succeed("train_det", &strs(&scene.train(out, &few)));
    scene.path(out).join("checkpoints/last.safetensors").display().to_string()
}

fn resume(scene: &Scene, out: &str, more: &[&str]) -> Vec<String> {
    let out = scene.path(out).display().to_string();
    let args = ["retinanet", "--out", &out, "--device", "cpu", "--resume"];
    args.iter().chain(more).map(|s| s.to_string()).collect()
}

/// Changes an annotation file of the scene's data.
fn edit(scene: &Scene, split: &str, change: impl Fn(&mut Value)) {
    let mut file = read_json(scene.data.annotations(split));
    change(&mut file);
    std::fs::write(scene.data.annotations(split), file.to_string()).unwrap();
}

/// Exchanges the ids of the two categories, as another export may.
fn exchange_ids(file: &mut Value) {
    let other = |id: &Value| json!(if *id == 3 { 7 } else { 3 });
    for category in file["categories"].as_array_mut().unwrap() {
        category["id"] = other(&category["id"]);
    }
    for annotation in file["annotations"].as_array_mut().unwrap() {
        annotation["category_id"] = other(&annotation["category_id"]);
    }
}

#[test]
fn no_program_writes_over_what_it_reads_or_what_it_did_not_write() {
    let scene = Scene::new();
    let weights = weights(&scene, "run");
    let pictures = scene.path("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for name in ["a.png", "b.png"] {
        RgbImage::new(64, 48).save(pictures.join(name)).unwrap();
    }
    let original = std::fs::read(pictures.join("a.png")).unwrap();
    let (dir, file) = (pictures.display().to_string(), pictures.join("a.png").display().to_string());
    let link = scene.path("link");
    std::os::unix::fs::symlink(&pictures, &link).unwrap();
    let dotted = format!("{dir}/../pictures/.");
    let detect = |inputs: &[&str], more: &[&str]| {
        let args = ["--weights", &weights, "--device", "cpu"];
        [inputs, &args, more].concat().into_iter().map(String::from).collect::<Vec<_>>()
    };
    for (inputs, flag, to) in [
        (&[dir.as_str()][..], "--out", dir.as_str()),
        (&[&dir], "--out", &dotted),
        (&[&dir], "--out", link.to_str().unwrap()),
        (&[&file], "--out", &dir),
        (&[&file], "--json", &file),
        (&[&dir], "--json", &weights),
    ] {
        let message = fail("detect", &strs(&detect(inputs, &[flag, to])));
        assert!(message.contains("is read by this command"), "{inputs:?} {flag} {to}: {message}");
    }
    assert_eq!(std::fs::read(pictures.join("a.png")).unwrap(), original);
    assert!(vigdet::weights::Checkpoint::open(Path::new(&weights)).is_ok());

    // What is its own is replaced, what is not is left alone.
    let out = scene.path("seen");
    let again = detect(&[&dir], &["--out", out.to_str().unwrap()]);
    succeed("detect", &strs(&again));
    succeed("detect", &strs(&again));
    std::fs::write(out.join("b.png"), "mine").unwrap();
    let message = fail("detect", &strs(&again));
    assert!(message.contains("b.png is there and vigdet did not write it"), "{message}");
    assert_eq!(std::fs::read(out.join("b.png")).unwrap(), b"mine");

    // The other programs.
    let image = file.as_str();
    let graph = |more: &[&str]| {
        let out = scene.path("graph").display().to_string();
        fail("plot_graph", &[&["pvig_ti", "--image", image, "--out", &out], more].concat())
    };
    assert!(graph(&["--json", image]).contains("is read by this command"));
    assert!(graph(&["--html", image]).contains("is read by this command"));
    let features = |to: &str| fail("extract_features", &["pvig_ti", "--input", image, "--out", to]);
    assert!(features(image).contains("is read by this command"));
    let mine = scene.path("metrics.json");
    std::fs::write(&mine, "mine").unwrap();
    let folder = scene.path("").display().to_string();
    let args = ["--weights", &weights, "--data", scene.data.arg(), "--out", &folder, "--device", "cpu"];
    assert!(fail("test_det", &args).contains("metrics.json is there and vigdet did not write it"));
    let message = fail("train_det", &strs(&scene.train(".", &[])));
    assert!(message.contains("metrics.json that is of no run"), "{message}");
    assert_eq!(std::fs::read(&mine).unwrap(), b"mine");
    // Beside weights that are of no run, `test` is a folder as any other.
    let (beside, test) = (scene.path("beside.safetensors"), scene.path("test"));
    std::fs::copy(&weights, &beside).unwrap();
    std::fs::create_dir(&test).unwrap();
    std::fs::write(test.join("bbox.json"), "mine").unwrap();
    let args = ["--weights", beside.to_str().unwrap(), "--data", scene.data.arg(), "--device", "cpu"];
    assert!(fail("test_det", &args).contains("bbox.json is there and vigdet did not write it"));
    // Nor are pictures in a run's folder that somebody put there, or links to them.
    let plots = scene.path("run/plots");
    std::fs::remove_file(plots.join("curves.png")).unwrap();
    std::os::unix::fs::symlink(&mine, plots.join("curves.png")).unwrap();
    let run = scene.path("run").display().to_string();
    assert!(fail("plot_run", &[&run]).contains("curves.png is there and vigdet did not write it"));
    assert_eq!(std::fs::read(&mine).unwrap(), b"mine");
}

#[test]
fn a_resumed_run_knows_its_classes_by_name() {
    let scene = Scene::new();
    let whole = ["--max-iters", "4", "--epochs", "8"];
    succeed("train_det", &strs(&scene.train("whole", &whole)));
    succeed("train_det", &strs(&scene.train("run", &["--max-iters", "2", "--epochs", "8"])));
    let other_data = "the training split is not the one that this run began with";
    let warned = |more: &[&str]| {
        let output = run("train_det", &strs(&resume(&scene, "run", more)));
        assert!(output.status.success(), "{output:?}");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let (_, warning) = warned(&["--max-iters", "2"]);
    assert!(!warning.contains(other_data), "{warning}");
    for split in ["train", "val"] {
        edit(&scene, split, exchange_ids);
    }
    // A cosine spans all steps: the first two would differ.
    let steady = ["--max-iters", "4"];
    let (printed, warning) = warned(&steady);
    assert!(printed.contains("classes are matched by name"), "{printed}");
    assert!(warning.contains(other_data), "{warning}");
    let classes = |run: &str| {
        let weights = scene.path(run).join("checkpoints/last.safetensors");
        vigdet::weights::Checkpoint::open(&weights).unwrap().classes().unwrap().names()
    };
    assert_eq!(classes("run"), classes("whole"));
    // The third step has the losses that it has with the old numbers: the same boxes under the same labels.
    let losses = |run: &str| -> Vec<f64> {
        log(&scene.path(run)).iter().filter_map(|line| line["classification"].as_f64()).collect()
    };
    let loss = |run: &str| losses(run)[2];
    let (loss, expected) = (loss("run"), loss("whole"));
    assert!((loss / expected - 1.0).abs() < 0.02, "{loss} {expected}");

    edit(&scene, "train", |file| file["categories"][0]["name"] = json!("dim"));
    let message = fail("train_det", &strs(&resume(&scene, "run", &["--max-iters", "5"])));
    assert!(message.contains("`dim`") && message.contains("`dark`, `bright`"), "{message}");
}

#[test]
fn weights_of_other_classes_keep_the_rows_of_equal_names() {
    let scene = Scene::new();
    let weights = weights(&scene, "first");
    edit(&scene, "train", |file| file["categories"][0]["name"] = json!("dim"));
    let args = ["--weights", &weights, "--max-iters", "1", "--set", "eval_every=0"];
    let printed = succeed("train_det", &strs(&scene.train("second", &args)));
    let said = "classes by name: 1 kept (`bright`), 1 anew (`dim`), 1 of the file unused (`dark`)";
    assert!(printed.contains(said), "{printed}");
}

#[test]
fn classes_that_the_detector_does_not_know_are_named_with_the_number_of_their_objects() {
    let scene = Scene::new();
    let weights = weights(&scene, "run");
    edit(&scene, "val", |file| {
        file["categories"].as_array_mut().unwrap().push(json!({ "id": 9, "name": "striped" }));
        for i in [0, 3] {
            file["annotations"][i]["category_id"] = json!(9);
        }
    });
    let said = "val: the detector does not know 1 of its classes, which it cannot find and which lower AP: `striped \
    (2 objects)`";
    let out = scene.path("test").display().to_string();
    let args = ["--weights", &weights, "--out", &out, "--device", "cpu"];
    let printed = succeed("test_det", &args);
    assert!(printed.contains(said), "{printed}");
    let printed = succeed("train_det", &strs(&scene.train("new", &["--max-iters", "1"])));
    assert!(printed.contains(said), "{printed}");
}

#[test]
fn weights_that_are_not_finite_are_an_error() {
    let scene = Scene::new();
    let weights = weights(&scene, "run");
    let tensors = tch::Tensor::read_safetensors(&weights).unwrap();
    let at = tensors.iter().position(|(name, _)| name.ends_with("cls_logits.bias")).unwrap();
    let _ = tensors[at].1.get(0).fill_(f64::NAN);
    let broken = scene.path("broken.safetensors");
    let metadata = vigdet::weights::Checkpoint::open(Path::new(&weights)).unwrap().metadata();
    vigdet::weights::write_tensors(&tensors, &broken, &metadata).unwrap();
    let (broken, image) = (broken.display().to_string(), scene.data.root().join("val2017/000.png"));
    for args in [vec!["detect", image.to_str().unwrap()], vec!["test_det", "--data", scene.data.arg()]] {
        let message = fail(args[0], &[&args[1..], &["--weights", &broken, "--device", "cpu"]].concat());
        assert!(message.contains("cls_logits.bias holds numbers that are not finite"), "{message}");
    }
}

#[test]
fn damaged_checkpoints_are_recognised_and_the_ones_before_them_used() {
    let scene = Scene::new();
    succeed("train_det", &strs(&scene.train("run", &["--max-iters", "4"])));
    let checkpoints = scene.path("run/checkpoints");
    let damage = |name: &str, how: &dyn Fn(&mut Vec<u8>)| {
        let path = checkpoints.join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        how(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    };
    let whole = std::fs::read(checkpoints.join("last.safetensors")).unwrap();
    let image = scene.data.root().join("val2017/000.png").display().to_string();
    let last = checkpoints.join("last.safetensors").display().to_string();
    let middle = whole.len() / 2;
    type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 5] = [
        ("cut off", &|bytes| bytes.truncate(middle)),
        ("empty", &|bytes| bytes.clear()),
        ("a bit", &|bytes| bytes[middle] ^= 1),
        ("zeros", &|bytes| bytes[middle..middle + 64].fill(0)),
        ("in the header", &|bytes| bytes[40] ^= 4),
    ];
    for (what, how) in damages {
        std::fs::write(checkpoints.join("last.safetensors"), &whole).unwrap();
        damage("last.safetensors", how);
        let output = run("detect", &["--weights", &last, &image, "--device", "cpu"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("in its place the one before it"), "{what}: {said}");
    }
    std::fs::remove_file(checkpoints.join("last.previous.safetensors")).unwrap();
    let message = fail("detect", &["--weights", &last, &image, "--device", "cpu"]);
    assert!(message.contains("last.safetensors") && message.contains("it is"), "{message}");

    // A resumed run goes on from the state before, and does the steps since then again.
    let before = log(&scene.path("run"));
    damage("last.state", &|bytes| bytes[middle] ^= 1);
    let mut config = std::fs::read_to_string(scene.path("run/config.json")).unwrap();
    config = config.replace("\"seed\": 5", "\"seed\": 6");
    std::fs::write(scene.path("run/config.json"), config).unwrap();
    let output = run("train_det", &strs(&resume(&scene, "run", &["--max-iters", "4"])));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("last.previous.state") && said.contains("config.json is not as it was written"), "{said}");
    assert_eq!(log(&scene.path("run")), before);
}

#[test]
fn starts_at_once_get_folders_of_their_own_and_a_run_has_one_writer() {
    let scene = Scene::new();
    let config = scene.path("tiny.json").display().to_string();
    let args = ["retinanet", "--config", &config, "--data", scene.data.arg(), "--device", "cpu"];
    let few = ["--max-iters", "2", "--set", "train.eval_every=0"];
    let start = || {
        let mut command = program("train_det", &[&args[..], &few].concat());
        command.current_dir(scene.path("")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let runs: Vec<PathBuf> = ["tiny", "tiny-2", "tiny-3"].iter().map(|n| scene.path("runs").join(n)).collect();
    for run in &runs {
        assert_eq!(log(run).len(), 2, "{}", run.display());
        assert_eq!(log(run), log(&runs[0]));
    }

    let long = scene.train("long", &["--epochs", "1000", "--set", "train.eval_every=0"]);
    let mut child = common::start(&long);
    wait_for_steps(&mut child, &scene.path("long"), 2);
    let message = fail("train_det", &strs(&resume(&scene, "long", &[])));
    let holder = format!("process {} is writing to the run in", child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(message.contains(&holder), "{message}");
}

#[test]
fn training_goes_on_when_nobody_reads_its_output() {
    let scene = Scene::new();
    let mut child = program("train_det", &strs(&scene.train("closed", &["--epochs", "2"])))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(scene.path("closed/checkpoints/best.safetensors").exists());
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = program("train_det", &strs(&scene.train("full", &["--epochs", "1"])))
        .stdout(full())
        .stderr(full())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn the_weights_say_which_detector_they_are_of() {
    let scene = Scene::new();
    let weights = weights(&scene, "run");
    let image = scene.data.root().join("val2017/000.png").display().to_string();
    let args = ["--weights", &weights, "--device", "cpu"];
    let plain = succeed("detect", &[&[image.as_str()], &args[..]].concat());
    let named = |name| [&[name, image.as_str()], &args[..]].concat();
    assert_eq!(succeed("detect", &named("retinanet")), plain);
    assert!(fail("detect", &named("mask_rcnn")).contains("is for retinanet, not mask_rcnn"));
    assert!(fail("detect", &named("yolo")).contains("there is no detector `yolo`"));
    succeed("test_det", &args);
    assert!(scene.path("run/test/metrics.json").exists());
}

#[test]
fn the_small_recipe_is_suggested_for_small_data() {
    let scene = Scene::new();
    let out = scene.path("run").display().to_string();
    let args = ["retinanet", "--data", scene.data.arg(), "--out", &out, "--device", "cpu", "--backbone", "pvig_ti"];
    let tiny =
        ["backbone.channels=[8,8,16,16]", "blocks=[1,1,1,1]", "eval_every=0", "data.size=[64,96]", "max_iters=1"];
    let tiny = tiny.iter().flat_map(|change| ["--set", change]).collect::<Vec<_>>();
    let batch = ["--batch-size", "2", "--set", "fpn.channels=16", "--set", "head.channels=16"];
    let printed = succeed("train_det", &[&args[..], &tiny, &batch].concat());
    assert!(printed.contains("10 images are few") && printed.contains("--config retinanet_pvig_n_small"), "{printed}");
}

#[test]
fn missing_images_are_counted_and_named_and_refused_where_they_are_most() {
    let scene = Scene::new();
    let remove = |numbers: std::ops::Range<usize>| {
        for i in numbers {
            std::fs::remove_file(scene.data.root().join(format!("train2017/{i:03}.png"))).unwrap();
        }
    };
    let few = ["--max-iters", "2", "--set", "train.eval_every=0"];
    // The first ones: where a quick look would look.
    remove(0..4);
    let printed = succeed("train_det", &strs(&scene.train("some", &few)));
    assert!(printed.contains("4 of 10 images are not in") && printed.contains("`000.png`"), "{printed}");
    remove(4..8);
    let error = fail("train_det", &strs(&scene.train("most", &few)));
    assert!(error.contains("8 of 10 images are not in"), "{error}");
}

#[test]
fn classes_without_objects_are_named() {
    let scene = Scene::new();
    edit(&scene, "train", |file| {
        file["categories"].as_array_mut().unwrap().insert(0, json!({ "id": 0, "name": "root" }));
    });
    let few = ["--max-iters", "1", "--set", "train.eval_every=0"];
    let printed = succeed("train_det", &strs(&scene.train("run", &few)));
    assert!(printed.contains("classes without an object to learn: `root`"), "{printed}");
}
