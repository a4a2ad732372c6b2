//! The memory of tensors as Rust slices: the only file that opens it.
//!
//! Handles of one tensor share its memory, which the borrow checker cannot see. So a function that lends a slice is
//! `unsafe`, and its caller says why nothing writes to that memory meanwhile; a function that is not `unsafe` keeps the
//! slice to itself.

use std::io::{self, Write};

use anyhow::{ensure, Result};
use rayon::prelude::*;
use tch::kind::Element;
use tch::{Device, Kind, Tensor};

use super::crossings::fetch;

/// Values that one task works on: small enough to spread small models over threads, large enough to be worth a task.
pub(crate) const CHUNK: usize = 1 << 15;

/// A type of numbers.
///
/// # Safety
/// Any bits must be a value of it.
pub(crate) unsafe trait Plain: Element {}
// SAFETY: any 32 bits are a number or NaN.
unsafe impl Plain for f32 {}
// SAFETY: any 32 bits are a number.
unsafe impl Plain for i32 {}
// SAFETY: any 64 bits are a number.
unsafe impl Plain for i64 {}

/// The tensor's values, in row-major order.
///
/// # Errors
/// If the tensor is not a contiguous tensor of this kind on the CPU.
///
/// # Safety
/// While the slice lives, nothing may write to the tensor's memory, by whatever handle.
pub(crate) unsafe fn slice<T: Plain>(tensor: &Tensor) -> Result<&[T]> {
    ensure!(
        is(tensor, T::KIND) && tensor.is_contiguous(),
        "the CPU kernels need a contiguous {:?} tensor on the CPU, not {:?} on {:?}",
        T::KIND,
        tensor.kind(),
        tensor.device()
    );
    Ok(match tensor.numel() {
        // The pointer of an empty tensor may be null.
        0 => &[],
        // SAFETY: a contiguous CPU tensor of this kind has `numel` values behind its pointer and keeps them while it is
        // borrowed; the caller answers for writers.
        n => unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), n) },
    })
}

/// The values of float32 tensors, to be written in place; each of the tensors must be [`is_plain`].
///
/// # Panics
/// If a tensor is not plain, or shares memory with another one.
///
/// # Safety
/// While the slices live, nothing else may read or write the tensors' memory, by whatever handle.
#[allow(clippy::mut_from_ref)] // the handles are shared, the memory is the caller's alone
pub(crate) unsafe fn f32_slices_mut<'a>(tensors: &[&'a Tensor]) -> Vec<&'a mut [f32]> {
    let mut ranges: Vec<_> = tensors
        .iter()
        .map(|tensor| {
            assert!(is_plain(tensor), "only dense float32 tensors on the CPU are updated in place");
            let first = tensor.data_ptr() as usize;
            first..first + 4 * tensor.numel()
        })
        .filter(|range| !range.is_empty())
        .collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let apart = ranges.windows(2).all(|pair| pair[0].end <= pair[1].start);
    assert!(apart, "two of the tensors that are updated in place share memory");
    // SAFETY: these are plain tensors, which nothing else uses, as the caller promises; no two of them overlap.
    tensors.iter().map(|tensor| unsafe { raw_mut(tensor) }).collect()
}

/// Whether the tensor is dense float32 on the CPU, in row-major order.
pub(crate) fn is_plain(tensor: &Tensor) -> bool {
    is(tensor, Kind::Float) && tensor.is_contiguous()
}

/// Makes a CPU tensor of this shape and lets `fill` write its values, which are arbitrary before.
///
/// # Errors
/// If there is no memory for it.
pub(crate) fn filled<T: Plain>(shape: &[i64], fill: impl FnOnce(&mut [T])) -> Result<Tensor> {
    let tensor = Tensor::f_empty(shape, (T::KIND, Device::Cpu))?;
    // SAFETY: the tensor was made here, contiguous and of this kind, and no one else has it yet. Its memory comes from
    // libtorch, of which the compiler knows nothing, and any bits are a value.
    fill(unsafe { raw_mut(&tensor) });
    Ok(tensor)
}

/// Changes the values of a dense float32 CPU tensor, channels-last maps among them, in the order of its memory; `false`
/// for any other tensor, which stays as it is. (A closure that is `Sync` holds no tensor, so it has no other way to the
/// same memory.)
pub(crate) fn update(tensor: &mut Tensor, change: impl FnOnce(&mut [f32]) + Sync) -> bool {
    let dense = tensor.is_contiguous() || (tensor.dim() == 4 && tensor.permute([0, 2, 3, 1]).is_contiguous());
    if !is(tensor, Kind::Float) || !dense {
        return false;
    }
    // SAFETY: `numel` values of this kind lie behind the pointer, in one piece, and the tensor keeps them while it is
    // borrowed. This thread works on the closure alone, which has no handle of the memory.
    change(unsafe { raw_mut(tensor) });
    true
}

/// Works on pairs of values of two tensors of one shape, pair by pair of tensors: in parallel in place where both are
/// [`is_plain`]; where not, `tensors` works on the two as they are.
///
/// # Panics
/// If two of the plain tensors share memory.
pub(crate) fn for_each_pair<'a>(
    pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>,
    plain: impl Fn(&mut f32, &mut f32) + Sync,
    tensors: impl Fn(&Tensor, &Tensor),
) {
    let (here, elsewhere): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(a, b)| is_plain(a) && is_plain(b));
    let here: Vec<&Tensor> = here.into_iter().flat_map(|(a, b)| [a, b]).collect();
    // SAFETY: until the slices are gone this thread works on `plain` alone, which is `Sync`, so it holds no tensor.
    let mut slices = unsafe { f32_slices_mut(&here) }.into_iter();
    let mut chunks = Vec::new();
    while let (Some(a), Some(b)) = (slices.next(), slices.next()) {
        chunks.extend(a.chunks_mut(CHUNK).zip(b.chunks_mut(CHUNK)));
    }
    chunks.into_par_iter().for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| plain(a, b)));
    elsewhere.into_iter().for_each(|(a, b)| tensors(a, b));
}

/// Writes the tensor's values to `out`, in row-major order and the machine's byte order.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write_bytes(tensor: &Tensor, out: &mut (impl Write + Sync)) -> io::Result<()> {
    let tensor = fetch(tensor).contiguous();
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: a contiguous CPU tensor has this many bytes behind its pointer, and lives until the end of the function.
    // A writer that is `Sync` holds no tensor that could change them.
    out.write_all(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), bytes) })
}

/// A copy of a tensor's values as float32, in row-major order.
///
/// # Errors
/// If they cannot be copied to the CPU.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(fetch(&tensor.reshape([-1])).to_kind(Kind::Float).try_into()?)
}

/// Feature maps `[B, C, H, W]` as float32 rows `[B, H·W, C]` in memory on the CPU, without gradient. Copies nothing if
/// the maps are float32, on the CPU and in channels_last format.
///
/// # Errors
/// If the tensor does not have four dimensions.
pub(crate) fn rows(maps: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = maps.size4()?;
    Ok(tch::no_grad(|| {
        let maps = fetch(maps).to_kind(Kind::Float);
        maps.permute([0, 2, 3, 1]).contiguous().view([b, h * w, c])
    }))
}

fn is(tensor: &Tensor, kind: Kind) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == kind && !tensor.is_sparse()
}

/// # Safety
/// The tensor has `numel` values of this type in one piece of the process's memory, which nothing else uses while the
/// slice lives.
#[allow(clippy::mut_from_ref)]
unsafe fn raw_mut<T: Plain>(tensor: &Tensor) -> &mut [T] {
    match tensor.numel() {
        0 => &mut [],
        // SAFETY: the caller's promise; the tensor keeps its memory while it is borrowed.
        n => unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), n) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn channels_last_maps_are_not_copied() {
        let maps = Tensor::arange(24, OPTIONS).view([1, 2, 3, 4]).set_requires_grad(true);
        let copied = rows(&maps).unwrap();
        assert_eq!(copied.size(), [1, 12, 2]);
        // SAFETY: nothing writes in this test.
        assert_eq!(unsafe { slice::<f32>(&copied) }.unwrap()[..4], [0.0, 12.0, 1.0, 13.0]);
        assert!(!copied.requires_grad());
        // Channels beside each other in memory, seen as [B, C, H, W].
        let last = maps.detach().permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let shared = rows(&last).unwrap();
        assert_eq!(shared.data_ptr(), last.data_ptr());
        assert_eq!(shared, copied);
    }

    #[test]
    fn other_tensors_are_refused() {
        let t = Tensor::zeros([3, 4], OPTIONS);
        // SAFETY: nothing writes in this test.
        unsafe {
            assert!(slice::<f32>(&t.transpose(0, 1)).is_err());
            assert!(slice::<f32>(&t.to_kind(Kind::Double)).is_err());
            assert!(slice::<i64>(&t).is_err());
            assert!(slice::<f32>(&t.slice(0, 0, 0, 1)).unwrap().is_empty());
        }
        assert!(!update(&mut t.transpose(0, 1), |values| values.fill(1.0)));
        assert!(update(&mut t.shallow_clone(), |values| values.fill(1.0)));
        assert_eq!(t.sum(Kind::Float).double_value(&[]), 12.0);
    }

    #[test]
    fn pairs_are_worked_on_in_place_or_as_tensors() {
        let options = [Kind::Float, Kind::Double];
        let tensors = options.map(|kind| {
            let n = 2 * CHUNK as i64 + 3;
            (Tensor::arange(n, (kind, Device::Cpu)), Tensor::ones([n], (kind, Device::Cpu)))
        });
        for_each_pair(
            tensors.iter().map(|(a, b)| (a, b)),
            |a, b| *a += std::mem::take(b),
            |a, b| {
                let _ = a.shallow_clone().g_add_(b);
                let _ = b.shallow_clone().zero_();
            },
        );
        for (a, b) in &tensors {
            let expected = Tensor::arange(a.numel() as i64, (a.kind(), Device::Cpu)) + 1.0;
            assert_eq!((a, b.abs().max().double_value(&[])), (&expected, 0.0));
        }
    }

    #[test]
    fn pairs_that_are_not_in_one_piece_are_worked_on_as_tensors() {
        let all = Tensor::zeros([2, 8], OPTIONS);
        let (part, ones) = (all.narrow(1, 0, 3), Tensor::ones([2, 3], OPTIONS));
        for_each_pair([(&part, &ones)], |a, _| *a = 7.0, |a, b| drop(a.shallow_clone().g_add_(b)));
        assert_eq!((part.sum(Kind::Float).double_value(&[]), all.sum(Kind::Float).double_value(&[])), (6.0, 6.0));
    }

    #[test]
    #[should_panic(expected = "share memory")]
    fn pairs_that_overlap_are_refused() {
        let all = Tensor::zeros([10], OPTIONS);
        let (first, second) = (all.narrow(0, 0, 6), all.narrow(0, 5, 5));
        let other = Tensor::zeros([6], OPTIONS);
        let narrow = other.narrow(0, 0, 5);
        for_each_pair([(&first, &other), (&second, &narrow)], |_, _| (), |_, _| ());
    }

    #[test]
    fn tensors_beside_each_other_do_not_overlap() {
        let all = Tensor::zeros([10], OPTIONS);
        let (first, second) = (all.narrow(0, 0, 5), all.narrow(0, 5, 5));
        for_each_pair([(&first, &second)], |a, b| (*a, *b) = (1.0, 2.0), |_, _| ());
        assert_eq!(all.sum(Kind::Float).double_value(&[]), 15.0);
    }
}
