//! Writing Label Studio's tasks.

use super::brush;
use super::place::{Order, Writer};
use super::xml::escaped;
use crate::types::Split;
use anyhow::{ensure, Result};
use serde_json::{json, Value};
use vigdet_coco::types::{Image, Segmentation};

/// What the text of a region says that is a crowd.
pub(super) const CROWD: &str = "iscrowd";

/// The labelling interface for these classes.
pub(super) fn config(names: &[String]) -> String {
    let labels: String = names.iter().map(|name| format!("    <Label value=\"{}\"/>\n", escaped(name))).collect();
    let mut text = "<View>\n  <Image name=\"image\" value=\"$image\"/>\n".to_owned();
    for (tag, name) in [("RectangleLabels", "box"), ("PolygonLabels", "polygon"), ("BrushLabels", "brush")] {
        text.push_str(&format!("  <{tag} name=\"{name}\" toName=\"image\">\n{labels}  </{tag}>\n"));
    }
    text + "</View>\n"
}

/// Whether there is something to draw.
fn has_outline(segmentation: &Segmentation) -> bool {
    match segmentation {
        Segmentation::Rle(_) => true,
        Segmentation::Polygons(polygons) => polygons.iter().any(|polygon| polygon.len() >= 6),
    }
}

/// A task; with scores its regions are predictions, else an annotation.
pub(super) fn task(
    id: usize,
    split: &Split,
    image: &Image,
    objects: &[usize],
    name: &str,
    order: &Order,
    writer: &mut Writer<'_>,
) -> Result<Value> {
    let mut regions = Vec::new();
    for &at in objects {
        let annotation = &split.dataset.annotations[at];
        ensure!(image.width > 0 && image.height > 0, "{} has no size: its boxes have no percent", image.file_name);
        let (width, height) = (f64::from(image.width), f64::from(image.height));
        let label = json!([order.name(annotation)?]);
        let (control, kind, value) = match &annotation.segmentation {
            Some(Segmentation::Polygons(polygons)) if polygons.len() == 1 && polygons[0].len() >= 6 => {
                let points = polygons[0].chunks_exact(2).map(|p| [p[0] / width * 100.0, p[1] / height * 100.0]);
                let points: Vec<[f64; 2]> = points.collect();
                ("polygon", "polygonlabels", json!({"points": points, "closed": true, "polygonlabels": label}))
            }
            Some(segmentation) if has_outline(segmentation) => {
                if matches!(segmentation, Segmentation::Polygons(_)) {
                    writer.lost("an object of several polygons becomes a brush mask");
                }
                let mask = segmentation.to_rle(image.height, image.width)?;
                ensure!(
                    mask.size() == (image.height, image.width),
                    "annotation {}: its mask is of another size than {}",
                    annotation.id,
                    image.file_name
                );
                let values: Vec<u8> =
                    mask.to_rows().into_iter().flat_map(|inside| [u8::from(inside) * 255; 4]).collect();
                let code = brush::encode(&values);
                ("brush", "brushlabels", json!({"format": "rle", "rle": code, "brushlabels": label}))
            }
            _ => {
                let [x, y, w, h] = annotation.bbox;
                let value = json!({
                    "x": x / width * 100.0, "y": y / height * 100.0, "width": w / width * 100.0,
                    "height": h / height * 100.0, "rotation": 0, "rectanglelabels": label,
                });
                ("box", "rectanglelabels", value)
            }
        };
        let mut region = json!({
            "id": format!("{}-{}", split.name, annotation.id), "type": kind, "from_name": control, "to_name": "image",
            "original_width": image.width, "original_height": image.height, "image_rotation": 0, "value": value,
        });
        if annotation.iscrowd {
            region["meta"] = json!({"text": [CROWD]});
        }
        if let Some(score) = split.score(at) {
            region["score"] = score.into();
        }
        regions.push(region);
    }
    let mut task = json!({
        "id": id, "data": {"image": format!("/data/local-files/?d=images/{name}"), "split": split.name},
    });
    let kind = if split.scores.is_empty() { "annotations" } else { "predictions" };
    task[kind] = json!([{"result": regions}]);
    Ok(task)
}
