//! How different the features of an image's nodes are: the paper's Figure 3 and appendix A.1.

use anyhow::{ensure, Result};
use tch::{Device, Kind, Tensor};

/// Feature diversity, ‖X − 1x̃ᵀ‖ / ‖X‖, of each image of `[B, C, H, W]` features: X is `[H·W, C]`, a row for each node,
/// and x̃ the mean of its rows. The norm is √(‖·‖₁·‖·‖∞), of the largest sum of absolute values in a column and in a
/// row, as in Dong et al. (2021, "Attention is not all you need"). 0: all nodes are alike. Nodes without any feature
/// (all 0) have diversity 0.
///
/// # Errors
/// If the tensor does not have four dimensions, or no node or channel.
pub fn diversity(features: &Tensor) -> Result<Vec<f64>> {
    let (b, c, h, w) = features.size4()?;
    ensure!(b * c * h * w > 0, "there are no features in {:?}", features.size());
    // On the CPU: MPS has no float64.
    let x = features.detach().to_device(Device::Cpu).to_kind(Kind::Double).flatten(2, -1).transpose(1, 2);
    let apart = &x - x.mean_dim([1i64].as_slice(), true, None::<Kind>);
    let ratio = norm(&apart) / norm(&x).clamp_min(f64::MIN_POSITIVE);
    Ok(ratio.try_into()?)
}

/// √(‖X‖₁·‖X‖∞) of each matrix of `[B, N, C]`.
fn norm(x: &Tensor) -> Tensor {
    let sums = |dim: i64| x.abs().sum_dim_intlist([dim].as_slice(), false, None::<Kind>).amax([1], false);
    (sums(1) * sums(2)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diversity_is_that_of_the_formula() {
        // Two nodes, (1, 2) and (3, −2). Column sums 4 and 4, row sums 3 and 5: ‖X‖ = √(4·5).
        // Mean (2, 0); what is left (−1, 2) and (1, −2): column sums 2 and 4, row sums 3 and 3, √(4·3).
        let first = [1.0f32, 3.0, 2.0, -2.0];
        // Equal nodes, then nothing at all.
        let all: Vec<f32> = first.into_iter().chain([7.0, 7.0, -1.0, -1.0]).chain([0.0; 4]).collect();
        let found = diversity(&Tensor::from_slice(&all).view([3, 2, 1, 2])).unwrap();
        assert!((found[0] - (12f64 / 20.0).sqrt()).abs() < 1e-12, "{found:?}");
        assert_eq!(found[1..], [0.0, 0.0]);
        assert!(diversity(&Tensor::zeros([1, 0, 2, 2], (Kind::Float, Device::Cpu))).is_err());
    }
}
