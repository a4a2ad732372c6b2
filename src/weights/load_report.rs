//! What became of each name when weights were read.

use std::fmt;

#[cfg(doc)]
use super::load::LoadOptions;
use crate::classes::list;

/// What happened to each name. All lists are sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Variables of the model that took their value from the file.
    pub loaded: Vec<String>,
    /// Variables that the file does not have: they keep their value.
    pub missing: Vec<String>,
    /// Names in the file that the model does not have.
    pub unused: Vec<String>,
    /// Of the loaded: position embeddings that were resized to the model's grid.
    pub reshaped: Vec<String>,
    /// Where in a trainer's checkpoint the weights were (`state_dict`, `model`, …); `None`: it holds nothing else.
    pub key: Option<&'static str>,
    /// Of the missing: classifiers for other classes (see [`LoadOptions::other_classes`]).
    pub other_classes: Vec<String>,
    /// Where classes were matched by name and differ: what became of them.
    pub classes: Option<ClassReport>,
}

/// Which rows of class layers were taken from a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassReport {
    /// Names of the classes whose rows were taken.
    pub kept: Vec<String>,
    /// Names of the model's classes that the file does not know: their rows keep their init.
    pub anew: Vec<String>,
    /// Names of the file's classes that the model does not have.
    pub unused: Vec<String>,
}

impl fmt::Display for ClassReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "classes by name: {} kept", self.kept.len())?;
        for (names, what) in [(&self.kept, ""), (&self.anew, "anew"), (&self.unused, "of the file unused")] {
            match (names.is_empty(), what) {
                (true, _) => {}
                (false, "") => write!(f, " ({})", list(names))?,
                (false, what) => write!(f, ", {} {what} ({})", names.len(), list(names))?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded.len())?;
        if let Some(key) = self.key {
            write!(f, " from its `{key}`")?;
        }
        let mut list = |what: &str, names: &[String]| match names.len() {
            0 => Ok(()),
            count @ 1..=4 => write!(f, ", {count} {what} ({})", names.join(", ")),
            count => write!(f, ", {count} {what} ({}, …)", names[..3].join(", ")),
        };
        let missing = self.missing.iter().filter(|name| !self.other_classes.contains(name));
        list("missing in the file", &missing.cloned().collect::<Vec<_>>())?;
        list("in the file unused", &self.unused)?;
        list("resized", &self.reshaped)?;
        list("kept at their init: other classes", &self.other_classes)?;
        self.classes.iter().try_for_each(|classes| write!(f, ", {classes}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_report_is_a_line_in_which_each_name_comes_once() {
        let report = LoadReport {
            loaded: names(&["a", "b", "pos_embed"]),
            missing: names(&["c", "head.bias"]),
            unused: names(&["q", "r", "s", "t", "u"]),
            reshaped: names(&["pos_embed"]),
            key: Some("state_dict"),
            other_classes: names(&["head.bias"]),
            classes: Some(ClassReport { kept: names(&["cat"]), anew: names(&["dog", "cow"]), unused: names(&[]) }),
        };
        assert_eq!(
            report.to_string(),
            "3 tensors loaded from its `state_dict`, 1 missing in the file (c), 5 in the file unused (q, r, s, …), \
             1 resized (pos_embed), 1 kept at their init: other classes (head.bias), \
             classes by name: 1 kept (`cat`), 2 anew (`dog`, `cow`)"
        );
        let whole = LoadReport { loaded: names(&["a"]), ..LoadReport::default() };
        assert_eq!(whole.to_string(), "1 tensors loaded");
    }
}
