//! New splits: by fractions or folds, whole groups together, each class in its share.

use crate::check::{nearly_same, Picture};
use crate::images::{in_common_folder, slashed};
use crate::types::{Import, Split};
use anyhow::{bail, ensure, Context, Result};
use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use vigdet_coco::types::{Dataset, Image};

/// Images that must stay together.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Group {
    /// Each on its own.
    #[default]
    None,
    /// Those of one folder.
    Folder,
    /// Those whose names begin alike, up to this text.
    Prefix(String),
    /// Those with one value; by file name, or by its last part. Images without a value are on their own.
    Values(HashMap<String, String>),
}

impl Group {
    /// The values of a column of a CSV file. Its first column that is called `file_name`, `filename`, `image`, `path`
    /// or `name` has the images.
    ///
    /// # Errors
    /// The file cannot be read, or has no such columns.
    pub fn from_column(file: &Path, column: &str) -> Result<Group> {
        let failed = || format!("{}", file.display());
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(file).with_context(failed)?;
        let titles = reader.headers().with_context(failed)?.clone();
        let names = ["file_name", "filename", "image", "path", "name"];
        let image = titles.iter().position(|title| names.contains(&title.to_lowercase().as_str()));
        let image = image.with_context(|| format!("{} has no column `file_name`", file.display()))?;
        let value = titles.iter().position(|title| title == column);
        let value = value.with_context(|| format!("{} has no column `{column}`", file.display()))?;
        let mut values = HashMap::new();
        for record in reader.records() {
            let record = record.with_context(failed)?;
            if let (Some(image), Some(value)) = (record.get(image), record.get(value)) {
                values.insert(image.replace('\\', "/"), value.to_owned());
            }
        }
        Ok(Group::Values(values))
    }

    fn of(&self, file_name: &str) -> Option<String> {
        let last = file_name.rsplit('/').next().unwrap_or(file_name);
        match self {
            Group::None => None,
            Group::Folder => Some(file_name.strip_suffix(last).unwrap_or_default().to_owned()),
            Group::Prefix(end) => last.split_once(end.as_str()).map(|(start, _)| start.to_owned()),
            Group::Values(values) => values.get(file_name).or_else(|| values.get(last)).cloned(),
        }
    }
}

/// All splits as one. File names are then relative to the folder that holds all images.
///
/// # Errors
/// The splits disagree on their classes.
pub fn merged(import: &Import) -> Result<Split> {
    let [first, others @ ..] = import.splits.as_slice() else { bail!("there are no images") };
    if others.is_empty() {
        return Ok(Split { name: "all".to_owned(), ..first.clone() });
    }
    for split in others {
        ensure!(
            split.dataset.categories == first.dataset.categories,
            "the classes of {} are not those of {}: they cannot be split anew together",
            split.name,
            first.name
        );
    }
    let paths = |split: &Split| split.dataset.images.iter().map(|i| split.path(&i.file_name)).collect::<Vec<_>>();
    let all: Vec<PathBuf> = import.splits.iter().flat_map(paths).collect();
    let (folder, names) = in_common_folder(&all, &first.folder);
    let mut names = names.into_iter();
    let mut merged = Split { name: "all".to_owned(), folder, ..Split::default() };
    merged.dataset.categories = first.dataset.categories.clone();
    for split in &import.splits {
        let mut ids = HashMap::new();
        for image in &split.dataset.images {
            let id = merged.dataset.images.len() as i64 + 1;
            ids.insert(image.id, id);
            let file_name = names.next().unwrap_or_default();
            merged.dataset.images.push(Image { id, file_name, ..image.clone() });
        }
        for annotation in &split.dataset.annotations {
            let mut annotation = annotation.clone();
            annotation.id = merged.dataset.annotations.len() as i64 + 1;
            annotation.image_id = *ids.get(&annotation.image_id).context("an annotation of an unknown image")?;
            merged.dataset.annotations.push(annotation);
        }
        merged.notes.extend(split.notes.iter().cloned());
    }
    Ok(merged)
}

/// The images of `split` that must stay together: places of images, each once. `pictures`, if not empty, has one for
/// each image; those nearly the same are kept together too.
pub fn units(split: &Split, group: &Group, pictures: &[Option<Picture>]) -> Vec<Vec<usize>> {
    let images = &split.dataset.images;
    let mut parents: Vec<usize> = (0..images.len()).collect();
    fn root(parents: &mut [usize], mut at: usize) -> usize {
        while parents[at] != at {
            parents[at] = parents[parents[at]];
            at = parents[at];
        }
        at
    }
    let mut first_of: HashMap<String, usize> = HashMap::new();
    for (at, image) in images.iter().enumerate() {
        if let Some(value) = group.of(&image.file_name) {
            let first = *first_of.entry(value).or_insert(at);
            let (a, b) = (root(&mut parents, first), root(&mut parents, at));
            parents[b.max(a)] = a.min(b);
        }
    }
    for (a, b) in nearly_same(pictures) {
        let (a, b) = (root(&mut parents, a), root(&mut parents, b));
        parents[b.max(a)] = a.min(b);
    }
    let mut units: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in 0..images.len() {
        units.entry(root(&mut parents, at)).or_default().push(at);
    }
    units.into_values().collect()
}

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
    ensure!(!fractions.is_empty() && fractions.iter().all(|f| f.is_finite() && *f > 0.0), "fractions must be above 0");
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

/// The images for which `keep` says so, as a split of this name. Ids stay.
pub fn part(split: &Split, name: &str, keep: impl Fn(usize) -> bool) -> Split {
    let images: Vec<Image> =
        split.dataset.images.iter().enumerate().filter(|(at, _)| keep(*at)).map(|(_, image)| image.clone()).collect();
    let ids: HashSet<i64> = images.iter().map(|image| image.id).collect();
    let annotations = split.dataset.annotations.iter().filter(|annotation| ids.contains(&annotation.image_id));
    let dataset =
        Dataset { images, annotations: annotations.cloned().collect(), categories: split.dataset.categories.clone() };
    Split { name: name.to_owned(), folder: split.folder.clone(), dataset, ..Split::default() }
}

/// Writes splits as COCO files into `out`: `annotations/instances_train2017.json` and so on. No image is copied: beside
/// the annotations stands a link to the folder of the images.
///
/// # Errors
/// A file is there already that vigdet did not write, or cannot be written.
pub fn write(splits: &[Split], out: &Path) -> Result<Vec<PathBuf>> {
    let outputs = vigdet_coco::output::Outputs::default();
    let mut written = Vec::new();
    std::fs::create_dir_all(out.join("annotations")).with_context(|| format!("cannot make {}", out.display()))?;
    for split in splits {
        let name = match split.name.as_str() {
            name @ ("train" | "val") => format!("{name}2017"),
            name => name.to_owned(),
        };
        let file = out.join("annotations").join(format!("instances_{name}.json"));
        outputs.write(&file, |to| Ok(serde_json::to_writer(to, &split.dataset)?))?;
        link(&split.folder, &out.join(&name))?;
        written.push(file);
    }
    Ok(written)
}

/// A link to a folder. Where the system has none, the images are named by `--set data.train.images=…`.
fn link(folder: &Path, link: &Path) -> Result<()> {
    let folder = folder.canonicalize().with_context(|| format!("the images are not in {}", folder.display()))?;
    if link.read_link().is_ok_and(|there| there == folder) {
        return Ok(());
    }
    let taken = || format!("{} is there: choose another folder for the split", slashed(link));
    ensure!(link.symlink_metadata().is_err(), taken());
    #[cfg(unix)]
    std::os::unix::fs::symlink(&folder, link).with_context(|| format!("cannot link {}", link.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vigdet_coco::types::{Annotation, Category};

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
