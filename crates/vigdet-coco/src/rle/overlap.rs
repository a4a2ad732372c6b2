//! Two masks, or two boxes, over each other.

use super::Rle;

/// Runs of the mask of those pixels for which `join` says so, from whether two masks of the same size have them.
///
/// Advances as `rleMerge` does, one run of each mask a step, and like it stops where both are used up: zero runs inside
/// a mask (which no encoder writes) give its result too.
pub(super) fn merge(a: &[u32], b: &[u32], join: impl Fn(bool, bool) -> bool) -> Vec<u32> {
    let mut runs = Vec::with_capacity(a.len() + b.len());
    let mut length = 0u32;
    let mut value = false;
    both(a.iter().copied(), b.iter().copied(), |step, _, _, after_a, after_b, done| {
        length = length.wrapping_add(step);
        let next = join(after_a, after_b);
        if next != value || done {
            runs.push(length);
            length = 0;
        }
        value = next;
    });
    runs
}

/// Walks two masks side by side in stretches in which both are constant: `visit(length, in_a, in_b, in_a after, in_b
/// after, done)`.
#[inline]
fn both(
    mut a: impl Iterator<Item = u32>,
    mut b: impl Iterator<Item = u32>,
    mut visit: impl FnMut(u32, bool, bool, bool, bool, bool),
) {
    let (mut left_a, mut left_b) = (a.next().unwrap_or(0), b.next().unwrap_or(0));
    let (mut in_a, mut in_b) = (false, false);
    loop {
        let step = left_a.min(left_b);
        let before = (in_a, in_b);
        left_a -= step;
        if left_a == 0 {
            if let Some(run) = a.next() {
                (left_a, in_a) = (run, !in_a);
            }
        }
        left_b -= step;
        if left_b == 0 {
            if let Some(run) = b.next() {
                (left_b, in_b) = (run, !in_b);
            }
        }
        let done = left_a == 0 && left_b == 0;
        visit(step, before.0, before.1, in_a, in_b, done);
        if done {
            return;
        }
    }
}

/// Size and location of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Extent {
    /// Object pixels.
    pub area: u32,
    /// x, y, width, height of the object pixels.
    bbox: [u32; 4],
    /// No run but the first is of 0 pixels.
    plain: bool,
}

impl Extent {
    /// Of a mask of `height` × `width` pixels with these runs.
    pub(super) fn of(runs: &[u32], height: u32, width: u32) -> Extent {
        let mut measure = Measure::new(height, width);
        for pair in runs.chunks(2) {
            measure.skip(pair[0]);
            pair.get(1).into_iter().for_each(|&object| measure.cover(object));
        }
        measure.extent()
    }

    /// x, y, width, height of the object pixels. All 0 for a mask of one run.
    pub(crate) fn bbox(&self) -> [f64; 4] {
        self.bbox.map(f64::from)
    }

    /// What [`runs_iou`] of the two masks gives at most, which needs no runs.
    pub(crate) fn most_iou(&self, truth: &Extent, crowd: bool) -> f64 {
        if !(self.plain && truth.plain) {
            // The walk over both masks may end early.
            return f64::INFINITY;
        }
        let [dx, dy, dw, dh] = self.bbox.map(u64::from);
        let [gx, gy, gw, gh] = truth.bbox.map(u64::from);
        let width = (dx + dw).min(gx + gw).saturating_sub(dx.max(gx));
        let height = (dy + dh).min(gy + gh).saturating_sub(dy.max(gy));
        let (area, of_truth) = (u64::from(self.area), u64::from(truth.area));
        let shared = (width * height).min(area).min(of_truth);
        let whole = if crowd { area } else { area + of_truth - shared };
        // Whole numbers below 2⁵³: rounding keeps the quotient at or above that of a smaller overlap.
        shared as f64 / whole as f64
    }
}

/// Finds area and box of a mask from its runs, one after the other, as `rleArea` and `rleToBbox` do.
#[derive(Default)]
pub(super) struct Measure {
    height: u32,
    /// 2⁶⁴ / height, rounded up.
    factor: u64,
    left: u32,
    top: u32,
    right: u32,
    bottom: u32,
    area: u32,
    /// There was no run of the object.
    empty: bool,
    plain: bool,
    /// Pixels so far. They may go round where the runs, as is known only in the end, do not make a mask.
    position: u32,
}

impl Measure {
    pub(super) fn new(height: u32, width: u32) -> Measure {
        // A factor of 0 stands for division by 1, whose own does not fit.
        let factor = (u64::MAX / u64::from(height.max(1))).wrapping_add(1);
        Measure { height, factor, left: width, top: height, empty: true, plain: true, ..Measure::default() }
    }

    /// Division by multiplication (Lemire, Kaser and Kurz, 2019): exact for 32 bits, and measuring is mostly division.
    #[inline]
    fn column_of(&self, position: u32) -> u32 {
        if self.factor == 0 {
            position
        } else {
            ((u128::from(self.factor) * u128::from(position)) >> 64) as u32
        }
    }

    /// Passes over background.
    #[inline]
    pub(super) fn skip(&mut self, run: u32) {
        self.plain &= run > 0 || self.empty;
        self.position = self.position.wrapping_add(run);
    }

    /// Takes in a run of the object, which may be of no pixels.
    #[inline]
    pub(super) fn cover(&mut self, run: u32) {
        self.empty = false;
        if run == 0 {
            self.plain = false;
            return;
        }
        let start = self.position;
        self.position = start.wrapping_add(run);
        self.area = self.area.wrapping_add(run);
        let last = self.position.wrapping_sub(1);
        let (first_column, last_column) = (self.column_of(start), self.column_of(last));
        self.left = self.left.min(first_column);
        self.right = self.right.max(last_column);
        if first_column < last_column {
            (self.top, self.bottom) = (0, self.height.wrapping_sub(1));
        } else {
            self.top = self.top.min(start.wrapping_sub(first_column.wrapping_mul(self.height)));
            self.bottom = self.bottom.max(last.wrapping_sub(last_column.wrapping_mul(self.height)));
        }
    }

    pub(super) fn extent(&self) -> Extent {
        let size = |from: u32, to: u32| to.wrapping_sub(from).wrapping_add(1);
        let bbox = if self.empty {
            [0; 4]
        } else {
            [self.left, self.top, size(self.left, self.right), size(self.top, self.bottom)]
        };
        Extent { area: self.area, bbox, plain: self.plain }
    }
}

/// Intersection over union of two boxes x, y, width, height; over the area of the detection where the ground truth is a
/// crowd. 0 where they do not overlap.
#[inline]
pub fn box_iou(detection: [f64; 4], truth: [f64; 4], crowd: bool) -> f64 {
    let [dx, dy, dw, dh] = detection;
    let [gx, gy, gw, gh] = truth;
    let width = (dw + dx).min(gw + gx) - dx.max(gx);
    if width <= 0.0 {
        return 0.0;
    }
    let height = (dh + dy).min(gh + gy) - dy.max(gy);
    if height <= 0.0 {
        return 0.0;
    }
    let shared = width * height;
    let whole = if crowd { dw * dh } else { dw * dh + gw * gh - shared };
    shared / whole
}

/// Intersection over union of two masks; over the area of the detection where the ground truth is a crowd. As in
/// pycocotools, masks whose boxes do not overlap have 0, and masks of different sizes −1.
pub fn iou(detection: &Rle, truth: &Rle, crowd: bool) -> f64 {
    let coarse = box_iou(detection.bbox(), truth.bbox(), crowd);
    if coarse <= 0.0 || coarse.is_nan() {
        return coarse;
    }
    if detection.size() != truth.size() {
        return -1.0;
    }
    let runs = |mask: &Rle| mask.runs().collect::<Vec<_>>();
    runs_iou(&runs(detection), &runs(truth), crowd.then(|| detection.area()))
}

/// Intersection over union of masks whose boxes overlap; over `area` where given.
#[inline]
pub(crate) fn runs_iou(detection: &[u32], truth: &[u32], area: Option<u32>) -> f64 {
    let (mut shared, mut whole) = (0u32, 0u32);
    both(detection.iter().copied(), truth.iter().copied(), |step, in_a, in_b, _, _, _| {
        if in_a || in_b {
            whole = whole.wrapping_add(step);
            if in_a && in_b {
                shared = shared.wrapping_add(step);
            }
        }
    });
    if shared == 0 {
        whole = 1;
    } else if let Some(area) = area {
        whole = area;
    }
    f64::from(shared) / f64::from(whole)
}

#[cfg(test)]
mod tests {
    use super::super::Rle;
    use super::iou;

    /// Masks of 6 × 8 pixels: some plain, some with runs of no pixels inside, empty ones among both.
    fn masks() -> Vec<Rle> {
        let mut state = 1u64;
        let mut below = |end: u32| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32 % end
        };
        let mask = |n: u32, below: &mut dyn FnMut(u32) -> u32| {
            let mut runs = Vec::new();
            let mut left = 48;
            while left > 0 {
                let least = u32::from(n >= 30 && !runs.is_empty());
                let run = (least + below(9)).min(left);
                runs.push(run);
                left -= run;
            }
            Rle::from_runs(6, 8, &runs).unwrap()
        };
        (0..90).map(|n| mask(n, &mut below)).chain([Rle::from_runs(6, 8, &[48]).unwrap()]).collect()
    }

    #[test]
    fn no_overlap_is_larger_than_the_most_that_areas_and_boxes_allow() {
        let masks = masks();
        let (mut reached, mut unknown) = (0, 0);
        for a in &masks {
            for b in &masks {
                for crowd in [false, true] {
                    let (most, found) = (a.extent().most_iou(&b.extent(), crowd), iou(a, b, crowd));
                    // 0 / 0 for empty masks, whose boxes overlap nothing.
                    assert!(most.is_nan() || found <= most, "{found} > {most}: {a:?} {b:?}");
                    reached += usize::from(found == most && found < 1.0);
                    unknown += usize::from(most.is_infinite());
                }
            }
        }
        assert!(reached > 10 && unknown > 100, "{reached} {unknown}");
    }

    #[test]
    fn size_and_place_are_those_of_the_pixels() {
        for mask in masks() {
            let pixels: Vec<usize> =
                mask.to_columns().iter().enumerate().filter(|(_, &value)| value > 0).map(|(i, _)| i).collect();
            assert_eq!(mask.area() as usize, pixels.len());
            if pixels.is_empty() {
                continue;
            }
            let span = |of: fn(&usize) -> usize| {
                let (low, high) = (pixels.iter().map(of).min().unwrap(), pixels.iter().map(of).max().unwrap());
                (low as f64, (high - low + 1) as f64)
            };
            let ((x, w), (y, h)) = (span(|i| i / 6), span(|i| i % 6));
            assert_eq!(mask.bbox()[0], x);
            assert_eq!(mask.bbox()[2], w);
            // Where an object's run goes on into the next column the box has the full height, as in pycocotools.
            let [_, top, _, height] = mask.bbox();
            assert!([top, height] == [y, h] || [top, height] == [0.0, 6.0]);
        }
    }
}
