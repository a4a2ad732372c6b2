//! Affine maps of images: Pillow's `Image.transform(size, AFFINE, …)` and `Image.rotate`, to the bit.

use image::RgbImage;

use super::crop::Filter;

/// Where each pixel comes from: `x_in = m[0]·x + m[1]·y + m[2]`, `y_in = m[3]·x + m[4]·y + m[5]`, with x and y at the
/// pixels' centres.
pub type Matrix = [f64; 6];

/// What Pillow's `rotate` makes of an angle in degrees, counter-clockwise about the centre: the matrix rounded as it
/// does.
pub fn rotation(degrees: f64, (width, height): (u32, u32)) -> Matrix {
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let round = |v: f64| (v * 1e15).round_ties_even() / 1e15;
    let (cos, sin) = (round(angle.cos()), round(angle.sin()));
    let (cx, cy) = (f64::from(width) / 2.0, f64::from(height) / 2.0);
    // The centre stays where it is.
    [cos, sin, cos * -cx + sin * -cy + cx, -sin, cos, -sin * -cx + cos * -cy + cy]
}

/// An image of the same size through `matrix`; what would come from outside is `fill`. Interpolation is two-by-two
/// bilinear or four-by-four bicubic (a = −1), without antialiasing, and rounds down, as in Pillow.
pub fn transform(image: &RgbImage, matrix: Matrix, filter: Filter, fill: [u8; 3]) -> RgbImage {
    transform_to(image.dimensions(), image, matrix, filter, fill)
}

/// [`transform`] to an image of another size.
pub fn transform_to(
    (width, height): (u32, u32),
    image: &RgbImage,
    matrix: Matrix,
    filter: Filter,
    fill: [u8; 3],
) -> RgbImage {
    let mut out = RgbImage::new(width, height);
    let source = Source { data: image.as_raw(), width: image.width() as isize, height: image.height() as isize };
    for (y, row) in out.chunks_exact_mut(3 * width.max(1) as usize).enumerate() {
        let yin = y as f64 + 0.5;
        for (x, pixel) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let xin = x as f64 + 0.5;
            let at = (matrix[0] * xin + matrix[1] * yin + matrix[2], matrix[3] * xin + matrix[4] * yin + matrix[5]);
            *pixel = match filter {
                Filter::Bilinear => source.bilinear(at),
                Filter::Bicubic => source.bicubic(at),
            }
            .unwrap_or(fill);
        }
    }
    out
}

struct Source<'a> {
    data: &'a [u8],
    width: isize,
    height: isize,
}

impl Source<'_> {
    /// The pixel that a point falls between, to its upper left, and how far it is from there; `None`: outside the
    /// image.
    fn place(&self, (x, y): (f64, f64)) -> Option<([isize; 2], [f64; 2])> {
        if !(x >= 0.0 && x < self.width as f64 && y >= 0.0 && y < self.height as f64) {
            return None;
        }
        let (x, y) = (x - 0.5, y - 0.5);
        let (left, top) = (x.floor(), y.floor());
        Some(([left as isize, top as isize], [x - left, y - top]))
    }

    /// The values of the pixels from `left` on in row `y`, three a pixel; beyond an edge its last pixel is repeated.
    fn row<const VALUES: usize>(&self, left: isize, y: isize) -> [u8; VALUES] {
        let row = y.clamp(0, self.height - 1) * self.width;
        if left >= 0 && left + (VALUES / 3) as isize <= self.width {
            let start = 3 * (row + left) as usize;
            // Always so long here.
            if let Some(values) = self.data[start..].first_chunk() {
                return *values;
            }
        }
        std::array::from_fn(|i| {
            let x = (left + (i / 3) as isize).clamp(0, self.width - 1);
            self.data[3 * (row + x) as usize + i % 3]
        })
    }

    fn bilinear(&self, point: (f64, f64)) -> Option<[u8; 3]> {
        let ([left, top], [dx, dy]) = self.place(point)?;
        let rows = [self.row::<6>(left, top), self.row::<6>(left, top + 1)];
        Some(std::array::from_fn(|c| {
            let [above, below] = rows.map(|row| {
                let [a, b] = [row[c], row[c + 3]].map(f64::from);
                a + (b - a) * dx
            });
            (above + (below - above) * dy) as u8
        }))
    }

    fn bicubic(&self, point: (f64, f64)) -> Option<[u8; 3]> {
        let ([left, top], [dx, dy]) = self.place(point)?;
        let rows: [[u8; 12]; 4] = std::array::from_fn(|i| self.row(left - 1, top - 1 + i as isize));
        Some(std::array::from_fn(|c| {
            let down = rows.map(|row| cubic([row[c], row[c + 3], row[c + 6], row[c + 9]].map(f64::from), dx));
            // `as` clamps to 0–255, and rounds down.
            cubic(down, dy) as u8
        }))
    }
}

/// A cubic through four values, at `d` from the second to the third.
fn cubic([a, b, c, d]: [f64; 4], at: f64) -> f64 {
    let (p1, p2, p3, p4) = (b, -a + c, 2.0 * (a - b) + c - d, -a + b - c + d);
    p1 + at * (p2 + at * (p3 + at * p4))
}
