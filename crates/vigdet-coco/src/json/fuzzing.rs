//! What the fuzz target checks.

use super::raw::{RawDataset, RawDetection};
use super::{fast, reader};
use crate::rle::{iou, Rle};
use crate::types::{Detection, Segmentation};
use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};

/// Reads any bytes as results, as an annotation file and as a mask, and panics where two ways of reading disagree.
pub fn check(bytes: &[u8]) {
    let slow = serde_json::from_slice::<Vec<RawDetection>>(bytes).ok();
    let slow =
        slow.and_then(|raw| raw.into_iter().enumerate().map(|(i, raw)| reader::detection(i, raw).ok()).collect());
    if let Some(fast) = fast::detections_of_bytes(bytes) {
        assert_eq!(Some(fast), slow);
    }
    if let Some(in_blocks) = in_blocks(bytes) {
        assert_eq!(Some(in_blocks), slow);
    }
    draw(slow.iter().flatten().filter_map(|detection: &Detection| detection.segmentation.as_ref()));
    let slow = serde_json::from_slice::<RawDataset>(bytes).ok().map(|raw| reader::dataset(raw).ok());
    if let Some(fast) = fast::dataset(bytes) {
        assert_eq!(Some(reader::dataset(fast).ok()), slow);
    }
    let annotations = slow.iter().flatten().flat_map(|dataset| &dataset.annotations);
    draw(annotations.filter_map(|annotation| annotation.segmentation.as_ref()));
    if let ([height, width, text @ ..], true) = (bytes, bytes.len() > 2) {
        if let Ok(text) = std::str::from_utf8(text) {
            mask(u32::from(*height), u32::from(*width), text);
        }
    }
}

/// Reads a results file in blocks so small that they end everywhere.
fn in_blocks(bytes: &[u8]) -> Option<Vec<Detection>> {
    thread_local!(static FILE: RefCell<Option<File>> = const { RefCell::new(None) });
    let block = 1 + u64::from(*bytes.last()?) % 64;
    FILE.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| tempfile::tempfile().expect("a temporary file"));
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(bytes)).expect("a full disk?");
        fast::in_blocks(file, block, 8).expect("the file can be read")
    })
}

/// Whatever has been read can be drawn, or is refused.
fn draw<'a>(segmentations: impl Iterator<Item = &'a Segmentation>) {
    for segmentation in segmentations {
        if let Ok(mask) = segmentation.to_rle(30, 40) {
            let runs: Vec<u32> = mask.runs().collect();
            assert_eq!(Rle::from_runs(mask.height(), mask.width(), &runs).ok(), Some(mask));
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
