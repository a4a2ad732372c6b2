//! What can be seen of an outline: polygons cut by those in front of them.

use i_overlay::core::fill_rule::FillRule;
use i_overlay::core::overlay_rule::OverlayRule;
use i_overlay::float::single::SingleFloatOverlay;

/// Parts and holes smaller than this, in square pixels, are left out of annotations.
pub const SPECK: f64 = 0.5;

/// x, y in pixels; the image's upper left corner is the origin.
pub type Point = [f64; 2];

/// Signed area of a polygon (shoelace formula).
pub fn area(polygon: &[Point]) -> f64 {
    let shifted = polygon.iter().cycle().skip(1);
    polygon.iter().zip(shifted).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum::<f64>() / 2.0
}

/// Parts that do not touch, each an outer contour and its holes.
#[derive(Clone, Debug, Default)]
pub struct Region(Vec<Vec<Vec<Point>>>);

impl Region {
    /// What lies in one of `polygons` and in an image of `width × height`.
    pub fn new(polygons: &[Vec<Point>], width: f64, height: f64) -> Self {
        let whole: Vec<Vec<Point>> = polygons.iter().map(|p| clockwise(p.clone())).collect();
        Self(whole.overlay(&rectangle(0.0, 0.0, width, height), OverlayRule::Intersect, FillRule::NonZero))
    }

    /// What is left where `polygon` lies in front.
    pub fn without(&self, polygon: &[Point]) -> Self {
        Self(self.0.overlay(&polygon.to_vec(), OverlayRule::Difference, FillRule::NonZero))
    }

    /// In square pixels.
    pub fn area(&self) -> f64 {
        let of_part = |part: &Vec<Vec<Point>>| {
            let mut contours = part.iter().map(|contour| area(contour).abs());
            contours.next().unwrap_or(0.0) - contours.sum::<f64>()
        };
        self.0.iter().map(of_part).sum()
    }

    /// x1, y1, x2, y2 of all points; `None` where there are none.
    pub fn bounds(&self) -> Option<[f64; 4]> {
        bounds(self.0.iter().flatten().flatten())
    }

    /// Polygons without holes that cover the region together: COCO's polygons have no holes, so a part with one is cut
    /// through it. Holes smaller than [`SPECK`] are filled.
    pub fn polygons(&self) -> Vec<Vec<Point>> {
        let mut done = Vec::new();
        let mut left = self.0.clone();
        while let Some(mut part) = left.pop() {
            let mut outer = true;
            part.retain(|contour| std::mem::take(&mut outer) || area(contour).abs() >= SPECK);
            let hole = part.get(1).and_then(|hole| bounds(hole.iter()));
            let (Some(hole), Some(all)) = (hole, bounds(part.iter().flatten())) else {
                done.extend(part.into_iter().next());
                continue;
            };
            let cut = (hole[0] + hole[2]) / 2.0;
            let halves = [
                rectangle(all[0] - 1.0, all[1] - 1.0, cut, all[3] + 1.0),
                rectangle(cut, all[1] - 1.0, all[2] + 1.0, all[3] + 1.0),
            ];
            for half in halves {
                left.extend(part.overlay(&half, OverlayRule::Intersect, FillRule::NonZero));
            }
        }
        done
    }
}

fn rectangle(x1: f64, y1: f64, x2: f64, y2: f64) -> Vec<Point> {
    vec![[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
}

/// The same polygon with positive area, so that overlapping ones join under the non-zero rule.
fn clockwise(mut polygon: Vec<Point>) -> Vec<Point> {
    if area(&polygon) < 0.0 {
        polygon.reverse();
    }
    polygon
}

/// Smallest box around points.
pub fn bounds<'a>(points: impl Iterator<Item = &'a Point>) -> Option<[f64; 4]> {
    points.fold(None, |bounds, [x, y]| {
        let [x1, y1, x2, y2] = bounds.unwrap_or([*x, *y, *x, *y]);
        Some([x1.min(*x), y1.min(*y), x2.max(*x), y2.max(*y)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_cut_by_the_image_and_by_what_lies_in_front() {
        let square = rectangle(-5.0, 0.0, 5.0, 10.0);
        let region = Region::new(&[square], 100.0, 100.0);
        assert!((region.area() - 50.0).abs() < 1e-3);
        let cut = region.without(&rectangle(0.0, 0.0, 2.0, 20.0));
        assert!((cut.area() - 30.0).abs() < 1e-3);
        let [x1, ..] = cut.bounds().unwrap();
        assert!((x1 - 2.0).abs() < 1e-3);
        assert!(cut.without(&rectangle(-1.0, -1.0, 50.0, 50.0)).bounds().is_none());
    }

    #[test]
    fn a_region_with_holes_becomes_polygons_without() {
        let region = Region::new(&[rectangle(0.0, 0.0, 30.0, 10.0)], 100.0, 100.0)
            .without(&rectangle(4.0, 4.0, 6.0, 6.0))
            .without(&rectangle(20.0, 4.0, 26.0, 6.0));
        let polygons = region.polygons();
        assert!(polygons.len() >= 2);
        let total: f64 = polygons.iter().map(|p| area(p).abs()).sum();
        assert!((total - (300.0 - 4.0 - 12.0)).abs() < 1e-3, "{total}");
        assert!((region.area() - total).abs() < 1e-3);
    }

    #[test]
    fn overlapping_polygons_count_once_whatever_way_they_turn() {
        let mut other = rectangle(5.0, 0.0, 15.0, 10.0);
        other.reverse();
        let region = Region::new(&[rectangle(0.0, 0.0, 10.0, 10.0), other], 100.0, 100.0);
        assert!((region.area() - 150.0).abs() < 1e-3);
    }
}
