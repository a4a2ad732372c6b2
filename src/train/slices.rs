//! The memory of parameters on the CPU, for updates in place.

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

/// Numbers that one task works on: small enough to spread small models over threads, large enough to be worth a task.
pub const CHUNK: usize = 1 << 15;

/// The numbers of a dense float32 CPU tensor, to be written in place.
///
/// # Safety
/// While the slice lives, nothing else may read or write the tensor's memory: no other slice of it, no libtorch call on it or on a view
/// of it. Callers here hold the training loop, between a backward pass and the next forward pass.
#[allow(clippy::mut_from_ref)]
pub unsafe fn numbers(tensor: &Tensor) -> &mut [f32] {
    debug_assert!(is_plain(tensor));
    match tensor.numel() {
        0 => &mut [],
        // SAFETY: a contiguous float32 tensor on the CPU has `numel` numbers behind its pointer and keeps them while it is
        // borrowed; the caller answers for nobody else using them.
        n => unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), n) },
    }
}

/// Whether the tensor is what [`numbers`] takes.
pub fn is_plain(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && tensor.is_contiguous()
}

/// Works on pairs of numbers of two tensors of one shape, pair by pair of tensors: in parallel in place where both lie in plain memory; where not,
/// `tensors` works on the two as they are.
///
/// All tensors must be different ones; the training loop does nothing else with them during the call.
pub fn for_each_pair<'a>(
    pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>,
    plain: impl Fn(&mut f32, &mut f32) + Sync,
    tensors: impl Fn(&Tensor, &Tensor),
) {
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        pairs.into_iter().partition(|(a, b)| is_plain(a) && is_plain(b));
    let chunks: Vec<(&mut [f32], &mut [f32])> = here
        .into_iter()
        .flat_map(|(a, b)| {
            // SAFETY: each tensor is there once, and the training loop leaves them alone while this runs.
            let (a, b) = unsafe { (numbers(a), numbers(b)) };
            a.chunks_mut(CHUNK).zip(b.chunks_mut(CHUNK))
        })
        .collect();
    chunks.into_par_iter().for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| plain(a, b)));
    elsewhere.into_iter().for_each(|(a, b)| tensors(a, b));
}
