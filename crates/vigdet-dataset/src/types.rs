//! What reading a folder gives: splits in COCO's data model.

use crate::layouts::{self, Layout};
use anyhow::{bail, ensure, Context, Result};
use std::path::{Path, PathBuf};
use vigdet_coco::types::{Category, Dataset};

/// Most classes of a set: three times those of the largest one, ImageNet-21k. One key that is too large would give a
/// million names.
pub const MOST_CLASSES: usize = 65_536;

/// A folder of labelled images, read.
#[derive(Clone, Debug)]
pub struct Import {
    /// What was read: a folder or a file.
    pub root: PathBuf,
    /// The layout that it had.
    pub layout: Layout,
    /// Its splits: `train`, `val`, `test` first, in this order; then others by name.
    ///
    /// They share their categories in every layout but COCO's, where each file has its own. COCO's ids are kept. In all
    /// other layouts ids of images, annotations and categories count from 1; categories in the class order of the
    /// layout, so that YOLO's class 0 is category 1.
    pub splits: Vec<Split>,
}

/// One split.
#[derive(Clone, Debug, Default)]
pub struct Split {
    /// `train`, `val`, `test`, or another name that the layout gives; `all` where there is one split without a name.
    pub name: String,
    /// The file names of the images are relative to this folder.
    pub folder: PathBuf,
    /// Images, objects, classes. Boxes are x, y, width, height in pixels of the image as stored.
    pub dataset: Dataset,
    /// For each annotation how sure a detector was. Empty for a ground truth.
    pub scores: Vec<f64>,
    /// What was left out or read in a way that is not obvious, a line each.
    pub notes: Vec<String>,
    /// What could not be understood. [`Import::ensure_sound`] refuses it.
    pub faults: Vec<Fault>,
}

/// Something in a label file that cannot be understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The file, and where it has lines the line.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

impl Import {
    /// Reads a folder or an annotation file of any layout, and refuses what cannot be trained on.
    ///
    /// # Errors
    /// No layout is recognised; a file cannot be read; [`Import::ensure_sound`].
    pub fn open(path: impl AsRef<Path>) -> Result<Import> {
        let import = Import::read(path)?;
        import.ensure_sound()?;
        Ok(import)
    }

    /// Reads a folder or an annotation file of any layout, as it is: faults are listed in the splits, ids may
    /// contradict each other.
    ///
    /// # Errors
    /// No layout is recognised; a file cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Import> {
        let path = path.as_ref();
        Import::read_as(path, layouts::recognise(path)?)
    }

    /// [`Import::read`] of a layout that is known.
    ///
    /// # Errors
    /// The folder does not have the layout; a file cannot be read.
    pub fn read_as(path: impl AsRef<Path>, layout: Layout) -> Result<Import> {
        let path = path.as_ref();
        let mut splits = layouts::read(path, layout).with_context(|| format!("{} as {layout}", path.display()))?;
        splits.sort_by_cached_key(|split| rank(&split.name));
        ensure!(!splits.is_empty(), "{} as {layout}: there are no images", path.display());
        Ok(Import { root: path.to_path_buf(), layout, splits })
    }

    /// Whether everything was understood, and ids are unique and name what is there.
    ///
    /// # Errors
    /// Names the split, the first places, and how many there are.
    pub fn ensure_sound(&self) -> Result<()> {
        for split in &self.splits {
            if let Some(first) = split.faults.first() {
                let more = match split.faults.len() - 1 {
                    0 => String::new(),
                    more => format!(" (and {more} more; `vigdet dataset check` lists them)"),
                };
                bail!("{}: {}{more}", first.place, first.what);
            }
            vigdet_coco::check_ids(&split.dataset)
                .with_context(|| format!("split {} of {}", split.name, self.root.display()))?;
        }
        Ok(())
    }

    /// The split of this name.
    pub fn split(&self, name: &str) -> Option<&Split> {
        self.splits.iter().find(|split| split.name == name)
    }

    /// All classes: those of the first split, then what only others have, each id once.
    pub fn classes(&self) -> Vec<Category> {
        let mut classes: Vec<Category> = Vec::new();
        for category in self.splits.iter().flat_map(|split| &split.dataset.categories) {
            if !classes.iter().any(|known| known.id == category.id) {
                classes.push(category.clone());
            }
        }
        classes
    }
}

impl Split {
    /// The score of an annotation, by its place in the data set.
    pub fn score(&self, index: usize) -> Option<f64> {
        self.scores.get(index).copied()
    }

    /// Where an image is.
    pub fn path(&self, file_name: &str) -> PathBuf {
        self.folder.join(file_name)
    }
}

/// The order of splits.
fn rank(name: &str) -> (usize, String) {
    let known = ["train", "val", "test"];
    (known.iter().position(|&k| k == name).unwrap_or(known.len()), name.to_owned())
}

/// The usual name of a split, whatever a layout calls it: `valid`, `validation` and `val2017` are all `val`.
pub(crate) fn split_name(raw: &str) -> String {
    let lower = raw.trim().to_lowercase();
    let year = lower.len().checked_sub(4).filter(|&at| lower.is_char_boundary(at));
    let stem = match year {
        Some(at) if at > 0 && lower[at..].bytes().all(|b| b.is_ascii_digit()) => &lower[..at],
        _ => &lower,
    };
    match stem.trim_end_matches(['_', '-']) {
        "train" | "training" => "train".to_owned(),
        "val" | "valid" | "validation" | "dev" => "val".to_owned(),
        "test" | "testing" => "test".to_owned(),
        "" | "default" | "all" => "all".to_owned(),
        _ => raw.trim().to_owned(),
    }
}
