//! Non-maximum suppression, class by class.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use rayon::prelude::*;

use super::boxes::{area, intersection, Box4};

/// Classes with fewer boxes are compared box by box: a grid costs more than it saves.
const SMALL: usize = 192;
/// Thresholds for which boxes that suppress each other are so alike in size and position that a grid finds them.
const GRID: std::ops::RangeInclusive<f64> = 0.2..=0.95;

/// Indices of the boxes that stay, best first.
///
/// Going from the highest score down, a box stays unless a box of the same class that stayed overlaps it by an IoU
/// above `threshold`. Of equal scores the earlier box goes first.
pub fn batched_nms(boxes: &[Box4], scores: &[f32], labels: &[i64], threshold: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut indices: HashMap<i64, usize> = HashMap::new();
    let mut classes: Vec<Vec<usize>> = Vec::new();
    for (rank, &i) in order.iter().enumerate() {
        let index = *indices.entry(labels[i]).or_insert(classes.len());
        if index == classes.len() {
            classes.push(Vec::new());
        }
        classes[index].push(rank);
    }
    let mut kept: Vec<usize> =
        classes.into_par_iter().flat_map_iter(|ranks| suppress(boxes, &order, ranks, threshold)).collect();
    kept.sort_unstable();
    kept.into_iter().map(|rank| order[rank]).collect()
}

/// The ranks of one class that stay.
fn suppress(boxes: &[Box4], order: &[usize], mut ranks: Vec<usize>, threshold: f64) -> Vec<usize> {
    if ranks.len() < SMALL || !GRID.contains(&threshold) {
        let mut kept: Vec<(Box4, f32)> = Vec::new();
        ranks.retain(|&rank| {
            let (b, own) = (&boxes[order[rank]], area(&boxes[order[rank]]));
            let free = kept.iter().all(|other| !duplicate(b, own, other, threshold));
            if free {
                kept.push((*b, own));
            }
            free
        });
        return ranks;
    }
    let mut grid = Grid::new(threshold);
    ranks.retain(|&rank| grid.keep(&boxes[order[rank]], threshold));
    ranks
}

/// Whether IoU is above the threshold; written so that empty boxes stay.
fn duplicate(b: &Box4, own: f32, (other, other_area): &(Box4, f32), threshold: f64) -> bool {
    let shared = intersection(b, other);
    shared > 0.0 && f64::from(shared / (own + other_area - shared)) > threshold
}

/// The boxes that stayed, by size and position.
///
/// An IoU above t needs widths within a factor of t of each other, heights too, and centres that are no further apart
/// than (1 − t) of the larger side. So sizes are put into classes that are a factor 1/t wide, of which only the
/// neighbours matter, and in each class centres into cells as large as its largest side.
struct Grid {
    /// ln(1 / t), a little more for rounding.
    step: f64,
    /// 1 − t, a little more for rounding.
    reach: f64,
    cells: HashMap<[i32; 4], Vec<(Box4, f32)>, BuildHasherDefault<CellHasher>>,
}

impl Grid {
    fn new(threshold: f64) -> Self {
        let least = threshold * 0.999;
        Self { step: (1.0 / least).ln(), reach: 1.0 - least, cells: HashMap::default() }
    }

    /// Puts a box in unless one that is there suppresses it.
    fn keep(&mut self, b: &Box4, threshold: f64) -> bool {
        let own = area(b);
        let [x1, y1, x2, y2] = b.map(f64::from);
        let (width, height) = (x2 - x1, y2 - y1);
        let (x, y) = ((x1 + x2) / 2.0, (y1 + y2) / 2.0);
        if !(width > 0.0 && height > 0.0 && own.is_finite()) {
            // It shares no area with any other box.
            return true;
        }
        let class = |side: f64| (side.ln() / self.step).floor() as i32;
        let cell = |class: i32| (f64::from(class + 1) * self.step).exp();
        let (wide, tall) = (class(width), class(height));
        for w in wide - 1..=wide + 1 {
            let side = cell(w);
            let far = self.reach * width.max(side);
            let columns = ((x - far) / side).floor() as i32..=((x + far) / side).floor() as i32;
            for h in tall - 1..=tall + 1 {
                let side = cell(h);
                let far = self.reach * height.max(side);
                let rows = ((y - far) / side).floor() as i32..=((y + far) / side).floor() as i32;
                for column in columns.clone() {
                    for row in rows.clone() {
                        let Some(kept) = self.cells.get(&[w, h, column, row]) else { continue };
                        if kept.iter().any(|other| duplicate(b, own, other, threshold)) {
                            return false;
                        }
                    }
                }
            }
        }
        let column = |at: f64, class: i32| (at / cell(class)).floor() as i32;
        let key = [wide, tall, column(x, wide), column(y, tall)];
        self.cells.entry(key).or_default().push((*b, own));
        true
    }
}

/// Mixes four small numbers; the standard hasher takes most of the time here.
#[derive(Default)]
struct CellHasher(u64);

impl Hasher for CellHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.0 = (self.0 ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn only_boxes_of_one_class_suppress_each_other() {
        let boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 9.0, 10.0], [20.0, 0.0, 30.0, 10.0]];
        let scores = [0.6, 0.9, 0.8, 0.1];
        assert_eq!(batched_nms(&boxes, &scores, &[0, 0, 0, 0], 0.5), [1, 3]);
        assert_eq!(batched_nms(&boxes, &scores, &[0, 0, 1, 0], 0.5), [1, 2, 3]);
    }

    #[test]
    fn the_threshold_itself_stays() {
        let boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]];
        assert_eq!(batched_nms(&boxes, &[0.9, 0.8], &[0, 0], 0.5).len(), 2);
        assert_eq!(batched_nms(&boxes, &[0.9, 0.8], &[0, 0], 0.49).len(), 1);
    }

    /// Many boxes of all sizes, many of them alike: the grid must find every pair that a comparison of all with all
    /// finds.
    #[test]
    fn many_boxes_are_suppressed_as_if_all_were_compared() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut boxes: Vec<Box4> = Vec::new();
        for _ in 0..6000 {
            let b = if !boxes.is_empty() && rng.random_bool(0.7) {
                let like: Box4 = boxes[rng.random_range(0..boxes.len())];
                let mut shift = |i: usize| like[i] + rng.random_range(-0.25..0.25) * (like[2] - like[0]);
                [shift(0), shift(1), shift(2), shift(3)]
            } else {
                let side = |rng: &mut rand_chacha::ChaCha8Rng| 2f32.powf(rng.random_range(0.0..9.0));
                let (x, y) = (rng.random_range(0.0..800.0), rng.random_range(0.0..800.0));
                [x, y, x + side(&mut rng), y + side(&mut rng)]
            };
            boxes.push(b);
        }
        boxes[17] = [5.0, 5.0, 5.0, 9.0];
        boxes[18] = boxes[17];
        boxes[20] = [9.0, 9.0, 3.0, 3.0];
        let scores: Vec<f32> = (0..boxes.len()).map(|_| rng.random_range(0..500) as f32 / 500.0).collect();
        let labels = vec![3; boxes.len()];
        for threshold in [0.2, 0.3, 0.5, 0.7, 0.95, 0.1] {
            let mut order: Vec<usize> = (0..boxes.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            let mut kept: Vec<usize> = Vec::new();
            for i in order {
                let own = (boxes[i], area(&boxes[i]));
                if !kept.iter().any(|&k| duplicate(&boxes[k], area(&boxes[k]), &own, threshold)) {
                    kept.push(i);
                }
            }
            assert!(kept.len() > SMALL && kept.len() < boxes.len(), "{threshold}: {}", kept.len());
            assert_eq!(batched_nms(&boxes, &scores, &labels, threshold), kept, "{threshold}");
        }
    }
}
