//! Masks to polygons that cover exactly the same pixels: along the pixels' edges, holes reached by a line without
//! width.

use std::collections::HashMap;
use vigdet_coco::rle::Rle;

/// A corner of pixels.
type Corner = (i32, i32);

/// The outlines of a mask, each [x₀, y₀, x₁, y₁, …]: one polygon for each connected part, its holes cut out. Drawn as
/// COCO's polygons they give the mask again.
pub fn rings(mask: &Rle) -> Vec<Vec<f64>> {
    let (height, width) = (mask.height() as i32, mask.width() as i32);
    let pixels = mask.to_columns();
    let inside = |x: i32, y: i32| {
        x >= 0 && y >= 0 && x < width && y < height && pixels[x as usize * height as usize + y as usize] != 0
    };
    // Edges with the object on their right: clockwise around parts, the other way around holes.
    let mut edges: HashMap<Corner, Vec<Corner>> = HashMap::new();
    let mut add = |from: Corner, to: Corner| edges.entry(from).or_default().push(to);
    let [left, top, w, h] = mask.bbox().map(|v| v as i32);
    for x in left..left + w {
        for y in (top..top + h).filter(|&y| inside(x, y)) {
            if !inside(x, y - 1) {
                add((x, y), (x + 1, y));
            }
            if !inside(x + 1, y) {
                add((x + 1, y), (x + 1, y + 1));
            }
            if !inside(x, y + 1) {
                add((x + 1, y + 1), (x, y + 1));
            }
            if !inside(x - 1, y) {
                add((x, y + 1), (x, y));
            }
        }
    }
    let mut starts: Vec<Corner> = edges.keys().copied().collect();
    starts.sort_unstable();
    let (mut parts, mut holes) = (Vec::new(), Vec::new());
    for start in starts {
        while edges.get(&start).is_some_and(|ends| !ends.is_empty()) {
            let ring = walk(&mut edges, start);
            let ring: Vec<f64> = ring.iter().flat_map(|&(x, y)| [f64::from(x), f64::from(y)]).collect();
            if crate::geometry::shoelace(&ring) > 0.0 {
                parts.push(ring)
            } else {
                holes.push(ring)
            }
        }
    }
    for hole in holes {
        // Left of a hole's first corner, its leftmost, is the part that it is a hole of.
        let around = parts.iter().position(|part| contains(part, hole[0] - 0.5, hole[1] + 0.5));
        let part = around.unwrap_or(0);
        parts[part] = bridged(&parts[part], &hole);
    }
    parts
}

/// Follows edges from a corner back to it, and leaves out corners on straight lines. Where two ways go on it turns
/// right: pixels that touch at a corner are parts of their own.
fn walk(edges: &mut HashMap<Corner, Vec<Corner>>, start: Corner) -> Vec<Corner> {
    let mut ring = vec![start];
    let mut at = start;
    let mut direction = (0, 0);
    while let Some(ends) = edges.get_mut(&at).filter(|ends| !ends.is_empty()) {
        let right = (at.0 - direction.1, at.1 + direction.0);
        let choice = ends.iter().position(|&end| end == right).unwrap_or(0);
        let next = ends.swap_remove(choice);
        let step = (next.0 - at.0, next.1 - at.1);
        if step == direction {
            ring.pop();
        }
        direction = step;
        at = next;
        if at == start {
            break;
        }
        ring.push(at);
    }
    ring
}

/// Whether a point, which is on no edge, is inside a polygon.
fn contains(ring: &[f64], x: f64, y: f64) -> bool {
    let points: Vec<&[f64]> = ring.chunks_exact(2).collect();
    let next = points.iter().cycle().skip(1);
    let right_of =
        |(a, b): &(&&[f64], &&[f64])| (a[1] > y) != (b[1] > y) && x < a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0]);
    points.iter().zip(next).filter(right_of).count() % 2 == 1
}

/// Several polygons as one: from each to the next and back along the same line.
pub(super) fn joined(rings: Vec<Vec<f64>>) -> Vec<f64> {
    let mut rings = rings.into_iter();
    let first = rings.next().unwrap_or_default();
    rings.fold(first, |all, ring| bridged(&all, &ring))
}

/// `ring` with a detour to `other` and back, between their nearest corners.
fn bridged(ring: &[f64], other: &[f64]) -> Vec<f64> {
    let points: Vec<&[f64]> = ring.chunks_exact(2).collect();
    let others: Vec<&[f64]> = other.chunks_exact(2).collect();
    let distance = |a: &[f64], b: &[f64]| (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
    let mut nearest = (f64::INFINITY, 0, 0);
    for (i, a) in points.iter().enumerate() {
        for (j, b) in others.iter().enumerate() {
            if distance(a, b) < nearest.0 {
                nearest = (distance(a, b), i, j);
            }
        }
    }
    let (_, i, j) = nearest;
    let around = others[j..].iter().chain(&others[..=j]);
    points[..=i].iter().chain(around).chain(&points[i..]).flat_map(|point| [point[0], point[1]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_mask_comes_back_from_its_outlines_to_the_pixel() {
        // A ring with an island, a part that touches it at a corner, and noise.
        let mut state = 12345u32;
        for case in 0..200 {
            let (height, width) = (9 + case % 7, 8 + case % 5);
            let pixels: Vec<bool> = (0..height * width)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 16) % 8 < 1 + case % 7
                })
                .collect();
            let mask = Rle::from_rows(height, width, &pixels).unwrap();
            if mask.area() == 0 {
                continue;
            }
            let parts = rings(&mask);
            assert_eq!(Rle::from_polygons(height, width, &parts).unwrap(), mask, "case {case}, polygons");
            let one = joined(parts);
            let again = Rle::from_polygons(height, width, &[one]).unwrap();
            assert_eq!(again.area(), mask.area(), "case {case}, joined");
        }
    }
}
