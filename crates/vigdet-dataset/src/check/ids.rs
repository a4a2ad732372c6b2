//! Ids and names that come twice, or name what is not there.

use super::{Example, Findings, Kind};
use crate::types::{Import, Split};
use std::collections::{HashMap, HashSet};

/// For each image the places of its annotations. Of images with one id the first has them all.
pub(super) fn by_image(split: &Split) -> Vec<Vec<usize>> {
    let mut places: HashMap<i64, usize> = HashMap::with_capacity(split.dataset.images.len());
    for (place, image) in split.dataset.images.iter().enumerate() {
        places.entry(image.id).or_insert(place);
    }
    let mut objects = vec![Vec::new(); split.dataset.images.len()];
    for (at, annotation) in split.dataset.annotations.iter().enumerate() {
        if let Some(&place) = places.get(&annotation.image_id) {
            objects[place].push(at);
        }
    }
    objects
}

pub(super) fn check(import: &Import, findings: &mut Findings) {
    for split in &import.splits {
        let dataset = &split.dataset;
        let example = |file: &str, annotation: Option<i64>, detail: String| Example {
            split: split.name.clone(),
            file: file.to_owned(),
            annotation,
            detail,
        };
        let (mut images, mut names) = (HashSet::new(), HashMap::new());
        for image in &dataset.images {
            let name = image.file_name.as_str();
            if !images.insert(image.id) {
                findings.add(Kind::ImageIdTwice, || example(name, None, format!("id {}", image.id)));
            }
            if name.is_empty() {
                findings.add(Kind::NameEmpty, || example("", None, format!("image {}", image.id)));
            } else if let Some(first) = names.insert(name, image.id) {
                let detail = format!("images {first} and {}", image.id);
                findings.add(Kind::ImageTwice, || example(name, None, detail));
            }
        }
        let mut classes = HashSet::new();
        for category in &dataset.categories {
            if !classes.insert(category.id) {
                let detail = format!("id {}, the second is `{}`", category.id, category.name);
                findings.add(Kind::ClassIdTwice, || example("", None, detail));
            }
        }
        let mut annotations = HashSet::with_capacity(dataset.annotations.len());
        for annotation in &dataset.annotations {
            let id = Some(annotation.id);
            if !annotations.insert(annotation.id) {
                findings.add(Kind::AnnotationIdTwice, || example("", id, String::new()));
            }
            if annotation.id == 0 {
                findings.add(Kind::AnnotationIdZero, || example("", id, String::new()));
            }
            if !images.contains(&annotation.image_id) {
                let detail = format!("image {}", annotation.image_id);
                findings.add(Kind::ImageIdUnknown, || example("", id, detail));
            }
            if !classes.contains(&annotation.category_id) {
                let detail = format!("class {}", annotation.category_id);
                findings.add(Kind::ClassIdUnknown, || example("", id, detail));
            }
        }
    }
}
