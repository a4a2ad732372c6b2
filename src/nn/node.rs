//! Functions with a gradient of their own in libtorch's graph: what saves less than libtorch would, and computes it
//! again. Also the backward operations that tch lacks. The other side is `node.cpp`.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};

use anyhow::{bail, ensure, Result};
use tch::Tensor;
use torch_sys::C_tensor;

use super::precision::without_autocast;

/// Room for an error's text, as in `node.cpp`.
const TEXT: usize = 512;

type BackwardFn = unsafe extern "C" fn(*mut c_void, *const C_tensor, *mut *mut C_tensor, *mut c_char) -> c_int;
type ReleaseFn = unsafe extern "C" fn(*mut c_void);

extern "C" {
    fn vigdet_attach(
        inputs: *const *const C_tensor,
        count: usize,
        output: *const C_tensor,
        state: *mut c_void,
        backward: BackwardFn,
        release: ReleaseFn,
        attached: *mut *mut C_tensor,
        error: *mut c_char,
    ) -> c_int;
    fn vigdet_backward(output: *const C_tensor, gradient: *const C_tensor, error: *mut c_char) -> c_int;
    fn vigdet_convolution_backward(
        gradient: *const C_tensor,
        input: *const C_tensor,
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        groups: i64,
        wanted: *const bool,
        out: *mut *mut C_tensor,
        error: *mut c_char,
    ) -> c_int;
    fn vigdet_norm_backward(
        gradient: *const C_tensor,
        input: *const C_tensor,
        weight: *const C_tensor,
        mean: *const C_tensor,
        deviation: *const C_tensor,
        eps: f64,
        wanted: *const bool,
        out: *mut *mut C_tensor,
        error: *mut c_char,
    ) -> c_int;
}

/// Gives the gradient of each input, for the gradient of the output.
type Gradients = Box<dyn Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send>;

/// `output`, which was computed without gradient, as a function of the inputs with this gradient: one of each input,
/// or `None` for one that needs none. What the closure holds is kept until then and no longer. Where no input needs a
/// gradient, or none is recorded, it is the output as it is.
///
/// `output` must be a tensor of its own, not a view of another one or one of the inputs.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn attach(
    inputs: &[&Tensor],
    output: Tensor,
    gradients: impl Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + 'static,
) -> Result<Tensor> {
    if !records(inputs) {
        return Ok(output);
    }
    let boxed: Gradients = Box::new(gradients);
    let state = Box::into_raw(Box::new(boxed)).cast();
    let handles: Vec<_> = inputs.iter().map(|tensor| tensor.as_ptr()).collect();
    let mut attached = std::ptr::null_mut();
    // SAFETY: the handles are alive during the call. The state goes to the other side, which gives it back to
    // `release` once, also where it fails.
    checked(|error| unsafe {
        let (count, output) = (handles.len(), output.as_ptr());
        vigdet_attach(handles.as_ptr(), count, output, state, backward, release, &mut attached, error)
    })?;
    // SAFETY: a new handle, which is no one else's.
    Ok(unsafe { Tensor::from_ptr(attached) })
}

/// Whether a gradient is recorded of what is computed from these.
pub(crate) fn records(inputs: &[&Tensor]) -> bool {
    // What a scalar needs to be told by libtorch, which has no question for it.
    let is_on = || {
        let before = tch::no_grad_guard_is_off();
        before
    };
    inputs.iter().any(|tensor| tensor.requires_grad()) && is_on()
}
