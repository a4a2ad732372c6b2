//! What is wrong with labelled images.
//!
//! [`check`] looks at every annotation and, if asked, decodes every image. [`fix`] mends what needs no guessing.

mod boxes;
mod classes;
mod files;
mod fix;
mod ids;
mod kind;
mod same;
mod shapes;

pub use files::pictures;
pub use fix::fix;
pub use kind::Kind;
pub use same::{nearly_same, Picture};

pub(crate) use boxes::scale;

use crate::types::{Import, Split};
use serde::Serialize;
use std::collections::BTreeMap;
use vigdet_coco::types::{Annotation, Image};

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decode every image: finds damaged ones and, by their content, those that come twice.
    pub decode: bool,
    /// The shorter side's least length and the longer side's greatest, after resizing, in pixels.
    pub size: (u32, u32),
    /// Show a bar while images are decoded.
    pub progress: bool,
}

impl Default for Options {
    /// Decodes; sizes are those of COCO's usual configs, 800 and 1333.
    fn default() -> Options {
        Options { decode: true, size: (800, 1333), progress: false }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Images looked at.
    pub images: usize,
    /// Annotations looked at.
    pub annotations: usize,
    /// In the order of [`Kind::ALL`].
    pub findings: Vec<Finding>,
}

/// All that was found of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// [`Kind::name`].
    pub kind: &'static str,
    /// How often.
    pub count: usize,
    /// [`Kind::hurts`].
    pub hurts: bool,
    /// [`Kind::what`].
    pub what: &'static str,
    /// The first three.
    pub examples: Vec<Example>,
}

/// One place.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Example {
    /// The split.
    pub split: String,
    /// The image's file name, or the label file; empty where it is about neither.
    pub file: String,
    /// The annotation's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub annotation: Option<i64>,
    /// Numbers and names.
    pub detail: String,
}

impl Report {
    /// Whether training or evaluation would be worse for something.
    pub fn hurts(&self) -> bool {
        self.findings.iter().any(|finding| finding.hurts)
    }

    /// What was found of a kind.
    pub fn of(&self, kind: Kind) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.kind == kind.name())
    }

    /// The report for people: a line a kind, and its examples under it.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("{} images, {} annotations", self.images, self.annotations)];
        let title = ["finding", "count", "hurts", "what"].map(str::to_owned).to_vec();
        let row = |finding: &Finding| {
            let hurts = if finding.hurts { "yes" } else { "no" };
            vec![finding.kind.to_owned(), finding.count.to_string(), hurts.to_owned(), finding.what.to_owned()]
        };
        let rows: Vec<Vec<String>> = std::iter::once(title).chain(self.findings.iter().map(row)).collect();
        let mut table = crate::table::lines(&rows).into_iter();
        if self.findings.is_empty() {
            lines.push("nothing found".to_owned());
            return lines;
        }
        lines.extend(table.next());
        for (line, finding) in table.zip(&self.findings) {
            lines.push(line);
            for example in &finding.examples {
                let annotation = example.annotation.map(|id| format!("annotation {id}"));
                let parts = [example.split.clone(), example.file.clone(), annotation.unwrap_or_default()];
                let place: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                let parts = [place.join(", "), example.detail.clone()];
                let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                lines.push(format!("    {}", parts.join(": ")));
            }
        }
        lines
    }
}

/// Gathers findings.
#[derive(Default)]
struct Findings(BTreeMap<Kind, (usize, Vec<Example>)>);

impl Findings {
    /// One more; `example` is only made for the first three.
    fn add(&mut self, kind: Kind, example: impl FnOnce() -> Example) {
        self.add_many(kind, 1, example);
    }

    /// Several that one example stands for.
    fn add_many(&mut self, kind: Kind, count: usize, example: impl FnOnce() -> Example) {
        let (total, examples) = self.0.entry(kind).or_default();
        *total += count;
        if examples.len() < 3 {
            examples.push(example());
        }
    }

    fn finish(self, import: &Import) -> Report {
        let finding = |(kind, (count, examples)): (Kind, (usize, Vec<Example>))| Finding {
            kind: kind.name(),
            count,
            hurts: kind.hurts(),
            what: kind.what(),
            examples,
        };
        Report {
            images: import.splits.iter().map(|split| split.dataset.images.len()).sum(),
            annotations: import.splits.iter().map(|split| split.dataset.annotations.len()).sum(),
            findings: self.0.into_iter().map(finding).collect(),
        }
    }
}

/// An example of an annotation in an image.
fn at(split: &Split, image: &Image, annotation: &Annotation, detail: impl Into<String>) -> Example {
    Example { annotation: Some(annotation.id), ..of(split, image, detail) }
}

/// An example of an image.
fn of(split: &Split, image: &Image, detail: impl Into<String>) -> Example {
    let file = if image.file_name.is_empty() { format!("image {}", image.id) } else { image.file_name.clone() };
    Example { split: split.name.clone(), file, annotation: None, detail: detail.into() }
}

/// Looks at everything in `import`, which [`Import::read`] gave.
pub fn check(import: &Import, options: &Options) -> Report {
    let mut findings = Findings::default();
    for split in &import.splits {
        for fault in &split.faults {
            let detail = fault.what.clone();
            let file = fault.place.clone();
            findings.add(Kind::LabelUnclear, || Example { split: split.name.clone(), file, annotation: None, detail });
        }
    }
    let (sizes, pictures) = files::check(import, options, &mut findings);
    ids::check(import, &mut findings);
    classes::check(import, &mut findings);
    for (split, sizes) in import.splits.iter().zip(&sizes) {
        let objects = ids::by_image(split);
        boxes::check(split, &objects, sizes, options, &mut findings);
        shapes::check(split, &objects, sizes, &mut findings);
    }
    same::check(import, &pictures, &mut findings);
    findings.finish(import)
}
