//! CVAT for images 1.1: one XML with all images; boxes, polygons, ellipses and masks.
//!
//! The attribute `subset` of an image is its split. The class order is that of `<labels>`. Polylines, points,
//! skeletons, cuboids and tags are left out. A turned box becomes the polygon of its corners.

use super::draft::{Draft, Names, Object};
use super::place::{number, own_names, with_objects, Order, Writer};
use super::xml;
use crate::geometry;
use crate::images::{path_of, slashed};
use crate::types::{split_name, Import, Split};
use anyhow::{bail, ensure, Context, Result};
use roxmltree::Node;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use vigdet_coco::types::{Annotation, Image, Segmentation};

/// The XML file of a folder.
pub(super) fn file(path: &Path) -> Option<PathBuf> {
    let fits = |file: &Path| {
        file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("xml"))
            && xml::begins_with(file, "annotations")
    };
    if path.is_file() {
        return fits(path).then(|| path.to_path_buf());
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|file| fits(file)).collect();
    files.sort();
    files.into_iter().next()
}

pub(super) fn read(path: &Path) -> Result<Vec<Split>> {
    let file = file(path).with_context(|| format!("there is no {}", super::Layout::Cvat.looked_for()))?;
    let text = xml::read(&file)?;
    let options = roxmltree::ParsingOptions { nodes_limit: u32::MAX, ..roxmltree::ParsingOptions::default() };
    let document = roxmltree::Document::parse_with_options(&text, options)
        .with_context(|| format!("{} is not XML that can be read", file.display()))?;
    let root = document.root_element();
    ensure!(
        !root.children().any(|child| child.has_tag_name("track")),
        "{} is `CVAT for video`: export it as `CVAT for images 1.1`",
        file.display()
    );
    let labels = xml::child(root, "meta").into_iter().flat_map(|meta| meta.descendants());
    let labels = labels.filter(|node| node.has_tag_name("label"));
    let mut names = Names::listed(labels.filter_map(|label| xml::text(label, "name")).map(str::to_owned));
    let folder = file.parent().unwrap_or(Path::new("."));
    let images: Vec<Node<'_, '_>> = root.children().filter(|child| child.has_tag_name("image")).collect();
    let folder = image_folder(folder, &images);
    let mut drafts: Vec<Draft> = Vec::new();
    for image in images {
        let subset = split_name(image.attribute("subset").unwrap_or_default());
        let at = drafts.iter().position(|draft| draft.name == subset).unwrap_or_else(|| {
            drafts.push(Draft::new(&subset, folder.clone()));
            drafts.len() - 1
        });
        let line = document.text_pos_at(image.range().start).row;
        let place = format!("{}:{line}", file.display());
        if let Err(error) = add(&mut drafts[at], &mut names, image, &document, &place) {
            drafts[at].fault(place, format!("{error:#}"));
        }
    }
    Ok(names.finish(drafts))
}

/// Where the images are: beside the file, or in `images`.
fn image_folder(folder: &Path, images: &[Node<'_, '_>]) -> PathBuf {
    let first: Vec<PathBuf> = images.iter().filter_map(|image| image.attribute("name")).take(8).map(path_of).collect();
    let subsets =
        images.iter().filter_map(|image| image.attribute("subset")).take(1).map(|s| folder.join("images").join(s));
    let mut candidates = vec![folder.join("images"), folder.to_path_buf()];
    candidates.extend(subsets);
    let found = candidates.iter().find(|folder| first.iter().any(|name| folder.join(name).is_file()));
    found.or(candidates.iter().find(|folder| folder.is_dir())).cloned().unwrap_or_else(|| folder.to_path_buf())
}

fn add(
    draft: &mut Draft,
    names: &mut Names,
    image: Node<'_, '_>,
    document: &roxmltree::Document<'_>,
    place: &str,
) -> Result<()> {
    let name = image.attribute("name").context("<image> has no `name`")?;
    let (width, height) = (xml::attribute(image, "width")?, xml::attribute(image, "height")?);
    ensure!((1.0..4e9).contains(&width) && (1.0..4e9).contains(&height), "<image> has the size {width}×{height}");
    let size = (width as u32, height as u32);
    let at = draft.images.len();
    draft.images.push((slashed(&path_of(name)), size.0, size.1));
    for node in image.children().filter(|node| node.is_element()) {
        let kind = node.tag_name().name();
        if ["polyline", "points", "skeleton", "cuboid", "tag"].contains(&kind) {
            draft.note(format!("a <{kind}> is left out: it is no box, polygon, ellipse or mask"));
            continue;
        }
        match object(node, kind, at, size) {
            Ok((label, object)) => {
                let class = names.place(label);
                draft.objects.push(Object { class, ..object });
            }
            Err(error) => {
                let line = document.text_pos_at(node.range().start).row;
                let file = place.rsplit_once(':').map_or(place, |(file, _)| file);
                draft.fault(format!("{file}:{line}"), format!("<{kind}>: {error:#}"));
            }
        }
    }
    Ok(())
}

fn object<'a>(node: Node<'a, '_>, kind: &str, image: usize, size: (u32, u32)) -> Result<(&'a str, Object)> {
    let label = node.attribute("label").context("there is no `label`")?;
    let value = |name| xml::attribute(node, name);
    let turn = node.attribute("rotation").map_or(Ok(0.0), xml::finite)?;
    let polygons = |polygon| Some(Segmentation::Polygons(vec![polygon]));
    let (bbox, segmentation) = match kind {
        "box" => {
            let (left, top) = (value("xtl")?, value("ytl")?);
            let bbox = [left, top, value("xbr")? - left, value("ybr")? - top];
            if turn == 0.0 {
                (bbox, None)
            } else {
                let centre = [bbox[0] + bbox[2] / 2.0, bbox[1] + bbox[3] / 2.0];
                let corners = geometry::turned(bbox, turn, centre);
                (geometry::extent([corners.as_slice()]), polygons(corners))
            }
        }
        "polygon" => {
            let text = node.attribute("points").context("there are no `points`")?;
            let points = text.split([';', ',']).map(xml::finite).collect::<Result<Vec<f64>>>()?;
            ensure!(points.len() >= 6 && points.len() % 2 == 0, "{} numbers in `points`", points.len());
            (geometry::extent([points.as_slice()]), polygons(points))
        }
        "ellipse" => {
            let (centre, radii) = ([value("cx")?, value("cy")?], [value("rx")?, value("ry")?]);
            (geometry::ellipse_bounds(centre, radii, turn), polygons(geometry::ellipse(centre, radii, turn)))
        }
        "mask" => {
            let runs = node.attribute("rle").context("there is no `rle`")?;
            let runs = runs.split(',').map(|run| run.trim().parse::<usize>().context("`rle` is not a list of runs"));
            let (width, height) = (value("width")? as usize, value("height")? as usize);
            ensure!(width <= size.0 as usize && height <= size.1 as usize, "the mask is larger than the image");
            let mut pixels = Vec::with_capacity(width * height);
            for (i, run) in runs.enumerate() {
                let run = run?;
                ensure!(pixels.len() + run <= width * height, "the runs cover more than {width}×{height} pixels");
                pixels.resize(pixels.len() + run, i % 2 == 1);
            }
            // The last background may be left out.
            pixels.resize(width * height, false);
            let corner = (value("left")? as i64, value("top")? as i64);
            let mask = geometry::mask_at(size, corner, (width, height), &pixels)?;
            (mask.bbox(), Some(Segmentation::Rle(mask)))
        }
        other => bail!("<{other}> is not a shape of CVAT for images 1.1"),
    };
    let said = |name: &str| {
        let attribute = node.children().find(|child| child.attribute("name") == Some(name));
        attribute.and_then(|attribute| attribute.text()).map(str::trim)
    };
    let crowd = said("is_crowd").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let score = said("score").and_then(|text| text.parse().ok());
    Ok((label, Object { image, bbox, segmentation, crowd, score, ..Object::default() }))
}

pub(super) fn write(import: &Import, writer: &mut Writer<'_>) -> Result<()> {
    let order = Order::of(import.classes());
    let mut text =
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    \
                    <task>\n      <labels>\n"
            .to_owned();
    for name in &order.names {
        writeln!(
            text,
            "        <label>\n          <name>{}</name>\n          <attributes>\n            <attribute>\n\
             \x20             <name>is_crowd</name>\n              <mutable>False</mutable>\n              \
             <input_type>checkbox</input_type>\n              <default_value>false</default_value>\n              \
             <values>false</values>\n            </attribute>\n          </attributes>\n        </label>",
            xml::escaped(name)
        )?;
    }
    text.push_str("      </labels>\n    </task>\n  </meta>\n");
    let mut id = 0;
    for (split, names) in import.splits.iter().zip(own_names(import)?) {
        let subset = if split.name == "all" { "default" } else { &split.name };
        for ((image, objects), name) in with_objects(split).into_iter().zip(names) {
            writer.image_as(split, image, &format!("images/{name}"))?;
            writeln!(
                text,
                "  <image id=\"{id}\" name=\"{}\" subset=\"{}\" width=\"{}\" height=\"{}\">",
                xml::escaped(&name),
                xml::escaped(subset),
                image.width,
                image.height
            )?;
            for at in objects {
                let annotation = &split.dataset.annotations[at];
                shapes(&mut text, annotation, order.name(annotation)?, split.score(at), image, writer)?;
            }
            text.push_str("  </image>\n");
            id += 1;
        }
    }
    text.push_str("</annotations>\n");
    writer.file("annotations.xml", text.as_bytes())
}

fn shapes(
    text: &mut String,
    annotation: &Annotation,
    label: &str,
    score: Option<f64>,
    image: &Image,
    writer: &mut Writer<'_>,
) -> Result<()> {
    let rings = match &annotation.segmentation {
        Some(Segmentation::Polygons(polygons)) => polygons.iter().filter(|polygon| polygon.len() >= 6).count(),
        _ => 0,
    };
    let (kind, geometry) = match &annotation.segmentation {
        Some(Segmentation::Polygons(polygons)) if rings == 1 => {
            let polygon = polygons.iter().find(|polygon| polygon.len() >= 6).context("one polygon")?;
            let points = polygon.chunks_exact(2).map(|p| format!("{},{}", number(p[0]), number(p[1])));
            ("polygon", format!("points=\"{}\"", points.collect::<Vec<_>>().join(";")))
        }
        Some(segmentation) if rings > 1 || matches!(segmentation, Segmentation::Rle(rle) if rle.area() > 0) => {
            if rings > 1 {
                writer.lost("an object of several polygons becomes a mask");
            }
            let mask = segmentation.to_rle(image.height, image.width)?;
            let ([left, top, width, height], pixels) = geometry::cut_out(&mask);
            let mut runs = vec![0usize];
            let mut value = false;
            for pixel in pixels {
                if pixel != value {
                    runs.push(0);
                    value = pixel;
                }
                *runs.last_mut().context("a run")? += 1;
            }
            let runs: Vec<String> = runs.iter().map(usize::to_string).collect();
            let runs = runs.join(", ");
            ("mask", format!("rle=\"{runs}\" left=\"{left}\" top=\"{top}\" width=\"{width}\" height=\"{height}\""))
        }
        _ => {
            let [x, y, w, h] = annotation.bbox;
            let [left, top, right, bottom] = [x, y, x + w, y + h].map(number);
            ("box", format!("xtl=\"{left}\" ytl=\"{top}\" xbr=\"{right}\" ybr=\"{bottom}\""))
        }
    };
    let mut attributes = String::new();
    if annotation.iscrowd {
        attributes.push_str("      <attribute name=\"is_crowd\">true</attribute>\n");
    }
    if let Some(score) = score {
        writeln!(attributes, "      <attribute name=\"score\">{score}</attribute>")?;
    }
    let label = xml::escaped(label);
    let source = if score.is_some() { "auto" } else { "manual" };
    let end = if attributes.is_empty() { "/>\n".to_owned() } else { format!(">\n{attributes}    </{kind}>\n") };
    write!(text, "    <{kind} label=\"{label}\" source=\"{source}\" occluded=\"0\" {geometry} z_order=\"0\"{end}")?;
    Ok(())
}
