//! A region of Label Studio: a rectangle, an ellipse, a polygon or a brush mask, in percent of its image.

use super::draft::Object;
use super::{brush, label_studio_write as out};
use crate::geometry;
use anyhow::{bail, ensure, Context, Result};
use serde::Deserialize;
use serde_json::Value;
use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

/// One region of a task, or what one control says of it.
#[derive(Deserialize)]
pub(super) struct Region {
    #[serde(default)]
    pub id: Option<String>,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub original_width: Option<f64>,
    #[serde(default)]
    pub original_height: Option<f64>,
    #[serde(default)]
    value: serde_json::Map<String, Value>,
    #[serde(default)]
    meta: Option<Value>,
    #[serde(default)]
    pub score: Option<f64>,
}

/// The first label of a region.
pub(super) fn label_of(region: &Region) -> Option<&str> {
    let kinds = ["rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels", "keypointlabels", "labels"];
    let labels = kinds.iter().find_map(|kind| region.value.get(*kind))?;
    labels.as_array()?.first()?.as_str()
}

/// The object of a region, its class not yet set; `None` for regions without area.
pub(super) fn object(region: &Region, image: usize, size: (u32, u32)) -> Result<Option<Object>> {
    ensure!(size.0 > 0 && size.1 > 0, "neither `original_width` nor an image says how large the image is");
    let (width, height) = (f64::from(size.0), f64::from(size.1));
    let number = |name: &str| {
        let value = region.value.get(name).and_then(Value::as_f64);
        value.with_context(|| format!("`{name}` of a `{}` is not a number", region.kind))
    };
    let across = |name| number(name).map(|percent| percent / 100.0 * width);
    let down = |name| number(name).map(|percent| percent / 100.0 * height);
    let turn = region.value.get("rotation").and_then(Value::as_f64).unwrap_or(0.0);
    let polygons = |polygon| Some(Segmentation::Polygons(vec![polygon]));
    let has = |name: &str| region.value.contains_key(name);
    let (bbox, segmentation) = if has("rle") {
        let code: Vec<u8> =
            serde_json::from_value(region.value["rle"].clone()).context("`rle` is not a list of bytes")?;
        let values = brush::decode(&code)?;
        ensure!(
            values.len() as u64 == 4 * u64::from(size.0) * u64::from(size.1),
            "the brush mask has {} values, not four for each of {}×{} pixels",
            values.len(),
            size.0,
            size.1
        );
        let alpha: Vec<bool> = values.chunks_exact(4).map(|pixel| pixel[3] > 0).collect();
        let mask = Rle::from_rows(size.1, size.0, &alpha)?;
        (mask.bbox(), Some(Segmentation::Rle(mask)))
    } else if has("points") {
        let points: Vec<[f64; 2]> =
            serde_json::from_value(region.value["points"].clone()).context("`points` are not pairs of numbers")?;
        ensure!(points.len() >= 3, "a polygon of {} points", points.len());
        let outline: Vec<f64> = points.iter().flat_map(|[x, y]| [x / 100.0 * width, y / 100.0 * height]).collect();
        (geometry::extent([outline.as_slice()]), polygons(outline))
    } else if has("radiusX") {
        let (centre, radii) = ([across("x")?, down("y")?], [across("radiusX")?, down("radiusY")?]);
        (geometry::ellipse_bounds(centre, radii, turn), polygons(geometry::ellipse(centre, radii, turn)))
    } else if has("width") && has("height") {
        let bbox = [across("x")?, down("y")?, across("width")?, down("height")?];
        if turn == 0.0 {
            (bbox, None)
        } else {
            let corners = geometry::turned(bbox, turn, [bbox[0], bbox[1]]);
            (geometry::extent([corners.as_slice()]), polygons(corners))
        }
    } else if region.kind.starts_with("keypoint") {
        return Ok(None);
    } else {
        bail!("a region of type `{}`, which is no rectangle, ellipse, polygon or brush mask", region.kind);
    };
    let texts = region.meta.as_ref().and_then(|meta| meta.get("text")).and_then(Value::as_array);
    let crowd = texts.is_some_and(|texts| texts.iter().any(|text| text == out::CROWD));
    Ok(Some(Object { image, bbox, segmentation, crowd, ..Object::default() }))
}
