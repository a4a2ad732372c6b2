//! RoIAlign (He et al., 2017, section 3): maps of regions of any size to grids of one size, without rounding; and the
//! choice of the pyramid level (Lin et al., 2017, "Feature Pyramid Networks", equation 1).

use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::boxes::{area, Box4};
use super::postprocess::sides;
use crate::nn::crossings::{has_kernels, send};
use crate::nn::precision::full_precision;
use crate::onnx::{Attribute, Graph, Kind as OnnxKind, Value};

/// A region of an image of a batch: which image, and where, in pixels of the batch's images.
pub type Roi = (usize, Box4);

/// Pools regions from one map: each bin is the mean of points inside it, each point linear between the four pixels
/// around it.
///
/// torchvision's `roi_align` in numbers. Points more than a pixel outside of the map count as 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoiAlign {
    /// Bins along each side.
    pub size: usize,
    /// Points along each side of a bin; 0: as many as the bin has pixels, begun ones included.
    pub sampling_ratio: u32,
    /// Pixel values belong to the pixels' centres; otherwise to their upper left corners, and regions have at least one
    /// pixel a side.
    pub aligned: bool,
}

/// Pixels along one axis and their weights, for each bin of a region.
struct Taps {
    /// Where the taps of each bin begin, and where the last end.
    starts: Vec<u32>,
    taps: Vec<(u32, f32)>,
}

impl Taps {
    fn of(&self, bin: usize) -> &[(u32, f32)] {
        &self.taps[self.starts[bin] as usize..self.starts[bin + 1] as usize]
    }
}

impl RoiAlign {
    /// `map` `[B, C, H, W]`, with `scale` of its pixels per pixel of the images, to float32 `[R, C, size, size]`;
    /// gradients go to the map.
    ///
    /// A bin is a weighted sum of few pixels, so the whole is a sum over rows of `[B·H·W, C]`: libtorch's
    /// `embedding_bag` with weights, which has the gradient, too. A map in channels-last memory is used as it lies.
    pub fn pool(&self, map: &Tensor, rois: &[Roi], scale: f32) -> Tensor {
        let size = map.size();
        let (channels, height, width) = (size[1], size[2] as usize, size[3] as usize);
        let side = self.size as i64;
        let shape = [rois.len() as i64, side, side, channels];
        if !has_kernels(map.device()) && self.sampling_ratio > 0 && !rois.is_empty() {
            return self.pool_by_tensors(map, rois, scale).view(shape).permute([0, 3, 1, 2]);
        }
        let bins = self.size * self.size;
        let parts: Vec<(Vec<i64>, Vec<f32>, Vec<i64>)> = rois
            .par_iter()
            .map(|(image, b)| {
                let rows = self.taps(b[1] * scale, b[3] * scale, height);
                let columns = self.taps(b[0] * scale, b[2] * scale, width);
                let first = (image * height * width) as i64;
                let mut index = Vec::with_capacity(rows.taps.len() * columns.taps.len());
                let mut weights = Vec::with_capacity(index.capacity());
                let mut ends = Vec::with_capacity(bins);
                for row in 0..self.size {
                    for column in 0..self.size {
                        for (y, wy) in rows.of(row) {
                            for (x, wx) in columns.of(column) {
                                index.push(first + i64::from(*y) * width as i64 + i64::from(*x));
                                weights.push(wy * wx);
                            }
                        }
                        ends.push(index.len() as i64);
                    }
                }
                (index, weights, ends)
            })
            .collect();
        let total: usize = parts.iter().map(|p| p.0.len()).sum();
        if total == 0 {
            return Tensor::zeros(shape, (Kind::Float, map.device())).permute([0, 3, 1, 2]);
        }
        let (mut index, mut weights) = (Vec::with_capacity(total), Vec::with_capacity(total));
        let mut offsets = Vec::with_capacity(rois.len() * bins + 1);
        offsets.push(0);
        for (i, w, ends) in &parts {
            let before = index.len() as i64;
            index.extend_from_slice(i);
            weights.extend_from_slice(w);
            offsets.extend(ends.iter().map(|end| before + end));
        }
        let table = full_precision(map).permute([0, 2, 3, 1]).reshape([-1, channels]);
        let device = map.device();
        let (pooled, ..) = Tensor::embedding_bag(
            &table,
            &send(&index, device),
            &send(&offsets, device),
            false,
            0,
            false,
            Some(&send(&weights, device)),
            true,
        );
        pooled.view(shape).permute([0, 3, 1, 2])
    }

    /// [`RoiAlign::pool`] with taps that are made on the map's device: `[R · size², C]`. All regions have as many.
    fn pool_by_tensors(&self, map: &Tensor, rois: &[Roi], scale: f32) -> Tensor {
        let (size, device) = (map.size(), map.device());
        let corners: Vec<f32> = rois.iter().flat_map(|roi| roi.1).collect();
        let corners = send(&corners, device).view([-1, 4]) * f64::from(scale);
        let images: Vec<i64> = rois.iter().map(|roi| roi.0 as i64 * size[2] * size[3]).collect();
        let first = send(&images, device).view([-1, 1, 1, 1, 1]);
        let axis = |from: i64, pixels: i64| {
            let (index, weight) = self.tensor_taps(&corners.select(1, from), &corners.select(1, from + 2), pixels);
            // [R, 1, size, 1, taps]
            [index, weight].map(|taps| taps.unsqueeze(1).unsqueeze(3))
        };
        let [columns, across] = axis(0, size[3]);
        let [rows, down] = axis(1, size[2]).map(|taps| taps.permute([0, 2, 1, 4, 3]));
        let index = (rows * size[3] + columns + first).flatten(0, -1);
        let weights = (down * across).flatten(0, -1);
        let taps = 4 * i64::from(self.sampling_ratio).pow(2);
        let offsets = Tensor::arange_start_step(0, index.numel() as i64 + 1, taps, (Kind::Int64, device));
        let table = full_precision(map).permute([0, 2, 3, 1]).reshape([-1, size[1]]);
        Tensor::embedding_bag(&table, &index, &offsets, false, 0, false, Some(&weights), true).0
    }

    /// As [`RoiAlign::taps`], of all regions: pixels, int64, and weights, `[R, size, 2 · sampling_ratio]`.
    fn tensor_taps(&self, start: &Tensor, end: &Tensor, pixels: i64) -> (Tensor, Tensor) {
        let offset = if self.aligned { 0.5 } else { 0.0 };
        let (start, end) = (start - offset, end - offset);
        let length = if self.aligned { end - &start } else { (end - &start).clamp_min(1.0) };
        let count = i64::from(self.sampling_ratio);
        let bin = (length / self.size as f64).view([-1, 1, 1]);
        let number = |count: i64| Tensor::arange(count, (Kind::Float, start.device()));
        let points = (number(count) + 0.5).view([1, 1, -1]) * &bin / count as f64;
        let at = start.view([-1, 1, 1]) + number(self.size as i64).view([1, -1, 1]) * bin + points;
        let inside = at.ge(-1.0).logical_and(&at.le(pixels as f64)).to_kind(Kind::Float) / count as f64;
        let at = at.clamp(0.0, (pixels - 1) as f64);
        let low = at.floor();
        let next = (at - &low).unsqueeze(3);
        let weight = Tensor::cat(&[1.0 - &next, next], 3) * inside.unsqueeze(3);
        let low = low.to_kind(Kind::Int64);
        let index = Tensor::stack(&[&low, &(&low + 1).clamp_max(pixels - 1)], 3);
        (index.flatten(2, 3), weight.flatten(2, 3))
    }

    /// The taps of a region that reaches from `start` to `end` on an axis of `pixels` pixels, in pixels of the map.
    fn taps(&self, start: f32, end: f32, pixels: usize) -> Taps {
        let offset = if self.aligned { 0.5 } else { 0.0 };
        let (start, end) = (start - offset, end - offset);
        let length = if self.aligned { end - start } else { (end - start).max(1.0) };
        let bin = length / self.size as f32;
        let count = match self.sampling_ratio {
            0 => bin.ceil().max(0.0) as usize,
            ratio => ratio as usize,
        };
        let fraction = 1.0 / count.max(1) as f32;
        let mut out = Taps { starts: vec![0], taps: Vec::with_capacity(self.size * (count + 1)) };
        for b in 0..self.size {
            let from = out.taps.len();
            for i in 0..count {
                let at = start + b as f32 * bin + (i as f32 + 0.5) * bin / count as f32;
                if !(-1.0..=pixels as f32).contains(&at) {
                    continue;
                }
                let at = at.max(0.0);
                let low = at as usize;
                let mut add = |pixel: usize, weight: f32| {
                    let pixel = pixel as u32;
                    // Points rise, so a pixel that is there already is one of the last two.
                    match out.taps[from..].iter_mut().rev().take(2).find(|tap| tap.0 == pixel) {
                        Some(tap) => tap.1 += weight * fraction,
                        None if weight != 0.0 => out.taps.push((pixel, weight * fraction)),
                        None => {}
                    }
                };
                if low + 1 >= pixels {
                    add(pixels - 1, 1.0);
                } else {
                    let next = at - low as f32;
                    add(low, 1.0 - next);
                    add(low + 1, next);
                }
            }
            out.starts.push(out.taps.len() as u32);
        }
        out
    }
}

/// Pools each region from the pyramid level that fits its size.
#[derive(Clone, Debug, PartialEq)]
pub struct RoiPooler {
    /// How it is pooled.
    pub align: RoiAlign,
    /// Pixels of the image per pixel of each level, fine to coarse.
    pub strides: Vec<i64>,
    /// √area, in pixels, of regions that go to `canonical_level`.
    pub canonical_size: f32,
    /// Level for regions of `canonical_size`, counted as in P2, P3, …
    pub canonical_level: i64,
}

impl RoiPooler {
    /// Index of the level for a box: k0 + log2(√area / `canonical_size`), rounded down, limited to those there are. Of
    /// levels with one stride it is the first.
    pub fn level(&self, b: &Box4) -> usize {
        let number = |stride: Option<&i64>| stride.map_or(0, |stride| i64::from(stride.ilog2()));
        let (first, last) = (number(self.strides.first()), number(self.strides.last()));
        let level = self.canonical_level as f32 + (area(b).sqrt() / self.canonical_size).log2();
        // What torchvision adds against rounding.
        let level = (level + 1e-6).floor().clamp(first as f32, last as f32);
        (level as i64 - first) as usize
    }

    /// Levels `[B, C, H_i, W_i]`, as many as there are strides (more are passed over), to `[R, C, size, size]`.
    pub fn pool(&self, levels: &[Tensor], rois: &[Roi]) -> Tensor {
        let mut pooled = Vec::new();
        // Where each region comes among the pooled ones.
        let (mut rank, mut done) = (vec![0i64; rois.len()], 0);
        let of: Vec<usize> = rois.iter().map(|roi| self.level(&roi.1)).collect();
        for (l, (level, &stride)) in levels.iter().zip(&self.strides).enumerate() {
            let own: Vec<usize> = (0..rois.len()).filter(|&i| of[i] == l).collect();
            if own.is_empty() {
                continue;
            }
            let here: Vec<Roi> = own.iter().map(|&i| rois[i]).collect();
            pooled.push(self.align.pool(level, &here, 1.0 / stride as f32));
            for i in own {
                rank[i] = done;
                done += 1;
            }
        }
        match pooled.len() {
            0 => {
                let side = self.align.size as i64;
                Tensor::zeros([0, levels[0].size()[1], side, side], (Kind::Float, levels[0].device()))
            }
            // One level has all of them, in their order.
            1 => pooled.remove(0),
            _ => {
                let rank = send(&rank, levels[0].device());
                let rows = |t: &Tensor| t.permute([0, 2, 3, 1]);
                let all = Tensor::cat(&pooled.iter().map(rows).collect::<Vec<_>>(), 0);
                all.index_select(0, &rank).permute([0, 3, 1, 2])
            }
        }
    }
}

/// Regions that were pooled as nodes of a graph: level by level, and those that are not there left out.
#[derive(Debug)]
pub struct OnnxPooled {
    /// `[V, C, size, size]`
    pub features: Value,
    /// int64 `[V, 1]`: the place of each among all N·R.
    pub places: Value,
}

impl RoiPooler {
    /// [`RoiPooler::pool`] as nodes of a graph, for regions `[N, R, 4]` of which some are there, bool `[N, R]`.
    pub fn onnx(&self, graph: &mut Graph, levels: &[Value], rois: &Value, there: &Value) -> OnnxPooled {
        let number = |stride: Option<&i64>| stride.map_or(0, |stride| i64::from(stride.ilog2()));
        let (first, last) = (number(self.strides.first()), number(self.strides.last()));
        let sides = sides(graph, rois).map(|side| graph.at_least(&side, 0.0));
        let area = graph.mul(&sides[0], &sides[1]);
        let size = graph.unary("Sqrt", &area);
        // The level rises by one wherever its formula reaches a whole number; it has 1e-6 added against rounding.
        let reached: Vec<Value> = (first + 1..=last)
            .map(|level| {
                let octaves = (level - self.canonical_level) as f64 - 1e-6;
                let least = f64::from(self.canonical_size) * octaves.exp2();
                let reached = graph.is_number("GreaterOrEqual", &size, least);
                graph.cast(&reached, OnnxKind::Int64)
            })
            .collect();
        let zero = graph.int(0);
        let of = reached.iter().fold(zero, |sum, reached| graph.add(reached, &sum));
        let of = graph.or_number(there, &of, -1.0);
        let of = graph.reshape(&of, &[-1]);
        let per_image = graph.shape(rois, 1, 2);
        let rois = graph.reshape(rois, &[-1, 4]);
        let (mut pooled, mut places) = (Vec::new(), Vec::new());
        for (l, (level, &stride)) in levels.iter().zip(&self.strides).enumerate() {
            let own = graph.is_number("Equal", &of, l as f64);
            let own = graph.node_as(OnnxKind::Int64, "NonZero", &[&own], &[]);
            let place = graph.reshape(&own, &[-1]);
            let here = graph.gather(&rois, &place, 0);
            let image = graph.div(&place, &per_image);
            let level = graph.full(level);
            let mode = if self.align.aligned { "half_pixel" } else { "output_half_pixel" };
            let side = self.align.size as i64;
            let attributes = [
                ("coordinate_transformation_mode", Attribute::Text(mode)),
                ("mode", Attribute::Text("avg")),
                ("output_height", Attribute::Int(side)),
                ("output_width", Attribute::Int(side)),
                ("sampling_ratio", Attribute::Int(self.align.sampling_ratio.into())),
                ("spatial_scale", Attribute::Float(1.0 / stride as f64)),
            ];
            pooled.push(graph.op("RoiAlign", &[&level, &here, &image], &attributes));
            places.push(graph.unsqueeze(&place, &[1]));
        }
        let [features, places] = [pooled, places].map(|values| graph.concat(&values.iter().collect::<Vec<_>>(), 0));
        OnnxPooled { features, places }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::crossings::without_kernels;
    use tch::Device;

    fn ramp(height: i64, width: i64) -> Tensor {
        // Value x + 100·y at pixel (x, y).
        let x = Tensor::arange(width, (Kind::Float, Device::Cpu)).view([1, width]);
        let y = Tensor::arange(height, (Kind::Float, Device::Cpu)).view([height, 1]) * 100.0;
        (x + y).view([1, 1, height, width])
    }

    #[test]
    fn a_plane_is_pooled_to_its_values_at_the_bins_centres() {
        let align = RoiAlign { size: 2, sampling_ratio: 2, aligned: true };
        let found = align.pool(&ramp(10, 12), &[(0, [4.0, 2.0, 8.0, 6.0])], 1.0);
        let found = Vec::<f32>::try_from(found.reshape([-1])).unwrap();
        // Centres (5, 3), (7, 3), (5, 5), (7, 5); a pixel's value lies half a pixel inside it.
        let expected = [4.5 + 250.0, 6.5 + 250.0, 4.5 + 450.0, 6.5 + 450.0];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3), "{found:?}");
        let corner = RoiAlign { aligned: false, ..align }.pool(&ramp(10, 12), &[(0, [4.0, 2.0, 8.0, 6.0])], 1.0);
        assert!((corner.double_value(&[0, 0, 0, 0]) - 305.0).abs() < 1e-3);
    }

    #[test]
    fn regions_of_no_size_at_the_border_and_outside_are_pooled() {
        // Above zero everywhere: what is outside is told from the first pixel.
        let map = (ramp(6, 6) + 1.0).set_requires_grad(true);
        for aligned in [false, true] {
            for sampling_ratio in [0, 2] {
                let align = RoiAlign { size: 3, sampling_ratio, aligned };
                let rois = [
                    (0, [2.0, 2.0, 2.0, 2.0]),
                    (0, [0.0, 0.0, 1.0, 1.0]),
                    (0, [5.0, 5.0, 6.0, 6.0]),
                    (0, [-50.0, -50.0, -40.0, -40.0]),
                ];
                let found = align.pool(&map, &rois, 1.0);
                assert_eq!(found.size(), [4, 1, 3, 3]);
                assert_eq!(found.get(3).abs().max().double_value(&[]), 0.0);
                assert!((found.get(2).min().double_value(&[]) - 505.0).abs() < 60.0);
                found.sum(Kind::Float).backward();
                assert!(map.grad().isfinite().all().int64_value(&[]) == 1);
            }
        }
        let none = RoiAlign { size: 3, sampling_ratio: 2, aligned: true }.pool(&map, &[], 1.0);
        assert_eq!(none.size(), [0, 1, 3, 3]);
    }

    #[test]
    fn tensor_operations_pool_as_the_taps_of_the_cpu_do() {
        let values = (Tensor::arange(2 * 3 * 9 * 14, (Kind::Float, Device::Cpu)) * 0.7).sin().view([2, 3, 9, 14]);
        let rois = [
            (0, [3.0, 4.0, 41.5, 30.25]),
            (1, [-9.0, 20.0, 70.0, 60.0]),
            (1, [50.0, 30.0, 56.0, 36.0]),
            (0, [7.0, 7.0, 7.0, 7.0]),
            (0, [-90.0, -50.0, -80.0, -40.0]),
        ];
        for (aligned, sampling_ratio, size) in [(true, 2, 3), (false, 2, 7), (true, 3, 2)] {
            let align = RoiAlign { size, sampling_ratio, aligned };
            let run = || {
                let map = values.copy().set_requires_grad(true);
                let pooled = align.pool(&map, &rois, 0.25);
                (&pooled * pooled.detach().cos()).sum(Kind::Float).backward();
                (pooled.detach(), map.grad())
            };
            let (expected, found) = (run(), without_kernels(run));
            let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
            assert!(apart(&expected.0, &found.0) < 1e-5, "{align:?}");
            assert!(apart(&expected.1, &found.1) < 1e-4, "{align:?}");
            assert!(expected.0.abs().max().double_value(&[]) > 0.5);
        }
    }

    #[test]
    fn levels_follow_the_size_and_the_order_of_the_regions_stays() {
        let pooler = RoiPooler {
            align: RoiAlign { size: 1, sampling_ratio: 2, aligned: true },
            strides: vec![4, 8, 16, 32],
            canonical_size: 224.0,
            canonical_level: 4,
        };
        let square = |side: f32| [0.0, 0.0, side, side];
        for (side, level) in [(1.0, 0), (111.9, 0), (112.0, 1), (223.9, 1), (224.0, 2), (448.0, 3), (5000.0, 3)] {
            assert_eq!(pooler.level(&square(side)), level, "{side}");
        }
        // Each level has its number for a value.
        let levels: Vec<Tensor> =
            (0..5).map(|l| Tensor::full([2, 3, 160, 160], l as f64, (Kind::Float, Device::Cpu))).collect();
        let coarse = RoiPooler { strides: vec![32, 32], ..pooler.clone() };
        assert_eq!([1.0, 300.0, 5000.0].map(|side| coarse.level(&square(side))), [0; 3]);
        let rois = [(1, square(500.0)), (0, square(30.0)), (0, square(230.0)), (1, square(31.0)), (0, square(120.0))];
        let found = pooler.pool(&levels, &rois);
        assert_eq!(found.size(), [5, 3, 1, 1]);
        let found = Vec::<f32>::try_from(found.select(1, 2).reshape([-1])).unwrap();
        assert_eq!(found, [3.0, 0.0, 2.0, 0.0, 1.0]);
        assert_eq!(pooler.pool(&levels, &[]).size(), [0, 3, 1, 1]);
    }
}
