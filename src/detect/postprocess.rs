//! Post-processing as nodes of a graph: what [`super::select`], [`super::nms`] and [`super::boxes`] do, for a model
//! that is written as ONNX. Boxes are corners x1, y1, x2, y2 on the last axis; N is the number of images.

use super::boxes::{BoxCoder, MAX_LOG_SCALE};
use super::select::Limits;
use crate::config::ClipKind;
use crate::onnx::{Attribute, Graph, Kind, Value};

/// The score of what is no candidate. Those of candidates are 0 at least.
const OUT: f64 = -1.0;

/// A detector's outputs as values of a graph: rows of detections, best first, as many for each image; those beyond
/// `counts` are empty.
#[derive(Debug)]
pub struct OnnxDetections {
    /// `[N, D, 4]`, in pixels of the graph's images; zeros in empty rows.
    pub boxes: Value,
    /// `[N, D]`; 0 in empty rows.
    pub scores: Value,
    /// int64 `[N, D]`, class index from 0; −1 in empty rows.
    pub labels: Value,
    /// int64 `[N]`: detections of each image.
    pub counts: Value,
    /// D.
    pub rows: i64,
    /// The masks, where the detector has them.
    pub masks: Option<OnnxMasks>,
}

/// Masks as values of a graph.
#[derive(Debug)]
pub struct OnnxMasks {
    /// `[N, D, side, side]`: probabilities on each box; zeros in empty rows.
    pub grids: Value,
    /// Grid points along each side of a box.
    pub side: i64,
    /// bool `[N, D, H, W]`: the same in the images' pixels.
    pub pixels: Value,
}

/// What a graph's images are.
#[derive(Debug)]
pub struct OnnxImages {
    /// `[N, 3, H, W]`, normalised, with zeros beyond each image.
    pub pixels: Value,
    /// float32 `[N, 2]`: (height, width) of each image within them.
    pub sizes: Value,
    /// int64 `[2]`: H and W.
    pub padded: Value,
}

/// The four coordinates of boxes, `[…, 1]` each.
pub fn corners(graph: &mut Graph, boxes: &Value) -> [Value; 4] {
    [0, 1, 2, 3].map(|i| graph.slice(boxes, -1, i, i + 1))
}

/// Widths and heights of boxes, `[…]` each.
pub fn sides(graph: &mut Graph, boxes: &Value) -> [Value; 2] {
    let corners = corners(graph, boxes);
    [0, 1].map(|i| {
        let side = graph.sub(&corners[i + 2], &corners[i]);
        graph.squeeze(&side, &[-1])
    })
}

/// [`BoxCoder::decode`]: deltas and anchors to boxes.
pub fn decode(graph: &mut Graph, coder: &BoxCoder, deltas: &Value, anchors: &Value) -> Value {
    let anchors = corners(graph, anchors);
    let deltas = corners(graph, deltas);
    let scaled = |graph: &mut Graph, i: usize| match coder.weights[i] {
        1.0 => deltas[i].clone(),
        weight => graph.over(&deltas[i], weight.into()),
    };
    let mut ends = Vec::new();
    for axis in 0..2 {
        let side = graph.sub(&anchors[axis + 2], &anchors[axis]);
        let half = graph.times(&side, 0.5);
        let middle = graph.add(&anchors[axis], &half);
        let shift = scaled(graph, axis);
        let shift = graph.mul(&shift, &side);
        let middle = graph.add(&shift, &middle);
        let log = scaled(graph, axis + 2);
        let mut log = graph.at_most(&log, MAX_LOG_SCALE.into());
        if coder.limit_shrinking {
            log = graph.at_least(&log, (-MAX_LOG_SCALE).into());
        }
        let growth = graph.unary("Exp", &log);
        let side = graph.mul(&growth, &side);
        let half = graph.times(&side, 0.5);
        ends.push([graph.sub(&middle, &half), graph.add(&middle, &half)]);
    }
    graph.concat(&[&ends[0][0], &ends[1][0], &ends[0][1], &ends[1][1]], -1)
}

/// Boxes `[N, M, 4]` cut to their images, of `sizes` (height, width) `[N, 2]`.
pub fn clip(graph: &mut Graph, boxes: &Value, sizes: &Value) -> Value {
    let order = graph.ints(&[1, 0, 1, 0]);
    let most = graph.gather(sizes, &order, 1);
    let most = graph.unsqueeze(&most, &[1]);
    let boxes = graph.at_least(boxes, 0.0);
    graph.min(&boxes, &most)
}

/// Scores `[N, M]`, but [`OUT`] for boxes with a side below `shortest` pixels.
pub fn without_small(graph: &mut Graph, boxes: &Value, scores: &Value, shortest: f32) -> Value {
    let [wide, tall] = sides(graph, boxes).map(|side| graph.is_number("GreaterOrEqual", &side, shortest.into()));
    let fits = graph.is("And", &wide, &tall);
    graph.or_number(&fits, scores, OUT)
}

impl Limits {
    /// Boxes as they enter suppression, and their scores, [`OUT`] for those that do not.
    pub(super) fn candidates_onnx(
        &self,
        graph: &mut Graph,
        boxes: Value,
        scores: Value,
        sizes: &Value,
        shortest: Option<f32>,
    ) -> (Value, Value) {
        let boxes = match self.clip {
            ClipKind::BeforeNms => clip(graph, &boxes, sizes),
            ClipKind::AfterNms => boxes,
        };
        let scores = match self.min_side.or(shortest) {
            Some(shortest) => without_small(graph, &boxes, &scores, shortest),
            None => scores,
        };
        (boxes, scores)
    }

    /// Non-maximum suppression: which of the boxes `[B, M, 4]` stay in one of the classes that they have scores for,
    /// `[B, C, M]`, above the least score: bool `[B, M]`.
    pub(super) fn kept_onnx(&self, graph: &mut Graph, boxes: &Value, scores: &Value) -> Value {
        suppress(graph, boxes, scores, [self.nms, f64::from(self.score)], self.max_detections as i64)
    }

    /// The best of the candidates that stay, boxes `[N, M, 4]`, scores `[N, M]`, labels int64 `[N, M]`.
    pub(super) fn best_onnx(
        &self,
        graph: &mut Graph,
        found: [&Value; 3],
        kept: &Value,
        sizes: &Value,
    ) -> OnnxDetections {
        let [boxes, scores, labels] = found;
        let rows = self.max_detections as i64;
        let ranks = graph.or_number(kept, scores, OUT);
        let (mut scores, index) = first_rows(graph, &ranks, rows);
        let mut boxes = rows_or_zeros(graph, boxes, &index, rows);
        let mut labels = rows_or_zeros(graph, labels, &index, rows);
        if self.clip == ClipKind::AfterNms {
            boxes = clip(graph, &boxes, sizes);
            let [wide, tall] = sides(graph, &boxes).map(|side| graph.is_number("Greater", &side, 0.0));
            let fits = graph.is("And", &wide, &tall);
            let ranks = graph.or_number(&fits, &scores, OUT);
            // What is dropped goes to the end.
            let all = graph.ints(&[rows]);
            let (ranked, order) = graph.top_k(&ranks, &all);
            [boxes, labels] = [boxes, labels].map(|values| graph.rows_at(&values, &order));
            scores = ranked;
        }
        finish(graph, boxes, scores, labels, rows)
    }
}

/// Empties the rows whose score is none, and counts the others.
fn finish(graph: &mut Graph, boxes: Value, scores: Value, labels: Value, rows: i64) -> OnnxDetections {
    let valid = graph.is_number("GreaterOrEqual", &scores, 0.0);
    let labels = graph.or_number(&valid, &labels, -1.0);
    let scores = graph.or_number(&valid, &scores, 0.0);
    let counts = graph.cast(&valid, Kind::Int64);
    let counts = graph.reduce("ReduceSum", &counts, &[1], false);
    let valid = graph.unsqueeze(&valid, &[-1]);
    let boxes = graph.or_number(&valid, &boxes, 0.0);
    OnnxDetections { boxes, scores, labels, counts, rows, masks: None }
}

/// The largest `rows` of each image's ranks `[N, M]`, filled up with [`OUT`] where M is smaller.
pub fn first_rows(graph: &mut Graph, ranks: &Value, rows: i64) -> (Value, Value) {
    let pads = graph.ints(&[0, 0, 0, rows]);
    let ranks = graph.pad(ranks, &pads, OUT);
    let rows = graph.ints(&[rows]);
    graph.top_k(&ranks, &rows)
}

/// Rows `[N, M, …]` at the indices of [`first_rows`].
pub fn rows_or_zeros(graph: &mut Graph, x: &Value, index: &Value, rows: i64) -> Value {
    let pads: &[i64] = if x.kind() == Kind::Int64 { &[0, 0, 0, rows] } else { &[0, 0, 0, 0, rows, 0] };
    let pads = graph.ints(pads);
    let x = graph.pad(x, &pads, 0.0);
    graph.rows_at(&x, index)
}

/// [`super::nms::batched_nms`]: which of the boxes `[B, M, 4]` stay in one of the classes that they have scores for,
/// `[B, C, M]`, of those with scores above `least`, at most `most` in each class: bool `[B, M]`.
pub fn suppress(graph: &mut Graph, boxes: &Value, scores: &Value, [iou, least]: [f64; 2], most: i64) -> Value {
    let (iou, least) = (graph.floats(&[iou as f32], &[1]), graph.floats(&[least as f32], &[1]));
    let most = graph.ints(&[most]);
    let inputs = [boxes, scores, &most, &iou, &least];
    let chosen = graph.node_as(Kind::Int64, "NonMaxSuppression", &inputs, &[("center_point_box", Attribute::Int(0))]);
    // Image, class, box.
    let columns = graph.ints(&[0, 2]);
    let index = graph.gather(&chosen, &columns, 1);
    let count = graph.shape(&index, 0, 1);
    let ones = graph.full_of(1.0, Kind::Float, &count);
    let shape = graph.shape(boxes, 0, 2);
    let kept = graph.scatter(&shape, &index, &ones);
    graph.is_number("Greater", &kept, 0.5)
}
