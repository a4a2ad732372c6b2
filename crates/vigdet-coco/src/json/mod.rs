//! COCO's JSON files.

mod fast;
#[cfg(fuzzing)]
pub mod fuzzing;
mod raw;
pub(crate) mod reader;
mod scan;
pub(crate) mod write;
