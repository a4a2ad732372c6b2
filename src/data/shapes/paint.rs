//! Anti-aliased polygons with textures on an image. Only +, −, ×, ÷ and square roots of floats: the same bytes on
//! every machine.

use image::{Rgb, RgbImage};
use rand::Rng;

use super::region::{bounds, Point};

/// Red, green, blue in 0–255.
pub type Colour = [f32; 3];

/// Lines per pixel at which outlines are sampled; across a line coverage is exact.
const SUBLINES: usize = 5;

/// The two colours of a pattern differ by at most this much in a channel. An outline is a step of at least
/// [`CONTRAST`], so the strongest edge is the outline and not the pattern.
const SPREAD: f32 = 25.0;
/// The same for the background.
const BACKGROUND_SPREAD: f32 = 20.0;
/// Both colours of something differ by more than this, in some channel, from what it is painted on.
const CONTRAST: f32 = 100.0;

/// Clutter behind the objects differs from what it is painted on by at most this much in a channel.
const FAINT: f32 = 35.0;

/// How much of each pixel polygons cover, in the rectangle where they cover any.
pub struct Coverage {
    x: usize,
    y: usize,
    width: usize,
    /// 0 to 1, rows of `width`.
    coverage: Vec<f32>,
}

impl Coverage {
    /// Coverage of one polygon in an image of `width × height` (even-odd rule).
    pub fn new(polygon: &[Point], width: u32, height: u32) -> Self {
        let empty = Self { x: 0, y: 0, width: 0, coverage: Vec::new() };
        let Some([x1, y1, x2, y2]) = bounds(polygon.iter()) else { return empty };
        let clamp = |v: f64, side: u32| v.clamp(0.0, f64::from(side)) as usize;
        let (x, y) = (clamp(x1.floor(), width), clamp(y1.floor(), height));
        let (right, bottom) = (clamp(x2.ceil(), width), clamp(y2.ceil(), height));
        if right <= x || bottom <= y {
            return empty;
        }
        let columns = right - x;
        let mut coverage = vec![0.0f32; columns * (bottom - y)];
        let mut crossings: Vec<f64> = Vec::new();
        for (row, pixels) in coverage.chunks_exact_mut(columns).enumerate() {
            for sub in 0..SUBLINES {
                let at = (y + row) as f64 + (sub as f64 + 0.5) / SUBLINES as f64;
                crossings.clear();
                let ends = polygon.iter().cycle().skip(1);
                for (a, b) in polygon.iter().zip(ends) {
                    if (a[1] <= at) != (b[1] <= at) {
                        crossings.push(a[0] + (at - a[1]) / (b[1] - a[1]) * (b[0] - a[0]) - x as f64);
                    }
                }
                crossings.sort_by(f64::total_cmp);
                for pair in crossings.chunks_exact(2) {
                    add_span(pixels, pair[0], pair[1]);
                }
            }
        }
        Self { x, y, width: columns, coverage }
    }

    /// Sets the pixels of which at least half is covered, in the rows of an image of this width.
    pub fn add_to(&self, mask: &mut [bool], width: u32) {
        for (x, y, coverage) in self.pixels() {
            mask[y * width as usize + x] |= coverage >= 0.5;
        }
    }

    fn pixels(&self) -> impl Iterator<Item = (usize, usize, f32)> + '_ {
        let covered = self.coverage.iter().enumerate().filter(|(_, coverage)| **coverage > 0.0);
        covered.map(|(i, &coverage)| (self.x + i % self.width, self.y + i / self.width, coverage))
    }

    /// Mean colour of the image below, weighted by coverage.
    pub fn mean(&self, image: &RgbImage) -> Colour {
        let mut sum = [0.0f32; 3];
        let mut weight = 1e-6f32;
        for (x, y, coverage) in self.pixels() {
            let pixel = image.get_pixel(x as u32, y as u32).0;
            (0..3).for_each(|c| sum[c] += coverage * f32::from(pixel[c]));
            weight += coverage;
        }
        sum.map(|v| v / weight)
    }

    /// Blends `texture` over the image.
    pub fn paint(&self, image: &mut RgbImage, texture: &Texture) {
        for (x, y, coverage) in self.pixels() {
            let new = texture.at(x as f32, y as f32);
            let Rgb(pixel) = image.get_pixel_mut(x as u32, y as u32);
            for c in 0..3 {
                let old = f32::from(pixel[c]);
                pixel[c] = (old + (new[c] - old) * coverage.min(1.0) + 0.5).clamp(0.0, 255.0) as u8;
            }
        }
    }
}

/// Adds one subline from `from` to `to`, in pixels.
fn add_span(pixels: &mut [f32], from: f64, to: f64) {
    let (from, to) = (from.clamp(0.0, pixels.len() as f64), to.clamp(0.0, pixels.len() as f64));
    let (first, last) = (from as usize, (to.ceil() as usize).min(pixels.len()));
    for (i, pixel) in pixels.iter_mut().enumerate().take(last).skip(first) {
        let inside = (to.min(i as f64 + 1.0) - from.max(i as f64)).max(0.0);
        *pixel += (inside / SUBLINES as f64) as f32;
    }
}

/// What a surface looks like.
#[derive(Clone, Debug)]
pub struct Texture {
    pattern: Pattern,
    colours: [Colour; 2],
    /// Direction of the pattern, a unit vector.
    direction: [f32; 2],
    /// Pixels per repeat.
    period: f32,
    seed: u32,
}

#[derive(Clone, Copy, Debug)]
enum Pattern {
    Plain,
    Gradient,
    Stripes,
    Checks,
    Dots,
    Clouds,
}

impl Texture {
    /// A random pattern of two colours near each other for something `size` pixels wide.
    fn draw(spread: f32, size: f64, rng: &mut impl Rng) -> Self {
        let base: Colour = std::array::from_fn(|_| rng.random_range(0.0..255.0));
        Self::between(base, spread, size, rng)
    }

    /// A random pattern for what lies behind everything, in an image of `side` pixels.
    pub fn background(side: f64, rng: &mut impl Rng) -> Self {
        Self::draw(BACKGROUND_SPREAD, side, rng)
    }

    /// A texture of colours near `below`, what it is painted on.
    pub fn draw_near(below: Colour, size: f64, rng: &mut impl Rng) -> Self {
        let base = below.map(|v| (v + rng.random_range(-FAINT..FAINT)).clamp(0.0, 255.0));
        Self::between(base, SPREAD, size, rng)
    }

    /// A texture whose colours keep a distance from `avoid`: what it is painted on shows its outline.
    pub fn draw_against(avoid: Colour, size: f64, rng: &mut impl Rng) -> Self {
        let distance = |c: &Colour| (0..3).map(|i| (c[i] - avoid[i]).abs()).fold(0.0, f32::max);
        for _ in 0..50 {
            let texture = Self::draw(SPREAD, size, rng);
            if texture.colours.iter().all(|c| distance(c) > CONTRAST) {
                return texture;
            }
        }
        // Half the range away in every channel.
        let opposite = avoid.map(|v| if v < 128.0 { v + 120.0 } else { v - 120.0 });
        Self { pattern: Pattern::Plain, colours: [opposite; 2], direction: [1.0, 0.0], period: 8.0, seed: 0 }
    }

    /// A pattern of colours near `base`.
    pub fn between(base: Colour, spread: f32, size: f64, rng: &mut impl Rng) -> Self {
        let second = base.map(|v| (v + rng.random_range(-spread..spread)).clamp(0.0, 255.0));
        let patterns =
            [Pattern::Plain, Pattern::Gradient, Pattern::Stripes, Pattern::Checks, Pattern::Dots, Pattern::Clouds];
        let angle = rng.random_range(0.0..2.0 * std::f64::consts::PI);
        Self {
            pattern: patterns[rng.random_range(0..patterns.len())],
            colours: [base, second],
            direction: [libm::cos(angle) as f32, libm::sin(angle) as f32],
            period: (size * rng.random_range(0.15..0.5)).max(4.0) as f32,
            seed: rng.random(),
        }
    }

    fn at(&self, x: f32, y: f32) -> Colour {
        // Coordinates along and across the direction, in periods.
        let u = (x * self.direction[0] + y * self.direction[1]) / self.period;
        let v = (y * self.direction[0] - x * self.direction[1]) / self.period;
        let (fu, fv) = (u - u.floor(), v - v.floor());
        let second = match self.pattern {
            Pattern::Plain => 0.0,
            Pattern::Gradient => 2.0 * (u / 4.0 - (u / 4.0 + 0.5).floor()).abs(),
            Pattern::Stripes => f32::from(u8::from(fu < 0.5)),
            Pattern::Checks => f32::from(u8::from((fu < 0.5) != (fv < 0.5))),
            Pattern::Dots => {
                let square = (fu - 0.5) * (fu - 0.5) + (fv - 0.5) * (fv - 0.5);
                f32::from(u8::from(square < 0.09))
            }
            Pattern::Clouds => (clouds(self.seed, u, v) + clouds(self.seed ^ 1, 2.7 * u, 2.7 * v)) / 2.0,
        };
        std::array::from_fn(|c| self.colours[0][c] + (self.colours[1][c] - self.colours[0][c]) * second)
    }

    /// Paints all of an image.
    pub fn fill(&self, image: &mut RgbImage) {
        for (x, y, pixel) in image.enumerate_pixels_mut() {
            pixel.0 = self.at(x as f32, y as f32).map(|v| (v + 0.5).clamp(0.0, 255.0) as u8);
        }
    }
}

/// Value noise: random numbers on a grid, smoothly blended, 0 to 1.
fn clouds(seed: u32, u: f32, v: f32) -> f32 {
    let (x, y) = (u.floor(), v.floor());
    let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
    let (a, b) = (smooth(u - x), smooth(v - y));
    let corner = |dx: i32, dy: i32| hash(seed, x as i32 + dx, y as i32 + dy);
    let above = corner(0, 0) + (corner(1, 0) - corner(0, 0)) * a;
    let below = corner(0, 1) + (corner(1, 1) - corner(0, 1)) * a;
    above + (below - above) * b
}

/// A number of 0–1 for a place on a grid (integer mixing of MurmurHash3's finaliser).
fn hash(seed: u32, x: i32, y: i32) -> f32 {
    let mut h = seed ^ (x as u32).wrapping_mul(0x9E37_79B1) ^ (y as u32).wrapping_mul(0x85EB_CA77);
    h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
    h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
    ((h ^ (h >> 16)) >> 8) as f32 / (1u32 << 24) as f32
}

/// Adds the same random amount of up to `amount` to the three channels of each pixel.
pub fn grain(image: &mut RgbImage, amount: i16, rng: &mut impl Rng) {
    for pixel in image.pixels_mut() {
        let change = rng.random_range(-amount..=amount);
        pixel.0 = pixel.0.map(|v| (i16::from(v) + change).clamp(0, 255) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coverage_is_the_part_of_each_pixel_inside() {
        // From (0.25, 0) to (3.5, 2): whole pixels, a quarter missing at the left, half at the right.
        let cover = Coverage::new(&[[0.25, 0.0], [3.5, 0.0], [3.5, 2.0], [0.25, 2.0]], 10, 10);
        let expected = [0.75, 1.0, 1.0, 0.5];
        assert_eq!((cover.x, cover.y, cover.width, cover.coverage.len()), (0, 0, 4, 8));
        for (coverage, expected) in cover.coverage.iter().zip(expected.iter().cycle()) {
            assert!((coverage - expected).abs() < 1e-6);
        }
        let total: f32 = Coverage::new(&[[2.0, 1.0], [9.0, 4.0], [3.0, 8.0]], 10, 10).coverage.iter().sum();
        assert!((total - 23.0).abs() < 0.2, "{total}");
        assert!(Coverage::new(&[[-5.0, 0.0], [-1.0, 0.0], [-3.0, 9.0]], 10, 10).coverage.is_empty());
    }

    #[test]
    fn a_texture_stands_out_from_what_it_avoids() {
        let mut rng = super::super::super::order::generator(1, 0, 0);
        for grey in [0.0, 100.0, 128.0, 255.0] {
            for _ in 0..50 {
                let texture = Texture::draw_against([grey; 3], 20.0, &mut rng);
                for colour in texture.colours {
                    assert!(colour.iter().any(|c| (c - grey).abs() > CONTRAST));
                }
            }
        }
    }
}
