//! Weights in files: reading them into a model, writing them, and what a file says about itself.

mod classifier;
mod file;
mod load;
mod pickle;
mod save;
mod torch;

pub use classifier::{is_of_head, load_classifier, LoadedClassifier, IMAGENET_CLASSES};
pub use file::WeightFile;
pub use load::{load_into, read_metadata, LoadOptions, LoadReport};
pub use save::{
    metadata_of, metadata_of_classifier, save, sorted_variables, write_atomically, write_tensors, Metadata,
};
