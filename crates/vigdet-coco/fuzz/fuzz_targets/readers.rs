//! Reads arbitrary bytes as results, as an annotation file and as a compressed mask.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vigdet_coco::fuzzing::check(bytes));
