//! Weights of mmdetection, detectron2 and mmpretrain: told by their names, used with their own rules
//! (tests/fixtures/other_weights/make.py writes files with all names and shapes).

mod common;

use std::path::{Path, PathBuf};

use common::{succeed, Scene};
use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};
use vigdet::backbone::Pass;
use vigdet::classes::Classes;
use vigdet::config::{ClassifyConfig, Config, Experiment};
use vigdet::predictor::{Predictor, PredictorOptions};
use vigdet::train::detection::prepare_as;
use vigdet::weights::{load_classifier, sorted_variables, write_tensors, Checkpoint, WeightFile};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/other_weights").join(name)
}

/// The config that a file is used with, as JSON.
fn config_of(name: &str) -> (Checkpoint, Value) {
    let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
    let config = checkpoint.config::<Config>(&[]).unwrap().unwrap_or_else(|| panic!("{name} has no config"));
    let value = config.to_value().unwrap();
    (checkpoint, value)
}

/// Asserts values of a config, by pointer.
fn assert_config(name: &str, config: &Value, expected: &[(&str, Value)]) {
    for (key, value) in expected {
        let pointer = format!("/{}", key.replace('.', "/"));
        let found = config.pointer(&pointer).unwrap_or_else(|| panic!("{name}: there is no {key}"));
        let near = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-6,
            _ => a == b,
        };
        let near = match (found.as_array(), value.as_array()) {
            (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b)),
            _ => near(found, value),
        };
        assert!(near, "{name}: {key} is {found}, not {value}");
    }
}

/// Every variable of the detector is in the file, with its shape.
fn opens_whole(checkpoint: &Checkpoint) -> Predictor {
    Predictor::new(checkpoint, &PredictorOptions::default()).unwrap()
}

#[test]
fn mmdetections_mask_rcnn_is_used_with_what_its_own_config_says() {
    let name = "mmdetection_mask_rcnn.pth";
    let (checkpoint, config) = config_of(name);
    assert_config(
        name,
        &config,
        &[
            ("model.detector", json!("mask_rcnn")),
            ("model.mask", json!(true)),
            ("model.backbone.name", json!("resnet50")),
            ("model.backbone.stride_in_1x1", json!(true)),
            ("model.backbone.norm_eps", json!(1e-5)),
            ("model.roi.sampling_ratio", json!(0)),
            ("model.roi.aligned", json!(true)),
            ("model.roi.match.low_quality", json!(true)),
            ("model.anchors.strides_from_image", json!(false)),
            ("model.anchors.round", json!(false)),
            ("model.test.min_side", json!(0.0)),
            ("data.resize", json!("opencv")),
        ],
    );
    let std = config["data"]["std"].as_array().unwrap();
    assert!(std.iter().all(|v| (v.as_f64().unwrap() * 255.0 - 1.0).abs() < 1e-5), "{std:?}");
    let classes = checkpoint.classes().unwrap();
    assert_eq!((classes.len(), classes.name(0), classes.name(79)), (80, "bicycle".into(), "person".into()));
    let predictor = opens_whole(&checkpoint);
    assert!(predictor.detector().has_masks());
}

#[test]
fn a_faster_rcnn_has_its_own_number_of_classes_and_their_names() {
    let name = "mmdetection_faster_rcnn.pth";
    let (checkpoint, config) = config_of(name);
    assert_config(
        name,
        &config,
        &[
            ("model.mask", json!(false)),
            ("model.roi.match.low_quality", json!(false)),
            ("model.backbone.stride_in_1x1", json!(false)),
            ("data.std", json!([0.229, 0.224, 0.225])),
        ],
    );
    assert_eq!(checkpoint.classes().unwrap().names(), ["nut", "bolt"]);
    // Numbers before and behind the rotation: background first, and nothing lost.
    let file = checkpoint.file();
    assert_eq!(file.shape("roi_heads.box_predictor.cls_score.weight").unwrap(), [3, 1024]);
    assert_eq!(file.shape("roi_heads.box_predictor.bbox_pred.weight").unwrap(), [12, 1024]);
    let boxes = file.tensor("roi_heads.box_predictor.bbox_pred.bias").unwrap();
    assert_eq!((boxes.double_value(&[3]), boxes.double_value(&[4])), (0.0, 0.25));
}

#[test]
fn mmdetections_retinanet_on_mmpretrains_vig_is_vigdets_retinanet_on_its_own() {
    let name = "mmdetection_pvig_ti.pth";
    let (checkpoint, config) = config_of(name);
    assert_config(
        name,
        &config,
        &[
            ("model.detector", json!("retinanet")),
            ("model.backbone.name", json!("pvig_ti")),
            ("model.fpn.p6", json!("c5")),
            ("model.fpn.p7_relu", json!(false)),
            ("model.match.low_quality_wins", json!(true)),
        ],
    );
    assert_eq!(checkpoint.classes(), Some(&Classes::coco()));
    opens_whole(&checkpoint);
}

#[test]
fn detectron2s_retinanet_reads_blue_first_and_cuts_boxes_at_the_end() {
    let name = "detectron2_retinanet.pth";
    let (checkpoint, config) = config_of(name);
    assert_config(
        name,
        &config,
        &[
            ("model.detector", json!("retinanet")),
            ("model.test.clip", json!("after_nms")),
            ("model.fpn.p7_relu", json!(true)),
            ("model.backbone.stride_in_1x1", json!(true)),
            ("data.resize", json!("antialias")),
            ("data.mean", json!([0.485, 0.456, 0.406])),
        ],
    );
    assert_eq!(checkpoint.classes(), Some(&Classes::coco()));
    opens_whole(&checkpoint);
}

#[test]
fn without_pixels_the_numbers_tell_caffes_resnet_from_torchvisions() {
    let (checkpoint, config) = config_of("detectron2_mask_rcnn.pth");
    let expected = [("model.backbone.stride_in_1x1", json!(true)), ("model.mask", json!(true))];
    assert_config("detectron2_mask_rcnn.pth", &config, &expected);
    opens_whole(&checkpoint);
    for (name, caffe) in [("detectron2_resnet50.pth", false), ("caffe2_resnet50.pth", true)] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let config = checkpoint.config::<ClassifyConfig>(&[]).unwrap().unwrap();
        assert_eq!((config.model.backbone.name.as_str(), config.model.backbone.stride_in_1x1), ("resnet50", caffe));
        let loaded = load_classifier(&config.model.backbone, Some(&checkpoint), Device::Cpu).unwrap();
        assert!(loaded.head_loaded && loaded.report.unwrap().missing.is_empty(), "{name}");
        // A training that starts from it takes its stride and its mean.
        let mut config = Config::preset("retinanet_resnet50_fpn_1x_coco", &[]).unwrap();
        prepare_as(&mut config, &checkpoint, &["model.backbone.stride_in_1x1=false".into()]).unwrap();
        assert!(!config.model.backbone.stride_in_1x1);
        prepare_as(&mut config, &checkpoint, &[]).unwrap();
        assert_eq!((config.model.backbone.stride_in_1x1, config.data.std[0] < 0.01), (caffe, caffe));
        let stem = checkpoint.file().tensor("bn1.running_mean").unwrap();
        assert_eq!(stem.double_value(&[0]), if caffe { 0.0 } else { 0.25 }, "{name}");
    }
}

#[test]
fn mmpretrains_vig_is_a_classifier_of_vigdet() {
    for (name, model, classes) in
        [("mmpretrain_pvig_ti.pth", "pvig_ti", None), ("mmpretrain_vig_ti.pth", "vig_ti", Some("abc"))]
    {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let config = checkpoint.config::<ClassifyConfig>(&[]).unwrap().unwrap();
        assert_eq!((config.model.backbone.name.as_str(), config.data.mean), (model, [0.5; 3]));
        let loaded = load_classifier(&config.model.backbone, Some(&checkpoint), Device::Cpu).unwrap();
        let report = loaded.report.unwrap();
        assert!(loaded.head_loaded && report.missing.is_empty() && report.unused.is_empty(), "{name}: {report}");
        assert_eq!(checkpoint.classes().map(|classes| classes.names().concat()).as_deref(), classes);
    }
}

#[test]
fn a_backbone_that_vigdet_does_not_have_is_named_and_gets_no_config() {
    let checkpoint = Checkpoint::open(&fixture("mmdetection_resnext.pth")).unwrap();
    assert!(checkpoint.config::<Config>(&[]).unwrap().is_none());
}

#[test]
fn detect_needs_the_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("a.png");
    image::RgbImage::from_pixel(64, 48, image::Rgb([90, 120, 200])).save(&image).unwrap();
    let weights = fixture("mmdetection_pvig_ti.pth");
    let args = ["--weights", weights.to_str().unwrap(), "--size", "48,64", "--device", "cpu", image.to_str().unwrap()];
    assert!(succeed("detect", &args).contains("a.png"));
}

/// mmpretrain's name of a tensor in the published files, as a run of mmpretrain's own models showed them; `downs` are
/// the places of a pyramid's downsamplings.
fn in_mmpretrain(name: &str, downs: &[usize]) -> String {
    if let Some(rest) = name.strip_prefix("stem.convs.") {
        return format!("backbone.stem.{rest}");
    }
    if let Some(rest) = name.strip_prefix("prediction.") {
        let (layer, rest) = rest.split_once('.').unwrap();
        return format!("head.{}.{rest}", if layer == "1" { "bn" } else { ["fc1", "fc2"][usize::from(layer == "4")] });
    }
    let Some(rest) = name.strip_prefix("backbone.") else { return format!("backbone.{name}") };
    if downs.is_empty() {
        return format!("backbone.blocks.{rest}");
    }
    let (place, rest) = rest.split_once('.').unwrap();
    let place: usize = place.parse().unwrap();
    let stage = downs.iter().filter(|down| **down <= place).count();
    let entry = place - stage.checked_sub(1).map_or(0, |before| downs[before]);
    format!("backbone.stages.{stage}.{entry}.{}", rest.strip_prefix("conv.").unwrap_or(rest))
}

/// Adds noise to what an init leaves at zeros and ones, so that no two tensors are alike.
fn stir(store: &tch::nn::VarStore) {
    tch::no_grad(|| {
        for (name, mut variable) in store.variables() {
            let noise = Tensor::rand_like(&variable) * 0.2;
            if name.ends_with("bias") || name.contains("running_") || variable.dim() == 1 {
                variable += noise;
            }
        }
    });
}

#[test]
fn mmpretrains_vig_gives_the_logits_of_the_published_file() {
    let folder = tempfile::tempdir().unwrap();
    for (model, downs) in [("pvig_ti", [2, 5, 12].as_slice()), ("vig_ti", &[])] {
        tch::manual_seed(3);
        let config = ClassifyConfig::of_model(model, &["model.backbone.drop_path=0".into()]).unwrap().model.backbone;
        let made = load_classifier(&config, None, Device::Cpu).unwrap();
        stir(&made.store);
        let published = sorted_variables(&made.store);
        let linear = |name: &str, tensor: &Tensor| match tensor.size()[..] {
            [rows, columns, 1, 1] if name.starts_with("prediction.") => tensor.view([rows, columns]),
            _ => tensor.shallow_clone(),
        };
        let renamed: Vec<(String, Tensor)> =
            published.iter().map(|(name, t)| (in_mmpretrain(name, downs), linear(name, t))).collect();
        let images = Tensor::randn([2, 3, 96, 64], (Kind::Float, Device::Cpu));
        let logits = [("published", published), ("mmpretrain", renamed)].map(|(kind, tensors)| {
            let path = folder.path().join(format!("{kind}_{model}.safetensors"));
            write_tensors(&tensors, &path, &Default::default()).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let own = checkpoint.config::<ClassifyConfig>(&[]).unwrap();
            let config = own.map_or(config.clone(), |own| own.model.backbone);
            let loaded = load_classifier(&config, Some(&checkpoint), Device::Cpu).unwrap();
            let report = loaded.report.unwrap();
            assert!(loaded.head_loaded && report.missing.is_empty() && report.unused.is_empty(), "{kind}: {report}");
            tch::no_grad(|| loaded.model.forward(&images, &mut Pass::inference()).unwrap().logits)
        });
        let apart = (&logits[0] - &logits[1]).abs().max().double_value(&[]);
        let most = logits[0].abs().max().double_value(&[]);
        assert!(most > 0.1 && apart <= 1e-6 * most, "{model}: {apart} of {most}");
    }
}

/// A detector in a fixture's names and shapes, as a training would start it: the classes' biases differ from each
/// other.
fn as_new(name: &str, classes: &str) -> Vec<(String, Tensor)> {
    let file = WeightFile::open(&fixture(name)).unwrap();
    let value = |name: &str, shape: &[i64]| {
        let options = (Kind::Float, Device::Cpu);
        let fan_in: i64 = shape.iter().skip(1).product();
        match name.rsplit('.').next().unwrap() {
            "pixel_mean" | "pixel_std" => file.tensor(name).unwrap(),
            "bias" if name.contains(classes) => Tensor::linspace(-5.0, -4.0, shape[0], options),
            "running_var" => Tensor::ones(shape, options),
            "weight" if shape.len() == 1 => Tensor::ones(shape, options),
            "weight" if name.contains(classes) => Tensor::randn(shape, options) * 0.01,
            _ if shape.len() == 1 => Tensor::zeros(shape, options),
            _ => Tensor::randn(shape, options) * (2.0 / fan_in as f64).sqrt(),
        }
    };
    let named = file.names().unwrap().into_iter();
    named.map(|name| (name.clone(), value(&name, &file.shape(&name).unwrap()))).collect()
}

#[test]
fn detectors_of_others_are_fine_tuned_and_keep_the_rows_of_classes_with_the_same_name() {
    let scene = Scene::new();
    for split in ["train", "val"] {
        let path = scene.data.annotations(split);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"dark\"", "\"kite\"")).unwrap();
    }
    let kite = Classes::coco().names().iter().position(|name| name == "kite").unwrap() as i64;
    // vigdet's anchors go through the ratios, and through the sizes of each, as mmdetection's; detectron2's through the
    // sizes.
    let by_ratio: [i64; 9] = std::array::from_fn(|at| at as i64);
    let by_size = by_ratio.map(|at| at % 3 * 3 + at / 3);
    for (name, class_layer, places) in
        [("mmdetection_pvig_ti.pth", "retina_cls", by_ratio), ("detectron2_retinanet.pth", "cls_score", by_size)]
    {
        tch::manual_seed(4);
        let weights = scene.path("weights.safetensors");
        write_tensors(&as_new(name, class_layer), &weights, &Default::default()).unwrap();
        let [file, out] = [weights, scene.path(name)].map(|path| path.display().to_string());
        let args = ["retinanet", "--data", scene.data.arg(), "--finetune", &file, "--out", &out, "--device", "cpu"];
        let steps = ["--max-iters", "2", "--size", "64,96", "--lr", "1e-9"];
        let quick = ["--set", "train.eval_every=0", "--set", "model.backbone.frozen_stages=4"];
        let printed = succeed("train_det", &[&args[..], &steps, &quick].concat());
        assert!(printed.contains("classes by name: 1 kept (`kite`), 1 anew (`bright`)"), "{name}: {printed}");
        assert!(printed.contains("2 steps"), "{name}: {printed}");
        let learned = Tensor::read_safetensors(scene.path(name).join("checkpoints/last.safetensors")).unwrap();
        let (_, bias) = learned.iter().find(|(name, _)| name.ends_with("cls_logits.bias")).unwrap();
        assert_eq!(bias.size(), [9 * 2]);
        for (anchor, place) in (0..).zip(places) {
            let before = -5.0 + (80 * place + kite) as f64 / 719.0;
            let [kept, anew] = [0, 1].map(|label| bias.double_value(&[2 * anchor + label]));
            assert!((kept - before).abs() < 1e-6, "{name}, anchor {anchor}: {kept}, not {before}");
            // As a training from nothing starts: the prior, 0.01.
            assert!((anew + 99f64.ln()).abs() < 1e-3, "{name}, anchor {anchor}: {anew}");
        }
    }
}
