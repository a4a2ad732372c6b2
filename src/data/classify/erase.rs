//! Random erasing (Zhong et al., 2020), with timm's `pixel` mode: a rectangle becomes noise.

use rand::Rng;
use rand_distr::StandardNormal;

use super::crop::Window;
use crate::config::EraseConfig;

/// Rectangles that are tried before the image stays as it is.
const TRIES: usize = 10;

/// The rectangle to erase from a `side` × `side` image, if any: its area a share of the image's drawn from
/// `config.area`, its height over width drawn evenly in logarithm; it is always smaller than the image along both
/// sides.
pub fn window(side: u32, config: &EraseConfig, rng: &mut impl Rng) -> Option<Window> {
    if rng.random::<f64>() >= config.probability {
        return None;
    }
    let area = f64::from(side) * f64::from(side);
    for _ in 0..TRIES {
        let target = area * (config.area[0] + (config.area[1] - config.area[0]) * rng.random::<f64>());
        let aspect = (config.aspect.ln() * (1.0 - 2.0 * rng.random::<f64>())).exp();
        let height = (target * aspect).sqrt().round_ties_even() as u32;
        let width = (target / aspect).sqrt().round_ties_even() as u32;
        if width < side && height < side {
            let y = rng.random_range(0..=side - height);
            let x = rng.random_range(0..=side - width);
            return Some(Window { x, y, width, height });
        }
    }
    None
}

/// Fills a window of the planes `[3, side, side]` with normal random numbers.
pub fn erase(planes: &mut [f32], side: usize, window: Window, rng: &mut impl Rng) {
    let (x, y) = (window.x as usize, window.y as usize);
    let (width, height) = (window.width as usize, window.height as usize);
    for plane in planes.chunks_exact_mut(side * side) {
        for row in plane.chunks_exact_mut(side).skip(y).take(height) {
            row[x..x + width].iter_mut().for_each(|v| *v = rng.sample(StandardNormal));
        }
    }
}
