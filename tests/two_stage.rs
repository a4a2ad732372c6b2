//! RoIAlign, proposals, box and mask heads against torchvision's numbers (tests/fixtures/two_stage/make.py writes
//! them).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tch::{nn, Kind, Tensor};
use vigdet::config::{
    AnchorConfig, BoxLoss, Config, Experiment, MaskTargets, ModelConfig, PasteKind, ProposalConfig, SampleConfig,
};
use vigdet::data::{Mask, Target};
use vigdet::detect::boxes::{iou, Box4};
use vigdet::detect::nms::batched_nms;
use vigdet::detect::roi_align::{Roi, RoiAlign};
use vigdet::detect::roi_heads::RoiHeads;
use vigdet::detect::rpn::{ProposalSelector, Rpn, RpnOutput};
use vigdet::weights::{self, Checkpoint, LoadOptions};
use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

use common::{device, read_tensors, tolerance};

mod common;

const PADDED: (i64, i64) = (128, 160);
const LEVELS: [&str; 5] = ["0", "1", "2", "3", "pool"];
const CHANNELS: i64 = 8;
const CLASSES: i64 = 4;

struct Fixture {
    tensors: HashMap<String, Tensor>,
    objects: Value,
}

impl Fixture {
    fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/two_stage/torchvision.safetensors")
    }

    fn read() -> Self {
        let tensors = read_tensors(&Self::path());
        let metadata = Checkpoint::open(&Self::path()).unwrap().metadata();
        Self { tensors, objects: serde_json::from_str(&metadata["objects"]).unwrap() }
    }

    fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture lacks {name}"))
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name).reshape([-1]).try_into().unwrap()
    }

    fn boxes(&self, name: &str) -> Vec<Box4> {
        self.floats(name).chunks(4).map(|row| row.try_into().unwrap()).collect()
    }

    /// The pyramid's levels, as leaves that collect gradients.
    fn levels(&self) -> Vec<Tensor> {
        LEVELS.map(|name| self.tensor(&format!("levels.{name}")).copy().set_requires_grad(true)).into()
    }

    fn sizes(&self) -> Vec<(i64, i64)> {
        let of = |o: &Value| (o["size"][0].as_i64().unwrap(), o["size"][1].as_i64().unwrap());
        self.objects.as_array().unwrap().iter().map(of).collect()
    }

    fn targets(&self) -> Vec<Target> {
        let image = |o: &Value| {
            let boxes: Vec<Box4> = serde_json::from_value(o["boxes"].clone()).unwrap();
            let labels: Vec<i64> = serde_json::from_value(o["labels"].clone()).unwrap();
            let (height, width) = (o["size"][0].as_u64().unwrap() as u32, o["size"][1].as_u64().unwrap() as u32);
            let masks = o["segmentations"].as_array().unwrap().iter().map(|s| {
                let segmentation = match s["counts"].as_str() {
                    Some(text) => Segmentation::Rle(Rle::from_compressed(height, width, text).unwrap()),
                    None => Segmentation::Polygons(serde_json::from_value(s.clone()).unwrap()),
                };
                Some(Mask::new(&segmentation, height, width).unwrap())
            });
            Target {
                masks: masks.collect(),
                crowd: vec![false; boxes.len()],
                // torchvision counts background as 0.
                labels: labels.iter().map(|l| l - 1).collect(),
                boxes,
            }
        };
        self.objects.as_array().unwrap().iter().map(image).collect()
    }
}

/// torchvision's values, with everything sampled.
fn config() -> ModelConfig {
    let mut c = Config::preset("mask_rcnn_resnet50_fpn_torchvision", &[]).unwrap().model;
    c.fpn.channels = CHANNELS;
    c.anchors = AnchorConfig { base: 4.0, ..c.anchors };
    c.rpn.train = ProposalConfig { top_k: 200, keep: 150 };
    c.rpn.test = ProposalConfig { top_k: 100, keep: 60 };
    let everything = SampleConfig { count: 1_000_000, positive: 0.5 };
    (c.rpn.sample, c.roi.sample) = (everything.clone(), everything);
    c.roi.channels = 24;
    (c.mask_head.convs, c.mask_head.channels) = (1, 8);
    (c.test.score, c.test.max_detections) = (0.2, 20);
    c
}

struct Stages {
    rpn: Rpn,
    heads: RoiHeads,
    config: ModelConfig,
    store: nn::VarStore,
}

impl Stages {
    fn new(config: ModelConfig) -> Self {
        let store = nn::VarStore::new(device());
        let rpn = Rpn::new(&(store.root() / "rpn"), CHANNELS, &config.anchors, &config.rpn);
        let heads = RoiHeads::new(&(store.root() / "roi_heads"), &config, CLASSES, &[4, 8, 16, 32]);
        Self { rpn, heads, config, store }
    }

    /// With the fixture's weights, by their names.
    fn loaded() -> Self {
        let stages = Self::new(config());
        let fixture = Fixture::read();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let model: Vec<(String, Tensor)> = fixture
            .tensors
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix("model.")?.to_string(), t.shallow_clone())))
            .collect();
        weights::write_tensors(&model, &path, &Default::default()).unwrap();
        let options = LoadOptions { complete: true, ..Default::default() };
        let report = Checkpoint::open(&path).unwrap().load_into(&stages.store, &options).unwrap();
        assert!(report.unused.is_empty(), "{report}");
        stages
    }

    fn forward(&self, levels: &[Tensor]) -> RpnOutput {
        self.rpn.forward(levels, PADDED)
    }

    /// All parts of the loss.
    fn losses(&self, levels: &[Tensor], targets: &[Target], sizes: &[(i64, i64)]) -> Vec<(&'static str, Tensor)> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let output = self.forward(levels);
        let selector = ProposalSelector::new(&self.config.rpn, &self.config.rpn.train);
        let proposals = self.rpn.proposals(&output, sizes, &selector).unwrap();
        let mut parts = Vec::from(self.rpn.losses(&output, targets, &mut rng));
        parts.extend(self.heads.losses(levels, proposals, targets, sizes, &mut rng));
        parts
    }

    fn gradient(&self, name: &str) -> Tensor {
        self.store.variables()[name].grad()
    }
}

/// Asserts that two tensors differ by at most `share` of the larger's largest value, on the CPU.
fn assert_close(found: &Tensor, wanted: &Tensor, share: f64, what: &str) {
    assert_eq!(found.size(), wanted.size(), "{what}");
    let found = found.to_device(device());
    let scale = wanted.abs().max().double_value(&[]);
    let worst = (found - wanted).abs().max().double_value(&[]);
    assert!(scale > 0.0 && worst <= tolerance(share) * scale, "{what}: off by {worst} of {scale}");
}

#[test]
fn roi_align_and_its_gradient() {
    let fixture = Fixture::read();
    let rois: Vec<Roi> =
        fixture.floats("align.rois").chunks(5).map(|r| (r[0] as usize, [r[1], r[2], r[3], r[4]])).collect();
    for channels_last in [false, true] {
        for (name, aligned) in [("plain", false), ("aligned", true)] {
            for sampling_ratio in [0, 2] {
                let what = format!("align.{name}.{sampling_ratio}");
                let leaf = fixture.tensor("align.features").copy().set_requires_grad(true);
                let map = if channels_last {
                    leaf.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
                } else {
                    leaf.shallow_clone()
                };
                let pooled = RoiAlign { size: 5, sampling_ratio, aligned }.pool(&map, &rois, 0.25);
                assert_close(&pooled, fixture.tensor(&what), 1e-6, &what);
                (pooled * fixture.tensor("align.weights")).sum(Kind::Float).backward();
                assert_close(&leaf.grad(), fixture.tensor(&format!("{what}.grad")), 1e-6, &what);
            }
        }
    }
}

#[test]
fn suppression_of_many_boxes() {
    let fixture = Fixture::read();
    let (boxes, scores) = (fixture.boxes("nms.boxes"), fixture.floats("nms.scores"));
    for threshold in [0.3, 0.5, 0.7] {
        let kept = batched_nms(&boxes, &scores, &vec![0; boxes.len()], threshold);
        let wanted: Vec<i64> = fixture.tensor(&format!("nms.kept.{threshold}")).try_into().unwrap();
        assert_eq!(kept, wanted.iter().map(|i| *i as usize).collect::<Vec<_>>(), "{threshold}");
    }
}

#[test]
fn proposals_of_both_modes() {
    let (fixture, stages) = (Fixture::read(), Stages::loaded());
    let output = stages.forward(&fixture.levels());
    for (mode, limits) in [("train", &stages.config.rpn.train), ("test", &stages.config.rpn.test)] {
        let selector = ProposalSelector::new(&stages.config.rpn, limits);
        let found = stages.rpn.proposals(&output, &fixture.sizes(), &selector).unwrap();
        for (image, found) in found.iter().enumerate() {
            let wanted = fixture.boxes(&format!("{mode}.proposals.{image}"));
            assert_eq!(found.len(), wanted.len(), "{mode} {image}");
            for (i, (a, b)) in found.iter().zip(&wanted).enumerate() {
                assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3), "{mode} {image} {i}: {a:?}, wanted {b:?}");
            }
        }
    }
}

#[test]
fn every_part_of_the_loss_and_its_gradients() {
    let (fixture, stages) = (Fixture::read(), Stages::loaded());
    let levels = fixture.levels();
    let parts = stages.losses(&levels, &fixture.targets(), &fixture.sizes());
    let names = ["objectness", "rpn_box_reg", "classifier", "box_reg", "mask"];
    assert_eq!(parts.len(), names.len());
    for ((part, value), name) in parts.iter().zip(names) {
        let wanted = fixture.tensor(&format!("losses.loss_{name}")).double_value(&[]);
        let found = value.double_value(&[]);
        assert!((found / wanted - 1.0).abs() < tolerance(1e-4), "{part}: {found}, wanted {wanted}");
    }
    let values: Vec<&Tensor> = parts.iter().map(|(_, v)| v).collect();
    Tensor::stack(&values, 0).sum(Kind::Float).backward();
    for (level, name) in levels.iter().zip(LEVELS) {
        assert_close(&level.grad(), fixture.tensor(&format!("grad.{name}")), 1e-4, name);
    }
    assert_close(&stages.gradient("rpn.head.conv.0.0.weight"), fixture.tensor("grad.rpn"), 1e-4, "rpn");
    let fc6 = stages.gradient("roi_heads.box_head.fc6.weight").slice(1, 0, None, 16);
    assert_close(&fc6, fixture.tensor("grad.fc6"), 1e-4, "fc6");
    let deconv = stages.gradient("roi_heads.mask_predictor.conv5_mask.weight");
    assert_close(&deconv, fixture.tensor("grad.deconv"), 1e-4, "deconv");
}

#[test]
fn detections_and_their_masks_on_the_original_image() {
    let (fixture, stages) = (Fixture::read(), Stages::loaded());
    let (levels, sizes) = (fixture.levels(), fixture.sizes());
    let output = stages.forward(&levels);
    let selector = ProposalSelector::new(&stages.config.rpn, &stages.config.rpn.test);
    let proposals = stages.rpn.proposals(&output, &sizes, &selector).unwrap();
    let found = tch::no_grad(|| stages.heads.detect(&levels, &proposals, &sizes)).unwrap();
    for (image, mut found) in found.into_iter().enumerate() {
        let of = |name: &str| format!("test.{name}.{image}");
        let labels: Vec<i64> = fixture.tensor(&of("labels")).try_into().unwrap();
        assert_eq!(found.labels, labels.iter().map(|l| l - 1).collect::<Vec<_>>());
        for (a, b) in found.boxes.iter().zip(fixture.boxes(&of("boxes"))) {
            assert!(iou(a, &b) > 0.9999, "{a:?}, wanted {b:?}");
        }
        let scores = Tensor::from_slice(&found.scores);
        assert_close(&scores, fixture.tensor(&of("scores")), 1e-5, "scores");
        let values: Vec<f32> = found.masks.iter().flat_map(|m| m.values.clone()).collect();
        let wanted = fixture.tensor(&of("masks"));
        assert_close(&Tensor::from_slice(&values).view_as(wanted), wanted, 1e-5, "masks");

        let (height, width) = ((sizes[image].0 * 3 / 2) as u32, (sizes[image].1 * 3 / 2) as u32);
        found.rescale(sizes[image], (height.into(), width.into()));
        let packed: Vec<u8> = fixture.tensor(&of("pasted")).try_into().unwrap();
        let wanted = |bit: usize| packed[bit / 8] >> (7 - bit % 8) & 1 == 1;
        let pixels = (height * width) as usize;
        let (mut differing, mut object) = (0, 0);
        for i in 0..found.len() {
            let pasted = found.mask(i, height, width).unwrap().to_rows();
            differing += (0..pixels).filter(|&p| pasted[p] != wanted(i * pixels + p)).count();
            object += pasted.iter().filter(|p| **p).count();
        }
        // Rounding may turn a pixel whose probability is one half.
        assert!(object > 1000 && differing * 10_000 <= object, "{differing} of {object} pixels");
    }
}

#[test]
fn images_without_objects_train_the_background() {
    let (fixture, stages) = (Fixture::read(), Stages::loaded());
    let levels = fixture.levels();
    let nothing = [Target::default(), Target::default()];
    let parts = stages.losses(&levels, &nothing, &fixture.sizes());
    for (name, value) in &parts {
        let value = value.double_value(&[]);
        let is_box_or_mask = matches!(*name, "rpn_box" | "box" | "mask");
        assert!(value.is_finite() && (value == 0.0) == is_box_or_mask, "{name} {value}");
    }
    let values: Vec<&Tensor> = parts.iter().map(|(_, v)| v).collect();
    Tensor::stack(&values, 0).sum(Kind::Float).backward();
    assert!(levels[0].grad().isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn no_proposal_is_no_loss_and_no_detection() {
    let (fixture, stages) = (Fixture::read(), Stages::loaded());
    let (levels, sizes) = (fixture.levels(), fixture.sizes());
    let none = vec![Vec::new(), Vec::new()];
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let empty = [Target::default(), Target::default()];
    for (name, value) in stages.heads.losses(&levels, none.clone(), &empty, &sizes, &mut rng) {
        assert_eq!(value.double_value(&[]), 0.0, "{name}");
    }
    // The objects are proposals, too.
    for (name, value) in stages.heads.losses(&levels, none.clone(), &fixture.targets(), &sizes, &mut rng) {
        assert!(value.double_value(&[]) > 0.0 || name == "box", "{name}");
    }
    let found = stages.heads.detect(&levels, &none, &sizes).unwrap();
    assert!(found.len() == 2 && found.iter().all(|f| f.is_empty() && f.masks.is_empty()));
}

#[test]
fn objects_of_a_pixel_at_the_border_and_without_a_mask_train() {
    let fixture = Fixture::read();
    for (targets, kind) in [
        (MaskTargets::Raster, BoxLoss::L1),
        (MaskTargets::RoiAlign, BoxLoss::SmoothL1),
        (MaskTargets::Raster, BoxLoss::Giou),
    ] {
        let mut changed = config();
        changed.mask_head.targets = targets;
        (changed.rpn.loss.kind, changed.roi.loss.kind) = (kind, kind);
        (changed.roi.aligned, changed.roi.sampling_ratio) = (true, 0);
        let stages = Stages::new(changed);
        let levels = fixture.levels();
        let mask = |p: &[f64]| Mask::new(&Segmentation::Polygons(vec![p.to_vec()]), 128, 150);
        let target = Target {
            boxes: vec![
                [0.0, 0.0, 1.0, 1.0],
                [149.0, 127.0, 150.0, 128.0],
                [0.0, 60.0, 150.0, 128.0],
                [5.0, 5.0, 60.0, 60.0],
            ],
            labels: vec![0, 1, 2, 3],
            crowd: vec![false, false, false, true],
            masks: vec![
                mask(&[0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]),
                mask(&[149.0, 127.0, 150.0, 127.0, 150.0, 128.0, 149.0, 128.0]),
                None,
                None,
            ],
        };
        let parts = stages.losses(&levels, &[target, Target::default()], &fixture.sizes());
        for (name, value) in &parts {
            let value = value.double_value(&[]);
            assert!(value.is_finite() && value > 0.0, "{targets:?} {kind:?} {name}: {value}");
        }
        let values: Vec<&Tensor> = parts.iter().map(|(_, v)| v).collect();
        Tensor::stack(&values, 0).sum(Kind::Float).backward();
        assert!(levels.iter().all(|l| !l.grad().defined() || l.grad().isfinite().all().int64_value(&[]) == 1));
    }
}

#[test]
fn masks_pasted_both_ways_agree_but_for_their_rims() {
    let values: Vec<f32> = (0..784)
        .map(|i| if (i % 28 - 14) * (i % 28 - 14) + (i / 28 - 14) * (i / 28 - 14) < 150 { 1.0 } else { 0.0 })
        .collect();
    let paste = |paste| {
        vigdet::detect::InstanceMask { values: values.clone(), side: 28, paste, threshold: 0.5 }.paste(
            &[20.3, 10.8, 150.2, 90.1],
            120,
            200,
        )
    };
    let (a, b) = (paste(PasteKind::Centres), paste(PasteKind::Padded));
    let shared = Rle::intersection(&[a.clone(), b.clone()]).unwrap().area();
    let all = Rle::union(&[a, b]).unwrap().area();
    assert!(f64::from(shared) / f64::from(all) > 0.97 && all > 3000, "{shared} of {all}");
}
