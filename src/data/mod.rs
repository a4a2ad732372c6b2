//! Images and their objects: files to batches. Knows nothing of models.
//!
//! [`DetectionDataset`] reads a split, [`Loader`] makes [`Batch`]es of it on the threads of a [`Feed`], [`prepare`]
//! makes one of images in memory; [`shapes`] draws data where there is none. [`ImageFolder`] and [`classify`] are the
//! same for images of classes.

pub mod affine_map;
mod ahead;
pub mod augment;
mod batch;
pub mod classify;
pub mod color;
pub mod decode;
pub mod detection_dataset;
pub mod feed;
pub mod image_folder;
mod loader;
pub mod mask;
pub mod mixup;
pub mod mosaic;
pub mod order;
mod record;
mod report;
pub mod resize;
mod sample;
pub mod scale_jitter;
pub mod shapes;

pub use affine_map::AffineMap;
pub(crate) use ahead::message as panic_message;
pub use batch::{fitting, prepare};
pub use detection_dataset::{DataFolder, DetectionDataset};
pub use feed::{Epoch, Feed, Source};
pub use image_folder::ImageFolder;
pub use loader::{DetectionSource, Loader, LoaderOptions};
pub use mask::Mask;
pub use record::Record;
pub use report::OpenReport;
pub use sample::{Batch, ImageInfo, Sample, Target};
