//! The programs as users start them: training, stopping, resuming, testing, and everything that can go wrong on the
//! way.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use image::RgbImage;
use serde_json::{json, Value};

mod common;
use common::*;

#[test]
fn a_run_explains_itself_and_its_best_weights_test_the_same() {
    let scene = Scene::new();
    let args = scene.train("run", &[]);
    let printed = succeed("train_det", &strs(&args));
    let run_dir = scene.path("run");
    assert!(printed.contains("Average Precision  (AP) @[ IoU=0.50:0.95"), "{printed}");
    assert!(printed.contains("cargo run --bin detect -- retinanet --weights"), "{printed}");

    let log = log(&run_dir);
    let steps: Vec<&Value> = log.iter().filter(|line| line.get("loss").is_some()).collect();
    // 10 images in batches of 4: 3 steps an epoch.
    assert_eq!(steps.len(), 12);
    for (i, step) in steps.iter().enumerate() {
        assert_eq!((step["iter"].as_u64(), step["epoch"].as_u64()), (Some(i as u64 + 1), Some(i as u64 / 3 + 1)));
        let [loss, class, boxes] = ["loss", "classification", "box"].map(|part| step[part].as_f64().unwrap());
        assert!((loss - class - boxes).abs() < 1e-5, "{step}");
    }
    assert!(steps[11]["loss"].as_f64() < steps[0]["loss"].as_f64(), "it learns");
    let evaluations: Vec<&Value> = log.iter().filter(|line| line.get("bbox").is_some()).collect();
    assert_eq!(evaluations.len(), 4);

    let config = read_json(run_dir.join("config.json"));
    assert_eq!(config["train"]["seed"], 5);
    assert_eq!(config["data"]["root"], scene.data.arg());
    let start = &read_json(run_dir.join("run.json"))["starts"][0];
    assert_eq!(start["command"][1], "retinanet");
    assert_eq!(start["classes"], json!(["dark", "bright"]));
    assert_eq!(start["libtorch"], vigdet::nn::libtorch::version());
    assert_eq!((&start["repeatable_to_the_bit"], &start["gpu"]), (&json!(true), &json!(null)));
    let mut names: Vec<String> = std::fs::read_dir(run_dir.join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    // Each file that was replaced is still there under another name.
    let (before, names): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| name.contains(".previous."));
    assert!(before.contains(&"last.previous.state".to_string()), "{before:?}");
    // Numbered: the last of every second step and of every epoch.
    let expected = [
        "best.safetensors",
        "iter_00000010.safetensors",
        "iter_00000012.safetensors",
        "last.safetensors",
        "last.state",
    ];
    assert_eq!(names, expected);
    assert!(std::fs::read_dir(&run_dir).unwrap().any(|e| e
        .unwrap()
        .file_name()
        .to_string_lossy()
        .contains("tfevents")));

    let best = evaluations.iter().map(|e| e["bbox"]["AP"].as_f64().unwrap()).fold(-1.0, f64::max);
    let metrics = read_json(run_dir.join("metrics.json"));
    assert_eq!(metrics["bbox"]["AP"].as_f64(), Some(best));
    assert_eq!(metrics["bbox"].as_object().unwrap().len(), 12);
    assert!(metrics["bbox"]["AR100"].as_f64() > Some(0.0), "something is found, or equal scores say nothing");

    // The weights know their config and classes.
    let weights = run_dir.join("checkpoints/best.safetensors").display().to_string();
    let out = scene.path("test").display().to_string();
    let printed = succeed("test_det", &["retinanet", "--weights", &weights, "--out", &out, "--device", "cpu"]);
    assert_eq!(printed.matches(" Average ").count(), 12, "{printed}");
    assert_eq!(read_json(scene.path("test/metrics.json"))["bbox"], metrics["bbox"]);
    assert_eq!(std::fs::read(scene.path("test/bbox.json")).unwrap(), std::fs::read(run_dir.join("bbox.json")).unwrap());
    let truth = read_json(scene.path("test/ground_truth.json"))["annotations"].as_str().unwrap().to_string();
    assert_eq!(Path::new(&truth), std::fs::canonicalize(scene.data.annotations("val")).unwrap());
    // Another category numbering for the same names: detections follow the names.
    let text = std::fs::read_to_string(scene.data.annotations("val")).unwrap();
    let text = text.replace("\"category_id\":7", "\"category_id\":2").replace("\"id\":7,\"name\"", "\"id\":2,\"name\"");
    std::fs::write(scene.data.annotations("val"), text).unwrap();
    succeed("test_det", &["retinanet", "--weights", &weights, "--out", &out, "--device", "cpu"]);
    assert_eq!(read_json(scene.path("test/metrics.json"))["bbox"], metrics["bbox"]);
}

#[test]
fn a_run_that_is_killed_and_resumed_is_the_uninterrupted_run_to_the_bit() {
    let scene = Scene::new();
    let longer = ["--epochs", "12", "--set", "train.replicas=2", "--set", "train.amp=true"];
    succeed("train_det", &strs(&scene.train("whole", &longer)));
    let args = scene.train("killed", &longer);
    let mut resume = args.clone();
    resume.push("--resume".into());
    let run_dir = scene.path("killed");

    // In the middle of the second epoch, one step after a checkpoint.
    let mut child = start(&args);
    wait_for_steps(&mut child, &run_dir, 5);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(log(&run_dir).len() < 36, "it was killed too late to tell anything");
    let message = fail("train_det", &strs(&args));
    assert!(message.contains("already holds a run") && message.contains("--resume"), "{message}");

    // Ctrl-C: a checkpoint, and an exit that says so.
    let mut child = start(&resume);
    wait_for_steps(&mut child, &run_dir, 10);
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let done = log(&run_dir).iter().filter(|line| line.get("loss").is_some()).count();
    assert!(done < 36, "it was stopped too late to tell anything");

    let printed = succeed("train_det", &strs(&resume));
    assert!(printed.contains(&format!("resuming after step {done} ")), "no step was lost: {done} {printed}");
    let whole = scene.path("whole");
    assert_eq!(log(&run_dir), log(&whole));
    for file in ["checkpoints/last.safetensors", "checkpoints/best.safetensors", "bbox.json", "metrics.json"] {
        let same = std::fs::read(run_dir.join(file)).unwrap() == std::fs::read(whole.join(file)).unwrap();
        assert!(same, "{file} differs");
    }
    assert_eq!(read_json(run_dir.join("run.json"))["starts"].as_array().unwrap().len(), 3);

    // A resumed run keeps its config, but may go on for longer.
    let mut other = resume.clone();
    other.extend(["--lr".into(), "0.5".into()]);
    let message = fail("train_det", &strs(&other));
    assert!(message.contains("train.lr"), "{message}");
    let out = run_dir.display().to_string();
    let more = ["retinanet", "--out", &out, "--resume", "--max-iters", "37", "--epochs", "13", "--device", "cpu"];
    succeed("train_det", &more);
    assert_eq!(log(&run_dir).iter().filter(|line| line.get("loss").is_some()).count(), 37);
}

#[test]
fn a_run_that_is_killed_before_its_first_epoch_goes_on_from_the_weights_it_was_given() {
    let scene = Scene::new();
    let seen = ["--seed", "6", "--max-iters", "3", "--set", "eval_every=0"];
    succeed("train_det", &strs(&scene.train("given", &seen)));
    let given = scene.path("given/checkpoints/last.safetensors").display().to_string();
    // No checkpoint on the way.
    let rare = ["eval_every=0", "every_epochs=0", "every_iters=null"].map(|change| ["--set", change]).concat();
    let more = [&["--weights", &given, "--epochs", "20"], &rare[..]].concat();
    succeed("train_det", &strs(&scene.train("whole", &more)));

    let run_dir = scene.path("killed");
    let mut child = start(&scene.train("killed", &more));
    wait_for_steps(&mut child, &run_dir, 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(log(&run_dir).len() < 60, "it was killed too late to tell anything");
    let out = run_dir.display().to_string();
    let resume = ["retinanet", "--out", &out, "--resume", "--device", "cpu"];
    let printed = succeed("train_det", &resume);
    assert!(printed.contains("resuming after step 0 "), "{printed}");
    assert_eq!(log(&run_dir), log(&scene.path("whole")));

    for state in ["last.state", "last.previous.state"] {
        std::fs::remove_file(run_dir.join("checkpoints").join(state)).unwrap();
    }
    let message = fail("train_det", &resume);
    assert!(message.contains("last.state is not there"), "{message}");
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one_whatever_the_backbone() {
    let scene = Scene::new();
    // What depends on the length of a run is off: one of the two is longer.
    let still = ["train.eval_every=0", "batch_size=2", "schedule=step", "strong_until=1", "every_iters=1"];
    for (name, channels) in [
        ("resnext50_32x4d", "null"),
        ("swin_t", "[32,32,32,32]"),
        ("pvt_tiny", "[64,64,64,64]"),
        ("poolformer_s12", "[8,8,16,16]"),
        ("cyclemlp_b1", "[8,8,16,16]"),
        ("greedyvig_s", "[8,8,16,16]"),
        ("adaptvig_s", "[8,8,16,16]"),
    ] {
        let model = [format!("backbone.name={name}"), format!("backbone.channels={channels}")];
        let changes = set(&[&still[..], &[model[0].as_str(), model[1].as_str()]].concat());
        let train = |out: &str, iters: &str, more: &[&str]| {
            let all = [&changes[..], &["--max-iters", iters], more].concat();
            succeed("train_det", &strs(&scene.train(&format!("{name}_{out}"), &all)));
        };
        train("whole", "3", &[]);
        train("cut", "2", &[]);
        train("cut", "3", &["--resume"]);
        let [whole, cut] = ["whole", "cut"].map(|out| scene.path(&format!("{name}_{out}")));
        assert_eq!(log(&cut), log(&whole), "{name}");
        let read = |run: &Path| std::fs::read(run.join("checkpoints/last.safetensors")).unwrap();
        assert!(read(&cut) == read(&whole), "{name}: weights differ");
    }
}

#[test]
fn a_run_that_is_limited_in_time_ends_once_its_steps_were_timed_and_stays_ended() {
    let scene = Scene::new();
    let each = set(&["train.epochs=100", "train.eval_every=0", "every_iters=null", "warmup_iters=50"]);
    let train = |out: &str, more: &[&str]| succeed("train_det", &strs(&scene.train(out, &[&each[..], more].concat())));
    let limit = ["--set", "max_minutes=1e-9"];
    let said = train("timed", &limit);
    assert!(said.contains("--max-iters 50 does the same again"), "{said}");
    let steps = log(&scene.path("timed"));
    assert_eq!(steps.len(), 50);
    train("timed", &[&limit[..], &["--resume"]].concat());
    assert_eq!(log(&scene.path("timed")), steps);
    train("fixed", &["--max-iters", "50"]);
    assert_eq!(log(&scene.path("fixed")), steps);
}

#[test]
fn gradients_of_micro_batches_add_up_to_those_of_the_batch() {
    let scene = Scene::new();
    // Images of one size and fixed norms: then nothing else depends on who is in a batch.
    let still = set(&[
        "max_iters=1",
        "train.eval_every=0",
        "freeze_norms=true",
        "drop_path=0",
        "normalizer=image",
        "data.scale=[1,1]",
        "data.size=[96,96]",
        "data.pad=96",
        "group_by_aspect=false",
    ]);
    let step = |micro: &str| {
        let args = scene.train(micro, &[&still[..], &["--set", &format!("train.micro_batch={micro}")]].concat());
        succeed("train_det", &strs(&args));
        let line = log(&scene.path(micro)).remove(0);
        ["loss", "grad_norm"].map(|key| line[key].as_f64().unwrap())
    };
    let whole = step("4");
    for micro in ["1", "2"] {
        for (value, expected) in step(micro).iter().zip(whole) {
            assert!((value / expected - 1.0).abs() < 1e-3, "{micro}: {value} {expected}");
        }
    }
}

/// What a run's newest weights hold that was learned, and the running statistics of its norms.
fn learned_and_running(run: &Path) -> [BTreeMap<String, Vec<f32>>; 2] {
    let all = tch::Tensor::read_safetensors(run.join("checkpoints/last.safetensors")).unwrap();
    let values = |(name, t): (String, tch::Tensor)| (name, Vec::<f32>::try_from(t.reshape(-1)).unwrap());
    let (running, learned) = all.into_iter().map(values).partition(|(name, _)| name.contains(".running_"));
    [learned, running]
}

#[test]
fn replicas_learn_what_micro_batches_one_after_another_do_to_the_bit() {
    let scene = Scene::new();
    // One thread for each micro batch, as sums of several threads round otherwise. Ten images make five micro batches
    // of two an epoch.
    let train = |out: &str, changes: &[&str]| {
        let changes = set(&[&["train.eval_every=0", "train.ema=null"], changes].concat());
        let said = succeed("train_det", &strs(&scene.train(out, &changes)));
        let run = scene.path(out);
        let [learned, running] = learned_and_running(&run);
        let replicas = read_json(run.join("run.json"))["starts"][0]["replicas"].as_u64().unwrap();
        assert_eq!(said.contains(&format!("and {replicas} replicas")), replicas > 1, "{said}");
        (log(&run), learned, running, replicas)
    };
    let one = train("one", &["threads=1"]);
    assert_eq!((one.0.len(), one.3), (12, 1));
    let two = train("two", &["threads=2", "replicas=2"]);
    assert_eq!((two.0, two.1, two.3), (one.0.clone(), one.1.clone(), 2));
    // They move once a step, not once for each micro batch: that there were replicas can be seen.
    assert!(two.2.len() > 20 && two.2.keys().eq(one.2.keys()) && two.2 != one.2);
    // More than there are micro batches, and fewer threads.
    let many = train("many", &["threads=1", "replicas=5"]);
    assert_eq!((many.0, many.1, many.2, many.3), (one.0, one.1, two.2, 2));
    // Rounds of three, then one.
    let [one, three] = [("one of one", "replicas=1"), ("three of one", "replicas=3")]
        .map(|(out, replicas)| train(out, &["threads=1", "micro_batch=1", "data.size=[96,96]", replicas]));
    assert_eq!((three.0, three.1, three.3), (one.0, one.1, 3));

    let odd = set(&["batch_size=5", "micro_batch=null", "replicas=2"]);
    let message = fail("train_det", &strs(&scene.train("odd", &odd)));
    assert!(message.contains("5, cannot be divided evenly among 2 train.replicas"), "{message}");
}

#[test]
fn mixed_precision_is_used_where_the_processor_has_it_and_said() {
    let scene = Scene::new();
    let train = |out: &str, amp: &str| {
        let changes = set(&["train.eval_every=0", "max_iters=2", amp]);
        let said = succeed("train_det", &strs(&scene.train(out, &changes)));
        let precision = read_json(scene.path(out).join("run.json"))["starts"][0]["precision"].clone();
        let precision = precision.as_str().unwrap().to_string();
        assert!(said.contains(&format!(" in {precision}: ")), "{said}");
        (log(&scene.path(out)), precision)
    };
    let (exact, mixed) = (train("exact", "train.amp=false"), train("mixed", "train.amp=true"));
    assert_eq!(exact.1, "float32");
    let has = vigdet::nn::precision::has_bfloat16(tch::Device::Cpu);
    assert_eq!(mixed.1, if has { "float32 and bfloat16" } else { "float32" });
    assert_eq!(mixed.0 != exact.0, has);
    let loss = |log: &[Value]| log[1]["loss"].as_f64().unwrap();
    assert!((loss(&mixed.0) / loss(&exact.0) - 1.0).abs() < 0.02);

    // What was trained so is looked at so on GPUs; on a CPU where it is asked for.
    let weights = scene.path("mixed/checkpoints/last.safetensors").display().to_string();
    let seen = |name: &str, amp: &[&str]| {
        let out = scene.path(name);
        let (folder, file) = (out.display().to_string(), out.join("detect.json").display().to_string());
        let common = ["--weights", &weights, "--device", "cpu"];
        succeed("test_det", &[&common[..], &["--out", &folder], amp].concat());
        let image = scene.data.root().join("val2017/000.png").display().to_string();
        succeed("detect", &[&common[..], &["--json", &file, &image], amp].concat());
        let precision = read_json(out.join("metrics.json"))["precision"].clone();
        (precision, std::fs::read(out.join("bbox.json")).unwrap(), std::fs::read(file).unwrap())
    };
    let (plain, off, on) = (seen("plain", &[]), seen("off", &["--amp", "off"]), seen("on", &["--amp", "on"]));
    assert!(plain == off && off.0 == "float32" && on.0 == mixed.1.as_str());
    assert!(off.1.len() > 100 && (on.1 != off.1, on.2 != off.2) == (has, has));
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_its_part_and_images() {
    let scene = Scene::new();
    let more =
        ["--lr", "1e25", "--set", "clip_norm=null", "--set", "checkpoint.every_iters=1", "--set", "warmup_iters=0"];
    let message = fail("train_det", &strs(&scene.train("run", &more)));
    assert!(message.contains("classification") || message.contains("box"), "{message}");
    assert!(message.contains(".png") && message.contains("last.safetensors"), "{message}");
    let finite = log(&scene.path("run"));
    assert!(!finite.is_empty() && finite.iter().all(|line| line["loss"].as_f64().is_some_and(f64::is_finite)));
    assert!(vigdet::weights::Checkpoint::open(&scene.path("run/checkpoints/last.safetensors")).is_ok());
}

#[test]
fn unreadable_images_are_skipped_and_named_or_stop_the_run() {
    let scene = Scene::new();
    for name in ["train2017/004.png", "val2017/001.png"] {
        std::fs::write(scene.data.root().join(name), b"not an image").unwrap();
    }
    let printed = succeed("train_det", &strs(&scene.train("skip", &["--epochs", "2"])));
    let said = |what: &str| printed.lines().filter(|line| line.contains(what)).count();
    assert_eq!(said("train: 1 image could not be read: 004.png"), 1, "{printed}");
    assert_eq!(said("val: 1 image could not be read: 001.png"), 1, "{printed}");
    assert_eq!(read_json(scene.path("skip/metrics.json"))["unreadable_images"], 1);
    let weights = scene.path("skip/checkpoints/last.safetensors").display().to_string();
    let out = scene.path("test").display().to_string();
    let printed = succeed("test_det", &["retinanet", "--weights", &weights, "--out", &out, "--device", "cpu"]);
    assert!(printed.contains("val: 1 image could not be read: 001.png"), "{printed}");
    assert!(printed.contains("\n3 images, "), "{printed}");
    assert_eq!(read_json(scene.path("test/metrics.json"))["unreadable_images"], 1);
    let message = fail("train_det", &strs(&scene.train("stop", &["--epochs", "1", "--set", "on_error=stop"])));
    assert!(message.contains("004.png"), "{message}");
}

#[test]
fn what_an_evaluation_does_not_use_as_one_might_think_is_said_once() {
    let scene = Scene::new();
    // An image that is smaller than annotated, and a flag that COCO's evaluation overwrites.
    RgbImage::new(80, 60).save(scene.data.root().join("val2017/001.png")).unwrap();
    let mut file = read_json(scene.data.annotations("val"));
    file["annotations"][0]["ignore"] = json!(1);
    file["annotations"][1]["id"] = json!(0);
    std::fs::write(scene.data.annotations("val"), file.to_string()).unwrap();
    let expected = ["`ignore` of 1 annotations", "001.png (is 80×60", "annotation with id 0"];
    let printed = succeed("train_det", &strs(&scene.train("run", &["--epochs", "2"])));
    for what in expected {
        assert_eq!(printed.lines().filter(|line| line.contains(what)).count(), 1, "{what}: {printed}");
    }
    let weights = scene.path("run/checkpoints/last.safetensors").display().to_string();
    let printed = succeed("test_det", &["retinanet", "--weights", &weights, "--device", "cpu"]);
    for what in expected {
        assert_eq!(printed.lines().filter(|line| line.contains(what)).count(), 1, "{what}: {printed}");
    }
}

#[test]
fn built_in_data_is_drawn_or_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("set").display().to_string();
    let printed = succeed("shapes", &["--images", "3", "--val", "2", "--side", "64", "--out", &out]);
    assert!(printed.contains("3 images to train on, 2 to validate on") && printed.contains(&out), "{printed}");
    let count = |split: &str| std::fs::read_dir(folder.path().join("set").join(split)).unwrap().count();
    assert_eq!((count("train2017"), count("val2017")), (3, 2));
    let other = folder.path().join("other").display().to_string();
    for (bad, expected) in [
        (["--side", "4294967295"], "64 to 8192 pixels"),
        (["--side", "8"], "64 to 8192 pixels"),
        (["--images", "18446744073709551615"], "images in each split"),
        (["--val", "0"], "images in each split"),
        (["--seed", "x"], "--seed"),
        (["--out", folder.path().to_str().unwrap()], "something else"),
    ] {
        let folder = if bad[0] == "--out" { &[][..] } else { &["--out", &other] };
        let message = fail("shapes", &[folder, &bad].concat());
        assert!(message.contains(expected), "{bad:?}: {message}");
    }
    assert!(!Path::new(&other).exists());
}

#[test]
fn bad_arguments_configs_and_weights_give_one_clear_line() {
    let scene = Scene::new();
    succeed("train_det", &strs(&scene.train("good", &["--max-iters", "1", "--set", "eval_every=0"])));
    let good = std::fs::read(scene.path("good/checkpoints/last.safetensors")).unwrap();
    std::fs::write(scene.path("cut.safetensors"), &good[..good.len() / 2]).unwrap();
    std::fs::write(scene.path("text.safetensors"), "hello, world").unwrap();
    std::fs::write(scene.path("broken.json"), "{\"train\": ").unwrap();
    let path = |name: &str| scene.path(name).display().to_string();

    let cases: &[(&[&str], &[&str])] = &[
        (&["--learning-rate", "1"], &["--learning-rate"]),
        (&["--epochs", "many"], &["--epochs", "many"]),
        (&["--batch-size", "0"], &["train.batch_size"]),
        (&["--batch-size", "5"], &["train.batch_size", "train.micro_batch"]),
        (&["--set", "train.leraning=1"], &["train.leraning", "did you mean"]),
        (&["--set", "lr"], &["key.path=value"]),
        (&["--set", "train.optimizer=adam"], &["train.optimizer", "adam"]),
        (&["--size", "900,800"], &["--size"]),
        (&["--size", "4294967295,4294967295"], &["data.size"]),
        (&["--set", "anchors.strides=[7,8,16,32,64]"], &["model.anchors.strides", "[8, 16, 32, 64, 128]"]),
        (&["--set", "anchors.strides=[4,8,16,32,64]"], &["model.anchors.strides", "[4, 8, 16, 32, 64, 128]"]),
        (&["--set", "anchors.strides=[8,16]"], &["model.anchors.strides"]),
        (&["--device", "cuda:99"], &["cuda:99"]),
        (&["--backbone", "vgg"], &["vgg", "pvig_ti"]),
        (&["--data", "/nowhere"], &["/nowhere"]),
        (&["--weights", &path("none.pth")], &["none.pth", "no such file"]),
        (&["--weights", &path("cut.safetensors")], &["cut.safetensors", "cut off"]),
        (&["--weights", &path("text.safetensors")], &["text.safetensors"]),
        (&["--epochs", "0"], &["train.epochs"]),
        (&["--resume"], &["no run to resume"]),
    ];
    for (more, expected) in cases {
        let mut args = scene.train("bad", &[]);
        // A flag that is there already takes its new value.
        for pair in more.chunks(2) {
            match args.iter().position(|a| a == pair[0]) {
                Some(at) => args[at + 1] = pair[1].to_string(),
                None => args.extend(pair.iter().map(|s| s.to_string())),
            }
        }
        let message = fail("train_det", &strs(&args));
        for part in *expected {
            assert!(message.contains(part), "{more:?}: {message}");
        }
        assert!(!scene.path("bad").exists(), "{more:?} left a folder");
    }
    for (args, expected) in [
        (vec!["yolo"], "yolo"),
        (vec!["retinanet", "--config", "/nowhere.json"], "/nowhere.json"),
        (vec!["retinanet", "--config", &path("broken.json")], "broken.json"),
    ] {
        let message = fail("train_det", &args);
        assert!(message.contains(expected), "{message}");
    }

    // Weights of another model, for a test.
    let other = ["--max-iters", "1", "--set", "eval_every=0", "--set", "fpn.channels=32"];
    succeed("train_det", &strs(&scene.train("other", &other)));
    let (weights, config) = (path("other/checkpoints/last.safetensors"), path("tiny.json"));
    let args = ["retinanet", "--weights", &weights, "--config", &config, "--data", scene.data.arg()];
    let message = fail("test_det", &args);
    assert!(message.contains("backbone.fpn") && message.contains("32"), "{message}");
    let message = fail("test_det", &["retinanet", "--weights", &path("cut.safetensors")]);
    assert!(message.contains("cut.safetensors"), "{message}");
    let message = fail("test_det", &["retinanet", "--weights", &weights, "--data", "/nowhere"]);
    assert!(message.contains("/nowhere"), "{message}");

    // A broken state must not start from nowhere in silence.
    for state in ["last.state", "last.previous.state"] {
        std::fs::write(scene.path("good/checkpoints").join(state), &good[..100]).unwrap();
    }
    let message = fail("train_det", &["retinanet", "--out", &path("good"), "--resume", "--device", "cpu"]);
    assert!(message.contains("last.state"), "{message}");
}

#[test]
fn bad_annotations_give_one_clear_line() {
    let scene = Scene::new();
    let file = scene.data.annotations("train");
    let good = read_json(file.clone());
    let check = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut annotations = good.clone();
        change(&mut annotations);
        std::fs::write(&file, annotations.to_string()).unwrap();
        let message = fail("train_det", &strs(&scene.train("bad", &[])));
        assert!(message.contains(expected) && message.contains("instances_train2017.json"), "{expected}: {message}");
    };
    check(&|a| a["annotations"] = json!([]), "no image is left to train on");
    check(&|a| (a["images"], a["annotations"]) = (json!([]), json!([])), "no image");
    check(&|a| a["annotations"][0]["image_id"] = json!(7), "image 7");
    check(&|a| a["annotations"][3]["category_id"] = json!(99), "99");
    check(&|a| a["annotations"][3]["bbox"] = json!([1, 2]), "bbox");
    check(&|a| a["images"][2]["file_name"] = json!("../../secret.png"), "secret.png");
    check(&|a| *a = json!([1, 2]), "");
    std::fs::write(&file, "{\"images\": [").unwrap();
    let message = fail("train_det", &strs(&scene.train("bad", &[])));
    assert!(message.contains("instances_train2017.json"), "{message}");
    std::fs::write(&file, good.to_string()).unwrap();
    std::fs::remove_file(scene.data.annotations("val")).unwrap();
    let message = fail("train_det", &strs(&scene.train("bad", &[])));
    assert!(message.contains("instances_val2017.json") && message.contains("eval_every=0"), "{message}");
}

#[test]
fn fine_tuning_brings_the_model_and_makes_a_short_run_long_enough() {
    let scene = Scene::new();
    succeed("train_det", &strs(&scene.train("run", &["--max-iters", "1", "--set", "train.eval_every=0"])));
    let weights = scene.path("run/checkpoints/last.safetensors").display().to_string();
    let out = scene.path("fine").display().to_string();
    let args = ["retinanet", "--data", scene.data.arg(), "--out", &out, "--device", "cpu", "--finetune", &weights];
    let changes = ["min_iters=30", "eval_every=0"].map(|change| ["--set", change]).concat();
    let printed = succeed("train_det", &[&args[..], &changes, &["--epochs", "4"]].concat());
    // Ten images are three steps an epoch; twelve are not enough, so there are three times as many.
    for line in ["fine-tuning: retinanet on pvig_ti, images of 64 to 96 pixels", "36 steps of 4 images"] {
        assert!(printed.contains(line), "{printed}");
    }
    let config = read_json(scene.path("fine/config.json"));
    let backbone = &config["model"]["backbone"];
    assert_eq!((&backbone["channels"], &backbone["freeze_norms"]), (&json!([8, 8, 16, 16]), &json!(true)));
    assert_eq!(config["train"]["epochs"], 4);
    let both = [&args[..], &["--config", "retinanet_pvig_ti_small"]].concat();
    assert!(fail("train_det", &both).contains("cannot be used with"));
}

#[test]
fn anchors_that_are_fitted_are_kept_in_the_runs_config_and_in_its_weights() {
    let scene = Scene::new();
    let auto = ["--max-iters", "2", "--set", "model.anchors=auto", "--set", "train.eval_every=0"];
    let printed = succeed("train_det", &strs(&scene.train("run", &auto)));
    let line = printed.lines().find(|line| line.contains("anchors fitted to 20 objects")).unwrap();
    let shares: Vec<f64> = line.split(['%', ' ', '(']).filter_map(|word| word.parse().ok()).collect();
    assert!(shares[1] >= 90.0, "{line}");
    let anchors = read_json(scene.path("run/config.json"))["model"]["anchors"].clone();
    assert_eq!(anchors["auto"], false);
    assert_ne!(anchors["base"], 2.0);
    assert!(printed.contains(&format!("model.anchors.base={}", anchors["base"])), "{printed}");
    let weights = std::fs::read(scene.path("run/checkpoints/last.safetensors")).unwrap();
    let base = format!("\\\"base\\\":{}", anchors["base"]);
    assert!(weights.windows(base.len()).any(|part| part == base.as_bytes()), "{base}");
    // The same numbers give the same steps.
    let base = format!("model.anchors.base={}", anchors["base"]);
    let ratios = format!("model.anchors.ratios={}", anchors["ratios"]);
    let given = ["--max-iters", "2", "--set", "train.eval_every=0", "--set", &base, "--set", &ratios];
    succeed("train_det", &strs(&scene.train("given", &given)));
    assert_eq!(log(&scene.path("run")), log(&scene.path("given")));
    // The command that started the run goes on with it, and those anchors stay.
    let longer = ["--max-iters", "3", "--set", "model.anchors=auto", "--set", "train.eval_every=0", "--resume"];
    succeed("train_det", &strs(&scene.train("run", &longer)));
    assert_eq!(read_json(scene.path("run/config.json"))["model"]["anchors"], anchors);
    assert_eq!(log(&scene.path("run")).len(), 3);
}
