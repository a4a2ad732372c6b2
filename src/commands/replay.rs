//! `vigdet replay`: does a step again whose loss or gradient was not finite.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, Result};
use clap::builder::RangedU64ValueParser;
use tch::Device;

use crate::cli::parse_device;
use crate::config::{Task, MOST_THREADS};
use crate::console::say;
use crate::threads::set_threads;
use crate::train::classification::Classification;
use crate::train::detection::Detection;
use crate::train::not_finite::Reproducer;
use crate::weights::Checkpoint;

/// Variables that are named, and images of a micro batch.
const NAMED: usize = 5;

/// Do a step again whose loss or gradient was not finite, from the file that the run left in its folder `not_finite`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The file, RUN/not_finite/step_….safetensors
    file: PathBuf,
    /// Weights before the step (default: those beside the file)
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// cpu, cuda or cuda:N (default: cuda where there is one)
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Change one config value; the key may be shortened to its last part
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Threads
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST_THREADS as u64))]
    threads: Option<usize>,
}

/// Runs the program: exit 0 if something was not finite again.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let device: Device = parse_device(args.device.as_deref())?;
    set_threads(args.threads);
    let file = Reproducer::open(&args.file)?;
    let weights = Checkpoint::open(&args.weights.unwrap_or_else(|| file.weights()))?;
    say(&format!("step {}: {}", file.step(), file.reason()));
    let replayed = match file.task() {
        Some(Task::Detection) => file.replay::<Detection>(&weights, device, &args.set)?,
        Some(Task::Classification) => file.replay::<Classification>(&weights, device, &args.set)?,
        None => bail!("{} does not say what was trained", args.file.display()),
    };
    for batch in &replayed.batches {
        let parts: Vec<String> = batch.parts.iter().map(|(name, value)| format!("{name} {value}")).collect();
        say(&format!("micro batch {}: {} ({})", batch.number, parts.join(", "), some(&batch.images)));
    }
    say(&format!("gradient: {}", replayed.grad_norm));
    if !replayed.variables.is_empty() {
        say(&format!("gradients that are not finite: {}", some(&replayed.variables)));
    }
    let again = replayed.is_not_finite();
    say(if again { "not finite again" } else { "finite this time" });
    Ok(if again { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first few names.
fn some(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let few = names[..names.len() - more].join(", ");
    if more > 0 {
        format!("{few} and {more} more")
    } else {
        few
    }
}
