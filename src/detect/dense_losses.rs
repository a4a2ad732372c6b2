//! Training losses of a dense detector: every anchor is assigned, classified and, where it stands for an object,
//! regressed (Lin et al., 2017, "Focal Loss for Dense Object Detection", section 4.1).

use anyhow::Result;
use tch::Tensor;

use super::atss::Atss;
use super::boxes::{iou, Box4, BoxCoder};
use super::dense_head::LevelOutput;
use super::detector::Losses;
use super::losses::{box_loss, quality_focal_loss, sigmoid_focal_loss, BACKGROUND, IGNORED};
use super::matcher::{Match, Matcher};
use crate::config::{BoxLoss, ClassLoss, LossConfig, LossNormalizer, MatchConfig, MatchKind};
use crate::data::Target;
use crate::nn::crossings::send;
use crate::nn::memory::values;
use crate::nn::padding::Extents;

/// Which anchors stand for which objects.
#[derive(Clone, Copy, Debug)]
pub enum Assigner {
    /// Those that overlap them.
    Overlap(Matcher),
    /// Those near their centres that overlap them more than most.
    Adaptive(Atss),
}

impl Assigner {
    /// The one that a config names.
    pub fn new(config: &MatchConfig) -> Self {
        match config.kind {
            MatchKind::Iou => Self::Overlap(Matcher::new(config)),
            MatchKind::Atss => Self::Adaptive(Atss { candidates: config.candidates, crowd: config.crowd as f32 }),
        }
    }

    /// The match of each anchor among a target's objects, beside its crowds; and which of the target's entries the
    /// objects are. `levels` has the number of locations of each level.
    pub fn assign(&self, anchors: &[Box4], levels: &[usize], target: &Target) -> (Vec<Match>, Vec<usize>) {
        match self {
            Self::Overlap(matcher) => matcher.assign_target(anchors, target),
            Self::Adaptive(atss) => {
                let (objects, crowds) = target.split_crowds();
                let of = |which: &[usize]| -> Vec<Box4> { which.iter().map(|&i| target.boxes[i]).collect() };
                (atss.assign(anchors, levels, &of(&objects), &of(&crowds)), objects)
            }
        }
    }
}

/// How a head's outputs are compared with the objects.
#[derive(Clone, Debug)]
pub struct DenseLoss {
    assigner: Assigner,
    coder: BoxCoder,
    class_loss: ClassLoss,
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
    /// `assigner` assigns anchors to objects, `coder` codes objects against their anchors.
    pub fn new(assigner: Assigner, coder: BoxCoder, config: &LossConfig) -> Self {
        let &LossConfig { class: class_loss, alpha, gamma, box_loss, beta, box_weight, normalizer } = config;
        Self { assigner, coder, class_loss, alpha, gamma, box_loss, beta, box_weight, normalizer }
    }

    /// Parts `classification` and `box`, of the outputs for all levels, the anchors of all levels in the same order,
    /// and the objects of each image. Anchors beyond `extents` enter nothing.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn losses(
        &self,
        outputs: Vec<LevelOutput>,
        anchors: &[Box4],
        targets: &[Target],
        extents: Option<&Extents>,
    ) -> Result<Losses> {
        let logits: Vec<&Tensor> = outputs.iter().map(|o| &o.logits).collect();
        let deltas: Vec<&Tensor> = outputs.iter().map(|o| &o.deltas).collect();
        let logits = Tensor::cat(&logits, 1).flatten(0, 1);
        let deltas = Tensor::cat(&deltas, 1).flatten(0, 1);
        let device = logits.device();

        let maps: Vec<(i64, i64)> = outputs.iter().map(|o| o.map).collect();
        // What is joined need not be kept in parts, too.
        drop(outputs);
        let assigned = self.assign(anchors, &maps, targets, extents);
        let rows = |values: &[f32]| send(values, device).view([-1, 4]);
        let predicted = deltas.index_select(0, &send(&assigned.positives, device));
        let Assignment { classes, weights, .. } = &assigned;
        let classification = match self.class_loss {
            ClassLoss::Focal => sigmoid_focal_loss(&logits, classes, weights, self.alpha, self.gamma)?,
            ClassLoss::QualityFocal => {
                quality_focal_loss(&logits, classes, &self.qualities(&assigned, &predicted), weights, self.gamma)?
            }
        };
        let weights = send(&assigned.box_weights, device);
        let regression =
            box_loss(&predicted, &rows(&assigned.deltas), &rows(&assigned.anchors), &weights, self.box_loss, self.beta)
                * self.box_weight;
        Ok(Losses { parts: vec![("classification", classification), ("box", regression)] })
    }

    /// For each anchor, the IoU of its predicted box and its object's; 0 where it stands for none.
    fn qualities(&self, assigned: &Assignment, predicted: &Tensor) -> Vec<f32> {
        let predicted = values(predicted).unwrap_or_default();
        let mut qualities = vec![0.0; assigned.classes.len()];
        let fours = |values: &[f32]| -> Vec<[f32; 4]> { values.as_chunks().0.to_vec() };
        let (predicted, deltas, anchors) = (fours(&predicted), fours(&assigned.deltas), fours(&assigned.anchors));
        for (i, ((predicted, deltas), anchor)) in
            assigned.positives.iter().zip(predicted.iter().zip(&deltas).zip(&anchors))
        {
            let decode = |deltas| self.coder.decode(deltas, anchor);
            qualities[*i as usize] = iou(&decode(predicted), &decode(deltas));
        }
        qualities
    }

    fn assign(
        &self,
        anchors: &[Box4],
        maps: &[(i64, i64)],
        targets: &[Target],
        extents: Option<&Extents>,
    ) -> Assignment {
        let locations = |maps: &[(i64, i64)]| maps.iter().map(|(h, w)| (h * w) as usize).collect::<Vec<_>>();
        let matches: Vec<(Vec<Match>, Vec<usize>)> = match extents {
            None => targets.iter().map(|target| self.assigner.assign(anchors, &locations(maps), target)).collect(),
            Some(extents) => {
                let own: Vec<Vec<(i64, i64)>> = maps.iter().map(|&map| extents.on(map)).collect();
                let of_image = |(image, target): (usize, &Target)| {
                    let own: Vec<(i64, i64)> = own.iter().map(|level| level[image]).collect();
                    let kept = anchors_within(maps, &own, anchors.len());
                    let near: Vec<Box4> = kept.iter().map(|&i| anchors[i]).collect();
                    let (found, objects) = self.assigner.assign(&near, &locations(&own), target);
                    let mut matches = vec![Match::Ignored; anchors.len()];
                    kept.iter().zip(found).for_each(|(&i, found)| matches[i] = found);
                    (matches, objects)
                };
                targets.iter().enumerate().map(of_image).collect()
            }
        };
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

/// The anchors of an image that is (height, width) large on each level's map: their indices among those of all `maps`.
fn anchors_within(maps: &[(i64, i64)], own: &[(i64, i64)], anchors: usize) -> Vec<usize> {
    let locations: i64 = maps.iter().map(|(height, width)| height * width).sum();
    let per_location = anchors / locations.max(1) as usize;
    let mut first = 0;
    let mut kept = Vec::new();
    for (&(height, width), &(h, w)) in maps.iter().zip(own) {
        for row in 0..h {
            let start = (first + row * width) as usize * per_location;
            kept.extend(start..start + w as usize * per_location);
        }
        first += height * width;
    }
    kept
}
