//! What the programs share: arguments with the same meaning everywhere, and errors as one line.

use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use clap::{Args, Command};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tch::Device;
use vigdet_coco::output::Outputs;

use crate::backbone;
use crate::config::{ClassifyConfig, Config, DetectorKind};
use crate::console::{self, warn};
use crate::data::panic_message;
use crate::nn::precision::{left_off, InferencePrecision};
use crate::nn::{cuda, libtorch};
use crate::weights::{cache, catalogue};

mod out_of_memory;
mod weights_file;

use out_of_memory::out_of_memory;
pub use weights_file::{describe, fetch_published, FetchArgs};

/// How a config is put together: a file or preset, then the flags, then `--set`.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Config file, or the name of a built-in one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// cpu, cuda, cuda:N or mps (default: cuda where libtorch has it)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Change one config value; the key may be shortened to its last part
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// Where the network runs.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn device(&self) -> Result<Device> {
        parse_device(self.device.as_deref())
    }
}

/// In which precision a trained network is run.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct AmpArgs {
    /// Mixed precision, bfloat16 [default: on a GPU as in training, on a CPU off]
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    pub amp: Option<bool>,
}

impl AmpArgs {
    /// In which precision to run a network on a device that was, or was not, trained in mixed precision. Says where
    /// the device has none.
    pub fn precision(self, trained: bool, device: Device) -> InferencePrecision {
        let precision = InferencePrecision { trained, asked: self.amp };
        left_off(precision.is_mixed(device), device).iter().for_each(|line| warn(line));
        precision
    }
}

fn on_or_off(text: &str) -> Result<bool> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => bail!("it is on or off, not `{other}`"),
    }
}

/// How a detector's config is put together.
#[derive(Args, Clone, Debug, Default)]
pub struct DetectorArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArgs,
    /// Shorter side of the images, and the most of the longer side, in pixels
    #[arg(long, value_name = "SHORT,LONG")]
    pub size: Option<String>,
}

impl DetectorArgs {
    /// Changes to a config, in `--set`'s form: `flags` first, then `data`, then `--size`, then `--set`, which wins.
    ///
    /// # Errors
    /// If the size is none, or the path is not UTF-8.
    pub fn changes(&self, flags: Vec<String>, data: Option<&Path>) -> Result<Vec<String>> {
        let mut changes = flags;
        if let Some(data) = data {
            changes.push(change("data.root", path_value(data)?));
            changes.push(change("data.builtin", Value::Null));
        }
        if let Some(size) = &self.size {
            let [short, long] = parse_size(size)?;
            changes.push(format!("data.size=[{short},{long}]"));
            // One size for all: a config's own for tests would be of other images.
            changes.push("data.test_size=null".into());
        }
        changes.extend(self.config.set.iter().cloned());
        Ok(changes)
    }
}

/// Refuses a config of another detector than the one that was named.
///
/// # Errors
/// Names both.
pub fn check_detector(config: &Config, named: DetectorKind, source: &str) -> Result<()> {
    let own = config.model.detector;
    ensure!(own == named, "{source} is a config of {}, not of {}", own.name(), named.name());
    Ok(())
}

/// How a classifier's config is put together.
#[derive(Args, Clone, Debug, Default)]
pub struct ClassifierArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub config: ConfigArgs,
    /// Folder with train/CLASS/*.jpg and val/CLASS/*.jpg (other names: --set data.train.folder=…)
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Side of the square images that the network sees, in pixels
    #[arg(long, value_name = "PIXELS")]
    pub size: Option<u32>,
}

impl ClassifierArgs {
    /// Changes to a config, in `--set`'s form: `flags` first, then `--data` and `--size`, then `--set`, which wins.
    ///
    /// # Errors
    /// If the path is not UTF-8.
    pub fn changes(&self, flags: Vec<String>) -> Result<Vec<String>> {
        let mut changes = flags;
        if let Some(data) = &self.data {
            changes.push(change("data.root", path_value(data)?));
        }
        changes.extend(self.size.map(|size| change("data.size", size)));
        changes.extend(self.config.set.iter().cloned());
        Ok(changes)
    }
}

/// Refuses a name that no model has.
///
/// # Errors
/// Names those that there are.
pub fn check_model(model: &str) -> Result<()> {
    ensure!(backbone::NAMES.contains(&model), "there is no model `{model}`; there are {}", backbone::NAMES.join(", "));
    Ok(())
}

/// Refuses a config of another model than the one that was named.
///
/// # Errors
/// Names both.
pub fn check_classifier(config: &ClassifyConfig, model: &str, source: &str) -> Result<()> {
    let own = &config.model.backbone.name;
    ensure!(own == model, "{source} is a config of {own}, not of {model}");
    Ok(())
}

/// The folder for what a test of weights finds: `test` in the run that they are from, or beside them; of published
/// weights in the cache `runs/NAME/test`.
pub fn test_folder(weights: &Path) -> PathBuf {
    if cache::holds(weights) {
        let stem = weights.file_stem().unwrap_or_default().to_string_lossy();
        let name = catalogue::of_file(weights).map_or(stem.as_ref(), |row| &row.name);
        return Path::new("runs").join(name).join("test");
    }
    let folder = weights.parent().unwrap_or(Path::new(""));
    match (folder.file_name().and_then(|name| name.to_str()), folder.parent()) {
        (Some("checkpoints"), Some(run)) => run.join("test"),
        _ => folder.join("test"),
    }
}

/// The files that a program reads and writes, where it may write all of the latter.
///
/// # Errors
/// Those of [`Outputs::check`].
pub fn outputs<P: AsRef<Path>>(
    read: impl IntoIterator<Item = P>,
    written: impl IntoIterator<Item = P>,
) -> Result<Outputs> {
    let mut outputs = Outputs::default();
    read.into_iter().for_each(|path| outputs.reads(path));
    let mut all: Vec<P> = Vec::new();
    for path in written {
        outputs.check(path.as_ref())?;
        let twice = all.iter().any(|other| other.as_ref() == path.as_ref());
        ensure!(!twice, "{} is to be written twice: choose another name for one", path.as_ref().display());
        all.push(path);
    }
    Ok(outputs)
}

/// Whether a folder is the one that a run's tests go to: all in it is vigdet's.
pub fn is_of_run(test: &Path) -> bool {
    test.ends_with("test") && test.parent().is_some_and(|run| run.join("checkpoints").is_dir())
}

/// Makes a folder, and those that it lies in.
///
/// # Errors
/// Names the folder.
pub fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Evaluates images below a bar that `evaluate` moves with their number so far. Gives the seconds that it took, too.
///
/// # Errors
/// Those of `evaluate`.
pub fn with_bar<T>(images: usize, evaluate: impl FnOnce(&dyn Fn(usize)) -> Result<T>) -> Result<(T, f64)> {
    let bar = ProgressBar::new(images as u64);
    let style = ProgressStyle::with_template("[{wide_bar}] {pos}/{len} images  {eta} left")?;
    bar.set_style(style.progress_chars("=> "));
    let start = Instant::now();
    let evaluated = evaluate(&|done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok((evaluated, start.elapsed().as_secs_f64()))
}

/// A change in `--set`'s form.
pub fn change(key: &str, value: impl Into<Value>) -> String {
    format!("{key}={}", value.into())
}

/// A path as a config value.
pub fn path_value(path: &Path) -> Result<Value> {
    let text = path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))?;
    Ok(Value::from(text))
}

/// `SHORT,LONG` in pixels.
pub fn parse_size(text: &str) -> Result<[u32; 2]> {
    pair(text).filter(|&[short, long]| 0 < short && short <= long).with_context(|| {
        format!("--size takes the shorter side and the most of the longer side in pixels, as in 800,1333, not `{text}`")
    })
}

/// `H,W` in pixels.
pub fn parse_height_width(text: &str) -> Result<(i64, i64)> {
    let sides = pair(text).filter(|sides| sides.iter().all(|side| (1..=1 << 16).contains(side)));
    let [height, width] =
        sides.with_context(|| format!("--size takes height and width in pixels, as in 224,224, not `{text}`"))?;
    Ok((height, width))
}

/// Two numbers with a comma between them.
fn pair<T: FromStr>(text: &str) -> Option<[T; 2]> {
    let (first, second) = text.split_once(',')?;
    Some([first.trim().parse().ok()?, second.trim().parse().ok()?])
}

/// `cpu`, `cuda`, `cuda:N` or `mps`; none: cuda where libtorch has it. A GPU that cannot be used is an error, for a
/// training on the CPU would take days that nobody meant to wait.
pub fn parse_device(name: Option<&str>) -> Result<Device> {
    let index = match name {
        None if libtorch::cuda().is_none() => return Ok(Device::Cpu),
        Some("cpu") => return Ok(Device::Cpu),
        Some("mps") => {
            ensure!(tch::utils::has_mps(), "there is no device mps: it is the GPU of a Mac; --device cpu works");
            return Ok(Device::Mps);
        }
        None | Some("cuda") => 0,
        Some(other) => {
            let index = other.strip_prefix("cuda:").and_then(|n| n.parse().ok());
            index.with_context(|| format!("--device takes cpu, cuda, cuda:N or mps, not `{other}`"))?
        }
    };
    cuda::check(index)?;
    Ok(Device::Cuda(index))
}

/// Runs a program of this name: parses its arguments, runs it, and turns whatever goes wrong into one line and a
/// non-zero exit.
pub fn main<A: Args>(name: &'static str, run: impl FnOnce(A) -> Result<ExitCode>) -> ExitCode {
    let command = A::augment_args(Command::new(name).version(env!("CARGO_PKG_VERSION")));
    finish(command.try_get_matches().and_then(|matches| A::from_arg_matches(&matches)), run)
}

/// Runs what was parsed, if it was.
pub fn finish<A>(parsed: clap::error::Result<A>, run: impl FnOnce(A) -> Result<ExitCode>) -> ExitCode {
    let args = match parsed {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // --help and --version. A closed pipe is no reason to complain.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            warn(&one_line_usage(&error.render().to_string()));
            return ExitCode::from(2);
        }
    };
    crate::allocator::keep_freed();
    crate::allocator::keep_few_primitives();
    caught(|| run(args)).unwrap_or_else(|error| {
        let text = format!("{error:#}");
        console::error(&out_of_memory(&text).unwrap_or_else(|| one_line(&text)));
        ExitCode::FAILURE
    })
}

/// Runs `work`; a panic (a bug, or libtorch out of memory) becomes an error. RUST_BACKTRACE=full shows its trace too.
fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let message = Arc::new(Mutex::new(String::new()));
    let heard = message.clone();
    let trace = std::env::var_os("RUST_BACKTRACE").is_some_and(|v| v == "full");
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if trace {
            usual(info);
        }
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.is_empty() {
            let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
            *heard = panic_message(info.payload()) + &place.unwrap_or_default();
        }
    }));
    let result = panic::catch_unwind(panic::AssertUnwindSafe(work));
    let _ = panic::take_hook();
    result.unwrap_or_else(|_| {
        let message = message.lock().unwrap_or_else(PoisonError::into_inner);
        bail!("something went wrong inside: {}; RUST_BACKTRACE=full shows where", message)
    })
}

/// An error as one line: without libtorch's C++ back-trace, which comes last in its messages.
pub fn one_line(text: &str) -> String {
    let text = text.split("Exception raised from").next().unwrap_or(text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Says of an image that it is left out, and why.
pub fn warn_skipped(error: &anyhow::Error) {
    warn(&format!("skipped: {}", one_line(&format!("{error:#}"))));
}

/// clap's message as one line: what is wrong and its tip, without the usage.
fn one_line_usage(text: &str) -> String {
    let text = text.split("\nUsage:").next().unwrap_or(text);
    let text = text.split("\n\nFor more information").next().unwrap_or(text);
    format!("{} (--help lists the arguments)", one_line(text))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Experiment;

    #[derive(clap::Parser, Debug)]
    struct Program {
        detector: String,
        #[command(flatten)]
        model: DetectorArgs,
    }

    #[test]
    fn errors_are_one_line() {
        let error = Program::try_parse_from(["x", "retinanet", "--sizee", "1"]).unwrap_err();
        let line = one_line_usage(&error.render().to_string());
        assert!(line.starts_with("error: unexpected argument '--sizee' found"), "{line}");
        assert!(line.contains("--size") && !line.contains('\n') && !line.contains("Usage"), "{line}");
        let error = Program::try_parse_from(["x"]).unwrap_err();
        let line = one_line_usage(&error.render().to_string());
        assert!(line.contains("<DETECTOR>") && !line.contains('\n'), "{line}");
        let torch = "cannot add: shapes differ\nException raised from add at a.cpp:1\nframe #0";
        assert_eq!(one_line(torch), "cannot add: shapes differ");
        let panicked = caught(|| -> Result<()> { panic!("two\nlines") }).unwrap_err();
        assert!(panicked.to_string().contains("two\nlines"));
    }

    #[test]
    fn sizes_and_devices_are_checked() {
        assert_eq!(parse_size("800,1333").unwrap(), [800, 1333]);
        for bad in ["", "800", "800,", "a,b", "900,800", "0,5", "1,2,3", "1,x,3"] {
            assert!(parse_size(bad).unwrap_err().to_string().contains("--size"), "{bad}");
        }
        assert_eq!(parse_device(Some("cpu")).unwrap(), Device::Cpu);
        if !tch::utils::has_mps() {
            assert!(parse_device(Some("mps")).unwrap_err().to_string().contains("there is no device mps"));
        }
        assert!(parse_device(Some("gpu")).unwrap_err().to_string().contains("`gpu`"));
        assert!(parse_device(Some("cuda:99")).unwrap_err().to_string().contains("cuda:99"));
    }

    #[test]
    fn amp_is_on_or_off() {
        assert_eq!((on_or_off("on").unwrap(), on_or_off("off").unwrap()), (true, false));
        assert!(on_or_off("true").unwrap_err().to_string().contains("`true`"));
    }

    #[test]
    fn set_wins_over_flags() {
        let args = Program::try_parse_from(["x", "retinanet", "--set", "lr=3", "--size", "5,6"]).unwrap().model;
        let flags = vec![change("train.lr", 2.0)];
        let changes = args.changes(flags, Some(Path::new("a \"b\""))).unwrap();
        let config = Config::from_json_with("{}", &changes).unwrap();
        assert_eq!((config.train.lr, config.data.size), (3.0, [5, 6]));
        let with_own = r#"{"data": {"test_size": [7, 8]}}"#;
        assert_eq!(Config::from_json_with(with_own, &changes).unwrap().data.size_in_test(), [5, 6]);
        assert_eq!(config.data.root.as_deref(), Some(Path::new("a \"b\"")));
    }
}
