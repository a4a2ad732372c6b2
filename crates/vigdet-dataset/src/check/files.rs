//! The image files: there, readable, of the size that the labels say.

use super::same::Picture;
use super::{of, Example, Findings, Kind, Options};
use crate::images::{self, Header};
use crate::layouts::safe;
use crate::progress::Progress;
use crate::types::{Import, Split};
use image::metadata::Orientation;
use image::ImageFormat;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use vigdet_coco::types::Image;

/// As many pixels as the decoders of training take.
const MOST_PIXELS: u64 = 178_956_970;

/// What was seen of a file.
struct Seen {
    header: Option<Header>,
    trouble: Option<(Kind, String)>,
    picture: Option<Picture>,
}

/// For each split and image its width and height: those of the labels, else of the file, else 0.
pub(super) type Sizes = Vec<Vec<(u32, u32)>>;

/// Looks at all files. Gives sizes, and where images are decoded what they look like.
pub(super) fn check(import: &Import, options: &Options, findings: &mut Findings) -> (Sizes, Vec<Vec<Option<Picture>>>) {
    let images = import.splits.iter().map(|split| split.dataset.images.len()).sum();
    let progress = Progress::of_images(images, options.progress && options.decode);
    let (mut sizes, mut pictures) = (Vec::new(), Vec::new());
    for split in &import.splits {
        let seen: Vec<Seen> = split
            .dataset
            .images
            .par_iter()
            .map(|image| {
                let seen = look(&split.path(&image.file_name), &image.file_name, options.decode);
                progress.step();
                seen
            })
            .collect();
        let size = |image: &Image, seen: &Seen| match seen.header {
            Some(header) if image.width == 0 || image.height == 0 => (header.width, header.height),
            _ => (image.width, image.height),
        };
        sizes.push(split.dataset.images.iter().zip(&seen).map(|(image, seen)| size(image, seen)).collect());
        let mut other_cases = OtherCases::default();
        for (image, seen) in split.dataset.images.iter().zip(&seen) {
            report(split, image, seen, &mut other_cases, findings);
        }
        pictures.push(seen.into_iter().map(|seen| seen.picture).collect());
    }
    progress.finish();
    unlisted(import, findings);
    (sizes, pictures)
}

/// What the images of a split look like, in parallel; `None` for those that cannot be decoded. With `progress` a bar is
/// shown.
pub fn pictures(split: &Split, progress: bool) -> Vec<Option<Picture>> {
    let progress = Progress::of_images(split.dataset.images.len(), progress);
    let images = split.dataset.images.par_iter();
    let pictures = images.map(|image| {
        let picture = look(&split.path(&image.file_name), &image.file_name, true).picture;
        progress.step();
        picture
    });
    let pictures = pictures.collect();
    progress.finish();
    pictures
}

fn look(path: &Path, name: &str, decode: bool) -> Seen {
    let trouble = |kind, text: String| Seen { header: None, trouble: Some((kind, text)), picture: None };
    if name.is_empty() {
        // Reported with the ids.
        return Seen { header: None, trouble: None, picture: None };
    }
    if safe(name).is_err() {
        return trouble(Kind::NameLeavesFolder, String::new());
    }
    if !path.is_file() {
        return trouble(Kind::ImageMissing, format!("in {}", path.parent().unwrap_or(path).display()));
    }
    let (header, bytes, file) = match images::begin(path) {
        Ok(begun) => begun,
        Err(_) if path.metadata().is_ok_and(|metadata| metadata.len() == 0) => {
            return trouble(Kind::ImageEmpty, String::new());
        }
        Err(error) => return trouble(Kind::ImageUnknown, error.root_cause().to_string()),
    };
    let pixels = u64::from(header.width) * u64::from(header.height);
    let with_header = |trouble, picture| Seen { header: Some(header), trouble, picture };
    if pixels > MOST_PIXELS {
        return with_header(Some((Kind::ImageHuge, format!("{}×{}", header.width, header.height))), None);
    }
    if !decode {
        return with_header(None, None);
    }
    match decoded(bytes, file, header.format) {
        Ok(picture) => with_header(None, Some(picture)),
        Err(error) => with_header(Some((Kind::ImageBroken, format!("{error:#}"))), None),
    }
}

/// The picture of a file whose first `bytes` are read.
fn decoded(mut bytes: Vec<u8>, mut file: File, format: ImageFormat) -> anyhow::Result<Picture> {
    file.read_to_end(&mut bytes)?;
    // The decoder fills what is missing with grey.
    anyhow::ensure!(format != ImageFormat::Jpeg || images::has_end(&bytes), "the file is cut off");
    let image = image::load_from_memory_with_format(&bytes, format)?;
    Ok(Picture::of(&bytes, &image))
}

fn report(split: &Split, image: &Image, seen: &Seen, other_cases: &mut OtherCases, findings: &mut Findings) {
    if let Some((kind, detail)) = &seen.trouble {
        match other_cases.of(split, image).filter(|_| *kind == Kind::ImageMissing) {
            Some(name) => findings.add(Kind::NameOtherCase, || of(split, image, format!("there is {name}"))),
            None => findings.add(*kind, || of(split, image, detail.clone())),
        }
    }
    let Some(header) = seen.header else { return };
    let (width, height) = (header.width, header.height);
    let said = (image.width, image.height);
    let detail = || format!("labels {}×{}, file {width}×{height}", said.0, said.1);
    if said.0 == 0 || said.1 == 0 {
        findings.add(Kind::SizeUnknown, || of(split, image, ""));
    } else if said != (width, height) {
        let kind = match said == (height, width) {
            true if header.on_its_side() => Kind::TurnedByExif,
            true => Kind::SizeSwapped,
            false => Kind::SizeDiffers,
        };
        findings.add(kind, || of(split, image, detail()));
    } else if header.orientation != Orientation::NoTransforms {
        findings.add(Kind::ExifOrientation, || of(split, image, format!("{:?}", header.orientation)));
    }
    let ending = Path::new(&image.file_name).extension().map(|ending| ending.to_string_lossy().to_lowercase());
    if let Some(ending) = ending.filter(|ending| images::ENDINGS.contains(&ending.as_str())) {
        if !header.format.extensions_str().contains(&ending.as_str()) {
            findings.add(Kind::EndingWrong, || of(split, image, format!("{:?}", header.format)));
        }
    }
}

/// The names in folders, in small letters; each folder is read once.
#[derive(Default)]
struct OtherCases(HashMap<PathBuf, BTreeMap<String, String>>);

impl OtherCases {
    /// A file whose name differs from the image's in the case of letters only.
    fn of(&mut self, split: &Split, image: &Image) -> Option<String> {
        let path = split.path(&image.file_name);
        let (folder, name) = (path.parent()?.to_path_buf(), path.file_name()?.to_string_lossy().to_lowercase());
        let names = self.0.entry(folder).or_insert_with_key(|folder| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.map(|name| (name.to_lowercase(), name)).collect()
        });
        names.get(&name).cloned()
    }
}

/// Images in the folders of the splits that no split names. A single name far off, as `/a.jpg`, makes a split's folder
/// the whole disk: above what was read nothing is looked for.
fn unlisted(import: &Import, findings: &mut Findings) {
    let root = import.root.canonicalize().unwrap_or_else(|_| import.root.clone());
    let root = if root.is_file() { root.parent().unwrap_or(&root) } else { &root };
    // Links to one folder are one folder.
    let real = |split: &Split| split.folder.canonicalize().unwrap_or_else(|_| split.folder.clone());
    let mut listed: HashSet<PathBuf> = HashSet::new();
    let mut folders: Vec<(&str, PathBuf)> = Vec::new();
    for split in &import.splits {
        let real = real(split);
        listed.extend(split.dataset.images.iter().map(|image| real.join(&image.file_name)));
        if !folders.iter().any(|(_, folder)| *folder == real) {
            folders.push((&split.name, real));
        }
    }
    let mut seen = HashSet::new();
    for (split, folder) in folders {
        for path in images::below(if root.starts_with(&folder) { root } else { &folder }) {
            if !listed.contains(&path) && seen.insert(path.clone()) {
                let file = images::slashed(path.strip_prefix(&folder).unwrap_or(&path));
                let example = || Example { split: split.to_owned(), file, ..Example::default() };
                findings.add(Kind::ImageUnlisted, example);
            }
        }
    }
}
