//! `test_cls`, as a binary of its own.

use std::process::ExitCode;

use vigdet::{cli, commands};

fn main() -> ExitCode {
    cli::main("test_cls", commands::test_cls::run)
}
