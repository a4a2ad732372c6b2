//! `train_cls`, as a binary of its own.

use std::process::ExitCode;

use vigdet::{cli, commands};

fn main() -> ExitCode {
    cli::main("train_cls", commands::train_cls::run)
}
