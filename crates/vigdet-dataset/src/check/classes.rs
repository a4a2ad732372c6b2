//! Classes: names, ids that do not agree, and how many objects each has.

use super::{Example, Findings, Kind};
use crate::types::{Import, Split};
use crate::Layout;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Fewer objects than these are hardly enough to learn a class.
const FEW: usize = 10;

pub(super) fn check(import: &Import, findings: &mut Findings) {
    for split in &import.splits {
        names(split, findings);
        shifted(import, split, findings);
    }
    agree(import, findings);
    counts(import, findings);
}

fn example(split: &Split, detail: String) -> Example {
    Example { split: split.name.clone(), detail, ..Example::default() }
}

fn names(split: &Split, findings: &mut Findings) {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for category in &split.dataset.categories {
        let plain = category.name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        if plain.is_empty() {
            findings.add(Kind::ClassNameEmpty, || example(split, format!("class {}", category.id)));
        } else if let Some(first) = seen.insert(plain, &category.name) {
            findings.add(Kind::ClassNameTwice, || example(split, format!("`{first}` and `{}`", category.name)));
        }
    }
}

/// All ids that objects have would be known if they were one more or one less, and now some are not.
fn shifted(import: &Import, split: &Split, findings: &mut Findings) {
    let known: BTreeSet<i64> = split.dataset.categories.iter().map(|category| category.id).collect();
    let used: BTreeSet<i64> = split.dataset.annotations.iter().map(|annotation| annotation.category_id).collect();
    let fits = |by: i64| used.iter().all(|id| known.contains(&(id + by)));
    if !known.is_empty() && !fits(0) && (fits(1) || fits(-1)) {
        let range = |ids: &BTreeSet<i64>| format!("{} to {}", ids.first().unwrap_or(&0), ids.last().unwrap_or(&0));
        let detail = format!("objects have {}, classes are {}", range(&used), range(&known));
        findings.add(Kind::ClassIdsShifted, || example(split, detail));
    }
    // YOLO's readers refuse the class after the last; the first is then without objects.
    if import.layout == Layout::Yolo && !known.is_empty() && !used.contains(&1) {
        let after = format!("class {} is not among", known.len());
        let refused = split.faults.iter().filter(|fault| fault.what.starts_with("class ")).count();
        let next = split.faults.iter().filter(|fault| fault.what.starts_with(&after)).count();
        if next > 0 && next == refused {
            let last = known.len() - 1;
            let detail = format!("labels have 1 to {}, classes are 0 to {last}", known.len());
            findings.add(Kind::ClassIdsShifted, || example(split, detail));
        }
    }
}

fn agree(import: &Import, findings: &mut Findings) {
    let Some((first, others)) = import.splits.split_first() else { return };
    for split in others {
        for category in &split.dataset.categories {
            if first.dataset.categories.iter().any(|c| c.id == category.id && c.name == category.name) {
                continue;
            }
            let same_id = first.dataset.categories.iter().find(|c| c.id == category.id);
            let same_name = first.dataset.categories.iter().find(|c| c.name == category.name);
            let other = match (same_id, same_name) {
                (Some(other), _) | (None, Some(other)) => other,
                (None, None) => continue,
            };
            let detail =
                format!("`{}` is {}, in {} `{}` is {}", category.name, category.id, first.name, other.name, other.id);
            findings.add(Kind::ClassIdsDiffer, || example(split, detail));
        }
    }
}

fn counts(import: &Import, findings: &mut Findings) {
    // By name, since ids may differ from split to split.
    let mut of_class: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for split in &import.splits {
        let names: HashMap<i64, &str> = split.dataset.categories.iter().map(|c| (c.id, c.name.as_str())).collect();
        for &name in names.values() {
            of_class.entry(name).or_default().entry(&split.name).or_default();
        }
        for annotation in split.dataset.annotations.iter().filter(|annotation| !annotation.iscrowd) {
            if let Some(&name) = names.get(&annotation.category_id) {
                *of_class.entry(name).or_default().entry(&split.name).or_default() += 1;
            }
        }
    }
    let has = |name: &str| import.splits.iter().any(|split| split.name == name);
    for (class, counts) in of_class {
        let count = |split: &str| counts.get(split).copied().unwrap_or(0);
        let training = if has("train") { "train" } else { "all" };
        let detail = |text: String| Example { detail: text, ..Example::default() };
        if counts.values().sum::<usize>() == 0 {
            findings.add(Kind::ClassUnused, || detail(format!("`{class}`")));
            continue;
        }
        if has("train") && has("val") {
            if count("train") == 0 && count("val") > 0 {
                findings.add(Kind::ClassNotInTrain, || detail(format!("`{class}`: {} objects in val", count("val"))));
            }
            if count("val") == 0 && count("train") > 0 {
                let text = format!("`{class}`: {} objects in train", count("train"));
                findings.add(Kind::ClassNotInVal, || detail(text));
            }
        }
        if (1..FEW).contains(&count(training)) {
            findings.add(Kind::ClassRare, || detail(format!("`{class}`: {} objects", count(training))));
        }
    }
}
