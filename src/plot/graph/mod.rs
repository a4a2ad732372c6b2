//! Pictures of a model's graph on an image (Han et al., 2022, Figure 4), and a page to explore it.
//!
//! A [`GraphView`](crate::explore::GraphView) and some [`Centers`] make [`Links`], what is drawn as data;
//! [`GraphPicture`] draws them as PNG and SVG. [`page`] writes all blocks of a view into one HTML file.

mod layout;
mod links;
mod page;
mod picture;
mod statistics;

pub use links::{BlockLinks, CenterLinks, Centers, Links};
pub use page::page;
pub use picture::{GraphPicture, PictureOptions};
pub use statistics::draw_links;
