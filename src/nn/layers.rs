//! Convolution and batch norm as every backbone uses them, and the memory layout they run in.

use std::cell::RefCell;

use rand::Rng;
use tch::nn::{self, Module, ModuleT};
use tch::Tensor;

use super::cost::{convolution, Flops, Layer, Size};
use super::crossings::send;
use super::memory;
use super::node::Geometry;
use super::precision::strided;
use super::recompute::is_again;
use crate::onnx::{Convolution, Graph, Value};
use vigdet_kernels::{gelu_in_place, Isa};

/// How much of a batch's statistics enters the running ones, if a network does not say otherwise.
const MOMENTUM: f64 = 0.1;

/// Puts `[B, C, H, W]` into channels-last memory (the shape stays): 1×1 convolutions are then plain matrix products,
/// and a node's features lie side by side for the graph.
pub fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// GELU of a tensor that nothing else reads: in place where no gradient needs the input.
pub fn gelu(mut x: Tensor) -> Tensor {
    if x.requires_grad() {
        return x.gelu("none");
    }
    if !memory::update(&mut x, |values| gelu_in_place(Isa::best(), values)) {
        let _ = x.gelu_("none");
    }
    x
}

/// `x + branch`, in the memory of `branch`, which nothing else reads, where no gradient is needed.
pub fn residual(x: &Tensor, mut branch: Tensor) -> Tensor {
    if x.requires_grad() || branch.requires_grad() {
        x + branch
    } else {
        branch.g_add_(x)
    }
}

/// ReLU6, min(max(x, 0), 6), of a tensor that nothing else reads: in place where no gradient needs the input.
pub fn relu6(mut x: Tensor) -> Tensor {
    if x.requires_grad() {
        return x.relu6();
    }
    x.relu6_()
}

/// Stochastic depth (Huang et al., 2016): leaves a branch `[B, …]` out with this probability for each image, and
/// scales it up for the others. Without noise, and with probability 0, nothing happens.
pub fn stochastic_depth(branch: Tensor, probability: f64, noise: Option<&mut impl Rng>) -> Tensor {
    let Some(noise) = noise.filter(|_| probability > 0.0) else { return branch };
    let factors = depth_factors(branch.size()[0], probability, noise);
    scale_images(&branch, &send(&factors, branch.device()))
}

/// What [`stochastic_depth`] multiplies the branch of each image by.
pub fn depth_factors(images: i64, probability: f64, noise: &mut impl Rng) -> Vec<f32> {
    let scale = (1.0 / (1.0 - probability)) as f32;
    (0..images).map(|_| if noise.random::<f64>() < probability { 0.0 } else { scale }).collect()
}

/// A branch `[B, …]` times a factor for each image, float32 `[B]`.
pub fn scale_images(branch: &Tensor, factors: &Tensor) -> Tensor {
    let shape: Vec<i64> = [branch.size()[0]].into_iter().chain((1..branch.dim()).map(|_| 1)).collect();
    let factors = factors.view(&shape[..]).to_kind(branch.kind());
    branch * factors
}

/// Initial weights of a convolution.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// Normal with variance 2 / fan-in (He et al., 2015), as the published ViG code.
    FanIn,
    /// Normal with variance 2 / fan-out, as torchvision's ResNet.
    FanOut,
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform with variance 1 / fan-in (Caffe's Xavier; torchvision's and detectron2's pyramids).
    UniformFanIn,
}

/// Shape and initial weights of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    /// Input channels.
    pub input: i64,
    /// Output channels.
    pub output: i64,
    /// Side of the kernel.
    pub kernel: i64,
    /// Stride.
    pub stride: i64,
    /// Padding of zeros on all sides.
    pub padding: i64,
    /// Groups.
    pub groups: i64,
    /// Whether there is a bias (at first 0).
    pub bias: bool,
    /// Initial weights.
    pub init: Init,
}

impl ConvSpec {
    /// A `kernel`×`kernel` convolution with bias, stride 1, padding of half its kernel, no groups, initial weights as
    /// published for ViG.
    pub fn new(input: i64, output: i64, kernel: i64) -> Self {
        Self { input, output, kernel, stride: 1, padding: kernel / 2, groups: 1, bias: true, init: Init::FanIn }
    }

    /// The same with another stride.
    pub fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }

    /// The same with another padding.
    pub fn padding(self, padding: i64) -> Self {
        Self { padding, ..self }
    }

    /// The same without a bias.
    pub fn no_bias(self) -> Self {
        Self { bias: false, ..self }
    }

    /// The same with other initial weights.
    pub fn init(self, init: Init) -> Self {
        Self { init, ..self }
    }

    /// Creates the variables `weight` and `bias` under `path`.
    pub fn build(self, path: nn::Path) -> nn::Conv2D {
        let area = (self.kernel * self.kernel) as f64;
        let (fan_in, fan_out) = ((self.input / self.groups) as f64 * area, self.output as f64 * area);
        let ws_init = match self.init {
            Init::FanIn => nn::Init::Randn { mean: 0.0, stdev: (2.0 / fan_in).sqrt() },
            Init::FanOut => nn::Init::Randn { mean: 0.0, stdev: (2.0 / fan_out).sqrt() },
            Init::Normal(stdev) => nn::Init::Randn { mean: 0.0, stdev },
            Init::UniformFanIn => {
                let up = (3.0 / fan_in).sqrt();
                nn::Init::Uniform { lo: -up, up }
            }
        };
        let config = nn::ConvConfig {
            stride: self.stride,
            padding: self.padding,
            groups: self.groups,
            bias: self.bias,
            ws_init,
            bs_init: nn::Init::Const(0.0),
            ..Default::default()
        };
        nn::conv2d(path, self.input, self.output, self.kernel, config)
    }
}

/// A convolution and its batch norm.
#[derive(Debug)]
pub struct ConvBn {
    /// The convolution: weight `[out, in / groups, k, k]`.
    pub conv: nn::Conv2D,
    /// The batch norm over `out` channels.
    pub norm: nn::BatchNorm,
    spec: ConvSpec,
    eps: f64,
    momentum: f64,
    /// The convolution with its norm taken in, of a layer that does not learn.
    folded: RefCell<Option<Folded>>,
}

/// Weight and bias of a convolution that has taken its batch norm in.
#[derive(Debug)]
struct Folded {
    weight: Tensor,
    bias: Tensor,
    /// How often the layer's tensors had been changed by then.
    version: u64,
}

/// A batch norm as what it does: times `scale`, plus `shift`, both `[channels]`.
#[derive(Debug)]
pub struct Affine {
    scale: Tensor,
    shift: Tensor,
}

impl Affine {
    /// Values with the channels last, `[…, channels]`, normalised.
    pub fn apply(&self, values: &Tensor) -> Tensor {
        values * &self.scale + &self.shift
    }

    /// The same, as nodes.
    pub fn onnx(&self, graph: &mut Graph, values: &Value) -> Value {
        let [scale, shift] = [&self.scale, &self.shift].map(|t| graph.constant(t, values.kind()));
        let scaled = graph.mul(values, &scale);
        graph.add(&scaled, &shift)
    }
}

/// A batch norm with the batch's statistics.
pub(super) struct BatchNorm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    /// Mean and variance.
    running: [Tensor; 2],
    pub(super) eps: f64,
    momentum: f64,
}

impl BatchNorm {
    /// The norm of `x`, and the mean and one over the standard deviation that it took; with `enter` they enter the
    /// running statistics.
    pub(super) fn of(&self, x: &Tensor, enter: bool) -> (Tensor, Tensor, Tensor) {
        let [mean, variance] = self.running.each_ref().map(|running| enter.then_some(running));
        let affine = (Some(&self.weight), Some(&self.bias));
        x.native_batch_norm(affine.0, affine.1, mean, variance, true, self.momentum, self.eps)
    }
}

impl ConvBn {
    /// Variables under two paths, as the published state dicts have them (`….0` and `….1`, or `conv1` and `bn1`). The
    /// norm starts with weight 1 and bias 0.
    pub fn new(conv: nn::Path, norm: nn::Path, spec: ConvSpec, eps: f64) -> Self {
        Self::with_momentum(conv, norm, spec, eps, MOMENTUM)
    }

    /// The same; `momentum` of a batch's statistics enters the running ones.
    pub fn with_momentum(conv: nn::Path, norm: nn::Path, spec: ConvSpec, eps: f64, momentum: f64) -> Self {
        let ws_init = nn::Init::Const(1.0);
        let config = nn::BatchNormConfig { eps, momentum, ws_init, ..Default::default() };
        let (conv, norm) = (spec.build(conv), nn::batch_norm2d(norm, spec.output, config));
        Self { conv, norm, spec, eps, momentum, folded: RefCell::new(None) }
    }

    /// Variables under `path`'s `0` and `1`.
    pub fn at(path: nn::Path, spec: ConvSpec, eps: f64) -> Self {
        Self::new(&path / "0", &path / "1", spec, eps)
    }

    /// `[B, in, H, W]` to `[B, out, H / stride, W / stride]`. `train`: batch statistics.
    ///
    /// With running statistics the norm is a factor and a shift of each channel, and the weights take them in, so that
    /// the map is written once: for good where the layer does not learn, else each time. Both ways give the same bits:
    /// a run's own evaluation and a later test agree.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        match self.spec.stride {
            1 => self.apply(x, train),
            _ => strided(x, |x| self.apply(x, train)),
        }
    }

    /// The convolution alone.
    pub(crate) fn convolve(&self, x: &Tensor) -> Tensor {
        match self.spec.stride {
            1 => self.conv.forward(x),
            _ => strided(x, |x| self.conv.forward(x)),
        }
    }

    /// The norm alone, of what the convolution gave, with the batch's statistics.
    pub(crate) fn normalize(&self, x: &Tensor) -> Tensor {
        if !is_again() {
            return self.norm.forward_t(x, true);
        }
        let (weight, bias) = (self.norm.ws.as_ref(), self.norm.bs.as_ref());
        x.batch_norm(weight, bias, None, None, true, self.momentum, self.eps, true)
    }

    /// The norm's tensors, for when it is to be computed again.
    pub(super) fn batch_norm(&self) -> Option<BatchNorm> {
        let (weight, bias) = (self.norm.ws.as_ref()?.shallow_clone(), self.norm.bs.as_ref()?.shallow_clone());
        let running = [&self.norm.running_mean, &self.norm.running_var].map(Tensor::shallow_clone);
        Some(BatchNorm { weight, bias, running, eps: self.eps, momentum: self.momentum })
    }

    /// How the convolution lies on its input.
    pub(super) fn geometry(&self) -> Geometry {
        let ConvSpec { stride, padding, groups, .. } = self.spec;
        Geometry { stride, padding, groups }
    }

    fn apply(&self, x: &Tensor, train: bool) -> Tensor {
        if train {
            return self.normalize(&self.conv.forward(x));
        }
        let side = |n: i64| [n, n];
        let ConvSpec { stride, padding, groups, .. } = self.spec;
        let convolve =
            |weight: &Tensor, bias: &Tensor| x.conv2d(weight, Some(bias), side(stride), side(padding), side(1), groups);
        if let Some(version) = self.settled() {
            let mut folded = self.folded.borrow_mut();
            let folded = match &mut *folded {
                Some(folded) if folded.version == version => folded,
                stale => {
                    let (weight, bias) = tch::no_grad(|| self.fold());
                    stale.insert(Folded { weight, bias, version })
                }
            };
            return convolve(&folded.weight, &folded.bias);
        }
        let (weight, bias) = self.fold();
        convolve(&weight, &bias)
    }

    /// Weight and bias with the norm's running statistics taken in.
    fn fold(&self) -> (Tensor, Tensor) {
        let Affine { scale, shift } = self.affine();
        let weight = &self.conv.ws * scale.view([-1, 1, 1, 1]);
        (weight, self.conv.bs.iter().fold(shift, |shift, bias| bias * &scale + shift))
    }

    /// [`ConvBn::forward`] in inference, as a node: the weights take the norm in.
    pub fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        self.onnx_padded(graph, x, Some([self.spec.padding; 2]))
    }

    /// The same with another padding: down and across, or TensorFlow's `SAME`.
    pub fn onnx_padded(&self, graph: &mut Graph, x: &Value, padding: Option<[i64; 2]>) -> Value {
        let (weight, bias) = self.fold();
        let ConvSpec { stride, groups, .. } = self.spec;
        graph.convolve(x, &weight, Some(&bias), Convolution { stride, padding, groups })
    }

    /// For a layer whose weights all are out of training, how often libtorch has changed its tensors; `None` for one
    /// that learns. (The optimizer's writes are not counted, and it writes only to what learns.)
    fn settled(&self) -> Option<u64> {
        let mut version = self.norm.running_mean.internal_version() + self.norm.running_var.internal_version();
        for tensor in self.weights() {
            if tensor.requires_grad() {
                return None;
            }
            version += tensor.internal_version();
        }
        Some(version as u64)
    }

    /// The batch norm with its running statistics.
    pub fn affine(&self) -> Affine {
        self.affine_with(&self.norm.running_mean, &self.norm.running_var)
    }

    /// The batch norm with a batch's statistics, which also enter the running ones: mean and variance, each `[out]`, of
    /// `count` values a channel.
    pub fn batch_affine(&self, mean: &Tensor, variance: &Tensor, count: f64) -> Affine {
        let enter_all = || {
            let enter = |running: &Tensor, new: &Tensor| {
                let mut running = running.shallow_clone();
                let _ = running.g_mul_scalar_(1.0 - self.momentum).g_add_(&(new * self.momentum));
            };
            enter(&self.norm.running_mean, mean);
            // The running variance is the unbiased one.
            enter(&self.norm.running_var, &(variance * (count / (count - 1.0))));
        };
        if !is_again() {
            tch::no_grad(enter_all);
        }
        self.affine_with(mean, variance)
    }

    fn affine_with(&self, mean: &Tensor, variance: &Tensor) -> Affine {
        let scale = self.norm.ws.iter().fold((variance + self.eps).rsqrt(), |scale, weight| scale * weight);
        let shift = self.norm.bs.iter().fold(-mean * &scale, |shift, bias| shift + bias);
        Affine { scale, shift }
    }

    /// Takes the weights out of training.
    pub fn freeze(&self) {
        self.weights().for_each(|weight| drop(weight.set_requires_grad(false)));
    }

    /// What learns.
    fn weights(&self) -> impl Iterator<Item = &Tensor> {
        [&self.conv.ws].into_iter().chain(&self.conv.bs).chain(&self.norm.ws).chain(&self.norm.bs)
    }
}

impl Flops for ConvBn {
    fn flops(&self, size: Size, visit: &mut dyn FnMut(Layer)) -> Size {
        convolution(&self.conv, self.spec.stride, size, visit)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use tch::{Device, Kind};

    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// A 3×3 convolution of 3 channels to 4 whose norm has had some training.
    fn layer() -> (nn::VarStore, ConvBn) {
        let store = nn::VarStore::new(Device::Cpu);
        let layer = ConvBn::at(store.root(), ConvSpec::new(3, 4, 3), 1e-5);
        tch::no_grad(|| {
            for tensor in layer.norm.ws.iter().chain(&layer.norm.bs).chain([&layer.norm.running_mean]) {
                tensor.shallow_clone().copy_(&random(&[4]));
            }
            layer.norm.running_var.shallow_clone().copy_(&(random(&[4]).square() + 0.1));
        });
        (store, layer)
    }

    fn assert_near(found: &Tensor, expected: &Tensor) {
        let off = (found - expected).abs().max().double_value(&[]);
        assert!(off < 1e-4, "{off}");
    }

    #[test]
    fn a_branch_is_left_out_or_scaled_up_so_that_its_mean_stays() {
        let mut noise = ChaCha8Rng::seed_from_u64(1);
        let factors = depth_factors(10_000, 0.2, &mut noise);
        assert!(factors.iter().all(|factor| [0.0, 1.25].contains(factor)));
        let mean = factors.iter().sum::<f32>() / factors.len() as f32;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        let branch = random(&[6, 2, 3]);
        let dropped = stochastic_depth(branch.copy(), 0.5, Some(&mut noise));
        for image in 0..6 {
            let (found, own) = (dropped.get(image), branch.get(image));
            assert!(found == own.zeros_like() || found == own * 2.0);
        }
        assert_eq!(stochastic_depth(branch.copy(), 0.5, None::<&mut ChaCha8Rng>), branch);
        assert_eq!(stochastic_depth(branch.copy(), 0.0, Some(&mut noise)), branch);
    }

    #[test]
    fn a_frozen_layer_follows_what_is_loaded_into_it() {
        let (store, layer) = layer();
        let x = random(&[2, 3, 7, 5]);
        let expected = || layer.norm.forward_t(&layer.conv.forward(&x), false);
        assert_near(&layer.forward(&x, false), &expected());
        layer.freeze();
        assert_near(&layer.forward(&x, false), &expected());
        for (name, tensor) in store.variables() {
            let before = layer.forward(&x, false);
            tch::no_grad(|| tensor.shallow_clone().copy_(&(&tensor * 1.5 + 0.5)));
            let after = layer.forward(&x, false);
            assert_near(&after, &expected());
            assert!((after - before).abs().max().double_value(&[]) > 1e-2, "{name} changes nothing");
        }
    }

    #[test]
    fn statistics_that_were_found_elsewhere_enter_the_running_ones_as_libtorchs_do() {
        let ((_, own), (_, libtorchs)) = (layer(), layer());
        tch::no_grad(|| {
            for (to, from) in [
                (&own.norm.running_mean, &libtorchs.norm.running_mean),
                (&own.norm.running_var, &libtorchs.norm.running_var),
            ] {
                to.shallow_clone().copy_(from);
            }
        });
        let x = random(&[2, 4, 2, 1]);
        let _ = libtorchs.norm.forward_t(&x, true);
        let mean = x.mean_dim([0, 2, 3].as_slice(), false, Kind::Float);
        let variance = x.var_dim([0, 2, 3].as_slice(), false, false);
        let _ = own.batch_affine(&mean, &variance, 4.0);
        assert_near(&own.norm.running_mean, &libtorchs.norm.running_mean);
        assert_near(&own.norm.running_var, &libtorchs.norm.running_var);
    }
}
