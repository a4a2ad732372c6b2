//! Reads arbitrary bytes as a table of boxes.
#![no_main]

use vigdet_dataset::Layout;
use vigdet_dataset_fuzz::Setup;

const SETUP: Setup = Setup {
    images: &["images"],
    files: &[],
    changed: &["train_labels.csv"],
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SETUP.try_with(Layout::Csv, bytes));
