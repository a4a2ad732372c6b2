//! Signals: what is asked of a run, and what it leaves.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vigdet::weights::Checkpoint;

use crate::common::{log, program, set, strs, succeed, wait_for_steps, Scene};

fn send(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// The step that a run's state is of, and that its newest weights are of.
fn saved(run: &Path) -> [String; 2] {
    ["last.state", "last.safetensors"].map(|name| {
        let path = run.join("checkpoints").join(name);
        let file = Checkpoint::open(&path).unwrap();
        assert_eq!(file.path(), path, "the file itself, not the one before it");
        file.metadata()["iter"].clone()
    })
}

fn start(args: &[String]) -> Child {
    program("train_det", &strs(args)).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn said(child: &mut Child) -> String {
    std::io::read_to_string(child.stderr.take().unwrap()).unwrap()
}

/// No checkpoints but those that are asked for.
const RARE: [&str; 5] =
    ["train.eval_every=0", "every_epochs=0", "every_iters=null", "train.epochs=200", "train.schedule=step"];

#[test]
fn sigusr1_saves_and_goes_on_and_sigterm_saves_and_ends() {
    let scene = Scene::new();
    let args = scene.train("run", &set(&RARE));
    let run = scene.path("run");
    let mut child = start(&args);
    wait_for_steps(&mut child, &run, 2);
    send(&child, "USR1");
    let begin = Instant::now();
    while saved(&run)[0] == "0" {
        assert!(begin.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "nothing is saved");
        std::thread::sleep(Duration::from_millis(5));
    }
    let at: usize = saved(&run)[0].parse().unwrap();
    wait_for_steps(&mut child, &run, at + 2);
    send(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let done = log(&run).len().to_string();
    assert_eq!(saved(&run), [done.clone(), done], "the step at hand is finished and saved, once for both files");
}

#[test]
fn sigterm_without_time_for_the_step_saves_the_step_before_it() {
    let scene = Scene::new();
    // Ten images in five parts: a step takes a second or more.
    let slow = ["data.size=[240,360]", "batch_size=10", "grace_seconds=0", "train.max_iters=2"];
    let slow = set(&[&RARE[..], &slow].concat());
    let run = scene.path("run");
    let mut child = start(&scene.train("run", &slow));
    wait_for_steps(&mut child, &run, 1);
    // The loader and the first parts of the second step.
    std::thread::sleep(Duration::from_millis(20));
    send(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let text = said(&mut child);
    assert!(text.contains("no time for the step at hand: step 1 is saved"), "{text}");
    assert_eq!(saved(&run), ["1", "1"]);
    succeed("train_det", &strs(&scene.train("run", &[&slow[..], &["--resume"]].concat())));
    succeed("train_det", &strs(&scene.train("whole", &slow)));
    assert_eq!(log(&run), log(&scene.path("whole")));
    let weights = |run: &str| std::fs::read(scene.path(run).join("checkpoints/last.safetensors")).unwrap();
    assert!(weights("run") == weights("whole"), "weights differ");
}

#[test]
fn a_second_request_ends_the_run_at_once_and_what_was_saved_stands() {
    let scene = Scene::new();
    let slow = set(&[&RARE[..], &["data.size=[400,600]", "batch_size=10"]].concat());
    let run = scene.path("run");
    let mut child = start(&scene.train("run", &slow));
    wait_for_steps(&mut child, &run, 1);
    std::thread::sleep(Duration::from_millis(20));
    send(&child, "INT");
    // Signals of one kind that come together may count once.
    std::thread::sleep(Duration::from_millis(100));
    send(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(saved(&run), ["0", "0"], "the checkpoint from before the first step");
    assert_eq!(log(&run).len(), 1, "the second step is not finished");
}
