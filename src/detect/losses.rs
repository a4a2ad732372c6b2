//! Losses of the detectors.

use anyhow::Result;
use rayon::prelude::*;
use tch::{Kind, Reduction, Tensor};

use super::boxes::BoxCoder;
use crate::config::{BoxLoss, BoxLossConfig, SampleNormalizer};
use crate::nn::crossings::{has_kernels, send};
use crate::nn::memory::{filled, slice};
use crate::nn::node::attach;

/// Class of an anchor in [`sigmoid_focal_loss`]: background.
pub const BACKGROUND: i64 = -1;
/// Class of an anchor in [`sigmoid_focal_loss`]: no loss.
pub const IGNORED: i64 = -2;

/// Rows of a chunk of the focal loss: sums are taken chunk by chunk, so that they do not depend on the number of
/// threads.
const CHUNK: usize = 4096;

/// Sum of the sigmoid focal loss (Lin et al., 2017, equation 5) over anchors and classes: a scalar tensor.
///
/// `logits` float32 `[A, K]`; `classes` has, per anchor, a class from 0, [`BACKGROUND`] or [`IGNORED`]; `weights` one
/// factor per anchor (its image's normaliser). On the CPU the loss and its gradient come out of one pass that keeps a
/// single `[A, K]` tensor, the gradient, where a chain of tensor operations would keep eight.
///
/// # Errors
/// If there is no memory for it.
pub fn sigmoid_focal_loss(logits: &Tensor, classes: &[i64], weights: &[f32], alpha: f64, gamma: f64) -> Result<Tensor> {
    if !has_kernels(logits.device()) || logits.kind() != Kind::Float {
        return Ok(focal_loss_by_tensors(logits, classes, weights, alpha, gamma));
    }
    let (alpha, gamma) = (alpha as f32, gamma as f32);
    in_one_pass(logits, classes, weights, |x, positive, _| focal(x, positive, alpha, gamma))
}

/// Sum of the quality focal loss (Li et al., 2020, "Generalized Focal Loss", equation 2) over anchors and classes: a
/// scalar tensor. As [`sigmoid_focal_loss`], but the score of an anchor's class learns its `qualities`, one per anchor
/// from 0 to 1, in place of 1.
///
/// # Errors
/// As [`sigmoid_focal_loss`].
pub fn quality_focal_loss(
    logits: &Tensor,
    classes: &[i64],
    qualities: &[f32],
    weights: &[f32],
    beta: f64,
) -> Result<Tensor> {
    if !has_kernels(logits.device()) || logits.kind() != Kind::Float {
        return Ok(quality_focal_loss_by_tensors(logits, classes, qualities, weights, beta));
    }
    let beta = beta as f32;
    let each = |x, positive, anchor: usize| quality_focal(x, if positive { qualities[anchor] } else { 0.0 }, beta);
    in_one_pass(logits, classes, weights, each)
}

/// The weighted sum over anchors and classes of a loss that `each` gives, with its derivative, for a logit, whether
/// its class is the anchor's, and the number of the anchor.
fn in_one_pass(
    logits: &Tensor,
    classes: &[i64],
    weights: &[f32],
    each: impl Fn(f32, bool, usize) -> (f32, f32) + Sync,
) -> Result<Tensor> {
    let k = logits.size()[1] as usize;
    let source = logits.detach().contiguous();
    // SAFETY: nothing writes to what the head has said.
    let values = unsafe { slice::<f32>(&source) }?;
    let mut sums: Vec<f64> = Vec::new();
    let mut gradient = filled(&logits.size(), |gradient: &mut [f32]| {
        gradient
            .par_chunks_mut((CHUNK * k).max(1))
            .enumerate()
            .map(|(chunk, gradient)| {
                gradient.fill(0.0);
                let mut sum = 0.0;
                for (row, out) in gradient.chunks_mut(k).enumerate() {
                    let anchor = chunk * CHUNK + row;
                    if classes[anchor] == IGNORED {
                        continue;
                    }
                    for (class, (out, x)) in out.iter_mut().zip(&values[anchor * k..]).enumerate() {
                        let (loss, slope) = each(*x, class as i64 == classes[anchor], anchor);
                        *out = slope * weights[anchor];
                        sum += f64::from(loss) * f64::from(weights[anchor]);
                    }
                }
                sum
            })
            .collect_into_vec(&mut sums);
    })?;
    let value = Tensor::from(sums.iter().sum::<f64>() as f32);
    attach(&[logits], value, move |factor| {
        gradient *= factor;
        Ok(vec![Some(gradient)])
    })
}

/// Focal loss of one logit and its derivative.
fn focal(x: f32, positive: bool, alpha: f32, gamma: f32) -> (f32, f32) {
    // z is the logit of the right answer, p its probability, q = 1 − p.
    let (z, weight) = if positive { (x, alpha) } else { (-x, 1.0 - alpha) };
    let e = (-z.abs()).exp();
    let q = if z >= 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) };
    let log = e.ln_1p() + (-z).max(0.0);
    let power = if gamma == 2.0 { q * q } else { q.powf(gamma) };
    let slope = -weight * power * (gamma * (1.0 - q) * log + q);
    (weight * power * log, if positive { slope } else { -slope })
}

/// Quality focal loss of one logit for a target y, |y − σ|^β · BCE(σ, y), and its derivative.
fn quality_focal(x: f32, y: f32, beta: f32) -> (f32, f32) {
    let e = (-x.abs()).exp();
    let (sigma, slope_of_sigma) = (if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }, e / (1.0 + e).powi(2));
    let cross_entropy = x.max(0.0) - x * y + e.ln_1p();
    let difference = sigma - y;
    let distance = difference.abs();
    let power = if beta == 2.0 { distance * distance } else { distance.powf(beta) };
    // d|y − σ|^β / dσ; of a constant, 0.
    let slope_of_power = match beta {
        0.0 => 0.0,
        2.0 => 2.0 * difference,
        _ => beta * distance.powf(beta - 1.0) * difference.signum(),
    };
    let slope = power * difference + slope_of_power * slope_of_sigma * cross_entropy;
    (power * cross_entropy, slope)
}

/// [`quality_focal_loss`] by tensor operations, for other devices.
fn quality_focal_loss_by_tensors(
    logits: &Tensor,
    classes: &[i64],
    qualities: &[f32],
    weights: &[f32],
    beta: f64,
) -> Tensor {
    let (positive, weights) = anchors_of_classes(logits, classes, weights);
    let y = column(qualities, logits) * positive;
    (quality_focal_terms(logits, &y, beta) * weights).sum(Kind::Float)
}

/// The quality focal loss of each logit `[A, K]` for targets `y` of that shape, in their precision.
fn quality_focal_terms(logits: &Tensor, y: &Tensor, beta: f64) -> Tensor {
    let cross_entropy = logits.binary_cross_entropy_with_logits(y, None::<&Tensor>, None::<&Tensor>, Reduction::None);
    cross_entropy * (logits.sigmoid() - y).abs().pow_tensor_scalar(beta)
}

/// The same by tensor operations, for other devices.
fn focal_loss_by_tensors(logits: &Tensor, classes: &[i64], weights: &[f32], alpha: f64, gamma: f64) -> Tensor {
    let (positive, weights) = anchors_of_classes(logits, classes, weights);
    (focal_terms(logits, &positive, alpha, gamma) * weights).sum(Kind::Float)
}

/// The focal loss of each logit `[A, K]`, in their precision. `positive` `[A, K]`: whether its class is the anchor's.
fn focal_terms(logits: &Tensor, positive: &Tensor, alpha: f64, gamma: f64) -> Tensor {
    let z = logits.where_self(positive, &-logits);
    // α where positive, else 1 − α. Tensors made of the two numbers would be float64, and all that follows with them.
    let alpha_t = positive.to_kind(logits.kind()) * (2.0 * alpha - 1.0) + (1.0 - alpha);
    alpha_t * (-&z).sigmoid().pow_tensor_scalar(gamma) * -z.log_sigmoid()
}

/// Which logits `[A, K]` are of their anchor's class, and the factor of each anchor `[A, 1]`: 0 where it is ignored.
fn anchors_of_classes(logits: &Tensor, classes: &[i64], weights: &[f32]) -> (Tensor, Tensor) {
    let device = logits.device();
    let classes = send(classes, device).unsqueeze(1);
    let weights = column(weights, logits) * classes.not_equal(IGNORED);
    (classes.eq_tensor(&Tensor::arange(logits.size()[1], (Kind::Int64, device))), weights)
}

/// Values as a column of a tensor's kind, on its device.
fn column(values: &[f32], like: &Tensor) -> Tensor {
    send(values, like.device()).unsqueeze(1).to_kind(like.kind())
}

/// Box regression loss: the weighted sum over `P` positives, a scalar tensor.
///
/// `predicted` and `target` are deltas `[P, 4]`, `anchors` `[P, 4]` corners, `weights` `[P]`; `beta` is smooth L1's.
/// Generalised IoU takes deltas that were coded with factors of 1.
pub fn box_loss(
    predicted: &Tensor,
    target: &Tensor,
    anchors: &Tensor,
    weights: &Tensor,
    kind: BoxLoss,
    beta: f64,
) -> Tensor {
    let each = match kind {
        // The square of no length: nothing to divide by.
        BoxLoss::SmoothL1 if beta == 0.0 => return box_loss(predicted, target, anchors, weights, BoxLoss::L1, beta),
        BoxLoss::L1 => (predicted - target).abs().sum_dim_intlist([1].as_slice(), false, Kind::Float),
        BoxLoss::SmoothL1 => {
            let difference = (predicted - target).abs();
            let square = difference.square() * (0.5 / beta);
            let linear = &difference - 0.5 * beta;
            square.where_self(&difference.lt(beta), &linear).sum_dim_intlist([1].as_slice(), false, Kind::Float)
        }
        BoxLoss::Giou => generalized_iou_loss(&decode(predicted, anchors), &decode(target, anchors)),
    };
    (each * weights).sum(Kind::Float)
}

/// The box loss of sampled anchors or proposals.
#[derive(Clone, Copy, Debug)]
pub struct SampledBoxLoss {
    coder: BoxCoder,
    kind: BoxLoss,
    beta: f64,
    weight: f64,
    normalizer: SampleNormalizer,
}

impl SampledBoxLoss {
    /// `coder` codes objects against anchors or proposals.
    pub fn new(coder: BoxCoder, config: &BoxLossConfig) -> Self {
        let &BoxLossConfig { kind, beta, box_weight: weight, normalizer } = config;
        Self { coder, kind, beta, weight, normalizer }
    }

    /// The loss of the positives among `sampled` anchors or proposals: a scalar tensor.
    ///
    /// `predicted` is `[P, 4]`; `targets` and `anchors` have 4 values for each: deltas and corners.
    pub fn loss(&self, predicted: &Tensor, targets: &[f32], anchors: &[f32], sampled: usize) -> Tensor {
        let device = predicted.device();
        let rows = |values: &[f32]| send(values, device).view([-1, 4]);
        let (mut predicted, mut targets) = (predicted.shallow_clone(), rows(targets));
        let Self { kind, beta, weight, normalizer, .. } = *self;
        if kind == BoxLoss::Giou {
            let factors = send(&self.coder.weights, device);
            (predicted, targets) = (predicted / &factors, targets / factors);
        }
        let positives = targets.size()[0];
        let weights = Tensor::ones([positives], (Kind::Float, device));
        let divisor = match normalizer {
            SampleNormalizer::Sampled => sampled,
            SampleNormalizer::Positives => positives as usize,
        };
        let sum = box_loss(&predicted, &targets, &rows(anchors), &weights, kind, beta);
        sum * (weight / divisor.max(1) as f64)
    }
}

/// [`BoxCoder::decode`] with weights 1 as tensor operations, for gradients: `[P, 4]` deltas and anchors to corners.
fn decode(deltas: &Tensor, anchors: &Tensor) -> Tensor {
    let size = anchors.narrow(1, 2, 2) - anchors.narrow(1, 0, 2);
    let centre = anchors.narrow(1, 0, 2) + 0.5 * &size;
    let centre = deltas.narrow(1, 0, 2) * &size + centre;
    let half = deltas.narrow(1, 2, 2).clamp_max((1000f64 / 16.0).ln()).exp() * size * 0.5;
    Tensor::cat(&[&centre - &half, &centre + &half], 1)
}

/// 1 − generalised IoU (Rezatofighi et al., 2019) of corners `[P, 4]`, pairwise: `[P]`.
fn generalized_iou_loss(a: &Tensor, b: &Tensor) -> Tensor {
    const EPS: f64 = 1e-7;
    let (a1, a2, b1, b2) = (a.narrow(1, 0, 2), a.narrow(1, 2, 2), b.narrow(1, 0, 2), b.narrow(1, 2, 2));
    let product = |side: Tensor| side.select(1, 0) * side.select(1, 1);
    let shared = product((a2.minimum(&b2) - a1.maximum(&b1)).clamp_min(0.0));
    let union = product(&a2 - &a1) + product(&b2 - &b1) - &shared;
    let hull = product(a2.maximum(&b2) - a1.minimum(&b1));
    let iou = shared / (&union + EPS);
    1.0 - (iou - (&hull - union) / (hull + EPS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// The fused pass against the chain of tensor operations, values and gradients.
    #[test]
    fn fused_focal_loss_equals_the_tensor_operations() {
        let logits = Tensor::randn([5000, 3], (Kind::Float, Device::Cpu)) * 4.0;
        let classes: Vec<i64> = (0..5000).map(|i| [0, 1, 2, BACKGROUND, BACKGROUND, IGNORED][i % 6]).collect();
        let weights: Vec<f32> = (0..5000).map(|i| if i < 2500 { 0.5 } else { 0.25 }).collect();
        for gamma in [2.0, 1.5, 0.0] {
            let run = |f: &dyn Fn(&Tensor) -> Tensor| {
                let x = logits.copy().set_requires_grad(true);
                let loss = f(&x);
                // As the rest of the graph does, with a factor behind it.
                (&loss * 0.5).backward();
                (loss.double_value(&[]), x.grad())
            };
            let (fused, fused_grad) = run(&|x| sigmoid_focal_loss(x, &classes, &weights, 0.25, gamma).unwrap());
            let (plain, plain_grad) = run(&|x| focal_loss_by_tensors(x, &classes, &weights, 0.25, gamma));
            assert!((fused / plain - 1.0).abs() < 1e-5, "{fused} {plain}");
            let worst = (fused_grad - plain_grad).abs().max().double_value(&[]);
            assert!(worst < 1e-5, "{worst}");
        }
    }

    #[test]
    fn fused_quality_focal_loss_equals_the_tensor_operations() {
        let logits = Tensor::randn([5000, 3], (Kind::Float, Device::Cpu)) * 4.0;
        let classes: Vec<i64> = (0..5000).map(|i| [0, 1, 2, BACKGROUND, BACKGROUND, IGNORED][i % 6]).collect();
        let weights: Vec<f32> = (0..5000).map(|i| if i < 2500 { 0.5 } else { 0.25 }).collect();
        let qualities: Vec<f32> = (0..5000).map(|i| (i % 11) as f32 / 10.0).collect();
        for beta in [2.0, 1.5, 0.0] {
            let leaves = [0, 1].map(|_| logits.copy().set_requires_grad(true));
            let losses = [
                quality_focal_loss(&leaves[0], &classes, &qualities, &weights, beta).unwrap(),
                quality_focal_loss_by_tensors(&leaves[1], &classes, &qualities, &weights, beta),
            ];
            losses.iter().for_each(Tensor::backward);
            let [fused, plain] = losses.map(|loss| loss.double_value(&[]));
            let [fused_grad, plain_grad] = leaves.map(|leaf| leaf.grad());
            assert!((fused / plain - 1.0).abs() < 1e-5, "{fused} {plain}");
            let worst = (fused_grad - plain_grad).abs().max().double_value(&[]);
            assert!(worst < 1e-5, "{worst}");
        }
    }

    #[test]
    fn losses_by_tensors_are_computed_in_the_precision_of_the_logits() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let logits = (Tensor::randn([6, 3], (Kind::Float, Device::Cpu)) * 4.0).to_kind(kind);
            let (classes, values) = ([0, 1, 2, BACKGROUND, BACKGROUND, IGNORED], [0.5f32; 6]);
            let (positive, weights) = anchors_of_classes(&logits, &classes, &values);
            let y = column(&values, &logits) * &positive;
            let terms = [focal_terms(&logits, &positive, 0.25, 2.0), quality_focal_terms(&logits, &y, 2.0)];
            assert_eq!([&weights, &y, &terms[0], &terms[1]].map(Tensor::kind), [kind; 4]);
            let leaf = logits.detach().copy().set_requires_grad(true);
            let loss = focal_loss_by_tensors(&leaf, &classes, &values, 0.25, 2.0)
                + quality_focal_loss_by_tensors(&leaf, &classes, &values, &values, 2.0);
            loss.backward();
            assert_eq!((loss.kind(), leaf.grad().kind()), (Kind::Float, kind));
        }
    }

    #[test]
    fn smooth_l1_with_beta_0_is_l1_with_its_gradient() {
        let run = |kind: BoxLoss, beta: f64| {
            let predicted = Tensor::from_slice(&[0.5f32, -2.0, 0.0, 3.0]).view([1, 4]).set_requires_grad(true);
            let other = Tensor::zeros([1, 4], (Kind::Float, Device::Cpu));
            let weights = Tensor::ones([1], (Kind::Float, Device::Cpu));
            let loss = box_loss(&predicted, &other, &other, &weights, kind, beta);
            loss.backward();
            (loss.double_value(&[]), Vec::<f32>::try_from(predicted.grad().view(-1)).unwrap())
        };
        assert_eq!(run(BoxLoss::SmoothL1, 0.0), (5.5, vec![1.0, -1.0, 0.0, 1.0]));
        assert_eq!(run(BoxLoss::SmoothL1, 0.0), run(BoxLoss::L1, 0.0));
    }

    #[test]
    fn giou_of_known_boxes() {
        let a = Tensor::from_slice(&[0f32, 0., 10., 10., 0., 0., 1., 1.]).view([2, 4]);
        let b = Tensor::from_slice(&[0f32, 0., 10., 10., 3., 0., 4., 1.]).view([2, 4]);
        let loss = Vec::<f32>::try_from(generalized_iou_loss(&a, &b)).unwrap();
        // Equal boxes: 0. Apart: IoU 0, hull 4, union 2: 1 + 2 / 4.
        assert!(loss[0].abs() < 1e-5 && (loss[1] - 1.5).abs() < 1e-5, "{loss:?}");
    }
}
