//! From what a head says of every anchor or proposal to the detections of an image.

use super::anchors::AnchorGenerator;
use super::boxes::{clip, Box4, BoxCoder};
use super::candidates::Candidates;
use super::detector::Detections;
use super::nms::batched_nms;
use super::postprocess::{decode, OnnxDetections, OnnxImages};
use crate::config::{ClipKind, TestConfig};
use crate::onnx::{Graph, Value};

/// Detections of two-stage detectors with a side shorter than this, in pixels, are dropped where the config does not
/// say otherwise (torchvision).
const SHORTEST_SIDE: f32 = 1e-2;

/// What a head says of one level of one image.
#[derive(Clone, Debug)]
pub struct LevelValues<'a> {
    /// Class logits `[A, K]`, anchors first.
    pub logits: Vec<f32>,
    /// Box deltas `[A, 4]`.
    pub deltas: Vec<f32>,
    /// The level's anchors, `A` of them.
    pub anchors: &'a [Box4],
}

/// Which candidates become detections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Scores must be above this: as float32, in which torchvision compares, too. What is not a number is not.
    pub score: f32,
    /// Non-maximum suppression, per class: IoU above this is a duplicate.
    pub nms: f64,
    /// Detections kept per image.
    pub max_detections: usize,
    /// Boxes with a shorter side are no candidates; `None`: the detector's own limit.
    pub min_side: Option<f32>,
    /// When boxes are cut to the image.
    pub clip: ClipKind,
}

impl Limits {
    /// Those of a config.
    pub fn new(config: &TestConfig) -> Self {
        Self {
            score: config.score as f32,
            nms: config.nms,
            max_detections: config.max_detections as usize,
            min_side: config.min_side.map(|side| side as f32),
            clip: config.clip,
        }
    }

    /// A decoded box as it enters suppression, on an image of (height, width) pixels; `None`: it does not.
    fn candidate(&self, b: Box4, (height, width): (i64, i64), shortest: Option<f32>) -> Option<Box4> {
        let b = match self.clip {
            ClipKind::BeforeNms => clip(&b, height as f32, width as f32),
            ClipKind::AfterNms => b,
        };
        let fits = |side: f32| b[2] - b[0] >= side && b[3] - b[1] >= side;
        self.min_side.or(shortest).is_none_or(fits).then_some(b)
    }

    /// The best candidates after suppression class by class, best first.
    fn best(&self, all: &Detections, (height, width): (i64, i64)) -> Detections {
        let mut kept = batched_nms(&all.boxes, &all.scores, &all.labels, self.nms);
        kept.truncate(self.max_detections);
        if self.clip == ClipKind::BeforeNms {
            return all.select(&kept);
        }
        let cut = |i: usize| clip(&all.boxes[i], height as f32, width as f32);
        kept.retain(|&i| cut(i)[2] > cut(i)[0] && cut(i)[3] > cut(i)[1]);
        let mut found = all.select(&kept);
        found.boxes.iter_mut().for_each(|b| *b = clip(b, height as f32, width as f32));
        found
    }
}

/// Chooses detections: per level the `top_k` best above `score`, decoded and cut to the image; then suppression per
/// class over all levels; then the `max_detections` best.
#[derive(Clone, Debug)]
pub struct Selector {
    /// Thresholds.
    pub limits: Limits,
    /// Candidates kept per level.
    pub top_k: usize,
    /// How deltas are coded.
    pub coder: BoxCoder,
    /// Number of classes K.
    pub classes: usize,
}

impl Selector {
    /// Detections of one image of (height, width) pixels, in its pixels, best first.
    pub fn select(&self, levels: &[LevelValues], size: (i64, i64)) -> Detections {
        let best: Vec<Candidates> = levels.iter().map(|level| self.best(level)).collect();
        let anchors: Vec<&[Box4]> = levels.iter().map(|level| level.anchors).collect();
        self.choose(&anchors, &best, size)
    }

    /// The best candidates of a level.
    fn best(&self, level: &LevelValues) -> Candidates {
        // Most logits are far below: to compare is quicker than to exponentiate.
        let least = least_logit(self.limits.score);
        let mut found: Vec<(f32, usize)> =
            level.logits.iter().enumerate().filter(|(_, x)| **x >= least).map(|(i, x)| (*x, i)).collect();
        found.retain(|(logit, _)| sigmoid(*logit) > self.limits.score);
        let by = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if found.len() > self.top_k {
            found.select_nth_unstable_by(self.top_k, by);
            found.truncate(self.top_k);
        }
        found.sort_unstable_by(by);
        let delta = |i: usize| [0, 1, 2, 3].map(|d| level.deltas[i / self.classes * 4 + d]);
        Candidates {
            deltas: found.iter().map(|(_, i)| delta(*i)).collect(),
            logits: found.iter().map(|(logit, _)| *logit).collect(),
            indices: found.into_iter().map(|(_, i)| i).collect(),
        }
    }

    /// Detections of one image from the best candidates of each level.
    pub(super) fn choose(&self, anchors: &[&[Box4]], best: &[Candidates], size: (i64, i64)) -> Detections {
        let mut all = Detections::default();
        for (anchors, best) in anchors.iter().zip(best) {
            for ((&i, &logit), delta) in best.indices.iter().zip(&best.logits).zip(&best.deltas) {
                let score = sigmoid(logit);
                // Not a number is not above.
                if !(score > self.limits.score) {
                    continue;
                }
                let b = self.coder.decode(delta, &anchors[i / self.classes]);
                let Some(b) = self.limits.candidate(b, size, None) else { continue };
                all.boxes.push(b);
                all.scores.push(score);
                all.labels.push((i % self.classes) as i64);
            }
        }
        self.limits.best(&all, size)
    }
}

/// What a head says of one level, as values of a graph.
#[derive(Debug)]
pub struct OnnxLevel {
    /// Class logits `[N, A·K]`, anchors first.
    pub logits: Value,
    /// Box deltas `[N, A, 4]`.
    pub deltas: Value,
    /// (height, width) of its map, int64 `[2]`.
    pub map: Value,
}

impl Selector {
    /// [`Selector::select`] as nodes of a graph.
    pub fn onnx(
        &self,
        graph: &mut Graph,
        levels: &[OnnxLevel],
        anchors: &AnchorGenerator,
        images: &OnnxImages,
    ) -> OnnxDetections {
        let (mut boxes, mut scores, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for (l, level) in levels.iter().enumerate() {
            graph.part(format!("select/level{l}"));
            let all = graph.shape(&level.logits, 1, 2);
            let count = graph.at_most(&all, self.top_k as f64);
            let (logits, index) = graph.top_k(&level.logits, &count);
            let classes = graph.int(self.classes as i64);
            let anchor = graph.div(&index, &classes);
            labels.push(graph.op("Mod", &[&index, &classes], &[]));
            scores.push(graph.unary("Sigmoid", &logits));
            let deltas = graph.rows_at(&level.deltas, &anchor);
            let anchors = anchors.onnx(graph, l, &anchor, &level.map, &images.padded);
            boxes.push(decode(graph, &self.coder, &deltas, &anchors));
        }
        graph.part("select");
        let [boxes, scores, labels] =
            [boxes, scores, labels].map(|of_levels| graph.concat(&of_levels.iter().collect::<Vec<_>>(), 1));
        let (boxes, scores) = self.limits.candidates_onnx(graph, boxes, scores, &images.sizes, None);
        // Suppression class by class: each candidate has a score in its own class alone.
        let classes: Vec<i64> = (0..self.classes as i64).collect();
        let classes = graph.ints(&classes);
        let classes = graph.unsqueeze(&classes, &[0, 2]);
        let [of_label, of_score] = [&labels, &scores].map(|value| graph.unsqueeze(value, &[1]));
        let own = graph.is("Equal", &of_label, &classes);
        let by_class = graph.or_number(&own, &of_score, -1.0);
        let kept = self.limits.kept_onnx(graph, &boxes, &by_class);
        self.limits.best_onnx(graph, [&boxes, &scores, &labels], &kept, &images.sizes)
    }
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// A logit below which no [`sigmoid`] is above `score`, whichever way it is rounded.
fn least_logit(score: f32) -> f32 {
    let low = f64::from(score) - f64::from(f32::EPSILON) * 2.0;
    if low <= 0.0 {
        f32::NEG_INFINITY
    } else {
        ((low / (1.0 - low)).ln() - 1e-3) as f32
    }
}

/// Chooses detections of a second stage: every class of every proposal is a candidate if its score is above `score`;
/// decoded, cut to the image, suppressed class by class, and the `max_detections` best of them.
#[derive(Clone, Debug)]
pub struct RoiSelector {
    /// Thresholds.
    pub limits: Limits,
    /// How deltas are coded.
    pub coder: BoxCoder,
    /// Number of classes K, without background.
    pub classes: usize,
}

impl RoiSelector {
    /// Detections of one image of (height, width) pixels, best first. `scores` are `[R, K + 1]`, background first;
    /// `deltas` `[R, K + 1, 4]`.
    pub fn select(&self, proposals: &[Box4], scores: &[f32], deltas: &[f32], size: (i64, i64)) -> Detections {
        let outputs = self.classes + 1;
        let mut all = Detections::default();
        for (i, proposal) in proposals.iter().enumerate() {
            for class in 1..outputs {
                let at = i * outputs + class;
                // Not a number is not above.
                if !(scores[at] > self.limits.score) {
                    continue;
                }
                let delta = [0, 1, 2, 3].map(|d| deltas[4 * at + d]);
                let b = self.coder.decode(&delta, proposal);
                if let Some(b) = self.limits.candidate(b, size, Some(SHORTEST_SIDE)) {
                    all.boxes.push(b);
                    all.scores.push(scores[at]);
                    all.labels.push(class as i64 - 1);
                }
            }
        }
        self.limits.best(&all, size)
    }
}

impl RoiSelector {
    /// [`RoiSelector::select`] as nodes of a graph, for proposals `[N, R, 4]`, scores `[N, R, K + 1]` and deltas
    /// `[N, R, (K + 1) · 4]`.
    pub fn onnx(&self, graph: &mut Graph, said: [&Value; 3], images: &OnnxImages) -> OnnxDetections {
        let [proposals, scores, deltas] = said;
        graph.part("select");
        let (classes, outputs) = (self.classes as i64, self.classes as i64 + 1);
        // Without background: [N, R, K, …].
        let scores = graph.slice(scores, 2, 1, outputs);
        let deltas = graph.reshape(deltas, &[0, 0, outputs, 4]);
        let deltas = graph.slice(&deltas, 2, 1, outputs);
        let proposals = graph.unsqueeze(proposals, &[2]);
        let boxes = decode(graph, &self.coder, &deltas, &proposals);
        let (boxes, scores) = (graph.reshape(&boxes, &[0, -1, 4]), graph.reshape(&scores, &[0, -1]));
        let (boxes, scores) = self.limits.candidates_onnx(graph, boxes, scores, &images.sizes, Some(SHORTEST_SIDE));
        // Suppression class by class: each class of each image is a batch of its own, [N · K, R, …].
        let of_class = |graph: &mut Graph, x: &Value, order: &[i64]| {
            let inside = &[0, -1, classes, 4][..order.len()];
            let x = graph.reshape(x, inside);
            graph.transpose(&x, order)
        };
        let by_class = of_class(graph, &scores, &[0, 2, 1]);
        let shape = graph.shape(&by_class, 0, 3);
        let rows = graph.shape(&by_class, 2, 3);
        let rest = graph.ints(&[-1]);
        let (one, four) = (graph.ints(&[1]), graph.ints(&[4]));
        let by_class = graph.reshape_to(&by_class, &[&rest, &one, &rows]);
        let of_boxes = of_class(graph, &boxes, &[0, 2, 1, 3]);
        let of_boxes = graph.reshape_to(&of_boxes, &[&rest, &rows, &four]);
        let kept = self.limits.kept_onnx(graph, &of_boxes, &by_class);
        let kept = graph.reshape_to(&kept, &[&shape]);
        let kept = graph.transpose(&kept, &[0, 2, 1]);
        let kept = graph.reshape(&kept, &[0, -1]);
        // Labels of all candidates: 0, 1, …, K − 1, 0, 1, …
        let size = graph.shape(&scores, 0, 2);
        let count = graph.shape(&scores, 1, 2);
        let place = graph.range(&count);
        let classes = graph.int(classes);
        let labels = graph.op("Mod", &[&place, &classes], &[]);
        let labels = graph.op("Expand", &[&labels, &size], &[]);
        self.limits.best_onnx(graph, [&boxes, &scores, &labels], &kept, &images.sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_do_not_suppress_each_other_and_limits_hold() {
        let anchors = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 80.0, 40.0]];
        // Anchor 0 says class 0, anchor 1 class 1 and, weaker, class 0; anchor 2 class 1, beyond the image, and class 0
        // with a score of 0.03; the rest is silent.
        let logits = vec![3.0, -9.0, 0.5, 2.0, -3.5, 1.0];
        let level = LevelValues { logits, deltas: vec![0.0; 12], anchors: &anchors };
        let limits = Limits::new(&TestConfig::default());
        let mut selector = Selector { limits, top_k: 1000, coder: BoxCoder::default(), classes: 2 };
        let found = selector.select(std::slice::from_ref(&level), (30, 50));
        assert_eq!(found.labels, [0, 1, 1]);
        assert_eq!(found.boxes[2], [20.0, 20.0, 50.0, 30.0]);
        assert!((found.scores[0] - 0.952_574_1).abs() < 1e-6);
        selector.limits.max_detections = 2;
        assert_eq!(selector.select(std::slice::from_ref(&level), (30, 50)).labels, [0, 1]);
        selector.top_k = 1;
        assert_eq!(selector.select(&[level], (30, 50)).labels, [0]);
    }

    #[test]
    fn no_score_above_the_threshold_is_passed_over_by_its_logit() {
        for score in [0.0, 1e-7, 1e-3, 0.05, 0.5, 0.999, 0.999_999_9, 1.0f32.next_down()] {
            // The smallest logit whose score is above, by halves.
            let (mut below, mut above) = (-200f32, 200f32);
            while below < above.next_down() {
                let middle = (below + above) / 2.0;
                let middle = if middle > below && middle < above { middle } else { below.next_up() };
                *(if sigmoid(middle) > score { &mut above } else { &mut below }) = middle;
            }
            let least = least_logit(score);
            assert!(least <= above, "{score}: {least} {above}");
            // And few others pass.
            assert!(!(1e-6..0.999_99).contains(&score) || least > above - 0.01, "{score}: {least} {above}");
        }
        assert!([1.0, 1.5, f32::NAN].iter().all(|score| !(sigmoid(100.0) > *score)));
    }

    /// detectron2's RetinaNet: what overlaps inside the image only, or is empty there.
    #[test]
    fn boxes_are_cut_before_or_after_suppression_as_the_config_says() {
        // Cut to 20 × 20 pixels the first two are the same; the third lies outside.
        let anchors = [[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 60.0], [30.0, 0.0, 40.0, 20.0]];
        let level = LevelValues { logits: vec![3.0, 2.0, 1.0], deltas: vec![0.0; 12], anchors: &anchors };
        let found = |test: TestConfig| {
            let limits = Limits::new(&test);
            let selector = Selector { limits, top_k: 1000, coder: BoxCoder::default(), classes: 1 };
            selector.select(std::slice::from_ref(&level), (20, 20)).boxes
        };
        let whole = [0.0, 0.0, 20.0, 20.0];
        assert_eq!(found(TestConfig::default()), [whole, [20.0, 0.0, 20.0, 20.0]]);
        assert_eq!(found(TestConfig { min_side: Some(1e-6), ..TestConfig::default() }), [whole]);
        assert_eq!(found(TestConfig { clip: ClipKind::AfterNms, ..TestConfig::default() }), [whole, whole]);
    }

    #[test]
    fn a_two_stage_detector_keeps_empty_boxes_only_where_told_to() {
        let proposal = [30.0, 0.0, 40.0, 20.0];
        let found = |min_side| {
            let limits = Limits::new(&TestConfig { min_side, ..TestConfig::default() });
            let selector = RoiSelector { limits, coder: BoxCoder::default(), classes: 1 };
            selector.select(&[proposal], &[0.1, 0.9], &[0.0; 8], (20, 20)).len()
        };
        assert_eq!([found(None), found(Some(0.0))], [0, 1]);
    }

    /// As float32, 0.05 is a little more than 0.05, and 0.7 a little less than 0.7.
    #[test]
    fn a_score_of_just_the_threshold_is_not_above_it() {
        let proposal = [0.0, 0.0, 10.0, 10.0];
        for score in [0.05, 0.7] {
            let limits = Limits::new(&TestConfig { score, ..TestConfig::default() });
            let next = (score as f32).next_up();
            for (own, detections) in [(score as f32, 0), (next, 1), (f32::NAN, 0)] {
                let selector = RoiSelector { limits, coder: BoxCoder::default(), classes: 1 };
                let found = selector.select(&[proposal], &[1.0 - own, own], &[0.0; 8], (20, 20));
                assert_eq!(found.len(), detections, "{own} against {score}");
            }
        }
    }
}
