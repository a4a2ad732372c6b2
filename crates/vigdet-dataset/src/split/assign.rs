//! Which image goes to which part.

use crate::types::Split;
use anyhow::{ensure, Result};
use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::{HashMap, HashSet};

/// Which part each image goes to, for parts of these fractions: every class, and images without objects, in its share
/// as well as whole units allow. The same seed gives the same parts.
///
/// Iterative stratification (Sechidis and others, 2011): the class with the fewest images left is dealt out first, each
/// of its units to the part that lacks the class most.
///
/// # Errors
/// Fractions that are not positive, or fewer units than parts.
pub fn assign(split: &Split, units: &[Vec<usize>], fractions: &[f64], seed: u64) -> Result<Vec<usize>> {
    let sum: f64 = fractions.iter().sum();
    let sound = !fractions.is_empty() && fractions.iter().all(|f| *f > 0.0) && sum.is_finite();
    ensure!(sound, "fractions must be above 0, and so small that their sum is a number");
    ensure!(
        units.len() >= fractions.len(),
        "{} groups of images cannot be split into {} parts: choose smaller groups",
        units.len(),
        fractions.len()
    );
    let labels = labels(split);
    let label_count = labels.iter().flatten().max().map_or(0, |&last| last + 1);
    let of_unit = |unit: &Vec<usize>| {
        let mut counts = vec![0.0; label_count];
        unit.iter().flat_map(|&image| &labels[image]).for_each(|&label| counts[label] += 1.0);
        counts
    };
    let counts: Vec<Vec<f64>> = units.iter().map(of_unit).collect();
    let total = |label: usize| counts.iter().map(|unit| unit[label]).sum::<f64>();
    // What each part still lacks: images of each label, and images.
    let share = |part: usize, whole: f64| whole * fractions[part] / sum;
    let parts = 0..fractions.len();
    let mut lacks: Vec<Vec<f64>> =
        parts.clone().map(|part| (0..label_count).map(|label| share(part, total(label))).collect()).collect();
    let mut room: Vec<f64> = parts.clone().map(|part| share(part, split.dataset.images.len() as f64)).collect();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut open: Vec<usize> = (0..units.len()).collect();
    open.shuffle(&mut random);
    let mut part_of = vec![0; split.dataset.images.len()];
    while !open.is_empty() {
        let left = |label: usize| open.iter().map(|&unit| counts[unit][label]).sum::<f64>();
        let rest: Vec<(usize, f64)> = (0..label_count).map(|l| (l, left(l))).filter(|(_, left)| *left > 0.0).collect();
        let Some(&(label, _)) = rest.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        let (mut now, later): (Vec<usize>, Vec<usize>) = open.iter().partition(|&&unit| counts[unit][label] > 0.0);
        // Large units first: small ones fill what is left.
        now.sort_by(|&a, &b| counts[b][label].total_cmp(&counts[a][label]));
        for unit in now {
            let wish = |part: &usize| (lacks[*part][label], room[*part]);
            let part = parts.clone().max_by(|a, b| wish(a).partial_cmp(&wish(b)).unwrap_or(std::cmp::Ordering::Equal));
            let part = part.unwrap_or(0);
            lacks[part].iter_mut().zip(&counts[unit]).for_each(|(lack, count)| *lack -= count);
            room[part] -= units[unit].len() as f64;
            units[unit].iter().for_each(|&image| part_of[image] = part);
        }
        open = later;
    }
    fill_empty(&mut part_of, units, fractions.len());
    Ok(part_of)
}

/// Gives every part at least one unit, which few units may not have done: the smallest of the part with the most.
fn fill_empty(part_of: &mut [usize], units: &[Vec<usize>], parts: usize) {
    for empty in 0..parts {
        let units_of = |part_of: &[usize], part: usize| units.iter().filter(|unit| part_of[unit[0]] == part).count();
        if units_of(part_of, empty) > 0 {
            continue;
        }
        let fullest = (0..parts).max_by_key(|&part| units_of(part_of, part)).unwrap_or(0);
        let smallest = units.iter().filter(|unit| part_of[unit[0]] == fullest).min_by_key(|unit| unit.len());
        smallest.into_iter().flatten().for_each(|&image| part_of[image] = empty);
    }
}

/// For each image the places of the classes of its objects; one more place for images without.
fn labels(split: &Split) -> Vec<Vec<usize>> {
    let classes: HashMap<i64, usize> =
        split.dataset.categories.iter().enumerate().map(|(place, category)| (category.id, place)).collect();
    let images: HashMap<i64, usize> =
        split.dataset.images.iter().enumerate().map(|(place, image)| (image.id, place)).collect();
    let mut labels: Vec<HashSet<usize>> = vec![HashSet::new(); split.dataset.images.len()];
    for annotation in split.dataset.annotations.iter().filter(|annotation| !annotation.iscrowd) {
        if let (Some(&image), Some(&class)) = (images.get(&annotation.image_id), classes.get(&annotation.category_id)) {
            labels[image].insert(class);
        }
    }
    let without = classes.len();
    let sorted = |labels: HashSet<usize>| {
        let mut labels: Vec<usize> = if labels.is_empty() { vec![without] } else { labels.into_iter().collect() };
        labels.sort_unstable();
        labels
    };
    labels.into_iter().map(sorted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::{units, Group};
    use vigdet_coco::types::{Annotation, Category, Image};

    /// 200 images: `common` in most, `rare` in 20, both in some, none in 10. Names `p<group>_<number>`, four a group.
    fn images() -> Split {
        let mut split = Split { name: "all".into(), ..Split::default() };
        for (id, name) in [(4, "common"), (9, "rare")] {
            split.dataset.categories.push(Category { id, name: name.into(), supercategory: None });
        }
        for i in 0..200i64 {
            let file_name = format!("f{}/p{}_{i}.jpg", i % 2, i / 4);
            split.dataset.images.push(Image { id: i, file_name, width: 10, height: 10 });
            let classes: &[i64] = match i % 20 {
                0 => &[],
                1 => &[9],
                2 => &[4, 9, 9],
                _ => &[4],
            };
            for &category_id in classes {
                let id = split.dataset.annotations.len() as i64 + 1;
                split.dataset.annotations.push(Annotation { id, image_id: i, category_id, ..Annotation::default() });
            }
        }
        split
    }

    fn count(split: &Split, parts: &[usize], part: usize, label: usize) -> usize {
        labels(split).iter().zip(parts).filter(|(l, p)| **p == part && l.contains(&label)).count()
    }

    #[test]
    fn every_class_and_images_without_objects_are_split_in_their_share() {
        let split = images();
        let units = units(&split, &Group::None, &[]);
        let parts = assign(&split, &units, &[0.8, 0.1, 0.1], 3).unwrap();
        let sizes = [0, 1, 2].map(|part| parts.iter().filter(|&&p| p == part).count());
        assert!(sizes.iter().zip([160usize, 20, 20]).all(|(size, share)| size.abs_diff(share) <= 1), "{sizes:?}");
        assert_eq!([0, 1, 2].map(|part| count(&split, &parts, part, 1)), [16, 2, 2], "rare");
        assert_eq!([0, 1, 2].map(|part| count(&split, &parts, part, 2)), [8, 1, 1], "without objects");
        assert_eq!(parts, assign(&split, &units, &[0.8, 0.1, 0.1], 3).unwrap(), "the same seed");
        assert_ne!(parts, assign(&split, &units, &[0.8, 0.1, 0.1], 4).unwrap(), "another seed");
    }

    #[test]
    fn groups_stay_together() {
        let split = images();
        let by_prefix = units(&split, &Group::Prefix("_".into()), &[]);
        assert_eq!((by_prefix.len(), by_prefix[0].clone()), (50, vec![0, 1, 2, 3]));
        let parts = assign(&split, &by_prefix, &[0.75, 0.25], 0).unwrap();
        assert!((0..50).all(|group| (1..4).all(|i| parts[4 * group] == parts[4 * group + i])));
        assert!((40..=60).contains(&parts.iter().filter(|&&part| part == 1).count()));
        assert_eq!(units(&split, &Group::Folder, &[]).len(), 2);
        let values =
            Group::Values([("p0_0.jpg", "x"), ("f1/p49_199.jpg", "x")].map(|(a, b)| (a.into(), b.into())).into());
        assert_eq!(units(&split, &values, &[])[0], [0, 199]);
    }

    #[test]
    fn more_parts_than_groups_are_refused() {
        let split = images();
        let units = units(&split, &Group::Folder, &[]);
        assert!(assign(&split, &units, &[1.0, 1.0, 1.0], 0).unwrap_err().to_string().contains("2 groups"));
        assert!(assign(&split, &units, &[1.0, f64::NAN], 0).is_err());
    }
}
