//! `vigdet dataset …` without the rest of vigdet: `cargo run --example dataset -- check FOLDER`.

use clap::Parser;
use std::process::ExitCode;
use vigdet_dataset::commands;

#[derive(Parser)]
#[command(about)]
struct Program {
    #[command(flatten)]
    args: commands::Args,
}

fn main() -> ExitCode {
    commands::run(Program::parse().args).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
