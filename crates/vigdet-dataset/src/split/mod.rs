//! New splits: by fractions or folds, whole groups together, each class in its share.

mod assign;
mod group;

pub use assign::assign;
pub use group::{units, Group};

use crate::images::{in_common_folder, slashed};
use crate::types::{Import, Split};
use anyhow::{bail, ensure, Context, Result};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use vigdet_coco::types::{Dataset, Image};

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
