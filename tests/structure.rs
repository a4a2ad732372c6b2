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
                open.push(path);
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
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
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
    // Beside it, what looks at graphs, for pictures.
    let looks = ["src/nn/crossings.rs", "src/graph/trace.rs"].map(Path::new);
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
    for other in ["mod", "training", "prelabels", "preview", "weights", "dataset"] {
        assert!(commands.remove(other), "{other}");
    }
    let mut programs = names("src/bin");
    assert!(programs.remove("vigdet"));
    assert_eq!(commands, programs);
}
