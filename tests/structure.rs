//! The rules of the house that a reader relies on: which module uses which, names that mean one thing, lines that fit
//! a screen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Longest line, in characters.
const COLUMNS: usize = 120;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files with one of these endings in some folders, relative to the checkout.
fn files(folders: &[&str], endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if entry.file_type().unwrap().is_dir() {
                // What is built for fuzzing lies beside its sources.
                open.extend((entry.file_name() != "target").then_some(path));
            } else if endings.contains(&ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What a file holds beside its tests and comments.
fn code(text: &str) -> String {
    let tests = ["#[cfg(test)]", "#[cfg(all(test,"];
    let text = tests.iter().fold(text, |text, mark| text.split(mark).next().unwrap_or_default());
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The modules of `src/` in the order of CONTRIBUTING's table, from the lowest to the highest.
fn drawn() -> Vec<String> {
    let text = read("CONTRIBUTING.md");
    let table = text.split("The modules of `src/`").nth(1).expect("the table of modules");
    let rows = table.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| Some(row.split('`').nth(1)?.to_string())).collect()
}

/// The module of `src/` that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.iter().nth(1).unwrap().to_str().unwrap();
    first.strip_suffix(".rs").unwrap_or(first).to_string()
}

/// The modules that code names after `crate::` (or, in a program, `vigdet::`).
fn used(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for root in ["crate::", "vigdet::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(list) => {
                    let list = list.split('}').next().unwrap_or_default();
                    names.extend(list.split(',').map(|item| name(item.trim())));
                }
                None => drop(names.insert(name(rest))),
            }
        }
    }
    names
}

#[test]
fn a_module_uses_only_those_below_it_in_contributings_table() {
    let order = drawn();
    let level = |name: &str| order.iter().position(|module| module == name);
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut upward = Vec::new();
    for path in files(&["src"], &["rs"]).into_iter().filter(|path| !path.ends_with("lib.rs")) {
        let module = module_of(&path);
        let own = level(&module).unwrap_or_else(|| panic!("{} is in no module of the table", path.display()));
        for name in used(&code(&read(&path))) {
            // Macros and items of the crate's root are no modules.
            if let Some(other) = level(&name).filter(|other| *other > own) {
                upward.push(format!("{}: {module} uses {}", path.display(), order[other]));
            }
        }
        seen.insert(module);
    }
    assert_eq!(upward, Vec::<String>::new());
    let unknown: Vec<&String> = order.iter().filter(|module| !seen.contains(*module)).collect();
    assert!(unknown.is_empty(), "the table names modules that are not there: {unknown:?}");
}

#[test]
fn the_crates_below_need_no_libtorch() {
    for name in ["vigdet-coco", "vigdet-kernels"] {
        let manifest = read(format!("crates/{name}/Cargo.toml"));
        assert!(!manifest.contains("tch") && !manifest.contains("vigdet ="), "{name}");
        for path in files(&[&format!("crates/{name}/src")], &["rs"]) {
            let code = code(&read(&path));
            assert!(!code.contains("tch::") && !code.contains("use vigdet::"), "{}", path.display());
        }
    }
}

#[test]
fn no_file_name_stands_for_two_things() {
    let mut places: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let folders = ["src", "crates/vigdet-coco/src", "crates/vigdet-kernels/src"];
    for path in files(&folders, &["rs"]) {
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        // A program is called what its command is called.
        let program = path.iter().any(|part| part == "bin");
        if !program && !["lib.rs", "mod.rs"].contains(&name.as_str()) {
            places.entry(name).or_default().push(path);
        }
    }
    let twice: Vec<_> = places.into_iter().filter(|(_, paths)| paths.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn one_file_opens_the_memory_of_tensors() {
    let opens: Vec<PathBuf> = files(&["src"], &["rs"])
        .into_iter()
        .filter(|path| {
            let code = code(&read(path));
            code.contains("from_raw_parts") || code.contains("data_ptr(")
        })
        .collect();
    assert_eq!(opens, [Path::new("src/nn/memory.rs")]);
}

/// What waits for a GPU, or has it wait: a network may do so in `nn/crossings.rs` alone, which counts.
#[test]
fn one_file_copies_between_devices() {
    let waits = ["to_device", "int64_value(", "double_value(", "nonzero", "masked_select", "pin_memory", "from_blob"];
    // Beside it, what looks at graphs, for pictures, and what another runtime does on the processor.
    let looks = ["src/nn/crossings.rs", "src/graph/trace.rs", "src/detect/exported.rs"].map(Path::new);
    let mut found = Vec::new();
    for path in files(&["src/nn", "src/graph", "src/backbone", "src/detect"], &["rs"]) {
        if looks.contains(&&*path) {
            continue;
        }
        let code = code(&read(&path));
        // The values of a tensor as a list of numbers.
        let lists = |line: &str| line.contains("Vec::<f") && line.contains("try_from(") && !line.contains("fetch(");
        for line in code.lines().filter(|line| waits.iter().any(|call| line.contains(call)) || lists(line)) {
            found.push(format!("{}: {}", path.display(), line.trim()));
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn lines_fit_a_screen() {
    let folders = ["src", "crates", "tests", "examples", "benches", "docs", "datasets"];
    let mut all = files(&folders[..5], &["rs"]);
    all.extend(files(&["docs"], &["md"]));
    all.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md"].map(PathBuf::from));
    let mut wide = Vec::new();
    for path in all {
        for (number, line) in read(&path).lines().enumerate() {
            if line.chars().count() > COLUMNS {
                wide.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert_eq!(wide, Vec::<String>::new());
}

#[test]
fn every_command_has_a_program_of_its_own_name() {
    let names = |folder: &str| -> BTreeSet<String> {
        let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_string();
        files(&[folder], &["rs"]).into_iter().map(stem).collect()
    };
    let mut commands = names("src/commands");
    // What two commands share, parts of one, and those that are in `vigdet` alone.
    for other in ["mod", "training", "prelabels", "preview", "replay", "weights", "dataset", "export"] {
        assert!(commands.remove(other), "{other}");
    }
    let mut programs = names("src/bin");
    assert!(programs.remove("vigdet"));
    assert_eq!(commands, programs);
}

/// Calls that end in a panic, outside of tests: (file, how many, why no input gets there).
const PANICS: [(&str, usize, &str); 10] = [
    ("crates/vigdet-coco/src/rle/mod.rs", 2, "a caller's own array has as many pixels as the mask"),
    ("crates/vigdet-kernels/src/max_relative.rs", 8, "slices and sizes are one tensor's, checked in graph/"),
    ("crates/vigdet-kernels/src/nearest.rs", 9, "the same; k and candidates are checked in graph/knn.rs"),
    ("crates/vigdet-kernels/src/rolls.rs", 4, "slices and sizes are one tensor's; rolls are made for its map"),
    ("crates/vigdet-kernels/src/x86.rs", 2, "numbers of registers, constants of the kernels"),
    ("src/detect/instance_mask.rs", 1, "a mask without pixels"),
    ("src/nn/memory.rs", 2, "two tensors of one model do not share memory; guards unsafe code"),
    ("src/train/replicas.rs", 1, "the engine takes as many micro batches as there are replicas"),
    ("src/weights/catalogue.rs", 1, "a file in the program, which a test reads"),
    // Fuzz targets panic to tell of what they find.
    ("crates/vigdet-coco/src/json/fuzzing.rs", 15, "only built for fuzzing"),
];

#[test]
fn calls_that_can_panic_are_few_and_no_input_gets_there() {
    const CALLS: [&str; 10] = [
        ".unwrap()",
        ".expect(\"",
        "panic!(",
        "unreachable!(",
        "todo!(",
        "unimplemented!(",
        "assert!(",
        "assert_eq!(",
        "assert_ne!(",
        ".unwrap_err()",
    ];
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for path in files(&["src", "crates"], &["rs"]) {
        let name = path.to_str().unwrap().to_string();
        if !name.starts_with("src/") && !name.contains("/src/") || name.contains("/fuzz/") {
            continue;
        }
        // A file of nothing but tests.
        if name.ends_with("/tests.rs") {
            continue;
        }
        let code = code(&read(&path)).replace("debug_assert", "");
        let calls = CALLS.iter().map(|call| code.matches(call).count()).sum::<usize>();
        if calls > 0 {
            found.insert(name, calls);
        }
    }
    let listed = PANICS.iter().map(|(file, calls, _)| (file.to_string(), *calls)).collect();
    assert_eq!(found, listed, "give each a reason in PANICS, or an error in place of the panic");
}

/// The texts between quotes in the list `name = [ … ]` of deny.toml.
fn denied(name: &str) -> Vec<String> {
    let text = read("deny.toml");
    let list = text.split(&format!("\n{name} = [\n")).nth(1).and_then(|rest| rest.split("\n]").next()).unwrap();
    list.lines().filter_map(|line| Some(line.split('"').nth(1)?.to_string())).collect()
}

/// Whether a licence expression (of names, `AND`, `OR`, `/` and parentheses) can be met by those allowed.
fn is_met(expression: &str, allowed: &[String]) -> bool {
    let text = expression.replace('/', " OR ");
    // A part in parentheses first: it is met or not.
    if let (Some(open), Some(close)) = (text.find('('), text.find(')')) {
        let inner = if is_met(&text[open + 1..close], allowed) { &allowed[0] } else { "none" };
        return is_met(&format!("{}{inner}{}", &text[..open], &text[close + 1..]), allowed);
    }
    let one = |name: &str| allowed.iter().any(|licence| licence == name.trim());
    text.split(" OR ").any(|all| all.split(" AND ").all(one))
}

#[test]
fn dependencies_have_licences_that_deny_toml_allows_and_two_versions_only_where_it_says_so() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--format-version", "1", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100);
    let allowed = denied("allow");
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for package in packages {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        if !is_met(text("license"), &allowed) {
            wrong.push(format!("{}: {}", text("name"), text("license")));
        }
        let ours = package["source"].is_null() || text("source").starts_with("registry+https://github.com/rust-lang/");
        assert!(ours, "{} is from {}", text("name"), text("source"));
        versions.entry(text("name")).or_default().push(text("version"));
    }
    assert_eq!(wrong, Vec::<String>::new());
    // `name@version` with as much of the version as tells it.
    let skipped = denied("skip");
    let is_skipped = |name: &str, version: &str| {
        skipped.iter().any(|skip| {
            let (own, begins) = skip.split_once('@').unwrap();
            own == name && format!("{version}.").starts_with(&format!("{begins}."))
        })
    };
    for (name, mut versions) in versions {
        versions.retain(|version| !is_skipped(name, version));
        assert!(versions.len() < 2, "{name} has the versions {versions:?}: deny.toml may skip one, with a reason");
    }
}
