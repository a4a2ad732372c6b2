//! COCO's files, when they are plain, by [`Scanner`] rather than by serde_json.

use super::raw::{Bbox, Flag, Integer, Pixels, RawAnnotation, RawCategory, RawDataset, RawImage};
use super::scan::Scanner;
use crate::rle::Rle;
use crate::types::{Detection, Segmentation};
use rayon::prelude::*;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// A results file is read in blocks of about this many bytes, each on its own.
const BLOCK: u64 = 4 << 20;
/// Read beyond a block in search of the beginning of the next; twice as much each time that it is not found.
const OVERLAP: u64 = 64 << 10;
/// So many overlaps beyond a block without the beginning of another, and the file is hardly one of results.
const MOST_OVERLAPS: u64 = BLOCK / OVERLAP;

/// Puts a value, which may be a null that counts as absent, where there was none: a key that comes twice is not plain.
fn put<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

/// Reads a results file. `None` where it is not plain.
///
/// Blocks are read and scanned in parallel; besides what is kept only a few blocks are in memory. A block's first
/// object begins, as far as one can tell without having read the file from its beginning, after the first `},` followed
/// by `{`. Whether that is so is known in the end: the block before must come out there.
pub(super) fn detections(file: &File) -> io::Result<Option<Vec<Detection>>> {
    in_blocks(file, BLOCK, OVERLAP)
}

/// As [`detections`], in blocks of `block` bytes that are read `overlap` bytes further at first.
pub(super) fn in_blocks(file: &File, block: u64, overlap: u64) -> io::Result<Option<Vec<Detection>>> {
    let length = file.metadata()?.len();
    let mut head = Vec::new();
    read_on(file, 0, overlap.min(length), &mut head)?;
    if length == 0 || !begins_a_list(&head) {
        return Ok(None);
    }
    // Where one block is not plain, the others need not be read.
    let failed = AtomicBool::new(false);
    let parts: Vec<_> = (0..length.div_ceil(block))
        .into_par_iter()
        .map(|i| {
            if failed.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let part = objects_of_block(file, i * block, ((i + 1) * block).min(length), length, overlap);
            if !matches!(part, Ok(Some(_))) {
                failed.store(true, Ordering::Relaxed);
            }
            part
        })
        .collect();
    let mut all = Vec::with_capacity(parts.iter().flatten().flatten().map(Vec::len).sum());
    for part in parts {
        let Some(part) = part? else { return Ok(None) };
        all.extend(part);
    }
    Ok(Some(all))
}

/// Whether a list of objects may begin so.
fn begins_a_list(head: &[u8]) -> bool {
    let mut scanner = Scanner::new(head);
    scanner.at_end() || scanner.take(b'[') && matches!(scanner.peek(), None | Some(b'{' | b']'))
}

/// The objects that begin in the block from `offset` to `end`.
fn objects_of_block(
    file: &File,
    offset: u64,
    end: u64,
    length: u64,
    overlap: u64,
) -> io::Result<Option<Vec<Detection>>> {
    let mut bytes = Vec::new();
    let mut beyond = overlap;
    // The position, among `bytes`, where the next block takes over.
    let next = loop {
        let reach = (end + beyond).min(length);
        read_on(file, offset, reach, &mut bytes)?;
        let found = if end == length { None } else { first_object(&bytes, (end - offset) as usize) };
        if found.is_some() || reach == length {
            break found;
        }
        if beyond >= MOST_OVERLAPS * overlap {
            return Ok(None);
        }
        beyond *= 2;
    };
    let start = if offset == 0 { Some(0) } else { first_object(&bytes, 0) };
    let Some(start) = start.filter(|&start| next.is_none_or(|next| start < next)) else {
        return Ok(Some(Vec::new()));
    };
    let mut scanner = Scanner::new(&bytes);
    scanner.skip_to(start);
    Ok(objects(&mut scanner, offset == 0, next))
}

/// Appends the bytes of the file up to `end` (an offset in the file) to those from `offset` on.
fn read_on(file: &File, offset: u64, end: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    let have = bytes.len();
    bytes.resize((end - offset) as usize, 0);
    read_exact_at(file, &mut bytes[have..], offset + have as u64)
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_read(file, bytes, offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[count..];
        offset += count as u64;
    }
    Ok(())
}

/// The first `{` that follows a `}` and a comma, the `}` at `from` or later.
fn first_object(bytes: &[u8], from: usize) -> Option<usize> {
    let mut from = from;
    loop {
        from += memchr::memchr(b'}', &bytes[from..])? + 1;
        let mut scanner = Scanner::new(bytes);
        scanner.skip_to(from);
        if scanner.take(b',') && scanner.peek() == Some(b'{') {
            return Some(scanner.position());
        }
    }
}

/// As [`detections`], of bytes in memory.
#[cfg(fuzzing)]
pub(crate) fn detections_of_bytes(bytes: &[u8]) -> Option<Vec<Detection>> {
    objects(&mut Scanner::new(bytes), true, None)
}

/// Reads objects up to exactly `next`, or else to the end of the list and the file.
fn objects(scanner: &mut Scanner<'_>, first: bool, next: Option<usize>) -> Option<Vec<Detection>> {
    let mut detections = Vec::new();
    let mut text = Vec::new();
    if first {
        scanner.expect(b'[')?;
        if scanner.take(b']') {
            return (scanner.at_end() && next.is_none()).then_some(detections);
        }
    }
    loop {
        detections.push(detection(scanner, &mut text)?);
        if scanner.take(b',') {
            scanner.peek()?;
            match next {
                Some(next) if scanner.position() == next => return Some(detections),
                Some(next) if scanner.position() > next => return None,
                _ => {}
            }
        } else {
            scanner.expect(b']')?;
            return (scanner.at_end() && next.is_none()).then_some(detections);
        }
    }
}

fn detection(scanner: &mut Scanner<'_>, text: &mut Vec<u8>) -> Option<Detection> {
    let (mut image_id, mut category_id, mut score) = (None, None, None);
    let (mut bbox, mut shape) = (None, None);
    scanner.object(|scanner, key| match key {
        b"image_id" => put(&mut image_id, scanner.integer()?),
        b"category_id" => put(&mut category_id, scanner.integer()?),
        b"score" => put(&mut score, scanner.number()?),
        b"bbox" => put(&mut bbox, four(scanner)?),
        b"segmentation" => put(&mut shape, segmentation(scanner, text)?),
        _ => scanner.skip(),
    })?;
    let (bbox, segmentation) = (bbox.flatten(), shape.flatten());
    if bbox.is_none() && segmentation.is_none() {
        return None;
    }
    Some(Detection { image_id: image_id?, category_id: category_id?, bbox, score: score?, segmentation })
}

/// Four numbers, or nothing: null or an empty list.
fn four(scanner: &mut Scanner<'_>) -> Option<Option<[f64; 4]>> {
    if scanner.null() {
        return Some(None);
    }
    match at_most(scanner, Scanner::number)? {
        (_, 0) => Some(None),
        (values, 4) => Some(Some(values)),
        _ => None,
    }
}

/// A list of up to `N` values, and how many there are.
#[inline]
fn at_most<'a, T: Copy + Default, const N: usize>(
    scanner: &mut Scanner<'a>,
    mut read: impl FnMut(&mut Scanner<'a>) -> Option<T>,
) -> Option<([T; N], usize)> {
    let (mut values, mut count) = ([T::default(); N], 0);
    scanner.list(|scanner| {
        *values.get_mut(count)? = read(scanner)?;
        count += 1;
        Some(())
    })?;
    Some((values, count))
}

fn segmentation(scanner: &mut Scanner<'_>, text: &mut Vec<u8>) -> Option<Option<Segmentation>> {
    match scanner.peek()? {
        b'[' => {
            let mut polygons = all(scanner, |scanner| {
                let mut polygon = all(scanner, Scanner::number)?;
                polygon.shrink_to_fit();
                Some(polygon)
            })?;
            polygons.shrink_to_fit();
            Some(Some(Segmentation::Polygons(polygons)))
        }
        b'{' => mask(scanner, text).map(|rle| Some(Segmentation::Rle(rle))),
        _ => scanner.null().then_some(None),
    }
}

fn mask(scanner: &mut Scanner<'_>, text: &mut Vec<u8>) -> Option<Rle> {
    // Of `counts` the runs; none where `text` holds them.
    let (mut size, mut counts) = (None, None);
    scanner.object(|scanner, key| match key {
        b"size" => {
            let (values, count) = at_most::<_, 2>(scanner, Scanner::unsigned)?;
            put(&mut size, (count == 2).then_some(values)?)
        }
        b"counts" if scanner.peek() == Some(b'"') => {
            scanner.text(text)?;
            put(&mut counts, None)
        }
        b"counts" => put(&mut counts, Some(all(scanner, Scanner::unsigned)?)),
        _ => scanner.skip(),
    })?;
    let [height, width] = size?;
    match counts? {
        Some(runs) => Rle::from_runs(height, width, &runs).ok(),
        None => Rle::from_compressed(height, width, std::str::from_utf8(text).ok()?).ok(),
    }
}

/// Reads an annotation file. `None` where it is not plain.
pub(super) fn dataset(bytes: &[u8]) -> Option<RawDataset> {
    let (mut images, mut annotations, mut categories) = (None, None, None);
    let mut text = Vec::new();
    let mut scanner = Scanner::new(bytes);
    scanner.object(|scanner, key| match key {
        b"images" => put(&mut images, all(scanner, image)?),
        b"annotations" => put(&mut annotations, all(scanner, |scanner| annotation(scanner, &mut text))?),
        b"categories" => put(&mut categories, all(scanner, category)?),
        _ => scanner.skip(),
    })?;
    scanner.at_end().then_some(())?;
    Some(RawDataset { images: images?, annotations: annotations?, categories: categories? })
}

/// A list of any length.
#[inline]
fn all<'a, T>(scanner: &mut Scanner<'a>, mut read: impl FnMut(&mut Scanner<'a>) -> Option<T>) -> Option<Vec<T>> {
    let mut values = Vec::new();
    scanner.list(|scanner| {
        values.push(read(scanner)?);
        Some(())
    })?;
    Some(values)
}

fn image(scanner: &mut Scanner<'_>) -> Option<RawImage> {
    let (mut id, mut file_name, mut width, mut height) = (None, None, None, None);
    scanner.object(|scanner, key| match key {
        b"id" => put(&mut id, Integer(scanner.integer()?)),
        b"file_name" => put(&mut file_name, scanner.optional_string()?),
        b"width" => put(&mut width, optional_pixels(scanner)?),
        b"height" => put(&mut height, optional_pixels(scanner)?),
        _ => scanner.skip(),
    })?;
    Some(RawImage { id: id?, file_name: file_name.flatten(), width: width.flatten(), height: height.flatten() })
}

fn optional_pixels(scanner: &mut Scanner<'_>) -> Option<Option<Pixels>> {
    if scanner.null() {
        return Some(None);
    }
    scanner.unsigned().map(|pixels| Some(Pixels(pixels)))
}

fn category(scanner: &mut Scanner<'_>) -> Option<RawCategory> {
    let (mut id, mut name, mut supercategory) = (None, None, None);
    scanner.object(|scanner, key| match key {
        b"id" => put(&mut id, Integer(scanner.integer()?)),
        b"name" => put(&mut name, scanner.optional_string()?),
        b"supercategory" => put(&mut supercategory, scanner.optional_string()?),
        _ => scanner.skip(),
    })?;
    Some(RawCategory { id: id?, name: name.flatten(), supercategory: supercategory.flatten() })
}

fn annotation(scanner: &mut Scanner<'_>, text: &mut Vec<u8>) -> Option<RawAnnotation> {
    let (mut id, mut image_id, mut category_id) = (None, None, None);
    let (mut bbox, mut area, mut iscrowd, mut ignore, mut shape) = (None, None, None, None, None);
    scanner.object(|scanner, key| match key {
        b"id" => put(&mut id, Integer(scanner.integer()?)),
        b"image_id" => put(&mut image_id, Integer(scanner.integer()?)),
        b"category_id" => put(&mut category_id, Integer(scanner.integer()?)),
        b"bbox" => put(&mut bbox, four(scanner)?),
        b"area" if scanner.null() => put(&mut area, None),
        b"area" => put(&mut area, Some(scanner.number()?)),
        b"iscrowd" => put(&mut iscrowd, flag(scanner)?),
        b"ignore" => put(&mut ignore, flag(scanner)?),
        b"segmentation" => put(&mut shape, segmentation(scanner, text)?),
        _ => scanner.skip(),
    })?;
    Some(RawAnnotation {
        id: id?,
        image_id: image_id?,
        category_id: category_id?,
        bbox: bbox.map(Bbox),
        area: area.flatten(),
        iscrowd: iscrowd.flatten(),
        ignore: ignore.flatten(),
        segmentation: shape.flatten(),
    })
}

/// 0, 1, false, true or null.
fn flag(scanner: &mut Scanner<'_>) -> Option<Option<Flag>> {
    match scanner.peek()? {
        b'n' => scanner.null().then_some(None),
        b't' | b'f' => scanner.boolean().map(|flag| Some(Flag(flag))),
        _ => scanner.number().map(|value| Some(Flag(value != 0.0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Objects with what looks like the beginning of another inside.
    const TRICKY: &str = r#"[ {"image_id": 1, "category_id": 2, "score": 0.5, "bbox": [1, 2, 3, 4]} ,
        {"image_id": 1, "category_id": 2, "score": 1, "bbox": [1, 2, 3, 4], "note": "a },{ b \" }, {"},
        {"parts": [{"x": 1}, {"x": 2},{"x": [{}, {}]}], "image_id": 3, "category_id": 2, "score": 1e-2,
         "bbox": [0, 0, 1.25, 1]},
        {"image_id": 4, "category_id": -2, "score": 0, "bbox": null,
         "segmentation": {"size": [2, 2], "counts": [1, 3]}},
        {"image_id": 5, "category_id": 7, "score": 0.25, "segmentation": {"size": [64, 3], "counts": "\\5d0"}}]
    "#;

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn blocks_of_any_size_give_the_objects_of_the_whole() {
        let whole = in_blocks(&file(TRICKY), 1 << 20, 16).unwrap().unwrap();
        assert_eq!(whole.iter().map(|detection| detection.image_id).collect::<Vec<_>>(), [1, 1, 3, 4, 5]);
        let mut split = 0;
        for block in 1..TRICKY.len() as u64 + 2 {
            for overlap in [1, 7, 64] {
                // A block may take something inside an object for the beginning of one. Then the file counts as not
                // plain.
                if let Some(detections) = in_blocks(&file(TRICKY), block, overlap).unwrap() {
                    assert_eq!(detections, whole, "block {block}, overlap {overlap}");
                    split += usize::from(block < TRICKY.len() as u64 / 2);
                }
            }
        }
        assert!(split > 100, "{split}");
    }

    #[test]
    fn a_file_that_is_not_one_of_results_is_given_up_early() {
        let long = |length: usize| {
            let note = "x".repeat(length);
            format!(
                r#"[{{"image_id": 1, "category_id": 2, "score": 1, "bbox": [1, 2, 3, 4], "note": "{note}"}},
                    {{"image_id": 1, "category_id": 2, "score": 1, "bbox": [1, 2, 3, 4]}}]"#
            )
        };
        let read = |text: &str| in_blocks(&file(text), 100, 16).unwrap().map(|detections| detections.len());
        assert_eq!(read(&long(500)), Some(2));
        // Nothing that looks like the beginning of an object as far as 64 overlaps beyond the first block, but within
        // the file.
        assert_eq!(read(&long(3000)), None);
        for (head, list) in
            [("[", true), (" [\n{", true), ("[ ]", true), (" ", true), ("{", false), ("[[", false), ("x", false)]
        {
            assert_eq!(begins_a_list(head.as_bytes()), list, "{head}");
        }
    }

    #[test]
    fn keys_that_are_not_text_are_not_plain() {
        let read = |key: &[u8]| {
            let start = br#"[{"image_id": 1, "category_id": 2, "score": 1, "bbox": [1, 2, 3, 4], ""#;
            let bytes = [&start[..], key, br#"": 0}]"#].concat();
            objects(&mut Scanner::new(&bytes), true, None).map(|detections| detections.len())
        };
        assert_eq!(read("größe".as_bytes()), Some(1));
        // The same in Latin-1, which is no JSON. Found by the fuzz target.
        assert_eq!(read(b"gr\xf6\xdfe"), None);
    }

    #[test]
    fn lists_that_do_not_end_are_not_plain() {
        for text in ["", "[", "[]]", "[] x", "{}", "[{}]", &TRICKY.trim_end()[..TRICKY.trim_end().len() - 1]] {
            for block in [3, 50, 1000] {
                assert_eq!(in_blocks(&file(text), block, 16).unwrap(), None, "{text}");
            }
        }
        assert_eq!(in_blocks(&file(" [ ] "), 2, 16).unwrap(), Some(Vec::new()));
    }
}
