//! Images of classes on their way to a network: crops, RandAugment, Mixup and CutMix, erasing, batches.
//!
//! The transforms are timm's, which the published ViG classifiers were trained with, on 8-bit images as Pillow
//! computes them.

pub mod affine;
mod color_jitter;
pub mod crop;
pub mod erase;
mod folder_loader;
pub mod mix;
pub mod ops;
pub mod rand_augment;

pub use folder_loader::{prepare, ClassBatch, ClassLoader, ClassLoaderOptions, FolderSource};
