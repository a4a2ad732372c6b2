//! What lies behind the numbers: kinds of errors, confusions, and how sure a difference is.

pub mod compare;
pub mod confusion;
mod images;
pub mod sizes;
pub mod tide;
