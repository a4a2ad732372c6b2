//! Reads arbitrary bytes as YOLO's data.yaml and labels.
#![no_main]

use vigdet_dataset::Layout;
use vigdet_dataset_fuzz::Setup;

const SETUP: Setup = Setup {
    images: &["images/train"],
    files: &[],
    changed: &["data.yaml", "labels/train/a.txt"],
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SETUP.try_with(Layout::Yolo, bytes));
