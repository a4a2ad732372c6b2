//! YOLO's text labels: `data.yaml`, and for each image `images/…/a.jpg` a file `labels/…/a.txt` with a line an object:
//! class, then centre x, centre y, width, height, or the points x₀ y₀ x₁ y₁ … of a polygon, as fractions of the image.
//!
//! Class i becomes category i + 1. Without `data.yaml`, `images/`, `labels/` and `classes.txt` do.

use super::draft::{Draft, Names};
use super::place::{ensure_own_stems, number, with_objects, Order, Writer};
use super::trace;
use super::yolo_row::{self, Row};
use crate::images::{below, headers, in_common_folder, is_image, path_of, tidied};
use crate::types::{split_name, Import, Split, MOST_CLASSES};
use anyhow::{bail, ensure, Context, Result};
use rayon::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use vigdet_coco::types::{Annotation, Image, Segmentation};

/// What `data.yaml` says. Other keys are passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Yaml {
    path: Option<String>,
    train: Option<Places>,
    #[serde(alias = "valid", alias = "validation")]
    val: Option<Places>,
    test: Option<Places>,
    names: Option<ClassNames>,
    nc: Option<usize>,
    kpt_shape: Option<Vec<usize>>,
}

/// A folder, a list file, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Places {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ClassNames {
    List(Vec<String>),
    Map(BTreeMap<usize, String>),
}

/// The YAML file of a folder.
fn yaml(path: &Path) -> Option<PathBuf> {
    let is_yaml = |file: &Path| file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    if path.is_file() {
        return is_yaml(path).then(|| path.to_path_buf());
    }
    let names = ["data.yaml", "data.yml", "dataset.yaml", "dataset.yml"];
    let usual = names.iter().map(|name| path.join(name)).find(|file| file.is_file());
    usual.or_else(|| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut others: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|file| is_yaml(file)).collect();
        others.retain(|file| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            text.lines().any(|line| line.starts_with("names:")) && text.lines().any(|line| line.starts_with("train:"))
        });
        others.sort();
        others.into_iter().next()
    })
}

pub(super) fn fits(path: &Path) -> bool {
    yaml(path).is_some() || (path.join("classes.txt").is_file() && path.join("labels").is_dir())
}

pub(super) fn read(path: &Path) -> Result<Vec<Split>> {
    let (root, yaml) = match yaml(path) {
        Some(file) => {
            let text = super::xml::read(&file)?;
            let yaml: Yaml = serde_saphyr::from_str(&text).map_err(|error| {
                let message = error.to_string();
                let line = message.lines().next().unwrap_or_default();
                anyhow::anyhow!("{}: {line}", file.display())
            })?;
            (file.parent().unwrap_or(Path::new(".")).to_path_buf(), yaml)
        }
        None => (path.to_path_buf(), Yaml { names: Some(classes_txt(path)?), ..Yaml::default() }),
    };
    let names = class_names(&yaml)?;
    let base = match &yaml.path {
        // A path for another machine says nothing here.
        Some(base) => Some(root.join(path_of(base))).filter(|base| base.is_dir()).unwrap_or_else(|| root.clone()),
        None => root.clone(),
    };
    let splits = [("train", &yaml.train), ("val", &yaml.val), ("test", &yaml.test)];
    let mut drafts = Vec::new();
    for (name, places) in splits {
        let Some(places) = places else { continue };
        let places = match places {
            Places::One(place) => std::slice::from_ref(place),
            Places::Several(places) => places.as_slice(),
        };
        let mut images = Vec::new();
        let mut draft = Draft::new(name, &base);
        for place in places.iter().filter(|place| !place.trim().is_empty()) {
            match resolve(&root, &base, place) {
                Some(found) if is_above(&found, &root) => {
                    draft.note(format!(
                        "`{name}: {place}` is {}, a folder with much else in it: name the images' own",
                        found.display()
                    ));
                }
                Some(found) if found.is_dir() => images.extend(below(&found)),
                Some(found) => images.extend(listed(&found)?),
                None => draft.note(format!("`{name}: {place}` is not there")),
            }
        }
        drafts.push(read_split(draft, images, &names, yaml.kpt_shape.is_some()));
    }
    if yaml.train.is_none() && yaml.val.is_none() && yaml.test.is_none() {
        for (name, folder) in split_folders(&root.join("images")) {
            let draft = Draft::new(&name, &folder);
            drafts.push(read_split(draft, below(&folder), &names, false));
        }
    }
    ensure!(
        drafts.iter().any(|draft| !draft.images.is_empty()),
        "none of the folders and lists of `train`, `val` and `test` has images ({})",
        drafts.iter().flat_map(|draft| draft.notes.keys().cloned()).collect::<Vec<_>>().join("; ")
    );
    yolo_row::refuse_oriented(&mut drafts)?;
    Ok(names.finish(drafts))
}

fn classes_txt(path: &Path) -> Result<ClassNames> {
    let text = super::xml::read(&path.join("classes.txt"))?;
    Ok(ClassNames::List(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()))
}

/// `images` itself as one split, or its folders `train`, `val`, `test`.
fn split_folders(images: &Path) -> Vec<(String, PathBuf)> {
    let known = ["train", "val", "valid", "validation", "test"];
    let inner = known.iter().map(|name| (split_name(name), images.join(name)));
    let inner: Vec<_> = inner.filter(|(_, folder)| folder.is_dir()).collect();
    if inner.is_empty() {
        vec![("all".to_owned(), images.to_path_buf())]
    } else {
        inner
    }
}

fn class_names(yaml: &Yaml) -> Result<Names> {
    let count = match (&yaml.names, yaml.nc) {
        (Some(ClassNames::List(names)), _) => names.len(),
        (Some(ClassNames::Map(names)), _) => names.keys().max().map_or(0, |last| last.saturating_add(1)),
        (None, nc) => nc.context("there is neither `names` nor `nc`")?,
    };
    ensure!(count <= MOST_CLASSES, "`names` or `nc` says that there are {count} classes: {MOST_CLASSES} are the most");
    let name = |class: usize| match &yaml.names {
        Some(ClassNames::List(names)) => names.get(class).cloned(),
        Some(ClassNames::Map(names)) => names.get(&class).cloned(),
        None => None,
    };
    let names: Vec<String> = (0..count).map(|class| name(class).unwrap_or_else(|| class.to_string())).collect();
    let mut distinct = names.clone();
    distinct.sort();
    distinct.dedup();
    ensure!(distinct.len() == names.len(), "two classes of `names` are called the same: give each its own name");
    Ok(Names::listed(names))
}

/// A folder or list of a split. Roboflow writes `../train/images` for `train/images` beside the file.
fn resolve(root: &Path, base: &Path, place: &str) -> Option<PathBuf> {
    let place = path_of(place);
    let inside = place.strip_prefix("..").ok().map(Path::to_path_buf);
    let candidates = [Some(base.join(&place)), Some(root.join(&place)), inside.map(|inside| base.join(inside))];
    candidates.into_iter().flatten().map(|path| tidied(&path)).find(|path| path.exists())
}

/// Whether a folder is above that of the data set, and so perhaps the whole disk: looking through it takes long.
fn is_above(folder: &Path, root: &Path) -> bool {
    let (Ok(folder), Ok(root)) = (folder.canonicalize(), root.canonicalize()) else { return false };
    folder.parent().is_none() || (folder != root && root.starts_with(&folder))
}

/// The images that a list file names, relative to itself.
fn listed(file: &Path) -> Result<Vec<PathBuf>> {
    let text = super::xml::read(file)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(|line| tidied(&folder.join(path_of(line)))).filter(|path| is_image(path)).collect())
}

/// Where the labels of an image are: the last folder `images` on its way replaced by `labels`; else beside it.
fn label_file(image: &Path) -> PathBuf {
    let parts: Vec<_> = image.components().collect();
    let folder = parts[..parts.len().saturating_sub(1)].iter().rposition(|part| part.as_os_str() == "images");
    let path: PathBuf = match folder {
        Some(at) => {
            parts.iter().enumerate().map(|(i, p)| if i == at { "labels".as_ref() } else { p.as_os_str() }).collect()
        }
        None => image.to_path_buf(),
    };
    path.with_extension("txt")
}

fn read_split(mut draft: Draft, images: Vec<PathBuf>, names: &Names, keypoints: bool) -> Draft {
    let (folder, file_names) = in_common_folder(&images, &draft.folder);
    draft.folder = folder;
    let headers = headers(&images);
    let labels: Vec<(PathBuf, Option<std::io::Result<String>>)> = images
        .par_iter()
        .map(|image| {
            let file = label_file(image);
            let upper = file.with_extension("TXT");
            for file in [&file, &upper] {
                match std::fs::read_to_string(file) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    text => return (file.clone(), Some(text)),
                }
            }
            (file, None)
        })
        .collect();
    let classes = names.len();
    for ((name, header), (file, text)) in file_names.into_iter().zip(headers).zip(labels) {
        let at = draft.images.len();
        let size = header.as_ref().map_or((0, 0), |header| (header.width, header.height));
        draft.images.push((name, size.0, size.1));
        let text = match text {
            None => continue,
            Some(Ok(text)) => text,
            Some(Err(error)) => {
                draft.fault(file.display().to_string(), format!("cannot be read: {error}"));
                continue;
            }
        };
        if header.is_err() && !text.trim().is_empty() {
            draft.note("the objects of an image that cannot be read are left out: their fractions have no size");
            continue;
        }
        for (line, row) in text.trim_start_matches('\u{FEFF}').lines().enumerate() {
            if row.trim().is_empty() {
                continue;
            }
            match Row::parse(row, classes, keypoints) {
                Ok(row) => row.put(&mut draft, at, size),
                Err(error) => draft.fault(format!("{}:{}", file.display(), line + 1), error.to_string()),
            }
        }
    }
    draft
}

pub(super) fn write(import: &Import, writer: &mut Writer<'_>) -> Result<()> {
    let order = Order::of(import.classes());
    let mut yaml = "path: .\n".to_owned();
    for split in &import.splits {
        ensure_own_stems(split)?;
        let key = match split.name.as_str() {
            name @ ("train" | "val" | "test") => name,
            "all" => "train",
            other => bail!("YOLO has no split `{other}`: it has train, val and test"),
        };
        writeln!(yaml, "{key}: images/{}", split.name)?;
        for (image, objects) in with_objects(split) {
            writer.image(split, image, &format!("images/{}", split.name))?;
            let mut text = String::new();
            for at in objects {
                let annotation = &split.dataset.annotations[at];
                if annotation.iscrowd {
                    writer.lost("YOLO has no crowds: a crowd is left out");
                    continue;
                }
                if split.score(at).is_some() {
                    writer.lost("YOLO's labels have no place for a score");
                }
                row(&mut text, annotation, image, order.place(annotation)?, writer)?;
            }
            let image = Path::new("images").join(&split.name).join(super::place::safe(&image.file_name)?);
            writer.file(label_file(&image), text.as_bytes())?;
        }
    }
    yaml.push_str("names:\n");
    for (class, name) in order.names.iter().enumerate() {
        // A JSON string is a YAML string.
        writeln!(yaml, "  {class}: {}", serde_json::to_string(name)?)?;
    }
    writer.file("data.yaml", yaml.as_bytes())
}

fn row(text: &mut String, annotation: &Annotation, image: &Image, class: usize, writer: &mut Writer<'_>) -> Result<()> {
    ensure!(image.width > 0 && image.height > 0, "{} has no size: its boxes have no fractions", image.file_name);
    let (width, height) = (f64::from(image.width), f64::from(image.height));
    let rings = match &annotation.segmentation {
        Some(Segmentation::Polygons(polygons)) => polygons.iter().filter(|p| p.len() >= 6).cloned().collect(),
        Some(Segmentation::Rle(rle)) => trace::rings(rle),
        None => Vec::new(),
    };
    write!(text, "{class}")?;
    if rings.is_empty() {
        let [x, y, w, h] = annotation.bbox;
        for value in [(x + w / 2.0) / width, (y + h / 2.0) / height, w / width, h / height] {
            write!(text, " {}", number(value))?;
        }
    } else {
        if rings.len() > 1 {
            writer.lost("an object of several parts becomes one polygon, joined by lines without width");
        }
        for point in trace::joined(rings).chunks_exact(2) {
            write!(text, " {} {}", number(point[0] / width), number(point[1] / height))?;
        }
    }
    text.push('\n');
    Ok(())
}
