//! Training losses of a dense detector: every anchor is assigned, classified and, where it stands for an object,
//! regressed (Lin et al., 2017, "Focal Loss for Dense Object Detection", section 4.1).

use tch::Tensor;

use super::boxes::{Box4, BoxCoder};
use super::dense_head::LevelOutput;
use super::detector::Losses;
use super::losses::{box_loss, sigmoid_focal_loss, BACKGROUND, IGNORED};
use super::matcher::{Match, Matcher};
use crate::config::{BoxLoss, LossConfig, LossNormalizer};
use crate::data::Target;

/// How a head's outputs are compared with the objects.
#[derive(Clone, Debug)]
pub struct DenseLoss {
    matcher: Matcher,
    coder: BoxCoder,
    /// Focal loss: weight of positives and exponent.
    alpha: f64,
    gamma: f64,
    box_loss: BoxLoss,
    /// Smooth L1: where it turns from square to linear.
    beta: f64,
    box_weight: f64,
    normalizer: LossNormalizer,
}

/// What the anchors of a batch should have said. Anchors are counted through the batch, image by image.
#[derive(Default)]
struct Assignment {
    /// Class of each anchor, or [`BACKGROUND`] or [`IGNORED`].
    classes: Vec<i64>,
    /// Factor of each anchor's classification loss.
    weights: Vec<f32>,
    /// The anchors that stand for an object.
    positives: Vec<i64>,
    /// For each of those: its deltas, its anchor, the factor of its box loss.
    deltas: Vec<f32>,
    anchors: Vec<f32>,
    box_weights: Vec<f32>,
}

impl DenseLoss {
    /// `matcher` assigns anchors to objects, `coder` codes objects against their anchors.
    pub fn new(matcher: Matcher, coder: BoxCoder, config: &LossConfig) -> Self {
        let &LossConfig { alpha, gamma, box_loss, beta, box_weight, normalizer } = config;
        Self { matcher, coder, alpha, gamma, box_loss, beta, box_weight, normalizer }
    }

    /// Parts `classification` and `box`, of the outputs for all levels, the anchors of all levels in the same order,
    /// and the objects of each image.
    pub fn losses(&self, outputs: &[LevelOutput], anchors: &[Box4], targets: &[Target]) -> Losses {
        let logits: Vec<&Tensor> = outputs.iter().map(|o| &o.logits).collect();
        let deltas: Vec<&Tensor> = outputs.iter().map(|o| &o.deltas).collect();
        let logits = Tensor::cat(&logits, 1).flatten(0, 1);
        let deltas = Tensor::cat(&deltas, 1).flatten(0, 1);
        let device = logits.device();

        let assigned = self.assign(anchors, targets);
        let classification = sigmoid_focal_loss(&logits, &assigned.classes, &assigned.weights, self.alpha, self.gamma);
        let rows = |values: &[f32]| Tensor::from_slice(values).view([-1, 4]).to_device(device);
        let predicted = deltas.index_select(0, &Tensor::from_slice(&assigned.positives).to_device(device));
        let weights = Tensor::from_slice(&assigned.box_weights).to_device(device);
        let regression =
            box_loss(&predicted, &rows(&assigned.deltas), &rows(&assigned.anchors), &weights, self.box_loss, self.beta)
                * self.box_weight;
        Losses { parts: vec![("classification", classification), ("box", regression)] }
    }

    fn assign(&self, anchors: &[Box4], targets: &[Target]) -> Assignment {
        let matches: Vec<(Vec<Match>, Vec<usize>)> =
            targets.iter().map(|target| self.matcher.assign_target(anchors, target)).collect();
        let positives: Vec<usize> =
            matches.iter().map(|(m, _)| m.iter().filter(|m| matches!(m, Match::Object(_))).count()).collect();
        let weight_of = |image: usize| match self.normalizer {
            LossNormalizer::Batch => 1.0 / positives.iter().sum::<usize>().max(1) as f32,
            LossNormalizer::Image => 1.0 / (positives[image].max(1) * targets.len()) as f32,
        };

        let mut assigned = Assignment::default();
        for (image, ((matches, objects), target)) in matches.iter().zip(targets).enumerate() {
            let weight = weight_of(image);
            for (i, (found, anchor)) in matches.iter().zip(anchors).enumerate() {
                assigned.weights.push(weight);
                assigned.classes.push(match *found {
                    Match::Background => BACKGROUND,
                    Match::Ignored => IGNORED,
                    Match::Object(object) => {
                        let object = objects[object as usize];
                        assigned.positives.push((image * anchors.len() + i) as i64);
                        assigned.deltas.extend(self.coder.encode(&target.boxes[object], anchor));
                        assigned.anchors.extend(anchor);
                        assigned.box_weights.push(weight);
                        target.labels[object]
                    }
                });
            }
        }
        assigned
    }
}
