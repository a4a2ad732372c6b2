//! Tensors as Rust slices, without copies where their memory allows it.

use anyhow::{ensure, Result};
use tch::{Device, Kind, Tensor};

/// The tensor's numbers, in row-major order.
///
/// # Errors
/// If the tensor is not a contiguous float32 tensor on the CPU.
pub fn f32_slice(tensor: &Tensor) -> Result<&[f32]> {
    check(tensor, Kind::Float)?;
    // SAFETY: `check` has seen a dense, contiguous CPU tensor of this kind, so `numel` numbers lie behind the pointer. The
    // slice borrows the tensor, which keeps the memory alive. An in-place operation on another handle of the same memory while the slice is in
    // use would break this: callers in this crate read the slice before anything else happens, which is why this is not public.
    Ok(unsafe { slice(tensor.data_ptr().cast(), tensor.numel()) })
}

/// As [`f32_slice`], for int64.
///
/// # Errors
/// If the tensor is not a contiguous int64 tensor on the CPU.
pub fn i64_slice(tensor: &Tensor) -> Result<&[i64]> {
    check(tensor, Kind::Int64)?;
    // SAFETY: as in f32_slice.
    Ok(unsafe { slice(tensor.data_ptr().cast(), tensor.numel()) })
}

/// Makes a float32 CPU tensor of this shape and lets `fill` write all of its numbers, which start as whatever the memory held.
pub fn f32_tensor(shape: &[i64], fill: impl FnOnce(&mut [f32])) -> Tensor {
    let tensor = Tensor::empty(shape, (Kind::Float, Device::Cpu));
    // SAFETY: the tensor was made here, contiguous and of this kind, and no one else has it yet. Its memory comes from libtorch, of which
    // the compiler knows nothing, and any bits are a number; every `fill` in this crate writes before it reads.
    fill(unsafe { slice_mut(tensor.data_ptr().cast(), tensor.numel()) });
    tensor
}

/// As [`f32_tensor`], for int32.
pub fn i32_tensor(shape: &[i64], fill: impl FnOnce(&mut [i32])) -> Tensor {
    let tensor = Tensor::empty(shape, (Kind::Int, Device::Cpu));
    // SAFETY: as in f32_tensor.
    fill(unsafe { slice_mut(tensor.data_ptr().cast(), tensor.numel()) });
    tensor
}

/// As [`f32_tensor`], for int64.
pub fn i64_tensor(shape: &[i64], fill: impl FnOnce(&mut [i64])) -> Tensor {
    let tensor = Tensor::empty(shape, (Kind::Int64, Device::Cpu));
    // SAFETY: as in f32_tensor.
    fill(unsafe { slice_mut(tensor.data_ptr().cast(), tensor.numel()) });
    tensor
}

/// The numbers of a dense float32 CPU tensor in the order of its memory, channels-last maps among them, to be written in place; `None` for any
/// other tensor.
///
/// The caller owns the tensor, so that no one else's slice of it lives.
pub fn f32_memory(tensor: &mut Tensor) -> Option<&mut [f32]> {
    let dense = tensor.is_contiguous() || (tensor.dim() == 4 && tensor.permute([0, 2, 3, 1]).is_contiguous());
    if tensor.device() != Device::Cpu || tensor.kind() != Kind::Float || tensor.is_sparse() || !dense {
        return None;
    }
    // SAFETY: `numel` numbers of this kind lie behind the pointer, in one piece, and the tensor keeps them while it is borrowed. Other handles
    // of the same memory are only used when this borrow is over: an activation belongs to one forward pass, in one thread.
    Some(unsafe { slice_mut(tensor.data_ptr().cast(), tensor.numel()) })
}

/// Feature maps `[B, C, H, W]` as float32 rows `[B, H·W, C]` in memory on the CPU, without gradient. Copies nothing if the
/// maps are float32, on the CPU and in channels_last format.
///
/// # Errors
/// If the tensor does not have four dimensions.
pub fn rows(maps: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = maps.size4()?;
    Ok(tch::no_grad(|| {
        let maps = maps.detach().to_device(Device::Cpu).to_kind(Kind::Float);
        maps.permute([0, 2, 3, 1]).contiguous().view([b, h * w, c])
    }))
}

fn check(tensor: &Tensor, kind: Kind) -> Result<()> {
    ensure!(
        tensor.device() == Device::Cpu
            && tensor.kind() == kind
            && !tensor.is_sparse()
            && tensor.is_contiguous(),
        "the CPU kernels need a contiguous {kind:?} tensor on the CPU, not {:?} on {:?}",
        tensor.kind(),
        tensor.device()
    );
    Ok(())
}

/// # Safety
/// As `std::slice::from_raw_parts`, except that the pointer of an empty tensor may be null.
unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        &[]
    } else {
        unsafe { std::slice::from_raw_parts(data, len) }
    }
}

/// # Safety
/// As `std::slice::from_raw_parts_mut`, except that the pointer of an empty tensor may be null.
unsafe fn slice_mut<'a, T>(data: *mut T, len: usize) -> &'a mut [T] {
    if len == 0 {
        &mut []
    } else {
        unsafe { std::slice::from_raw_parts_mut(data, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_last_maps_are_not_copied() {
        let maps = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([1, 2, 3, 4]).set_requires_grad(true);
        let copied = rows(&maps).unwrap();
        assert_eq!(copied.size(), [1, 12, 2]);
        assert_eq!(f32_slice(&copied).unwrap()[..4], [0.0, 12.0, 1.0, 13.0]);
        assert!(!copied.requires_grad());
        // Channels beside each other in memory, seen as [B, C, H, W].
        let last = maps.detach().permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let shared = rows(&last).unwrap();
        assert_eq!(shared.data_ptr(), last.data_ptr());
        assert_eq!(shared, copied);
    }

    #[test]
    fn other_tensors_are_refused() {
        let t = Tensor::zeros([3, 4], (Kind::Float, Device::Cpu));
        assert!(f32_slice(&t.transpose(0, 1)).is_err());
        assert!(f32_slice(&t.to_kind(Kind::Double)).is_err());
        assert!(i64_slice(&t).is_err());
        assert!(f32_slice(&t.slice(0, 0, 0, 1)).unwrap().is_empty());
    }
}
