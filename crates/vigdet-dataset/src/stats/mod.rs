//! Counts, sizes, shapes, crowding and positions.

mod histogram;
#[cfg(feature = "plots")]
mod page;
mod told;

pub use histogram::Histogram;
#[cfg(feature = "plots")]
pub use page::{png, svg};
pub use told::lines;

use crate::check::scale;
use crate::geometry::greatest_ious;
use crate::types::{Import, Split};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use vigdet_coco::types::Annotation;

/// Parts of 100 at which distributions are told.
pub const PERCENTILES: [u32; 5] = [0, 10, 50, 90, 100];
/// An object is crowded by so much where its greatest IoU with another object of the image is above it.
pub const OVERLAPS: [f64; 3] = [0.1, 0.3, 0.5];
/// Positions are told in so many rows and columns.
pub const GRID: usize = 15;

/// What a split holds. Crowds count as crowds alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// Its name.
    pub split: String,
    /// Images.
    pub images: usize,
    /// Images without an object.
    pub images_without_objects: usize,
    /// Objects.
    pub objects: usize,
    /// Objects with an outline.
    pub with_outline: usize,
    /// Crowds.
    pub crowds: usize,
    /// Objects of each class, in the order of the classes.
    pub classes: Vec<(String, usize)>,
    /// Shorter sides of the images, in pixels, at [`PERCENTILES`].
    pub image_short_side: [f64; 5],
    /// √(width · height) of the boxes in pixels.
    pub size: [f64; 5],
    /// The same after resizing.
    pub size_resized: [f64; 5],
    /// Shares of objects below 32, 32 to 96, and above 96 pixels after resizing.
    pub small_medium_large: [f64; 3],
    /// Height over width.
    pub aspect: [f64; 5],
    /// Objects of an image.
    pub objects_per_image: [f64; 5],
    /// The share of objects that another overlaps by an IoU above each of [`OVERLAPS`].
    pub overlapped: [f64; 3],
    /// Shares of objects by where their centre lies: the image cut into [`GRID`] rows of [`GRID`] places.
    pub positions: Vec<Vec<f64>>,
    /// As `size`: ranges of half an octave.
    pub sizes: Histogram,
    /// As `size_resized`: ranges of half an octave.
    pub sizes_resized: Histogram,
    /// As `aspect`: ranges of half an octave, one of them around 1.
    pub aspects: Histogram,
    /// As `objects_per_image`: 0, 1, 2, then ranges that double.
    pub images_by_objects: Histogram,
}

/// Statistics of each split; images resized as training does: the shorter side to `size.0`, unless the longer one then
/// exceeds `size.1`.
pub fn stats(import: &Import, size: (u32, u32)) -> Vec<Stats> {
    import.splits.iter().map(|split| of_split(split, size)).collect()
}

fn of_split(split: &Split, (short, long): (u32, u32)) -> Stats {
    let dataset = &split.dataset;
    let mut objects: HashMap<i64, Vec<&Annotation>> = HashMap::new();
    for annotation in dataset.annotations.iter().filter(|annotation| !annotation.iscrowd) {
        objects.entry(annotation.image_id).or_default().push(annotation);
    }
    let (mut sizes, mut resized, mut aspects) = (Vec::new(), Vec::new(), Vec::new());
    let (mut counts, mut sides) = (Vec::new(), Vec::new());
    let (mut greatest, mut positions) = (Vec::new(), vec![vec![0.0; GRID]; GRID]);
    let mut classes: BTreeMap<i64, usize> = BTreeMap::new();
    for image in &dataset.images {
        let of_image = objects.get(&image.id).map_or(&[][..], Vec::as_slice);
        counts.push(of_image.len() as f64);
        let (width, height) = (f64::from(image.width), f64::from(image.height));
        sides.push(width.min(height));
        let has_extent = |[_, _, w, h]: &[f64; 4]| *w > 0.0 && *h > 0.0;
        let boxes: Vec<[f64; 4]> = of_image.iter().map(|object| object.bbox).filter(has_extent).collect();
        greatest.extend(greatest_ious(&boxes));
        for object in of_image {
            *classes.entry(object.category_id).or_default() += 1;
            let [x, y, w, h] = object.bbox;
            if !has_extent(&object.bbox) {
                continue;
            }
            sizes.push((w * h).sqrt());
            aspects.push(h / w);
            if width > 0.0 && height > 0.0 {
                resized.push((w * h).sqrt() * scale(width, height, short, long));
                let place = |centre: f64, side: f64| {
                    let place = (centre / side * GRID as f64).max(0.0) as usize;
                    place.min(GRID - 1)
                };
                positions[place(y + h / 2.0, height)][place(x + w / 2.0, width)] += 1.0;
            }
        }
    }
    let all: usize = classes.values().sum();
    let share = |count: f64| if all == 0 { 0.0 } else { count / all as f64 };
    let within = |low: f64, high: f64| resized.iter().filter(|size| **size >= low && **size < high).count() as f64;
    Stats {
        split: split.name.clone(),
        images: dataset.images.len(),
        images_without_objects: counts.iter().filter(|count| **count == 0.0).count(),
        objects: all,
        with_outline: dataset.annotations.iter().filter(|a| !a.iscrowd && a.segmentation.is_some()).count(),
        crowds: dataset.annotations.iter().filter(|annotation| annotation.iscrowd).count(),
        classes: dataset
            .categories
            .iter()
            .map(|category| (category.name.clone(), classes.get(&category.id).copied().unwrap_or(0)))
            .collect(),
        small_medium_large: [within(0.0, 32.0), within(32.0, 96.0), within(96.0, f64::INFINITY)].map(share),
        sizes: Histogram::of_sizes(&sizes),
        sizes_resized: Histogram::of_sizes(&resized),
        aspects: Histogram::of_aspects(&aspects),
        images_by_objects: Histogram::of_counts(&counts),
        image_short_side: percentiles(sides),
        size: percentiles(sizes),
        size_resized: percentiles(resized),
        aspect: percentiles(aspects),
        objects_per_image: percentiles(counts),
        overlapped: OVERLAPS.map(|least| share(greatest.iter().filter(|&&iou| iou > least).count() as f64)),
        positions: positions.into_iter().map(|row| row.into_iter().map(share).collect()).collect(),
    }
}

/// The values at [`PERCENTILES`]; all 0 without values.
fn percentiles(mut values: Vec<f64>) -> [f64; 5] {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    PERCENTILES.map(|p| values.get((f64::from(p) / 100.0 * last).round() as usize).copied().unwrap_or(0.0))
}

/// The names of the classes of all splits, each once, in the order of the first split that has it.
pub(crate) fn classes(stats: &[Stats]) -> Vec<&str> {
    let mut seen = HashSet::new();
    let names = stats.iter().flat_map(|stats| &stats.classes).map(|(name, _)| name.as_str());
    names.filter(|name| seen.insert(*name)).collect()
}

impl Stats {
    /// How many objects a class has.
    pub fn objects_of(&self, class: &str) -> usize {
        self.classes.iter().filter(|(name, _)| name == class).map(|(_, count)| count).sum()
    }

    /// Shares of objects by where their centre lies: thirds of the image, row by row.
    pub fn thirds(&self) -> [f64; 9] {
        let mut thirds = [0.0; 9];
        for (row, shares) in self.positions.iter().enumerate() {
            for (column, share) in shares.iter().enumerate() {
                thirds[3 * (3 * row / GRID) + 3 * column / GRID] += share;
            }
        }
        thirds
    }
}
