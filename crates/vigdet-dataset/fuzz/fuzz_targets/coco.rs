//! Reads arbitrary bytes as COCO's JSON.
#![no_main]

use vigdet_dataset::Layout;
use vigdet_dataset_fuzz::Setup;

const SETUP: Setup = Setup {
    images: &["train"],
    files: &[],
    changed: &["annotations/instances_train.json"],
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SETUP.try_with(Layout::Coco, bytes));
