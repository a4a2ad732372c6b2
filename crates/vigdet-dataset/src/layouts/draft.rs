//! A split while it is read: objects by the place of their image and the name of their class, ids last.

use crate::geometry;
use crate::types::{Fault, Split};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use vigdet_coco::types::{Annotation, Category, Dataset, Image, Segmentation};

/// One object.
#[derive(Debug, Default)]
pub(super) struct Object {
    /// Place of the image in the draft.
    pub image: usize,
    /// Place of the class in [`Names`].
    pub class: usize,
    /// x, y, width, height in pixels.
    pub bbox: [f64; 4],
    /// Its outline.
    pub segmentation: Option<Segmentation>,
    /// A region with more objects than anybody would outline, or too hard to count.
    pub crowd: bool,
    /// How sure a detector was.
    pub score: Option<f64>,
}

impl Object {
    /// An object with the box around its outline.
    pub fn outlined(image: usize, class: usize, segmentation: Segmentation) -> Object {
        let bbox = geometry::bounds(&segmentation);
        Object { image, class, bbox, segmentation: Some(segmentation), ..Object::default() }
    }
}

/// A split without ids.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub name: String,
    pub folder: PathBuf,
    /// File name relative to the folder, width, height.
    pub images: Vec<(String, u32, u32)>,
    pub objects: Vec<Object>,
    /// What to tell, and how often it happened.
    pub notes: BTreeMap<String, usize>,
    pub faults: Vec<Fault>,
}

impl Draft {
    pub fn new(name: &str, folder: impl Into<PathBuf>) -> Draft {
        Draft { name: name.to_owned(), folder: folder.into(), ..Draft::default() }
    }

    /// Notes something that may happen often.
    pub fn note(&mut self, text: impl Into<String>) {
        *self.notes.entry(text.into()).or_default() += 1;
    }

    pub fn fault(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.faults.push(Fault { place: place.into(), what: what.into() });
    }

    fn finish(self, order: &[usize], categories: &[Category]) -> Split {
        let image = |(at, (file_name, width, height)): (usize, (String, u32, u32))| Image {
            id: at as i64 + 1,
            file_name,
            width,
            height,
        };
        let scored = self.objects.iter().any(|object| object.score.is_some());
        let scores = self.objects.iter().filter(|_| scored).map(|object| object.score.unwrap_or(1.0)).collect();
        let annotation = |(at, object): (usize, Object)| Annotation {
            id: at as i64 + 1,
            image_id: object.image as i64 + 1,
            category_id: order[object.class] as i64 + 1,
            bbox: object.bbox,
            area: object.segmentation.as_ref().map_or(object.bbox[2] * object.bbox[3], geometry::area),
            iscrowd: object.crowd,
            segmentation: object.segmentation,
        };
        let notes = self.notes.into_iter().map(|(text, count)| match count {
            1 => text,
            count => format!("{text} ({count} times)"),
        });
        Split {
            name: self.name,
            folder: self.folder,
            dataset: Dataset {
                images: self.images.into_iter().enumerate().map(image).collect(),
                annotations: self.objects.into_iter().enumerate().map(annotation).collect(),
                categories: categories.to_vec(),
            },
            scores,
            notes: notes.collect(),
            faults: self.faults,
        }
    }
}

/// The classes of all splits.
#[derive(Debug, Default)]
pub(super) struct Names {
    names: Vec<String>,
    places: HashMap<String, usize>,
    /// How many the layout lists itself: these keep their order, the others follow sorted by name.
    listed: usize,
}

impl Names {
    /// Classes in the order that the layout gives.
    pub fn listed(names: impl IntoIterator<Item = String>) -> Names {
        let mut all = Names::default();
        for name in names {
            all.places.entry(name.clone()).or_insert(all.names.len());
            all.names.push(name);
        }
        all.listed = all.names.len();
        all
    }

    /// The place of a class, which is new where it has not been seen.
    pub fn place(&mut self, name: &str) -> usize {
        if let Some(&place) = self.places.get(name) {
            return place;
        }
        self.places.insert(name.to_owned(), self.names.len());
        self.names.push(name.to_owned());
        self.names.len() - 1
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Splits with ids from 1. Splits without images are left out.
    pub fn finish(self, drafts: Vec<Draft>) -> Vec<Split> {
        let mut sorted: Vec<usize> = (0..self.names.len()).collect();
        sorted[self.listed..].sort_by(|&a, &b| self.names[a].cmp(&self.names[b]));
        let mut order = vec![0; sorted.len()];
        for (rank, &place) in sorted.iter().enumerate() {
            order[place] = rank;
        }
        let category = |(rank, &place): (usize, &usize)| Category {
            id: rank as i64 + 1,
            name: self.names[place].clone(),
            supercategory: None,
        };
        let categories: Vec<Category> = sorted.iter().enumerate().map(category).collect();
        let used = drafts.into_iter().filter(|draft| !draft.images.is_empty() || !draft.faults.is_empty());
        used.map(|draft| draft.finish(&order, &categories)).collect()
    }
}
