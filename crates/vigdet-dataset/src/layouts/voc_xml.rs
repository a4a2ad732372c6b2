//! Pascal VOC's XML file of one image.

use super::place::{number, Order};
use super::xml;
use anyhow::{ensure, Context, Result};
use std::path::Path;
use vigdet_coco::types::{Annotation, Image};

/// What a file says.
pub(super) struct VocImage {
    /// As written, which may be wrong.
    pub file_name: String,
    /// 0 where the file does not say.
    pub width: u32,
    /// 0 where the file does not say.
    pub height: u32,
    pub objects: Vec<VocObject>,
}

/// One `<object>`.
pub(super) struct VocObject {
    pub name: String,
    pub difficult: bool,
    /// xmin, ymin, xmax, ymax as written.
    corners: [f64; 4],
    /// Roboflow's `<polygon>`.
    pub polygon: Option<Vec<f64>>,
}

impl VocObject {
    /// Corners that cannot be pixels counted from 1.
    pub fn is_between_pixels(&self) -> bool {
        let [x, y, _, _] = self.corners;
        x < 1.0 || y < 1.0 || self.corners.iter().any(|value| value.fract() != 0.0)
    }

    /// x, y, width, height.
    pub fn bbox(&self, between_pixels: bool) -> [f64; 4] {
        let [left, top, right, bottom] = self.corners;
        let first = if between_pixels { 0.0 } else { 1.0 };
        [left - first, top - first, right - left + first, bottom - top + first]
    }
}

pub(super) fn parse(file: &Path) -> Result<VocImage> {
    let text = xml::read(file)?;
    let document = roxmltree::Document::parse(&text)?;
    let root = document.root_element();
    let size = xml::child(root, "size");
    let side = |name| -> Result<u32> {
        let value = size.map_or(Ok(0.0), |size| xml::number(size, name))?;
        ensure!((0.0..4e9).contains(&value), "<{name}> is {value}");
        Ok(value as u32)
    };
    let objects = root.children().filter(|child| child.has_tag_name("object"));
    Ok(VocImage {
        file_name: xml::text(root, "filename").unwrap_or_default().to_owned(),
        width: side("width")?,
        height: side("height")?,
        objects: objects
            .enumerate()
            .map(|(at, node)| object(node).with_context(|| format!("object {}", at + 1)))
            .collect::<Result<_>>()?,
    })
}

fn object(node: roxmltree::Node<'_, '_>) -> Result<VocObject> {
    ensure!(
        xml::child(node, "robndbox").is_none(),
        "an oriented box (<robndbox>): vigdet detects upright boxes only; convert the labels first"
    );
    let bndbox = xml::child(node, "bndbox").context("there is no <bndbox>")?;
    let mut corners = [0.0; 4];
    for (corner, name) in corners.iter_mut().zip(["xmin", "ymin", "xmax", "ymax"]) {
        *corner = xml::number(bndbox, name)?;
    }
    let name = xml::text(node, "name").filter(|name| !name.is_empty()).context("there is no <name>")?;
    let points = xml::child(node, "polygon").map(polygon).transpose()?;
    Ok(VocObject {
        name: name.to_owned(),
        difficult: xml::text(node, "difficult").is_some_and(|text| text == "1" || text.eq_ignore_ascii_case("true")),
        corners,
        polygon: points.filter(|points| points.len() >= 6),
    })
}

/// `<x1>`, `<y1>`, `<x2>`, …
fn polygon(node: roxmltree::Node<'_, '_>) -> Result<Vec<f64>> {
    let mut points = Vec::new();
    for i in 1.. {
        let (x, y) = (format!("x{i}"), format!("y{i}"));
        if xml::child(node, &x).is_none() {
            break;
        }
        points.extend([xml::number(node, &x)?, xml::number(node, &y)?]);
    }
    Ok(points)
}

pub(super) fn write(
    file_name: &str,
    image: &Image,
    objects: &[&Annotation],
    order: &Order,
    between_pixels: bool,
    segmented: bool,
) -> Result<String> {
    let mut text = format!(
        "<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{}</filename>\n  <size>\n    <width>{}</width>\n    \
         <height>{}</height>\n    <depth>3</depth>\n  </size>\n  <segmented>{}</segmented>\n",
        xml::escaped(file_name),
        image.width,
        image.height,
        u8::from(segmented)
    );
    for object in objects {
        let [x, y, w, h] = object.bbox;
        let first = if between_pixels { 0.0 } else { 1.0 };
        let [left, top, right, bottom] = [x + first, y + first, x + w, y + h].map(number);
        text.push_str(&format!(
            "  <object>\n    <name>{}</name>\n    <pose>Unspecified</pose>\n    <truncated>0</truncated>\n    \
             <difficult>{}</difficult>\n    <bndbox>\n      <xmin>{left}</xmin>\n      <ymin>{top}</ymin>\n      \
             <xmax>{right}</xmax>\n      <ymax>{bottom}</ymax>\n    </bndbox>\n  </object>\n",
            xml::escaped(order.name(object)?),
            u8::from(object.iscrowd)
        ));
    }
    text.push_str("</annotation>\n");
    Ok(text)
}
