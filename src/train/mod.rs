//! Training: optimizer, schedule, checkpoints, logs, and the loops that tie them to a detector ([`trainer`]) or a classifier ([`classify`])
//! and its data.

pub mod checkpoint;
pub mod classify;
pub mod classify_evaluate;
pub mod ema;
pub mod epoch_cosine;
pub mod evaluate;
pub mod events;
pub mod log;
mod micro_batch;
pub mod notices;
pub mod optimizer;
mod replicas;
pub mod resume;
pub mod run_dir;
pub mod schedule;
pub mod splits;
mod start;
mod time_limit;
pub mod trainer;
