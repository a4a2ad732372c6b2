//! COCO's JSON, in the folder shapes of COCO itself, Roboflow, CVAT and FiftyOne.
//!
//! - `annotations/instances_train2017.json` with the images in `train2017`, `train`, `images/train2017`,
//!   `images/train` or `images`
//! - `train/_annotations.coco.json` beside the images
//! - any one file with `images`, `annotations` and `categories`
//!
//! Ids stay as they are.

use super::place::{safe, Writer};
use crate::images::{path_of, slash_names};
use crate::types::{split_name, Import, Split};
use anyhow::{Context, Result};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The name of Roboflow's file.
const BESIDE_IMAGES: &str = "_annotations.coco.json";

/// The annotation files that are there, each with its split's name as in the file system.
pub(super) fn files(path: &Path) -> Vec<(PathBuf, String)> {
    if path.is_file() {
        let fits = is_json(path) && looks_right(path);
        return fits.then(|| (path.to_path_buf(), name_of(path))).into_iter().collect();
    }
    let beside = entries(path).into_iter().filter_map(|folder| {
        let file = folder.join(BESIDE_IMAGES);
        let name = folder.file_name()?.to_string_lossy().into_owned();
        file.is_file().then_some((file, name))
    });
    let mut found: Vec<(PathBuf, String)> = beside.collect();
    if path.join(BESIDE_IMAGES).is_file() {
        found.push((path.join(BESIDE_IMAGES), "all".to_owned()));
    }
    if found.is_empty() {
        let candidates =
            |folder: PathBuf| entries(&folder).into_iter().filter(|file| is_json(file)).collect::<Vec<_>>();
        let mut inner = candidates(path.join("annotations"));
        // Of the files in COCO's own folder those of objects; captions and keypoints come beside them.
        if inner.iter().any(|file| is_instances(file)) {
            inner.retain(|file| is_instances(file));
        }
        inner.extend(candidates(path.to_path_buf()));
        inner.retain(|file| looks_right(file));
        found = inner.into_iter().map(|file| (file.clone(), name_of(&file))).collect();
    }
    found
}

fn is_json(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"))
}

fn is_instances(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("instances"))
}

/// The split's name in a file's name.
fn name_of(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    match stem.as_str() {
        "annotations" | "labels" | "instances" | "_annotations.coco" | "result" | "coco" => "all".to_owned(),
        stem => {
            let kinds = ["instances_", "person_keypoints_"];
            kinds.iter().find_map(|kind| stem.strip_prefix(kind)).unwrap_or(stem).to_owned()
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

/// Whether a file begins as an object and has the three lists' names somewhere. Large files are searched in pieces.
fn looks_right(file: &Path) -> bool {
    let Ok(mut file) = std::fs::File::open(file) else { return false };
    let names: [&[u8]; 3] = [b"\"images\"", b"\"annotations\"", b"\"categories\""];
    let (mut found, mut first) = ([false; 3], true);
    let mut bytes = Vec::new();
    while let Ok(count) = file.by_ref().take(1 << 20).read_to_end(&mut bytes) {
        let start = bytes.iter().find(|byte| !byte.is_ascii_whitespace() && !b"\xEF\xBB\xBF".contains(byte));
        if first && start != Some(&b'{') {
            return false;
        }
        first = false;
        for (found, name) in found.iter_mut().zip(names) {
            *found = *found || bytes.windows(name.len()).any(|window| window == name);
        }
        if found == [true; 3] || count == 0 {
            break;
        }
        // A name may lie across the border of two pieces.
        bytes.drain(..bytes.len().saturating_sub(16));
    }
    found == [true; 3]
}

pub(super) fn read(path: &Path) -> Result<Vec<Split>> {
    let files = files(path);
    anyhow::ensure!(!files.is_empty(), "there is no {}", super::Layout::Coco.looked_for());
    let root = if path.is_file() { path.parent().unwrap_or(Path::new(".")) } else { path };
    let split = |(file, raw): (PathBuf, String)| -> Result<Split> {
        let (mut dataset, warnings) = vigdet_coco::read_dataset_as_found(&file)?;
        let first: Vec<&str> = dataset.images.iter().take(8).map(|image| image.file_name.as_str()).collect();
        let folder = image_folder(root, &file, &raw, &first);
        let mut notes: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let changed = slash_names(&mut dataset.images, &folder);
        if changed > 0 {
            notes.push(format!("{changed} file names have `\\` between folders, which is read as `/`"));
        }
        Ok(Split { name: split_name(&raw), folder, dataset, notes, ..Split::default() })
    };
    files.into_iter().map(split).collect()
}

/// The folder that holds one of the first images; the likeliest where none does.
fn image_folder(root: &Path, file: &Path, raw: &str, first: &[&str]) -> PathBuf {
    let beside = file.parent().unwrap_or(root).to_path_buf();
    let name = split_name(raw);
    let mut candidates = vec![root.join(raw), root.join(&name), root.join("images").join(raw)];
    candidates.extend([root.join("images").join(&name), root.join("images"), root.join("data"), beside.clone()]);
    candidates.extend([root.to_path_buf(), beside.parent().unwrap_or(root).join("images"), beside.join("..")]);
    let holds = |folder: &&PathBuf| {
        let there = |name: &str| folder.join(name).is_file() || folder.join(path_of(name)).is_file();
        first.iter().any(|name| !name.is_empty() && there(name))
    };
    let there = |folder: &&PathBuf| folder.is_dir();
    let likely = if file.ends_with(BESIDE_IMAGES) { Some(&beside) } else { None };
    let found = candidates.iter().find(holds).or(likely).or(candidates.iter().find(there));
    found.cloned().unwrap_or(beside)
}

pub(super) fn write(import: &Import, writer: &mut Writer<'_>) -> Result<()> {
    for split in &import.splits {
        let name = match split.name.as_str() {
            name @ ("train" | "val") => format!("{name}2017"),
            name => name.to_owned(),
        };
        safe(&name)?;
        for image in &split.dataset.images {
            safe(&image.file_name)?;
            writer.image(split, image, &name)?;
        }
        let bytes = if split.scores.is_empty() {
            serde_json::to_vec(&split.dataset)
        } else {
            let mut value = serde_json::to_value(&split.dataset)?;
            let annotations = value["annotations"].as_array_mut().context("annotations are a list")?;
            for (annotation, &score) in annotations.iter_mut().zip(&split.scores) {
                annotation["score"] = score.into();
            }
            serde_json::to_vec(&value)
        };
        writer.file(format!("annotations/instances_{name}.json"), &bytes?)?;
    }
    Ok(())
}
