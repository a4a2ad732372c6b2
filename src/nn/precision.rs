//! Mixed precision: the forward pass in bfloat16 where it is safe, weights, sums and losses in float32.

use tch::{Device, Kind, Tensor};

use super::cuda;

// tch switches autocast on and off on CUDA alone and cannot choose its number format, which would be float16 there:
// that needs the loss scaled, bfloat16 does not.
extern "C" {
    /// `at::autocast::set_autocast_dtype(c10::DeviceType, c10::ScalarType)` of libtorch 2.13; both enumerations are
    /// 8-bit integers.
    #[link_name = "_ZN2at8autocast18set_autocast_dtypeEN3c1010DeviceTypeENS1_10ScalarTypeE"]
    fn set_autocast_dtype(device: i8, kind: i8);
    /// `at::autocast::is_autocast_enabled(c10::DeviceType)`.
    #[link_name = "_ZN2at8autocast19is_autocast_enabledEN3c1010DeviceTypeE"]
    fn is_autocast_enabled(device: i8) -> bool;
    /// `at::autocast::set_autocast_enabled(c10::DeviceType, bool)`.
    #[link_name = "_ZN2at8autocast20set_autocast_enabledEN3c1010DeviceTypeEb"]
    fn set_autocast_enabled(device: i8, on: bool);
    /// `at::autocast::is_autocast_cache_enabled()`.
    #[link_name = "_ZN2at8autocast25is_autocast_cache_enabledEv"]
    fn is_autocast_cache_enabled() -> bool;
    /// `at::autocast::set_autocast_cache_enabled(bool)`.
    #[link_name = "_ZN2at8autocast26set_autocast_cache_enabledEb"]
    fn set_autocast_cache_enabled(on: bool);
}

/// `c10::DeviceType::CPU`.
const CPU: i8 = 0;
/// `c10::DeviceType::CUDA`.
const CUDA: i8 = 1;
/// `c10::ScalarType::BFloat16`.
const BFLOAT16: i8 = 15;

/// The first cards with instructions for bfloat16, Ampere's, by their compute capability. Older ones emulate it.
const AMPERE: cuda::Capability = (8, 0);

/// Whether mixed precision makes the device faster: NVIDIA's cards from Ampere on, and processors with instructions
/// for it (AVX-512 BF16: Intel from Cooper Lake on, AMD from Zen 4 on). Elsewhere mixed precision would cost time and
/// precision both.
pub fn has_bfloat16(device: Device) -> bool {
    match device {
        Device::Cuda(index) => cuda::card(index).is_none_or(card_has_bfloat16),
        #[cfg(target_arch = "x86_64")]
        Device::Cpu => is_x86_feature_detected!("avx512bf16"),
        _ => false,
    }
}

fn card_has_bfloat16(card: &cuda::Card) -> bool {
    card.capability >= AMPERE
}

/// What is to be said where mixed precision was asked for and the device has none: it is left off.
pub fn left_off(asked: bool, device: Device) -> Option<String> {
    if !asked || has_bfloat16(device) {
        return None;
    }
    let what = match device {
        Device::Cuda(index) => cuda::card(index).map_or_else(|| "this GPU".into(), ToString::to_string),
        _ => "this processor".into(),
    };
    Some(format!("mixed precision is left off: {what} has no instructions for bfloat16"))
}

/// Whether a trained network is run in mixed precision: in evaluations, tests and detection alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InferencePrecision {
    /// Whether it was trained in mixed precision (`train.amp`).
    pub trained: bool,
    /// What was asked for (`--amp`).
    pub asked: Option<bool>,
}

impl InferencePrecision {
    /// What was asked for; else on CUDA as in training, and on CPUs float32: what they find shall not depend on the
    /// instructions that they have.
    pub fn is_mixed(self, device: Device) -> bool {
        self.asked.unwrap_or(self.trained && device.is_cuda())
    }

    /// [`name`] of what it comes to on a device.
    pub fn name(self, device: Device) -> &'static str {
        name(self.is_mixed(device), device)
    }
}

/// What networks are computed in, for records: `mixed` as [`autocast`] takes it.
pub fn name(mixed: bool, device: Device) -> &'static str {
    if mixed && has_bfloat16(device) {
        "float32 and bfloat16"
    } else {
        "float32"
    }
}

/// The address of a function of libtorch.
pub(super) fn function_of_libtorch() -> usize {
    is_autocast_cache_enabled as *const () as usize
}

/// Runs a forward pass; with `on`, and where [`has_bfloat16`], in bfloat16 where PyTorch's autocast has it so
/// (convolutions, matrix products). The backward pass follows the types of the forward one and belongs outside.
pub fn autocast<T>(on: bool, device: Device, forward: impl FnOnce() -> T) -> T {
    if !on || !has_bfloat16(device) {
        return forward();
    }
    let _autocast = Autocast::set(device, true);
    forward()
}

/// Runs what must not lose precision, also within [`autocast`].
pub fn without_autocast<T>(device: Device, exact: impl FnOnce() -> T) -> T {
    let _autocast = Autocast::set(device, false);
    exact()
}

/// Autocast of one type of device in this thread, until it is dropped.
///
/// Weights are cast at each use: libtorch's cache of cast weights is one for all threads, and what is in it decides in
/// which format the gradients of several uses add up, so that training in several threads would not repeat itself. In
/// float32, as here, they add up better, too.
pub(crate) struct Autocast {
    /// `c10::DeviceType`.
    device: i8,
    on_before: bool,
    cache_before: bool,
}

impl Autocast {
    /// Whether it is on in this thread.
    pub(crate) fn is_on(device: Device) -> bool {
        // SAFETY: reads a variable of this thread.
        unsafe { is_autocast_enabled(if device.is_cuda() { CUDA } else { CPU }) }
    }

    pub(crate) fn set(device: Device, on: bool) -> Self {
        let device = if device.is_cuda() { CUDA } else { CPU };
        // SAFETY: reads and sets variables of this thread; the numbers are values of their enumerations.
        unsafe {
            let before =
                Self { device, on_before: is_autocast_enabled(device), cache_before: is_autocast_cache_enabled() };
            set_autocast_dtype(device, BFLOAT16);
            set_autocast_enabled(device, on);
            set_autocast_cache_enabled(false);
            before
        }
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: as in `set`.
        unsafe {
            set_autocast_enabled(self.device, self.on_before);
            set_autocast_cache_enabled(self.cache_before);
        }
    }
}

/// A convolution with a stride, of maps `[B, C, H, W]`. Within [`autocast`] on the CPU it stays in float32 where they
/// have one column: oneDNN leaves a part of the bfloat16 weight gradient as the memory was before (libtorch 2.13,
/// kernels of 3×3 and larger), now and then not a number.
pub fn strided(x: &Tensor, convolve: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    let device = x.device();
    if device == Device::Cpu && x.size().last() == Some(&1) {
        without_autocast(device, || convolve(&full_precision(x)))
    } else {
        convolve(x)
    }
}

/// The tensor in at least float32, with a gradient: what bfloat16 made is widened, all else stays.
pub fn full_precision(tensor: &Tensor) -> Tensor {
    match tensor.kind() {
        Kind::Half | Kind::BFloat16 => tensor.to_kind(Kind::Float),
        _ => tensor.shallow_clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" {
        /// `at::autocast::get_autocast_dtype(c10::DeviceType)`.
        #[link_name = "_ZN2at8autocast18get_autocast_dtypeEN3c1010DeviceTypeE"]
        fn get_autocast_dtype(device: i8) -> i8;
    }

    #[test]
    fn autocast_on_cuda_is_set_to_bfloat16_and_off_again() {
        // SAFETY: reads variables of this thread.
        unsafe {
            // PyTorch's default on CUDA is float16, number 5.
            assert_eq!(get_autocast_dtype(CUDA), 5);
            let on = Autocast::set(Device::Cuda(0), true);
            // Its number in c10/core/ScalarType.h.
            assert_eq!(get_autocast_dtype(CUDA), 15);
            assert!(is_autocast_enabled(CUDA));
            drop(on);
            assert!(!is_autocast_enabled(CUDA));
        }
    }

    #[test]
    fn weights_are_cast_at_each_use() {
        // SAFETY: reads and sets a variable of this thread.
        let cache = || unsafe { is_autocast_cache_enabled() };
        assert!(cache(), "PyTorch's default");
        let on = Autocast::set(Device::Cpu, true);
        assert!(!cache(), "one cache for all threads");
        drop(on);
        assert!(cache());
    }

    #[test]
    fn a_strided_convolution_of_one_column_stays_in_float32() {
        let weight = Tensor::ones([4, 3, 3, 3], (Kind::Float, Device::Cpu));
        let kind = |columns: i64| {
            let x = Tensor::ones([2, 3, 8, columns], (Kind::Float, Device::Cpu));
            let convolve = |x: &Tensor| x.conv2d(&weight, None::<Tensor>, [2, 2], [1, 1], [1, 1], 1);
            autocast(true, Device::Cpu, || strided(&x, convolve)).kind()
        };
        let mixed = if has_bfloat16(Device::Cpu) { Kind::BFloat16 } else { Kind::Float };
        assert_eq!([1, 2].map(kind), [Kind::Float, mixed]);
    }

    #[test]
    fn cards_before_ampere_and_processors_without_instructions_leave_mixed_precision_off() {
        let of = |capability| cuda::Card { name: "NVIDIA X".into(), capability, memory: 1 << 34 };
        let has = [(7, 0), (7, 5), (8, 0), (8, 9), (9, 0)].map(|capability| card_has_bfloat16(&of(capability)));
        assert_eq!(has, [false, false, true, true, true]);
        let said = left_off(true, Device::Cpu);
        assert_eq!(said.is_none(), has_bfloat16(Device::Cpu), "{said:?}");
        assert_eq!(left_off(false, Device::Cpu), None);
    }

    #[test]
    fn inference_is_mixed_where_asked_and_on_cuda_where_trained_so() {
        let mixed = |trained, asked, device| InferencePrecision { trained, asked }.is_mixed(device);
        let (cpu, cuda) = (Device::Cpu, Device::Cuda(0));
        assert_eq!([cpu, cuda].map(|device| mixed(true, None, device)), [false, true]);
        assert_eq!([cpu, cuda].map(|device| mixed(false, None, device)), [false, false]);
        assert_eq!([cpu, cuda].map(|device| mixed(false, Some(true), device)), [true, true]);
        assert_eq!([cpu, cuda].map(|device| mixed(true, Some(false), device)), [false, false]);
    }

    #[test]
    fn products_are_bfloat16_inside_and_float32_outside() {
        let a = Tensor::arange(9, (Kind::Float, Device::Cpu)).view([3, 3]);
        let product = |on| autocast(on, Device::Cpu, || a.matmul(&a));
        assert_eq!(product(false).kind(), Kind::Float);
        let expected = if has_bfloat16(Device::Cpu) { Kind::BFloat16 } else { Kind::Float };
        assert_eq!(product(true).kind(), expected);
        // What was widened is what bfloat16 held; the next product outside is float32 again.
        let widened = full_precision(&product(true));
        assert_eq!(widened.kind(), Kind::Float);
        assert!((widened - a.matmul(&a)).abs().max().double_value(&[]) <= 111.0 / 256.0);
        assert_eq!(a.matmul(&a).kind(), Kind::Float);
        let exact = || without_autocast(Device::Cpu, || a.matmul(&a));
        let (inside, after) = autocast(true, Device::Cpu, || (exact(), a.matmul(&a)));
        assert_eq!((inside.kind(), after.kind()), (Kind::Float, expected));
    }

    #[test]
    fn the_weights_gradient_comes_back_in_float32() {
        let weight = Tensor::from_slice(&[1f32, -2.0, 0.5, 4.0]).view([2, 2]).set_requires_grad(true);
        let x = Tensor::from_slice(&[1f32, 3.0]).view([1, 2]);
        // Small whole numbers are exact in bfloat16.
        let sum = autocast(true, Device::Cpu, || full_precision(&x.matmul(&weight))).sum(Kind::Float);
        sum.backward();
        assert_eq!(sum.double_value(&[]), 1.0 - 2.0 + 1.5 + 12.0);
        assert_eq!(weight.grad().kind(), Kind::Float);
        assert_eq!(Vec::<f32>::try_from(weight.grad().view(-1)).unwrap(), [1.0, 1.0, 3.0, 3.0]);
    }
}
