//! `train_det`, as a binary of its own.

use std::process::ExitCode;

use vigdet::{cli, commands};

fn main() -> ExitCode {
    cli::main("train_det", commands::train_det::run)
}
