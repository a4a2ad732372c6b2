//! The second stage: proposals to classes, boxes and masks (Girshick, 2015; He et al., 2017).

use anyhow::Result;
use rand::Rng;
use rayon::prelude::*;
use tch::{nn, Kind, Reduction, Tensor};

use super::box_head::BoxHead;
use super::boxes::{Box4, BoxCoder};
use super::detector::Detections;
use super::losses::SampledBoxLoss;
use super::mask_head::{MaskHead, MaskSample};
use super::matcher::{Match, Matcher};
use super::postprocess::{OnnxDetections, OnnxImages};
use super::roi_align::Roi;
use super::sampler::Sampler;
use super::select::{Limits, RoiSelector};
use crate::config::ModelConfig;
use crate::data::Target;
use crate::nn::cost::Layer;
use crate::nn::crossings::send;
use crate::nn::memory::values;
use crate::onnx::{Graph, Value};

/// Box head, mask head, and how their outputs become detections and losses.
#[derive(Debug)]
pub struct RoiHeads {
    boxes: BoxHead,
    masks: Option<MaskHead>,
    matcher: Matcher,
    sampler: Sampler,
    /// The objects themselves are proposals too, in training.
    add_objects: bool,
    box_loss: SampledBoxLoss,
    selector: RoiSelector,
    /// Batch norms take batch statistics in training.
    train_norms: bool,
}

/// The proposals of a batch that enter the losses, and what should be said of them.
#[derive(Default)]
struct Chosen<'a> {
    rois: Vec<Roi>,
    /// Output of the classifier: 0 is background.
    classes: Vec<i64>,
    /// Of the positives: index in `rois` × outputs + class, deltas, corners.
    indices: Vec<i64>,
    deltas: Vec<f32>,
    corners: Vec<f32>,
    masks: Vec<MaskSample<'a>>,
}

impl RoiHeads {
    /// Random weights for `classes` classes on levels of these strides; see [`BoxHead::new`] and [`MaskHead::new`] for
    /// names.
    pub fn new(path: &nn::Path, config: &ModelConfig, classes: i64, strides: &[i64]) -> Self {
        let (channels, roi) = (config.fpn.channels, &config.roi);
        let coder = BoxCoder { weights: roi.box_weights, limit_shrinking: config.test.limit_shrinking };
        let masks = config.mask.then(|| MaskHead::new(path, channels, classes, strides, roi, &config.mask_head));
        Self {
            boxes: BoxHead::new(path, channels, classes, strides, roi),
            masks,
            matcher: Matcher::new(&roi.matching),
            sampler: Sampler { count: roi.sample.count, positive: roi.sample.positive },
            add_objects: roi.add_objects,
            box_loss: SampledBoxLoss::new(coder, &roi.loss),
            selector: RoiSelector { limits: Limits::new(&config.test), coder, classes: classes as usize },
            train_norms: !config.backbone.freeze_norms,
        }
    }

    /// Whether there is a mask head.
    pub fn has_masks(&self) -> bool {
        self.masks.is_some()
    }

    /// Losses `classification`, `box` and, with masks, `mask` of the proposals of each image against its objects.
    /// `sizes` are the images' (height, width) without padding.
    pub fn losses(
        &self,
        levels: &[Tensor],
        proposals: Vec<Vec<Box4>>,
        targets: &[Target],
        sizes: &[(i64, i64)],
        rng: &mut impl Rng,
    ) -> Vec<(&'static str, Tensor)> {
        let device = levels[0].device();
        let chosen = self.choose(proposals, targets, sizes, rng);
        let mut parts = if chosen.rois.is_empty() {
            let nothing = || Tensor::zeros([], (Kind::Float, device));
            vec![("classification", nothing()), ("box", nothing())]
        } else {
            let (logits, deltas) = self.boxes.forward(levels, &chosen.rois, self.train_norms);
            let index = |indices: &[i64]| send(indices, device);
            let classification =
                logits.cross_entropy_loss(&index(&chosen.classes), None::<&Tensor>, Reduction::Mean, -100, 0.0);
            let predicted = deltas.view([-1, 4]).index_select(0, &index(&chosen.indices));
            let regression = self.box_loss.loss(&predicted, &chosen.deltas, &chosen.corners, chosen.rois.len());
            vec![("classification", classification), ("box", regression)]
        };
        if let Some(head) = &self.masks {
            parts.push(("mask", head.loss(levels, &chosen.masks, self.train_norms)));
        }
        parts
    }

    fn choose<'a>(
        &self,
        proposals: Vec<Vec<Box4>>,
        targets: &'a [Target],
        sizes: &[(i64, i64)],
        rng: &mut impl Rng,
    ) -> Chosen<'a> {
        let outputs = self.selector.classes as i64 + 1;
        let mut chosen = Chosen::default();
        for (image, (mut boxes, target)) in proposals.into_iter().zip(targets).enumerate() {
            if self.add_objects {
                boxes.extend(target.split_crowds().0.into_iter().map(|i| target.boxes[i]));
            }
            let (matches, objects) = self.matcher.assign_target(&boxes, target);
            let (positives, background) = self.sampler.sample(&matches, rng);
            let mut taken = [positives, background].concat();
            taken.sort_unstable();
            for i in taken {
                let roi = (image, boxes[i]);
                let index = chosen.rois.len() as i64;
                chosen.rois.push(roi);
                let Match::Object(object) = matches[i] else {
                    chosen.classes.push(0);
                    continue;
                };
                let object = objects[object as usize];
                let label = target.labels[object];
                chosen.classes.push(label + 1);
                chosen.indices.push(index * outputs + label + 1);
                chosen.deltas.extend(self.selector.coder.encode(&target.boxes[object], &boxes[i]));
                chosen.corners.extend(boxes[i]);
                if let Some(mask) = &target.masks[object] {
                    chosen.masks.push(MaskSample { roi, label, mask, image: sizes[image] });
                }
            }
        }
        chosen
    }

    /// Detections of each image, in pixels of the batch's images. Masks lie on those boxes.
    pub fn detect(&self, levels: &[Tensor], proposals: &[Vec<Box4>], sizes: &[(i64, i64)]) -> Result<Vec<Detections>> {
        let rois: Vec<Roi> =
            proposals.iter().enumerate().flat_map(|(i, boxes)| boxes.iter().map(move |b| (i, *b))).collect();
        if rois.is_empty() {
            return Ok(vec![Detections::default(); sizes.len()]);
        }
        let (logits, deltas) = self.boxes.forward(levels, &rois, false);
        // One copy from the device.
        let outputs = logits.size()[1] as usize;
        let both = values(&Tensor::cat(&[logits.softmax(1, Kind::Float).flatten(0, 1), deltas.flatten(0, 1)], 0))?;
        let (scores, deltas) = both.split_at(rois.len() * outputs);
        let selector = &self.selector;
        let mut starts = vec![0];
        for boxes in proposals {
            starts.push(starts[starts.len() - 1] + boxes.len());
        }
        let mut found: Vec<Detections> = proposals
            .par_iter()
            .enumerate()
            .map(|(i, boxes)| {
                let rows = starts[i] * outputs..starts[i + 1] * outputs;
                let deltas = &deltas[4 * rows.start..4 * rows.end];
                selector.select(boxes, &scores[rows], deltas, sizes[i])
            })
            .collect();
        if let Some(head) = &self.masks {
            for (image, found) in found.iter_mut().enumerate() {
                found.masks = head.masks(levels, image, &found.boxes, &found.labels)?;
            }
        }
        Ok(found)
    }

    /// [`RoiHeads::detect`] as nodes of a graph, for proposals `[N, R, 4]` of which some are there, bool `[N, R]`.
    pub fn onnx(
        &self,
        graph: &mut Graph,
        levels: &[Value],
        [proposals, there]: [Value; 2],
        images: &OnnxImages,
    ) -> OnnxDetections {
        let [scores, deltas] = self.boxes.onnx(graph, levels, &proposals, &there);
        let mut found = self.selector.onnx(graph, [&proposals, &scores, &deltas], images);
        found.masks = self.masks.as_ref().map(|head| head.onnx(graph, levels, &found, &images.padded));
        found
    }

    /// Reports every layer to `visit` for so many proposals, and for as many detections as there are at most.
    pub fn flops(&self, proposals: u64, visit: &mut dyn FnMut(Layer)) {
        self.boxes.flops(proposals, visit);
        if let Some(head) = &self.masks {
            head.flops(self.selector.limits.max_detections as u64, visit);
        }
    }
}
