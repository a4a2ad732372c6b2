//! What a run says while it runs: log.jsonl, TensorBoard events, and a progress bar or lines.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use vigdet_coco::eval::Warning;

use super::events::EventWriter;
use super::notices::Notices;
use crate::console::say;
use crate::runs::{Evaluation, Line, RunDir, Skipped, Step};

/// How often a run that has no terminal to draw on prints a line.
const LINE_EVERY: Duration = Duration::from_secs(20);
/// Steps that are timed before the first guess at how long a run will take.
const STEPS_TO_GUESS: u64 = 5;

/// Writes a run's log and shows how it goes.
#[derive(Debug)]
pub struct Logger {
    path: PathBuf,
    /// None of a rank that writes nothing.
    files: Option<(File, EventWriter)>,
    bar: ProgressBar,
    terminal: bool,
    total: u64,
    epochs: usize,
    /// When a line was last printed.
    printed: Instant,
    /// Steps of this process, their seconds, and how many of these went by waiting for data.
    timed: (u64, f64, f64),
    /// Seconds of the last evaluation, and how many are left to do.
    evaluation: f64,
    notices: Notices,
}

/// What is left of a run.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// Evaluations that are still to come.
    pub evaluations: usize,
    /// Seconds of training, in a run that is limited in time and does not know its steps yet.
    pub seconds: Option<f64>,
}

impl Logger {
    /// For a run of `total` steps in `epochs` epochs that has done `iter` steps.
    pub fn new(run: &RunDir, iter: u64, total: u64, epochs: usize) -> Result<Self> {
        let path = run.log();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let bar = ProgressBar::new(total);
        let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {pos}/{len}  {msg}")
            .context("the progress bar's template")?;
        bar.set_style(style.progress_chars("=> "));
        bar.set_position(iter);
        Ok(Self {
            path,
            files: Some((file, EventWriter::create(run.path(), iter)?)),
            bar,
            terminal: std::io::stderr().is_terminal(),
            total,
            epochs,
            ..Self::silent()
        })
    }

    /// Of a rank that writes nothing and draws nothing.
    pub fn silent() -> Self {
        Self {
            path: PathBuf::new(),
            files: None,
            bar: ProgressBar::hidden(),
            terminal: false,
            total: 0,
            epochs: 0,
            printed: Instant::now(),
            timed: (0, 0.0, 0.0),
            evaluation: 0.0,
            notices: Notices::default(),
        }
    }

    /// The run has another length than it was thought to have.
    pub fn set_length(&mut self, total: u64, epochs: usize) {
        (self.total, self.epochs) = (total, epochs);
        self.bar.set_length(total);
    }

    /// A step was done, after which so much of the run is left.
    pub fn step(&mut self, step: Step, rest: Left) -> Result<()> {
        if self.files.is_none() {
            return Ok(());
        }
        let line = Line::Step(step);
        self.line(&line)?;
        let Line::Step(step) = line else { return Ok(()) };
        let mut scalars = vec![("loss/total".to_string(), step.loss)];
        scalars.extend(step.parts.iter().map(|(name, value)| (format!("loss/{name}"), *value)));
        scalars.push(("lr".into(), step.lr));
        scalars.push(("grad_norm".into(), step.grad_norm));
        scalars.push(("seconds/step".into(), step.seconds));
        scalars.push(("seconds/data_wait".into(), step.data_wait));
        self.scalars(step.iter, &scalars)?;

        // The first step of a process warms caches and allocators up: it says nothing of the others.
        self.timed.0 += 1;
        if self.timed.0 > 1 {
            self.timed.1 += step.seconds;
            self.timed.2 += step.data_wait;
        }
        let each = self.timed.1 / (self.timed.0 - 1).max(1) as f64;
        let training = rest.seconds.unwrap_or(each * self.total.saturating_sub(step.iter) as f64);
        let left = training + self.evaluation * rest.evaluations as f64;
        let left = HumanDuration(Duration::from_secs_f64(left.max(0.0)));
        let waiting = 100.0 * self.timed.2 / self.timed.1.max(1e-9);
        let parts: Vec<String> = step.parts.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
        let message = format!(
            "loss {:.3} ({})  lr {:.1e}  data {waiting:.0}%  {left:#} left",
            step.loss,
            parts.join(", "),
            step.lr
        );
        self.bar.set_position(step.iter);
        self.bar.set_prefix(format!("epoch {}/{}", step.epoch, self.epochs));
        if self.timed.0 == STEPS_TO_GUESS && rest.seconds.is_none() {
            self.say(&format!(
                "{each:.2} s a step: about {left} for the {} steps to go, evaluations not counted",
                self.total - step.iter
            ));
        }
        if !self.terminal && self.printed.elapsed() > LINE_EVERY {
            self.say(&format!("epoch {}/{} step {}/{}  {message}", step.epoch, self.epochs, step.iter, self.total));
        }
        self.bar.set_message(message);
        Ok(())
    }

    /// A step was skipped.
    pub fn skipped(&mut self, skipped: Skipped) -> Result<()> {
        self.bar.set_position(skipped.iter);
        self.say(&format!("step {} is skipped: {}", skipped.iter, skipped.reason));
        self.line(&Line::Skipped(skipped))
    }

    /// An evaluation was done; `scalars`: tags and values for TensorBoard.
    pub fn evaluation(&mut self, evaluation: Evaluation, scalars: &[(String, f64)]) -> Result<()> {
        self.evaluation = evaluation.seconds;
        let iter = evaluation.iter;
        self.line(&Line::Evaluation(evaluation))?;
        self.scalars(iter, scalars)
    }

    fn scalars(&mut self, iter: u64, scalars: &[(String, f64)]) -> Result<()> {
        let Some((_, events)) = &mut self.files else { return Ok(()) };
        events.scalars(iter, scalars.iter().map(|(tag, value)| (tag.as_str(), *value)))
    }

    /// Shows how far an evaluation is.
    pub fn evaluating(&self, done: usize, images: usize) {
        self.bar.set_message(format!("evaluating: {done} of {images} images"));
    }

    /// Prints a line above the bar.
    pub fn say(&mut self, text: &str) {
        self.printed = Instant::now();
        self.bar.suspend(|| say(text));
    }

    /// Prints which images of a split could not be read, and why, but for those that it was said of before.
    pub fn unreadable(&mut self, split: &str, images: &[(String, String)]) {
        let line = self.notices.unreadable(split, images);
        line.iter().for_each(|line| self.say(line));
    }

    /// Prints which images of a split have another size than annotated, but for those that it was said of before.
    pub fn resized(&mut self, split: &str, images: &[(String, String)]) {
        let line = self.notices.resized(split, images);
        line.iter().for_each(|line| self.say(line));
    }

    /// Prints what an evaluation warns of, once.
    pub fn warn(&mut self, split: &str, warnings: &[Warning]) {
        for warning in warnings {
            let line = self.notices.warning(split, warning);
            line.iter().for_each(|line| self.say(line));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        let Some((file, _)) = &mut self.files else { return Ok(()) };
        // One write, so that a kill leaves whole lines but for the last.
        let text = format!("{}\n", line.to_json());
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}
