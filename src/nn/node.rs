//! Functions with a gradient of their own in libtorch's graph: what keeps less than libtorch would, and computes it
//! again. Also the backward operations that tch lacks. The other side is `node.cpp`.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};

use anyhow::{bail, ensure, Result};
use tch::Tensor;
use torch_sys::C_tensor;

use super::precision::without_autocast;

/// Room for an error's text, as in `node.cpp`.
const TEXT: usize = 512;

type Backward = unsafe extern "C" fn(*mut c_void, *const C_tensor, *mut *mut C_tensor, *mut c_char) -> c_int;
type Release = unsafe extern "C" fn(*mut c_void);

extern "C" {
    fn vigdet_records() -> bool;
    fn vigdet_attach(
        inputs: *const *const C_tensor,
        count: usize,
        output: *const C_tensor,
        state: *mut c_void,
        backward: Backward,
        release: Release,
        attached: *mut *mut C_tensor,
        error: *mut c_char,
    ) -> c_int;
    fn vigdet_backward(output: *const C_tensor, gradient: *const C_tensor, error: *mut c_char) -> c_int;
    fn vigdet_forget_gradient(variable: *const C_tensor);
    fn vigdet_convolution_backward(
        gradient: *const C_tensor,
        input: *const C_tensor,
        weight: *const C_tensor,
        sizes: *const i64,
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
        out: *mut *mut C_tensor,
        error: *mut c_char,
    ) -> c_int;
}

/// The gradient of each input of a function, for the gradient of its output; `None` for one that needs none.
pub(crate) type Gradients = Vec<Option<Tensor>>;

type Function = Box<dyn FnOnce(&Tensor) -> Result<Gradients> + Send>;

struct State {
    inputs: usize,
    gradients: Function,
}

/// `output`, which was computed without gradient, as a function of the inputs whose gradients the closure gives. What
/// the closure holds goes with it. Where no gradient is recorded, `output` is given back as it is.
///
/// `output` must be a tensor of its own: no view of another one, and none of the inputs.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn attach(
    inputs: &[&Tensor],
    output: Tensor,
    gradients: impl FnOnce(&Tensor) -> Result<Gradients> + Send + 'static,
) -> Result<Tensor> {
    if !records(inputs) {
        return Ok(output);
    }
    let state = State { inputs: inputs.len(), gradients: Box::new(gradients) };
    let state = Box::into_raw(Box::new(Some(state))).cast();
    let handles: Vec<_> = inputs.iter().map(|tensor| tensor.as_ptr()).collect();
    let mut attached = std::ptr::null_mut();
    // SAFETY: the handles live longer than the call. The state belongs to the other side from here on, whatever comes
    // of it, which gives it to `release` once.
    checked(|error| unsafe {
        let (count, output) = (handles.len(), output.as_ptr());
        vigdet_attach(handles.as_ptr(), count, output, state, backward, release, &mut attached, error)
    })?;
    // SAFETY: a new handle, which nobody else has.
    Ok(unsafe { Tensor::from_ptr(attached) })
}

/// Whether a gradient is recorded of what these make.
pub(crate) fn records(inputs: &[&Tensor]) -> bool {
    // SAFETY: reads a variable of this thread.
    inputs.iter().any(|tensor| tensor.requires_grad()) && unsafe { vigdet_records() }
}

/// Adds the gradients of all that `output` depends on, for this gradient of it.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn backward_from(output: &Tensor, gradient: &Tensor) -> Result<()> {
    // SAFETY: both handles live longer than the call.
    checked(|error| unsafe { vigdet_backward(output.as_ptr(), gradient.as_ptr(), error) })
}

/// Leaves a variable without a gradient, whose memory is free then. The next backward pass makes a new one.
pub(crate) fn forget_gradient(variable: &Tensor) {
    if variable.grad().defined() {
        // SAFETY: the handle lives longer than the call, and what has a gradient has a place for one.
        unsafe { vigdet_forget_gradient(variable.as_ptr()) }
    }
}

/// Stride, padding and groups of a convolution in two dimensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub stride: i64,
    pub padding: i64,
    pub groups: i64,
}

/// Gradients of a convolution's input, weight and bias, those that are `wanted`.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn convolution_backward(
    gradient: &Tensor,
    input: &Tensor,
    weight: &Tensor,
    Geometry { stride, padding, groups }: Geometry,
    wanted: [bool; 3],
) -> Result<[Option<Tensor>; 3]> {
    let sizes = [stride, padding, groups];
    three(|out, error| {
        let (gradient, input, weight) = (gradient.as_ptr(), input.as_ptr(), weight.as_ptr());
        // SAFETY: handles, numbers and room for three handles live longer than the call.
        unsafe { vigdet_convolution_backward(gradient, input, weight, sizes.as_ptr(), wanted.as_ptr(), out, error) }
    })
}

/// Gradients of the input, the weight and the bias of a batch norm that took the batch's statistics: `mean` and one
/// over the standard `deviation`, as [`Tensor::native_batch_norm`] gives them.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn norm_backward(
    gradient: &Tensor,
    input: &Tensor,
    weight: &Tensor,
    (mean, deviation): (&Tensor, &Tensor),
    eps: f64,
) -> Result<[Option<Tensor>; 3]> {
    three(|out, error| {
        let (gradient, input, weight) = (gradient.as_ptr(), input.as_ptr(), weight.as_ptr());
        // SAFETY: handles and room for three handles live longer than the call.
        unsafe { vigdet_norm_backward(gradient, input, weight, mean.as_ptr(), deviation.as_ptr(), eps, out, error) }
    })
}

/// What a call makes of three handles; null becomes `None`.
fn three(call: impl FnOnce(*mut *mut C_tensor, *mut c_char) -> c_int) -> Result<[Option<Tensor>; 3]> {
    let mut out = [std::ptr::null_mut(); 3];
    checked(|error| call(out.as_mut_ptr(), error))?;
    // SAFETY: new handles, which nobody else has.
    Ok(out.map(|handle| (!handle.is_null()).then(|| unsafe { Tensor::from_ptr(handle) })))
}

/// Makes an error of the text that a call leaves where it gives another number than 0.
fn checked(call: impl FnOnce(*mut c_char) -> c_int) -> Result<()> {
    let mut text = [0 as c_char; TEXT];
    if call(text.as_mut_ptr()) == 0 {
        return Ok(());
    }
    // SAFETY: the other side ends its text with a zero.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
    bail!("libtorch: {}", text.lines().next().unwrap_or_default())
}

/// # Safety
/// `state` is what [`attach`] made, the gradient is alive, and there is room for a handle of each input and for the
/// text of an error.
unsafe extern "C" fn backward(
    state: *mut c_void,
    gradient: *const C_tensor,
    out: *mut *mut C_tensor,
    error: *mut c_char,
) -> c_int {
    // SAFETY: the caller's promise; nothing else has the state.
    let (state, gradient) =
        unsafe { (&mut *state.cast::<Option<State>>(), Tensor::clone_from_ptr(gradient.cast_mut())) };
    let work = AssertUnwindSafe(|| {
        let Some(State { inputs, gradients }) = state.take() else { bail!("there is no gradient any more") };
        let found = without_autocast(gradient.device(), || tch::no_grad(|| gradients(&gradient)))?;
        ensure!(found.len() == inputs, "{} gradients for {inputs} inputs", found.len());
        Ok(found)
    });
    let message = match catch_unwind(work) {
        Ok(Ok(found)) => {
            for (i, tensor) in found.into_iter().enumerate() {
                let Some(tensor) = tensor else { continue };
                // SAFETY: there is room for as many. The handle goes to the other side: it is not dropped here.
                unsafe { *out.add(i) = tensor.as_ptr().cast_mut() };
                std::mem::forget(tensor);
            }
            return 0;
        }
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "a gradient could not be computed".into(),
    };
    for (i, byte) in message.bytes().filter(|byte| *byte != 0).take(TEXT - 1).chain([0]).enumerate() {
        // SAFETY: there is room for this many.
        unsafe { *error.add(i) = byte as c_char };
    }
    1
}

/// # Safety
/// `state` is what [`attach`] made, and nobody uses it again.
unsafe extern "C" fn release(state: *mut c_void) {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(state.cast::<Option<State>>()) });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tch::{Device, Kind};

    use super::*;

    fn leaf(value: f64) -> Tensor {
        Tensor::full([2], value, (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    #[test]
    fn a_function_has_the_gradients_it_gives_and_its_state_goes_with_them() {
        let (x, y, constant) = (leaf(3.0), leaf(5.0), leaf(7.0).detach());
        let state = Arc::new(());
        let make = |held: Arc<()>| {
            let (a, b) = (x.detach(), y.detach());
            let product = tch::no_grad(|| &x * &y * &constant);
            attach(&[&x, &constant, &y], product, move |gradient| {
                drop(held);
                Ok(vec![Some(gradient * &b * 7.0), None, Some(gradient * &a * 7.0)])
            })
            .unwrap()
        };
        let out = make(state.clone());
        (&out * &out).sum(Kind::Float).backward();
        // d(7xy)² = 2 · 7xy · 7y
        assert_eq!(x.grad().double_value(&[1]), 2.0 * 105.0 * 35.0);
        assert_eq!(y.grad().double_value(&[0]), 2.0 * 105.0 * 21.0);
        assert_eq!(Arc::strong_count(&state), 1, "the state outlives its gradient");
        let unused = make(state.clone());
        assert_eq!(Arc::strong_count(&state), 2);
        drop(unused);
        assert_eq!(Arc::strong_count(&state), 1, "the state outlives the graph");
        assert!(!tch::no_grad(|| make(state.clone())).requires_grad());
        assert_eq!(Arc::strong_count(&state), 1, "the state is kept where no gradient is recorded");
    }

    #[test]
    fn an_error_in_a_gradient_is_the_backward_passs_error() {
        let x = leaf(1.0);
        let fails = |gradients: fn(&Tensor) -> Result<Gradients>| {
            let out = attach(&[&x], x.detach() * 2.0, gradients).unwrap();
            out.sum(Kind::Float).f_backward().unwrap_err().to_string()
        };
        assert!(fails(|_| bail!("the disk is full")).contains("the disk is full"));
        assert!(fails(|_| Ok(Vec::new())).contains("0 gradients for 1 inputs"));
    }
}
