//! Built-in data: shapes told apart by their outlines, drawn by vigdet itself, in COCO's layout.
//!
//! The same settings give the same bytes on every machine: every image has its own generator, curves come from `libm`
//! rather than from the system, and nothing depends on the order of threads.

mod outline;
mod paint;
mod region;
mod scene;

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use image::codecs::jpeg::JpegEncoder;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use vigdet_coco::types::{Annotation, Category, Dataset, Image, Segmentation};

pub use outline::Shape;
pub use scene::{Object, Scene};

use super::order::generator;
use crate::config::{DataConfig, ShapesConfig};

/// Beside the images: what they were drawn with.
const STAMP: &str = "shapes.json";

/// Changes when the drawing does, so that older sets are drawn anew.
const VERSION: u32 = 2;

/// JPEG quality of the images.
const QUALITY: u8 = 92;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    version: u32,
    #[serde(flatten)]
    config: ShapesConfig,
}

/// Sides that can be drawn, in pixels: below, the smallest objects have no room; above, one image would take hours.
const SIDES: RangeInclusive<u32> = 64..=8192;

/// Most images of a split: their names have twelve digits, and nobody's disk holds more.
const MOST_IMAGES: usize = 10_000_000;

/// Draws the set that `config` describes into `root`, unless it is there already. A set with other settings is
/// replaced.
///
/// It is made beside `root` and then renamed: `root` never holds half a set. Errors: a `root` that holds anything but
/// such a set, a side or a number of images that cannot be drawn, files that cannot be written.
pub fn ensure(root: &Path, config: &ShapesConfig) -> Result<()> {
    check(config)?;
    let expected = Stamp { version: VERSION, config: config.clone() };
    if stamp(root).is_some_and(|found| found == expected) {
        return Ok(());
    }
    check_replaceable(root)?;
    let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("cannot make folder {}", parent.display()))?;
    let fresh = tempfile::Builder::new()
        .prefix(".shapes-")
        .tempdir_in(parent)
        .with_context(|| format!("cannot write in {}", parent.display()))?;
    let made = fresh.path().join("set");
    write(&made, &expected)?;

    if root.exists() {
        let old = fresh.path().join("old");
        fs::rename(root, &old).with_context(|| format!("cannot replace {}", root.display()))?;
    }
    match fs::rename(&made, root) {
        Ok(()) => Ok(()),
        // Another run drew the same set meanwhile.
        Err(_) if stamp(root).is_some_and(|found| found == expected) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot write {}", root.display())),
    }
}

/// [`ensure`] for a config: draws its built-in data if it names any. Says first that it does.
pub fn ensure_for(config: &DataConfig, say: impl FnOnce(&str)) -> Result<()> {
    let (Some(shapes), Some(root)) = (&config.builtin, &config.root) else { return Ok(()) };
    check(shapes)?;
    if stamp(root).is_none_or(|found| found != Stamp { version: VERSION, config: shapes.clone() }) {
        say(&format!("drawing {} images of built-in data into {}", shapes.train + shapes.val, root.display()));
    }
    ensure(root, shapes)
}

fn check(config: &ShapesConfig) -> Result<()> {
    ensure!(
        SIDES.contains(&config.side),
        "shapes need a side of {} to {} pixels, not {}",
        SIDES.start(),
        SIDES.end(),
        config.side
    );
    for (split, images) in [("train", config.train), ("val", config.val)] {
        ensure!(
            (1..=MOST_IMAGES).contains(&images),
            "shapes need 1 to {MOST_IMAGES} images in each split, not {images} in {split}"
        );
    }
    Ok(())
}

fn stamp(root: &Path) -> Option<Stamp> {
    serde_json::from_slice(&fs::read(root.join(STAMP)).ok()?).ok()
}

/// Only sets that were drawn by this module, with nothing else in them, and empty folders are ever replaced.
fn check_replaceable(root: &Path) -> Result<()> {
    let Ok(mut entries) = fs::read_dir(root) else {
        ensure!(!root.exists(), "{} is not a folder", root.display());
        return Ok(());
    };
    if entries.next().is_some() && !root.join(STAMP).is_file() {
        bail!("{} holds something else than drawn shapes; give another folder, or empty it", root.display());
    }
    ensure!(!root.is_symlink(), "{} is a link: name the folder itself", root.display());
    let most = stamp(root).map_or(MOST_IMAGES, |stamp| stamp.config.train.max(stamp.config.val));
    for folder in ["", "annotations", "train2017", "val2017"] {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let drawn = match folder {
                "" => [STAMP, "annotations", "train2017", "val2017"].contains(&name.as_str()),
                "annotations" => ["instances_train2017.json", "instances_val2017.json"].contains(&name.as_str()),
                _ => name.strip_suffix(".jpg").is_some_and(|number| {
                    number.len() == 12 && number.parse::<usize>().is_ok_and(|number| (1..=most).contains(&number))
                }),
            };
            let path = entry.path();
            ensure!(
                drawn,
                "{} is not of the shapes that were drawn there: move it, or give another folder",
                path.display()
            );
        }
    }
    Ok(())
}

fn write(folder: &Path, stamp: &Stamp) -> Result<()> {
    let annotations = folder.join("annotations");
    fs::create_dir_all(&annotations).with_context(|| format!("cannot make folder {}", annotations.display()))?;
    let ShapesConfig { train, val, side, seed } = stamp.config;
    for (tag, name, count) in [(0, "train", train), (1, "val", val)] {
        let images = folder.join(format!("{name}2017"));
        fs::create_dir_all(&images).with_context(|| format!("cannot make folder {}", images.display()))?;
        let set = draw_split(&images, seed, tag, count, side)?;
        let path = annotations.join(format!("instances_{name}2017.json"));
        write_json(&path, &set)?;
    }
    write_json(&folder.join(STAMP), stamp)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(value)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Draws the images of one split into a folder. `split` keeps the splits of one seed apart.
fn draw_split(folder: &Path, seed: u64, split: usize, count: usize, side: u32) -> Result<Dataset> {
    let scenes: Vec<(Image, Vec<Object>)> = (1..=count as i64)
        .into_par_iter()
        .map(|id| {
            let scene = Scene::draw(side, &mut generator(seed, split, id as u64));
            let file_name = format!("{id:012}.jpg");
            let path = folder.join(&file_name);
            let mut bytes = Vec::new();
            JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(&scene.image)?;
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            let (width, height) = scene.image.dimensions();
            Ok((Image { id, file_name, width, height }, scene.objects))
        })
        .collect::<Result<_>>()?;
    let categories = Shape::ALL
        .iter()
        .zip(1..)
        .map(|(shape, id)| Category { id, name: shape.name().into(), supercategory: Some("shape".into()) })
        .collect();
    let mut set = Dataset { categories, ..Dataset::default() };
    for (image, objects) in scenes {
        for object in objects {
            set.annotations.extend(annotation(object, set.annotations.len() as i64 + 1, &image));
        }
        set.images.push(image);
    }
    Ok(set)
}

fn annotation(object: Object, id: i64, image: &Image) -> Option<Annotation> {
    let category_id = object.class as i64 + 1;
    if let Some(mask) = object.crowd {
        let (bbox, area) = (mask.bbox(), f64::from(mask.area()));
        let segmentation = Some(Segmentation::Rle(mask));
        return Some(Annotation { id, image_id: image.id, category_id, bbox, area, iscrowd: true, segmentation });
    }
    // Hundredths of a pixel, as COCO's own files have them.
    let hundredths = |v: f64| (v * 100.0).round() / 100.0;
    let mut polygons: Vec<Vec<region::Point>> =
        object.polygons.into_iter().map(|p| p.into_iter().map(|point| point.map(hundredths)).collect()).collect();
    polygons.retain(|p: &Vec<region::Point>| region::area(p).abs() >= region::SPECK);
    let [x1, y1, x2, y2] = region::bounds(polygons.iter().flatten())?;
    Some(Annotation {
        id,
        image_id: image.id,
        category_id,
        bbox: [x1, y1, hundredths(x2 - x1), hundredths(y2 - y1)],
        area: hundredths(polygons.iter().map(|p| region::area(p).abs()).sum()),
        iscrowd: false,
        segmentation: Some(Segmentation::Polygons(polygons.into_iter().map(|p| p.concat()).collect())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// SHA-free fingerprint (FNV-1a) of everything in a folder, in the order of names.
    fn fingerprint(folder: &Path) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let content =
                if path.is_dir() { fingerprint(&path).to_le_bytes().to_vec() } else { fs::read(&path).unwrap() };
            for byte in name.bytes().chain(content) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        hash
    }

    const SMALL: ShapesConfig = ShapesConfig { train: 6, val: 3, side: 96, seed: 7 };

    #[test]
    fn the_same_settings_give_the_same_bytes_whatever_the_threads() {
        let folder = tempfile::tempdir().unwrap();
        let draw = |name: &str, threads: usize, config: &ShapesConfig| {
            let root = folder.path().join(name);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| ensure(&root, config)).unwrap();
            fingerprint(&root)
        };
        let first = draw("a", 1, &SMALL);
        assert_eq!(first, draw("b", 4, &SMALL));
        // These bytes are the same on every machine. A change of the drawing changes them, and VERSION with them.
        assert_eq!((VERSION, first), (2, 2659927543154079614));
        assert_ne!(first, draw("c", 4, &ShapesConfig { seed: 8, ..SMALL }));
    }

    #[test]
    fn a_set_is_drawn_once_and_again_when_the_settings_differ() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("deep/shapes");
        ensure(&root, &SMALL).unwrap();
        let image = root.join("train2017/000000000001.jpg");
        fs::write(&image, b"touched").unwrap();
        ensure(&root, &SMALL).unwrap();
        assert_eq!(fs::read(&image).unwrap(), b"touched");
        ensure(&root, &ShapesConfig { seed: 8, ..SMALL }).unwrap();
        assert_ne!(fs::read(&image).unwrap(), b"touched");
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(folder.path().join("deep")).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_with_other_things_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), b"precious").unwrap();
        let error = ensure(folder.path(), &SMALL).unwrap_err().to_string();
        assert!(error.contains("something else"), "{error}");
        assert!(folder.path().join("thesis.txt").exists());
        // Nor is a set that somebody put a file of his own into.
        let root = folder.path().join("set");
        let other = ShapesConfig { seed: 8, ..SMALL };
        ensure(&root, &SMALL).unwrap();
        fs::write(root.join("val2017/mine.png"), b"precious").unwrap();
        let error = ensure(&root, &other).unwrap_err().to_string();
        assert!(error.contains("val2017/mine.png is not of the shapes"), "{error}");
        fs::remove_file(root.join("val2017/mine.png")).unwrap();
        ensure(&root, &other).unwrap();
    }

    #[test]
    fn splits_differ_and_annotations_fit_their_polygons() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("shapes");
        ensure(&root, &SMALL).unwrap();
        let image = |split: &str| fs::read(root.join(split).join("000000000001.jpg")).unwrap();
        assert_ne!(image("train2017"), image("val2017"));
        let set = vigdet_coco::read_dataset(root.join("annotations/instances_train2017.json")).unwrap();
        assert_eq!((set.images.len(), set.categories.len()), (6, Shape::ALL.len()));
        for annotation in set.annotations.iter().filter(|a| !a.iscrowd) {
            let Some(Segmentation::Polygons(polygons)) = &annotation.segmentation else {
                panic!("annotation {} has no polygons", annotation.id);
            };
            let points: Vec<region::Point> =
                polygons.iter().flat_map(|p| p.chunks_exact(2)).map(|p| [p[0], p[1]]).collect();
            let [x1, y1, x2, y2] = region::bounds(points.iter()).unwrap();
            let [x, y, w, h] = annotation.bbox;
            assert!([x1 - x, y1 - y, x2 - x - w, y2 - y - h].iter().all(|v| v.abs() < 0.011));
            let image = &set.images[annotation.image_id as usize - 1];
            assert!(x >= 0.0 && y >= 0.0 && x2 <= image.width.into() && y2 <= image.height.into());
            assert!(annotation.area >= 60.0, "{}", annotation.area);
        }
    }
}
