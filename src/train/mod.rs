//! Training: optimizer, schedule, checkpoints, logs, and the loop that ties them to a detector and its data.

pub mod checkpoint;
pub mod ema;
pub mod events;
pub mod optimizer;
pub mod resume;
pub mod run_dir;
pub mod schedule;
mod slices;
