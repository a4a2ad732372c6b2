//! Reads arbitrary bytes as Label Studio's JSON.
#![no_main]

use vigdet_dataset::Layout;
use vigdet_dataset_fuzz::Setup;

const SETUP: Setup = Setup {
    images: &["images"],
    files: &[],
    changed: &["project-1.json"],
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SETUP.try_with(Layout::LabelStudio, bytes));
