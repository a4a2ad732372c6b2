//! Label Studio's JSON export: a list of tasks, each with an image and annotations whose regions are in percent of it.
//!
//! Rectangles (turned ones become polygons), ellipses, polygons and brush masks. Of several annotations of a task the
//! first that was not cancelled counts; without any, predictions do. The class order is that of `label_config.xml` or
//! `classes.txt` beside the file; else by name. `data.split` of a task is its split.

use super::draft::{Draft, Names, Object};
use super::label_studio_region::{label_of, object, Region};
use super::label_studio_write as out;
use super::place::{own_names, with_objects, Order, Writer};
use super::xml;
use crate::images::{by_stem, header, path_of, slashed};
use crate::types::{split_name, Import, Split};
use anyhow::{ensure, Context, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Task {
    #[serde(default)]
    id: Value,
    data: serde_json::Map<String, Value>,
    #[serde(default)]
    annotations: Vec<Results>,
    #[serde(default)]
    predictions: Vec<Results>,
    #[serde(default)]
    file_upload: Option<String>,
}

#[derive(Deserialize)]
struct Results {
    #[serde(default)]
    result: Vec<Region>,
    #[serde(default)]
    was_cancelled: Option<bool>,
    #[serde(default)]
    score: Option<f64>,
}

fn is_export(file: &Path) -> bool {
    if file.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("json")) {
        return false;
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(1 << 20).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let start = text.trim_start_matches('\u{FEFF}').trim_start();
    let has_results = text.contains("\"annotations\"") || text.contains("\"predictions\"");
    read.is_ok() && start.starts_with('[') && text.contains("\"data\"") && has_results
}

/// The export of a folder.
pub(super) fn file(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return is_export(path).then(|| path.to_path_buf());
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|file| is_export(file)).collect();
    files.sort();
    files.into_iter().next()
}

pub(super) fn read(path: &Path) -> Result<Vec<Split>> {
    let file = file(path).with_context(|| format!("there is no {}", super::Layout::LabelStudio.looked_for()))?;
    let text = xml::read(&file)?;
    let tasks: Vec<Task> = serde_json::from_str(&text).with_context(|| format!("{}", file.display()))?;
    drop(text);
    let folder = file.parent().unwrap_or(Path::new(".")).to_path_buf();
    let mut names = classes(&folder)?;
    let found = by_stem(&folder);
    let mut drafts: Vec<Draft> = Vec::new();
    for (number, task) in tasks.into_iter().enumerate() {
        let split = split_name(task.data.get("split").and_then(Value::as_str).unwrap_or_default());
        let at = drafts.iter().position(|draft| draft.name == split).unwrap_or_else(|| {
            drafts.push(Draft::new(&split, folder.clone()));
            drafts.len() - 1
        });
        let place = format!("{}, task {number} (id {})", file.display(), task.id);
        if let Err(error) = add(&mut drafts[at], &mut names, task, &found, &place) {
            drafts[at].fault(place, format!("{error:#}"));
        }
    }
    Ok(names.finish(drafts))
}

/// The class order, where something beside the export has it.
fn classes(folder: &Path) -> Result<Names> {
    let (config, list) = (folder.join("label_config.xml"), folder.join("classes.txt"));
    if config.is_file() {
        let text = xml::read(&config)?;
        let document = roxmltree::Document::parse(&text).with_context(|| config.display().to_string())?;
        let labels = document.descendants().filter(|node| node.has_tag_name("Label"));
        let mut names: Vec<String> = Vec::new();
        for name in labels.filter_map(|label| label.attribute("value")) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        return Ok(Names::listed(names));
    }
    if list.is_file() {
        let text = xml::read(&list)?;
        return Ok(Names::listed(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())));
    }
    Ok(Names::default())
}

/// The image of a task: a file that ends as the task says, with or without the eight characters and the dash that an
/// upload puts before the name.
fn image_of(task: &Task, folder: &Path, found: &BTreeMap<String, PathBuf>) -> Result<String> {
    let keys = ["image", "img", "url", "image_url"];
    let known = keys.iter().find_map(|key| task.data.get(*key).and_then(Value::as_str));
    let looks = |text: &&str| crate::images::is_image(Path::new(text.split(['?', '#']).next().unwrap_or(text)));
    let text =
        known.or_else(|| task.data.values().filter_map(Value::as_str).find(looks)).or(task.file_upload.as_deref());
    let text = text.context("the task has no image in its `data`")?;
    let local = text.split_once("?d=").map_or_else(|| text.split(['?', '#']).next().unwrap_or(text), |(_, path)| path);
    let decoded = percent_decoded(local);
    let wanted = path_of(decoded.split_once("://").map_or(decoded.as_str(), |(_, rest)| rest));
    let parts: Vec<_> = wanted.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
    // The longest end of the path that is there.
    for from in 0..parts.len() {
        let end: PathBuf = parts[from..].iter().collect();
        for candidate in [end.clone(), Path::new("images").join(&end)] {
            if folder.join(&candidate).is_file() {
                return Ok(slashed(&candidate));
            }
        }
    }
    let name = wanted.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let original = name.split_once('-').filter(|(hash, _)| hash.len() == 8).map_or(name.as_str(), |(_, name)| name);
    let stem = |name: &str| Path::new(name).with_extension("").to_string_lossy().into_owned();
    let stems = [stem(&name), stem(original)];
    let matches =
        |(key, _): &(&String, &PathBuf)| stems.iter().any(|stem| key.rsplit('/').next() == Some(stem.as_str()));
    let file = found.iter().find(matches).and_then(|(_, file)| file.strip_prefix(folder).ok().map(slashed));
    Ok(file.unwrap_or(name))
}

/// `%20` and the like.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn add(draft: &mut Draft, names: &mut Names, task: Task, found: &BTreeMap<String, PathBuf>, place: &str) -> Result<()> {
    let name = image_of(&task, &draft.folder, found)?;
    let valid = task.annotations.iter().filter(|results| results.was_cancelled != Some(true)).count();
    if valid > 1 {
        draft.note("a task has several annotations: the first counts");
    }
    let chosen = task.annotations.into_iter().find(|results| results.was_cancelled != Some(true));
    let predicted = chosen.is_none();
    let chosen = chosen.or_else(|| task.predictions.into_iter().next());
    let regions = chosen.as_ref().map_or(&[][..], |results| &results.result);
    let stated = regions.iter().find_map(|region| Some((region.original_width?, region.original_height?)));
    let size = match stated {
        Some((width, height)) => {
            ensure!((1.0..4e9).contains(&width) && (1.0..4e9).contains(&height), "an image of {width}×{height}");
            (width as u32, height as u32)
        }
        None => header(&draft.folder.join(&name)).map_or((0, 0), |header| (header.width, header.height)),
    };
    let at = draft.images.len();
    draft.images.push((name, size.0, size.1));
    let mut done: Vec<&str> = Vec::new();
    for (number, region) in regions.iter().enumerate() {
        // A region comes once for each control that describes it; the one with labels counts.
        let Some(label) = label_of(region) else {
            let labelled = |other: &Region| other.id == region.id && region.id.is_some() && label_of(other).is_some();
            if !regions.iter().any(labelled) {
                draft.note(format!("a region of type `{}` is left out: it has no label", region.kind));
            }
            continue;
        };
        if region.id.as_deref().is_some_and(|id| done.contains(&id)) {
            draft.note("a region has labels of several controls: the first counts");
            continue;
        }
        match object(region, at, size) {
            Ok(Some(object)) => {
                done.extend(region.id.as_deref());
                let score = region.score.or(chosen.as_ref().and_then(|results| results.score)).filter(|_| predicted);
                draft.objects.push(Object { class: names.place(label), score, ..object });
            }
            Ok(None) => draft.note(format!("a region of type `{}` is left out: it has no area", region.kind)),
            Err(error) => draft.fault(format!("{place}, region {number}"), format!("{error:#}")),
        }
    }
    Ok(())
}

pub(super) fn write(import: &Import, writer: &mut Writer<'_>) -> Result<()> {
    let order = Order::of(import.classes());
    writer.file("label_config.xml", out::config(&order.names).as_bytes())?;
    let mut tasks = Vec::new();
    for (split, names) in import.splits.iter().zip(own_names(import)?) {
        for ((image, objects), name) in with_objects(split).into_iter().zip(names) {
            writer.image_as(split, image, &format!("images/{name}"))?;
            tasks.push(out::task(tasks.len() + 1, split, image, &objects, &name, &order, writer)?);
        }
    }
    writer.file("tasks.json", &serde_json::to_vec(&tasks)?)
}
