//! Weights in files: reading them into a model, writing them, and what a file says about itself.

mod array_file;
pub mod cache;
pub mod catalogue;
mod checkpoint;
mod class_rows;
pub mod fetch;
mod file;
pub mod http;
mod load;
mod load_report;
mod numpy;
mod objects;
mod pickle;
mod recognise;
mod save;
mod torch;

pub use checkpoint::{
    backbone_config, is_of_head, load_classifier, previous, Checkpoint, LoadedClassifier, IMAGENET_CLASSES,
};
pub use file::WeightFile;
pub use load::{LoadOptions, OtherClasses};
pub use load_report::{ClassReport, LoadReport};
pub use save::{export_tensors, metadata_of, save, sorted_variables, write_tensors, Metadata};
