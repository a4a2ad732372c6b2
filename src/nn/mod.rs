//! What every network of this crate is made of and runs on: layers, their precision, what they cost, the memory of
//! their tensors, libtorch and NVIDIA's cards.

pub mod cost;
pub mod crossings;
pub mod cuda;
pub mod layers;
pub mod libtorch;
pub(crate) mod memory;
pub(crate) mod node;
pub mod padding;
pub mod precision;
pub(crate) mod ranking;
pub(crate) mod recompute;
pub mod tokens;
