//! Reads arbitrary bytes as CVAT's XML.
#![no_main]

use vigdet_dataset::Layout;
use vigdet_dataset_fuzz::Setup;

const SETUP: Setup = Setup {
    images: &["images"],
    files: &[],
    changed: &["annotations.xml"],
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SETUP.try_with(Layout::Cvat, bytes));
