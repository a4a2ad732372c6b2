//! Masks of objects: as annotated, with the way from there to the pixels of the sample. They become pixels inside a
//! region only.

use std::sync::Arc;

use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

use super::affine_map::{corners_of, AffineMap};

/// Corners x1, y1, x2, y2 in pixels.
type Corners = [f32; 4];

/// Sides of a region below this, in pixels, are taken to be so long: polygons on its grid keep finite coordinates.
const SHORTEST_SIDE: f64 = 0.1;

/// The mask of an object: its annotation, shared and untouched, and the way to the pixels of the image that the object
/// is in now.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    pub(super) source: Arc<Segmentation>,
    /// (height, width) of the image that was annotated.
    pub(super) size: (u32, u32),
    pub(super) affine: AffineMap,
    /// What is seen of it, where its image is a part of a larger one.
    pub(super) window: Option<Corners>,
}

impl Mask {
    /// The mask of an annotation on an image of `height × width` pixels. `None` where it encloses nothing: no polygon
    /// of three points or more with finite coordinates, or runs of another size than the image.
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
        Some(Self { source: Arc::new(source), size: (height, width), affine: AffineMap::default(), window: None })
    }

    /// The pixels of the image as annotated, whatever has become of it since.
    pub fn annotated(&self) -> Option<Rle> {
        let (height, width) = self.size;
        self.source.to_rle(height, width).ok()
    }

    /// Takes part in a change of its image.
    pub fn change(&mut self, change: &AffineMap) {
        self.affine = self.affine.then(change);
        if let Some(window) = &mut self.window {
            let [x1, y1, x2, y2] = window.map(f64::from);
            let (a, b) = (change.apply((x1, y1)), change.apply((x2, y2)));
            *window = [a.0.min(b.0), a.1.min(b.1), a.0.max(b.0), a.1.max(b.1)].map(|v| v as f32);
        }
    }

    /// Takes part in a change of its image to a canvas (height, width), which may turn and shear. What runs cannot
    /// follow, and what is seen through a window, becomes pixels of the canvas: the nearest of the annotated ones.
    pub fn warp(&mut self, change: &AffineMap, canvas: (u32, u32)) {
        let polygons = matches!(&*self.source, Segmentation::Polygons(_));
        if change.keeps_axes() || (polygons && self.window.is_none()) {
            return self.change(change);
        }
        let Some(rows) = self.annotated().map(|rle| rle.to_rows()) else { return self.change(change) };
        let (back, further) = (change.inverse(), self.affine.inverse());
        let inside = |(x, y): (f64, f64), [x1, y1, x2, y2]: Corners| {
            x >= x1.into() && y >= y1.into() && x < x2.into() && y < y2.into()
        };
        let (from_height, from_width) = self.size;
        let whole = [0.0, 0.0, from_width as f32, from_height as f32];
        let (height, width) = canvas;
        let object = (0..u64::from(height) * u64::from(width)).map(|i| {
            let pixel = ((i % u64::from(width)) as f64 + 0.5, (i / u64::from(width)) as f64 + 0.5);
            let before = back.apply(pixel);
            let annotated = further.apply(before);
            self.window.is_none_or(|window| inside(before, window))
                && inside(annotated, whole)
                && rows[annotated.1 as usize * from_width as usize + annotated.0 as usize]
        });
        let object: Vec<bool> = object.collect();
        // As many values as the canvas has pixels: this cannot fail.
        let Ok(rle) = Rle::from_rows(height, width, &object) else { return };
        let source = Arc::new(Segmentation::Rle(rle));
        *self = Self { source, size: canvas, affine: AffineMap::default(), window: None };
    }

    /// The box around it, in pixels of the present image. `None` where it is runs that have been moved since, or
    /// nothing.
    pub fn bounds(&self) -> Option<Corners> {
        match &*self.source {
            Segmentation::Polygons(polygons) => {
                let points = polygons.iter().flat_map(|p| p.chunks_exact(2)).map(|p| (p[0], p[1]));
                corners_of(points.map(|p| self.affine.apply(p)))
            }
            Segmentation::Rle(rle) if self.affine == AffineMap::default() => {
                let [x, y, width, height] = rle.bbox();
                (width > 0.0 && height > 0.0).then(|| [x, y, x + width, y + height].map(|v| v as f32))
            }
            Segmentation::Rle(_) => None,
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
    /// Polygons are drawn on the grid as pycocotools draws them, as in detectron2 and mmdetection; of runs, a bin is
    /// object where the mask's mean over it is at least one half, the mean of one point per begun pixel of the
    /// annotated image along each side of the bin, each point linear between the centres of the four pixels around it
    /// (detectron2's `BitMasks.crop_and_resize`).
    pub fn raster(&self, region: &Corners, side: usize) -> Vec<f32> {
        let [x1, y1, x2, y2] = region.map(f64::from);
        let n = side as f64;
        let (across, down) = (n / (x2 - x1).max(SHORTEST_SIDE), n / (y2 - y1).max(SHORTEST_SIDE));
        let mut values = match &*self.source {
            Segmentation::Polygons(polygons) => {
                let to_grid = self.affine.then(&AffineMap::translate(-x1, -y1)).then(&AffineMap::scale(across, down));
                draw(polygons, &to_grid, side)
            }
            Segmentation::Rle(rle) => {
                let means = Runs::new(rle).means(&self.affine, side, |axis| {
                    let (start, end) = if axis.across { (x1, x2) } else { (y1, y2) };
                    axis.bins(start, end, side)
                });
                // Sums round: a bin that is object by exactly one half stays object.
                means.into_iter().map(|mean| if mean >= 0.5 - 1e-9 { 1.0 } else { 0.0 }).collect()
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

    /// Ready for [`Drawn::pooled`]: polygons become pixels of the annotated image, once for any number of regions.
    pub fn draw(&self) -> Drawn {
        let runs = self.annotated().map(|rle| Runs::new(&rle));
        Drawn { runs: runs.unwrap_or_default(), affine: self.affine }
    }
}

/// A mask as runs of pixels.
#[derive(Clone, Debug)]
pub struct Drawn {
    runs: Runs,
    affine: AffineMap,
}

impl Drawn {
    /// torchvision's targets: the mask as pixels of the present image of `image` (height, width), each the nearest of
    /// the annotated one, pooled by RoIAlign to `side × side` bins over a region: shares of object.
    pub fn pooled(&self, region: &Corners, side: usize, image: (i64, i64)) -> Vec<f32> {
        let means = self.runs.means(&self.affine, side, |axis| {
            let [x1, y1, x2, y2] = *region;
            let (start, end, pixels) = if axis.across { (x1, x2, image.1) } else { (y1, y2, image.0) };
            points(start, end, side, pixels.max(1) as usize)
                .into_iter()
                .map(|bin| {
                    let share = 1.0 / bin.len() as f64;
                    // A weight below 0: outside of the image, where nothing is.
                    let taps = bin.into_iter().filter(|p| p.2 >= 0.0).flat_map(|(low, next, weight)| {
                        let weight = f64::from(weight);
                        [(axis.nearest(low), (1.0 - weight) * share), (axis.nearest(next), weight * share)]
                    });
                    Bin::new(taps, axis.pixels)
                })
                .collect()
        });
        means.into_iter().map(|mean| mean as f32).collect()
    }
}

/// RoIAlign's points along one axis of a region, bin by bin, at one point per begun pixel: the two pixels around each
/// and the weight of the second, below 0 where the point is outside of the image.
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
fn draw(polygons: &[Vec<f64>], to_grid: &AffineMap, side: usize) -> Vec<f32> {
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

/// An axis of the annotated image, and the axis of the present image that runs along it.
struct Axis {
    /// Whether that is the present image's x; otherwise its y.
    across: bool,
    /// From a place on the present axis to the one on the annotated axis: a factor, and what is added.
    factor: f64,
    offset: f64,
    /// Length of the annotated axis.
    pixels: usize,
}

impl Axis {
    /// `row` gives one coordinate of the annotated image from x and y of the present one; one of its factors is 0.
    fn new(row: [f64; 3], pixels: u32) -> Self {
        let across = row[0].abs() >= row[1].abs();
        let factor = if across { row[0] } else { row[1] };
        Self { across, factor, offset: row[2], pixels: pixels as usize }
    }

    /// The annotated pixel that a pixel of the present image comes from: the one its upper left corner lies in, as in
    /// PyTorch's `nearest`.
    fn nearest(&self, pixel: usize) -> i64 {
        // Just inside the corner, so that mirrored pixels find their own one.
        const INSIDE: f64 = 1e-3;
        (self.factor * (pixel as f64 + INSIDE) + self.offset).floor() as i64
    }

    /// Bins of points between pixels' centres, from `start` to `end` on the present axis. As in RoIAlign, the
    /// outermost pixels go on for a pixel beyond the image, and further out there is nothing.
    fn bins(&self, start: f64, end: f64, count: usize) -> Vec<Bin> {
        // More points than this are of regions far larger than any image.
        const MOST: usize = 4096;
        let length = (end - start) / count as f64;
        let points = ((length * self.factor).abs().ceil() as usize).clamp(1, MOST);
        let (pixels, share) = (self.pixels as f64, 1.0 / points as f64);
        (0..count)
            .map(|bin| {
                let places = (0..points).map(|i| {
                    let at = start + length * (bin as f64 + (i as f64 + 0.5) / points as f64);
                    self.factor * at + self.offset - 0.5
                });
                let taps = places.filter(|at| (-1.0..=pixels).contains(at)).flat_map(|at| {
                    let at = at.clamp(0.0, pixels - 1.0);
                    let (low, weight) = (at.floor(), at - at.floor());
                    [(low as i64, (1.0 - weight) * share), (low as i64 + 1, weight * share)]
                });
                Bin::new(taps, self.pixels)
            })
            .collect()
    }
}

/// The pixels of one axis that a bin is a weighted mean of. What lies outside of the image counts, as nothing.
struct Bin {
    first: usize,
    /// Weight of all pixels before each of the pixels from `first` on, then of all.
    sums: Vec<f64>,
}

impl Bin {
    fn new(taps: impl Iterator<Item = (i64, f64)>, pixels: usize) -> Self {
        let inside = |(pixel, weight): (i64, f64)| Some((usize::try_from(pixel).ok()?, weight));
        let taps: Vec<(usize, f64)> = taps.filter_map(inside).filter(|tap| tap.0 < pixels).collect();
        let first = taps.iter().map(|tap| tap.0).min().unwrap_or(0);
        let last = taps.iter().map(|tap| tap.0 + 1).max().unwrap_or(0);
        let mut sums = vec![0.0; last - first + 1];
        for (pixel, weight) in taps {
            sums[pixel - first + 1] += weight;
        }
        for i in 1..sums.len() {
            sums[i] += sums[i - 1];
        }
        Self { first, sums }
    }

    /// Weight of the pixels from `from` up to `to`.
    fn weight(&self, from: usize, to: usize) -> f64 {
        let before = |pixel: usize| self.sums[pixel.saturating_sub(self.first).min(self.sums.len() - 1)];
        before(to) - before(from)
    }

    fn end(&self) -> usize {
        self.first + self.sums.len() - 1
    }
}

/// A run-length-coded mask: background and object in turns, down the columns.
#[derive(Clone, Debug, Default)]
struct Runs {
    /// (height, width).
    size: (u32, u32),
    /// Where runs end.
    ends: Vec<u64>,
}

impl Runs {
    fn new(rle: &Rle) -> Self {
        let ends = rle.runs().scan(0u64, |end, run| {
            *end += u64::from(run);
            Some(*end)
        });
        Self { size: rle.size(), ends: ends.collect() }
    }

    /// The mask's means over `side × side` bins, rows from the top; `bins` gives those of an axis.
    ///
    /// A bin's weights are a product of one factor for the column and one for the row, so a run adds a difference of
    /// two of the row bins' sums, and each column is added up once: the time is for the columns that the bins reach
    /// and the runs in them, not for pixels or points.
    fn means(&self, affine: &AffineMap, side: usize, bins: impl Fn(&Axis) -> Vec<Bin>) -> Vec<f64> {
        let back = affine.inverse();
        let axis = Axis::new(back.across, self.size.1);
        let (columns, rows) = (bins(&axis), bins(&Axis::new(back.down, self.size.0)));
        let reached = columns.iter().filter(|bin| bin.end() > bin.first);
        let left = reached.clone().map(|bin| bin.first).min().unwrap_or(0);
        let right = reached.map(Bin::end).max().unwrap_or(0);
        let mut means = vec![0.0; side * side];
        let mut column = vec![0.0; side];
        for x in left..right {
            self.column(x, &rows, &mut column);
            for (i, bin) in columns.iter().enumerate() {
                let weight = bin.weight(x, x + 1);
                if weight == 0.0 {
                    continue;
                }
                for (j, share) in column.iter().enumerate() {
                    means[if axis.across { j * side + i } else { i * side + j }] += weight * share;
                }
            }
        }
        means
    }

    /// Shares of object in a column's bins.
    fn column(&self, x: usize, rows: &[Bin], shares: &mut [f64]) {
        shares.fill(0.0);
        let height = u64::from(self.size.0);
        let (top, bottom) = (x as u64 * height, (x as u64 + 1) * height);
        let first = self.ends.partition_point(|end| *end <= top);
        let mut from = top;
        for (run, end) in self.ends.iter().enumerate().skip(first) {
            let to = bottom.min(*end);
            // Every second run is object.
            if run % 2 == 1 {
                for (share, bin) in shares.iter_mut().zip(rows) {
                    *share += bin.weight((from - top) as usize, (to - top) as usize);
                }
            }
            from = to;
            if to == bottom {
                break;
            }
        }
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
        let ring: Vec<bool> = (0..64).map(|i| !((2..6).contains(&(i % 8)) && (2..6).contains(&(i / 8)))).collect();
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
            AffineMap::mirror(12.0),
            AffineMap::flip(8.0),
            AffineMap::quarter_turn(8.0),
            AffineMap::scale(2.0, 3.0),
            AffineMap::translate(-1.0, -2.0),
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
    }

    #[test]
    fn a_turn_keeps_the_area_of_runs_and_of_what_is_seen_through_a_window() {
        let rle = Segmentation::Rle(polygons(&[L]).to_rle(8, 12).unwrap());
        for (source, window, expected) in [(polygons(&[L]), true, 9.0), (rle.clone(), true, 9.0), (rle, false, 30.0)] {
            let mut mask = Mask::new(&source, 8, 12).unwrap();
            if window {
                mask.see_through([0.0, 0.0, 12.0, 4.0]);
            }
            mask.change(&AffineMap::scale(4.0, 4.0));
            mask.warp(&AffineMap::turn(0.4).then(&AffineMap::translate(30.0, 4.0)), (64, 80));
            let area = area(&mask.raster(&[0.0, 0.0, 80.0, 80.0], 80)) / 16.0;
            assert!((area - expected).abs() < 0.05 * expected, "{area} {expected}");
            let [x1, y1, x2, y2] = mask.bounds().unwrap();
            assert!((x2 - x1) * (y2 - y1) / 16.0 > expected, "{x1} {y1} {x2} {y2}");
        }
    }

    #[test]
    fn tiny_far_and_hidden_regions_have_masks_too() {
        let mut mask = Mask::new(&polygons(&[L]), 8, 12).unwrap();
        // One pixel inside the object, no pixel at all, a place far away.
        assert_eq!(area(&mask.raster(&[3.0, 2.0, 4.0, 3.0], 28)), 28.0 * 28.0);
        assert_eq!(mask.raster(&[3.0, 2.0, 3.0, 2.0], 28).len(), 28 * 28);
        assert_eq!(area(&mask.raster(&[1e7, 1e7, 1e7, 1e7], 28)), 0.0);
        assert_eq!(mask.draw().pooled(&[11.0, 7.0, 12.0, 8.0], 28, (8, 12)).len(), 28 * 28);
        mask.see_through([0.0, 0.0, 12.0, 4.0]);
        assert_eq!(area(&mask.raster(&[0.0, 0.0, 8.0, 8.0], 8)), 9.0);
        assert!(Mask::new(&polygons(&[&[1.0, 1.0, 2.0, 2.0]]), 8, 12).is_none());
    }
}
