//! Images that must stay together.

use crate::check::{nearly_same, Picture};
use crate::types::Split;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Images that must stay together.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Group {
    /// Each on its own.
    #[default]
    None,
    /// Those of one folder.
    Folder,
    /// Those whose names begin alike, up to this text.
    Prefix(String),
    /// Those with one value; by file name, or by its last part. Images without a value are on their own.
    Values(HashMap<String, String>),
}

impl Group {
    /// The values of a column of a CSV file. Its first column that is called `file_name`, `filename`, `image`, `path`
    /// or `name` has the images.
    ///
    /// # Errors
    /// The file cannot be read, or has no such columns.
    pub fn from_column(file: &Path, column: &str) -> Result<Group> {
        let failed = || format!("{}", file.display());
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(file).with_context(failed)?;
        let titles = reader.headers().with_context(failed)?.clone();
        let names = ["file_name", "filename", "image", "path", "name"];
        let image = titles.iter().position(|title| names.contains(&title.to_lowercase().as_str()));
        let image = image.with_context(|| format!("{} has no column `file_name`", file.display()))?;
        let value = titles.iter().position(|title| title == column);
        let value = value.with_context(|| format!("{} has no column `{column}`", file.display()))?;
        let mut values = HashMap::new();
        for record in reader.records() {
            let record = record.with_context(failed)?;
            if let (Some(image), Some(value)) = (record.get(image), record.get(value)) {
                values.insert(image.replace('\\', "/"), value.to_owned());
            }
        }
        Ok(Group::Values(values))
    }

    fn of(&self, file_name: &str) -> Option<String> {
        let last = file_name.rsplit('/').next().unwrap_or(file_name);
        match self {
            Group::None => None,
            Group::Folder => Some(file_name.strip_suffix(last).unwrap_or_default().to_owned()),
            Group::Prefix(end) => last.split_once(end.as_str()).map(|(start, _)| start.to_owned()),
            Group::Values(values) => values.get(file_name).or_else(|| values.get(last)).cloned(),
        }
    }
}

/// The images of `split` that must stay together: places of images, each once. `pictures`, if not empty, has one for
/// each image; those nearly the same are kept together too.
pub fn units(split: &Split, group: &Group, pictures: &[Option<Picture>]) -> Vec<Vec<usize>> {
    let images = &split.dataset.images;
    let mut parents: Vec<usize> = (0..images.len()).collect();
    fn root(parents: &mut [usize], mut at: usize) -> usize {
        while parents[at] != at {
            parents[at] = parents[parents[at]];
            at = parents[at];
        }
        at
    }
    let mut first_of: HashMap<String, usize> = HashMap::new();
    for (at, image) in images.iter().enumerate() {
        if let Some(value) = group.of(&image.file_name) {
            let first = *first_of.entry(value).or_insert(at);
            let (a, b) = (root(&mut parents, first), root(&mut parents, at));
            parents[b.max(a)] = a.min(b);
        }
    }
    for (a, b) in nearly_same(pictures) {
        let (a, b) = (root(&mut parents, a), root(&mut parents, b));
        parents[b.max(a)] = a.min(b);
    }
    let mut units: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in 0..images.len() {
        units.entry(root(&mut parents, at)).or_default().push(at);
    }
    units.into_values().collect()
}
