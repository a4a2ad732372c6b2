//! `plot_graph`, as a binary of its own.

use std::process::ExitCode;

use vigdet::{cli, commands};

fn main() -> ExitCode {
    cli::main("plot_graph", commands::plot_graph::run)
}
