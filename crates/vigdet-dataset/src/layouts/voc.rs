//! Pascal VOC: an XML file an image, `ImageSets/Main/train.txt` with the names of a split, `JPEGImages`; or the XML
//! beside its image, in a folder for each split.
//!
//! VOC counts pixels from 1 and both corners are inside: xmin … xmax becomes x = xmin − 1, width = xmax − xmin + 1.
//! Many tools write corners as places between pixels, counted from 0. That is how a whole folder is read as soon as one
//! corner in it is below 1 or has a fraction; a note says so.

use super::draft::{Draft, Names, Object};
use super::place::{ensure_own_stems, safe, with_objects, Order, Writer};
use super::voc_xml::{self, VocImage};
use super::{mask_png, xml};
use crate::images::{by_stem, files_below, path_of, slashed, stem_of};
use crate::types::{split_name, Import, Split};
use anyhow::{Context, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

/// The order of classes, which VOC itself does not have: CVAT's file, a line `name:colour:parts:actions` a class.
const LABELS: &str = "labelmap.txt";

fn is_annotation(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("xml")) && xml::begins_with(file, "annotation")
}

pub(super) fn fits(path: &Path) -> bool {
    let folder = if path.join("Annotations").is_dir() { path.join("Annotations") } else { path.to_path_buf() };
    path.is_dir() && walkdir::WalkDir::new(folder).max_depth(3).into_iter().flatten().any(|e| is_annotation(e.path()))
}

/// The annotation files of a split: name in the lists, file.
type Files = Vec<(String, PathBuf)>;

/// The files of each split, and notes.
type Listed = (Vec<(String, Files)>, Vec<&'static str>);

pub(super) fn read(path: &Path) -> Result<Vec<Split>> {
    let devkit = path.join("Annotations").is_dir();
    let folder = if devkit { path.join("Annotations") } else { path.to_path_buf() };
    let files = files_below(&folder, is_annotation);
    let stems: BTreeMap<String, PathBuf> =
        files.into_iter().filter_map(|file| Some((stem_of(&file, &folder)?, file))).collect();
    let (splits, mut notes) = if devkit { listed(path, &stems)? } else { (by_folder(&stems), Vec::new()) };
    let images = if devkit && path.join("JPEGImages").is_dir() { path.join("JPEGImages") } else { path.to_path_buf() };
    let found = by_stem(&images);
    let parsed: Vec<(String, Files, Vec<Result<VocImage>>)> = splits
        .into_iter()
        .map(|(name, files)| {
            let parsed = files.par_iter().map(|(_, file)| voc_xml::parse(file)).collect();
            (name, files, parsed)
        })
        .collect();
    let all = parsed.iter().flat_map(|(_, _, parsed)| parsed.iter().flatten());
    let between_pixels = all.flat_map(|image| &image.objects).any(|object| object.is_between_pixels());
    if between_pixels {
        notes.push("corners are read as places between pixels, counted from 0: some are below 1 or have fractions");
    }
    let mut names = labels(path)?;
    let mut drafts = Vec::new();
    for (name, files, parsed) in parsed {
        let mut draft = Draft::new(&name, &images);
        for ((stem, file), parsed) in files.into_iter().zip(parsed) {
            match parsed {
                Ok(image) => {
                    let there = found.get(&stem).and_then(|image| image.strip_prefix(&images).ok()).map(slashed);
                    let named = || slashed(&Path::new(&stem).with_file_name(path_of(&image.file_name)));
                    draft.images.push((there.unwrap_or_else(named), image.width, image.height));
                    let masks = path.join("SegmentationObject").join(&stem).with_extension("png");
                    add(&mut draft, &mut names, image, between_pixels, &masks);
                }
                Err(error) => draft.fault(file.display().to_string(), format!("{error:#}")),
            }
        }
        notes.iter().for_each(|&note| draft.note(note));
        drafts.push(draft);
    }
    Ok(names.finish(drafts))
}

/// The splits of `ImageSets/Main`, or everything as one.
fn listed(path: &Path, stems: &BTreeMap<String, PathBuf>) -> Result<Listed> {
    let folder = path.join("ImageSets").join("Main");
    let lists = ["train", "val", "test", "trainval"].map(|name| (name, folder.join(name).with_extension("txt")));
    let mut splits = Vec::new();
    let mut notes = Vec::new();
    for (name, list) in lists.into_iter().filter(|(_, list)| list.is_file()) {
        // `trainval` is `train` and `val` together.
        if name == "trainval" && splits.iter().any(|(name, _)| name == "train") {
            continue;
        }
        let text = xml::read(&list)?;
        let mut files = Files::new();
        for line in text.lines().map(|line| line.trim().replace('\\', "/")).filter(|line| !line.is_empty()) {
            // Lists of one class have a second column, which says whether the image has it.
            let first = line.split_whitespace().next().unwrap_or(&line);
            match stems.get_key_value(&line).or_else(|| stems.get_key_value(first)) {
                Some((stem, file)) => files.push((stem.clone(), file.clone())),
                None => notes.push("a name in ImageSets/Main has no file in Annotations and is left out"),
            }
        }
        splits.push((if name == "trainval" { "train" } else { name }.to_owned(), files));
    }
    if splits.is_empty() {
        splits.push(("all".to_owned(), stems.clone().into_iter().collect()));
    }
    Ok((splits, notes))
}

/// The splits by the first folder, where that has a split's name.
fn by_folder(stems: &BTreeMap<String, PathBuf>) -> Vec<(String, Files)> {
    let mut splits: BTreeMap<String, Files> = BTreeMap::new();
    for (stem, file) in stems {
        let name = stem.split_once('/').map(|(first, _)| split_name(first));
        let name = name.filter(|name| ["train", "val", "test"].contains(&name.as_str()));
        splits.entry(name.unwrap_or_else(|| "all".to_owned())).or_default().push((stem.clone(), file.clone()));
    }
    splits.into_iter().collect()
}

fn labels(path: &Path) -> Result<Names> {
    let file = path.join(LABELS);
    if !file.is_file() {
        return Ok(Names::default());
    }
    let text = xml::read(&file)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let names = lines.map(|line| line.split(':').next().unwrap_or(line).trim().to_owned());
    Ok(Names::listed(names.filter(|name| name != "background")))
}

fn add(draft: &mut Draft, names: &mut Names, image: VocImage, between_pixels: bool, masks: &Path) {
    let at = draft.images.len() - 1;
    let numbers = match std::fs::read(masks) {
        Ok(bytes) => match mask_png::read(&bytes) {
            Ok(numbers) => Some(numbers),
            Err(error) => {
                draft.fault(masks.display().to_string(), format!("{error:#}"));
                None
            }
        },
        Err(_) => None,
    };
    for (place, object) in image.objects.into_iter().enumerate() {
        if object.difficult {
            draft.note("an object marked `difficult` is read as a crowd: ignored in training and evaluation");
        }
        let class = names.place(&object.name);
        let bbox = object.bbox(between_pixels);
        // The objects of a file have the numbers 1, 2, … in the image of masks.
        let number = u8::try_from(place + 1).ok().filter(|&number| number < 255);
        let mask = numbers.as_ref().zip(number).and_then(|(numbers, number)| {
            let pixels: Vec<bool> = numbers.pixels.iter().map(|&pixel| pixel == number).collect();
            let mask = Rle::from_rows(numbers.height, numbers.width, &pixels).ok()?;
            (mask.area() > 0).then_some(Segmentation::Rle(mask))
        });
        let crowd = object.difficult;
        let segmentation = mask.or(object.polygon.map(|polygon| Segmentation::Polygons(vec![polygon])));
        draft.objects.push(Object { image: at, class, bbox, segmentation, crowd, ..Object::default() });
    }
}

pub(super) fn write(import: &Import, writer: &mut Writer<'_>) -> Result<()> {
    let order = Order::of(import.classes());
    let whole = |annotation: &vigdet_coco::types::Annotation| {
        let [x, y, w, h] = annotation.bbox;
        x >= 0.0 && y >= 0.0 && [x, y, w, h].iter().all(|value| value.fract() == 0.0)
    };
    let between_pixels = !import.splits.iter().flat_map(|split| &split.dataset.annotations).all(whole);
    let names = super::place::own_names(import)?;
    let mut map = "# label:color_rgb:parts:actions\nbackground:0,0,0::\n".to_owned();
    for (class, name) in order.names.iter().enumerate() {
        let [r, g, b] = mask_png::colour((class + 1) as u8);
        map.push_str(&format!("{name}:{r},{g},{b}::\n"));
    }
    writer.file(LABELS, map.as_bytes())?;
    if between_pixels {
        writer.lost("boxes have fractions: corners are written as places between pixels, counted from 0");
    }
    for (split, names) in import.splits.iter().zip(names) {
        ensure_own_stems(split)?;
        let mut list = String::new();
        for ((image, objects), name) in with_objects(split).into_iter().zip(names) {
            let stem = slashed(&safe(&name)?.with_extension(""));
            list.push_str(&format!("{stem}\n"));
            writer.image_as(split, image, &format!("JPEGImages/{name}"))?;
            let objects: Vec<_> = objects.into_iter().map(|at| &split.dataset.annotations[at]).collect();
            if !split.scores.is_empty() {
                writer.lost("Pascal VOC has no place for scores");
            }
            let masks = masks(&objects, image, writer)?;
            if let Some(bytes) = &masks {
                writer.file(format!("SegmentationObject/{stem}.png"), bytes)?;
            }
            let file_name = name.rsplit('/').next().unwrap_or(&name);
            let text = voc_xml::write(file_name, image, &objects, &order, between_pixels, masks.is_some())?;
            writer.file(format!("Annotations/{stem}.xml"), text.as_bytes())?;
        }
        let name = if split.name == "all" { "trainval" } else { &split.name };
        writer.file(format!("ImageSets/Main/{name}.txt"), list.as_bytes())?;
    }
    Ok(())
}

/// The masks of an image as numbers 1, 2, … of its objects. `None` where none has a mask.
fn masks(
    objects: &[&vigdet_coco::types::Annotation],
    image: &vigdet_coco::types::Image,
    writer: &mut Writer<'_>,
) -> Result<Option<Vec<u8>>> {
    if objects.iter().all(|object| object.segmentation.is_none()) {
        return Ok(None);
    }
    let (width, height) = (image.width as usize, image.height as usize);
    let mut pixels = vec![0u8; width * height];
    for (place, object) in objects.iter().enumerate() {
        let Some(segmentation) = &object.segmentation else { continue };
        let Some(number) = u8::try_from(place + 1).ok().filter(|&number| number < 255) else {
            writer.lost("only the first 254 objects of an image keep their mask");
            continue;
        };
        let mask = segmentation.to_rle(image.height, image.width);
        let mask = mask.with_context(|| format!("annotation {}", object.id))?;
        anyhow::ensure!(
            mask.size() == (image.height, image.width),
            "annotation {}: the mask is of another size than {}",
            object.id,
            image.file_name
        );
        for (i, inside) in mask.to_rows().into_iter().enumerate().filter(|(_, inside)| *inside) {
            if pixels[i] != 0 {
                writer.lost("masks lie over each other: a shared pixel goes to the later object");
            }
            pixels[i] = if inside { number } else { pixels[i] };
        }
    }
    mask_png::write_palette(image.width, image.height, &pixels).map(Some)
}
