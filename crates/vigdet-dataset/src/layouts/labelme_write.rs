//! Writes LabelMe's JSON.

use super::mask_png;
use super::place::{ensure_own_stems, safe, with_objects, Order, Writer};
use crate::geometry;
use crate::types::Import;
use anyhow::{ensure, Context, Result};
use base64::prelude::{Engine, BASE64_STANDARD};
use serde_json::{json, Value};
use std::path::Path;
use vigdet_coco::types::{Annotation, Image, Segmentation};

pub(super) fn write(import: &Import, writer: &mut Writer<'_>) -> Result<()> {
    let order = Order::of(import.classes());
    writer.lost("LabelMe keeps no list of classes: those without objects are lost, and the order is by name");
    for split in &import.splits {
        ensure_own_stems(split)?;
        for (image, objects) in with_objects(split) {
            let name = format!("{}/{}", split.name, image.file_name);
            writer.image_as(split, image, &name)?;
            let mut shapes = Vec::new();
            for (group, at) in objects.into_iter().enumerate() {
                let annotation = &split.dataset.annotations[at];
                let label = order.name(annotation)?;
                shapes.extend(shapes_of(annotation, label, split.score(at), group, image)?);
            }
            let beside = Path::new(&image.file_name).file_name().context("an image without a name")?;
            let file = json!({
                "version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": beside.to_string_lossy(),
                "imageData": null, "imageHeight": image.height, "imageWidth": image.width,
            });
            writer.file(safe(&name)?.with_extension("json"), &serde_json::to_vec_pretty(&file)?)?;
        }
    }
    Ok(())
}

fn shapes_of(
    annotation: &Annotation,
    label: &str,
    score: Option<f64>,
    group: usize,
    image: &Image,
) -> Result<Vec<Value>> {
    let shape = |kind: &str, points: Vec<[f64; 2]>, group: Option<usize>, mask: Option<String>| {
        let flags = if annotation.iscrowd { json!({"iscrowd": true}) } else { json!({}) };
        let mut shape = json!({
            "label": label, "points": points, "group_id": group, "description": "", "shape_type": kind,
            "flags": flags, "mask": mask,
        });
        if let Some(score) = score {
            shape["score"] = score.into();
        }
        shape
    };
    Ok(match &annotation.segmentation {
        Some(Segmentation::Rle(rle)) if rle.area() > 0 => {
            ensure!(
                rle.size() == (image.height, image.width),
                "annotation {}: its mask is no mask of {}",
                annotation.id,
                image.file_name
            );
            let ([x, y, w, h], pixels) = geometry::cut_out(rle);
            let png = mask_png::write_mask(w as u32, h as u32, &pixels)?;
            // Both corners are pixels of the mask.
            let corners = vec![[x as f64, y as f64], [(x + w - 1) as f64, (y + h - 1) as f64]];
            vec![shape("mask", corners, None, Some(BASE64_STANDARD.encode(png)))]
        }
        Some(Segmentation::Polygons(polygons)) if polygons.iter().any(|polygon| polygon.len() >= 6) => {
            let points = |polygon: &Vec<f64>| polygon.chunks_exact(2).map(|p| [p[0], p[1]]).collect();
            let group = (polygons.len() > 1).then_some(group);
            let whole = polygons.iter().filter(|polygon| polygon.len() >= 6);
            whole.map(|polygon| shape("polygon", points(polygon), group, None)).collect()
        }
        _ => {
            let [x, y, w, h] = annotation.bbox;
            vec![shape("rectangle", vec![[x, y], [x + w, y + h]], None, None)]
        }
    })
}
