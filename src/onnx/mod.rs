//! ONNX files: their messages, and a graph that a model writes itself into.
//!
//! A model is walked as when its cost is counted: each part has a method `onnx` beside its `forward`, which adds the
//! nodes that do the same. Nothing is traced, so what depends on an image's size is said as such, in operators.
//!
//! - [`messages`]: the messages of the format.
//! - [`Graph`]: nodes and constants, as they are added.
//! - [`Model`]: a finished graph with what it says of itself, as a file.

mod builder;
#[allow(missing_docs)]
pub mod messages;
mod model_file;
mod operators;
mod weighted;

pub use builder::{Attribute, Dim, Graph, Kind, Options, Value};
#[cfg(all(test, feature = "onnx"))]
pub(crate) use model_file::run_for_test;
pub use model_file::Model;
pub use operators::Resize;
pub use weighted::Convolution;
