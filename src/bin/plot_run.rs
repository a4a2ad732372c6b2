//! `plot_run`, as a binary of its own.

use std::process::ExitCode;

use vigdet::{cli, commands};

fn main() -> ExitCode {
    cli::main("plot_run", commands::plot_run::run)
}
