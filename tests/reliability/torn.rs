//! Checkpoints that were cut off or changed.

use std::path::{Path, PathBuf};

use vigdet::config::{Config, Experiment};
use vigdet::train::detection::Detection;
use vigdet::train::engine::{Engine, Out, TrainOptions};
use vigdet::weights::{previous, Checkpoint};

use crate::common::{read_json, strs, succeed, Scene, TINY};
use crate::{cases, Dice};

/// Cuts a file off, or changes one bit of it.
fn damage(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let at = dice.below(bytes.len());
    match dice.below(2) {
        0 => bytes.truncate(at),
        _ => bytes[at] ^= 1 << dice.below(8),
    }
    bytes
}

fn start(run: &Path, config: &str, changes: &[String], resume: bool) -> Engine<Detection> {
    let options = TrainOptions { resume, ..TrainOptions::new(Out::Named(run.to_path_buf())) };
    Engine::start(Config::from_json_with(config, changes).unwrap(), options).unwrap()
}

/// Takes the run up as `--resume` does. Gives the step that it goes on from.
fn resume(run: &Path) -> u64 {
    let text = std::fs::read_to_string(run.join("config.json")).unwrap();
    drop(start(run, &text, &[], true));
    let starts = read_json(run.join("run.json"));
    starts["starts"].as_array().unwrap().last().unwrap()["from_iter"].as_u64().unwrap()
}

#[test]
fn no_torn_checkpoint_is_loaded_as_if_it_were_whole_and_the_run_goes_on_from_the_one_before() {
    let scene = Scene::new();
    let few = ["--max-iters", "4", "--set", "train.eval_every=0", "--set", "every_iters=1"];
    succeed("train_det", &strs(&scene.train("run", &few)));
    let run = scene.path("run");
    let files: [PathBuf; 2] = ["last.state", "last.safetensors"].map(|name| run.join("checkpoints").join(name));
    let whole = files.clone().map(|path| std::fs::read(path).unwrap());
    let before = files.clone().map(|path| std::fs::read(previous(&path)).unwrap());
    let [now, earlier] = [&files[0], &previous(&files[0])].map(|path| Checkpoint::open(path).unwrap().metadata());
    assert_eq!((now["iter"].as_str(), earlier["iter"].as_str()), ("4", "3"));

    let mut dice = Dice::new(200);
    for case in 0..cases(60, 200) {
        let which = case % 2;
        std::fs::write(&files[which], damage(&whole[which], &mut dice)).unwrap();
        let opened = Checkpoint::open(&files[which]).unwrap();
        assert_eq!(opened.path(), previous(&files[which]), "case {case}");
        drop(opened);
        if case < cases(6, 200) {
            // Of damaged weights alone there is a whole state: they are written anew from it.
            assert_eq!(resume(&run), if which == 0 { 3 } else { 4 }, "case {case}");
            let iter = |path: &Path| Checkpoint::open(path).unwrap().metadata()["iter"].clone();
            assert_eq!(iter(&files[0]), iter(&files[1]), "weights and state are of one step");
        }
        for i in 0..2 {
            std::fs::write(&files[i], &whole[i]).unwrap();
            std::fs::write(previous(&files[i]), &before[i]).unwrap();
        }
    }
}

#[test]
fn a_checkpoint_is_written_where_the_last_one_is_as_old_as_the_config_says() {
    let scene = Scene::new();
    let root = format!("data.root={}", scene.data.arg());
    for (minutes, before) in [("1e-9", "2"), ("1e9", "0"), ("null", "0")] {
        let age = format!("every_minutes={minutes}");
        let rare = ["train.eval_every=0", "every_epochs=0", "every_iters=null", "max_iters=3", &root, &age];
        let run = scene.path(minutes);
        start(&run, TINY, &rare.map(String::from), false).run().unwrap();
        let state = run.join("checkpoints/last.state");
        let iter = |path: &Path| Checkpoint::open(path).unwrap().metadata()["iter"].clone();
        assert_eq!((iter(&state).as_str(), iter(&previous(&state)).as_str()), ("3", before), "{minutes}");
    }
}
