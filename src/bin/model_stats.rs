//! `model_stats`, as a binary of its own.

use std::process::ExitCode;

use vigdet::{cli, commands};

fn main() -> ExitCode {
    cli::main("model_stats", commands::model_stats::run)
}
