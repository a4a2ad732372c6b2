//! COCO's JSON files.

mod raw;
pub(crate) mod read;
pub(crate) mod write;
