//! What programs print. Whoever reads along may leave at any time: work goes on without its output.

use std::io::Write;

/// Prints a line to standard output. A closed pipe or a full disk is no reason to stop.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints a line to standard error, in the same way.
pub fn warn(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
