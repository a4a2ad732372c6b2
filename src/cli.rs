//! What the programs share: arguments with the same meaning everywhere, and errors as one line.

use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{bail, ensure, Context, Result};
use clap::{Args, Parser};
use serde_json::Value;
use tch::Device;

use crate::backbone;
use crate::config::{ClassifyConfig, Config, DetectorKind};
use crate::data::panic_message;

/// Which detector, and how its config is put together: a file or preset, then the flags, then `--set`.
#[derive(Args, Clone, Debug, Default)]
pub struct ModelArgs {
    /// retinanet or mask_rcnn
    pub detector: String,
    /// Config file, or the name of a built-in one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Shorter side of the images, and the most of the longer side, in pixels
    #[arg(long, value_name = "SHORT,LONG")]
    pub size: Option<String>,
    /// cpu, cuda or cuda:N (default: cuda where there is one)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Change one config value; the key may be shortened to its last part
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
}

impl ModelArgs {
    /// The detector that was named.
    pub fn kind(&self) -> Result<DetectorKind> {
        DetectorKind::parse(&self.detector)
    }

    /// Changes to a config, in `--set`'s form: `flags` first, then `--size`, then `--set`, which wins.
    pub fn changes(&self, flags: impl IntoIterator<Item = String>) -> Result<Vec<String>> {
        let mut changes: Vec<String> = flags.into_iter().collect();
        if let Some(size) = &self.size {
            let [short, long] = parse_size(size)?;
            changes.push(format!("data.size=[{short},{long}]"));
            // One size for all: a config's own for tests would be of other images.
            changes.push("data.test_size=null".into());
        }
        changes.extend(self.set.iter().cloned());
        Ok(changes)
    }

    /// `--config`, checked to be one of the detector that was named.
    pub fn load_config(&self, path: &Path, changes: &[String]) -> Result<Config> {
        let config = Config::load(path, changes)?;
        self.check(&config, &path.display().to_string())?;
        Ok(config)
    }

    /// Refuses a config of another detector than the one that was named.
    pub fn check(&self, config: &Config, source: &str) -> Result<()> {
        let kind = self.kind()?;
        ensure!(
            config.model.detector == kind,
            "{source} is a config of {}, not of {}",
            config.model.detector.name(),
            kind.name()
        );
        Ok(())
    }

    /// Where the network runs.
    pub fn device(&self) -> Result<Device> {
        parse_device(self.device.as_deref())
    }
}

/// Which classifier, and how its config is put together: a file or preset, then the flags, then `--set`.
#[derive(Args, Clone, Debug, Default)]
pub struct ClassifierArgs {
    /// pvig_ti, pvig_s, pvig_m, pvig_b, vig_ti, vig_s, vig_b, resnet18 or resnet50
    pub model: String,
    /// Config file, or the name of a built-in one [default: the model's ImageNet recipe]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder with train/CLASS/*.jpg and val/CLASS/*.jpg (other names: --set data.train.folder=…)
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Side of the square images that the network sees, in pixels
    #[arg(long, value_name = "PIXELS")]
    pub size: Option<u32>,
    /// cpu, cuda or cuda:N (default: cuda where there is one)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Change one config value; the key may be shortened to its last part
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
}

impl ClassifierArgs {
    /// Changes to a config, in `--set`'s form: `flags` first, then `--data` and `--size`, then `--set`, which wins.
    pub fn changes(&self, flags: impl IntoIterator<Item = String>) -> Result<Vec<String>> {
        ensure!(
            backbone::NAMES.contains(&self.model.as_str()),
            "there is no model `{}`; there are {}",
            self.model,
            backbone::NAMES.join(", ")
        );
        let mut changes: Vec<String> = flags.into_iter().collect();
        if let Some(data) = &self.data {
            changes.push(change("data.root", path_value(data)?));
        }
        changes.extend(self.size.map(|size| change("data.size", size)));
        changes.extend(self.set.iter().cloned());
        Ok(changes)
    }

    /// Refuses a config of another model than the one that was named.
    pub fn check(&self, config: &ClassifyConfig, source: &str) -> Result<()> {
        let name = &config.model.backbone.name;
        ensure!(*name == self.model, "{source} is a config of {name}, not of {}", self.model);
        Ok(())
    }

    /// Where the network runs.
    pub fn device(&self) -> Result<Device> {
        parse_device(self.device.as_deref())
    }
}

/// A flag that Ctrl-C sets, for a run to end with a checkpoint; the second Ctrl-C ends the program at once.
pub fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            // Asked twice: files are written atomically, so what is there is whole.
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step, with a checkpoint (once more: at once)");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
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
    let sides: Option<Vec<u32>> = text.split(',').map(|side| side.trim().parse().ok()).collect();
    match sides.as_deref() {
        Some(&[short, long]) if 0 < short && short <= long => Ok([short, long]),
        _ => bail!(
            "--size takes the shorter side and the most of the longer side in pixels, as in 800,1333, not `{text}`"
        ),
    }
}

/// `H,W` in pixels.
pub fn parse_height_width(text: &str) -> Result<(i64, i64)> {
    let sides: Option<Vec<i64>> = text.split(',').map(|side| side.trim().parse().ok()).collect();
    match sides.as_deref() {
        Some(&[height, width]) if (1..=1 << 16).contains(&height) && (1..=1 << 16).contains(&width) => {
            Ok((height, width))
        }
        _ => bail!("--size takes height and width in pixels, as in 224,224, not `{text}`"),
    }
}

/// `cpu`, `cuda` or `cuda:N`; none: cuda where there is one.
pub fn parse_device(name: Option<&str>) -> Result<Device> {
    let count = tch::Cuda::device_count().max(0) as usize;
    let device = match name {
        None if count > 0 => Device::Cuda(0),
        None | Some("cpu") => Device::Cpu,
        Some("cuda") => Device::Cuda(0),
        Some(other) => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(index) => Device::Cuda(index),
            None => bail!("--device takes cpu, cuda or cuda:N, not `{other}`"),
        },
    };
    if let Device::Cuda(index) = device {
        ensure!(
            index < count,
            "there is no device cuda:{index}: {}",
            match count {
                0 => "libtorch sees no GPU here (CUDA=1 make libtorch installs the CUDA build); --device cpu works"
                    .into(),
                n => format!("libtorch sees {n}"),
            }
        );
    }
    Ok(device)
}

/// Runs a program: parses its arguments, runs it, and turns whatever goes wrong into one line and a non-zero exit.
pub fn main<A: Parser>(run: impl FnOnce(A) -> Result<ExitCode>) -> ExitCode {
    let args = match A::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // --help and --version. A closed pipe is no reason to complain.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}", one_line_usage(&error.render().to_string()));
            return ExitCode::from(2);
        }
    };
    crate::allocator::keep_freed();
    match caught(|| run(args)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
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
            *heard = match info.location() {
                Some(place) => {
                    format!("{} ({}:{})", panic_message(info.payload()), place.file(), place.line())
                }
                None => panic_message(info.payload()),
            };
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

/// clap's message as one line: what is wrong and its tip, without the usage.
fn one_line_usage(text: &str) -> String {
    let text = text.split("\nUsage:").next().unwrap_or(text);
    let text = text.split("\n\nFor more information").next().unwrap_or(text);
    format!("{} (--help lists the arguments)", one_line(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser, Debug)]
    struct Program {
        #[command(flatten)]
        model: ModelArgs,
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
        assert!(parse_device(Some("gpu")).unwrap_err().to_string().contains("`gpu`"));
        assert!(parse_device(Some("cuda:99")).unwrap_err().to_string().contains("cuda:99"));
    }

    #[test]
    fn set_wins_over_flags() {
        let args = Program::try_parse_from(["x", "retinanet", "--set", "lr=3", "--size", "5,6"]).unwrap().model;
        let changes = args.changes([change("train.lr", 2.0), change("data.root", "a \"b\"")]).unwrap();
        let config = Config::from_json_with("{}", &changes).unwrap();
        assert_eq!((config.train.lr, config.data.size), (3.0, [5, 6]));
        let with_own = r#"{"data": {"test_size": [7, 8]}}"#;
        assert_eq!(Config::from_json_with(with_own, &changes).unwrap().data.size_in_test(), [5, 6]);
        assert_eq!(config.data.root.as_deref(), Some(Path::new("a \"b\"")));
    }
}
