//! `extract_features`, as a binary of its own.

use std::process::ExitCode;

use vigdet::{cli, commands};

fn main() -> ExitCode {
    cli::main("extract_features", commands::extract_features::run)
}
