//! What is said of a classifier's images that cannot be read.

use std::collections::BTreeSet;

/// Files that are named at a time.
const NAMED: usize = 5;

/// Remembers what was said, for an epoch to name what is new.
#[derive(Clone, Debug, Default)]
pub struct Unread(BTreeSet<String>);

impl Unread {
    /// Lines for those of `files` (name, reason) that were not among them before: some with their reasons, `what` first, and if there are more how
    /// many there are in all. None if nothing is new.
    pub fn news(&mut self, files: &[(String, String)], what: &str) -> Vec<String> {
        let new: Vec<&(String, String)> = files.iter().filter(|f| self.0.insert(f.0.clone())).collect();
        let named = new.iter().take(NAMED).map(|(file, reason)| format!("{what}: {file}: {reason}"));
        let mut lines: Vec<String> = named.collect();
        if !new.is_empty() && (new.len() > NAMED || new.len() < files.len()) {
            lines.push(format!("{what}: {} unreadable images in all", files.len()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(count: usize) -> Vec<(String, String)> {
        (0..count).map(|i| (format!("{i}.png"), "no image".to_string())).collect()
    }

    #[test]
    fn files_are_named_once_and_counted_in_all() {
        let mut unread = Unread::default();
        assert!(unread.news(&[], "skipped").is_empty());
        assert_eq!(
            unread.news(&files(2), "skipped"),
            ["skipped: 0.png: no image", "skipped: 1.png: no image"]
        );
        assert!(unread.news(&files(2), "skipped").is_empty());
        let more = unread.news(&files(9), "skipped");
        assert_eq!(more.len(), 6);
        assert_eq!(
            (more[0].as_str(), more[4].as_str()),
            ("skipped: 2.png: no image", "skipped: 6.png: no image")
        );
        assert_eq!(more[5], "skipped: 9 unreadable images in all");
        // The 7th and 8th were counted then.
        assert!(unread.news(&files(9), "skipped").is_empty());
    }
}
