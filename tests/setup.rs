//! Setting up: `make libtorch` and its script, which must leave a whole .libtorch or none; and what is shipped.

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
    assert!(std::fs::read_to_string(&script).unwrap().lines().any(|line| line == "exec make test"));
    let mut make = Command::new("make");
    OWN_SETTINGS.iter().for_each(|name| {
        make.env_remove(name);
    });
    let steps = text(&make.args(["--dry-run", "test"]).current_dir(ROOT).output().unwrap());
    for step in ["fmt --all --check", "-D warnings", "test --workspace"] {
        assert!(steps.contains(step), "no `{step}` in: {steps}");
    }
}

/// The programs as cargo builds them for shipping: stripped. `coco_eval` is another package's: a program of the system
/// stands in for it.
fn built(folder: &Path) -> bool {
    std::fs::create_dir(folder).unwrap();
    std::fs::copy("/bin/true", folder.join("coco_eval")).unwrap();
    let stripped =
        Command::new("strip").arg("-o").arg(folder.join("vigdet")).arg(env!("CARGO_BIN_EXE_vigdet")).status();
    if !stripped.is_ok_and(|status| status.success()) {
        std::fs::copy(env!("CARGO_BIN_EXE_vigdet"), folder.join("vigdet")).unwrap();
    }
    has_python() && cfg!(target_os = "linux")
}

/// The folder of the libtorch that a program was linked against: the first of its run path.
fn libtorch_of(program: &Path) -> PathBuf {
    let script = "import sys; from elf import Elf; print(Elf(sys.argv[1]).runpath[0])";
    let python =
        Command::new("python3").args(["-c", script]).arg(program).current_dir(format!("{ROOT}/scripts")).output();
    PathBuf::from(String::from_utf8(python.unwrap().stdout).unwrap().trim())
}

#[test]
fn an_installed_wheel_starts_its_programs_with_the_torch_beside_it() {
    let home = tempfile::tempdir().unwrap();
    let programs = home.path().join("programs");
    if !built(&programs) {
        return;
    }
    let python = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.args(args).current_dir(home.path()).env_remove("LD_LIBRARY_PATH").env("PYTHONPATH", "site");
        command.output().unwrap()
    };
    let script = format!("{ROOT}/scripts/make_wheel.py");
    let said = python(&[&script, programs.to_str().unwrap(), "dist"]);
    assert!(said.status.success(), "{}", text(&said));
    let wheel = std::fs::read_dir(home.path().join("dist")).unwrap().next().unwrap().unwrap().path();
    let name = wheel.file_name().unwrap().to_str().unwrap();
    let tag = format!("_{}.whl", std::env::consts::ARCH);
    assert!(name.starts_with("vigdet-") && name.contains("-py3-none-manylinux_2_") && name.ends_with(&tag), "{name}");

    // What pip does, without its network: unpack, and note what is there.
    let pip =
        ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "site", wheel.to_str().unwrap()];
    let installed = python(&pip);
    assert!(installed.status.success(), "{}", text(&installed));
    // Without site-packages (-S): what this machine's Python has is not asked.
    let version_of = ["-S", "-m", "vigdet", "--version"];
    let without = python(&version_of);
    let site = home.path().join("site");
    let torch = |version: &str, home: &Path| {
        let info = home.join("torch.dist-info");
        std::fs::create_dir_all(&info).unwrap();
        std::fs::create_dir_all(home.join("torch")).unwrap();
        std::fs::write(info.join("METADATA"), format!("Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"))
            .unwrap();
        std::fs::write(home.join("torch/__init__.py"), "raise ImportError('not to be imported')\n").unwrap();
    };
    torch("2.9.1", &site);
    let other = python(&version_of);
    torch("2.13.0+cpu", &site);
    // Links to files, not one to their folder: that would be torch in another place, which the loader is told of.
    std::fs::create_dir(site.join("torch/lib")).unwrap();
    for library in std::fs::read_dir(libtorch_of(&programs.join("vigdet"))).unwrap() {
        let library = library.unwrap();
        std::os::unix::fs::symlink(library.path(), site.join("torch/lib").join(library.file_name())).unwrap();
    }
    let right = python(&version_of);
    assert!(text(&without).contains("this Python has no torch: pip install 'torch==2.13.*'"), "{}", text(&without));
    assert!(text(&other).contains("this Python has torch 2.9.1, vigdet needs 2.13"), "{}", text(&other));
    let version = format!("vigdet {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((right.status.success(), text(&right)), (true, version));
    assert!(Command::new(site.join("bin/coco_eval")).env("PYTHONPATH", &site).status().unwrap().success());
    // The builder's folders are nobody's business.
    let shipped = libtorch_of(&site.join("vigdet/bin/vigdet"));
    assert_eq!(shipped, Path::new("$ORIGIN/../../torch/lib"));
}

/// Commands, files and links that the pages name are there.
#[test]
fn pages_name_programs_configs_and_files_that_exist() {
    let root = Path::new(ROOT);
    let mut checked = 0;
    for page in [
        "README.md",
        "CONTRIBUTING.md",
        "docs/training.md",
        "docs/graphs.md",
        "docs/finetuning.md",
        "docs/weights.md",
        "docs/install.md",
    ] {
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
