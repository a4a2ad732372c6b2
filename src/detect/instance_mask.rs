//! A detected mask: a small grid of probabilities over its box, and its way to the pixels of an image.

use vigdet_coco::rle::Rle;

use super::boxes::Box4;
use super::postprocess::{corners, OnnxDetections};
use crate::config::PasteKind;
use crate::onnx::{Graph, Kind, Value};

/// Masks that [`paste_onnx`] puts into their images at a time.
const TOGETHER: i64 = 8;

/// Probabilities of object over a detection's box. It stays small until it is drawn or written.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceMask {
    /// `side × side` probabilities, rows from the top.
    pub values: Vec<f32>,
    /// Grid points along each side of the box.
    pub side: usize,
    /// How it is put into an image.
    pub paste: PasteKind,
    /// A pixel is object where the probability is above this.
    pub threshold: f32,
}

/// The two grid points that an image's row or column lies between, and the weight of the second; outside of the grid
/// the weights are of nothing.
#[derive(Clone, Copy)]
struct Between {
    first: i64,
    weight: f32,
}

impl InstanceMask {
    /// The mask of an object whose box is `b` on an image of `height × width` pixels. Takes time and memory for the
    /// box, not for the image.
    pub fn paste(&self, b: &Box4, height: u32, width: u32) -> Rle {
        let (columns, rows) = match self.paste {
            PasteKind::Centres => (self.centres(b[0], b[2], width), self.centres(b[1], b[3], height)),
            PasteKind::Padded => (self.padded(b[0], b[2], width), self.padded(b[1], b[3], height)),
        };
        let mut runs = RunBuilder::default();
        let mut column = vec![0f32; self.side];
        runs.push(false, columns.0 as u64 * u64::from(height));
        for across in &columns.1 {
            for (row, value) in column.iter_mut().enumerate() {
                let line = &self.values[row * self.side..(row + 1) * self.side];
                *value = at(line, across.first) * (1.0 - across.weight) + at(line, across.first + 1) * across.weight;
            }
            runs.push(false, rows.0 as u64);
            for down in &rows.1 {
                let value = at(&column, down.first) * (1.0 - down.weight) + at(&column, down.first + 1) * down.weight;
                runs.push(value > self.threshold, 1);
            }
            runs.push(false, u64::from(height) - (rows.0 + rows.1.len()) as u64);
        }
        runs.push(false, u64::from(height) * (u64::from(width) - (columns.0 + columns.1.len()) as u64));
        runs.finish(height, width)
    }

    /// The first pixel that the mask touches on an axis of `pixels`, and the position of that and of all others on the
    /// grid: a pixel's centre.
    fn centres(&self, start: f32, end: f32, pixels: u32) -> (usize, Vec<Between>) {
        let side = self.side as f32;
        let length = end - start;
        if !(length > 0.0 && start.is_finite() && end.is_finite()) {
            return (0, Vec::new());
        }
        let rim = length / side;
        let first = (start - rim).floor().clamp(0.0, pixels as f32) as usize;
        let last = (end + rim).ceil().clamp(first as f32, pixels as f32) as usize;
        let positions = (first..last).map(|pixel| {
            let at = (pixel as f32 + 0.5 - start) / length * side - 0.5;
            Between { first: at.floor() as i64, weight: at - at.floor() }
        });
        (first, positions.collect())
    }

    /// The same as torchvision places them: the grid gets a rim of zeros, its box grows with it to whole pixels,
    /// rounded towards zero, and the grid is resized to it.
    fn padded(&self, start: f32, end: f32, pixels: u32) -> (usize, Vec<Between>) {
        if !(start.is_finite() && end.is_finite()) {
            return (0, Vec::new());
        }
        let padded = self.side + 2;
        let half = (end - start) * 0.5 * (padded as f64 / self.side as f64) as f32;
        let middle = (end + start) * 0.5;
        let (from, to) = ((middle - half) as i64, (middle + half) as i64);
        let length = (to - from + 1).max(1);
        let scale = padded as f32 / length as f32;
        let (first, last) = (from.clamp(0, pixels.into()), (to + 1).clamp(0, pixels.into()));
        let positions = (first..last.max(first)).map(|pixel| {
            let at = (((pixel - from) as f32 + 0.5) * scale - 0.5).max(0.0);
            // Beyond the last point of the rim the rim goes on: zeros either way.
            Between { first: at as i64 - 1, weight: at - at.floor() }
        });
        (first as usize, positions.collect())
    }
}

/// A grid line's value; 0 outside.
fn at(line: &[f32], index: i64) -> f32 {
    usize::try_from(index).ok().and_then(|i| line.get(i)).copied().unwrap_or(0.0)
}

/// [`InstanceMask::paste`] as nodes of a graph: grids `[N, D, side, side]` to bool `[N, D, H, W]`; `padded` is
/// (H, W), int64 `[2]`.
///
/// Between two points of the grid each pixel is linear, in rows and in columns: matrices of weights, `[H, side]` and
/// `[W, side]`, from left and right.
pub(super) fn paste_onnx(
    graph: &mut Graph,
    (paste, threshold): (PasteKind, f32),
    found: &OnnxDetections,
    (grids, side): (&Value, i64),
    padded: &Value,
) -> Value {
    let mut parts = Vec::new();
    for from in (0..found.rows).step_by(TOGETHER as usize) {
        let to = (from + TOGETHER).min(found.rows);
        let [boxes, grids] = [&found.boxes, grids].map(|x| graph.slice(x, 1, from, to));
        let [left, top, right, bottom] = corners(graph, &boxes);
        let [down, across] = [(top, bottom, 0), (left, right, 1)].map(|(start, end, axis)| {
            let count = graph.slice(padded, 0, axis, axis + 1);
            weights_onnx(graph, paste, [&start, &end], side, &count)
        });
        let across = graph.transpose(&across, &[0, 1, 3, 2]);
        let rows = graph.matmul(&grids, &across);
        let values = graph.matmul(&down, &rows);
        parts.push(graph.is_number("Greater", &values, threshold.into()));
    }
    graph.concat(&parts.iter().collect::<Vec<_>>(), 1)
}

/// How much each of `side` grid points counts for each of `pixels` pixels on an axis: `[N, d, pixels, side]`, for boxes
/// that reach from start to end, `[N, d, 1]` each.
fn weights_onnx(graph: &mut Graph, paste: PasteKind, [start, end]: [&Value; 2], side: i64, pixels: &Value) -> Value {
    let pixels = graph.range(pixels);
    let pixels = graph.cast(&pixels, Kind::Float);
    let at = match paste {
        PasteKind::Centres => {
            let centres = graph.plus(&pixels, 0.5);
            let (inside, length) = (graph.sub(&centres, start), graph.sub(end, start));
            let at = graph.div(&inside, &length);
            let at = graph.times(&at, side as f64);
            graph.plus(&at, -0.5)
        }
        PasteKind::Padded => {
            let rim = side + 2;
            let (length, sum) = (graph.sub(end, start), graph.add(end, start));
            let half = graph.times(&length, 0.5);
            let half = graph.times(&half, rim as f64 / side as f64);
            let middle = graph.times(&sum, 0.5);
            let [from, to] = [graph.sub(&middle, &half), graph.add(&middle, &half)].map(|at| {
                let whole = graph.cast(&at, Kind::Int64);
                graph.cast(&whole, Kind::Float)
            });
            let length = graph.sub(&to, &from);
            let length = graph.plus(&length, 1.0);
            let length = graph.at_least(&length, 1.0);
            let rim = graph.floats(&[rim as f32], &[1]);
            let scale = graph.div(&rim, &length);
            let inside = graph.sub(&pixels, &from);
            let inside = graph.plus(&inside, 0.5);
            let at = graph.mul(&inside, &scale);
            let at = graph.plus(&at, -0.5);
            let at = graph.at_least(&at, 0.0);
            // Of the grid without its rim.
            graph.plus(&at, -1.0)
        }
    };
    let at = graph.unsqueeze(&at, &[-1]);
    let points: Vec<f32> = (0..side).map(|point| point as f32).collect();
    let points = graph.floats(&points, &[side]);
    let away = graph.sub(&at, &points);
    let away = graph.unary("Abs", &away);
    let near = graph.times(&away, -1.0);
    let near = graph.plus(&near, 1.0);
    graph.unary("Relu", &near)
}

/// Collects runs, background first.
#[derive(Default)]
struct RunBuilder {
    runs: Vec<u32>,
    length: u64,
    value: bool,
}

impl RunBuilder {
    fn push(&mut self, value: bool, length: u64) {
        if length == 0 {
            return;
        }
        if value != self.value {
            self.runs.push(self.length as u32);
            (self.length, self.value) = (0, value);
        }
        self.length += length;
    }

    fn finish(mut self, height: u32, width: u32) -> Rle {
        self.runs.push(self.length as u32);
        let empty = || Rle::from_runs(0, 0, &[0]).expect("no pixels in one run of none");
        // Images of 2³² pixels or more cannot be decoded at all.
        Rle::from_runs(height, width, &self.runs).unwrap_or_else(|_| empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(values: Vec<f32>, paste: PasteKind) -> InstanceMask {
        let side = (values.len() as f64).sqrt() as usize;
        InstanceMask { values, side, paste, threshold: 0.5 }
    }

    fn rows(rle: &Rle) -> Vec<String> {
        let flags = rle.to_rows();
        flags.chunks(rle.width() as usize).map(|r| r.iter().map(|f| if *f { '#' } else { '.' }).collect()).collect()
    }

    #[test]
    fn a_full_mask_fills_the_pixels_whose_centres_are_in_its_box() {
        let full = mask(vec![1.0; 16], PasteKind::Centres);
        let found = rows(&full.paste(&[1.0, 1.0, 4.0, 3.0], 5, 6));
        assert_eq!(found, ["......", ".###..", ".###..", "......", "......"]);
        // Cut at the borders, from corner to corner, of one pixel, of none, outside.
        assert_eq!(full.paste(&[-3.0, -3.0, 2.0, 9.0], 5, 6).area(), 10);
        assert_eq!(full.paste(&[0.0, 0.0, 6.0, 5.0], 5, 6).area(), 30);
        assert_eq!(full.paste(&[2.0, 2.0, 3.0, 3.0], 5, 6).area(), 1);
        assert_eq!(full.paste(&[2.0, 2.0, 2.0, 2.0], 5, 6).area(), 0);
        assert_eq!(full.paste(&[20.0, 20.0, 30.0, 30.0], 5, 6).area(), 0);
        assert_eq!(full.paste(&[f32::NAN; 4], 5, 6).area(), 0);
    }

    #[test]
    fn rows_and_columns_are_not_mixed_up_and_holes_stay() {
        let mut values = vec![1.0; 64];
        for (row, column) in [(3, 3), (3, 4), (4, 3), (4, 4), (0, 7)] {
            values[row * 8 + column] = 0.0;
        }
        let found = rows(&mask(values, PasteKind::Centres).paste(&[0.0, 0.0, 8.0, 8.0], 8, 9));
        assert_eq!(found[0], "#######..");
        assert_eq!(found[3], "###..###.");
        assert_eq!(found[7], "########.");
    }

    #[test]
    fn torchvisions_way_works_on_any_box_too() {
        let full = mask(vec![1.0; 784], PasteKind::Padded);
        for b in [[-3.0, -3.0, 2.0, 9.0], [2.0, 2.0, 2.0, 2.0], [20.0, 20.0, 30.0, 30.0], [0.0, 0.0, 6.0, 5.0]] {
            let found = full.paste(&b, 5, 6);
            assert_eq!(found.size(), (5, 6));
        }
        assert_eq!(full.paste(&[0.0, 0.0, 6.0, 5.0], 5, 6).area(), 30);
        assert_eq!(full.paste(&[f32::NAN; 4], 5, 6).area(), 0);
    }
}
