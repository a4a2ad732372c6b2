//! A CSV with a row a box and named columns, for which many names are known: see [`Columns`].
//!
//! Boxes are corners or corner and size, in pixels counted from 0; all in 0 … 1, they are fractions of the image. A row
//! with an image alone stands for an image without objects. Columns `split`, `score`, `iscrowd` and the image's size
//! are used where they are there. The class order is by name.

use super::draft::{Draft, Names, Object};
use super::place::{own_names, with_objects, Order, Writer};
use super::xml;
use crate::images::{by_stem, header, in_common_folder, path_of, tidied};
use crate::types::{split_name, Import, Split};
use anyhow::{bail, ensure, Context, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Where each value stands.
#[derive(Debug)]
struct Columns {
    image: usize,
    class: usize,
    bbox: BoxColumns,
    split: Option<usize>,
    score: Option<usize>,
    crowd: Option<usize>,
    size: Option<[usize; 2]>,
}

#[derive(Debug)]
enum BoxColumns {
    Corners([usize; 4]),
    Sizes([usize; 4]),
    /// One cell: `[x, y, width, height]`.
    Cell(usize),
}

impl Columns {
    fn of(titles: &csv::StringRecord) -> Option<Columns> {
        let plain = |title: &str| title.trim().trim_start_matches('\u{FEFF}').to_lowercase().replace([' ', '-'], "_");
        let titles: Vec<String> = titles.iter().map(plain).collect();
        let any = |names: &[&str]| names.iter().find_map(|name| titles.iter().position(|title| title == name));
        let four = |sets: &[[&str; 4]]| {
            sets.iter().find_map(|names| {
                let places: Vec<usize> = names.iter().filter_map(|name| any(&[name])).collect();
                places.try_into().ok()
            })
        };
        let corners = four(&[
            ["xmin", "ymin", "xmax", "ymax"],
            ["x_min", "y_min", "x_max", "y_max"],
            ["x1", "y1", "x2", "y2"],
            ["left", "top", "right", "bottom"],
            ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"],
        ]);
        let sizes = four(&[
            ["x", "y", "w", "h"],
            ["x", "y", "width", "height"],
            ["left", "top", "width", "height"],
            ["bbox_x", "bbox_y", "bbox_width", "bbox_height"],
            ["bbox_x", "bbox_y", "bbox_w", "bbox_h"],
        ]);
        let bbox = match (corners, sizes) {
            (Some(corners), _) => BoxColumns::Corners(corners),
            (None, Some(sizes)) => BoxColumns::Sizes(sizes),
            (None, None) => BoxColumns::Cell(any(&["bbox", "box"])?),
        };
        let of_image = match bbox {
            BoxColumns::Sizes(at) if at.contains(&any(&["width"]).unwrap_or(usize::MAX)) => None,
            _ => any(&["width"]).zip(any(&["height"])),
        };
        let size = any(&["image_width", "img_width"]).zip(any(&["image_height", "img_height"])).or(of_image);
        Some(Columns {
            image: any(&[
                "filename",
                "file_name",
                "image",
                "image_path",
                "path",
                "file",
                "image_name",
                "img",
                "image_id",
                "img_path",
            ])?,
            class: any(&["class", "label", "category", "class_name", "label_name", "category_name", "name"])?,
            bbox,
            split: any(&["split", "set", "subset", "fold"]),
            score: any(&["score", "confidence"]),
            crowd: any(&["iscrowd", "is_crowd", "crowd"]),
            size: size.map(|(width, height)| [width, height]),
        })
    }
}

fn open(file: &Path) -> Result<csv::Reader<std::fs::File>> {
    let beginning = xml::read(file)?;
    let line = beginning.lines().next().unwrap_or_default();
    let delimiter = [b',', b';', b'\t'].into_iter().max_by_key(|&d| line.bytes().filter(|&b| b == d).count());
    let mut builder = csv::ReaderBuilder::new();
    builder.delimiter(delimiter.unwrap_or(b',')).trim(csv::Trim::All);
    builder.from_path(file).with_context(|| format!("{}", file.display()))
}

fn fits(file: &Path) -> bool {
    let is_csv = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv") || e.eq_ignore_ascii_case("tsv"));
    is_csv && open(file).is_ok_and(|mut reader| reader.headers().is_ok_and(|titles| Columns::of(titles).is_some()))
}

/// The CSV files of a folder.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return fits(path).then(|| path.to_path_buf()).into_iter().collect();
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|file| fits(file)).collect();
    files.sort();
    files
}

/// The first CSV file of a folder.
pub(super) fn file(path: &Path) -> Option<PathBuf> {
    files(path).into_iter().next()
}

pub(super) fn read(path: &Path) -> Result<Vec<Split>> {
    let files = files(path);
    ensure!(!files.is_empty(), "there is no {}", super::Layout::Csv.looked_for());
    let root = if path.is_file() { path.parent().unwrap_or(Path::new(".")) } else { path };
    let found = by_stem(root);
    let mut names = Names::default();
    let mut splits: BTreeMap<String, Rows> = BTreeMap::new();
    for file in &files {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let words: Vec<String> = stem.split(['-', '_', '.']).map(split_name).collect();
        let of_file = words.into_iter().find(|word| ["train", "val", "test"].contains(&word.as_str()));
        read_rows(file, root, &found, of_file.as_deref().unwrap_or("all"), &mut names, &mut splits)?;
    }
    let drafts = splits.into_iter().map(|(name, rows)| rows.into_draft(&name, root));
    Ok(names.finish(drafts.collect()))
}

/// The rows of a split.
#[derive(Default)]
struct Rows {
    paths: Vec<PathBuf>,
    /// By the name in the file.
    places: HashMap<String, usize>,
    sizes: Vec<(u32, u32)>,
    draft: Draft,
}

fn read_rows(
    file: &Path,
    root: &Path,
    found: &BTreeMap<String, PathBuf>,
    of_file: &str,
    names: &mut Names,
    splits: &mut BTreeMap<String, Rows>,
) -> Result<()> {
    let mut reader = open(file)?;
    let failed = || format!("{}", file.display());
    let columns = Columns::of(reader.headers().with_context(failed)?).with_context(failed)?;
    for record in reader.records() {
        let record = record.with_context(failed)?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |at: usize| record.get(at).unwrap_or_default();
        let split = columns.split.map(cell).filter(|text| !text.is_empty()).map(split_name);
        let rows = splits.entry(split.unwrap_or_else(|| of_file.to_owned())).or_default();
        let image = match rows.places.get(cell(columns.image)) {
            Some(&image) => image,
            None => {
                rows.places.insert(cell(columns.image).to_owned(), rows.paths.len());
                rows.paths.push(image_path(cell(columns.image), root, found));
                rows.sizes.push((0, 0));
                rows.paths.len() - 1
            }
        };
        if let Some([width, height]) = columns.size {
            let side = |at: usize| cell(at).parse::<f64>().ok().filter(|v| (1.0..4e9).contains(v)).map(|v| v as u32);
            rows.sizes[image] = side(width).zip(side(height)).unwrap_or(rows.sizes[image]);
        }
        match bbox(&columns.bbox, &cell) {
            Ok(Some(_)) if cell(columns.class).is_empty() => {
                rows.draft.fault(format!("{}:{line}", file.display()), "the class is empty");
            }
            Ok(Some(bbox)) => {
                let class = names.place(cell(columns.class));
                let crowd = columns.crowd.is_some_and(|at| matches!(cell(at), "1" | "true" | "True"));
                let score = columns.score.and_then(|at| cell(at).parse().ok());
                rows.draft.objects.push(Object { image, class, bbox, crowd, score, ..Object::default() });
            }
            Ok(None) => {}
            Err(error) => rows.draft.fault(format!("{}:{line}", file.display()), format!("{error:#}")),
        }
    }
    Ok(())
}

/// The image of a row: relative to the CSV, or in `images`; also without its ending, or by its name alone.
fn image_path(name: &str, root: &Path, found: &BTreeMap<String, PathBuf>) -> PathBuf {
    let path = path_of(name);
    let direct = [tidied(&root.join(&path)), root.join("images").join(&path)];
    if let Some(there) = direct.iter().find(|path| path.is_file()) {
        return there.clone();
    }
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is_same = |(_, path): &(&String, &PathBuf)| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name == file || name.rsplit_once('.').is_some_and(|(stem, _)| stem == file)
    };
    found.iter().find(is_same).map_or_else(|| direct[0].clone(), |(_, path)| path.clone())
}

/// The box of a row; `None` where all its cells are empty.
fn bbox<'a>(columns: &BoxColumns, cell: &impl Fn(usize) -> &'a str) -> Result<Option<[f64; 4]>> {
    let cells: Vec<&str> = match columns {
        BoxColumns::Corners(at) | BoxColumns::Sizes(at) => at.iter().map(|&at| cell(at)).collect(),
        BoxColumns::Cell(at) => {
            let inner = cell(*at).trim_matches(['[', ']', '(', ')', ' ']);
            inner.split([',', ' ']).map(str::trim).filter(|text| !text.is_empty()).collect()
        }
    };
    if cells.iter().all(|text| text.is_empty()) {
        return Ok(None);
    }
    let values = cells.iter().map(|text| xml::finite(text)).collect::<Result<Vec<f64>>>()?;
    let Ok([a, b, c, d]) = <[f64; 4]>::try_from(values) else { bail!("a box has four numbers") };
    Ok(Some(match columns {
        BoxColumns::Corners(_) => [a, b, c - a, d - b],
        _ => [a, b, c, d],
    }))
}

impl Rows {
    fn into_draft(mut self, name: &str, root: &Path) -> Draft {
        let (folder, names) = in_common_folder(&self.paths, root);
        for (size, path) in self.sizes.iter_mut().zip(&self.paths).filter(|(size, _)| size.0 == 0) {
            *size = header(path).map_or((0, 0), |header| (header.width, header.height));
        }
        let in_fractions = |object: &Object| {
            let [x, y, w, h] = object.bbox;
            w > 0.0 && h > 0.0 && x >= 0.0 && y >= 0.0 && x + w <= 1.0 + 1e-6 && y + h <= 1.0 + 1e-6
        };
        if !self.draft.objects.is_empty() && self.draft.objects.iter().all(in_fractions) {
            self.draft.note("boxes are read as fractions of their image: all lie between 0 and 1");
            for object in &mut self.draft.objects {
                let (width, height) = self.sizes[object.image];
                let scale = [width, height, width, height].map(f64::from);
                object.bbox.iter_mut().zip(scale).for_each(|(value, scale)| *value *= scale);
            }
        }
        let images = names.into_iter().zip(self.sizes).map(|(name, size)| (name, size.0, size.1)).collect();
        Draft { name: name.to_owned(), folder, images, ..self.draft }
    }
}

pub(super) fn write(import: &Import, writer: &mut Writer<'_>) -> Result<()> {
    let order = Order::of(import.classes());
    let scored = import.splits.iter().any(|split| !split.scores.is_empty());
    let mut table = csv::Writer::from_writer(Vec::new());
    let mut titles = vec!["split", "file_name", "image_width", "image_height", "class", "x", "y", "w", "h", "iscrowd"];
    titles.extend(scored.then_some("score"));
    table.write_record(titles)?;
    for (split, names) in import.splits.iter().zip(own_names(import)?) {
        for ((image, objects), name) in with_objects(split).into_iter().zip(names) {
            writer.image_as(split, image, &format!("images/{name}"))?;
            let start = vec![split.name.clone(), name, image.width.to_string(), image.height.to_string()];
            let score = |at: Option<usize>| {
                scored.then(|| at.and_then(|at| split.score(at)).map_or(String::new(), |s| s.to_string()))
            };
            if objects.is_empty() {
                let mut row = start.clone();
                row.resize(10, String::new());
                row.extend(score(None));
                table.write_record(row)?;
            }
            for at in objects {
                let annotation = &split.dataset.annotations[at];
                if annotation.segmentation.is_some() {
                    writer.lost("masks are lost: the CSV has boxes alone");
                }
                let mut row = start.clone();
                row.push(order.name(annotation)?.to_owned());
                row.extend(annotation.bbox.map(|value| value.to_string()));
                row.push(u8::from(annotation.iscrowd).to_string());
                row.extend(score(Some(at)));
                table.write_record(row)?;
            }
        }
    }
    writer.lost("the CSV keeps no list of classes: those without objects are lost, and the order is by name");
    writer.file("boxes.csv", &table.into_inner()?)
}
