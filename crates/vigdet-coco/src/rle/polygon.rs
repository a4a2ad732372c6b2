//! Polygons to runs, with the pixel rule of `rleFrPoly`: the outline is walked on a grid five times as fine, and every step
//! to the left or right through the middle of a pixel column puts a border there.

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

/// Replaces `runs` by those of one polygon [x₀, y₀, x₁, y₁, …]; a last odd number is left out. `index` is for the error.
pub(super) fn fill(
    runs: &mut Vec<u32>,
    polygon: &[f64],
    index: usize,
    height: u32,
    width: u32,
) -> Result<(), MaskError> {
    if polygon.len() < 2 {
        return Err(MaskError::TooFewPoints { polygon: index, numbers: polygon.len() });
    }
    if let Some(&value) = polygon.iter().find(|value| !(value.abs() <= LIMIT)) {
        return Err(MaskError::Coordinate { polygon: index, value });
    }
    let fine = |value: f64| truncate(f64::from(SCALE) * value + 0.5);
    let points: Vec<(i32, i32)> = polygon.chunks_exact(2).map(|p| (fine(p[0]), fine(p[1]))).collect();
    runs.clear();
    let mut borders = Borders { ends: runs, height, width, last: None };
    for (i, &from) in points.iter().enumerate() {
        walk(from, points[(i + 1) % points.len()], |x, y| borders.step(x, y));
    }
    runs.push(height * width);
    runs.sort_unstable();
    to_lengths(runs);
    Ok(())
}

/// Collects the places, along the columns of the image, where the mask begins or ends.
struct Borders<'a> {
    ends: &'a mut Vec<u32>,
    height: u32,
    width: u32,
    last: Option<(i32, i32)>,
}

impl Borders<'_> {
    fn step(&mut self, x: i32, y: i32) {
        let Some((last_x, last_y)) = self.last.replace((x, y)) else { return };
        if x == last_x {
            return;
        }
        // Of each five fine columns, the middle one is the middle of a pixel column.
        let column = if x < last_x { x } else { x - 1 };
        if column.rem_euclid(SCALE) != SCALE / 2 {
            return;
        }
        let column = column.div_euclid(SCALE);
        if column < 0 || i64::from(column) >= i64::from(self.width) {
            return;
        }
        // The first pixel whose middle is at or below the border.
        let row = i64::from(y.min(last_y)) + i64::from(SCALE / 2);
        let row = row.div_euclid(i64::from(SCALE)).clamp(0, i64::from(self.height)) as u32;
        self.ends.push(column as u32 * self.height + row);
    }
}

/// Visits a line of the fine grid, both ends included, one step at a time along its longer side.
fn walk((x0, y0): (i32, i32), (x1, y1): (i32, i32), mut visit: impl FnMut(i32, i32)) {
    let (dx, dy) = ((x1 - x0).abs(), (y1 - y0).abs());
    // The line is computed from its lower end, whichever way it is walked, so that both ways round hit the same points.
    let flip = if dx >= dy { x0 > x1 } else { y0 > y1 };
    let (xs, ys, xe, ye) = if flip { (x1, y1, x0, y0) } else { (x0, y0, x1, y1) };
    let at = |start: i32, slope: f64, t: i32| truncate(f64::from(start) + slope * f64::from(t) + 0.5);
    if dx >= dy {
        let slope = f64::from(ye - ys) / f64::from(dx);
        for d in 0..=dx {
            let t = if flip { dx - d } else { d };
            visit(t + xs, at(ys, slope, t));
        }
    } else {
        let slope = f64::from(xe - xs) / f64::from(dy);
        for d in 0..=dy {
            let t = if flip { dy - d } else { d };
            visit(at(xs, slope, t), t + ys);
        }
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

/// Sorted places to lengths; two borders at one place cancel.
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
