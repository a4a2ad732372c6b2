//! torchvision's later detectors in small: batch norms in pyramid and heads, MobileNetV3, anchors of several sizes,
//! against its numbers (tests/fixtures/torchvision/make.py writes them).

use std::collections::HashMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{nn, Kind, Tensor};
use vigdet::backbone::{self, Classifier, Pass};
use vigdet::config::{
    AnchorConfig, BackboneConfig, Config, ConvNorm, Experiment, ModelConfig, ProposalConfig, SampleConfig,
};
use vigdet::data::{Batch, Mask, Target};
use vigdet::detect::anchors::AnchorGenerator;
use vigdet::detect::boxes::{iou, Box4};
use vigdet::detect::fpn::{Coarse, Fpn};
use vigdet::detect::roi_heads::RoiHeads;
use vigdet::detect::rpn::{ProposalSelector, Rpn};
use vigdet::weights::{self, sorted_variables, Checkpoint, LoadOptions};
use vigdet_coco::types::Segmentation;

use common::{device, read_fixture, tolerance};

mod common;

const PADDED: (i64, i64) = (128, 160);
const SIZES: [(i64, i64); 2] = [(128, 150), (120, 160)];
const STAGES: [i64; 4] = [4, 5, 6, 8];
const CHANNELS: i64 = 8;
const CLASSES: i64 = 4;

struct Fixture(HashMap<String, Tensor>);

impl Fixture {
    fn read(name: &str) -> Self {
        Self(read_fixture(&format!("torchvision/{name}")))
    }

    fn tensor(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("the fixture lacks {name}"))
    }

    fn boxes(&self, name: &str) -> Vec<Box4> {
        let values: Vec<f32> = self.tensor(name).reshape([-1]).try_into().unwrap();
        values.chunks(4).map(|row| row.try_into().unwrap()).collect()
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

/// Every so many of a tensor's numbers.
fn every(tensor: &Tensor, step: i64) -> Tensor {
    tensor.contiguous().flatten(0, -1).slice(0, 0, None, step)
}

/// The fixture's model: the published second generation's in small, with everything sampled.
fn config() -> ModelConfig {
    let mut c = Config::preset("mask_rcnn_resnet50_fpn_v2_torchvision", &[]).unwrap().model;
    c.fpn.channels = CHANNELS;
    c.anchors = AnchorConfig { base: 4.0, ..c.anchors };
    c.rpn.train = ProposalConfig { top_k: 200, keep: 150 };
    c.rpn.test = ProposalConfig { top_k: 100, keep: 60 };
    c.rpn.score = 0.6;
    let everything = SampleConfig { count: 1_000_000, positive: 0.5 };
    (c.rpn.sample, c.roi.sample) = (everything.clone(), everything);
    (c.roi.convs, c.roi.channels) = (2, 24);
    (c.mask_head.convs, c.mask_head.channels) = (1, 8);
    (c.test.score, c.test.max_detections) = (0.2, 20);
    c
}

struct Model {
    fixture: Fixture,
    config: ModelConfig,
    store: nn::VarStore,
    fpn: Fpn,
    rpn: Rpn,
    heads: RoiHeads,
    maps: Vec<Tensor>,
}

impl Model {
    /// With the fixture's weights, by their names.
    fn load(config: ModelConfig) -> Self {
        let fixture = Fixture::read("second_generation.safetensors");
        let store = nn::VarStore::new(device());
        let root = store.root();
        let fpn = Fpn::new(&(&root / "backbone" / "fpn"), &STAGES, &config.fpn, Coarse::Halved).unwrap();
        let rpn = Rpn::new(&(&root / "rpn"), CHANNELS, &config.anchors, &config.rpn);
        let heads = RoiHeads::new(&(&root / "roi_heads"), &config, CLASSES, &[4, 8, 16, 32]);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let named = |(name, t): (&String, &Tensor)| Some((name.strip_prefix("model.")?.to_string(), t.shallow_clone()));
        let model: Vec<(String, Tensor)> = fixture.0.iter().filter_map(named).collect();
        weights::write_tensors(&model, &path, &Default::default()).unwrap();
        let options = LoadOptions { complete: true, ..Default::default() };
        let report = Checkpoint::open(&path).unwrap().load_into(&store, &options).unwrap();
        assert!(report.unused.is_empty(), "{report}");
        let maps = (0..4).map(|stage| fixture.tensor(&format!("map.{stage}")).shallow_clone()).collect();
        Self { fixture, config, store, fpn, rpn, heads, maps }
    }

    fn targets() -> Vec<Target> {
        let image = |boxes: &[Box4], labels: &[i64], (height, width): (i64, i64)| {
            let mask = |b: &Box4| {
                let [x1, y1, x2, y2] = b.map(f64::from);
                let polygon = Segmentation::Polygons(vec![vec![x1, y1, x2, y1, x2, y2, x1, y2]]);
                Mask::new(&polygon, height as u32, width as u32)
            };
            Target {
                boxes: boxes.to_vec(),
                labels: labels.to_vec(),
                crowd: vec![false; boxes.len()],
                masks: boxes.iter().map(mask).collect(),
            }
        };
        vec![
            image(&[[20.0, 20.0, 70.0, 80.0], [100.0, 90.0, 150.0, 128.0]], &[0, 2], SIZES[0]),
            image(&[[0.0, 0.0, 40.0, 50.0]], &[1], SIZES[1]),
        ]
    }

    /// All parts of the loss of a training pass.
    fn losses(&self) -> Vec<(&'static str, Tensor)> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let levels = self.fpn.forward(&self.maps, !self.config.backbone.freeze_norms, None);
        let output = self.rpn.forward(&levels, PADDED);
        let selector = ProposalSelector::new(&self.config.rpn, &self.config.rpn.train);
        let proposals = self.rpn.proposals(&output, &SIZES, &selector).unwrap();
        let mut parts = Vec::from(self.rpn.losses(&output, &Self::targets(), &mut rng));
        parts.extend(self.heads.losses(&levels, proposals, &Self::targets(), &SIZES, &mut rng));
        parts
    }
}

#[test]
fn levels_proposals_detections_and_masks_with_norms_are_torchvisions() {
    let model = Model::load(config());
    let fixture = &model.fixture;
    let levels = tch::no_grad(|| model.fpn.forward(&model.maps, false, None));
    for (level, name) in levels.iter().zip(["0", "1", "2", "3", "pool"]) {
        assert_close(&every(level, 5), fixture.tensor(&format!("level.{name}")), 1e-5, name);
    }
    let output = tch::no_grad(|| model.rpn.forward(&levels, PADDED));
    let selector = ProposalSelector::new(&model.config.rpn, &model.config.rpn.test);
    let proposals = model.rpn.proposals(&output, &SIZES, &selector).unwrap();
    let found = tch::no_grad(|| model.heads.detect(&levels, &proposals, &SIZES)).unwrap();
    for (image, (proposals, found)) in proposals.iter().zip(&found).enumerate() {
        let of = |name: &str| format!("test.{name}.{image}");
        let wanted = fixture.boxes(&of("proposals"));
        // Fewer than may stay: the others are not probable enough.
        assert!(proposals.len() == wanted.len() && wanted.len() < 60, "{} {}", proposals.len(), wanted.len());
        assert!(proposals.iter().zip(&wanted).all(|(a, b)| iou(a, b) > 0.9999));
        let labels: Vec<i64> = fixture.tensor(&of("labels")).try_into().unwrap();
        assert_eq!(found.labels, labels.iter().map(|label| label - 1).collect::<Vec<_>>());
        assert!(found.boxes.iter().zip(fixture.boxes(&of("boxes"))).all(|(a, b)| iou(a, &b) > 0.9999));
        assert_close(&Tensor::from_slice(&found.scores), fixture.tensor(&of("scores")), 1e-5, "scores");
        let values: Vec<f32> = found.masks.iter().flat_map(|mask| mask.values.clone()).collect();
        assert_close(&every(&Tensor::from_slice(&values), 7), fixture.tensor(&of("masks")), 1e-5, "masks");
    }
}

#[test]
fn a_training_pass_through_the_norms_has_torchvisions_losses_gradients_and_statistics() {
    let model = Model::load(config());
    let parts = model.losses();
    let names = ["objectness", "rpn_box_reg", "classifier", "box_reg", "mask"];
    for ((part, value), name) in parts.iter().zip(names) {
        let wanted = model.fixture.tensor(&format!("losses.loss_{name}")).double_value(&[]);
        let found = value.double_value(&[]);
        assert!((found / wanted - 1.0).abs() < tolerance(1e-4), "{part}: {found}, wanted {wanted}");
    }
    let values: Vec<&Tensor> = parts.iter().map(|(_, value)| value).collect();
    Tensor::stack(&values, 0).sum(Kind::Float).backward();
    for (name, variable) in model.store.variables() {
        if name.contains("running") {
            assert_close(&variable, model.fixture.tensor(&format!("after.{name}")), 1e-5, &name);
        } else {
            let step = (variable.numel() as i64 / 50).max(1);
            let wanted = model.fixture.tensor(&format!("grad.{name}"));
            assert_close(&every(&variable.grad(), step), wanted, 1e-3, &name);
        }
    }
}

#[test]
fn frozen_norms_of_pyramid_and_heads_keep_their_statistics_in_training() {
    let mut frozen = config();
    frozen.backbone.freeze_norms = true;
    let model = Model::load(frozen);
    let statistics = || -> Vec<(String, Tensor)> {
        let all = sorted_variables(&model.store).into_iter().filter(|(name, _)| name.contains("running"));
        all.map(|(name, value)| (name, value.copy())).collect()
    };
    let before = statistics();
    let values: Vec<Tensor> = model.losses().into_iter().map(|(_, value)| value).collect();
    assert!(before.len() == 22 && before == statistics());
    Tensor::stack(&values, 0).sum(Kind::Float).backward();
    assert!(model.store.trainable_variables().iter().all(|variable| variable.grad().defined()));
}

#[test]
fn anchors_of_five_sizes_at_every_level_are_torchvisions() {
    let config = Config::preset("faster_rcnn_mobilenet_v3_large_fpn_torchvision", &[]).unwrap().model.anchors;
    let generator = AnchorGenerator::new(&config);
    assert_eq!(generator.num_anchors(), 15);
    let anchors = generator.anchors(&[(3, 5), (3, 5), (2, 3)], (96, 160));
    assert_eq!(anchors.concat(), Fixture::read("second_generation.safetensors").boxes("anchors"));
}

/// `uniform` of tests/fixtures/torchvision/make.py.
fn uniform(shape: &[i64], t: u64) -> Tensor {
    let count = shape.iter().product::<i64>() as u64;
    let value = |i: u64| {
        let hash = (i * 2_654_435_761 + t * 40_503_001) % (1 << 32);
        (hash >> 8) as f64 / f64::from(1 << 24) - 0.5
    };
    Tensor::from_slice(&(0..count).map(value).collect::<Vec<f64>>()).view(shape).to_device(device())
}

#[test]
fn mobilenet_gives_torchvisions_maps_scores_gradients_and_statistics() {
    let expected = Fixture::read("mobilenet.safetensors");
    let mut store = nn::VarStore::new(device());
    let config = BackboneConfig { name: "mobilenet_v3_large".into(), norm_eps: 1e-3, ..Default::default() };
    let model = Classifier::new(&store.root(), &config, 1000).unwrap();
    for (t, (key, variable)) in sorted_variables(&store).into_iter().enumerate() {
        let u = uniform(&variable.size(), t as u64);
        let u = match &key {
            _ if variable.dim() > 1 => u * (24.0 / variable.get(0).numel() as f64).sqrt(),
            key if key.ends_with("running_var") => u + 1.0,
            key if key.ends_with("weight") => u / 2.0 + 1.0,
            _ => u / 5.0,
        };
        variable.detach().copy_(&u);
    }
    let images = |shape: &[i64]| uniform(shape, 1000) * 4.0;
    let out = model.forward(&images(&[1, 3, 70, 100]).to_kind(Kind::Float), &mut Pass::inference()).unwrap();
    for (s, map) in out.maps.iter().enumerate() {
        assert_close(&every(map, 8), expected.tensor(&format!("map.{s}")), 1e-5, &format!("map {s}"));
    }
    assert_close(&out.logits, expected.tensor("logits"), 1e-5, "logits");

    // In float64, where relus near their kink do not go the other way.
    store.double();
    let mut pass = Pass::training(0, 0);
    let maps = model.backbone().forward(&images(&[4, 3, 64, 64]), &mut pass).unwrap();
    let parts: Vec<Tensor> = (3000..).zip(&maps).map(|(t, m)| (m * uniform(&m.size(), t)).mean(Kind::Double)).collect();
    Tensor::stack(&parts, 0).sum(Kind::Double).backward();
    let variables = store.variables();
    for (key, variable) in &variables {
        let Some(expected) = key.strip_prefix("features.").and_then(|key| expected.0.get(&format!("gradient.{key}")))
        else {
            assert!(key.contains("running") || key.starts_with("classifier."), "no gradient of {key}");
            continue;
        };
        let gradient = variable.grad();
        let [norm, sum] = [0, 1].map(|i| expected.double_value(&[i]));
        // A batch norm takes away the bias before the next convolution: nothing is left of some gradients but rounding.
        let norm = norm.max(1e-6);
        let found_sum = (&gradient * uniform(&gradient.size(), 2000)).sum(Kind::Double).double_value(&[]);
        let found_norm = gradient.norm().double_value(&[]).max(1e-6);
        let error = (found_norm / norm - 1.0).abs().max((found_sum - sum).abs() / norm);
        assert!(error < tolerance(1e-4), "gradient of {key} differs by {error:e}");
    }
    assert_close(&variables["features.16.1.running_mean"], expected.tensor("running"), 1e-5, "running statistics");
}

#[test]
fn a_mobile_classifier_drops_values_in_training_the_same_ones_for_the_same_pass() {
    let store = nn::VarStore::new(device());
    let config = BackboneConfig { name: "mobilenet_v3_large".into(), freeze_norms: true, ..Default::default() };
    let model = Classifier::new(&store.root(), &config, 10).unwrap();
    let images = Tensor::randn([1, 3, 32, 32], (Kind::Float, device())) * 30.0;
    let logits = |mut pass: Pass| tch::no_grad(|| model.forward(&images, &mut pass).unwrap().logits);
    let first = logits(Pass::training(1, 5));
    assert_eq!(first, logits(Pass::training(1, 5)));
    assert_ne!(first, logits(Pass::training(1, 6)));
    assert_ne!(first, logits(Pass::inference()));
}

#[test]
fn frozen_stages_of_a_mobilenet_are_torchvisions_and_the_rest_learns() {
    // torchvision's `trainable_backbone_layers`: its last layer that is frozen.
    for (stages, last) in [(0, None), (1, Some(3)), (2, Some(6)), (3, Some(12)), (4, Some(15)), (5, Some(16))] {
        let store = nn::VarStore::new(device());
        let config = BackboneConfig { name: "mobilenet_v3_large".into(), frozen_stages: stages, ..Default::default() };
        let model = backbone::build(&store.root(), &config).unwrap();
        let before: HashMap<String, Tensor> =
            store.variables().into_iter().map(|(name, value)| (name, value.detach().copy())).collect();
        let images = Tensor::randn([2, 3, 64, 64], (Kind::Float, device()));
        let maps = model.forward(&images, &mut Pass::training(0, 0)).unwrap();
        for (name, variable) in store.variables() {
            let layer: i64 = name.split('.').next().unwrap().parse().unwrap();
            let is_frozen = last.is_some_and(|last| layer <= last);
            if name.contains("running") {
                assert_eq!(variable == before[&name], is_frozen, "{stages} {name}");
            } else {
                assert_eq!(variable.requires_grad(), !is_frozen, "{stages} {name}");
            }
        }
        assert_eq!(maps.iter().map(|map| map.size()[1]).collect::<Vec<_>>(), model.channels());
    }
    let config = BackboneConfig { name: "mobilenet_v3_large".into(), frozen_stages: 6, ..Default::default() };
    let error = backbone::build(&nn::VarStore::new(device()).root(), &config).unwrap_err().to_string();
    assert!(error.contains("1 to 5"), "{error}");
}

#[test]
fn a_mobile_detector_stands_on_the_stages_that_its_strides_name_and_learns() {
    let preset = |name: &str, changes: &[&str]| {
        let changes: Vec<String> = changes.iter().map(|change| change.to_string()).collect();
        Config::preset(name, &changes).unwrap().model
    };
    let small = ["model.fpn.channels=16", "model.roi.channels=16", "model.outputs=null"];
    let published = preset("faster_rcnn_mobilenet_v3_large_320_fpn_torchvision", &small);
    let mobile = ["model.backbone.name=mobilenet_v3_large", "model.fpn.channels=16", "model.head.channels=16"];
    let retinanet = preset("retinanet_resnet18_fpn_1x_coco", &mobile);
    let masks = ["model.backbone.name=mobilenet_v3_large", "model.fpn.channels=16", "model.roi.channels=16"];
    let paper = preset("mask_rcnn_pvig_ti_shapes", &masks);
    for (config, inputs) in [(published, &[160, 960][..]), (retinanet, &[40, 112, 960]), (paper, &[24, 40, 112, 960])] {
        let store = nn::VarStore::new(device());
        let model = vigdet::detect::build(&store.root(), &config, CLASSES).unwrap();
        let variables = store.variables();
        let width =
            |stage: usize| Some(variables.get(&format!("backbone.fpn.inner_blocks.{stage}.0.weight"))?.size()[1]);
        assert_eq!((0..).map_while(width).collect::<Vec<_>>(), inputs);
        let batch = Batch {
            images: Tensor::randn([2, 3, PADDED.0, PADDED.1], (Kind::Float, device())),
            sizes: SIZES.to_vec(),
            padded: vec![PADDED; SIZES.len()],
            targets: Model::targets(),
            infos: Vec::new(),
        };
        let losses = model.losses(&batch, &mut Pass::training(0, 0)).unwrap().total();
        losses.backward();
        assert!(losses.double_value(&[]).is_finite());
        for (name, variable) in store.variables() {
            let gradient = variable.grad();
            assert_eq!(gradient.defined(), variable.requires_grad(), "{name}");
            assert!(!gradient.defined() || gradient.isfinite().all().int64_value(&[]) == 1, "{name}");
        }
    }
}

#[test]
fn a_box_head_without_convolutions_has_no_norm_to_choose() {
    let mut plain = config();
    (plain.roi.convs, plain.roi.fcs, plain.mask) = (0, 2, false);
    let store = nn::VarStore::new(device());
    RoiHeads::new(&store.root(), &plain, CLASSES, &[4, 8, 16, 32]);
    let names: Vec<String> = sorted_variables(&store).into_iter().map(|(name, _)| name).collect();
    assert_eq!(plain.roi.norm, ConvNorm::Batch);
    assert_eq!(names[..4], ["box_head.fc6.bias", "box_head.fc6.weight", "box_head.fc7.bias", "box_head.fc7.weight"]);
}
