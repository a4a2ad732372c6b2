//! What programs print. Whoever reads along may leave at any time: work goes on without its output.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process leaves the word to another one.
static MUTE: AtomicBool = AtomicBool::new(false);

/// From now on [`say`] and [`warn`] print nothing: of several processes that do the same, one speaks.
pub fn mute() {
    MUTE.store(true, Ordering::Relaxed);
}

/// Prints a line to standard output. A closed pipe or a full disk is no reason to stop.
pub fn say(text: &str) {
    if MUTE.load(Ordering::Relaxed) {
        return;
    }
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints a line to standard error, in the same way.
pub fn warn(text: &str) {
    if !MUTE.load(Ordering::Relaxed) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }
}

/// Prints what ended the program to standard error, whoever speaks otherwise.
pub fn error(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "error: {text}");
}
