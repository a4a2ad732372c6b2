//! Two masks, or two boxes, over each other.

use super::Rle;

/// How masks are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    Union,
    Intersection,
}

/// Runs of two masks of the same size, joined.
///
/// Advances as `rleMerge` does, one run of each mask a step, and like it stops where both are used up: zero runs inside a mask
/// (which no encoder writes) give its result too.
pub(super) fn merge(a: &[u32], b: &[u32], how: Join) -> Vec<u32> {
    let mut runs = Vec::with_capacity(a.len() + b.len());
    let mut length = 0u32;
    let mut value = false;
    both(a.iter().copied(), b.iter().copied(), |step, in_a, in_b, after_a, after_b, done| {
        let _ = (in_a, in_b);
        length = length.wrapping_add(step);
        let next = match how {
            Join::Union => after_a || after_b,
            Join::Intersection => after_a && after_b,
        };
        if next != value || done {
            runs.push(length);
            length = 0;
        }
        value = next;
    });
    runs
}

/// Walks two masks side by side in stretches in which both are constant: `visit(length, in_a, in_b, in_a after, in_b after,
/// done)`.
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

/// Size and place of a mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Extent {
    /// Object pixels.
    pub area: u32,
    /// x, y, width, height of the object pixels.
    pub bbox: [f64; 4],
}

/// Area and box of a mask in one pass, as `rleArea` and `rleToBbox`.
pub(crate) fn extent(runs: impl Iterator<Item = u32>, height: u32, width: u32) -> Extent {
    let (mut left, mut top, mut right, mut bottom) = (width, height, 0, 0);
    // Division by multiplication (Lemire, Kaser and Kurz, 2019): exact for 32 bits, and this loop is mostly division. A factor of
    // 0 stands for division by 1, whose own does not fit.
    let factor = (u64::MAX / u64::from(height.max(1))).wrapping_add(1);
    let column_of = |position: u32| {
        if factor == 0 {
            position
        } else {
            ((u128::from(factor) * u128::from(position)) >> 64) as u32
        }
    };
    let (mut position, mut area, mut count) = (0u32, 0u32, 0usize);
    for run in runs {
        let start = position;
        position = position.wrapping_add(run);
        count += 1;
        if count % 2 == 1 || run == 0 {
            continue;
        }
        area = area.wrapping_add(run);
        let last = position.wrapping_sub(1);
        let (first_column, last_column) = (column_of(start), column_of(last));
        left = left.min(first_column);
        right = right.max(last_column);
        if first_column < last_column {
            (top, bottom) = (0, height - 1);
        } else {
            top = top.min(start - first_column * height);
            bottom = bottom.max(last - last_column * height);
        }
    }
    let size = |from: u32, to: u32| f64::from(to.wrapping_sub(from).wrapping_add(1));
    let bbox = if count < 2 {
        [0.0; 4]
    } else {
        [f64::from(left), f64::from(top), size(left, right), size(top, bottom)]
    };
    Extent { area, bbox }
}

/// Intersection over union of two boxes x, y, width, height; over the area of the detection where the ground truth is a crowd.
/// 0 where they do not overlap.
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

/// Intersection over union of two masks; over the area of the detection where the ground truth is a crowd. As in pycocotools,
/// masks whose boxes do not overlap have 0, and masks of different sizes −1.
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
