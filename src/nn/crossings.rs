//! What crosses between the processor and another device, and which way work goes: the only file that copies.
//!
//! A copy from a GPU waits until all that was asked of it before is done, and then it has nothing to do. A copy to it
//! from pinned memory waits for nothing. So a training pass may send often, and should fetch seldom.

use std::cell::Cell;

use tch::kind::Element;
use tch::{Device, Tensor};

thread_local! {
    static CROSSED: Cell<Crossings> = const { Cell::new(Crossings { sent: 0, fetched: 0 }) };
    static WITHOUT_KERNELS: Cell<bool> = const { Cell::new(false) };
}

/// Copies that a thread has asked for, whatever the device; on the CPU most of them cost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossings {
    /// To the device.
    pub sent: usize,
    /// From the device: each waits for it.
    pub fetched: usize,
}

/// What this thread has copied so far.
pub fn crossings() -> Crossings {
    CROSSED.get()
}

/// Whether the kernels of this project work there: on the CPU. Elsewhere the same is done with tensor operations.
pub fn has_kernels(device: Device) -> bool {
    device == Device::Cpu && !WITHOUT_KERNELS.get()
}

/// Runs on the CPU what would run on another device: tensor operations in place of kernels, in this thread.
pub fn without_kernels<T>(work: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            WITHOUT_KERNELS.set(self.0);
        }
    }
    let _before = Before(WITHOUT_KERNELS.replace(true));
    work()
}

/// A tensor of these values on the device. Does not wait for it.
pub fn send<T: Element>(values: &[T], device: Device) -> Tensor {
    send_tensor(&Tensor::from_slice(values), device)
}

/// A CPU tensor's copy on the device, which may be the CPU: then it is the tensor itself. Does not wait for the device.
pub fn send_tensor(tensor: &Tensor, device: Device) -> Tensor {
    count(|crossed| crossed.sent += 1);
    if device.is_cuda() && tensor.device() == Device::Cpu {
        // The allocator of pinned memory keeps it until the copy is done.
        tensor.pin_memory(device).to_device_(device, tensor.kind(), true, false)
    } else {
        tensor.to_device(device)
    }
}

/// The tensor on the CPU. Waits for its device.
pub fn fetch(tensor: &Tensor) -> Tensor {
    count(|crossed| crossed.fetched += 1);
    tensor.detach().to_device(Device::Cpu)
}

fn count(change: impl FnOnce(&mut Crossings)) {
    let mut crossed = CROSSED.get();
    change(&mut crossed);
    CROSSED.set(crossed);
}
