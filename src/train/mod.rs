//! Training: optimizer, schedule, checkpoints, logs, and the loop that ties them to a detector and its data.

pub mod checkpoint;
pub mod ema;
pub mod evaluate;
pub mod events;
pub mod log;
pub mod optimizer;
pub mod resume;
pub mod run_dir;
pub mod schedule;
mod slices;
pub mod trainer;
