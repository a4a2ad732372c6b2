//! What the fuzz targets share: a folder in which one or two files are any bytes.

use std::cell::RefCell;
use std::path::Path;

use tempfile::TempDir;
use vigdet_dataset::check::{check, Options};
use vigdet_dataset::layouts::{self, Images};
use vigdet_dataset::stats::stats;
use vigdet_dataset::{Import, Layout};

/// A PNG of 64 × 48 grey pixels.
const IMAGE: &[u8] = include_bytes!("../../tests/fixtures/labelme/a.png");

/// A folder with an image `a.png` in each of `images`, and files.
pub struct Setup {
    /// Folders of the image.
    pub images: &'static [&'static str],
    /// Files that stay: name and content.
    pub files: &'static [(&'static str, &'static str)],
    /// Files that are parts of the input, which zeros divide.
    pub changed: &'static [&'static str],
}

impl Setup {
    fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, content).expect("a file");
        };
        self.images.iter().for_each(|images| write(&format!("{images}/a.png"), IMAGE));
        self.files.iter().for_each(|(name, content)| write(name, content.as_bytes()));
        self.changed.iter().for_each(|name| write(name, b""));
        folder
    }

    /// Reads the folder as whatever it is, and as `layout`. What is read is checked and counted; what is sound is
    /// written in a layout, and read again.
    pub fn try_with(&self, layout: Layout, bytes: &[u8]) {
        thread_local!(static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) });
        FOLDER.with_borrow_mut(|folder| {
            let root = folder.get_or_insert_with(|| self.folder()).path();
            let last = self.changed.len() - 1;
            let parts = bytes.splitn(self.changed.len(), |byte| *byte == 0);
            let parts = parts.chain(std::iter::repeat(&b""[..])).take(last + 1);
            for (name, part) in self.changed.iter().zip(parts) {
                std::fs::write(root.join(name), part).expect("a file");
            }
            let _ = Import::read(root);
            if let Ok(import) = Import::read_as(root, layout) {
                check(&import, &Options { decode: false, ..Options::default() });
                stats(&import, (800, 1333));
                if import.ensure_sound().is_ok() {
                    write(&import, bytes.last().copied().unwrap_or_default());
                }
            }
        });
    }
}

fn write(import: &Import, choice: u8) {
    let layout = Layout::ALL[usize::from(choice) % Layout::ALL.len()];
    let out = tempfile::tempdir().expect("a temporary folder");
    let inside: &Path = &out.path().join("export");
    if layouts::write(import, layout, inside, Images::None).is_ok() {
        let _ = Import::read_as(inside, layout);
    }
    let names: Vec<_> = std::fs::read_dir(out.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert!(names.iter().all(|name| name == "export"), "written outside of its folder: {names:?}");
}
