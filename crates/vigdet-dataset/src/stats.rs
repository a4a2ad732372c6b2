//! Counts, sizes and shapes.

use crate::check::scale;
use crate::geometry::iou;
use crate::types::{Import, Split};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use vigdet_coco::types::Annotation;

/// Parts of 100 at which distributions are told.
pub const PERCENTILES: [u32; 5] = [0, 10, 50, 90, 100];

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
    /// The share of objects that another overlaps by an IoU above 0.3.
    pub crowded: f64,
    /// Shares of objects by where their centre lies: thirds of the image, row by row.
    pub positions: [f64; 9],
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
    let (mut crowded, mut positions) = (0, [0.0; 9]);
    let mut classes: BTreeMap<i64, usize> = BTreeMap::new();
    for image in &dataset.images {
        let of_image = objects.get(&image.id).map_or(&[][..], Vec::as_slice);
        counts.push(of_image.len() as f64);
        let (width, height) = (f64::from(image.width), f64::from(image.height));
        sides.push(width.min(height));
        for object in of_image {
            *classes.entry(object.category_id).or_default() += 1;
            let [x, y, w, h] = object.bbox;
            if !(w > 0.0 && h > 0.0) {
                continue;
            }
            sizes.push((w * h).sqrt());
            aspects.push(h / w);
            if width > 0.0 && height > 0.0 {
                resized.push((w * h).sqrt() * scale(width, height, short, long));
                let third = |centre: f64, side: f64| (3.0 * centre / side).clamp(0.0, 2.0) as usize;
                positions[3 * third(y + h / 2.0, height) + third(x + w / 2.0, width)] += 1.0;
            }
            let overlaps = |other: &&Annotation| !std::ptr::eq(*other, *object) && iou(other.bbox, object.bbox) > 0.3;
            crowded += usize::from(of_image.iter().any(overlaps));
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
        image_short_side: percentiles(sides),
        size: percentiles(sizes),
        size_resized: percentiles(resized),
        aspect: percentiles(aspects),
        objects_per_image: percentiles(counts),
        crowded: share(crowded as f64),
        positions: positions.map(share),
    }
}

/// The values at [`PERCENTILES`]; all 0 without values.
fn percentiles(mut values: Vec<f64>) -> [f64; 5] {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    PERCENTILES.map(|p| values.get((f64::from(p) / 100.0 * last).round() as usize).copied().unwrap_or(0.0))
}

/// Statistics as tables for people.
pub fn lines(stats: &[Stats]) -> Vec<String> {
    let titles = |first: &str, others: &[&str]| {
        std::iter::once(first).chain(others.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
    };
    let names: Vec<&str> = stats.iter().map(|stats| stats.split.as_str()).collect();
    let row = |title: &str, of: &dyn Fn(&Stats) -> String| {
        std::iter::once(title.to_owned()).chain(stats.iter().map(of)).collect::<Vec<_>>()
    };
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut rows = vec![titles("", &names)];
    rows.push(row("images", &|s| s.images.to_string()));
    rows.push(row("  without objects", &|s| s.images_without_objects.to_string()));
    rows.push(row("objects", &|s| s.objects.to_string()));
    rows.push(row("  with an outline", &|s| s.with_outline.to_string()));
    rows.push(row("  overlapped (IoU > 0.3)", &|s| percent(s.crowded)));
    rows.push(row("crowds", &|s| s.crowds.to_string()));
    for (i, range) in ["below 32", "32 to 96", "above 96"].iter().enumerate() {
        rows.push(row(&format!("  {range} pixels, resized"), &|s| percent(s.small_medium_large[i])));
    }
    let mut lines = crate::table::lines(&rows);
    lines.push(String::new());
    let mut classes: Vec<&str> = Vec::new();
    for (name, _) in stats.iter().flat_map(|stats| &stats.classes) {
        if !classes.contains(&name.as_str()) {
            classes.push(name);
        }
    }
    let mut rows = vec![titles("class", &names)];
    for class in classes {
        let count =
            |s: &Stats| s.classes.iter().filter(|(name, _)| name == class).map(|(_, count)| count).sum::<usize>();
        rows.push(row(class, &|s| count(s).to_string()));
    }
    lines.extend(crate::table::lines(&rows));
    for stats in stats {
        lines.push(String::new());
        let mut rows = vec![titles(&stats.split, &["least", "10%", "median", "90%", "most"])];
        let mut add = |title: &str, values: [f64; 5], decimals: usize| {
            let cells = values.iter().map(|value| format!("{value:.decimals$}"));
            rows.push(std::iter::once(title.to_owned()).chain(cells).collect());
        };
        add("shorter side of images", stats.image_short_side, 0);
        add("√area of objects", stats.size, 1);
        add("√area, resized", stats.size_resized, 1);
        add("height / width", stats.aspect, 2);
        add("objects an image", stats.objects_per_image, 0);
        lines.extend(crate::table::lines(&rows));
        let thirds = stats.positions.chunks(3).map(|row| row.iter().map(|s| percent(*s)).collect::<Vec<_>>().join(" "));
        lines.push(format!("centres by thirds of the image: {}", thirds.collect::<Vec<_>>().join(" | ")));
    }
    lines
}
