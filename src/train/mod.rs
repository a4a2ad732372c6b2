//! Training: one [`engine`] for two tasks, [`detection`] and [`classification`]; what it needs (optimizer, schedule,
//! averages, checkpoints, logs), and how results are judged.

pub mod accuracy;
pub mod auto_anchors;
pub mod classification;
mod data_parallel;
pub mod detection;
pub mod ema;
pub mod engine;
pub mod evaluator;
pub mod events;
pub mod initial;
pub mod logger;
pub mod machine;
pub mod not_finite;
pub mod notices;
pub mod optimizer;
mod replicas;
pub mod requests;
pub mod resume;
pub mod schedule;
mod standby;
pub mod state;
pub mod task;
mod time_limit;
