//! RetinaNet's parts against torchvision's numbers (tests/fixtures/detect/make.py writes them).

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};
use vigdet::config::{AnchorConfig, LossConfig, LossNormalizer, TestConfig};
use vigdet::data::Target;
use vigdet::detect::anchors::AnchorGenerator;
use vigdet::detect::atss::Atss;
use vigdet::detect::boxes::{Box4, BoxCoder};
use vigdet::detect::dense_head::LevelOutput;
use vigdet::detect::dense_losses::{Assigner, DenseLoss};
use vigdet::detect::losses::quality_focal_loss;
use vigdet::detect::matcher::{Match, Matcher};
use vigdet::detect::nms::batched_nms;
use vigdet::detect::select::{LevelValues, Limits, Selector};

use common::{read_fixture, tolerance};

mod common;

const MAPS: [(i64, i64); 5] = [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)];
const PADDED: (i64, i64) = (96, 160);
const MATCHER: Matcher = Matcher {
    positive: 0.5,
    negative: 0.4,
    low_quality: true,
    low_quality_iou: 0.0,
    low_quality_wins: false,
    crowd: 0.5,
};

struct Fixture(HashMap<String, Tensor>);

impl Fixture {
    fn read() -> Self {
        Self::of("detect/torchvision")
    }

    fn of(name: &str) -> Self {
        Self(read_fixture(&format!("{name}.safetensors")))
    }

    fn tensor(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("the fixture lacks {name}"))
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name).flatten(0, -1).try_into().unwrap()
    }

    fn ints(&self, name: &str) -> Vec<i64> {
        self.tensor(name).flatten(0, -1).try_into().unwrap()
    }

    fn rows(&self, name: &str) -> Vec<[f32; 4]> {
        self.floats(name).chunks(4).map(|row| row.try_into().unwrap()).collect()
    }

    fn target(&self, image: usize) -> Target {
        let labels = self.ints(&format!("losses.{image}.labels"));
        let boxes = if labels.is_empty() { vec![] } else { self.rows(&format!("matching.{image}.objects")) };
        let n = boxes.len();
        Target { boxes, labels, crowd: vec![false; n], masks: vec![None; n] }
    }
}

fn assert_near(found: &[[f32; 4]], wanted: &[[f32; 4]], tolerance: f32) {
    assert_eq!(found.len(), wanted.len());
    for (i, (a, b)) in found.iter().zip(wanted).enumerate() {
        for d in 0..4 {
            assert!((a[d] - b[d]).abs() <= tolerance * b[d].abs().max(1.0), "row {i}: {a:?}, wanted {b:?}");
        }
    }
}

fn torchvision_anchors() -> Vec<Vec<Box4>> {
    let config = AnchorConfig { round: true, strides_from_image: true, ..AnchorConfig::default() };
    AnchorGenerator::new(&config).anchors(&MAPS, PADDED)
}

#[test]
fn anchors_with_and_without_torchvisions_rounding() {
    let fixture = Fixture::read();
    assert_eq!(torchvision_anchors().concat(), fixture.rows("anchors.rounded"));
    let plain = AnchorGenerator::new(&AnchorConfig::default()).anchors(&MAPS, PADDED).concat();
    assert_near(&plain, &fixture.rows("anchors.plain"), 1e-6);
}

#[test]
fn box_coding_both_ways() {
    let fixture = Fixture::read();
    let (targets, anchors) = (fixture.rows("coding.targets"), fixture.rows("coding.anchors"));
    let deltas = fixture.rows("coding.deltas");
    for (name, weights) in [("unit", [1.0; 4]), ("roi", [10.0, 10.0, 5.0, 5.0])] {
        let coder = BoxCoder { weights, ..BoxCoder::default() };
        let encoded: Vec<_> = targets.iter().zip(&anchors).map(|(t, a)| coder.encode(t, a)).collect();
        let decoded: Vec<_> = deltas.iter().zip(&anchors).map(|(d, a)| coder.decode(d, a)).collect();
        assert_near(&encoded, &fixture.rows(&format!("coding.{name}.encoded")), 2e-5);
        assert_near(&decoded, &fixture.rows(&format!("coding.{name}.decoded")), 2e-5);
    }
}

#[test]
fn matching_with_low_quality_matches_and_twins() {
    let fixture = Fixture::read();
    let anchors = torchvision_anchors().concat();
    for image in 0..2 {
        let found: Vec<i64> = MATCHER
            .assign(&anchors, &fixture.rows(&format!("matching.{image}.objects")), &[])
            .into_iter()
            .map(|m| match m {
                Match::Object(object) => i64::from(object),
                Match::Background => -1,
                Match::Ignored => -2,
            })
            .collect();
        let wanted = fixture.ints(&format!("matching.{image}.matches"));
        let differing: Vec<_> = found.iter().zip(&wanted).enumerate().filter(|(_, (a, b))| a != b).take(5).collect();
        assert!(differing.is_empty(), "image {image}: (anchor, (found, wanted)) {differing:?}");
        assert!(wanted.iter().any(|m| *m >= 0));
    }
}

#[test]
fn losses_and_their_gradients() {
    let fixture = Fixture::read();
    let leaf = |name| fixture.tensor(name).copy().set_requires_grad(true);
    let (logits, deltas) = (leaf("losses.logits"), leaf("losses.deltas"));
    let loss = DenseLoss::new(
        Assigner::Overlap(MATCHER),
        BoxCoder::default(),
        &LossConfig { normalizer: LossNormalizer::Image, ..LossConfig::default() },
    );
    let output = LevelOutput { logits: logits.shallow_clone(), deltas: deltas.shallow_clone(), map: (0, 0) };
    let targets: Vec<Target> = (0..3).map(|i| fixture.target(i)).collect();
    let losses = loss.losses(vec![output], &torchvision_anchors().concat(), &targets, None).unwrap();
    for (name, part) in &losses.parts {
        let wanted = fixture.tensor(&format!("losses.{name}")).double_value(&[]);
        let found = part.double_value(&[]);
        assert!((found / wanted - 1.0).abs() < tolerance(1e-5), "{name}: {found}, wanted {wanted}");
    }
    losses.total().backward();
    for (name, grad) in [("losses.logits_grad", logits.grad()), ("losses.deltas_grad", deltas.grad())] {
        let wanted = fixture.tensor(name);
        let worst = (grad.slice(1, 0, None, 16) - wanted).abs().max().double_value(&[]);
        let scale = wanted.abs().max().double_value(&[]);
        assert!(scale > 0.0 && worst <= tolerance(1e-5) * scale, "{name}: off by {worst} of {scale}");
    }
}

#[test]
fn a_batch_shares_its_positives_unless_told_otherwise() {
    let fixture = Fixture::read();
    let output = || LevelOutput {
        logits: fixture.tensor("losses.logits").narrow(0, 0, 2),
        deltas: fixture.tensor("losses.deltas").narrow(0, 0, 2),
        map: (0, 0),
    };
    let anchors = torchvision_anchors().concat();
    let targets = [fixture.target(0), fixture.target(1)];
    let total = |normalizer, images: std::ops::Range<usize>| {
        let loss = DenseLoss::new(
            Assigner::Overlap(MATCHER),
            BoxCoder::default(),
            &LossConfig { normalizer, ..LossConfig::default() },
        );
        let (from, count) = (images.start as i64, images.len() as i64);
        let part = LevelOutput {
            logits: output().logits.narrow(0, from, count),
            deltas: output().deltas.narrow(0, from, count),
            map: (0, 0),
        };
        loss.losses(vec![part], &anchors, &targets[images], None).unwrap().total().double_value(&[])
    };
    let positives = |image: usize| {
        let matches = fixture.ints(&format!("matching.{image}.matches"));
        matches.iter().filter(|m| **m >= 0).count() as f64
    };
    let (first, second) = (positives(0), positives(1));
    // One image alone is divided by its own positives either way.
    let (a, b) = (total(LossNormalizer::Image, 0..1), total(LossNormalizer::Image, 1..2));
    let whole = total(LossNormalizer::Batch, 0..2);
    let wanted = (a * first + b * second) / (first + second);
    assert!((whole / wanted - 1.0).abs() < 1e-5, "{whole} {wanted}");
    let mean = total(LossNormalizer::Image, 0..2);
    assert!((mean / ((a + b) / 2.0) - 1.0).abs() < 1e-5, "{mean} {a} {b}");
}

#[test]
fn suppression_class_by_class() {
    let fixture = Fixture::read();
    let kept = batched_nms(&fixture.rows("nms.boxes"), &fixture.floats("nms.scores"), &fixture.ints("nms.labels"), 0.5);
    let wanted: Vec<usize> = fixture.ints("nms.kept").into_iter().map(|i| i as usize).collect();
    assert_eq!(kept, wanted);
}

#[test]
fn selection_of_detections() {
    let fixture = Fixture::read();
    let anchors = torchvision_anchors();
    let values = |name: &str| Vec::<f32>::try_from(fixture.tensor(name).get(0).flatten(0, -1)).unwrap();
    let (logits, deltas) = (values("losses.logits"), values("losses.deltas"));
    let classes = fixture.tensor("losses.logits").size()[2] as usize;
    let mut start = 0;
    let levels: Vec<LevelValues> = anchors
        .iter()
        .map(|anchors| {
            let range = start..start + anchors.len();
            start = range.end;
            LevelValues {
                logits: logits[range.start * classes..range.end * classes].to_vec(),
                deltas: deltas[range.start * 4..range.end * 4].to_vec(),
                anchors,
            }
        })
        .collect();
    let limits = Limits::new(&TestConfig { max_detections: 40, ..TestConfig::default() });
    let selector = Selector { limits, top_k: 60, coder: BoxCoder::default(), classes };
    let found = selector.select(&levels, (90, 150));
    assert_eq!(found.labels, fixture.ints("selection.labels"));
    assert_near(&found.boxes, &fixture.rows("selection.boxes"), 1e-4);
    let scores = Tensor::from_slice(&found.scores) - fixture.tensor("selection.scores").to_device(Device::Cpu);
    assert!(scores.abs().max().to_kind(Kind::Double).double_value(&[]) < 1e-6);
}

#[test]
fn a_crowd_is_neither_object_nor_background() {
    let fixture = Fixture::read();
    let anchors = torchvision_anchors().concat();
    let loss = DenseLoss::new(Assigner::Overlap(MATCHER), BoxCoder::default(), &LossConfig::default());
    let run = |target: Target| {
        let logits = fixture.tensor("losses.logits").narrow(0, 0, 1).copy().set_requires_grad(true);
        let deltas = fixture.tensor("losses.deltas").narrow(0, 0, 1).copy().set_requires_grad(true);
        let output = LevelOutput { logits: logits.shallow_clone(), deltas: deltas.shallow_clone(), map: (0, 0) };
        loss.losses(vec![output], &anchors, &[target], None).unwrap().total().backward();
        let touched = |t: Tensor| -> Vec<bool> {
            t.grad().get(0).abs().sum_dim_intlist([1].as_slice(), false, Kind::Float).gt(0.0).try_into().unwrap()
        };
        (touched(logits), touched(deltas))
    };
    let plain = fixture.target(0);
    let mut crowded = fixture.target(0);
    let region = [0.0, 0.0, 160.0, 96.0];
    crowded.boxes.insert(0, region);
    crowded.labels.insert(0, 3);
    crowded.crowd.insert(0, true);
    crowded.masks.insert(0, None);
    let (classified, regressed) = run(plain);
    let (classified_beside_crowd, regressed_beside_crowd) = run(crowded);
    // The same anchors stand for objects; background inside the crowd has no loss, background mostly outside of it has.
    assert_eq!(regressed, regressed_beside_crowd);
    for (i, anchor) in anchors.iter().enumerate() {
        let cut = |v: f32, most: f32| v.clamp(0.0, most);
        let inside = (cut(anchor[2], 160.0) - cut(anchor[0], 160.0)) * (cut(anchor[3], 96.0) - cut(anchor[1], 96.0));
        let share = inside / ((anchor[2] - anchor[0]) * (anchor[3] - anchor[1]));
        let wanted = classified[i] && (regressed[i] || share < 0.5);
        assert_eq!(classified_beside_crowd[i], wanted, "anchor {i}, {share} of it in the crowd");
    }
    assert!(classified_beside_crowd.iter().filter(|c| !**c).count() > 500);
}

/// tests/fixtures/assign/make.py, from the papers.
#[test]
fn adaptive_assignment_and_quality_focal_loss_are_the_papers() {
    let fixture = Fixture::of("assign/assign");
    let objects = fixture.rows("objects");
    for octaves in [1, 3] {
        let anchors = fixture.rows(&format!("{octaves}.anchors"));
        let levels: Vec<usize> = fixture.ints(&format!("{octaves}.levels")).iter().map(|n| *n as usize).collect();
        let found = Atss { candidates: 9, crowd: 0.5 }.assign(&anchors, &levels, &objects, &[]);
        let number = |found: &Match| match found {
            Match::Object(object) => i64::from(*object),
            _ => -1,
        };
        let found: Vec<i64> = found.iter().map(number).collect();
        let expected = fixture.ints(&format!("{octaves}.matches"));
        assert!(expected.iter().filter(|m| **m >= 0).count() > 20);
        assert_eq!(found, expected, "{octaves}");
    }
    let logits = fixture.tensor("loss.logits").copy().set_requires_grad(true);
    let (classes, qualities) = (fixture.ints("loss.classes"), fixture.floats("loss.qualities"));
    let loss = quality_focal_loss(&logits, &classes, &qualities, &[1.0; 40], 2.0).unwrap();
    loss.backward();
    let expected = fixture.tensor("loss.value").double_value(&[0]);
    assert!((loss.double_value(&[]) / expected - 1.0).abs() < tolerance(1e-5));
    let worst = (logits.grad() - fixture.tensor("loss.gradient")).abs().max().double_value(&[]);
    assert!(worst < tolerance(1e-4), "{worst}");
}
