//! Anchors fitted to the objects of a training split (`model.anchors.auto`).

use anyhow::{Context, Result};
use vigdet_dataset::anchors::{fitted, Anchors, Fit, Object};

use crate::config::{AnchorConfig, DataConfig};
use crate::data::DetectionDataset;

/// Puts sizes and ratios that fit the objects of `train`, at the size of training, in place of the config's: as many
/// as they are. `auto` is off then, so that the numbers stay what they are. Returns a line that says what became of it.
///
/// # Errors
/// There are fewer objects than anchors of a location.
pub fn fit_anchors(
    config: &mut AnchorConfig,
    train: &DetectionDataset,
    data: &DataConfig,
    seed: u64,
) -> Result<String> {
    let objects = objects(train, data);
    let start = Anchors {
        strides: config.strides.iter().map(|s| *s as f64).collect(),
        base: config.base,
        octaves: config.octaves as u32,
        sizes: config.sizes.clone(),
        ratios: config.ratios.clone(),
    };
    let found = fitted(&objects, &start, seed).context("model.anchors.auto")?;
    let told = |Fit { matched, mean_iou }: Fit| format!("{:.1}% at mean IoU {mean_iou:.3}", 100.0 * matched);
    let line = format!(
        "anchors fitted to {} objects: {} find one of IoU 0.5 ({} before)\n  {}",
        objects.len(),
        told(found.fit(&objects)),
        told(start.fit(&objects)),
        found.line()
    );
    config.auto = false;
    config.base = found.base;
    config.sizes = found.sizes;
    config.ratios = found.ratios;
    Ok(line)
}

/// The objects that training learns from, in the pixels that it sees.
fn objects(train: &DetectionDataset, data: &DataConfig) -> Vec<Object> {
    let [short, long] = data.size.map(f64::from);
    let mut objects = Vec::new();
    for i in 0..train.len() {
        let info = train.info(i);
        let (width, height) = (f64::from(info.width), f64::from(info.height));
        let by = (short / width.min(height)).min(long / width.max(height));
        let target = train.target(i, info.width, info.height);
        for (b, _) in target.boxes.iter().zip(&target.crowd).filter(|(_, crowd)| !**crowd) {
            let [x1, y1, x2, y2] = b.map(|v| f64::from(v) * by);
            objects.push(Object {
                centre: [(x1 + x2) / 2.0, (y1 + y2) / 2.0],
                size: [x2 - x1, y2 - y1],
                image: [width * by, height * by],
            });
        }
    }
    objects
}
