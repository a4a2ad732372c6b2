//! What makes ViG ViG: the graph of patches.

pub mod kernel;
pub mod knn;
pub mod relative;
pub mod slices;
