//! Mixed precision in bfloat16 on CUDA.

use tch::Device;

// tch switches autocast on and off but cannot choose its number format, which would be float16: that needs the loss scaled, bfloat16 does not.
extern "C" {
    /// `at::autocast::set_autocast_dtype(c10::DeviceType, c10::ScalarType)` of libtorch 2.13; both enumerations are 8-bit integers.
    #[link_name = "_ZN2at8autocast18set_autocast_dtypeEN3c1010DeviceTypeENS1_10ScalarTypeE"]
    fn set_autocast_dtype(device: i8, kind: i8);
}

/// `c10::DeviceType::CUDA`.
const CUDA: i8 = 1;
/// `c10::ScalarType::BFloat16`.
const BFLOAT16: i8 = 15;

/// Runs a forward pass, with `on` and on CUDA in bfloat16 where PyTorch's autocast has it so (convolutions, matrix products). The backward pass
/// follows the types of the forward one and belongs outside.
pub fn autocast<T>(on: bool, device: Device, forward: impl FnOnce() -> T) -> T {
    if !on || !device.is_cuda() {
        return forward();
    }
    // SAFETY: sets a variable of this thread; the two numbers are values of their enumerations.
    unsafe { set_autocast_dtype(CUDA, BFLOAT16) };
    tch::autocast(true, forward)
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
    fn autocast_on_cuda_is_set_to_bfloat16() {
        // SAFETY: reads and sets a variable of this thread.
        unsafe {
            // PyTorch's default on CUDA is float16, number 5.
            assert_eq!(get_autocast_dtype(CUDA), 5);
            set_autocast_dtype(CUDA, BFLOAT16);
            // Its number in c10/core/ScalarType.h.
            assert_eq!(get_autocast_dtype(CUDA), 15);
        }
    }

    #[test]
    fn elsewhere_the_forward_pass_is_what_it_was() {
        let product = |on| {
            let a = tch::Tensor::arange(9, (tch::Kind::Float, Device::Cpu)).view([3, 3]);
            autocast(on, Device::Cpu, || a.matmul(&a))
        };
        assert_eq!(product(true), product(false));
        assert_eq!(product(true).kind(), tch::Kind::Float);
    }
}
