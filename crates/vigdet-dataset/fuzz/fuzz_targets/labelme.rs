//! Reads arbitrary bytes as LabelMe's JSON.
#![no_main]

use vigdet_dataset::Layout;
use vigdet_dataset_fuzz::Setup;

const SETUP: Setup = Setup {
    images: &["."],
    files: &[],
    changed: &["a.json"],
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SETUP.try_with(Layout::Labelme, bytes));
