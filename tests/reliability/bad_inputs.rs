//! Inputs that cannot be used, over all commands: each gives one line that names the file or the value, and nothing is
//! written but below the command's own `--out`.
//!
//! The commands run in this process; a thorough run starts each as users do too, and looks at its exit status.

use std::collections::BTreeSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::{json, Value};
use tch::Tensor;
use vigdet::cli::one_line;
use vigdet::commands::Vigdet;
use vigdet::weights::{write_tensors, Metadata};

use crate::common::{read_json, run, strs, succeed, Scene};
use crate::is_thorough;

/// A folder of bad files, and the good ones beside them.
struct Files {
    scene: Scene,
    /// Weights of a detector, and of a classifier.
    weights: [String; 2],
}

/// A command line, and what its message must have.
struct Case {
    args: Vec<String>,
    expected: Vec<String>,
}

fn case(args: &[&str], expected: &[&str]) -> Case {
    let owned = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
    Case { args: owned(args), expected: owned(expected) }
}

impl Files {
    fn new() -> Self {
        let scene = Scene::new();
        succeed("train_det", &strs(&scene.train("good", &["--max-iters", "1", "--set", "eval_every=0"])));
        let detector = scene.path("good/checkpoints/last.safetensors").display().to_string();
        let classifier = scene.path("classifier.safetensors").display().to_string();
        let small = ["--set", "backbone.channels=[8,8,16,16]", "--set", "backbone.blocks=[1,1,1,1]"];
        let image = scene.data.root().join("val2017/000.png").display().to_string();
        let out = scene.path("features.safetensors").display().to_string();
        let args = ["pvig_ti", "--input", &image, "--out", &out, "--save", &classifier, "--size", "64,64"];
        succeed("extract_features", &[&args[..], &small].concat());
        Self { scene, weights: [detector, classifier] }
    }

    fn path(&self, name: &str) -> String {
        self.scene.path(name).display().to_string()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.scene.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Files of weights that no command may take: (file, what is said of it).
    fn bad_weights(&self) -> Vec<(String, &'static str)> {
        let good = std::fs::read(&self.weights[0]).unwrap();
        let mut changed = good.clone();
        changed[good.len() / 2] ^= 1;
        let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let fixture = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name);
            std::fs::read(path).unwrap()
        };
        let nan = self.path("nan.safetensors");
        let tensors = vec![("backbone.body.stem.bias".to_string(), Tensor::from_slice(&[f32::NAN]))];
        write_tensors(&tensors, Path::new(&nan), &Metadata::new()).unwrap();
        std::fs::create_dir_all(self.scene.path("folder.safetensors")).unwrap();
        vec![
            (self.path("none.safetensors"), "no such file"),
            (self.path("folder.safetensors"), "it is a folder"),
            (self.write("empty.safetensors", ""), "cut off"),
            (self.write("text.safetensors", "hello, world, this is text"), "cut off, or of another format"),
            (self.write("cut.safetensors", &good[..good.len() / 2]), "cut off"),
            (self.write("changed.safetensors", changed), "it is damaged"),
            (self.write("huge.safetensors", [&[0xff; 8][..], b"{}"].concat()), "cut off, or of another format"),
            (self.write("large.safetensors", header(&"[".repeat(5000))), "cut off, or of another format"),
            (
                self.write(
                    "claims.safetensors",
                    header(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#),
                ),
                "cut off, or of another format",
            ),
            (self.write("zip.pth", b"PK\x03\x04 and no more"), "not a whole PyTorch file"),
            (self.write("code.pth", fixture("code.pth")), "pickle"),
            (self.write("code.pkl", fixture("code.pkl")), "pickle"),
            (self.write("script.pt", fixture("script.pt")), "TorchScript"),
        ]
    }

    fn weights_cases(&self) -> Vec<Case> {
        let image = self.scene.data.root().join("val2017/000.png").display().to_string();
        let (data, config, out) = (self.scene.data.arg(), self.path("tiny.json"), self.path("out"));
        let mut cases = Vec::new();
        for (file, said) in self.bad_weights() {
            let name = Path::new(&file).file_name().unwrap().to_str().unwrap().to_string();
            let all = [
                vec!["detect", &image, "--weights", &file, "--out", &out],
                vec!["test_det", "--weights", &file, "--data", data, "--out", &out],
                vec!["train_det", "retinanet", "--weights", &file, "--config", &config, "--data", data, "--out", &out],
                vec!["classify", &image, "--weights", &file],
                vec!["test_cls", "pvig_ti", "--weights", &file, "--data", data, "--out", &out],
                vec!["extract_features", "pvig_ti", "--input", &image, "--weights", &file, "--out", &out],
                vec!["plot_graph", "pvig_ti", "--image", &image, "--weights", &file, "--out", &out],
                vec!["replay", &file],
            ];
            cases.extend(all.iter().map(|args| case(args, &[&name, said])));
        }
        cases
    }

    fn image_cases(&self) -> Vec<Case> {
        let good = std::fs::read(self.scene.data.root().join("val2017/000.png")).unwrap();
        // The header claims more pixels than there may be; its checksum is right.
        let mut claims = good.clone();
        claims[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        let crc = png_crc(&claims[12..29]);
        claims[29..33].copy_from_slice(&crc.to_be_bytes());
        std::fs::create_dir_all(self.scene.path("images/none")).unwrap();
        let images = [
            (self.path("images/missing.png"), "missing.png"),
            (self.write("images/empty.png", ""), "empty.png"),
            (self.write("images/text.png", "not an image"), "text.png"),
            (self.write("images/cut.png", &good[..good.len() / 2]), "cut.png"),
            (self.write("images/claims.png", claims), "claims.png"),
            (self.write("images/end.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF"), "end.jpg"),
        ];
        let (out, [detector, classifier]) = (self.path("out"), &self.weights);
        let small = ["--set", "backbone.channels=[8,8,16,16]", "--set", "backbone.blocks=[1,1,1,1]"];
        let mut cases = Vec::new();
        for (file, name) in &images {
            let all = [
                vec!["detect", file, "--weights", detector, "--out", &out],
                [&["classify", file, "--weights", classifier, "--model", "pvig_ti"][..], &small].concat(),
                [&["extract_features", "pvig_ti", "--input", file, "--out", &out][..], &small].concat(),
                [&["plot_graph", "pvig_ti", "--image", file, "--out", &out][..], &small].concat(),
            ];
            cases.extend(all.iter().map(|args| case(args, &[name])));
        }
        // Its central crop would be cut from 224 × 13,440,000 pixels.
        let wide = self.path("images/wide.png");
        image::RgbImage::new(60_000, 1).save(&wide).unwrap();
        let args = ["classify", &wide, "--weights", classifier, "--model", "pvig_ti", "--set", "data.size=224"];
        cases.push(case(&[&args[..], &small].concat(), &["wide.png", "central crop"]));
        let none = self.path("images/none");
        cases.push(case(&["detect", &none, "--weights", detector, "--out", &out], &["images/none"]));
        cases
    }

    fn config_cases(&self) -> Vec<Case> {
        let deep = format!("{}{}", "{\"model\":".repeat(4000), "}".repeat(4000));
        let configs = [
            (self.path("none.json"), "none.json", "there is no config"),
            (self.write("empty.json", ""), "empty.json", "is not JSON"),
            (self.write("cut.json", "{\"train\": "), "cut.json", "is not JSON"),
            (self.write("list.json", "[1]"), "list.json", "must be a JSON object"),
            (self.write("deep.json", deep), "deep.json", "recursion limit"),
            (self.write("key.json", "{\"trian\": {}}"), "key.json", "`train`"),
            (self.write("type.json", "{\"train\": {\"lr\": \"fast\"}}"), "type.json", "train.lr"),
            (self.write("minus.json", "{\"train\": {\"batch_size\": -1}}"), "minus.json", "train.batch_size"),
            (self.write("large.json", "{\"train\": {\"lr\": 1e999}}"), "large.json", "number out of range"),
            (self.write("utf8.json", b"{\"task\": \"\xff\"}"), "utf8.json", "UTF-8"),
            (self.write("task.json", "{\"task\": \"dance\"}"), "task.json", "task must be"),
        ];
        let (data, out) = (self.scene.data.arg(), self.path("out"));
        let image = self.scene.data.root().join("val2017/000.png").display().to_string();
        let mut cases = Vec::new();
        for (file, name, said) in &configs {
            for args in [
                vec!["train_det", "retinanet", "--config", file, "--data", data, "--out", &out],
                vec!["train_cls", "pvig_ti", "--config", file, "--data", data, "--out", &out],
                vec!["test_det", "--weights", &self.weights[0], "--config", file, "--out", &out],
                vec!["preview", data, "--config", file, "--out", &out],
            ] {
                // It is a command of `dataset`.
                let args: Vec<&str> =
                    if args[0] == "preview" { [&["dataset", "preview"][..], &args[1..]].concat() } else { args };
                cases.push(case(&args, &[name, said]));
            }
        }
        let train = |change: &str, key: &str| {
            let args = ["train_det", "retinanet", "--data", data, "--out", &out, "--set", change];
            case(&args, &[key])
        };
        cases.extend([
            train("train.grace_seconds=-1", "train.grace_seconds"),
            train("train.on_nan=pray", "train.on_nan"),
            train("train.skip_most=-1", "train.skip_most"),
            train("checkpoint.every_minutes=0", "checkpoint.every_minutes"),
            train("data.size=[1,4294967295]", "data.size"),
            train("data.workers=1000000", "data.workers"),
            train("model.head.channels=0", "model.head.channels"),
            train("model.head.convs=1000000000000", "model.head.convs"),
            train("model.anchors.octaves=1000000000000", "model.anchors.octaves"),
            train("model.backbone.image_size=1000000000000", "model.backbone.image_size"),
            train("model.backbone.blocks=[2,2,6,1000000000000]", "model.backbone.blocks"),
            train("model.anchors.base=1e300", "model.anchors.base"),
            train("data.std=[1e-45,1,1]", "data.std"),
            train("train.batch_size=1000000000000", "train.batch_size"),
            train("model.outputs=9223372036854775807", "model.outputs"),
            train("lr", "key.path=value"),
            case(&["replay", &self.weights[0], "--threads", "0"], &["--threads"]),
            case(&["model_stats", "retinanet", "--classes", "9223372036854775807"], &["--classes"]),
            case(&["dataset", "stats", data, "--octaves", "1000000000"], &["--octaves"]),
            case(&["dataset", "split", data, "--out", &out, "--fractions", "a=1e308,b=1e308"], &["fractions", "sum"]),
            case(
                &["dataset", "split", data, "--out", &out, "--fractions", "a=1,b=1", "--group", "column:no.csv:x"],
                &["--group", "no.csv", "No such file"],
            ),
            case(&["train_det", "yolo", "--data", data, "--out", &out], &["`yolo`"]),
            case(&["train_cls", "vgg", "--data", data, "--out", &out], &["`vgg`"]),
            case(&["extract_features", "vgg", "--input", &image, "--out", &out], &["`vgg`"]),
            case(&["model_stats", "vgg"], &["vgg"]),
            case(&["model_stats", "pvig_ti", "--size", "0,224"], &["--size"]),
            case(&["model_stats", "pvig_ti", "--classes=-1"], &["--classes"]),
            case(&["detect", &image, "--weights", &self.weights[0], "--device", "cuda:99"], &["cuda:99"]),
            case(&["shapes", "--side", "8", "--out", &out], &["64 to 8192"]),
            case(&["shapes", "--images", "0", "--out", &out], &["images in each split"]),
            case(&["plot_run", &self.path("nowhere")], &["nowhere"]),
            case(&["plot_run", &self.path("nowhere"), "--score", "nan"], &["--score"]),
            case(&["export", "--weights", &self.weights[0], "--model", "pvig_ti", "--out", &out], &["--model"]),
            case(&["weights", "get", "no_such_name"], &["no_such_name"]),
            case(&["nonsense"], &["nonsense"]),
        ]);
        for backbone in ["poolformer_s12", "cyclemlp_b1"] {
            let args = ["extract_features", backbone, "--input", &image, "--out", &out, "--size", "2,64"];
            cases.push(case(&args, &["2×64 pixels is too small"]));
        }
        let log = self.write("run of text/log.jsonl", "hello\nworld\n");
        cases.push(case(&["plot_run", Path::new(&log).parent().unwrap().to_str().unwrap()], &["log.jsonl", "line 1"]));
        cases
    }

    /// Data sets in COCO's layout whose annotation file was changed.
    fn annotation_cases(&self) -> Vec<Case> {
        let good = read_json(self.scene.data.annotations("train"));
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut file = good.clone();
            change(&mut file);
            file.to_string()
        };
        let mut twice = good.clone();
        twice["images"][1]["id"] = twice["images"][0]["id"].clone();
        let outside = self.scene.path("secret.png");
        std::fs::copy(self.scene.data.root().join("val2017/000.png"), &outside).unwrap();
        let files: Vec<(&str, String, &str)> = vec![
            ("cut", good.to_string()[..200].to_string(), "instances_train2017.json"),
            ("number", "7".into(), "instances_train2017.json"),
            ("deep", format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), "instances_train2017.json"),
            ("twice", twice.to_string(), "100"),
            ("no_image", changed(&|a| a["annotations"][0]["image_id"] = json!(7)), "image 7"),
            ("no_class", changed(&|a| a["annotations"][3]["category_id"] = json!(99)), "99"),
            ("short_box", changed(&|a| a["annotations"][3]["bbox"] = json!([1, 2])), "bbox"),
            ("text_box", changed(&|a| a["annotations"][3]["bbox"] = json!("1,2,3,4")), "bbox"),
            ("up", changed(&|a| a["images"][2]["file_name"] = json!("../../secret.png")), "secret.png"),
            ("absolute", changed(&|a| a["images"][2]["file_name"] = json!(outside)), "leaves the image folder"),
            ("backslash", changed(&|a| a["images"][2]["file_name"] = json!("..\\..\\secret.png")), "leaves the image"),
            ("no_classes", changed(&|a| a["categories"] = json!([])), "categor"),
            ("nothing", changed(&|a| a["annotations"] = json!([])), "no image is left to train on"),
        ];
        let mut cases = Vec::new();
        for (name, text, said) in files {
            let root = format!("sets/{name}");
            let annotations = self.write(&format!("{root}/annotations/instances_train2017.json"), text);
            let root = PathBuf::from(annotations).parent().unwrap().parent().unwrap().to_path_buf();
            for split in ["train2017", "val2017"] {
                std::os::unix::fs::symlink(self.scene.data.root().join(split), root.join(split)).unwrap();
            }
            let (root, config, out) = (root.display().to_string(), self.path("tiny.json"), self.path("out"));
            let args = ["train_det", "retinanet", "--config", &config, "--data", &root, "--out", &out];
            cases.push(case(&args, &[said]));
            cases.push(case(&["dataset", "preview", &root, "--out", &out], &[said]));
        }
        // A link out of the folder, where the config forbids it.
        let root = self.scene.path("sets/link");
        std::fs::create_dir_all(root.join("annotations")).unwrap();
        std::fs::create_dir_all(root.join("train2017")).unwrap();
        std::fs::write(root.join("annotations/instances_train2017.json"), good.to_string()).unwrap();
        for image in good["images"].as_array().unwrap() {
            let name = image["file_name"].as_str().unwrap();
            let from = self.scene.data.root().join("train2017").join(name);
            if name == "004.png" {
                std::os::unix::fs::symlink(&outside, root.join("train2017").join(name)).unwrap();
            } else {
                std::fs::copy(from, root.join("train2017").join(name)).unwrap();
            }
        }
        let (root, config, out) = (root.display().to_string(), self.path("tiny.json"), self.path("out"));
        let args = ["train_det", "retinanet", "--config", &config, "--data", &root, "--out", &out];
        let strangers = ["--set", "data.links=false", "--set", "train.eval_every=0"];
        cases.push(case(&[&args[..], &strangers].concat(), &["004.png is a link out of"]));
        cases
    }

    /// Labelled images in other layouts.
    fn layout_cases(&self) -> Vec<Case> {
        let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbbbbbbbb\">".to_string()
            + &(0..9).map(|i| format!("<!ENTITY c{i} \"{}\">", "&b;".repeat(10))).collect::<String>()
            + "]><annotation><filename>&c1;</filename></annotation>";
        let deep = format!("<annotation>{}", "<a>".repeat(100_000));
        let yaml_bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b]\n\
                         names: [*c,*c,*c,*c,*c,*c,*c,*c]\ntrain: images\n";
        let tasks = "[{\"id\": 1, \"data\": {\"image\": \"a.png\"}, \"annotations\": [";
        let files: [(&str, &str, String); 9] = [
            ("voc", "Annotations/a.xml", "<annotation><object>".into()),
            ("voc_bomb", "Annotations/a.xml", bomb),
            ("voc_deep", "Annotations/a.xml", deep),
            ("cvat", "annotations.xml", "<annotations><image id=\"0\"".into()),
            ("labelme", "a.json", "{\"version\": \"5\", \"shapes\": [".into()),
            ("label_studio", "project.json", tasks.into()),
            ("yolo", "data.yaml", "names: [a\ntrain: images".into()),
            ("yolo_bomb", "data.yaml", yaml_bomb.into()),
            ("csv", "labels.csv", "image,class,xmin\na.png,nut,1\n".into()),
        ];
        let mut cases = Vec::new();
        for (name, file, text) in files {
            let path = PathBuf::from(self.write(&format!("layouts/{name}/{file}"), text));
            let root = self.path(&format!("layouts/{name}"));
            let named = path.file_name().unwrap().to_str().unwrap();
            // Some layouts tell of a file that cannot be read and go on with the others: here there is none.
            let tells = name.starts_with("voc") || name == "labelme";
            let named = if name.starts_with("voc") || name == "csv" { name } else { named };
            let out = self.path("out");
            for command in [vec!["import"], vec!["check"], vec!["stats"], vec!["export", "--to", "yolo"]] {
                let mut args = [&["dataset"][..], &command, &[root.as_str()]].concat();
                if command[0] == "check" && tells {
                    continue;
                }
                if command[0] == "export" {
                    args.extend(["--out", &out]);
                }
                cases.push(case(&args, &[named]));
            }
        }
        for nothing in ["layouts/nothing here", "images/none"] {
            let root = self.path(nothing);
            cases.push(case(&["dataset", "import", &root], &[nothing]));
        }
        cases
    }
}

/// PNG's checksum of a chunk's kind and content (CRC-32, reflected).
fn png_crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// Everything below a folder, with its length.
fn listing(folder: &Path) -> BTreeSet<(PathBuf, u64)> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let (path, data) = (entry.path(), entry.path().symlink_metadata().unwrap());
            if data.is_dir() {
                open.push(path.clone());
            }
            found.insert((path, if data.is_file() { data.len() } else { 0 }));
        }
    }
    found
}

/// The message of a command that must fail.
fn message(args: &[String]) -> Result<String, String> {
    let args = ["vigdet"].into_iter().chain(args.iter().map(String::as_str));
    let outcome = catch_unwind(AssertUnwindSafe(|| match Vigdet::try_parse_from(args) {
        Ok(command) => command.run().map(drop).map_err(|error| format!("{error:#}")),
        Err(error) => Err(error.to_string()),
    }));
    match outcome {
        Ok(Err(text)) => Ok(one_line(&text)),
        Ok(Ok(())) => Err("it succeeds".into()),
        Err(_) => Err("it panics".into()),
    }
}

#[test]
fn bad_inputs_of_all_commands_give_one_line_that_names_them_and_write_nothing() {
    let files = Files::new();
    let mut all = files.weights_cases();
    all.extend(files.image_cases());
    all.extend(files.config_cases());
    all.extend(files.annotation_cases());
    all.extend(files.layout_cases());
    assert!(all.len() >= 100, "{}", all.len());
    let folder = files.scene.path("");
    let out = files.scene.path("out");
    let runs = Path::new("runs").exists();
    let mut wrong = Vec::new();
    for Case { args, expected } in &all {
        let before = listing(&folder);
        let mut complain = |what: String| wrong.push(format!("{}: {what}", args.join(" ")));
        match message(args) {
            Err(what) => complain(what),
            Ok(text) => {
                let missing: Vec<&String> = expected.iter().filter(|part| !text.contains(part.as_str())).collect();
                if !missing.is_empty() {
                    complain(format!("{missing:?} is not in: {text}"));
                }
                if ["Exception raised", "frame #", "panicked", "something went wrong"].iter().any(|t| text.contains(t))
                {
                    complain(text);
                }
            }
        }
        let _ = std::fs::remove_dir_all(&out);
        let _ = std::fs::remove_file(&out);
        let written: Vec<_> = listing(&folder).symmetric_difference(&before).cloned().collect();
        if !written.is_empty() {
            complain(format!("writes {written:?}"));
        }
        if is_thorough() {
            let output = run("vigdet", &strs(args));
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let errors = text.lines().filter(|line| line.starts_with("error: ")).count();
            if !matches!(output.status.code(), Some(1 | 2)) || errors != 1 {
                complain(format!("as a program: {:?} {text}", output.status));
            }
            let _ = std::fs::remove_dir_all(&out);
            let _ = std::fs::remove_file(&out);
        }
    }
    assert!(Path::new("runs").exists() == runs, "a folder `runs` appeared");
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    println!("{} cases", all.len());
}
