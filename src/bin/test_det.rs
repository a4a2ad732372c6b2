//! `test_det`, as a binary of its own.

use std::process::ExitCode;

use vigdet::{cli, commands};

fn main() -> ExitCode {
    cli::main("test_det", commands::test_det::run)
}
