//! COCO's JSON files.

mod fast;
mod raw;
pub(crate) mod read;
mod scan;
pub(crate) mod write;
