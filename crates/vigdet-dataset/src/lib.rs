//! Labelled images in any usual layout: read, checked, counted, split, and written in any other layout.
//!
//! ```no_run
//! let import = vigdet_dataset::Import::open("my_export")?;
//! println!("{}: {} classes", import.layout, import.classes().len());
//! for split in &import.splits {
//!     println!("{}: {} images in {}", split.name, split.dataset.images.len(), split.folder.display());
//! }
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! - [`Import`]: what a folder holds, each split in COCO's data model
//! - [`layouts`]: which layouts there are, how they are recognised, read and written
//! - [`check`]: what is wrong with the data, and what can be mended without guessing
//! - [`choice`]: some of the classes
//! - [`stats`]: counts, sizes, shapes, crowding, positions; as a page of plots with the feature `plots`
//! - [`anchors`]: how well anchor boxes fit the objects, and those that fit best
//! - [`split`]: new splits by fractions, groups or folds
//! - `commands`: `vigdet dataset …` (feature `cli`)

pub mod anchors;
pub mod check;
pub mod choice;
#[cfg(feature = "cli")]
pub mod commands;
pub mod geometry;
pub mod images;
pub mod layouts;
pub mod predictions;
mod progress;
pub mod split;
pub mod stats;
mod table;
mod types;

pub use layouts::Layout;
pub use types::{Fault, Import, Split, MOST_CLASSES};

/// Keeps the README's example compiling.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
