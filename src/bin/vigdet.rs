//! All commands in one program.

use std::process::ExitCode;

use clap::Parser;
use vigdet::cli;
use vigdet::commands::Vigdet;

fn main() -> ExitCode {
    cli::finish(Vigdet::try_parse(), Vigdet::run)
}
