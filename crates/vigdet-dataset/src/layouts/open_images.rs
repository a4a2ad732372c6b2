//! Open Images: a CSV of boxes in fractions of the image for each split, and the names of the classes.
//!
//! `train-annotations-bbox.csv` (also `oidv6-…`, or `labels/detections.csv`), `class-descriptions*.csv` or
//! `metadata/classes.csv`. The images are `<ImageID>.jpg` in a folder of the split's name, in `images`, in `data`, or
//! beside. Groups (`IsGroupOf`) are crowds. The class order is that of the descriptions.

use super::draft::{Draft, Names, Object};
use super::place::{ensure_own_stems, own_names, safe, with_objects, Order, Writer};
use super::xml;
use crate::images::{by_stem, files_below, headers, in_common_folder, slashed};
use crate::types::{split_name, Import, Split};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

const COLUMNS: [&str; 6] = ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"];

fn fits(file: &Path) -> bool {
    if !file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv")) {
        return false;
    }
    let reader = csv::ReaderBuilder::new().from_path(file);
    let headers = reader.and_then(|mut reader| reader.headers().cloned());
    headers.is_ok_and(|headers| COLUMNS.iter().all(|column| headers.iter().any(|header| header.trim() == *column)))
}

/// The CSV files of boxes.
pub(super) fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return fits(path).then(|| path.to_path_buf()).into_iter().collect();
    }
    files_below(path, fits)
}

/// The split in a file's name.
fn split_of(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    let folder = file.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let words = stem.split(['-', '_', '.']).map(split_name).chain(folder.map(|name| split_name(&name)));
    words.into_iter().find(|word| ["train", "val", "test"].contains(&word.as_str())).unwrap_or_else(|| "all".to_owned())
}

pub(super) fn read(path: &Path) -> Result<Vec<Split>> {
    let files = files(path);
    anyhow::ensure!(!files.is_empty(), "there is no {}", super::Layout::OpenImages.looked_for());
    let root = if path.is_file() { path.parent().unwrap_or(Path::new(".")) } else { path };
    let descriptions = descriptions(root)?;
    let mut names = Names::listed(descriptions.iter().map(|(_, name)| name.clone()));
    let by_code: HashMap<&str, &str> = descriptions.iter().map(|(code, name)| (code.as_str(), name.as_str())).collect();
    let images = by_stem(root);
    let mut by_name: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
    for (stem, file) in &images {
        by_name.entry(stem.rsplit('/').next().unwrap_or(stem)).or_default().push(file);
    }
    let mut drafts = Vec::new();
    for file in files {
        drafts.push(read_split(&file, root, &by_name, &by_code, &mut names)?);
    }
    Ok(names.finish(drafts))
}

/// Codes and names of the classes, in file order. Empty where there is no such file.
fn descriptions(root: &Path) -> Result<Vec<(String, String)>> {
    let is_list = |file: &Path| {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.ends_with(".csv") && (name.contains("class-descriptions") || name == "classes.csv")
    };
    let Some(file) = files_below(root, is_list).into_iter().next() else { return Ok(Vec::new()) };
    let failed = || format!("class descriptions {}", file.display());
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_path(&file).with_context(failed)?;
    let mut list = Vec::new();
    let mut seen = HashSet::new();
    for record in reader.records() {
        let record = record.with_context(failed)?;
        let (Some(code), Some(name)) = (record.get(0), record.get(1)) else { continue };
        // Later releases begin with a line of titles.
        if code != "LabelName" && seen.insert(name.to_owned()) {
            list.push((code.trim().to_owned(), name.to_owned()));
        }
    }
    Ok(list)
}

fn read_split(
    file: &Path,
    root: &Path,
    by_name: &BTreeMap<&str, Vec<&Path>>,
    by_code: &HashMap<&str, &str>,
    names: &mut Names,
) -> Result<Draft> {
    let split = split_of(file);
    let failed = || format!("{}", file.display());
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(file).with_context(failed)?;
    let titles = reader.headers().with_context(failed)?.clone();
    let column = |name: &str| titles.iter().position(|title| title == name);
    let wanted: Vec<usize> = COLUMNS.iter().filter_map(|name| column(name)).collect();
    let (group, confidence, source) = (column("IsGroupOf"), column("Confidence"), column("Source"));
    let mut order: Vec<PathBuf> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut draft = Draft::new(&split, root);
    // Objects in fractions: scaled when the sizes are known.
    for record in reader.records() {
        let record = record.with_context(failed)?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |at: usize| record.get(at).unwrap_or_default();
        let corners = (|| -> Result<[f64; 4]> {
            let mut corners = [0.0; 4];
            for (corner, at) in corners.iter_mut().zip(&wanted[2..]) {
                *corner = xml::finite(cell(*at)).context(titles[*at].to_owned())?;
            }
            Ok(corners)
        })();
        let corners = match corners {
            Ok(corners) => corners,
            Err(error) => {
                draft.fault(format!("{}:{line}", file.display()), format!("{error:#}"));
                continue;
            }
        };
        let id = cell(wanted[0]);
        let image = *places.entry(id.to_owned()).or_insert_with(|| {
            let all = by_name.get(id).map_or(&[][..], Vec::as_slice);
            let of_split = |path: &&&Path| {
                let folders = path.strip_prefix(root).unwrap_or(path).components();
                folders.map(|part| split_name(&part.as_os_str().to_string_lossy())).any(|name| name == split)
            };
            let found = all.iter().find(of_split).or(all.first()).map(|path| path.to_path_buf());
            order.push(found.unwrap_or_else(|| root.join(format!("{id}.jpg"))));
            order.len() - 1
        });
        let code = cell(wanted[1]);
        let class = names.place(by_code.get(code).copied().unwrap_or(code));
        let crowd = group.is_some_and(|at| cell(at) == "1");
        if crowd {
            draft.note("a group (`IsGroupOf`) is read as a crowd");
        }
        // People's boxes have the confidence 1.
        let machine = source.is_some_and(|at| cell(at) == "activemil" || cell(at) == "machine");
        let score = confidence.filter(|_| machine).and_then(|at| cell(at).parse().ok());
        draft.objects.push(Object { image, class, bbox: corners, crowd, score, ..Object::default() });
    }
    let sizes = headers(&order);
    let (folder, file_names) = in_common_folder(&order, root);
    draft.folder = folder;
    for (name, header) in file_names.into_iter().zip(&sizes) {
        let size = header.as_ref().map_or((0, 0), |header| (header.width, header.height));
        draft.images.push((name, size.0, size.1));
    }
    let before = draft.objects.len();
    draft.objects.retain_mut(|object| {
        let Ok(header) = &sizes[object.image] else { return false };
        let (width, height) = (f64::from(header.width), f64::from(header.height));
        let [left, right, top, bottom] = object.bbox;
        object.bbox = [left * width, top * height, (right - left) * width, (bottom - top) * height];
        true
    });
    for _ in draft.objects.len()..before {
        draft.note("an object of an image that cannot be read is left out: its fractions have no size");
    }
    Ok(draft)
}

pub(super) fn write(import: &Import, writer: &mut Writer<'_>) -> Result<()> {
    let order = Order::of(import.classes());
    let table = |rows: &[Vec<String>]| -> Result<Vec<u8>> {
        let mut table = csv::Writer::from_writer(Vec::new());
        rows.iter().try_for_each(|row| table.write_record(row))?;
        Ok(table.into_inner()?)
    };
    let code = |class: usize| format!("/vigdet/{}", class + 1);
    let classes: Vec<_> = order.names.iter().enumerate().map(|(i, name)| vec![code(i), name.clone()]).collect();
    writer.file("class-descriptions-boxable.csv", &table(&classes)?)?;
    for (split, names) in import.splits.iter().zip(own_names(import)?) {
        ensure_own_stems(split)?;
        let titles = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,\
                      IsDepiction,IsInside";
        let mut rows = vec![titles.split(',').map(str::to_owned).collect::<Vec<_>>()];
        let folder = if split.name == "val" { "validation" } else { &split.name };
        for ((image, objects), name) in with_objects(split).into_iter().zip(names) {
            let flat = name.replace('/', "_");
            writer.image_as(split, image, &format!("{folder}/{flat}"))?;
            let id = slashed(&safe(&flat)?.with_extension(""));
            if objects.is_empty() {
                writer.lost("an image without objects has no row, and so is lost");
            }
            for at in objects {
                let annotation = &split.dataset.annotations[at];
                if annotation.segmentation.is_some() {
                    writer.lost("masks are lost: the CSV has boxes alone");
                }
                anyhow::ensure!(image.width > 0 && image.height > 0, "{} has no size", image.file_name);
                let (width, height) = (f64::from(image.width), f64::from(image.height));
                let [x, y, w, h] = annotation.bbox;
                let corners = [x / width, (x + w) / width, y / height, (y + h) / height].map(|v| v.to_string());
                let score = split.score(at);
                let source = if score.is_some() { "machine" } else { "xclick" };
                let mut row = vec![id.clone(), source.to_owned(), code(order.place(annotation)?)];
                row.push(score.unwrap_or(1.0).to_string());
                row.extend(corners);
                row.extend([0, 0, u8::from(annotation.iscrowd), 0, 0].map(|flag| flag.to_string()));
                rows.push(row);
            }
        }
        writer.file(format!("{folder}-annotations-bbox.csv"), &table(&rows)?)?;
    }
    Ok(())
}
