//! What a run says of its data once, however often it comes across it.

use std::collections::BTreeSet;

use serde_json::Value;
use vigdet_coco::eval::Warning;

/// Images named in one line; the others are counted.
const NAMED: usize = 5;

/// Remembers what was said.
#[derive(Debug, Default)]
pub struct Notices {
    images: BTreeSet<String>,
    warnings: Vec<std::mem::Discriminant<Warning>>,
}

impl Notices {
    /// `train: 2 images could not be read: a.png (it is empty), …`: those of `images` (file, reason) that no earlier
    /// line was on.
    pub fn unreadable(&mut self, split: &str, images: &[(String, String)]) -> Option<String> {
        self.line(split, "could not be read", images)
    }

    /// The same of images that are not as large as their annotations say.
    pub fn resized(&mut self, split: &str, images: &[(String, String)]) -> Option<String> {
        self.line(split, "of another size than annotated", images)
    }

    /// What an evaluation warns of, if it did not before: numbers in it may have changed.
    pub fn warning(&mut self, split: &str, warning: &Warning) -> Option<String> {
        let kind = std::mem::discriminant(warning);
        if self.warnings.contains(&kind) {
            return None;
        }
        self.warnings.push(kind);
        Some(format!("{split}: {warning}"))
    }

    fn line(&mut self, split: &str, what: &str, images: &[(String, String)]) -> Option<String> {
        let fresh: Vec<&(String, String)> =
            images.iter().filter(|(file, _)| self.images.insert(format!("{split} {what} {file}"))).collect();
        let number = match fresh.len() {
            0 => return None,
            1 => "1 image".to_string(),
            n => format!("{n} images"),
        };
        let named: Vec<String> = fresh.iter().take(NAMED).map(|(file, text)| format!("{file} ({text})")).collect();
        let more = match fresh.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!("{split}: {number} {what}: {}{more}", named.join(", ")))
    }
}

/// The entry of metrics.json for images that could not be read and so were not evaluated; none where all were.
pub fn metric(unreadable: &[(String, String)]) -> Option<(String, Value)> {
    (!unreadable.is_empty()).then(|| ("unreadable_images".to_string(), unreadable.len().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_is_counted_once_and_the_first_few_are_named() {
        let images = |names: &str| -> Vec<(String, String)> {
            names.chars().map(|name| (format!("{name}.png"), "broken".to_string())).collect()
        };
        let mut notices = Notices::default();
        assert_eq!(notices.unreadable("train", &[]), None);
        let line = notices.unreadable("train", &images("b")).unwrap();
        assert_eq!(line, "train: 1 image could not be read: b.png (broken)");
        let line = notices.unreadable("train", &images("abcdefgh")).unwrap();
        assert!(line.starts_with("train: 7 images could not be read: a.png (broken), c.png"), "{line}");
        assert!(line.ends_with("f.png (broken) and 2 more"), "{line}");
        assert_eq!(notices.unreadable("train", &images("abcdefgh")), None);
        assert!(notices.unreadable("val", &images("a")).is_some(), "another split has its own images");
        assert!(notices.resized("train", &images("a")).is_some(), "another thing to know of the same image");
    }

    #[test]
    fn a_kind_of_warning_is_said_once() {
        let mut notices = Notices::default();
        let line = notices.warning("val", &Warning::SizesDiffer { pairs: 3 }).unwrap();
        assert!(line.starts_with("val: 3 pairs"), "{line}");
        assert_eq!(notices.warning("val", &Warning::SizesDiffer { pairs: 4 }), None);
        assert!(notices.warning("val", &Warning::NoResults).is_some());
    }
}
