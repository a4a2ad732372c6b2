//! GELU, x·Φ(x), in place.

use super::{Isa, Work};
use rayon::prelude::*;

/// Values per job; fewer are done by the caller's thread alone.
const BLOCK: usize = 1 << 14;

/// From here on Φ(|x|) is one to the last place of a float: 1 − Φ(5.6) = 1.1e-8.
const EDGE: f32 = 5.6;

// Φ(x) − 1/2 = x · P(x²) / Q(x²) on [−EDGE, EDGE], within 9.3e-9: a least-squares fit, reweighted until the largest
// error was level.
const P: [f32; 6] = [0.398_942_23, 0.034_376_007, 4.707_252_8e-3, 1.738_496_5e-4, 6.356_52e-6, 2.214_536_3e-8];
const Q: [f32; 6] = [1.0, 0.252_833_6, 0.028_940_03, 1.912_972_1e-3, 7.510_155e-5, 1.180_212_5e-6];

/// Replaces every x by x·Φ(x), the exact form (not the one with tanh): within 3e-7·(1 + |x|) of it, as libtorch's own.
///
/// NaN stays NaN, and minus infinity becomes NaN, as there.
pub fn gelu_in_place(isa: Isa, values: &mut [f32]) {
    if values.len() <= BLOCK {
        isa.run(Gelu(values));
    } else {
        values.par_chunks_mut(BLOCK).for_each(|values| isa.run(Gelu(values)));
    }
}

struct Gelu<'a>(&'a mut [f32]);

impl Work for Gelu<'_> {
    #[inline(always)]
    unsafe fn run(self, isa: Isa) {
        let polynomial = |square: f32, of: &[f32; 6]| {
            let step = |sum: f32, &c: &f32| match isa {
                // Without an instruction for a·b + c, `mul_add` would be a function call.
                Isa::Portable => sum * square + c,
                Isa::Avx2 | Isa::Avx512 => sum.mul_add(square, c),
            };
            of[..5].iter().rev().fold(of[5], step)
        };
        for x in self.0 {
            let v = *x;
            let square = v * v;
            let inside = v * (0.5 + v * (polynomial(square, &P) / polynomial(square, &Q)));
            let outside = v * if v > 0.0 { 1.0 } else { 0.0 };
            *x = if v.abs() > EDGE { outside } else { inside };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in float64: Φ by its series, and beyond 3 by the continued fraction of its tail.
    fn definition(x: f64) -> f64 {
        let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let upper = |x: f64| density / (1..200).rev().fold(x, |rest, n| x + f64::from(n) / rest);
        let phi = if x > 3.0 {
            1.0 - upper(x)
        } else if x < -3.0 {
            upper(-x)
        } else {
            let (mut term, mut sum) = (x, x);
            for n in 1..100 {
                term *= x * x / f64::from(2 * n + 1);
                sum += term;
            }
            0.5 + density * sum
        };
        x * phi
    }

    #[test]
    fn it_is_the_exact_gelu() {
        let count = 3 * BLOCK + 77;
        let inputs: Vec<f32> = (0..count).map(|i| (i as f32 / count as f32 - 0.5) * 40.0).collect();
        for isa in Isa::available() {
            let mut all = inputs.clone();
            gelu_in_place(isa, &mut all);
            for (&x, y) in inputs.iter().zip(all) {
                let expected = definition(f64::from(x));
                let error = (f64::from(y) - expected).abs();
                assert!(error < 3e-7 * (1.0 + f64::from(x.abs())), "{isa:?} {x}: {y}, not {expected}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        for isa in Isa::available() {
            let mut values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, 0.0];
            gelu_in_place(isa, &mut values);
            assert!(values[0].is_nan() && values[2].is_nan(), "{isa:?}");
            let finite = [values[1], values[3], values[4], values[5]];
            assert_eq!(finite, [f32::INFINITY, f32::MAX, 0.0, 0.0], "{isa:?}");
        }
    }
}
