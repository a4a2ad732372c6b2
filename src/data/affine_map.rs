//! Where the points of an image go when it is mirrored, turned, cut, scaled or sheared.

/// A whole image between two pixel grids: mirrored, turned, cut, scaled, sheared.
///
/// A point (x, y) goes to (xx·x + xy·y + x0, yx·x + yy·y + y0), in pixels; pixel i reaches from i to i + 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AffineMap {
    /// Factors of x and y in the new x, and what is added.
    pub across: [f64; 3],
    /// Factors of x and y in the new y, and what is added.
    pub down: [f64; 3],
}

impl Default for AffineMap {
    /// Nothing changes.
    fn default() -> Self {
        Self { across: [1.0, 0.0, 0.0], down: [0.0, 1.0, 0.0] }
    }
}

impl AffineMap {
    /// Left and right change places in an image of this width.
    pub fn mirror(width: f64) -> Self {
        Self { across: [-1.0, 0.0, width], ..Self::default() }
    }

    /// Top and bottom change places in an image of this height.
    pub fn flip(height: f64) -> Self {
        Self { down: [0.0, -1.0, height], ..Self::default() }
    }

    /// A clockwise turn by 90° of an image of this height.
    pub fn quarter_turn(height: f64) -> Self {
        Self { across: [0.0, -1.0, height], down: [1.0, 0.0, 0.0] }
    }

    /// A move to the right and down.
    pub fn translate(x: f64, y: f64) -> Self {
        Self { across: [1.0, 0.0, x], down: [0.0, 1.0, y] }
    }

    /// A change of size.
    pub fn scale(across: f64, down: f64) -> Self {
        Self { across: [across, 0.0, 0.0], down: [0.0, down, 0.0] }
    }

    /// A clockwise turn about the corner, in radians.
    pub fn turn(angle: f64) -> Self {
        let (sin, cos) = angle.sin_cos();
        Self { across: [cos, -sin, 0.0], down: [sin, cos, 0.0] }
    }

    /// Rows move sideways, by the tangent of an angle in radians for each pixel down.
    pub fn shear(angle: f64) -> Self {
        Self { across: [1.0, angle.tan(), 0.0], ..Self::default() }
    }

    /// Whether upright boxes stay upright boxes.
    pub fn keeps_axes(&self) -> bool {
        (self.across[1] == 0.0 && self.down[0] == 0.0) || (self.across[0] == 0.0 && self.down[1] == 0.0)
    }

    /// First this, then `next`.
    pub fn then(&self, next: &Self) -> Self {
        let row = |r: &[f64; 3]| {
            let mut out = [0, 1, 2].map(|i| r[0] * self.across[i] + r[1] * self.down[i]);
            out[2] += r[2];
            out
        };
        Self { across: row(&next.across), down: row(&next.down) }
    }

    /// Where a point goes.
    pub fn apply(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let row = |r: &[f64; 3]| r[0] * x + r[1] * y + r[2];
        (row(&self.across), row(&self.down))
    }

    /// The way back.
    pub fn inverse(&self) -> Self {
        let ([a, b, x0], [c, d, y0]) = (self.across, self.down);
        let determinant = a * d - b * c;
        let (a, b, c, d) = (d / determinant, -b / determinant, -c / determinant, a / determinant);
        Self { across: [a, b, -(a * x0 + b * y0)], down: [c, d, -(c * x0 + d * y0)] }
    }
}

/// The box x1, y1, x2, y2 around points. `None`: there are none.
pub fn corners_of(points: impl Iterator<Item = (f64, f64)>) -> Option<[f32; 4]> {
    points
        .map(|(x, y)| [x, y, x, y].map(|v| v as f32))
        .reduce(|a, b| [a[0].min(b[0]), a[1].min(b[1]), a[2].max(b[2]), a[3].max(b[3])])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_undoes_all_changes_in_their_order() {
        let steps = [
            AffineMap::mirror(12.0),
            AffineMap::quarter_turn(8.0),
            AffineMap::scale(2.0, 3.0),
            AffineMap::turn(0.3),
            AffineMap::shear(0.2),
            AffineMap::translate(-1.0, -2.0),
        ];
        let whole = steps.iter().fold(AffineMap::default(), |g, s| g.then(s));
        let one_by_one = steps.iter().fold((3.0, 5.0), |p, s| s.apply(p));
        let near = |a: (f64, f64), b: (f64, f64)| (a.0 - b.0).abs() < 1e-12 && (a.1 - b.1).abs() < 1e-12;
        assert!(near(whole.apply((3.0, 5.0)), one_by_one));
        assert!(near(whole.inverse().apply(one_by_one), (3.0, 5.0)));
    }
}
