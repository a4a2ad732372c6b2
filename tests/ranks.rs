//! Training in several processes as users start them: what they learn, what one that dies does to the others, and how
//! the run goes on.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

mod common;
use common::*;

/// Longest time from a failure to the end of all.
const END: Duration = Duration::from_secs(30);

fn command(name: &str, args: &[&str]) -> Command {
    let path = if name == "train_cls" { env!("CARGO_BIN_EXE_train_cls") } else { env!("CARGO_BIN_EXE_train_det") };
    let mut command = Command::new(path);
    command.args(args).env("OMP_WAIT_POLICY", "passive").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn train(name: &str, args: &[String]) -> String {
    let output = command(name, &strs(args)).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What a run's newest weights hold that was learned, and the running statistics of its norms.
fn learned_and_running(run: &Path) -> [BTreeMap<String, Vec<f32>>; 2] {
    let all = tch::Tensor::read_safetensors(run.join("checkpoints/last.safetensors")).unwrap();
    let values = |(name, t): (String, tch::Tensor)| (name, Vec::<f32>::try_from(t.reshape(-1)).unwrap());
    let (running, learned) = all.into_iter().map(values).partition(|(name, _)| name.contains(".running_"));
    [learned, running]
}

/// The largest difference of two networks, as a fraction of the second's largest number.
fn difference(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> f32 {
    assert!(a.keys().eq(b.keys()));
    let largest = b.values().flatten().fold(0f32, |most, v| most.max(v.abs()));
    let pairs = a.values().flatten().zip(b.values().flatten());
    pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

fn processes(count: &str) -> [String; 2] {
    ["--processes".into(), count.into()]
}

#[test]
fn two_processes_learn_what_one_that_accumulates_does_to_the_bit() {
    let scene = Scene::new();
    // Ten images in micro batches of two: the last step of an epoch has one of them, which is rank 0's.
    let changes = set(&["train.eval_every=0", "train.threads=1", "data.workers=1"]);
    let args = |out: &str| scene.train(out, &[&changes[..], &["--epochs", "7", "--max-iters", "20"]].concat());
    let said = train("train_det", &[args("two"), processes("2").into()].concat());
    assert!(said.contains("in each of 2 processes"), "{said}");
    train("train_det", &args("one"));
    let (one, two) = (scene.path("one"), scene.path("two"));
    assert_eq!(log(&two).len(), 20);
    assert_eq!(log(&two), log(&one));
    let ([one, running_of_one], [two, running]) = (learned_and_running(&one), learned_and_running(&two));
    assert!(two == one, "the largest difference is {}", difference(&two, &one));
    // They move once a step, by the mean of the moves.
    assert!(running != running_of_one && difference(&running, &running_of_one) < 0.2);
}

#[test]
fn an_evaluation_that_is_shared_out_finds_what_one_process_finds() {
    let scene = Scene::new();
    // Norms that learn nothing: then all is the same to the bit.
    let changes = set(&["train.threads=1", "data.workers=1", "freeze_norms=true", "model.test.score=0"]);
    let args = |out: &str| scene.train(out, &[&changes[..], &["--epochs", "2"]].concat());
    train("train_det", &[args("two"), processes("2").into()].concat());
    train("train_det", &args("one"));
    let (one, two) = (scene.path("one"), scene.path("two"));
    assert_eq!(log(&two), log(&one));
    assert_eq!(log(&two).iter().filter(|line| line.get("bbox").is_some()).count(), 2);
    for file in ["checkpoints/best.safetensors", "bbox.json", "metrics.json"] {
        assert!(std::fs::read(two.join(file)).unwrap() == std::fs::read(one.join(file)).unwrap(), "{file} differs");
    }
    assert!(std::fs::read_to_string(two.join("bbox.json")).unwrap().matches("image_id").count() > 100);
}

#[test]
fn four_processes_learn_what_one_does_up_to_rounding() {
    let scene = Scene::new();
    let changes = set(&[
        "train.eval_every=0",
        "train.threads=1",
        "data.workers=1",
        "freeze_norms=true",
        "micro_batch=1",
        "warmup_iters=0",
        "every_iters=null",
    ]);
    let args = |out: &str| scene.train(out, &[&changes[..], &["--epochs", "3", "--max-iters", "8"]].concat());
    train("train_det", &[args("four"), processes("4").into()].concat());
    train("train_det", &args("one"));
    let [[four, _], [one, _]] = ["four", "one"].map(|run| learned_and_running(&scene.path(run)));
    let difference = difference(&four, &one);
    assert!(difference < 1e-5, "{difference}");
    let many = [scene.train("many", &set(&["micro_batch=2"])), processes("4").into()].concat();
    let output = command("train_det", &strs(&many)).output().unwrap();
    let message = text(&output.stderr);
    assert!(!output.status.success() && message.contains("4 processes have 2 micro batches"), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
}

/// The folders of three classes, and a classifier that trains in moments on every part of the recipe.
fn classes(folder: &Path) {
    for (class, base) in [("bright", 200u32), ("dark", 20)] {
        for (split, count) in [("train", 12), ("val", 3)] {
            let folder = folder.join("data").join(split).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let image = RgbImage::from_fn(30 + i, 36 - i, |x, y| {
                    Rgb([base + x % 7, base + y % (i + 2), base + i].map(|v| v as u8))
                });
                image.save(folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
    let config = r#"{
      "model": { "backbone": { "name": "pvig_ti", "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1],
                                "image_size": 64, "drop_path": 0.3 } },
      "data": { "size": 32, "repeats": 3, "repeat_round": 4, "workers": 1 },
      "train": { "batch_size": 8, "micro_batch": 4, "epochs": 7, "max_iters": 20, "lr": 0.004, "warmup_epochs": 1,
                 "lr_every": "step", "ema": 0.9, "clip_norm": 5.0, "seed": 5, "threads": 1, "eval_every": 0 } }"#;
    std::fs::write(folder.join("tiny.json"), config).unwrap();
}

#[test]
fn two_processes_train_a_classifier_as_one_does_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    classes(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let args = |out: &str| -> Vec<String> {
        let args = ["pvig_ti", "--config", &path("tiny.json"), "--data", &path("data"), "--out", &path(out)];
        args.iter().chain(&["--device", "cpu"]).map(|s| s.to_string()).collect()
    };
    train("train_cls", &[args("two"), processes("2").into()].concat());
    train("train_cls", &args("one"));
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    assert_eq!(log(&two).len(), 20);
    assert_eq!(log(&two), log(&one));
    let ([one, _], [two, _]) = (learned_and_running(&one), learned_and_running(&two));
    assert!(two == one, "the largest difference is {}", difference(&two, &one));
}

/// The processes that another one started, in the order of their ranks.
fn children(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let of = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        let rank = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let rank = text(&rank).split('\0').find_map(|v| v.strip_prefix("RANK=")?.parse::<usize>().ok());
        if let (true, Some(rank)) = (of == Some(parent), rank) {
            found.push((rank, id));
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(_, id)| id).collect()
}

fn end(child: Child, since: Instant) -> Output {
    let output = child.wait_with_output().unwrap();
    assert!(since.elapsed() < END, "it took {:?} to end", since.elapsed());
    output
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn a_killed_process_ends_all_and_the_run_goes_on_with_as_many_or_with_one() {
    let scene = Scene::new();
    let changes = set(&["train.threads=1", "data.workers=1"]);
    let args = |out: &str| scene.train(out, &[&changes[..], &["--epochs", "5"]].concat());
    let two = |out: &str| [args(out), processes("2").into()].concat();
    train("train_det", &two("whole"));

    let mut child = command("train_det", &strs(&two("killed"))).spawn().unwrap();
    wait_for_steps(&mut child, &scene.path("killed"), 5);
    let victim = children(child.id())[1];
    assert!(Command::new("kill").args(["-KILL", &victim.to_string()]).status().unwrap().success());
    let output = end(child, Instant::now());
    let message = text(&output.stderr);
    assert!(!output.status.success() && message.contains("rank 1 on ") && message.contains("signal 9"), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert!(log(&scene.path("killed")).len() < 20, "it was killed too late to tell anything");
    copy(&scene.path("killed"), &scene.path("alone"));

    train("train_det", &[two("killed"), vec!["--resume".into()]].concat());
    let (whole, killed) = (scene.path("whole"), scene.path("killed"));
    assert_eq!(log(&killed), log(&whole));
    for file in ["checkpoints/last.safetensors", "checkpoints/best.safetensors", "bbox.json", "metrics.json"] {
        assert!(
            std::fs::read(killed.join(file)).unwrap() == std::fs::read(whole.join(file)).unwrap(),
            "{file} differs"
        );
    }
    train("train_det", &[args("alone"), vec!["--resume".into()]].concat());
    let [[alone, _], [whole, _]] = ["alone", "whole"].map(|run| learned_and_running(&scene.path(run)));
    assert!(alone == whole, "the largest difference is {}", difference(&alone, &whole));
}

/// Two ranks as torchrun would start them, each with arguments of its own.
fn two_ranks(args: [Vec<String>; 2]) -> [Child; 2] {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    [0, 1].map(|rank| {
        let mut command = command("train_det", &strs(&args[rank]));
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", "2").env("LOCAL_WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port).spawn().unwrap()
    })
}

#[test]
fn who_is_left_ends_and_names_the_one_that_died_and_rank_0_alone_has_written() {
    let scene = Scene::new();
    let changes = set(&["train.threads=1", "data.workers=1", "train.eval_every=0"]);
    let more = [&changes[..], &["--epochs", "1000"]].concat();
    let killed = ["first", "second"].map(|out| {
        let mut ranks = two_ranks([scene.train(out, &more), scene.train("of rank 1", &more)]);
        // There are checkpoints after two.
        wait_for_steps(&mut ranks[0], &scene.path(out), 3);
        ranks
    });
    // Nobody waits for them as their parent would: they watch each other. Rank 0 keeps what they watch by.
    let start = Instant::now();
    for (victim, mut ranks) in killed.into_iter().enumerate() {
        ranks[victim].kill().unwrap();
        let [first, second] = ranks.map(|rank| end(rank, start));
        let left = if victim == 0 { second } else { first };
        let message = text(&left.stderr);
        assert!(!left.status.success() && message.starts_with(&format!("error: rank {victim} on ")), "{message}");
        assert!(message.contains(" is gone: ") && message.trim_end().lines().count() == 1, "{message}");
    }
    assert!(!scene.path("of rank 1").exists());
}

#[test]
fn a_process_with_another_config_or_other_data_is_refused_and_named() {
    let (scene, other) = (Scene::new(), Data::new());
    let file = other.annotations("train");
    let changed = std::fs::read_to_string(&file).unwrap().replacen("\"category_id\":7", "\"category_id\":3", 1);
    std::fs::write(&file, changed).unwrap();
    let refused = |out: &str, more: &[&str]| {
        let start = Instant::now();
        let outputs = two_ranks([scene.train(out, &[]), scene.train(out, more)]).map(|rank| end(rank, start));
        assert!(outputs.iter().all(|output| !output.status.success()));
        let said: String = outputs.iter().map(|output| text(&output.stderr)).collect();
        assert!(said.starts_with("error: rank 1 on ") && said.trim_end().lines().count() == 1, "{said}");
        assert!(!scene.path(out).exists(), "a run that did not start left a folder");
        said
    };
    let said = refused("rate", &["--lr", "0.5"]);
    assert!(said.contains("train.lr is 0.5, not 0.002"), "{said}");
    let root = format!("data.root={}", other.arg());
    let said = refused("data", &["--set", &root]);
    assert!(said.contains("its training data is not rank 0's"), "{said}");
}

#[test]
fn rank_0_whose_folder_cannot_be_made_ends_all_and_alone_says_why() {
    let scene = Scene::new();
    std::fs::write(scene.path("file"), "").unwrap();
    let start = Instant::now();
    let outputs = two_ranks([scene.train("file/run", &[]), scene.train("run", &[])]).map(|rank| end(rank, start));
    assert!(outputs.iter().all(|output| !output.status.success()));
    // It keeps the store: were it gone before the other has heard of it, that one would miss the store.
    let [first, second] = outputs.map(|output| text(&output.stderr));
    assert!(first.starts_with("error: rank 0 on ") && first.contains("file/run"), "{first}");
    assert_eq!((first.trim_end().lines().count(), second.as_str()), (1, ""));
}

#[test]
fn a_loss_that_is_not_finite_ends_all_with_one_line_or_is_skipped_by_all() {
    let scene = Scene::new();
    let more = ["--lr", "1e25", "--set", "clip_norm=null", "--set", "warmup_iters=0", "--set", "threads=1"];
    let skipping = [&more[..], &set(&["on_nan=skip", "skip_most=2", "train.eval_every=0"])].concat();
    let both = [("stop", &more[..], ".png at step 2; "), ("skip", &skipping, "after 2 steps that were skipped")];
    for (out, args, words) in both {
        let args = [scene.train(out, args), processes("2").into()].concat();
        let output = command("train_det", &strs(&args)).output().unwrap();
        let message = text(&output.stderr);
        assert!(!output.status.success() && message.contains("error: rank "), "{message}");
        assert!(message.contains(words) && message.contains(" at step "), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        let last = scene.path(out).join("checkpoints/last.safetensors");
        assert!(vigdet::weights::Checkpoint::open(&last).is_ok());
    }
    let lines = log(&scene.path("skip"));
    assert_eq!(lines.iter().map(|line| line.get("skipped").is_some()).collect::<Vec<_>>(), [false, true, true]);
    assert!(lines[1..].iter().all(|line| line["skipped"].as_str().unwrap().contains(".png")), "{lines:?}");
}
