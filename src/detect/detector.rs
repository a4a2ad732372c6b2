//! What every detector can do, and what it returns.

use anyhow::{bail, Result};
use tch::Tensor;
use vigdet_coco::rle::Rle;

use super::instance_mask::InstanceMask;
use super::postprocess::{OnnxDetections, OnnxImages};
use crate::backbone::Pass;
use crate::data::Batch;
use crate::nn::cost::{Layer, Size};
use crate::onnx::Graph;

/// A detector in training and in inference. It owns its backbone.
pub trait Detector: Send {
    /// Training: the parts of the loss for a batch, each a scalar tensor with gradients, named as in logs
    /// (`classification`, `box`, …). Their sum is what is minimised.
    fn losses(&self, batch: &Batch, pass: &mut Pass) -> Result<Losses>;

    /// Inference: what is seen on each image of a batch, in pixels of the original images. Takes no gradients.
    fn detect(&self, batch: &Batch) -> Result<Vec<Detections>>;

    /// [`Detector::detect`] as nodes of a graph; boxes are in pixels of the graph's images.
    ///
    /// # Errors
    /// If its backbone, or the graph's options for it, cannot be written.
    fn onnx(&self, _graph: &mut Graph, _images: &OnnxImages) -> Result<OnnxDetections> {
        bail!("this detector cannot be written as ONNX yet")
    }

    /// Whether detections come with masks.
    fn has_masks(&self) -> bool {
        false
    }

    /// Reports every layer to `visit` for one image of this size in pixels.
    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer));
}

/// Named parts of a training loss.
#[derive(Debug)]
pub struct Losses {
    /// Name and scalar tensor of each part.
    pub parts: Vec<(&'static str, Tensor)>,
}

impl Losses {
    /// The sum of all parts: a scalar tensor.
    pub fn total(&self) -> Tensor {
        let parts: Vec<&Tensor> = self.parts.iter().map(|(_, t)| t).collect();
        Tensor::stack(&parts, 0).sum(tch::Kind::Float)
    }
}

/// What a detector sees on one image, best first. All vectors have one entry per detection; `masks` is empty where the
/// detector has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detections {
    /// Corners x1, y1, x2, y2 in pixels of the original image.
    pub boxes: Vec<[f32; 4]>,
    /// Between 0 and 1.
    pub scores: Vec<f32>,
    /// Class index from 0.
    pub labels: Vec<i64>,
    /// The masks, on their boxes.
    pub masks: Vec<InstanceMask>,
}

impl Detections {
    /// Number of detections.
    pub fn len(&self) -> usize {
        self.scores.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }

    /// Those of these indices, in their order, without masks.
    pub fn select(&self, indices: &[usize]) -> Self {
        Self {
            boxes: indices.iter().map(|&i| self.boxes[i]).collect(),
            scores: indices.iter().map(|&i| self.scores[i]).collect(),
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
            masks: Vec::new(),
        }
    }

    /// Leaves out those whose score is not above this.
    pub fn keep_above(&mut self, score: f32) {
        // They are best first.
        let count = self.scores.iter().take_while(|own| **own > score).count();
        self.boxes.truncate(count);
        self.scores.truncate(count);
        self.labels.truncate(count);
        self.masks.truncate(count);
    }

    /// The mask of detection `i` on an image of `height × width` pixels, if there are masks.
    pub fn mask(&self, i: usize, height: u32, width: u32) -> Option<Rle> {
        Some(self.masks.get(i)?.paste(&self.boxes[i], height, width))
    }

    /// Moves the boxes, and the masks with them, from an image of `from` (height, width) pixels to the same image at
    /// `to`.
    pub fn rescale(&mut self, from: (i64, i64), to: (i64, i64)) {
        let (y, x) = (to.0 as f32 / from.0 as f32, to.1 as f32 / from.1 as f32);
        for b in &mut self.boxes {
            *b = [b[0] * x, b[1] * y, b[2] * x, b[3] * y];
        }
    }
}
