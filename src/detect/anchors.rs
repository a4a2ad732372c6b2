//! Anchor boxes: sizes × ratios at each location of each pyramid level.

use super::boxes::Box4;
use crate::config::AnchorConfig;
use crate::onnx::{Graph, Kind, Value};

/// Makes the anchors of a pyramid.
///
/// A location at row y, column x of a level has its anchors centred at (x · stride, y · stride). Within a level the
/// order is rows, columns, then ratio by ratio the sizes from small to large, as in torchvision and mmdetection.
#[derive(Clone, Debug)]
pub struct AnchorGenerator {
    /// Pixels between locations, one per level; `None`: image size / map size, rounded down.
    strides: Option<Vec<i64>>,
    /// Per level, the anchors of the location at the origin.
    cells: Vec<Vec<Box4>>,
    num_anchors: i64,
}

impl AnchorGenerator {
    /// One level per stride of the config.
    pub fn new(config: &AnchorConfig) -> Self {
        Self {
            strides: (!config.strides_from_image).then(|| config.strides.clone()),
            cells: config.strides.iter().map(|&stride| cell(config, stride)).collect(),
            num_anchors: config.sizes.as_ref().map_or(config.octaves, |sizes| sizes.len() as i64)
                * config.ratios.len() as i64,
        }
    }

    /// Anchors of one location: sizes × ratios.
    pub fn num_anchors(&self) -> i64 {
        self.num_anchors
    }

    /// The anchors of each level, for maps of (height, width) locations under images of `image` = (height, width)
    /// pixels, padding included.
    pub fn anchors(&self, maps: &[(i64, i64)], image: (i64, i64)) -> Vec<Vec<Box4>> {
        self.cells
            .iter()
            .zip(maps)
            .enumerate()
            .map(|(level, (cell, &(height, width)))| {
                let (stride_y, stride_x) = match &self.strides {
                    Some(strides) => (strides[level], strides[level]),
                    None => (image.0 / height.max(1), image.1 / width.max(1)),
                };
                let mut level = Vec::with_capacity((height * width) as usize * cell.len());
                for y in 0..height {
                    for x in 0..width {
                        let (dx, dy) = ((x * stride_x) as f32, (y * stride_y) as f32);
                        level.extend(cell.iter().map(|b| [b[0] + dx, b[1] + dy, b[2] + dx, b[3] + dy]));
                    }
                }
                level
            })
            .collect()
    }
}

impl AnchorGenerator {
    /// Anchors of a level at these indices, int64 `[N, k]`, as nodes of a graph: `[N, k, 4]`. `map` and `image` are
    /// (height, width), int64 `[2]`.
    pub fn onnx(&self, graph: &mut Graph, level: usize, index: &Value, map: &Value, image: &Value) -> Value {
        let count = graph.int(self.num_anchors);
        let (location, cell) = (graph.div(index, &count), graph.op("Mod", &[index, &count], &[]));
        let width = graph.slice(map, 0, 1, 2);
        let (row, column) = (graph.div(&location, &width), graph.op("Mod", &[&location, &width], &[]));
        let stride = match &self.strides {
            Some(strides) => graph.ints(&[strides[level]; 2]),
            None => graph.div(image, map),
        };
        let [y, x] = [(row, 0), (column, 1)].map(|(at, axis)| {
            let stride = graph.slice(&stride, 0, axis, axis + 1);
            let pixels = graph.mul(&at, &stride);
            let pixels = graph.cast(&pixels, Kind::Float);
            graph.unsqueeze(&pixels, &[-1])
        });
        let shift = graph.concat(&[&x, &y, &x, &y], -1);
        let cells: Vec<f32> = self.cells[level].iter().flatten().copied().collect();
        let cells = graph.floats(&cells, &[-1, 4]);
        let cells = graph.gather(&cells, &cell, 0);
        graph.add(&cells, &shift)
    }
}

fn cell(config: &AnchorConfig, stride: i64) -> Vec<Box4> {
    let mut boxes = Vec::new();
    for ratio in &config.ratios {
        for mut size in config.sizes_at(stride) {
            if config.round {
                size = size.floor();
            }
            // torchvision computes in float32; so do we, to round alike.
            let (size, tall) = (size as f32, (*ratio as f32).sqrt());
            let (w, h) = (1.0 / tall * size, tall * size);
            let b = [-w / 2.0, -h / 2.0, w / 2.0, h / 2.0];
            boxes.push(if config.round { b.map(f32::round_ties_even) } else { b });
        }
    }
    boxes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_order_and_centres() {
        let config = AnchorConfig { strides: vec![8], octaves: 1, ..AnchorConfig::default() };
        let anchors = AnchorGenerator::new(&config).anchors(&[(2, 3)], (16, 24)).remove(0);
        assert_eq!(anchors.len(), 2 * 3 * 3);
        // The square anchor of the origin, of its right neighbour and of the one below.
        assert_eq!(anchors[1], [-16.0, -16.0, 16.0, 16.0]);
        assert_eq!(anchors[4], [-8.0, -16.0, 24.0, 16.0]);
        assert_eq!(anchors[10], [-16.0, -8.0, 16.0, 24.0]);
        // Ratio 0.5 is wide.
        let wide = anchors[0];
        assert!(((wide[3] - wide[1]) / (wide[2] - wide[0]) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn torchvision_takes_strides_from_the_image() {
        let config = AnchorConfig { strides_from_image: true, strides: vec![64], ..AnchorConfig::default() };
        let anchors = AnchorGenerator::new(&config).anchors(&[(8, 8)], (480, 480)).remove(0);
        let centre = |b: &Box4| (b[0] + b[2]) / 2.0;
        assert_eq!(centre(&anchors[9]) - centre(&anchors[0]), 60.0);
    }
}
