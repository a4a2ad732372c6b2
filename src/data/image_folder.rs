//! A split of a data set with a folder for each class, as torchvision's `ImageFolder` reads it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use image::RgbImage;
use vigdet_dataset::images::{is_image, ENDINGS};

use super::decode;
use crate::config::FolderConfig;

/// Classes that an error names before it only counts them.
const NAMED: usize = 5;

/// Images of one split with the label of each, in torchvision's order.
///
/// Classes are the names of the folders, sorted by code points; images are those in a class's folder and in the
/// folders inside it, sorted by path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFolder {
    folder: PathBuf,
    classes: Vec<String>,
    /// Path inside the folder, and label.
    images: Vec<(PathBuf, usize)>,
    /// Images that `limit` left out.
    over_limit: usize,
}

impl ImageFolder {
    /// Opens a split, whose folder is relative to `root`.
    ///
    /// # Errors
    /// If there is no such folder, no folder of a class in it, or a class without images.
    pub fn open(split: &FolderConfig, root: &Path) -> Result<Self> {
        let folder = root.join(&split.folder);
        ensure!(
            folder.is_dir(),
            "there is no folder {}: --data takes a folder with train/CLASS/*.jpg and val/CLASS/*.jpg; other names go \
             with \
             --set data.train.folder=… and data.val.folder=…",
            folder.display()
        );
        let classes = classes_in(&folder)?;
        ensure!(
            !classes.is_empty(),
            "{} has no folders: the images of each class must lie in a folder of its own, which gives the class its \
             name",
            folder.display()
        );
        let (mut images, mut empty, mut over_limit) = (Vec::new(), Vec::new(), 0);
        for (label, class) in classes.iter().enumerate() {
            let mut found = images_in(&folder, class)?;
            if found.is_empty() {
                empty.push(class.as_str());
            }
            let kept = found.len().min(split.limit.unwrap_or(usize::MAX));
            over_limit += found.len() - kept;
            found.truncate(kept);
            images.extend(found.into_iter().map(|path| (path, label)));
        }
        ensure!(
            empty.is_empty(),
            "{} of {} has no image ({}): remove the folder, or put images into it",
            some(&empty, "class"),
            folder.display(),
            ENDINGS.map(|e| format!(".{e}")).join(", ")
        );
        ensure!(!images.is_empty(), "data's `limit` leaves no image of {}", folder.display());
        Ok(Self { folder, classes, images, over_limit })
    }

    /// The same images with the labels of a model: `classes` in the order of its outputs. Classes without images are
    /// fine.
    ///
    /// # Errors
    /// If there is a class that the model does not have.
    pub fn with_classes(self, classes: &[String]) -> Result<Self> {
        let place = |class: &String| classes.iter().position(|other| other == class);
        let places: Vec<Option<usize>> = self.classes.iter().map(place).collect();
        let without = self.classes.iter().zip(&places).filter(|(_, place)| place.is_none());
        let unknown: Vec<&str> = without.map(|(class, _)| class.as_str()).collect();
        ensure!(
            unknown.is_empty(),
            "{} of {} {} not among the {} that are trained on ({}{})",
            some(&unknown, "class"),
            self.folder.display(),
            if unknown.len() == 1 { "is" } else { "are" },
            classes.len(),
            classes.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", "),
            if classes.len() > NAMED { ", …" } else { "" },
        );
        let label = |label: usize| places[label].unwrap_or_default();
        let images = self.images.into_iter().map(|(path, old)| (path, label(old))).collect();
        Ok(Self { images, classes: classes.to_vec(), ..self })
    }

    /// Names of the classes, in the order of their labels.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are no images: never so.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Label of image `i`.
    pub fn label(&self, i: usize) -> usize {
        self.images[i].1
    }

    /// Path of image `i` inside the split's folder, for people.
    pub fn name(&self, i: usize) -> String {
        self.images[i].0.display().to_string()
    }

    /// Decodes image `i`; `exif`: turned as its EXIF orientation says. Errors name the file.
    pub fn image(&self, i: usize, exif: bool) -> Result<RgbImage> {
        decode::open(&self.folder.join(&self.images[i].0), exif)
    }

    /// Images of each class.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for (_, label) in &self.images {
            counts[*label] += 1;
        }
        counts
    }
}

/// One line: images, classes, and how unevenly they are shared out.
impl fmt::Display for ImageFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts();
        let (least, most) = (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
        write!(f, "{} images, {} classes", self.len(), self.classes.len())?;
        match least == most {
            true => write!(f, " of {least} images each")?,
            false => write!(f, " of {least} to {most} images")?,
        }
        if self.over_limit > 0 {
            write!(f, "; images left out by data's `limit`: {}", self.over_limit)?;
        }
        Ok(())
    }
}

/// `the class "a"`, `2 classes ("a", "b")`, …: a subject for a sentence that goes on in the singular for one only.
fn some(names: &[&str], what: &str) -> String {
    match names {
        [one] => format!("the {what} `{one}`"),
        all => {
            let named = all.iter().take(NAMED).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
            let more = if all.len() > NAMED { ", …" } else { "" };
            format!("each of {} {what}es ({named}{more})", all.len())
        }
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read =
        || -> std::io::Result<Vec<PathBuf>> { std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect() };
    read().with_context(|| format!("cannot read the folder {}", folder.display()))
}

fn classes_in(folder: &Path) -> Result<Vec<String>> {
    let mut classes = Vec::new();
    for path in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        match path.file_name().and_then(|name| name.to_str()) {
            Some(name) => classes.push(name.to_string()),
            None => bail!("the name of the folder {} is not UTF-8", path.display()),
        }
    }
    // Bytes of UTF-8 sort as code points, which is Python's order.
    classes.sort_unstable();
    Ok(classes)
}

/// Paths, relative to `root`, of the images in the folder of a class, however deep: `sorted(os.walk(…,
/// followlinks=True))`, and the names in each folder sorted.
fn images_in(root: &Path, class: &str) -> Result<Vec<PathBuf>> {
    let mut folders = vec![PathBuf::from(class)];
    let (mut next, mut seen) = (0, BTreeSet::new());
    let mut files: Vec<(PathBuf, Vec<PathBuf>)> = Vec::new();
    while let Some(folder) = folders.get(next).cloned() {
        next += 1;
        let whole = root.join(&folder);
        // A link to a folder above would lead round in circles.
        if !seen.insert(std::fs::canonicalize(&whole).unwrap_or_else(|_| whole.clone())) {
            continue;
        }
        let mut here = Vec::new();
        for path in entries(&whole)? {
            let Some(name) = path.file_name() else { continue };
            if path.is_dir() {
                folders.push(folder.join(name));
            } else if is_image(&path) {
                here.push(folder.join(name));
            }
        }
        here.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        files.push((folder, here));
    }
    // As text, not by components: `a-b` comes before `a/b`.
    files.sort_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));
    Ok(files.into_iter().flat_map(|(_, here)| here).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join("train").join(file);
            if file.ends_with('/') {
                std::fs::create_dir_all(path).unwrap();
            } else {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            }
        }
        root
    }

    fn open(files: &[&str], limit: Option<usize>) -> Result<ImageFolder> {
        let root = folder(files);
        ImageFolder::open(&FolderConfig { folder: "train".into(), limit }, root.path())
    }

    fn error(files: &[&str]) -> String {
        format!("{:#}", open(files, None).unwrap_err())
    }

    #[test]
    fn classes_and_images_come_in_torchvisions_order() {
        // torchvision.datasets.ImageFolder gives these for these files.
        let found = open(
            &[
                "b/2.JPG",
                "b/10.png",
                "b/a/z.jpeg",
                "b/a-b/y.webp",
                "B/1.jpg",
                "é/1.jpg",
                "z/1.tiff",
                "b/notes.txt",
                "top.jpg",
                "b/no_ending",
                "b/x.jpgx",
            ],
            None,
        )
        .unwrap();
        assert_eq!(found.classes(), ["B", "b", "z", "é"]);
        let images: Vec<(String, usize)> = (0..found.len()).map(|i| (found.name(i), found.label(i))).collect();
        let expected = [
            ("B/1.jpg", 0),
            ("b/10.png", 1),
            ("b/2.JPG", 1),
            ("b/a/z.jpeg", 1),
            ("b/a-b/y.webp", 1),
            ("z/1.tiff", 2),
            ("é/1.jpg", 3),
        ];
        let mut expected: Vec<(String, usize)> = expected.map(|(n, l)| (n.to_string(), l)).to_vec();
        // The folder a-b is before a/…: `-` is below `/`, but here it is `a` itself that comes first.
        expected.sort_by_key(|(_, label)| *label);
        assert_eq!(images, expected);
        assert_eq!(found.counts(), [1, 4, 1, 1]);
    }

    #[test]
    fn a_limit_counts_for_each_class() {
        let found = open(&["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg"], Some(2)).unwrap();
        assert_eq!(found.counts(), [2, 1]);
        assert!(found.to_string().contains("images left out by data's `limit`: 1"), "{found}");
    }

    #[test]
    fn what_is_no_folder_of_classes_is_said_in_a_line() {
        assert!(error(&["a/1.jpg", "b/"]).contains("the class `b` of"));
        let text = error(&["a/1.jpg", "b/x.txt", "c/"]);
        assert!(text.contains("each of 2 classes (`b`, `c`) of") && !text.contains('\n'), "{text}");
        assert!(error(&["1.jpg"]).contains("has no folders"));
        let root = tempfile::tempdir().unwrap();
        let missing = ImageFolder::open(&FolderConfig { folder: "val".into(), limit: None }, root.path());
        assert!(format!("{:#}", missing.unwrap_err()).contains("data.val.folder"));
    }

    #[test]
    fn labels_follow_the_model() {
        let val = open(&["b/1.jpg", "c/1.jpg"], None).unwrap();
        let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        let mapped = val.clone().with_classes(&names(&["c", "a", "b"])).unwrap();
        assert_eq!((mapped.label(0), mapped.label(1)), (2, 0));
        assert_eq!(mapped.counts(), [1, 0, 1]);
        let text = val.with_classes(&names(&["a", "b"])).unwrap_err().to_string();
        assert!(text.contains("the class `c` of") && text.contains("not among the 2"), "{text}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_back_up_ends() {
        let root = folder(&["a/1.jpg"]);
        let class = root.path().join("train/a");
        std::os::unix::fs::symlink(&class, class.join("again")).unwrap();
        let found = ImageFolder::open(&FolderConfig { folder: "train".into(), limit: None }, root.path()).unwrap();
        assert_eq!(found.len(), 1);
    }
}
