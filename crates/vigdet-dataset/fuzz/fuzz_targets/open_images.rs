//! Reads arbitrary bytes as Open Images' tables of boxes and of classes.
#![no_main]

use vigdet_dataset::Layout;
use vigdet_dataset_fuzz::Setup;

const SETUP: Setup = Setup {
    images: &["train"],
    files: &[],
    changed: &["train-annotations-bbox.csv", "class-descriptions-boxable.csv"],
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SETUP.try_with(Layout::OpenImages, bytes));
