//! Boxes and polygons. Boxes are x, y, width, height; polygons x₀, y₀, x₁, y₁, …; all in pixels.

use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

/// The smallest box around points. All 0 without a point.
pub fn extent<'a>(points: impl IntoIterator<Item = &'a [f64]>) -> [f64; 4] {
    let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
    for point in points.into_iter().flat_map(|polygon| polygon.chunks_exact(2)) {
        for axis in 0..2 {
            low[axis] = low[axis].min(point[axis]);
            high[axis] = high[axis].max(point[axis]);
        }
    }
    if low[0] > high[0] {
        return [0.0; 4];
    }
    [low[0], low[1], high[0] - low[0], high[1] - low[1]]
}

/// The box around a segmentation.
pub fn bounds(segmentation: &Segmentation) -> [f64; 4] {
    match segmentation {
        Segmentation::Polygons(polygons) => extent(polygons.iter().map(Vec::as_slice)),
        Segmentation::Rle(rle) => rle.bbox(),
    }
}

/// The area of a segmentation: of polygons by the shoelace formula, of a mask its pixels.
pub fn area(segmentation: &Segmentation) -> f64 {
    match segmentation {
        Segmentation::Polygons(polygons) => polygons.iter().map(|polygon| shoelace(polygon).abs()).sum(),
        Segmentation::Rle(rle) => f64::from(rle.area()),
    }
}

/// The area inside a polygon; negative where it runs the other way round.
pub fn shoelace(polygon: &[f64]) -> f64 {
    let points: Vec<&[f64]> = polygon.chunks_exact(2).collect();
    let next = points.iter().cycle().skip(1);
    points.iter().zip(next).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum::<f64>() / 2.0
}

/// Intersection over union of two boxes. 0 where one is empty.
pub fn iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let overlap = |axis: usize| (a[axis] + a[axis + 2]).min(b[axis] + b[axis + 2]) - a[axis].max(b[axis]);
    let (w, h) = (overlap(0), overlap(1));
    if !(w > 0.0 && h > 0.0) {
        return 0.0;
    }
    w * h / (a[2] * a[3] + b[2] * b[3] - w * h)
}

/// For each box its greatest IoU with another one; 0 where it is alone.
pub fn greatest_ious(boxes: &[[f64; 4]]) -> Vec<f64> {
    let mut greatest = vec![0.0f64; boxes.len()];
    // From left to right, each is compared with those that begin before it ends.
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|&a, &b| boxes[a][0].total_cmp(&boxes[b][0]));
    for (i, &a) in order.iter().enumerate() {
        let end = boxes[a][0] + boxes[a][2];
        for &b in order[i + 1..].iter().take_while(|&&b| boxes[b][0] < end) {
            let overlap = iou(boxes[a], boxes[b]);
            greatest[a] = greatest[a].max(overlap);
            greatest[b] = greatest[b].max(overlap);
        }
    }
    greatest
}

/// The corners of a box, clockwise from the top left, turned clockwise by `degrees` around `pivot`.
pub fn turned([x, y, w, h]: [f64; 4], degrees: f64, pivot: [f64; 2]) -> Vec<f64> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
        .iter()
        .flat_map(|corner| {
            let (dx, dy) = (corner[0] - pivot[0], corner[1] - pivot[1]);
            [pivot[0] + dx * cos - dy * sin, pivot[1] + dx * sin + dy * cos]
        })
        .collect()
}

/// Points on an ellipse, clockwise from the right, turned clockwise by `degrees` around its centre: so many that none
/// is further than about a pixel from the line to the next.
pub fn ellipse(centre: [f64; 2], radii: [f64; 2], degrees: f64) -> Vec<f64> {
    let longest = radii[0].max(radii[1]).max(1.0);
    let points = (std::f64::consts::PI / (1.0 - 1.0 / (4.0 * longest)).acos()).ceil().clamp(16.0, 360.0) as usize;
    let (sin, cos) = degrees.to_radians().sin_cos();
    (0..points)
        .flat_map(|i| {
            let (s, c) = (std::f64::consts::TAU * i as f64 / points as f64).sin_cos();
            let (dx, dy) = (radii[0] * c, radii[1] * s);
            [centre[0] + dx * cos - dy * sin, centre[1] + dx * sin + dy * cos]
        })
        .collect()
}

/// The box around an ellipse.
pub fn ellipse_bounds(centre: [f64; 2], radii: [f64; 2], degrees: f64) -> [f64; 4] {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let half = [(radii[0] * cos).hypot(radii[1] * sin), (radii[0] * sin).hypot(radii[1] * cos)];
    [centre[0] - half[0], centre[1] - half[1], 2.0 * half[0], 2.0 * half[1]]
}

/// Whether two sides of a polygon cross. Sides that only touch do not.
pub fn crosses_itself(polygon: &[f64]) -> bool {
    let points: Vec<[f64; 2]> = polygon.chunks_exact(2).map(|p| [p[0], p[1]]).collect();
    let n = points.len();
    let side = |a: [f64; 2], b: [f64; 2], c: [f64; 2]| (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
    (0..n).any(|i| {
        let (a, b) = (points[i], points[(i + 1) % n]);
        (i + 2..n).filter(|&j| !(i == 0 && j == n - 1)).any(|j| {
            let (c, d) = (points[j], points[(j + 1) % n]);
            side(a, b, c) * side(a, b, d) < 0.0 && side(c, d, a) * side(c, d, b) < 0.0
        })
    })
}

/// A mask on the whole image from pixels, row by row, of a rectangle at `left`, `top`. What leaves the image is cut.
pub fn mask_at(
    image: (u32, u32),
    (left, top): (i64, i64),
    (width, height): (usize, usize),
    pixels: &[bool],
) -> anyhow::Result<Rle> {
    anyhow::ensure!(pixels.len() == width * height, "the mask has {} pixels, not {width}×{height}", pixels.len());
    let mut all = vec![false; image.0 as usize * image.1 as usize];
    for (row, line) in pixels.chunks_exact(width.max(1)).enumerate() {
        let y = top + row as i64;
        if y < 0 || y >= i64::from(image.1) {
            continue;
        }
        for (column, &pixel) in line.iter().enumerate() {
            let x = left + column as i64;
            if pixel && x >= 0 && x < i64::from(image.0) {
                all[y as usize * image.0 as usize + x as usize] = true;
            }
        }
    }
    Ok(Rle::from_rows(image.1, image.0, &all)?)
}

/// The pixels of a mask inside its box, row by row: left, top, width, height, pixels.
pub fn cut_out(mask: &Rle) -> ([usize; 4], Vec<bool>) {
    let [x, y, w, h] = mask.bbox().map(|v| v as usize);
    let columns = mask.to_columns();
    let height = mask.height() as usize;
    let pixels = (0..w * h).map(|i| columns[(x + i % w) * height + y + i / w] != 0).collect();
    ([x, y, w, h], pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bow_tie_crosses_itself_and_a_square_does_not() {
        assert!(crosses_itself(&[0.0, 0.0, 4.0, 4.0, 4.0, 0.0, 0.0, 4.0]));
        assert!(!crosses_itself(&[0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0]));
        // A spike that returns along itself only touches.
        assert!(!crosses_itself(&[0.0, 0.0, 4.0, 0.0, 8.0, 0.0, 4.0, 0.0, 4.0, 4.0]));
    }

    #[test]
    fn the_greatest_iou_of_each_box_is_that_of_all_pairs() {
        let mut state = 1u64;
        let mut next = |most: f64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f64 / (1u64 << 24) as f64 * most
        };
        let boxes: Vec<[f64; 4]> = (0..60).map(|_| [next(100.0), next(100.0), next(40.0), next(40.0)]).collect();
        let found = greatest_ious(&boxes);
        for (i, &a) in boxes.iter().enumerate() {
            let others = boxes.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, &b)| iou(a, b));
            assert_eq!(found[i], others.fold(0.0, f64::max));
        }
        assert!(found.iter().any(|&iou| iou > 0.3) && found.contains(&0.0));
    }

    #[test]
    fn a_quarter_turn_clockwise_moves_the_right_side_down() {
        let corners = turned([0.0, 0.0, 4.0, 2.0], 90.0, [0.0, 0.0]);
        let expected = [0.0, 0.0, 0.0, 4.0, -2.0, 4.0, -2.0, 0.0];
        assert!(corners.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{corners:?}");
    }

    #[test]
    fn an_ellipse_lies_in_its_box_and_touches_it() {
        let (centre, radii) = ([50.0, 40.0], [30.0, 10.0]);
        let around = extent([ellipse(centre, radii, 30.0).as_slice()]);
        let bounds = ellipse_bounds(centre, radii, 30.0);
        assert!(around.iter().zip(bounds).all(|(a, b)| (a - b).abs() < 0.6), "{around:?} {bounds:?}");
    }
}
