//! What a process keeps of the sizes that it has seen. That memory stays flat over thousands of steps,
//! tests/reference/memory_flat.py measures.

use std::collections::HashMap;

use crate::common::{program, set, strs, Scene};

/// How often oneDNN made each of the convolutions of a run whose sizes come and go, with these variables set; and how
/// many of its ways to compute one were passed over while libtorch described a convolution to it.
fn made(scene: &Scene, out: &str, variables: &[(&str, &str)]) -> (HashMap<String, usize>, usize) {
    let sizes = [
        "data.scale=[0.5,4]",
        "scale_per=batch",
        "mosaic=0",
        "affine.probability=0",
        "eval_every=0",
        "every_iters=null",
    ];
    let args = scene.train(out, &[&set(&sizes)[..], &["--max-iters", "30"]].concat());
    let mut command = program("train_det", &strs(&args));
    let output =
        command.env("ONEDNN_VERBOSE", "profile_create,dispatch").envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    let mut made = HashMap::new();
    for line in said.lines().filter(|line| line.contains("create:cache_miss")) {
        // Its last field is the time.
        let (what, _) = line.rsplit_once(',').unwrap();
        *made.entry(what.to_string()).or_default() += 1;
    }
    (made, said.lines().filter(|line| line.contains("create:dispatch,convolution")).count())
}

#[test]
fn of_many_sizes_only_the_last_ones_are_kept_ready_unless_the_user_says_otherwise() {
    let scene = Scene::new();
    let (few, passed_over) = made(&scene, "few", &[]);
    assert!(few.len() > 400, "{} convolutions are too few to tell", few.len());
    assert!(few.values().any(|times| *times > 1), "all {} are kept", few.len());
    let (all, _) = made(&scene, "all", &[("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "100000")]);
    assert!(all.values().all(|times| *times == 1) && all.len() == few.len(), "{} and {}", all.len(), few.len());
    let (_, least) = made(&scene, "described", &[("LRU_CACHE_CAPACITY", "100000")]);
    assert!(0 < least && least < passed_over, "all descriptions are kept: {least} and {passed_over}");
}
