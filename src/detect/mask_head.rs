//! The mask head (He et al., 2017, figure 4, right): a small fully convolutional network on each region.

use anyhow::Result;
use rayon::prelude::*;
use tch::nn::Module;
use tch::{nn, Kind, Reduction, Tensor};

use super::boxes::Box4;
use super::head_conv::HeadConv;
use super::instance_mask::paste_onnx;
use super::instance_mask::InstanceMask;
use super::postprocess::{OnnxDetections, OnnxMasks};
use super::roi_align::{OnnxPooled, Roi, RoiAlign, RoiPooler};
use crate::config::{MaskHeadConfig, MaskTargets, PasteKind, RoiConfig};
use crate::data::mask::{Drawn, Mask};
use crate::nn::cost::Layer;
use crate::nn::crossings::send;
use crate::nn::layers::{ConvSpec, Init};
use crate::nn::memory::values;
use crate::nn::precision::full_precision;
use crate::onnx::{Attribute, Graph, Value};

/// A positive region in training: where, of which class (from 0), and the mask that it should have.
#[derive(Debug)]
pub struct MaskSample<'a> {
    /// The region.
    pub roi: Roi,
    /// Class of its object.
    pub label: i64,
    /// The object's mask.
    pub mask: &'a Mask,
    /// (height, width) of the image without padding.
    pub image: (i64, i64),
}

/// `convs` × (3×3 convolution, relu), a 2×2 deconvolution that doubles the resolution, relu, and one logit per class.
#[derive(Debug)]
pub struct MaskHead {
    pooler: RoiPooler,
    convs: Vec<HeadConv>,
    deconv: nn::ConvTranspose2D,
    logits: nn::Conv2D,
    /// What masks learn, and the factor of their loss.
    targets: MaskTargets,
    weight: f64,
    /// How masks are put into their image.
    paste: PasteKind,
    threshold: f32,
}

impl MaskHead {
    /// Random weights on levels of `channels` and these strides; variables in torchvision's names
    /// (`mask_head.0.0.weight`, `mask_predictor.conv5_mask.weight`, `mask_predictor.mask_fcn_logits.weight`) under
    /// `path`. The first of the `classes + 1` logits is of background, which no region has.
    pub fn new(
        path: &nn::Path,
        channels: i64,
        classes: i64,
        strides: &[i64],
        roi: &RoiConfig,
        config: &MaskHeadConfig,
    ) -> Self {
        let c = config.channels;
        let head = path / "mask_head";
        let convs = (0..config.convs)
            .map(|i| {
                let input = if i == 0 { channels } else { c };
                HeadConv::new(&head / i, ConvSpec::new(input, c, 3).init(Init::FanOut), config.norm)
            })
            .collect();
        let input = if config.convs > 0 { c } else { channels };
        let predictor = path / "mask_predictor";
        let deconv = nn::ConvTransposeConfig {
            stride: 2,
            bs_init: nn::Init::Const(0.0),
            ws_init: nn::Init::Randn { mean: 0.0, stdev: (2.0 / (4 * c) as f64).sqrt() },
            ..Default::default()
        };
        Self {
            pooler: pooler(config.pool, strides, roi),
            convs,
            deconv: nn::conv_transpose2d(&predictor / "conv5_mask", input, c, 2, deconv),
            logits: ConvSpec::new(c, classes + 1, 1).init(Init::Normal(0.001)).build(&predictor / "mask_fcn_logits"),
            targets: config.targets,
            weight: config.weight,
            paste: config.paste,
            threshold: config.threshold as f32,
        }
    }

    /// Side of the masks, in grid points.
    pub fn side(&self) -> usize {
        2 * self.pooler.align.size
    }

    /// Logits of each region's mask for its own class (from 0): `[R, side²]`. The others' are not computed. `train`:
    /// batch statistics in the norms.
    pub fn forward(&self, levels: &[Tensor], rois: &[Roi], labels: &[i64], train: bool) -> Tensor {
        let mut x = self.pooler.pool(levels, rois);
        for conv in &self.convs {
            x = conv.forward(&x, train).relu();
        }
        let x = self.deconv.forward(&x).relu();
        let own: Vec<i64> = labels.iter().map(|label| label + 1).collect();
        let own = send(&own, x.device());
        // A 1×1 convolution is a product with one row of weights per class.
        let weights = self.logits.ws.flatten(1, -1).index_select(0, &own).unsqueeze(1);
        let product = full_precision(&weights.bmm(&x.flatten(2, 3)).squeeze_dim(1));
        self.logits.bs.iter().fold(product, |product, bias| product + bias.index_select(0, &own).unsqueeze(1))
    }

    /// Mean binary cross-entropy over the pixels of all masks; 0 where there is none. `train`: batch statistics in the
    /// norms.
    pub fn loss(&self, levels: &[Tensor], samples: &[MaskSample], train: bool) -> Tensor {
        let device = levels[0].device();
        if samples.is_empty() {
            return Tensor::zeros([], (Kind::Float, device));
        }
        let expected = mask_targets(samples, self.targets, self.side()).concat();
        let expected = send(&expected, device).view([samples.len() as i64, -1]);
        let rois: Vec<Roi> = samples.iter().map(|s| s.roi).collect();
        let labels: Vec<i64> = samples.iter().map(|s| s.label).collect();
        let logits = self.forward(levels, &rois, &labels, train);
        logits.binary_cross_entropy_with_logits(&expected, None::<&Tensor>, None::<&Tensor>, Reduction::Mean)
            * self.weight
    }

    /// The mask of each detection.
    pub fn masks(&self, levels: &[Tensor], image: usize, boxes: &[Box4], labels: &[i64]) -> Result<Vec<InstanceMask>> {
        if boxes.is_empty() {
            return Ok(Vec::new());
        }
        let rois: Vec<Roi> = boxes.iter().map(|b| (image, *b)).collect();
        let values = values(&self.forward(levels, &rois, labels, false).sigmoid())?;
        let (side, paste, threshold) = (self.side(), self.paste, self.threshold);
        let mask = |values: &[f32]| InstanceMask { values: values.to_vec(), side, paste, threshold };
        Ok(values.chunks(side * side).map(mask).collect())
    }

    /// [`MaskHead::masks`] as nodes of a graph; `padded`: (height, width) of the images, int64 `[2]`.
    pub fn onnx(&self, graph: &mut Graph, levels: &[Value], found: &OnnxDetections, padded: &Value) -> OnnxMasks {
        graph.part("roi_heads/mask_head");
        let there = graph.is_number("GreaterOrEqual", &found.labels, 0.0);
        let OnnxPooled { features, places } = self.pooler.onnx(graph, levels, &found.boxes, &there);
        let mut x = graph.working(&features);
        for conv in &self.convs {
            x = conv.onnx(graph, &x);
            x = graph.unary("Relu", &x);
        }
        let weight = graph.constant(&self.deconv.ws, x.kind());
        let bias = self.deconv.bs.as_ref().map(|bias| graph.constant(bias, x.kind()));
        let inputs: Vec<&Value> = [&x, &weight].into_iter().chain(&bias).collect();
        let doubled = [("kernel_shape", Attribute::Ints(&[2, 2])), ("strides", Attribute::Ints(&[2, 2]))];
        let x = graph.op("ConvTranspose", &inputs, &doubled);
        let x = graph.unary("Relu", &x);
        let labels = graph.reshape(&found.labels, &[-1]);
        let place = graph.reshape(&places, &[-1]);
        let own = graph.gather(&labels, &place, 0);
        let own = graph.plus(&own, 1.0);
        let channels = self.logits.ws.size()[1];
        let weights = graph.constant(&self.logits.ws.view([-1, 1, channels]), x.kind());
        let weights = graph.gather(&weights, &own, 0);
        let side = self.side() as i64;
        let x = graph.reshape(&x, &[0, channels, side * side]);
        let product = graph.matmul(&weights, &x);
        let product = graph.squeeze(&product, &[1]);
        let mut logits = graph.full(&product);
        if let Some(bias) = &self.logits.bs {
            let bias = graph.constant(&bias.view([-1, 1]), logits.kind());
            let bias = graph.gather(&bias, &own, 0);
            logits = graph.add(&logits, &bias);
        }
        let values = graph.unary("Sigmoid", &logits);
        let shape = graph.shape(&found.boxes, 0, 2);
        let count = graph.reduce("ReduceProd", &shape, &[0], true);
        let area = graph.ints(&[side * side]);
        let flat = graph.concat(&[&count, &area], 0);
        let all = graph.scatter(&flat, &places, &values);
        let sides = graph.ints(&[side, side]);
        let grids = graph.reshape_to(&all, &[&shape, &sides]);
        let pixels = paste_onnx(graph, (self.paste, self.threshold), found, (&grids, side), padded);
        OnnxMasks { grids, side, pixels }
    }

    /// Reports every layer to `visit` for so many regions.
    pub fn flops(&self, regions: u64, visit: &mut dyn FnMut(Layer)) {
        let pooled = (self.pooler.align.size * self.pooler.align.size) as u64 * regions;
        let mut layer =
            |weight: &Tensor, locations: u64| visit(Layer::Weights { weights: weight.numel() as u64, locations });
        self.convs.iter().for_each(|conv| layer(&conv.conv().ws, pooled));
        layer(&self.deconv.ws, pooled);
        layer(&self.logits.ws, 4 * pooled);
    }
}

/// What the masks of regions should be, `side²` values each.
fn mask_targets(samples: &[MaskSample], targets: MaskTargets, side: usize) -> Vec<Vec<f32>> {
    if targets == MaskTargets::Raster {
        return samples.par_iter().map(|s| s.mask.raster(&s.roi.1, side)).collect();
    }
    // Many regions have the same object: it is drawn once.
    let mut objects: Vec<&Mask> = Vec::new();
    let of: Vec<usize> = samples
        .iter()
        .map(|s| {
            let known = objects.iter().rposition(|mask| std::ptr::eq(*mask, s.mask));
            known.unwrap_or_else(|| {
                objects.push(s.mask);
                objects.len() - 1
            })
        })
        .collect();
    let drawn: Vec<Drawn> = objects.par_iter().map(|mask| mask.draw()).collect();
    samples.par_iter().zip(&of).map(|(s, &object)| drawn[object].pooled(&s.roi.1, side, s.image)).collect()
}

/// The pooler of a head with `size` bins a side.
pub(super) fn pooler(size: i64, strides: &[i64], roi: &RoiConfig) -> RoiPooler {
    RoiPooler {
        align: RoiAlign { size: size as usize, sampling_ratio: roi.sampling_ratio, aligned: roi.aligned },
        strides: strides.to_vec(),
        canonical_size: roi.canonical_size as f32,
        canonical_level: roi.canonical_level,
    }
}
