//! The outlines that tell the classes of the built-in data apart.

use rand::Rng;

use super::region::{area, bounds, Point};

/// A class: told by its outline only. Turned any way, mirrored or a little stretched, none becomes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A disc.
    Circle,
    /// Equal sides.
    Triangle,
    /// Equal sides.
    Square,
    /// Five points.
    Star,
    /// Two bars.
    Cross,
    /// A disc with a bite.
    Crescent,
}

impl Shape {
    /// All classes; category ids count from 1 in this order.
    pub const ALL: [Shape; 6] =
        [Shape::Circle, Shape::Triangle, Shape::Square, Shape::Star, Shape::Cross, Shape::Crescent];

    /// The category's name.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Circle => "circle",
            Shape::Triangle => "triangle",
            Shape::Square => "square",
            Shape::Star => "star",
            Shape::Cross => "cross",
            Shape::Crescent => "crescent",
        }
    }

    /// The outline at some size and location.
    fn points(self) -> Vec<Point> {
        match self {
            Shape::Circle => ring(40, |_| 1.0),
            Shape::Triangle => ring(3, |_| 1.0),
            Shape::Square => ring(4, |_| 1.0),
            Shape::Star => ring(10, |i| if i % 2 == 0 { 1.0 } else { 0.38 }),
            Shape::Cross => {
                let (long, thin) = (1.0, 0.28);
                let corners = [[long, -thin], [long, thin], [thin, thin]];
                // A quarter, turned four times.
                (0..4)
                    .flat_map(|quarter| {
                        corners.map(|[x, y]| match quarter {
                            0 => [x, y],
                            1 => [-y, x],
                            2 => [-x, -y],
                            _ => [y, -x],
                        })
                    })
                    .collect()
            }
            Shape::Crescent => {
                // Two circles cross at (x, ±y); the outer arc goes round the back, the inner one returns.
                let (radius, offset) = (0.85, 0.5);
                let x = (1.0 - radius * radius + offset * offset) / (2.0 * offset);
                let y = libm::sqrt(1.0 - x * x);
                let (outer, inner) = (libm::atan2(y, x), libm::atan2(y, x - offset));
                let arc = |from: f64, to: f64, radius: f64, centre: f64| {
                    (0..24).map(move |i| {
                        let angle = from + (to - from) * f64::from(i) / 24.0;
                        [centre + radius * libm::cos(angle), radius * libm::sin(angle)]
                    })
                };
                let round = 2.0 * std::f64::consts::PI;
                arc(outer, round - outer, 1.0, 0.0).chain(arc(round - inner, inner, radius, offset)).collect()
            }
        }
    }

    /// The outline with area 1 around its box's middle.
    pub fn outline(self) -> Vec<Point> {
        unit(self.points())
    }
}

/// Points around the origin at the distances that `radius` gives.
fn ring(count: u32, radius: impl Fn(u32) -> f64) -> Vec<Point> {
    (0..count)
        .map(|i| {
            let angle = 2.0 * std::f64::consts::PI * f64::from(i) / f64::from(count);
            [radius(i) * libm::cos(angle), radius(i) * libm::sin(angle)]
        })
        .collect()
}

/// Moves a polygon to the origin and gives it area 1.
fn unit(mut points: Vec<Point>) -> Vec<Point> {
    let [left, top, right, bottom] = bounds(points.iter()).unwrap_or_default();
    let scale = 1.0 / libm::sqrt(area(&points).abs());
    for [x, y] in &mut points {
        (*x, *y) = ((*x - (left + right) / 2.0) * scale, (*y - (top + bottom) / 2.0) * scale);
    }
    points
}

/// Size, stretch and direction of an outline.
#[derive(Clone, Copy, Debug)]
pub struct Pose {
    /// √area, in pixels.
    pub size: f64,
    /// Radians.
    pub angle: f64,
    /// Width over height before turning.
    pub stretch: f64,
    /// Left and right swapped.
    pub mirrored: bool,
}

impl Pose {
    /// A random direction and a slight stretch at `size`.
    pub fn draw(size: f64, rng: &mut impl Rng) -> Self {
        Self {
            size,
            angle: rng.random_range(0.0..2.0 * std::f64::consts::PI),
            stretch: libm::exp(rng.random_range(-0.16..0.16)),
            mirrored: rng.random_bool(0.5),
        }
    }

    /// `outline` (of area 1, around the origin) at this pose with its middle at `centre`.
    pub fn place(&self, outline: &[Point], centre: Point) -> Vec<Point> {
        let (sin, cos) = (libm::sin(self.angle), libm::cos(self.angle));
        let wide = libm::sqrt(self.stretch);
        outline
            .iter()
            .map(|[x, y]| {
                let x = if self.mirrored { -x } else { *x } * wide * self.size;
                let y = y / wide * self.size;
                [centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y]
            })
            .collect()
    }
}

/// A lump that belongs to no class: uneven radii, area 1.
pub fn lump(rng: &mut impl Rng) -> Vec<Point> {
    let corners = rng.random_range(6..11);
    let radii: Vec<f64> = (0..corners).map(|_| rng.random_range(0.45..1.0)).collect();
    unit(ring(corners, |i| radii[i as usize]))
}

/// A bar much longer than wide, area 1.
pub fn bar(rng: &mut impl Rng) -> Vec<Point> {
    let ratio: f64 = rng.random_range(5.0..14.0);
    let (x, y) = (libm::sqrt(ratio) / 2.0, 0.5 / libm::sqrt(ratio));
    vec![[-x, -y], [x, -y], [x, y], [-x, y]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines_have_area_one_and_keep_it_in_proportion_to_their_size() {
        for shape in Shape::ALL {
            let outline = shape.outline();
            assert!((area(&outline).abs() - 1.0).abs() < 1e-12, "{}", shape.name());
            let pose = Pose { size: 12.5, angle: 1.0, stretch: 1.3, mirrored: true };
            let placed = pose.place(&outline, [30.0, -4.0]);
            assert!((area(&placed).abs() - 12.5 * 12.5).abs() < 1e-9, "{}", shape.name());
        }
    }
}
