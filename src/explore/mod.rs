//! Looking into a backbone: the graphs of its blocks as plain data, for pictures, pages and statistics.
//!
//! [`GraphViewer`] runs a model on an image and gives a [`GraphView`]: one [`PatchGraph`] for each block. [`centers`]
//! says which patches to look at, [`link_stats`] counts where their neighbours lie, [`diversity`] how far apart the
//! patches' features are.

pub mod centers;
pub mod diversity;
pub mod link_stats;
mod patches;
mod viewer;

pub use centers::Center;
pub use patches::{Patch, PatchGraph, NONE};
pub use viewer::{GraphView, GraphViewer, ViewerOptions};
