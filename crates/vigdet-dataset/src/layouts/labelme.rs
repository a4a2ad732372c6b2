//! LabelMe: a JSON file beside each image, with polygons, rectangles, circles and masks.
//!
//! Shapes with the same label and `group_id` are parts of one object. Folders named as splits (`train`, `val`, `test`)
//! become these; everything else is one split. Lines, line strips and points have no area and are left out.

use super::draft::{Draft, Names, Object};
use super::{mask_png, xml};
use crate::geometry;
use crate::images::{files_below, in_common_folder, path_of, tidied};
use crate::types::{split_name, Split};
use anyhow::{bail, ensure, Context, Result};
use base64::prelude::{Engine, BASE64_STANDARD};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    shapes: Vec<Shape>,
    #[serde(default)]
    image_path: Option<String>,
    #[serde(default)]
    image_width: Option<u32>,
    #[serde(default)]
    image_height: Option<u32>,
    #[serde(default)]
    flags: Option<Value>,
}

#[derive(Deserialize)]
struct Shape {
    label: String,
    points: Vec<[f64; 2]>,
    #[serde(default)]
    group_id: Option<Value>,
    #[serde(default = "polygon")]
    shape_type: Option<String>,
    #[serde(default)]
    mask: Option<String>,
    #[serde(default)]
    flags: Option<Value>,
    #[serde(default)]
    score: Option<f64>,
}

fn polygon() -> Option<String> {
    Some("polygon".to_owned())
}

fn is_labelme(file: &Path) -> bool {
    if !file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) {
        return false;
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(1 << 16).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    read.is_ok()
        && text.contains("\"shapes\"")
        && text.trim_start_matches(['\u{FEFF}', ' ', '\n', '\r']).starts_with('{')
}

pub(super) fn fits(path: &Path) -> bool {
    if path.is_file() {
        return is_labelme(path);
    }
    walkdir::WalkDir::new(path).max_depth(3).into_iter().flatten().any(|entry| is_labelme(entry.path()))
}

pub(super) fn read(path: &Path) -> Result<Vec<Split>> {
    let root = if path.is_file() { path.parent().unwrap_or(Path::new(".")) } else { path };
    let files = if path.is_file() { vec![path.to_path_buf()] } else { files_below(root, is_labelme) };
    let parsed: Vec<Result<File>> = files.par_iter().map(|file| parse(file)).collect();
    let mut splits: BTreeMap<String, Vec<(PathBuf, Result<File>)>> = BTreeMap::new();
    for (file, parsed) in files.into_iter().zip(parsed) {
        let inner = file.strip_prefix(root).unwrap_or(&file);
        let first = inner.components().next().map(|part| split_name(&part.as_os_str().to_string_lossy()));
        let name = first.filter(|name| ["train", "val", "test"].contains(&name.as_str()));
        splits.entry(name.unwrap_or_else(|| "all".to_owned())).or_default().push((file, parsed));
    }
    let mut names = Names::default();
    let mut drafts = Vec::new();
    for (name, files) in splits {
        let images: Vec<PathBuf> = files.iter().map(|(file, parsed)| image_of(file, parsed.as_ref().ok())).collect();
        let folder = in_common_folder(&images, root);
        let mut draft = Draft::new(&name, folder.0);
        for ((file, parsed), image) in files.into_iter().zip(folder.1) {
            let place = file.display().to_string();
            match parsed {
                Ok(parsed) => add(&mut draft, &mut names, parsed, image, &place),
                Err(error) => draft.fault(place, format!("{error:#}")),
            }
        }
        drafts.push(draft);
    }
    Ok(names.finish(drafts))
}

fn parse(file: &Path) -> Result<File> {
    let text = xml::read(file)?;
    Ok(serde_json::from_str(&text)?)
}

/// The image of a file: the one that it names, or one of its own name beside it.
fn image_of(file: &Path, parsed: Option<&File>) -> PathBuf {
    let named = parsed.and_then(|parsed| parsed.image_path.as_deref()).filter(|name| !name.is_empty());
    let folder = file.parent().unwrap_or(Path::new("."));
    let named = named.map(|name| tidied(&folder.join(path_of(name))));
    if let Some(named) = named.as_ref().filter(|named| named.is_file()) {
        return named.clone();
    }
    let beside = crate::images::ENDINGS
        .iter()
        .flat_map(|ending| [file.with_extension(ending), file.with_extension(ending.to_uppercase())]);
    beside.into_iter().find(|beside| beside.is_file()).or(named).unwrap_or_else(|| file.with_extension("jpg"))
}

fn add(draft: &mut Draft, names: &mut Names, file: File, image: String, place: &str) {
    let at = draft.images.len();
    let mut size = (file.image_width.unwrap_or(0), file.image_height.unwrap_or(0));
    if size.0 == 0 || size.1 == 0 {
        if let Ok(header) = crate::images::header(&draft.folder.join(&image)) {
            size = (header.width, header.height);
        }
    }
    draft.images.push((image, size.0, size.1));
    if file.flags.as_ref().and_then(Value::as_object).is_some_and(|flags| flags.values().any(|v| v == true)) {
        draft.note("flags of an image are not used");
    }
    // The place of the object of each group.
    let mut groups: HashMap<(String, String), usize> = HashMap::new();
    for (number, shape) in file.shapes.into_iter().enumerate() {
        let group = shape.group_id.as_ref().filter(|id| !id.is_null()).map(|id| (shape.label.clone(), id.to_string()));
        let object = match object(&shape, at, size) {
            Ok(Some(object)) => object,
            Ok(None) => {
                let kind = shape.shape_type.as_deref().unwrap_or("polygon");
                draft.note(format!("a shape of type `{kind}` is left out: it has no area"));
                continue;
            }
            Err(error) => {
                draft.fault(format!("{place}, shape {number}"), format!("{error:#}"));
                continue;
            }
        };
        let known = group.as_ref().and_then(|group| groups.get(group)).copied();
        match known.map(|known| join(&mut draft.objects[known], &object, size)) {
            Some(Ok(())) => {}
            Some(Err(error)) => draft.fault(format!("{place}, shape {number}"), format!("{error:#}")),
            None => {
                groups.extend(group.map(|group| (group, draft.objects.len())));
                draft.objects.push(Object { class: names.place(&shape.label), ..object });
            }
        }
    }
}

/// The object of a shape, its class not yet set; `None` for shapes without area.
fn object(shape: &Shape, image: usize, size: (u32, u32)) -> Result<Option<Object>> {
    let points = &shape.points;
    let count = |wanted: usize| {
        ensure!(points.len() == wanted, "{} points, where the shape has {wanted}", points.len());
        Ok(())
    };
    let crowd = flag(shape, "iscrowd");
    let corners = |a: [f64; 2], b: [f64; 2]| {
        let (left, top) = (a[0].min(b[0]), a[1].min(b[1]));
        [left, top, (a[0] - b[0]).abs(), (a[1] - b[1]).abs()]
    };
    let (bbox, segmentation) = match shape.shape_type.as_deref().unwrap_or("polygon") {
        "polygon" | "oriented_rectangle" => {
            ensure!(points.len() >= 3, "a polygon of {} points", points.len());
            let outline = points.concat();
            (geometry::extent([outline.as_slice()]), Some(Segmentation::Polygons(vec![outline])))
        }
        "rectangle" => {
            count(2)?;
            (corners(points[0], points[1]), None)
        }
        "circle" => {
            count(2)?;
            let ([x, y], [a, b]) = (points[0], points[1]);
            let radius = (a - x).hypot(b - y);
            let outline = geometry::ellipse([x, y], [radius; 2], 0.0);
            let bbox = geometry::ellipse_bounds([x, y], [radius; 2], 0.0);
            (bbox, Some(Segmentation::Polygons(vec![outline])))
        }
        "mask" => {
            count(2)?;
            let text = shape.mask.as_deref().context("there is no `mask`")?;
            let bytes = BASE64_STANDARD.decode(text).context("`mask` is not base64")?;
            let mask = mask_png::read(&bytes).context("`mask`")?;
            ensure!(size.0 > 0 && size.1 > 0, "a mask needs imageWidth and imageHeight");
            let pixels: Vec<bool> = mask.pixels.iter().map(|&pixel| pixel != 0).collect();
            let [left, top, ..] = corners(points[0], points[1]);
            let extent = (mask.width as usize, mask.height as usize);
            let rle = geometry::mask_at(size, (left as i64, top as i64), extent, &pixels)?;
            (rle.bbox(), Some(Segmentation::Rle(rle)))
        }
        "line" | "linestrip" | "point" | "points" => return Ok(None),
        other => bail!("a shape of type `{other}`, which is not one of LabelMe's"),
    };
    Ok(Some(Object { image, bbox, segmentation, crowd, score: shape.score, ..Object::default() }))
}

fn flag(shape: &Shape, name: &str) -> bool {
    shape.flags.as_ref().and_then(|flags| flags.get(name)).is_some_and(|value| value == true)
}

/// Adds a part to an object.
fn join(object: &mut Object, part: &Object, (width, height): (u32, u32)) -> Result<()> {
    let outline = |object: &Object| match &object.segmentation {
        Some(segmentation) => segmentation.clone(),
        None => Segmentation::Polygons(vec![geometry::turned(object.bbox, 0.0, [0.0; 2])]),
    };
    let joined = match (outline(object), outline(part)) {
        (Segmentation::Polygons(mut all), Segmentation::Polygons(more)) => {
            all.extend(more);
            Segmentation::Polygons(all)
        }
        (a, b) => Segmentation::Rle(Rle::union(&[a.to_rle(height, width)?, b.to_rle(height, width)?])?),
    };
    let corners = |[x, y, w, h]: [f64; 4]| [x, y, x + w, y + h];
    let (a, b) = (corners(object.bbox), corners(part.bbox));
    let low = [a[0].min(b[0]), a[1].min(b[1])];
    object.bbox = [low[0], low[1], a[2].max(b[2]) - low[0], a[3].max(b[3]) - low[1]];
    object.segmentation = Some(joined);
    Ok(())
}
