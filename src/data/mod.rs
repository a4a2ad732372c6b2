//! Images and their objects: files to batches. Knows nothing of models.

mod sample;

pub use sample::{Batch, ImageInfo, Sample, Target};
