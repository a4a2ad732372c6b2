//! Reads arbitrary bytes as Pascal VOC's XML and mask.
#![no_main]

use vigdet_dataset::Layout;
use vigdet_dataset_fuzz::Setup;

const SETUP: Setup = Setup {
    images: &["JPEGImages", "SegmentationObject"],
    files: &[("ImageSets/Main/train.txt", "a\n")],
    changed: &["Annotations/a.xml", "SegmentationObject/a.png"],
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SETUP.try_with(Layout::Voc, bytes));
