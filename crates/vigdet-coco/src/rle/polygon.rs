//! Polygons to runs, with the pixel rule of `rleFrPoly`: the outline is walked on a grid five times as fine, and every
//! step to the left or right through the middle of a pixel column puts a border there.

use super::MaskError;

/// Steps of the fine grid in a pixel.
const SCALE: i32 = 5;
/// Largest coordinate, in pixels: five times it fits an i32 with room for differences.
const LIMIT: f64 = 2e8;

/// The corners of a box, in pycocotools' order.
pub(super) fn of_box([x, y, w, h]: [f64; 4]) -> Vec<f64> {
    let (right, bottom) = (x + w, y + h);
    vec![x, y, x, bottom, right, bottom, right, y]
}

/// Replaces `runs` by those of one polygon [x₀, y₀, x₁, y₁, …]; a last odd number is left out. Without a point it is
/// empty. `index` is for the error.
pub(super) fn fill(
    runs: &mut Vec<u32>,
    polygon: &[f64],
    index: usize,
    height: u32,
    width: u32,
) -> Result<(), MaskError> {
    if let Some(&value) = polygon.iter().find(|value| value.is_nan() || value.abs() > LIMIT) {
        return Err(MaskError::Coordinate { polygon: index, value });
    }
    let fine = |value: f64| truncate(f64::from(SCALE) * value + 0.5);
    let points: Vec<(i32, i32)> = polygon.chunks_exact(2).map(|p| (fine(p[0]), fine(p[1]))).collect();
    runs.clear();
    let mut borders = Borders { ends: runs, height, width };
    for (i, &from) in points.iter().enumerate() {
        borders.line(from, points[(i + 1) % points.len()]);
    }
    runs.push(height * width);
    runs.sort_unstable();
    to_lengths(runs);
    Ok(())
}

/// Collects the positions, along the columns of the image, where the mask begins or ends.
struct Borders<'a> {
    ends: &'a mut Vec<u32>,
    height: u32,
    width: u32,
}

impl Borders<'_> {
    /// Walks a line of the fine grid, one step at a time along its longer side.
    ///
    /// Only steps from the middle of a pixel column to the next fine column make a border, so only those are computed.
    /// The line is computed from its lower end, whichever way it is walked, so that both ways round hit the same
    /// points.
    fn line(&mut self, (x0, y0): (i32, i32), (x1, y1): (i32, i32)) {
        let (dx, dy) = ((x1 - x0).abs(), (y1 - y0).abs());
        let flip = if dx >= dy { x0 > x1 } else { y0 > y1 };
        let (xs, ys, xe, ye) = if flip { (x1, y1, x0, y0) } else { (x0, y0, x1, y1) };
        let at = |start: i32, slope: f64, t: i32| truncate(f64::from(start) + slope * f64::from(t) + 0.5);
        if dx >= dy {
            let slope = f64::from(ye - ys) / f64::from(dx);
            for (column, x) in self.columns(xs, xe) {
                let t = x - xs;
                self.end(column, at(ys, slope, t).min(at(ys, slope, t + 1)));
            }
        } else {
            let slope = f64::from(xe - xs) / f64::from(dy);
            let (left, right) = (xs.min(xe), xs.max(xe));
            for (column, x) in self.columns(left, right) {
                // The first step that has crossed: about where the line does, exactly where its rounded points do.
                let crossed = |t: i32| if slope > 0.0 { at(xs, slope, t) > x } else { at(xs, slope, t) <= x };
                let mut t = truncate((f64::from(x) + 0.5 - f64::from(xs)) / slope).clamp(1, dy);
                while t > 1 && crossed(t - 1) {
                    t -= 1;
                }
                while t < dy && !crossed(t) {
                    t += 1;
                }
                self.end(column, ys + t - 1);
            }
        }
    }

    /// Pixel columns of the image whose middle the line from fine column `from` up to `to` steps over, each with the
    /// fine column of its middle.
    fn columns(&self, from: i32, to: i32) -> impl Iterator<Item = (u32, i32)> {
        let half = SCALE / 2;
        let first = (from + half).div_euclid(SCALE).max(0);
        let last = (to - 1 - half).div_euclid(SCALE);
        let last = i64::from(last).min(i64::from(self.width) - 1);
        (i64::from(first)..=last).map(move |column| (column as u32, column as i32 * SCALE + half))
    }

    /// A border in a column, at the first pixel whose middle is at or below fine row `y`.
    fn end(&mut self, column: u32, y: i32) {
        let row = (i64::from(y) + i64::from(SCALE / 2)).div_euclid(i64::from(SCALE));
        let row = row.clamp(0, i64::from(self.height)) as u32;
        self.ends.push(column * self.height + row);
    }
}

/// C's conversion to int on x86-64: towards zero, and the smallest number for what is not a number (the slope of a line
/// without length).
fn truncate(value: f64) -> i32 {
    if value.is_nan() {
        i32::MIN
    } else {
        value as i32
    }
}

/// Turns sorted positions into lengths; two borders at one position cancel.
fn to_lengths(ends: &mut Vec<u32>) {
    let mut last = 0;
    for end in ends.iter_mut() {
        (last, *end) = (*end, *end - last);
    }
    let mut kept = 1;
    let mut i = 1;
    while i < ends.len() {
        if ends[i] > 0 {
            ends[kept] = ends[i];
            kept += 1;
        } else {
            i += 1;
            if i < ends.len() {
                ends[kept - 1] += ends[i];
            }
        }
        i += 1;
    }
    ends.truncate(kept);
}
