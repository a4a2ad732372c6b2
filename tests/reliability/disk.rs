//! Disks that are full, folders that cannot be written, data that goes away.

use std::process::{Command, Output};

use vigdet::weights::Checkpoint;

use crate::cases;
use crate::common::{fail, log, set, strs, succeed, Scene};

/// A training that may write files of so many blocks of 512 bytes: writing on fails as it does on a full disk.
fn limited(args: &[String], blocks: u64) -> Output {
    // Ignored, the signal of that limit becomes an error of the write, as a full disk is.
    let script = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$0\" train_det \"$@\"");
    Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_vigdet")]).args(args).output().unwrap()
}

#[test]
fn a_disk_that_is_full_at_any_moment_is_one_line_and_costs_nothing_that_was_saved() {
    let scene = Scene::new();
    // A schedule that does not depend on the number of steps.
    let each = set(&["every_iters=1", "train.epochs=2", "train.eval_every=2", "train.schedule=step"]);
    succeed("train_det", &strs(&scene.train("whole", &each)));
    let two = ["--max-iters", "2", "--set", "train.eval_every=0"];
    succeed("train_det", &strs(&scene.train("run", &[&each[..], &two].concat())));
    let run = scene.path("run");
    let state = run.join("checkpoints/last.state");
    let blocks = std::fs::metadata(&state).unwrap().len() / 512;
    let resume = scene.train("run", &[&each[..], &["--resume"]].concat());
    let moments = cases(2, 10) as u64;
    for moment in 0..moments {
        // From the first bytes of a file to its last ones: the log, then the weights, then the state.
        let at = moment * (blocks - 1) / (moments - 1);
        let output = limited(&resume, at);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{at} of {blocks} blocks: {text}");
        let line = text.trim_end().lines().last().unwrap_or_default();
        assert!(line.starts_with("error: ") && line.contains("cannot write"), "{text}");
        assert!(!text.contains("something went wrong inside"), "{text}");
        for name in ["last.state", "last.safetensors"] {
            let path = run.join("checkpoints").join(name);
            assert_eq!(Checkpoint::open(&path).unwrap().path(), path, "{name} is whole at {at} of {blocks} blocks");
        }
        let left: Vec<_> =
            std::fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".writing")), "{left:?}");
    }
    succeed("train_det", &strs(&resume));
    assert_eq!(log(&run), log(&scene.path("whole")));
    let weights = |run: &str| std::fs::read(scene.path(run).join("checkpoints/last.safetensors")).unwrap();
    assert!(weights("run") == weights("whole"), "weights differ");
}

#[test]
fn data_that_is_removed_and_images_that_turn_into_garbage_end_the_run_in_one_line_after_a_checkpoint() {
    let scene = Scene::new();
    let each = set(&["every_iters=1", "train.eval_every=0", "train.epochs=3"]);
    succeed("train_det", &strs(&scene.train("run", &[&each[..], &["--max-iters", "1"]].concat())));
    let images: Vec<_> = std::fs::read_dir(scene.data.root().join("train2017")).unwrap().collect();
    images.iter().for_each(|image| std::fs::write(image.as_ref().unwrap().path(), b"garbage").unwrap());
    let message = fail("train_det", &strs(&scene.train("run", &[&each[..], &["--resume"]].concat())));
    assert!(message.contains("could not be read") && message.contains(".png"), "{message}");
    assert!(Checkpoint::open(&scene.path("run/checkpoints/last.state")).is_ok());
}

#[test]
fn a_step_that_no_memory_is_left_for_names_what_makes_it_smaller() {
    let scene = Scene::new();
    let large = scene.train("run", &set(&["data.size=[2400,3600]", "train.eval_every=0", "batch_size=2", "threads=1"]));
    // In KiB. The process starts and loads a batch; the network's first maps do not fit.
    let script = "ulimit -v 1800000; exec \"$0\" train_det \"$@\"";
    let output = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_vigdet")]).args(&large).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.trim_end().lines().last().unwrap_or_default();
    assert!(line.contains("memory") && line.contains("train.micro_batch") && line.contains("data.size"), "{text}");
}
