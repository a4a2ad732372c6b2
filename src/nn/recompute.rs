//! What a training pass does not keep until its gradient, but computes again: what is cheap beside what it is fed to.
//!
//! Of `convolution → batch norm → GELU → convolution` libtorch keeps all three results in between, each as large as the
//! next. The norm and GELU cost a fraction of a convolution. So here the outputs of convolutions are kept, and what
//! follows them is made again where the next one's gradient needs it ("in-place activated batch norm" has the same
//! aim: Rota Bulò et al., 2018). And whole stages can be run again ("gradient checkpointing", Chen et al., 2016).

use std::cell::Cell;

use anyhow::{Context, Result};
use tch::{no_grad, Tensor};

use super::layers::{gelu, ConvBn};
use super::node::{attach, backward_from, convolution_backward, norm_backward, records, Gradients};
use super::precision::Autocast;

thread_local! {
    static AGAIN: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is a part of a pass that is run again: what the first run changed for good stays as it is.
pub(super) fn is_again() -> bool {
    AGAIN.get()
}

fn again<T>(work: impl FnOnce() -> T) -> T {
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            AGAIN.set(self.0);
        }
    }
    let _before = Before(AGAIN.replace(true));
    work()
}

/// `second(GELU(first(x)) · mask)`, both with their norms. In training it keeps the outputs of the convolutions alone.
///
/// # Errors
/// Those of libtorch.
pub fn through_gelu(first: &ConvBn, second: &ConvBn, x: &Tensor, train: bool, mask: Option<&Tensor>) -> Result<Tensor> {
    if !keeps_less(first, &[x], train) {
        return Ok(second.forward(&masked(gelu(first.forward(x, train)), mask), train));
    }
    Ok(second.normalize(&after_gelu(first, second, &first.convolve(x), mask)?))
}

/// Whether there is something to keep less of: `layer` takes a batch's statistics, and a gradient is recorded.
pub(crate) fn keeps_less(layer: &ConvBn, inputs: &[&Tensor], train: bool) -> bool {
    train && (records(inputs) || records(&[&layer.conv.ws]))
}

/// `second(GELU(norm(z)) · mask)` without the second's norm, where `z` is what the first's convolution gave.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn after_gelu(first: &ConvBn, second: &ConvBn, z: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let mask = mask.map(Tensor::shallow_clone);
    let norm = first.batch_norm().context("a batch norm without weights cannot be computed again")?;
    let activated = no_grad(|| masked(gelu(norm.of(z, !is_again()).0), mask.as_ref()));
    let kept = z.detach();
    let inputs = [z, &norm.weight, &norm.bias].map(Tensor::shallow_clone);
    let remake = move || {
        let (y, mean, deviation) = norm.of(&kept, false);
        let activated = masked(gelu(y.copy()), mask.as_ref());
        let gradients = move |gradient: Tensor| {
            let gradient = y.gelu_backward(&masked(gradient, mask.as_ref()), "none");
            drop(y);
            Ok(norm_backward(&gradient, &kept, &norm.weight, (&mean, &deviation), norm.eps)?.into())
        };
        Ok((activated, gradients))
    };
    convolution_of(second, activated, &inputs.each_ref(), remake)
}

/// The convolution of a layer, of what is made from `inputs`: `made`, which is not kept but made again. `remake` gives
/// it and what turns its gradient into that of the inputs.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn convolution_of<G>(
    layer: &ConvBn,
    made: Tensor,
    inputs: &[&Tensor],
    remake: impl FnOnce() -> Result<(Tensor, G)> + Send + 'static,
) -> Result<Tensor>
where
    G: FnOnce(Tensor) -> Result<Gradients>,
{
    let output = no_grad(|| layer.convolve(&made));
    drop(made);
    let (geometry, weight) = (layer.geometry(), layer.conv.ws.shallow_clone());
    let bias = layer.conv.bs.as_ref().map(Tensor::shallow_clone);
    let all: Vec<&Tensor> = inputs.iter().copied().chain([&layer.conv.ws]).chain(&layer.conv.bs).collect();
    attach(&all, output, move |gradient| {
        let (made, gradients) = remake()?;
        // What autocast computed in bfloat16 goes back in it, and the weight's gradient is widened.
        let kind = gradient.kind();
        let wanted = [true, weight.requires_grad(), bias.as_ref().is_some_and(Tensor::requires_grad)];
        let [to_made, to_weight, to_bias] =
            convolution_backward(gradient, &made.to_kind(kind), &weight.to_kind(kind), geometry, wanted)?;
        let made_kind = made.kind();
        drop(made);
        let to_made = to_made.context("a convolution has no gradient of its input")?;
        let mut found = gradients(to_made.to_kind(made_kind))?;
        let widened = |gradient: Option<Tensor>| gradient.map(|gradient| gradient.to_kind(weight.kind()));
        found.push(widened(to_weight));
        if bias.is_some() {
            found.push(widened(to_bias));
        }
        Ok(found)
    })
}

/// `output`, which was made of `x` without keeping what is in between: `run` makes it again where its gradient is
/// wanted, under the same autocast. The gradients of what it learns add up as usual.
///
/// The second run must do the same as the first: what is random in it is the closure's to repeat. Batch norms change
/// their running statistics in the first alone.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn checkpoint(
    x: &Tensor,
    output: Tensor,
    run: impl FnOnce(&Tensor) -> Result<Tensor> + Send + 'static,
) -> Result<Tensor> {
    // What learns behind it needs a graph, whether or not something before it does.
    let x = if x.requires_grad() { x.shallow_clone() } else { x.detach().set_requires_grad(true) };
    let kept = x.detach().set_requires_grad(true);
    let (device, autocast) = (x.device(), Autocast::is_on(x.device()));
    attach(&[&x], output, move |gradient| {
        let output = again(|| {
            let _autocast = Autocast::set(device, autocast);
            tch::with_grad(|| run(&kept))
        })?;
        backward_from(&output, &gradient.to_kind(output.kind()))?;
        Ok(vec![Some(kept.grad())])
    })
}

fn masked(x: Tensor, mask: Option<&Tensor>) -> Tensor {
    match mask {
        Some(mask) => &x * mask.to_kind(x.kind()),
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use tch::{nn, Device, Kind};

    use super::*;
    use crate::nn::layers::ConvSpec;

    fn wave(shape: &[i64], step: f64) -> Tensor {
        (Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * step).sin().view(shape)
    }

    fn gradients(store: &nn::VarStore) -> Vec<(String, Tensor)> {
        let mut found: Vec<(String, Tensor)> =
            store.variables().into_iter().filter(|(_, value)| value.requires_grad()).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found.into_iter().map(|(name, value)| (name, value.grad())).collect()
    }

    /// Two layers with all that a convolution may have, and what comes of them by libtorch's own gradients.
    #[test]
    fn what_is_made_again_has_libtorchs_gradients_and_statistics() {
        for (groups, stride, masked) in [(1, 1, false), (2, 2, true)] {
            let build = || {
                let store = nn::VarStore::new(Device::Cpu);
                let root = store.root();
                let first = ConvBn::at(&root / "a", ConvSpec { groups, ..ConvSpec::new(6, 8, 3) }, 1e-5);
                let second =
                    ConvBn::at(&root / "b", ConvSpec { groups, ..ConvSpec::new(8, 4, 3).stride(stride) }, 1e-3);
                (store, first, second)
            };
            let (own, by_libtorch) = (build(), build());
            for (name, value) in own.0.variables() {
                let start = wave(&value.size(), 0.37) + if name.ends_with("running_var") { 2.0 } else { 0.1 };
                for store in [&own.0, &by_libtorch.0] {
                    tch::no_grad(|| store.variables()[&name].shallow_clone().copy_(&start));
                }
            }
            let mask = masked.then(|| wave(&[3, 1, 7, 5], 1.0).gt(0.0).to_kind(Kind::Float));
            let x = || wave(&[3, 6, 7, 5], 0.9).set_requires_grad(true);
            let (ours, theirs) = (x(), x());
            let out = through_gelu(&own.1, &own.2, &ours, true, mask.as_ref()).unwrap();
            let expected = {
                let (_, first, second) = &by_libtorch;
                let middle = first.forward(&theirs, true).gelu("none");
                let middle = match &mask {
                    Some(mask) => middle * mask,
                    None => middle,
                };
                second.forward(&middle, true)
            };
            let far = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
            assert!(far(&out, &expected) < 1e-5);
            let weight = wave(&out.size(), 0.21);
            (out * &weight).sum(Kind::Float).backward();
            (expected * &weight).sum(Kind::Float).backward();
            assert!(far(&ours.grad(), &theirs.grad()) < 1e-5);
            for ((name, a), (_, b)) in gradients(&own.0).iter().zip(&gradients(&by_libtorch.0)) {
                // A bias before a norm has a gradient of nothing but rounding.
                assert!(far(a, b) < 2e-5 * b.abs().max().double_value(&[]).max(1.0), "{name}: {a} {b}");
            }
            for (name, value) in own.0.variables() {
                assert!(far(&value, &by_libtorch.0.variables()[&name]) < 1e-6, "{name}");
            }
        }
    }

    #[test]
    fn a_layer_that_learns_nothing_before_it_still_learns() {
        let store = nn::VarStore::new(Device::Cpu);
        let factor = store.root().ones("factor", &[3]);
        let x = wave(&[4, 3], 1.0);
        let run = |x: &Tensor, factor: &Tensor| (x * factor).sin();
        let output = no_grad(|| run(&x, &factor));
        let weight = factor.shallow_clone();
        let out = checkpoint(&x, output, move |x| {
            assert!(is_again());
            Ok(run(x, &weight))
        });
        out.unwrap().sum(Kind::Float).backward();
        assert!(!is_again());
        let expected = (x.cos() * &x).sum_dim_intlist([0i64].as_slice(), false, None::<Kind>);
        assert!((factor.grad() - expected).abs().max().double_value(&[]) < 1e-6);
    }
}
