//! Writing: where files go, and what becomes of the images.

use crate::types::{Import, Split};
use anyhow::{bail, Context, Result};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use vigdet_coco::types::{Annotation, Category, Image};

/// What becomes of the images of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Images {
    /// Links to the images (copies where the system has no links).
    #[default]
    Link,
    /// Copies.
    Copy,
    /// Label files alone.
    None,
}

/// Writes the files of one export.
pub(crate) struct Writer<'a> {
    out: &'a Path,
    images: Images,
    /// What the layout loses, and how often.
    notes: BTreeMap<String, usize>,
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a Path, images: Images) -> Writer<'a> {
        Writer { out, images, notes: BTreeMap::new() }
    }

    /// Says that something is lost.
    pub fn lost(&mut self, what: impl Into<String>) {
        *self.notes.entry(what.into()).or_default() += 1;
    }

    /// Writes a file, whose path is relative to the export.
    pub fn file(&self, name: impl AsRef<Path>, content: &[u8]) -> Result<()> {
        let path = self.prepared(name.as_ref())?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Where a file of the export goes; its folder is there.
    pub fn prepared(&self, name: &Path) -> Result<PathBuf> {
        let path = self.out.join(name);
        let folder = path.parent().unwrap_or(self.out);
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(path)
    }

    /// Puts an image of `split` into a folder of the export, under its own name. A missing image is noted.
    pub fn image(&mut self, split: &Split, image: &Image, folder: &str) -> Result<()> {
        self.image_as(split, image, &format!("{folder}/{}", image.file_name))
    }

    /// Puts an image of `split` to a path in the export. A missing image is noted.
    pub fn image_as(&mut self, split: &Split, image: &Image, name: &str) -> Result<()> {
        let name = safe(name)?;
        if self.images == Images::None {
            return Ok(());
        }
        let source = split.path(&image.file_name);
        let Ok(source) = source.canonicalize() else {
            self.lost("an image is not there: its labels are written all the same");
            return Ok(());
        };
        let target = self.prepared(name)?;
        if target.symlink_metadata().is_ok() {
            return Ok(());
        }
        let failed = || format!("cannot put {} to {}", source.display(), target.display());
        if self.images == Images::Copy || link(&source, &target).is_err() {
            std::fs::copy(&source, &target).with_context(failed)?;
        }
        Ok(())
    }

    /// A line for each thing that is lost.
    pub fn notes(self) -> Vec<String> {
        let line = |(text, count): (String, usize)| if count > 1 { format!("{text} ({count} times)") } else { text };
        self.notes.into_iter().map(line).collect()
    }
}

#[cfg(unix)]
fn link(source: &Path, target: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(source, target)
}

#[cfg(not(unix))]
fn link(source: &Path, target: &Path) -> std::io::Result<()> {
    std::fs::hard_link(source, target)
}

/// A file name that stays in its folder.
pub(crate) fn safe(name: &str) -> Result<&Path> {
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if name.is_empty() || !inside {
        bail!("file name `{name}` leaves the image folder: names must be relative to it, without `..`");
    }
    Ok(Path::new(name))
}

/// The images of a split, each with the places of its annotations.
pub(crate) fn with_objects(split: &Split) -> Vec<(&Image, Vec<usize>)> {
    let dataset = &split.dataset;
    let mut of_image: HashMap<i64, Vec<usize>> = HashMap::new();
    for (at, annotation) in dataset.annotations.iter().enumerate() {
        of_image.entry(annotation.image_id).or_default().push(at);
    }
    dataset.images.iter().map(|image| (image, of_image.remove(&image.id).unwrap_or_default())).collect()
}

/// The place of each category among the classes in the order of their ids.
pub(crate) struct Order {
    pub names: Vec<String>,
    places: HashMap<i64, usize>,
}

impl Order {
    pub fn of(mut categories: Vec<Category>) -> Order {
        categories.sort_by_key(|category| category.id);
        let places = categories.iter().enumerate().map(|(place, category)| (category.id, place)).collect();
        Order { names: categories.into_iter().map(|category| category.name).collect(), places }
    }

    /// The place of an annotation's class.
    pub fn place(&self, annotation: &Annotation) -> Result<usize> {
        let id = annotation.category_id;
        let known = self.places.get(&id).copied();
        known.with_context(|| format!("annotation {} has category {id}, which is not there", annotation.id))
    }

    /// The name of an annotation's class.
    pub fn name(&self, annotation: &Annotation) -> Result<&str> {
        self.place(annotation).map(|place| self.names[place].as_str())
    }
}

/// The label file of each image must be its own.
pub(crate) fn ensure_own_stems(split: &Split) -> Result<()> {
    let mut seen: HashMap<PathBuf, &str> = HashMap::new();
    for image in &split.dataset.images {
        let stem = Path::new(&image.file_name).with_extension("");
        if let Some(other) = seen.insert(stem, &image.file_name) {
            bail!("{other} and {} would share one label file: rename one of them", image.file_name);
        }
    }
    Ok(())
}

/// The names of the images of all splits, split by split, for layouts that keep them in one folder: where two splits
/// have an image of one name, each split gets a folder of its own.
pub(crate) fn own_names(import: &Import) -> Result<Vec<Vec<String>>> {
    let mut stems = HashSet::new();
    let all = import.splits.iter().flat_map(|split| &split.dataset.images);
    let clash = all.map(|image| Path::new(&image.file_name).with_extension("")).any(|stem| !stems.insert(stem));
    let names = |split: &Split| {
        let images = split.dataset.images.iter();
        let name = |image: &Image| match clash {
            true => safe(&image.file_name).map(|_| format!("{}/{}", split.name, image.file_name)),
            false => safe(&image.file_name).map(|_| image.file_name.clone()),
        };
        images.map(name).collect::<Result<Vec<_>>>()
    };
    import.splits.iter().map(names).collect()
}

/// A number as short as it can be without losing anything.
pub(crate) fn number(value: f64) -> String {
    format!("{value}")
}
