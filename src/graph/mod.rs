//! What makes ViG ViG: the neighbours of a node, their aggregation, and the block around them.

pub mod aggregate;
pub mod axial;
pub mod axial_onnx;
mod conv;
mod distances;
pub mod grapher;
pub mod knn;
mod near_onnx;
mod pass;
pub mod relative;
mod relative_onnx;
mod tensor_search;
mod trace;

pub use conv::{Graph, GraphConv};
pub use distances::edge_distances;
pub use grapher::{Grapher, GrapherSpec};
pub use pass::{Pass, Tape};
pub use trace::{BlockTrace, GraphTrace};
