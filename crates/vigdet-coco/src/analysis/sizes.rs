//! AP against the size of objects.

use crate::error::Result;
use crate::eval::{evaluate, AreaRange, IouType, Params};
use crate::types::{Dataset, Detection};

/// Borders of the sizes, √area in pixels. The last size has no end.
const BORDERS: [f64; 10] = [0.0, 8.0, 16.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0];

/// The AP of objects of one size.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct SizeResult {
    /// Smallest √area, in pixels.
    pub from: f64,
    /// Largest √area; infinite for the last size.
    pub to: f64,
    /// Objects that are not crowds.
    pub objects: usize,
    /// Mean over thresholds and classes, as COCO's AP of small, medium and large objects. −1 where there are no such
    /// objects.
    pub ap: f64,
}

/// Evaluates objects of ten sizes, each as COCO does its three.
///
/// # Errors
/// Those of [`evaluate`].
pub fn ap_by_size(
    truth: &Dataset,
    detections: &[Detection],
    iou_type: IouType,
    params: &Params,
) -> Result<Vec<SizeResult>> {
    let ends = BORDERS[1..].iter().copied().chain([f64::INFINITY]);
    let sizes: Vec<(f64, f64)> = BORDERS.into_iter().zip(ends).collect();
    let areas: Vec<AreaRange> = sizes.iter().map(|&(from, to)| AreaRange::new("size", from * from, to * to)).collect();
    let most = params.max_dets.iter().copied().max().unwrap_or(100);
    let params = Params { areas: areas.clone(), max_dets: vec![most], ..params.clone() };
    let evaluation = evaluate(truth, detections, iou_type, &params)?;
    let aps = evaluation.ap_per_area();
    let result = |(((from, to), area), ap): (((f64, f64), &AreaRange), f64)| {
        let counted = truth.annotations.iter().filter(|object| !object.iscrowd && !area.excludes(object.area));
        SizeResult { from, to, objects: counted.count(), ap }
    };
    Ok(sizes.into_iter().zip(&areas).zip(aps).map(result).collect())
}
