//! Masks of objects: as annotated, with the way from there to the pixels of the sample. They become pixels inside a region only.

use std::sync::Arc;

use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

/// Corners x1, y1, x2, y2 in pixels.
type Corners = [f32; 4];

/// Sides of a region below this, in pixels, are taken to be so long: polygons on its grid keep finite coordinates.
const SHORTEST_SIDE: f64 = 0.1;

/// A whole image between two pixel grids: mirrored, turned by quarters, cut, scaled.
///
/// A point (x, y) goes to (xx·x + xy·y + x0, yx·x + yy·y + y0), in pixels; pixel i reaches from i to i + 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Factors of x and y in the new x, and what is added.
    pub across: [f64; 3],
    /// Factors of x and y in the new y, and what is added.
    pub down: [f64; 3],
}

impl Default for Geometry {
    /// Nothing changes.
    fn default() -> Self {
        Self { across: [1.0, 0.0, 0.0], down: [0.0, 1.0, 0.0] }
    }
}

impl Geometry {
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

/// The mask of an object: its annotation, shared and untouched, and the way to the pixels of the image that the object is in now.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    source: Arc<Segmentation>,
    /// (height, width) of the image that was annotated.
    size: (u32, u32),
    geometry: Geometry,
    /// What is seen of it, where its image is a part of a larger one.
    window: Option<Corners>,
}

impl Mask {
    /// The mask of an annotation on an image of `height × width` pixels. `None` where it encloses nothing: no polygon of three points or more
    /// with finite coordinates, or runs of another size than the image.
    pub fn new(segmentation: &Segmentation, height: u32, width: u32) -> Option<Self> {
        let source = match segmentation {
            Segmentation::Rle(rle) if rle.size() == (height, width) => segmentation.clone(),
            Segmentation::Rle(_) => return None,
            Segmentation::Polygons(polygons) => {
                let sound = |p: &&Vec<f64>| p.len() >= 6 && p.iter().all(|v| v.abs() < 1e6);
                let kept: Vec<Vec<f64>> = polygons.iter().filter(sound).cloned().collect();
                if kept.is_empty() {
                    return None;
                }
                Segmentation::Polygons(kept)
            }
        };
        Some(Self {
            source: Arc::new(source),
            size: (height, width),
            geometry: Geometry::default(),
            window: None,
        })
    }

    /// The pixels of the image as annotated, whatever has become of it since.
    pub fn annotated(&self) -> Option<Rle> {
        let (height, width) = self.size;
        self.source.to_rle(height, width).ok()
    }

    /// Takes part in a change of its image.
    pub fn change(&mut self, change: &Geometry) {
        self.geometry = self.geometry.then(change);
        if let Some(window) = &mut self.window {
            let [x1, y1, x2, y2] = window.map(f64::from);
            let (a, b) = (change.apply((x1, y1)), change.apply((x2, y2)));
            *window = [a.0.min(b.0), a.1.min(b.1), a.0.max(b.0), a.1.max(b.1)].map(|v| v as f32);
        }
    }

    /// Nothing of it is seen outside of this part of the image.
    pub fn see_through(&mut self, window: Corners) {
        self.window = Some(match self.window {
            None => window,
            Some(w) => [w[0].max(window[0]), w[1].max(window[1]), w[2].min(window[2]), w[3].min(window[3])],
        });
    }

    /// The mask on a grid of `side × side` bins over a region, rows from the top: 1 where the object is, else 0.
    ///
    /// Polygons are drawn on the grid as pycocotools draws them, as in detectron2 and mmdetection; of runs, a bin is object where the mask's mean
    /// over it is at least one half.
    pub fn raster(&self, region: &Corners, side: usize) -> Vec<f32> {
        let [x1, y1, x2, y2] = region.map(f64::from);
        let n = side as f64;
        let (across, down) = (n / (x2 - x1).max(SHORTEST_SIDE), n / (y2 - y1).max(SHORTEST_SIDE));
        let mut values = match &*self.source {
            Segmentation::Polygons(polygons) => {
                let to_grid =
                    self.geometry.then(&Geometry::translate(-x1, -y1)).then(&Geometry::scale(across, down));
                draw(polygons, &to_grid, side)
            }
            Segmentation::Rle(rle) => {
                let back = self.geometry.inverse();
                // As many points along a bin as it has pixels of the annotated image.
                let scale = back.across.iter().chain(&back.down).enumerate().filter(|(i, _)| i % 3 != 2);
                let scale = scale.map(|(_, v)| v.abs()).fold(0.0, f64::max);
                let points = |bin: f64| ((bin * scale).ceil() as usize).clamp(1, 64);
                let means =
                    Sampled::new(rle, &back).means(region, side, points(1.0 / across), points(1.0 / down));
                means.into_iter().map(|mean| if mean >= 0.5 { 1.0 } else { 0.0 }).collect()
            }
        };
        if let Some(window) = &self.window {
            for (i, value) in values.iter_mut().enumerate() {
                let x = x1 + ((i % side) as f64 + 0.5) / across;
                let y = y1 + ((i / side) as f64 + 0.5) / down;
                let [left, top, right, bottom] = window.map(f64::from);
                if !((left..=right).contains(&x) && (top..=bottom).contains(&y)) {
                    *value = 0.0;
                }
            }
        }
        values
    }

    /// torchvision's targets: the mask as pixels of the present image, each the nearest of the annotated one, pooled by RoIAlign to
    /// `side × side` bins over a region: shares of object. Only the pixels that the region needs are looked up.
    pub fn pooled(&self, region: &Corners, side: usize, image: (i64, i64)) -> Vec<f32> {
        let (height, width) = self.size;
        let Ok(rle) = self.source.to_rle(height, width) else { return vec![0.0; side * side] };
        let (rows, columns) = (image.0.max(1) as usize, image.1.max(1) as usize);
        let (left, top) = (region[0].max(0.0) as usize, region[1].max(0.0) as usize);
        // One pixel more than the last point's right neighbour.
        let right = (region[2].max(region[0] + 1.0).max(0.0) as usize + 3).min(columns);
        let bottom = (region[3].max(region[1] + 1.0).max(0.0) as usize + 3).min(rows);
        let (left, top) = (left.saturating_sub(1).min(right), top.saturating_sub(1).min(bottom));
        let back = self.geometry.inverse();
        let source = Sampled::new(&rle, &back);
        let mut pixels = vec![0u8; (right - left) * (bottom - top)];
        for y in top..bottom {
            for x in left..right {
                pixels[(y - top) * (right - left) + x - left] = source.nearest(x, y);
            }
        }
        let at = |x: usize, y: usize| f32::from(pixels[(y - top) * (right - left) + x - left]);
        let horizontal = points(region[0], region[2], side, columns);
        let vertical = points(region[1], region[3], side, rows);
        let mut out = Vec::with_capacity(side * side);
        for row in &vertical {
            for column in &horizontal {
                let mut sum = 0.0;
                for &(y, next_y, wy) in row {
                    for &(x, next_x, wx) in column {
                        if wx < 0.0 || wy < 0.0 {
                            continue;
                        }
                        let upper = at(x, y) * (1.0 - wx) + at(next_x, y) * wx;
                        let lower = at(x, next_y) * (1.0 - wx) + at(next_x, next_y) * wx;
                        sum += upper * (1.0 - wy) + lower * wy;
                    }
                }
                out.push(sum / (row.len() * column.len()).max(1) as f32);
            }
        }
        out
    }
}

/// RoIAlign's points along one axis of a region, bin by bin, at one point per begun pixel: the two pixels around each and the weight of the
/// second, below 0 where the point is outside of the image.
fn points(start: f32, end: f32, bins: usize, pixels: usize) -> Vec<Vec<(usize, usize, f32)>> {
    let length = (end - start).max(1.0);
    let bin = length / bins as f32;
    let count = bin.ceil().max(1.0);
    let last = pixels - 1;
    (0..bins)
        .map(|b| {
            (0..count as usize)
                .map(|i| {
                    let at = start + b as f32 * bin + (i as f32 + 0.5) * bin / count;
                    if !(-1.0..=pixels as f32).contains(&at) {
                        return (0, 0, -1.0);
                    }
                    let at = at.max(0.0);
                    let low = at as usize;
                    if low >= last {
                        (last, last, 0.0)
                    } else {
                        (low, low + 1, at - low as f32)
                    }
                })
                .collect()
        })
        .collect()
}

/// Polygons on a grid, rows from the top.
fn draw(polygons: &[Vec<f64>], to_grid: &Geometry, side: usize) -> Vec<f32> {
    let moved: Vec<Vec<f64>> = polygons
        .iter()
        .map(|polygon| {
            let points = polygon.chunks_exact(2).map(|p| to_grid.apply((p[0], p[1])));
            points.flat_map(|(x, y)| [x, y]).collect()
        })
        .collect();
    // Coordinates out of all range are of regions far from the object: nothing of it is there.
    let Ok(rle) = Rle::from_polygons(side as u32, side as u32, &moved) else { return vec![0.0; side * side] };
    rle.to_rows().into_iter().map(|object| if object { 1.0 } else { 0.0 }).collect()
}

/// A run-length-coded mask that is asked for points of another grid.
struct Sampled<'a> {
    rle: &'a Rle,
    back: &'a Geometry,
    /// Where runs end, counted along columns.
    ends: Vec<u64>,
}

impl<'a> Sampled<'a> {
    fn new(rle: &'a Rle, back: &'a Geometry) -> Self {
        let ends = rle
            .runs()
            .scan(0u64, |end, run| {
                *end += u64::from(run);
                Some(*end)
            })
            .collect();
        Self { rle, back, ends }
    }

    fn pixel(&self, x: i64, y: i64) -> u8 {
        let (height, width) = (i64::from(self.rle.height()), i64::from(self.rle.width()));
        if x < 0 || y < 0 || x >= width || y >= height {
            return 0;
        }
        let at = (x * height + y) as u64;
        (self.ends.partition_point(|end| *end <= at) % 2) as u8
    }

    /// The annotated pixel that a pixel of the present image comes from: the one its upper left corner lies in, as in PyTorch's `nearest`.
    fn nearest(&self, x: usize, y: usize) -> u8 {
        // Just inside the corner, so that mirrored pixels find their own one.
        const INSIDE: f64 = 1e-3;
        let (u, v) = self.back.apply((x as f64 + INSIDE, y as f64 + INSIDE));
        self.pixel(u.floor() as i64, v.floor() as i64)
    }

    /// Between the centres of annotated pixels, linear both ways.
    fn value(&self, (x, y): (f64, f64)) -> f64 {
        let (u, v) = self.back.apply((x, y));
        let (u, v) = (u - 0.5, v - 0.5);
        let (x, y) = (u.floor(), v.floor());
        let (wx, wy) = (u - x, v - y);
        let at = |dx: i64, dy: i64| f64::from(self.pixel(x as i64 + dx, y as i64 + dy));
        (at(0, 0) * (1.0 - wx) + at(1, 0) * wx) * (1.0 - wy) + (at(0, 1) * (1.0 - wx) + at(1, 1) * wx) * wy
    }

    /// Means over bins, each of `across × down` points.
    fn means(&self, region: &Corners, side: usize, across: usize, down: usize) -> Vec<f64> {
        let [x1, y1, x2, y2] = region.map(f64::from);
        let (width, height) = ((x2 - x1) / side as f64, (y2 - y1) / side as f64);
        let mut out = Vec::with_capacity(side * side);
        for row in 0..side {
            for column in 0..side {
                let mut sum = 0.0;
                for j in 0..down {
                    for i in 0..across {
                        let x = x1 + width * (column as f64 + (i as f64 + 0.5) / across as f64);
                        let y = y1 + height * (row as f64 + (j as f64 + 0.5) / down as f64);
                        sum += self.value((x, y));
                    }
                }
                out.push(sum / (across * down) as f64);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polygons(all: &[&[f64]]) -> Segmentation {
        Segmentation::Polygons(all.iter().map(|p| p.to_vec()).collect())
    }

    /// An L in an image of 12 × 8 pixels.
    const L: &[f64] = &[2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 9.0, 4.0, 9.0, 7.0, 2.0, 7.0];

    fn area(values: &[f32]) -> f32 {
        values.iter().sum()
    }

    #[test]
    fn a_region_of_the_images_own_pixels_is_pycocotools_raster() {
        let mask = Mask::new(&polygons(&[L]), 8, 12).unwrap();
        let found = mask.raster(&[0.0, 0.0, 8.0, 8.0], 8);
        let whole = polygons(&[L]).to_rle(8, 12).unwrap().to_rows();
        for y in 0..8 {
            for x in 0..8 {
                assert_eq!(found[y * 8 + x] == 1.0, whole[y * 12 + x], "{x} {y}");
            }
        }
    }

    #[test]
    fn holes_and_parts_survive_as_runs_and_parts_as_polygons() {
        // A ring: object but for its middle.
        let ring: Vec<bool> =
            (0..64).map(|i| !((2..6).contains(&(i % 8)) && (2..6).contains(&(i / 8)))).collect();
        let rle = Segmentation::Rle(Rle::from_rows(8, 8, &ring).unwrap());
        let found = Mask::new(&rle, 8, 8).unwrap().raster(&[0.0, 0.0, 8.0, 8.0], 8);
        assert!(found.iter().zip(&ring).all(|(f, r)| (*f == 1.0) == *r));
        let many: Vec<Vec<f64>> = (0..40)
            .map(|i| {
                let (x, y) = (f64::from(i % 8) * 4.0, f64::from(i / 8) * 4.0);
                vec![x, y, x + 2.0, y, x + 2.0, y + 2.0, x, y + 2.0]
            })
            .collect();
        let mask = Mask::new(&Segmentation::Polygons(many), 32, 32).unwrap();
        assert_eq!(area(&mask.raster(&[0.0, 0.0, 32.0, 32.0], 32)), 40.0 * 4.0);
    }

    #[test]
    fn every_change_of_the_image_takes_the_mask_along() {
        let steps = [
            Geometry::mirror(12.0),
            Geometry::flip(8.0),
            Geometry::quarter_turn(8.0),
            Geometry::scale(2.0, 3.0),
            Geometry::translate(-1.0, -2.0),
        ];
        let rle = Segmentation::Rle(polygons(&[L]).to_rle(8, 12).unwrap());
        for (source, exact) in [(polygons(&[L]), false), (rle, true)] {
            let mut mask = Mask::new(&source, 8, 12).unwrap();
            // Off the pixels' borders: no bin is object by exactly one half.
            let plain = mask.raster(&[0.125, 0.1875, 11.875, 7.8125], 24);
            let mut region = [(0.125, 0.1875), (11.875, 7.8125)];
            for step in &steps {
                mask.change(step);
                region = region.map(|p| step.apply(p));
            }
            let [a, b] = region;
            let corners = [a.0.min(b.0), a.1.min(b.1), a.0.max(b.0), a.1.max(b.1)].map(|v| v as f32);
            let found = mask.raster(&corners, 24);
            // Mirrored both ways and turned clockwise: row r of the result is column r of the original from the top.
            let mut differing = 0;
            for y in 0..24 {
                for x in 0..24 {
                    differing += usize::from(found[y * 24 + x] != plain[x * 24 + (23 - y)]);
                }
            }
            assert!(differing <= if exact { 0 } else { 24 }, "{differing}");
        }
        let geometry = steps.iter().fold(Geometry::default(), |g, s| g.then(s));
        let (x, y) = geometry.inverse().apply(geometry.apply((3.0, 5.0)));
        assert!((x - 3.0).abs() < 1e-12 && (y - 5.0).abs() < 1e-12);
    }

    #[test]
    fn tiny_far_and_hidden_regions_have_masks_too() {
        let mut mask = Mask::new(&polygons(&[L]), 8, 12).unwrap();
        // One pixel inside the object, no pixel at all, a place far away.
        assert_eq!(area(&mask.raster(&[3.0, 2.0, 4.0, 3.0], 28)), 28.0 * 28.0);
        assert_eq!(mask.raster(&[3.0, 2.0, 3.0, 2.0], 28).len(), 28 * 28);
        assert_eq!(area(&mask.raster(&[1e7, 1e7, 1e7, 1e7], 28)), 0.0);
        assert_eq!(mask.pooled(&[11.0, 7.0, 12.0, 8.0], 28, (8, 12)).len(), 28 * 28);
        mask.see_through([0.0, 0.0, 12.0, 4.0]);
        assert_eq!(area(&mask.raster(&[0.0, 0.0, 8.0, 8.0], 8)), 9.0);
        assert!(Mask::new(&polygons(&[&[1.0, 1.0, 2.0, 2.0]]), 8, 12).is_none());
    }
}
