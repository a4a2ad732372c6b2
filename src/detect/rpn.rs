//! The region proposal network (Ren et al., 2015, "Faster R-CNN", section 3.1): which anchors hold an object, whatever
//! its class.

use anyhow::Result;
use rand::Rng;
use rayon::prelude::*;
use tch::nn::Module;
use tch::{nn, Reduction, Tensor};

use super::anchors::AnchorGenerator;
use super::boxes::{clip, Box4, BoxCoder};
use super::candidates::{fetch_best, Candidates, LevelOutputs};
use super::losses::SampledBoxLoss;
use super::matcher::{Match, Matcher};
use super::nms::batched_nms;
use super::postprocess::{self, decode, first_rows, rows_or_zeros, suppress, OnnxImages};
use super::sampler::Sampler;
use crate::config::{AnchorConfig, ProposalConfig, RpnConfig};
use crate::data::Target;
use crate::nn::cost::{convolution, Layer, Size};
use crate::nn::crossings::{has_kernels, send};
use crate::nn::layers::{ConvSpec, Init};
use crate::nn::memory::values;
use crate::nn::precision::full_precision;
use crate::onnx::{Graph, Value};

/// Proposals with a side shorter than this, in pixels, are dropped.
const SHORTEST_SIDE: f32 = 1e-3;

/// Head, anchors, and how its outputs become proposals and losses.
#[derive(Debug)]
pub struct Rpn {
    convs: Vec<nn::Conv2D>,
    objectness: nn::Conv2D,
    deltas: nn::Conv2D,
    anchors: AnchorGenerator,
    matcher: Matcher,
    sampler: Sampler,
    coder: BoxCoder,
    box_loss: SampledBoxLoss,
}

/// What the head says of the anchors of a batch, level by level in the order of [`AnchorGenerator`].
#[derive(Debug)]
pub struct RpnOutput {
    /// Logit of an object, `[B, A]`.
    pub objectness: Tensor,
    /// Box deltas `[B, A, 4]`.
    pub deltas: Tensor,
    /// Anchors of each level, `A` in all.
    pub anchors: Vec<Vec<Box4>>,
}

impl Rpn {
    /// Random weights on levels of `channels`; variables in torchvision's names (`head.conv.0.0.weight`,
    /// `head.cls_logits.weight`, `head.bbox_pred.weight`) under `path`.
    pub fn new(path: &nn::Path, channels: i64, anchors: &AnchorConfig, config: &RpnConfig) -> Self {
        let anchors = AnchorGenerator::new(anchors);
        let head = path / "head";
        let conv =
            |p: nn::Path, output, kernel| ConvSpec::new(channels, output, kernel).init(Init::Normal(0.01)).build(p);
        let coder = BoxCoder::default();
        Self {
            convs: (0..config.convs).map(|i| conv(&head / "conv" / i / "0", channels, 3)).collect(),
            objectness: conv(&head / "cls_logits", anchors.num_anchors(), 1),
            deltas: conv(&head / "bbox_pred", 4 * anchors.num_anchors(), 1),
            anchors,
            matcher: Matcher::new(&config.matching),
            sampler: Sampler { count: config.sample.count, positive: config.sample.positive },
            coder,
            box_loss: SampledBoxLoss::new(coder, &config.loss),
        }
    }

    /// Levels `[B, C, H_i, W_i]` under images of (height, width) pixels, padding included.
    pub fn forward(&self, levels: &[Tensor], image: (i64, i64)) -> RpnOutput {
        let mut maps = Vec::with_capacity(levels.len());
        let (mut objectness, mut deltas) = (Vec::new(), Vec::new());
        for level in levels {
            let x = self.convs.iter().fold(level.shallow_clone(), |x, conv| conv.forward(&x).relu());
            let size = x.size();
            maps.push((size[2], size[3]));
            // Channels are anchor by anchor.
            let flat = |t: Tensor, shape: &[i64]| full_precision(&t).permute([0, 2, 3, 1]).reshape(shape);
            objectness.push(flat(self.objectness.forward(&x), &[size[0], -1]));
            deltas.push(flat(self.deltas.forward(&x), &[size[0], -1, 4]));
        }
        RpnOutput {
            objectness: Tensor::cat(&objectness, 1),
            deltas: Tensor::cat(&deltas, 1),
            anchors: self.anchors.anchors(&maps, image),
        }
    }

    /// Proposals of each image, best first, in pixels, cut to the images' sizes (height, width): per level the best
    /// anchors, decoded; then suppression level by level; then the best of all. No gradient goes through them.
    pub fn proposals(
        &self,
        output: &RpnOutput,
        sizes: &[(i64, i64)],
        selector: &ProposalSelector,
    ) -> Result<Vec<Vec<Box4>>> {
        if !has_kernels(output.objectness.device()) {
            return self.fetch_proposals(output, sizes, selector);
        }
        let (objectness, deltas) = (values(&output.objectness)?, values(&output.deltas)?);
        let all: usize = output.anchors.iter().map(Vec::len).sum();
        let anchors = &output.anchors;
        Ok(sizes
            .par_iter()
            .enumerate()
            .map(|(image, &size)| {
                let own = image * all..(image + 1) * all;
                selector.select(anchors, &objectness[own.clone()], &deltas[4 * own.start..4 * own.end], size)
            })
            .collect())
    }

    /// [`Rpn::forward`] and [`Rpn::proposals`] as nodes of a graph: boxes `[N, R, 4]` of as many proposals for each
    /// image, and which of them there are, bool `[N, R]`.
    pub fn onnx(
        &self,
        graph: &mut Graph,
        levels: &[Value],
        selector: &ProposalSelector,
        images: &OnnxImages,
    ) -> [Value; 2] {
        let (mut boxes, mut ranks) = (Vec::new(), Vec::new());
        for (l, level) in levels.iter().enumerate() {
            graph.part(format!("rpn/level{l}"));
            let mut x = level.clone();
            for conv in &self.convs {
                x = graph.conv2d(&x, conv, 1);
                x = graph.unary("Relu", &x);
            }
            let [objectness, deltas] = [&self.objectness, &self.deltas].map(|conv| {
                let said = graph.conv2d(&x, conv, 1);
                let said = graph.full(&said);
                graph.transpose(&said, &[0, 2, 3, 1])
            });
            let (logits, deltas) = (graph.reshape(&objectness, &[0, -1]), graph.reshape(&deltas, &[0, -1, 4]));
            let all = graph.shape(&logits, 1, 2);
            let count = graph.at_most(&all, selector.top_k as f64);
            let (logits, index) = graph.top_k(&logits, &count);
            let map = graph.shape(level, 2, 4);
            let anchors = self.anchors.onnx(graph, l, &index, &map, &images.padded);
            let deltas = graph.rows_at(&deltas, &index);
            let (found, scores) = selector.onnx_level(graph, &deltas, &anchors, &logits, images);
            boxes.push(found);
            ranks.push(scores);
        }
        graph.part("rpn");
        let [boxes, ranks] = [boxes, ranks].map(|values| graph.concat(&values.iter().collect::<Vec<_>>(), 1));
        let rows = selector.keep as i64;
        let (ranks, index) = first_rows(graph, &ranks, rows);
        let there = graph.is_number("GreaterOrEqual", &ranks, 0.0);
        [rows_or_zeros(graph, &boxes, &index, rows), there]
    }

    /// [`Rpn::proposals`], where the best anchors are chosen on the device.
    fn fetch_proposals(
        &self,
        output: &RpnOutput,
        sizes: &[(i64, i64)],
        selector: &ProposalSelector,
    ) -> Result<Vec<Vec<Box4>>> {
        let mut first = 0;
        let levels: Vec<LevelOutputs> = output
            .anchors
            .iter()
            .map(|anchors| {
                let count = anchors.len() as i64;
                let of = |t: &Tensor| t.detach().narrow(1, first, count);
                let level = (of(&output.objectness), of(&output.deltas));
                first += count;
                level
            })
            .collect();
        let best = fetch_best(&levels, selector.top_k)?;
        let anchors = &output.anchors;
        Ok(best.par_iter().zip(sizes).map(|(best, &size)| selector.choose(anchors, best, size)).collect())
    }

    /// Losses `objectness` and `rpn_box` against the objects of each image.
    pub fn losses(&self, output: &RpnOutput, targets: &[Target], rng: &mut impl Rng) -> [(&'static str, Tensor); 2] {
        let anchors: Vec<Box4> = output.anchors.concat();
        let device = output.objectness.device();
        // Sampled anchors, positives first within each image, counted through the batch.
        let (mut indices, mut labels) = (Vec::new(), Vec::new());
        let (mut positive_indices, mut deltas, mut box_anchors) = (Vec::new(), Vec::new(), Vec::new());
        for (image, target) in targets.iter().enumerate() {
            let (matches, objects) = self.matcher.assign_target(&anchors, target);
            let (positives, background) = self.sampler.sample(&matches, rng);
            let index_of = |i: &usize| (image * anchors.len() + i) as i64;
            indices.extend(positives.iter().chain(&background).map(index_of));
            labels.extend(std::iter::repeat_n(1f32, positives.len()));
            labels.extend(std::iter::repeat_n(0f32, background.len()));
            for i in positives {
                let Match::Object(object) = matches[i] else { continue };
                positive_indices.push(index_of(&i));
                deltas.extend(self.coder.encode(&target.boxes[objects[object as usize]], &anchors[i]));
                box_anchors.extend(anchors[i]);
            }
        }
        let tensor = |indices: &[i64]| send(indices, device);
        let sampled = output.objectness.flatten(0, 1).index_select(0, &tensor(&indices));
        let labels = send(&labels, device);
        let objectness =
            sampled.binary_cross_entropy_with_logits(&labels, None::<&Tensor>, None::<&Tensor>, Reduction::Sum)
                / indices.len().max(1) as f64;
        let predicted = output.deltas.flatten(0, 1).index_select(0, &tensor(&positive_indices));
        let regression = self.box_loss.loss(&predicted, &deltas, &box_anchors, indices.len());
        [("objectness", objectness), ("rpn_box", regression)]
    }

    /// Reports every layer to `visit` for levels of these sizes.
    pub fn flops(&self, levels: &[Size], visit: &mut dyn FnMut(Layer)) {
        for &level in levels {
            for conv in self.convs.iter().chain([&self.objectness, &self.deltas]) {
                convolution(conv, 1, level, visit);
            }
        }
    }
}

/// From what the head says to proposals: per level the best anchors, decoded and cut to the image, that are probable
/// enough; then suppression level by level; then the best of all.
#[derive(Clone, Debug)]
pub struct ProposalSelector {
    /// How deltas are coded.
    pub coder: BoxCoder,
    /// Best anchors of each level before suppression.
    pub top_k: usize,
    /// Best proposals of all levels after it.
    pub keep: usize,
    /// Suppression, per level: IoU above this is a duplicate.
    pub nms: f64,
    /// The least probability of an object, as float32, in which torchvision compares, too.
    pub score: f32,
}

impl ProposalSelector {
    /// As many proposals as `limits` says, with the suppression of `config`.
    pub fn new(config: &RpnConfig, limits: &ProposalConfig) -> Self {
        Self {
            coder: BoxCoder::default(),
            top_k: limits.top_k,
            keep: limits.keep,
            nms: config.nms,
            score: config.score as f32,
        }
    }

    /// Proposals of one image of (height, width) pixels, best first. `objectness` (logits, `[A]`) and `deltas`
    /// (`[A, 4]`) are of the anchors of all levels.
    pub fn select(&self, anchors: &[Vec<Box4>], objectness: &[f32], deltas: &[f32], size: (i64, i64)) -> Vec<Box4> {
        let mut first = 0;
        let best: Vec<Candidates> = anchors
            .iter()
            .map(|anchors| {
                let logits = &objectness[first..first + anchors.len()];
                let indices = top(logits, self.top_k);
                let delta = |i: &usize| [0, 1, 2, 3].map(|d| deltas[4 * (first + i) + d]);
                let deltas = indices.iter().map(delta).collect();
                first += anchors.len();
                Candidates { logits: indices.iter().map(|&i| logits[i]).collect(), deltas, indices }
            })
            .collect();
        self.choose(anchors, &best, size)
    }

    /// Proposals from the best anchors of each level.
    fn choose(&self, anchors: &[Vec<Box4>], best: &[Candidates], size: (i64, i64)) -> Vec<Box4> {
        let (height, width) = (size.0 as f32, size.1 as f32);
        let (mut boxes, mut scores, mut levels) = (Vec::new(), Vec::new(), Vec::new());
        for (l, (anchors, best)) in anchors.iter().zip(best).enumerate() {
            for ((&i, logit), delta) in best.indices.iter().zip(&best.logits).zip(&best.deltas) {
                let b = clip(&self.coder.decode(delta, &anchors[i]), height, width);
                let score = 1.0 / (1.0 + (-logit).exp());
                if b[2] - b[0] >= SHORTEST_SIDE && b[3] - b[1] >= SHORTEST_SIDE && score >= self.score {
                    boxes.push(b);
                    scores.push(score);
                    levels.push(l as i64);
                }
            }
        }
        let mut kept = batched_nms(&boxes, &scores, &levels, self.nms);
        kept.truncate(self.keep);
        kept.into_iter().map(|i| boxes[i]).collect()
    }
}

impl ProposalSelector {
    /// The proposals of one level, `[N, k, 4]`, from its best anchors, and their probabilities, below 0 for what is
    /// none.
    fn onnx_level(
        &self,
        graph: &mut Graph,
        deltas: &Value,
        anchors: &Value,
        logits: &Value,
        images: &OnnxImages,
    ) -> (Value, Value) {
        let boxes = decode(graph, &self.coder, deltas, anchors);
        let boxes = postprocess::clip(graph, &boxes, &images.sizes);
        let scores = graph.unary("Sigmoid", logits);
        let mut ranks = postprocess::without_small(graph, &boxes, &scores, SHORTEST_SIDE);
        if self.score > 0.0 {
            let probable = graph.is_number("GreaterOrEqual", &scores, self.score.into());
            ranks = graph.or_number(&probable, &ranks, -1.0);
        }
        let alone = graph.unsqueeze(&ranks, &[1]);
        let kept = suppress(graph, &boxes, &alone, [self.nms, -0.5], self.keep as i64);
        let ranks = graph.or_number(&kept, &ranks, -1.0);
        (boxes, ranks)
    }
}

/// Indices of the `count` largest values, largest first; of equal ones the first wins. What is not a number comes last.
fn top(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let value = |i: usize| if values[i].is_nan() { f32::NEG_INFINITY } else { values[i] };
    let by = |a: &usize, b: &usize| value(*b).total_cmp(&value(*a)).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, by);
        order.truncate(count);
    }
    order.sort_unstable_by(by);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_of_equals_the_first() {
        let values = [1.0, 3.0, f32::NAN, 3.0, -1.0, 2.0, 3.0];
        assert_eq!(top(&values, 2), [1, 3]);
        assert_eq!(top(&values, 4), [1, 3, 6, 5]);
        assert_eq!(top(&values, 99), [1, 3, 6, 5, 0, 4, 2]);
        assert_eq!(top(&[], 3), Vec::<usize>::new());
    }
}
