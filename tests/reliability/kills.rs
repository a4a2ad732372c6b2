//! Runs that are killed at random moments and resumed.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Instant;

use image::{Rgb, RgbImage};

use crate::common::{log, program, run, set, Data, TINY};
use crate::{cases, Dice};

/// A run that can be started and compared.
struct Kind {
    command: &'static str,
    /// Arguments but for `--out`.
    args: Vec<String>,
    /// What must be equal to the byte beside the log.
    files: &'static [&'static str],
    steps: usize,
}

impl Kind {
    fn args(&self, out: &Path, resume: bool) -> Vec<String> {
        let mut args = self.args.clone();
        args.extend(["--out".to_string(), out.display().to_string()]);
        args.extend(resume.then(|| "--resume".to_string()));
        args
    }

    fn start(&self, out: &Path, resume: bool) -> Child {
        let args = self.args(out, resume);
        let args: Vec<&str> = [self.command].into_iter().chain(args.iter().map(String::as_str)).collect();
        program("vigdet", &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn finish(&self, out: &Path, resume: bool) {
        let args = self.args(out, resume);
        let args: Vec<&str> = [self.command].into_iter().chain(args.iter().map(String::as_str)).collect();
        let output = run("vigdet", &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A detector with every augmentation, scales drawn for batches, batches of like aspect, an average and replicas.
fn detector(data: &Data, folder: &Path) -> Kind {
    let config = folder.join("tiny.json");
    std::fs::write(&config, TINY).unwrap();
    let more = set(&[
        "crop.probability=0.5",
        "rotate=0.5",
        "flip_vertical=0.5",
        "scale_per=batch",
        "group_by_aspect=true",
        "train.replicas=2",
        "train.epochs=3",
        "skip_most=3",
        "on_nan=skip",
    ]);
    let (config, root) = (config.display().to_string(), data.arg().to_string());
    let args = ["retinanet", "--config", &config, "--data", &root, "--device", "cpu"];
    let args = args.iter().chain(&more).map(|s| s.to_string()).collect();
    let files = &["checkpoints/last.safetensors", "checkpoints/best.safetensors", "bbox.json", "metrics.json"];
    Kind { command: "train_det", args, files, steps: 9 }
}

const CLASSIFIER: &str = r#"{
  "model": { "backbone": { "name": "pvig_ti", "channels": [8, 8, 16, 16], "blocks": [1, 1, 1, 1], "image_size": 64,
                            "drop_path": 0.3 } },
  "data": { "size": 32, "repeats": 3, "repeat_round": 4, "workers": 2, "color_jitter": 0.4, "force_color_jitter": true,
            "erase": { "probability": 0.5 }, "mixup": 0.8, "cutmix": 1.0 },
  "train": { "batch_size": 8, "micro_batch": 4, "epochs": 4, "lr": 0.004, "warmup_epochs": 1, "lr_every": "step",
             "label_smoothing": 0.1, "ema": 0.9, "clip_norm": 5.0, "seed": 5, "threads": 2 },
  "checkpoint": { "every_iters": 2, "keep": 2 } }"#;

/// A classifier with repeated augmentation, RandAugment, colours, erasing, mixup and cutmix.
fn classifier(folder: &Path) -> Kind {
    let (config, root) = (folder.join("classifier.json"), folder.join("classes"));
    std::fs::write(&config, CLASSIFIER).unwrap();
    for (split, count) in [("train", 8), ("val", 3)] {
        for (class, base) in [("bright", 200), ("dark", 20)] {
            let folder = root.join(split).join(class);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let mut dice = Dice::new(i + base);
                let image = RgbImage::from_fn(30, 34, |_, _| Rgb([(); 3].map(|()| base as u8 + dice.below(40) as u8)));
                image.save(folder.join(format!("{i}.png"))).unwrap();
            }
        }
    }
    let (config, root) = (config.display().to_string(), root.display().to_string());
    let args = ["pvig_ti", "--config", &config, "--data", &root, "--device", "cpu"];
    let args = args.iter().map(|s| s.to_string()).collect();
    let files = &["checkpoints/last.safetensors", "checkpoints/best.safetensors", "metrics.json"];
    // 16 images, of each three views, of which as many are drawn as there are images: two steps an epoch.
    Kind { command: "train_cls", args, files, steps: 8 }
}

/// Kills a run at random moments, between the start of the process and its end, until `kills` are done. Each time
/// that it gets to its end it is compared, and begins anew.
fn kill_and_compare(kind: &Kind, folder: &Path, kills: usize, dice: &mut Dice) {
    let whole = folder.join("whole");
    let begin = Instant::now();
    kind.finish(&whole, false);
    let duration = begin.elapsed();
    assert_eq!(log(&whole).iter().filter(|line| line.get("loss").is_some()).count(), kind.steps);
    let (mut done, mut number) = (0, 0);
    while done < kills {
        number += 1;
        let out = folder.join(format!("killed{number}"));
        let mut here = 0;
        loop {
            let resume = out.join("config.json").exists();
            // At most five kills in one run, so that each comes to an end.
            if here == 5 || done == kills {
                kind.finish(&out, resume);
                break;
            }
            let mut child = kind.start(&out, resume);
            std::thread::sleep(duration.mul_f64(dice.below(1000) as f64 / 1000.0));
            let ended = child.try_wait().unwrap().is_some();
            let _ = child.kill();
            child.wait().unwrap();
            if ended {
                break;
            }
            (here, done) = (here + 1, done + 1);
        }
        compare(kind, &out, &whole);
        std::fs::remove_dir_all(&out).unwrap();
    }
}

fn compare(kind: &Kind, out: &Path, whole: &Path) {
    assert_eq!(log(out), log(whole));
    for file in kind.files {
        let read = |run: &Path| -> Vec<u8> { std::fs::read(run.join(file)).unwrap() };
        assert!(read(out) == read(whole), "{file} differs");
    }
}

#[test]
fn runs_that_are_killed_at_random_moments_end_as_the_uninterrupted_ones_to_the_bit() {
    let (data, folder) = (Data::new(), tempfile::tempdir().unwrap());
    let folders: [PathBuf; 2] = ["detector", "classifier"].map(|name| folder.path().join(name));
    folders.iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    let mut dice = Dice::new(25);
    let kills = cases(1, 25);
    kill_and_compare(&detector(&data, &folders[0]), &folders[0], kills, &mut dice);
    kill_and_compare(&classifier(&folders[1]), &folders[1], kills, &mut dice);
}
