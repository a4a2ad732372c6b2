//! What programs print. Whoever reads along may leave at any time: work goes on without its output.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process leaves the word to another one.
static MUTE: AtomicBool = AtomicBool::new(false);

/// From now on [`say`] and [`warn`] print nothing: of several processes that do the same, one speaks.
pub fn mute() {
    MUTE.store(true, Ordering::Relaxed);
}

/// How a program of vigdet is started, in what is printed for people: by cargo from a checkout, else as the running
/// one was, which `vigdet COMMAND` is for most.
pub fn start_of(program: &str) -> String {
    let own = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    // Cargo tells the programs that it runs.
    start(program, std::env::var_os("CARGO_MANIFEST_DIR").is_some(), &own)
}

fn start(program: &str, by_cargo: bool, own: &Path) -> String {
    if by_cargo {
        return format!("cargo run --bin {program} --");
    }
    let of_all = own.file_stem().is_some_and(|name| name == "vigdet");
    match program {
        "vigdet" | "coco_eval" => own.with_file_name(program).display().to_string(),
        command if of_all => format!("{} {command}", own.display()),
        command => own.with_file_name(command).display().to_string(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_as_the_user_can_start_them() {
        let installed = |program| start(program, false, Path::new("vigdet"));
        assert_eq!(installed("detect"), "vigdet detect");
        assert_eq!(installed("vigdet"), "vigdet");
        assert_eq!(installed("coco_eval"), "coco_eval");
        assert_eq!(start("detect", false, Path::new("bin/vigdet")), "bin/vigdet detect");
        assert_eq!(start("detect", false, Path::new("bin/train_det")), "bin/detect");
        assert_eq!(start("detect", true, Path::new("target/debug/train_det")), "cargo run --bin detect --");
    }
}
