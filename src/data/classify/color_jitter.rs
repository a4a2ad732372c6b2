//! Colour jitter: torchvision's `ColorJitter` of brightness, contrast and saturation.

use rand::seq::SliceRandom;
use rand::Rng;

use super::rand_augment::Op;

/// Draws the three changes in the order in which they are made, each by a factor of `[1 − strength, 1 + strength]`.
pub fn draw(strength: f64, rng: &mut impl Rng) -> [Op; 3] {
    let mut order = [Op::Brightness as fn(f64) -> Op, Op::Contrast, Op::Color];
    order.shuffle(rng);
    order.map(|op| op(1.0 + strength * (2.0 * rng.random::<f64>() - 1.0)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn all_orders_come_equally_often_and_factors_are_even_over_their_range() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let n = 12000;
        let mut orders: BTreeMap<[u8; 3], usize> = BTreeMap::new();
        let mut factors: [Vec<f64>; 3] = Default::default();
        for _ in 0..n {
            let drawn = draw(0.4, &mut rng).map(|op| match op {
                Op::Brightness(factor) => (0, factor),
                Op::Contrast(factor) => (1, factor),
                Op::Color(factor) => (2, factor),
                other => panic!("{other:?}"),
            });
            *orders.entry(drawn.map(|(kind, _)| kind)).or_default() += 1;
            drawn.iter().for_each(|(kind, factor)| factors[usize::from(*kind)].push(*factor));
        }
        // Four standard deviations of a binomial of n draws.
        let chance = |p: f64| 4.0 * (n as f64 * p * (1.0 - p)).sqrt();
        assert_eq!(orders.len(), 6);
        for (order, count) in orders {
            assert!((count as f64 - n as f64 / 6.0).abs() < chance(1.0 / 6.0), "{order:?}: {count}");
        }
        for (kind, factors) in factors.iter().enumerate() {
            assert_eq!(factors.len(), n);
            assert!(factors.iter().all(|f| (0.6..=1.4).contains(f)));
            for share in [0.1, 0.25, 0.5, 0.75, 0.9] {
                let below = factors.iter().filter(|f| **f < 0.6 + 0.8 * share).count() as f64;
                assert!((below - share * n as f64).abs() < chance(share), "{kind} {share}: {below}");
            }
        }
    }
}
