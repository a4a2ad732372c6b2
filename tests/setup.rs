//! Setting up: `make libtorch` and its script, which must leave a whole .libtorch or none.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Settings of whoever runs the tests, an outer make included, that must not reach what is tested.
const OWN_SETTINGS: [&str; 9] = [
    "LIBTORCH",
    "LIBTORCH_USE_PYTORCH",
    "CUDA",
    "CXX",
    "PIP_FIND_LINKS",
    "PIP_EXTRA_INDEX_URL",
    "MAKEFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
];

/// A checkout with nothing in it but the script and the Makefile.
struct Checkout {
    folder: tempfile::TempDir,
}

impl Checkout {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("scripts")).unwrap();
        for file in ["scripts/make_libtorch.py", "Makefile"] {
            std::fs::copy(Path::new(ROOT).join(file), folder.path().join(file)).unwrap();
        }
        Self { folder }
    }

    fn libtorch(&self) -> PathBuf {
        self.folder.path().join(".libtorch")
    }

    /// Hidden files and folders: .libtorch, and what is half-made.
    fn hidden(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with('.')).collect()
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path()).args(args);
        for name in OWN_SETTINGS {
            command.env_remove(name);
        }
        command.env("PIP_INDEX_URL", "http://127.0.0.1:9").env("PIP_RETRIES", "0").env("PIP_NO_INPUT", "1");
        command
    }

    fn make(&self, settings: &[(&str, &str)]) -> Output {
        self.command("make", &["libtorch"]).envs(settings.iter().copied()).output().unwrap()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Without Python there is nothing to set up with: that machine has a libtorch of its own.
fn has_python() -> bool {
    let found = Command::new("python3").args(["-m", "pip", "--version"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("no python3 with pip: not tested");
    }
    found
}

#[test]
fn a_failed_download_says_what_to_do_and_leaves_nothing() {
    if !has_python() {
        return;
    }
    let checkout = Checkout::new();
    let output = checkout.make(&[]);
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    for words in ["Nothing was installed", "PIP_INDEX_URL", "make libtorch", "LIBTORCH_USE_PYTORCH=1"] {
        assert!(said.contains(words), "no `{words}` in: {said}");
    }
    assert!(!said.contains("Traceback"), "{said}");
    assert_eq!(checkout.hidden(), Vec::<String>::new());
}

#[test]
fn a_missing_compiler_is_told_before_anything_is_downloaded() {
    if !has_python() {
        return;
    }
    let checkout = Checkout::new();
    let said = text(&checkout.make(&[("CXX", "no-such-compiler")]));
    assert!(said.contains("no C++ compiler `no-such-compiler`") && !said.contains("downloading"), "{said}");
}

#[test]
fn stopping_it_leaves_nothing_and_what_a_killed_one_left_is_removed() {
    if !has_python() {
        return;
    }
    // Takes connections and never answers: pip waits for it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let index = format!("http://{}", silent.local_addr().unwrap());
    let checkout = Checkout::new();
    let left = checkout.folder.path().join(".libtorch-partial-999999999-abc");
    std::fs::create_dir_all(left.join("wheels")).unwrap();
    let mut child = checkout
        .command("python3", &["scripts/make_libtorch.py"])
        .env("PIP_INDEX_URL", index)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let own = format!(".libtorch-partial-{}-", child.id());
    let start = Instant::now();
    while !checkout.hidden().iter().any(|name| name.starts_with(&own)) {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!left.exists());
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert_eq!(checkout.hidden(), Vec::<String>::new());
}

#[test]
fn a_libtorch_of_ones_own_wins_and_one_that_is_there_is_kept() {
    let checkout = Checkout::new();
    for own in [("LIBTORCH", "/opt/libtorch"), ("LIBTORCH_USE_PYTORCH", "1")] {
        let output = checkout.make(&[own]);
        assert!(output.status.success() && text(&output).contains(own.1), "{}", text(&output));
        assert_eq!(checkout.hidden(), Vec::<String>::new());
    }
    if !has_python() {
        return;
    }
    std::fs::create_dir(checkout.libtorch()).unwrap();
    let version = checkout.libtorch().join("build-version");
    std::fs::write(&version, "2.13.0+cpu\n").unwrap();
    assert!(checkout.make(&[]).status.success());
    let said = text(&checkout.make(&[("CUDA", "1")]));
    assert!(said.contains("without CUDA") && said.contains("Remove it"), "{said}");
    std::fs::write(&version, "2.1.0+cpu\n").unwrap();
    let said = text(&checkout.make(&[]));
    assert!(said.contains("is 2.1.0, vigdet needs 2.13.0"), "{said}");
    assert!(checkout.libtorch().exists());
}

#[test]
fn the_continuous_integration_script_runs_make_test() {
    let script = Path::new(ROOT).join(".ci/run");
    use std::os::unix::fs::PermissionsExt;
    assert!(std::fs::metadata(&script).unwrap().permissions().mode() & 0o111 != 0, "not executable");
    assert!(std::fs::read_to_string(&script).unwrap().contains("make test"));
    let mut make = Command::new("make");
    OWN_SETTINGS.iter().for_each(|name| {
        make.env_remove(name);
    });
    let steps = text(&make.args(["--dry-run", "test"]).current_dir(ROOT).output().unwrap());
    for step in ["fmt --all --check", "-D warnings", "test --workspace"] {
        assert!(steps.contains(step), "no `{step}` in: {steps}");
    }
}

/// Commands, files and links that the pages name are there.
#[test]
fn pages_name_programs_configs_and_files_that_exist() {
    let root = Path::new(ROOT);
    let mut checked = 0;
    for page in
        ["README.md", "CONTRIBUTING.md", "docs/training.md", "docs/graphs.md", "docs/finetuning.md", "docs/weights.md"]
    {
        let path = root.join(page);
        let text = std::fs::read_to_string(&path).unwrap();
        for (option, folder) in [("--bin ", "src/bin"), ("--example ", "examples")] {
            for name in text.split(option).skip(1) {
                let name = name.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap();
                let found = [root.to_path_buf(), root.join("crates/vigdet-coco")]
                    .iter()
                    .any(|home| home.join(folder).join(format!("{name}.rs")).is_file());
                assert!(found, "{page} names {option}{name}");
                checked += 1;
            }
        }
        for name in text.split("--config ").skip(1).filter(|rest| rest.starts_with("retinanet")) {
            let name = name.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap();
            assert!(root.join(format!("configs/{name}.json")).is_file(), "{page} names --config {name}");
            checked += 1;
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            assert!(path.parent().unwrap().join(link).exists(), "{page} links {link}");
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked} names were found");
}
