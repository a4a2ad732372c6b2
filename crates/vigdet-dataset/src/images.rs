//! Image files: what their headers say, where they are, which names they have.

use anyhow::{Context, Result};
use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat, ImageReader};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Component, Path, PathBuf};

/// Endings of image files.
pub const ENDINGS: [&str; 10] = ["jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp", "gif", "ppm", "pgm"];

/// So many bytes of a file are read in search of its size, then more, then all.
const BEGINNINGS: [u64; 3] = [8 << 10, 128 << 10, u64::MAX];

/// What the header of an image file says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    /// In pixels, as stored.
    pub width: u32,
    /// In pixels, as stored.
    pub height: u32,
    /// The format of the content, whatever the name says.
    pub format: ImageFormat,
    /// EXIF's orientation; `NoTransforms` where there is none.
    pub orientation: Orientation,
}

impl Header {
    /// Whether the image lies on its side: shown, its width and height are exchanged.
    pub fn on_its_side(&self) -> bool {
        use Orientation::{Rotate270, Rotate270FlipH, Rotate90, Rotate90FlipH};
        matches!(self.orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
    }
}

/// Reads the header of an image file.
///
/// # Errors
/// Names the file: it is not there, or its content is no image that can be read.
pub fn header(path: &Path) -> Result<Header> {
    begin(path).map(|(header, ..)| header)
}

/// The header of an image file, the bytes that were read for it, and the file, of which the rest can be read.
///
/// # Errors
/// As [`header`].
pub(crate) fn begin(path: &Path) -> Result<(Header, Vec<u8>, File)> {
    let failed = || format!("image {}", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let mut bytes = Vec::new();
    let mut header = header_of(&bytes);
    for beginning in BEGINNINGS {
        let more = beginning - bytes.len() as u64;
        if header.is_ok() || file.by_ref().take(more).read_to_end(&mut bytes).with_context(failed)? == 0 {
            break;
        }
        header = header_of(&bytes);
    }
    Ok((header.with_context(failed)?, bytes, file))
}

fn header_of(bytes: &[u8]) -> Result<Header> {
    anyhow::ensure!(!bytes.is_empty(), "the file is empty");
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let format = reader.format().context("no image format that is known")?;
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok(Header { width, height, format, orientation })
}

/// Whether a JPEG has an end marker after its image data begins. A thumbnail in the headers has one of its own.
pub fn has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4) {
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
        // The start of a scan.
        if marker == 0xDA {
            break;
        }
    }
    bytes.get(at..).is_some_and(|data| data.windows(2).rev().any(|pair| pair == [0xFF, 0xD9]))
}

/// [`header`] of many files, in parallel and in their order.
pub fn headers(paths: &[PathBuf]) -> Vec<Result<Header>> {
    paths.par_iter().map(|path| header(path)).collect()
}

/// Whether a name ends as an image's does, in any case.
pub fn is_image(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
}

/// The images in a folder and the folders in it, sorted by name. Hidden files and folders are passed over.
pub fn below(folder: &Path) -> Vec<PathBuf> {
    files_below(folder, is_image)
}

/// The files in a folder and the folders in it that `wanted` takes, sorted by name. Links are followed; hidden files
/// and folders are passed over.
pub(crate) fn files_below(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let visible = |entry: &walkdir::DirEntry| entry.depth() == 0 || !is_hidden(entry);
    let walk = walkdir::WalkDir::new(folder).follow_links(true).into_iter().filter_entry(visible);
    // A folder that cannot be read holds nothing that could be used.
    let files = walk.filter_map(|entry| entry.ok()).filter(|entry| entry.file_type().is_file());
    let mut files: Vec<PathBuf> = files.map(walkdir::DirEntry::into_path).filter(|path| wanted(path)).collect();
    files.sort();
    files
}

fn is_hidden(entry: &walkdir::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with('.')
}

/// The images of a folder by the name without its ending, for layouts that name images so. Where several images share
/// one, the first by name stands for it.
pub(crate) fn by_stem(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for path in below(folder) {
        if let Some(stem) = stem_of(&path, folder) {
            found.entry(stem).or_insert(path);
        }
    }
    found
}

/// A file's name without its ending, relative to `folder`, with `/`.
pub(crate) fn stem_of(path: &Path, folder: &Path) -> Option<String> {
    path.strip_prefix(folder).ok().map(|name| slashed(&name.with_extension("")))
}

/// A path with `/` between its parts, on every system.
pub(crate) fn slashed(path: &Path) -> String {
    let parts = path.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
    let text = parts.collect::<Vec<_>>().join("/");
    // An absolute path begins with a part that is itself a slash.
    if text.starts_with("//") {
        text[1..].to_owned()
    } else {
        text
    }
}

/// A name from a file, with the separators of any system and without `.` and `..` where they can be resolved.
pub(crate) fn path_of(name: &str) -> PathBuf {
    tidied(Path::new(&name.trim().replace('\\', "/")))
}

/// Gives names with the separators of Windows `/` instead, where no file in `folder` has the name as it is. Gives how
/// many.
pub fn slash_names(images: &mut [vigdet_coco::types::Image], folder: &Path) -> usize {
    let mut changed = 0;
    for image in images.iter_mut().filter(|image| image.file_name.contains('\\')) {
        if !folder.join(&image.file_name).is_file() {
            image.file_name = slashed(&path_of(&image.file_name));
            changed += 1;
        }
    }
    changed
}

/// A path without `.`, and without `..` after a name.
pub(crate) fn tidied(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(tidy.components().next_back(), Some(Component::Normal(_))) => {
                tidy.pop();
            }
            part => tidy.push(part),
        }
    }
    tidy
}

/// The innermost folder that all files lie in, and their names in it. `otherwise` where there are no files.
pub(crate) fn in_common_folder(paths: &[PathBuf], otherwise: &Path) -> (PathBuf, Vec<String>) {
    let mut folder = tidied(paths.first().and_then(|path| path.parent()).unwrap_or(otherwise));
    for path in paths {
        while !path.starts_with(&folder) && folder.pop() {}
    }
    let names = paths.iter().map(|path| slashed(path.strip_prefix(&folder).unwrap_or(path))).collect();
    (folder, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_systems_become_paths() {
        assert_eq!(slashed(&path_of(r"..\images\a b.JPG")), "../images/a b.JPG");
        assert_eq!(slashed(&path_of("x/./y/../z.png")), "x/z.png");
        assert_eq!(slashed(&path_of("/data/é.png")), "/data/é.png");
    }

    #[test]
    fn files_outside_a_folder_widen_it() {
        let paths = ["/d/train/a.jpg", "/d/more/b.jpg"].map(PathBuf::from);
        let (folder, names) = in_common_folder(&paths, Path::new("/d/train"));
        assert_eq!((folder, names), (PathBuf::from("/d"), vec!["train/a.jpg".to_owned(), "more/b.jpg".to_owned()]));
    }

    #[test]
    fn the_size_of_a_photo_with_a_long_preface_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        let mut jpeg = Vec::new();
        let image = image::RgbImage::new(33, 21);
        image.write_to(&mut Cursor::new(&mut jpeg), ImageFormat::Jpeg).unwrap();
        // Two comments of nearly 64 KiB each before the size.
        let comment = [vec![0xFF, 0xFE, 0xFF, 0xFD], vec![b'x'; 0xFFFB]].concat();
        std::fs::write(&path, [&jpeg[..2], &comment, &comment, &jpeg[2..]].concat()).unwrap();
        let header = header(&path).unwrap();
        assert_eq!((header.width, header.height, header.format), (33, 21, ImageFormat::Jpeg));
    }
}
