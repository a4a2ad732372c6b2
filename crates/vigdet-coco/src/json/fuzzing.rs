//! What the fuzz target checks.

use super::raw::{RawDataset, RawDetection};
use super::{fast, read};
use crate::rle::{iou, Rle};

/// Reads any bytes as results, as an annotation file and as a mask, and panics where two ways of reading disagree.
pub fn check(bytes: &[u8]) {
    let slow = serde_json::from_slice::<Vec<RawDetection>>(bytes).ok();
    let slow = slow
        .and_then(|raw| raw.into_iter().enumerate().map(|(i, raw)| read::detection(i, raw).ok()).collect());
    if let Some(fast) = fast::detections_of_bytes(bytes) {
        assert_eq!(Some(fast), slow);
    }
    let slow = serde_json::from_slice::<RawDataset>(bytes).ok().map(|raw| read::dataset(raw).ok());
    if let Some(fast) = fast::dataset(bytes) {
        assert_eq!(Some(read::dataset(fast).ok()), slow);
    }
    if let ([height, width, text @ ..], true) = (bytes, bytes.len() > 2) {
        if let Ok(text) = std::str::from_utf8(text) {
            mask(u32::from(*height), u32::from(*width), text);
        }
    }
}

fn mask(height: u32, width: u32, text: &str) {
    let Ok(mask) = Rle::from_compressed(height, width, text) else { return };
    let runs: Vec<u32> = mask.runs().collect();
    assert_eq!(runs.iter().map(|&run| u64::from(run)).sum::<u64>(), u64::from(height * width));
    let again = Rle::from_runs(height, width, &runs).expect("runs of a mask make a mask");
    assert!(again.runs().eq(runs.iter().copied()));
    let pixels = mask.to_columns();
    assert_eq!(pixels.iter().map(|&pixel| u32::from(pixel)).sum::<u32>(), mask.area());
    let plain = Rle::from_columns(height, width, &pixels).expect("pixels of a mask make a mask");
    assert_eq!(plain.to_rows(), mask.to_rows());
    let [_, _, w, h] = plain.bbox();
    assert!(w <= f64::from(width) && h <= f64::from(height));
    assert!(plain.area() == 0 || iou(&plain, &plain, false) == 1.0);
}
