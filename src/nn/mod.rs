//! What every network of this crate is made of: layers, their precision, what they cost, and the memory of their
//! tensors.

pub mod cost;
pub mod crossings;
pub mod layers;
pub(crate) mod memory;
pub(crate) mod node;
pub mod padding;
pub mod precision;
pub(crate) mod ranking;
pub(crate) mod recompute;
pub mod tokens;
