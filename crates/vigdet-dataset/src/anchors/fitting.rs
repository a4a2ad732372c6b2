//! Anchors that fit the objects best.

use super::{shifted_iou, Anchors, Object};
use anyhow::{ensure, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Fitting looks at no more objects than these.
const SAMPLE: usize = 4000;

/// The widths and heights of `count` boxes that stand for the objects': k-means with 1 − IoU of boxes of one centre as
/// the distance (Redmon and Farhadi, YOLO9000, section 2). From small to large.
///
/// # Errors
/// There are fewer objects than `count`.
pub fn k_means(objects: &[Object], count: usize, seed: u64) -> Result<Vec<[f64; 2]>> {
    ensure!(count > 0 && objects.len() >= count, "{} objects cannot give {count} boxes", objects.len());
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let sizes: Vec<[f64; 2]> = objects.iter().map(|object| object.size).collect();
    let distance = |a: &[f64; 2], b: &[f64; 2]| 1.0 - shifted_iou(*a, *b, [0.0; 2]);
    // Starts far from each other: the next is drawn by its distance to the nearest so far.
    let mut centres = vec![sizes[random.random_range(0..sizes.len())]];
    let mut nearest: Vec<f64> = sizes.iter().map(|size| distance(size, &centres[0])).collect();
    while centres.len() < count {
        let mut left = random.random::<f64>() * nearest.iter().sum::<f64>();
        let chosen = nearest.iter().position(|&d| {
            left -= d;
            left <= 0.0
        });
        let centre = sizes[chosen.unwrap_or(sizes.len() - 1)];
        centres.push(centre);
        nearest.iter_mut().zip(&sizes).for_each(|(d, size)| *d = d.min(distance(size, &centre)));
    }
    for _ in 0..100 {
        let mut sums = vec![([0.0; 2], 0usize); count];
        for size in &sizes {
            let closest =
                (0..count).min_by(|&a, &b| distance(size, &centres[a]).total_cmp(&distance(size, &centres[b])));
            let (sum, members) = &mut sums[closest.unwrap_or(0)];
            *sum = [sum[0] + size[0], sum[1] + size[1]];
            *members += 1;
        }
        let before = centres.clone();
        for (centre, (sum, members)) in centres.iter_mut().zip(sums).filter(|(_, (_, members))| *members > 0) {
            *centre = sum.map(|value| value / members as f64);
        }
        if centres == before {
            break;
        }
    }
    centres.sort_by(|a, b| (a[0] * a[1]).total_cmp(&(b[0] * b[1])));
    Ok(centres)
}

/// Anchors that fit the objects, of as many sizes and ratios and on the levels of `start`: base (or sizes) and ratios
/// begin at those of the k-means boxes, and are then moved at random as long as more objects are matched, or, at equal
/// numbers, their mean IoU grows. Never worse than `start`. Values have two decimals; the same seed gives the same.
///
/// # Errors
/// There are fewer objects than anchors of a location.
pub fn fitted(objects: &[Object], start: &Anchors, seed: u64) -> Result<Anchors> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let sample: Vec<Object> = if objects.len() > SAMPLE {
        rand::seq::index::sample(&mut random, objects.len(), SAMPLE).into_iter().map(|i| objects[i]).collect()
    } else {
        objects.to_vec()
    };
    let per_location = start.shapes(1.0).len();
    let boxes = k_means(&sample, per_location, seed)?;
    // Of the boxes' ratios, as many as asked for, evenly by rank.
    let mut ratios: Vec<f64> = boxes.iter().map(|[w, h]| h / w).collect();
    ratios.sort_by(f64::total_cmp);
    let wanted = start.ratios.len();
    let at_rank = |i: usize| ratios[((2 * i + 1) * ratios.len() / (2 * wanted)).min(ratios.len() - 1)];
    let from_boxes = Anchors { ratios: (0..wanted).map(at_rank).collect(), ..start.clone() };
    let key = |anchors: &Anchors| {
        let fit = anchors.fit(&sample);
        fit.matched + 0.2 * fit.mean_iou
    };
    let mut best = (key(start), start.clone());
    let consider = |best: &mut (f64, Anchors), anchors: Anchors| {
        let anchors = rounded(anchors);
        let value = key(&anchors);
        if value > best.0 {
            *best = (value, anchors);
        }
    };
    for step in 0..24 {
        // The smallest anchor from 1 to 8 strides.
        let base = 2f64.powf(f64::from(step) / 8.0);
        for candidate in [start, &from_boxes] {
            consider(&mut best, Anchors { base, ..candidate.clone() });
        }
    }
    for step in 0..300 {
        let spread = if step < 150 { 0.2 } else { 0.05 };
        let mut moved = |value: f64| value * (spread * (random.random::<f64>() * 2.0 - 1.0)).exp();
        let mut next = best.1.clone();
        next.base = moved(next.base);
        next.ratios.iter_mut().for_each(|ratio| *ratio = moved(*ratio));
        next.sizes.iter_mut().flatten().for_each(|size| *size = moved(*size));
        consider(&mut best, next);
    }
    // A sample may mislead.
    let (found, before) = (best.1.fit(objects), start.fit(objects));
    Ok(if found.matched >= before.matched { best.1 } else { start.clone() })
}

/// Two decimals, in order.
fn rounded(mut anchors: Anchors) -> Anchors {
    let round = |value: f64| ((value * 100.0).round() / 100.0).max(0.01);
    anchors.base = round(anchors.base);
    anchors.ratios = anchors.ratios.into_iter().map(round).collect();
    anchors.ratios.sort_by(f64::total_cmp);
    anchors.sizes = anchors.sizes.map(|mut sizes| {
        sizes.iter_mut().for_each(|size| *size = round(*size));
        sizes.sort_by(f64::total_cmp);
        sizes
    });
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(centre: [f64; 2], size: [f64; 2]) -> Object {
        Object { centre, size, image: [640.0, 480.0] }
    }

    #[test]
    fn k_means_finds_the_shapes_that_were_mixed() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut near = |size: f64| size * (1.0 + 0.05 * (random.random::<f64>() - 0.5));
        let shapes = [[10.0, 10.0], [30.0, 90.0], [200.0, 100.0]];
        let objects: Vec<Object> = (0..300).map(|i| object([50.0, 50.0], shapes[i % 3].map(&mut near))).collect();
        let found = k_means(&objects, 3, 7).unwrap();
        for (found, shape) in found.iter().zip(shapes) {
            assert!((0..2).all(|axis| (found[axis] / shape[axis] - 1.0).abs() < 0.02), "{found:?}, {shape:?}");
        }
        assert!(k_means(&objects[..2], 3, 0).is_err());
    }

    #[test]
    fn fitted_anchors_match_more_thin_objects() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let mut draw = |low: f64, high: f64| low + (high - low) * random.random::<f64>();
        let objects: Vec<Object> = (0..400)
            .map(|_| {
                let width = draw(20.0, 60.0);
                object([draw(100.0, 500.0), draw(100.0, 400.0)], [width, width * draw(3.5, 5.0)])
            })
            .collect();
        let start = Anchors::default();
        let fitted = fitted(&objects, &start, 0).unwrap();
        let (before, after) = (start.fit(&objects), fitted.fit(&objects));
        assert!(before.matched < 0.7 && after.matched > 0.97, "{before:?}, {after:?}, {}", fitted.line());
        assert_eq!(fitted.ratios.len(), 3);
    }
}
