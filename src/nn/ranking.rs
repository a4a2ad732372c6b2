//! The smallest of many values, on any device, with one answer where some are equal.

use anyhow::Result;
use tch::{Kind, Tensor};

/// Bits of a key that hold the index.
const INDEX: i64 = 0xffff_ffff;

/// The indices of the `count` smallest values of every row, int64 `[…, count]`: smallest first, equal ones by index.
///
/// `values` is float32 `[…, n]` without NaN; `indices` int64, from 0, broadcasts to its shape and names each value.
/// libtorch's `topk` takes any of equal values. Here each has a key of its own: its bits, in an order that integers
/// have too, above its index.
pub fn smallest(values: &Tensor, indices: &Tensor, count: i64) -> Result<Tensor> {
    // −0 becomes 0. Of two negative numbers the larger bits are the smaller number.
    let bits = (values + 0.0).f_view_dtype(Kind::Int)?;
    let rising = bits.bitwise_xor(i64::from(i32::MAX)).where_self(&bits.lt(0), &bits);
    let keys = rising.to_kind(Kind::Int64) * (INDEX + 1) + indices;
    let (keys, _) = keys.f_topk(count, -1, false, true)?;
    Ok(keys.bitwise_and(INDEX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn values_are_ordered_as_numbers_and_equal_ones_by_index() {
        let values = [3.0f32, -0.0, 0.0, -2.5, f32::INFINITY, -2.5, 1e-40, f32::NEG_INFINITY, -1e-40, 3.0];
        let mut expected: Vec<i64> = (0..10).collect();
        expected.sort_by(|&a, &b| values[a as usize].partial_cmp(&values[b as usize]).unwrap().then(a.cmp(&b)));
        let indices = Tensor::arange(10, (Kind::Int64, Device::Cpu));
        for count in [1, 4, 10] {
            let found = smallest(&Tensor::from_slice(&values).view([2, 5]).view([1, 10]), &indices, count).unwrap();
            assert_eq!(Vec::<i64>::try_from(found.view(-1)).unwrap(), expected[..count as usize], "{count}");
        }
    }
}
