//! Some of the classes.

use crate::table::shortened;
use crate::types::Import;
use anyhow::{ensure, Result};
use std::collections::HashSet;

/// Leaves out all classes but these, with their objects. Images stay, also those that are then without objects. Gives
/// the names of the classes that went, and how many objects went with them.
///
/// Each of `names` is a class, or several with commas between. Ids stay as they are.
///
/// # Errors
/// Names what no split has, and what there is.
pub fn only(import: &mut Import, names: &[String]) -> Result<(Vec<String>, usize)> {
    let known: Vec<String> = import.classes().into_iter().map(|class| class.name).collect();
    let mut wanted: HashSet<String> = HashSet::new();
    for name in names {
        // A comma may be part of a name.
        let parts = if known.contains(name) { vec![name.as_str()] } else { name.split(',').map(str::trim).collect() };
        for part in parts {
            ensure!(
                known.iter().any(|class| class == part),
                "there is no class `{part}`: there are {}",
                shortened(&known)
            );
            wanted.insert(part.to_owned());
        }
    }
    Ok(retain(import, &wanted))
}

/// Leaves out the classes that no annotation of any split has. Gives their names.
pub fn drop_empty(import: &mut Import) -> Vec<String> {
    let mut used = HashSet::new();
    for split in &import.splits {
        let ids: HashSet<i64> = split.dataset.annotations.iter().map(|annotation| annotation.category_id).collect();
        let with_objects = split.dataset.categories.iter().filter(|class| ids.contains(&class.id));
        used.extend(with_objects.map(|class| class.name.clone()));
    }
    retain(import, &used).0
}

fn retain(import: &mut Import, wanted: &HashSet<String>) -> (Vec<String>, usize) {
    let (mut gone, mut objects) = (Vec::new(), 0);
    for split in &mut import.splits {
        let dataset = &mut split.dataset;
        for class in dataset.categories.iter().filter(|class| !wanted.contains(&class.name)) {
            if !gone.contains(&class.name) {
                gone.push(class.name.clone());
            }
        }
        dataset.categories.retain(|class| wanted.contains(&class.name));
        let ids: HashSet<i64> = dataset.categories.iter().map(|class| class.id).collect();
        let kept: Vec<bool> = dataset.annotations.iter().map(|object| ids.contains(&object.category_id)).collect();
        objects += kept.iter().filter(|kept| !**kept).count();
        let mut at = kept.iter();
        dataset.annotations.retain(|_| at.next().copied().unwrap_or(true));
        // Empty for a ground truth.
        let mut at = kept.iter();
        split.scores.retain(|_| at.next().copied().unwrap_or(true));
    }
    (gone, objects)
}
