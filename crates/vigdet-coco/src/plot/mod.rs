//! Pictures of results.

pub mod style;
