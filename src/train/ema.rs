//! Exponential moving average of the weights.

use tch::Tensor;

use crate::nn::memory::for_each_pair;

/// An average of every variable (statistics of batch norms included) that follows it slowly: average ← d·average + (1
/// − d)·variable after each step. With a warm-up, d = min(decay, (1 + n) / (10 + n)) after n updates, so that the
/// start is soon forgotten; without, d = decay, as in timm's `ModelEma`.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    warmup: bool,
    updates: u64,
    /// (name, variable, average), by name.
    entries: Vec<(String, Tensor, Tensor)>,
}

impl Ema {
    /// Starts from the variables' present values.
    pub fn new(variables: &[(String, Tensor)], decay: f64, warmup: bool) -> Self {
        let entries = variables
            .iter()
            .filter(|(_, variable)| variable.is_floating_point())
            .map(|(name, variable)| (name.clone(), variable.detach(), variable.detach().copy()))
            .collect();
        Self { decay, warmup, updates: 0, entries }
    }

    /// The decay of the next update.
    pub fn decay(&self) -> f64 {
        let n = self.updates as f64;
        if self.warmup {
            self.decay.min((1.0 + n) / (10.0 + n))
        } else {
            self.decay
        }
    }

    /// Moves the averages towards the variables.
    pub fn update(&mut self) {
        let fraction = 1.0 - self.decay();
        self.updates += 1;
        tch::no_grad(|| {
            self.for_each(
                |average, value| *average += fraction as f32 * (*value - *average),
                |average, value| {
                    let _ = average.shallow_clone().lerp_(value, fraction);
                },
            );
        });
    }

    /// Exchanges averages and variables: once for evaluating and saving the averages, once more for going on.
    pub fn swap(&mut self) {
        tch::no_grad(|| {
            self.for_each(std::mem::swap, |average, value| {
                let kept = value.copy();
                value.shallow_clone().copy_(average);
                average.shallow_clone().copy_(&kept);
            });
        });
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The averages, by name; they share memory with this.
    pub fn averages(&self) -> Vec<(String, Tensor)> {
        self.entries.iter().map(|(name, _, average)| (name.clone(), average.shallow_clone())).collect()
    }

    /// Goes on from where another average was after so many updates; its numbers are to be copied into
    /// [`Ema::averages`].
    pub fn resume(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// [`for_each_pair`] of (average, variable).
    fn for_each(&self, plain: impl Fn(&mut f32, &mut f32) + Sync, tensors: impl Fn(&Tensor, &Tensor)) {
        let pairs = self.entries.iter().map(|(_, variable, average)| (average, variable));
        for_each_pair(pairs, plain, tensors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn value(tensor: &Tensor) -> f64 {
        tensor.double_value(&[1])
    }

    #[test]
    fn the_average_of_a_constant_closes_the_gap_by_the_product_of_the_decays() {
        for kind in [Kind::Float, Kind::Double] {
            let variable = Tensor::zeros([3], (kind, Device::Cpu));
            let mut ema = Ema::new(&[("v".into(), variable.shallow_clone())], 0.4, true);
            let _ = variable.shallow_clone().fill_(5.0);
            // n = 0, 1, 2, 3, 4: 1/10, 2/11, 3/12, 4/13, 5/14, then 0.4 for ever.
            let mut gap = 1.0;
            for n in 0..12 {
                gap *= f64::min(0.4, (1.0 + n as f64) / (10.0 + n as f64));
                ema.update();
            }
            assert!((value(&ema.averages()[0].1) - 5.0 * (1.0 - gap)).abs() < 1e-6);
            assert_eq!(value(&variable), 5.0);
        }
    }

    #[test]
    fn without_a_warm_up_the_gap_closes_by_the_same_share_from_the_first_step() {
        let variable = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let mut ema = Ema::new(&[("v".into(), variable.shallow_clone())], 0.9, false);
        let _ = variable.shallow_clone().fill_(5.0);
        for n in 1..10 {
            ema.update();
            assert!((value(&ema.averages()[0].1) - 5.0 * (1.0 - 0.9f64.powi(n))).abs() < 1e-6);
        }
    }

    #[test]
    fn swapping_exchanges_and_swapping_again_restores_to_the_bit() {
        for kind in [Kind::Float, Kind::Double] {
            let variable = Tensor::from_slice(&[0.1f64, 0.2, 0.3]).to_kind(kind).set_requires_grad(true);
            let mut ema = Ema::new(&[("v".into(), variable.shallow_clone())], 0.4, true);
            let before = variable.detach().copy();
            tch::no_grad(|| {
                let _ = variable.shallow_clone().fill_(7.0);
            });
            ema.swap();
            assert_eq!(variable.detach(), before);
            assert_eq!(value(&ema.averages()[0].1), 7.0);
            ema.swap();
            assert_eq!(value(&variable), 7.0);
            assert_eq!(ema.averages()[0].1, before);
        }
    }
}
