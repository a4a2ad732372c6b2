//! The layouts: one file each, with what is looked for, `read` and `write`.

mod boxes_csv;
mod brush;
mod coco;
mod cvat;
mod draft;
mod label_studio;
mod label_studio_region;
mod label_studio_write;
mod labelme;
mod labelme_write;
mod mask_png;
mod open_images;
mod place;
mod trace;
mod voc;
mod voc_xml;
mod xml;
mod yolo;
mod yolo_row;

pub use brush::{decode as decode_brush, encode as encode_brush};
pub(crate) use place::safe;
pub use place::Images;
pub use trace::rings;

use crate::types::{Import, Split};
use anyhow::{bail, ensure, Context, Result};
use std::fmt;
use std::path::Path;

/// A way to lay out images and labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Layout {
    /// COCO's JSON: `annotations/instances_*.json`, or `_annotations.coco.json` in each split's folder.
    Coco,
    /// Pascal VOC's XML: `Annotations/*.xml`, `JPEGImages`, `ImageSets/Main`; or XML beside the images.
    Voc,
    /// YOLO's text: `data.yaml`, `images`, `labels`.
    Yolo,
    /// LabelMe's JSON, one file an image.
    Labelme,
    /// CVAT for images 1.1: one XML.
    Cvat,
    /// Label Studio's JSON export: a list of tasks.
    LabelStudio,
    /// Open Images: `*-annotations-bbox.csv` and class descriptions.
    OpenImages,
    /// A CSV with a box a row and named columns.
    Csv,
}

impl Layout {
    /// All of them, in the order in which they are looked for.
    pub const ALL: [Layout; 8] = [
        Layout::Yolo,
        Layout::Coco,
        Layout::Voc,
        Layout::Cvat,
        Layout::Labelme,
        Layout::LabelStudio,
        Layout::OpenImages,
        Layout::Csv,
    ];

    /// What is looked for in a folder.
    pub fn looked_for(self) -> &'static str {
        match self {
            Layout::Coco => "annotations/instances_*.json, */_annotations.coco.json, or a JSON with images",
            Layout::Voc => "Annotations/*.xml, or *.xml with <annotation> beside the images",
            Layout::Yolo => "data.yaml, or images/ and labels/ with classes.txt",
            Layout::Labelme => "*.json with \"shapes\"",
            Layout::Cvat => "annotations.xml with <annotations>",
            Layout::LabelStudio => "*.json with a list of tasks (\"annotations\", \"data\")",
            Layout::OpenImages => "*.csv with ImageID, LabelName, XMin, XMax, YMin, YMax",
            Layout::Csv => "*.csv with named columns for the image, the class and the box",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Coco => "COCO",
            Layout::Voc => "Pascal VOC",
            Layout::Yolo => "YOLO",
            Layout::Labelme => "LabelMe",
            Layout::Cvat => "CVAT for images",
            Layout::LabelStudio => "Label Studio",
            Layout::OpenImages => "Open Images",
            Layout::Csv => "CSV",
        })
    }
}

/// Which layout a folder or an annotation file has.
///
/// # Errors
/// Nothing is there, or no layout fits; then the line lists what was looked for.
pub fn recognise(path: &Path) -> Result<Layout> {
    ensure!(path.exists(), "{} is not there", path.display());
    for layout in Layout::ALL {
        let fits = match layout {
            Layout::Coco => !coco::files(path).is_empty(),
            Layout::Voc => voc::fits(path),
            Layout::Yolo => yolo::fits(path),
            Layout::Labelme => labelme::fits(path),
            Layout::Cvat => cvat::file(path).is_some(),
            Layout::LabelStudio => label_studio::file(path).is_some(),
            Layout::OpenImages => !open_images::files(path).is_empty(),
            Layout::Csv => boxes_csv::file(path).is_some(),
        };
        if fits {
            return Ok(layout);
        }
    }
    let looked: Vec<String> = Layout::ALL.iter().map(|layout| format!("{layout}: {}", layout.looked_for())).collect();
    bail!("{} has none of the known layouts; looked for {}", path.display(), looked.join("; "))
}

/// Reads the splits of a layout, in any order.
pub(crate) fn read(path: &Path, layout: Layout) -> Result<Vec<Split>> {
    match layout {
        Layout::Coco => coco::read(path),
        Layout::Voc => voc::read(path),
        Layout::Yolo => yolo::read(path),
        Layout::Labelme => labelme::read(path),
        Layout::Cvat => cvat::read(path),
        Layout::LabelStudio => label_studio::read(path),
        Layout::OpenImages => open_images::read(path),
        Layout::Csv => boxes_csv::read(path),
    }
}

/// Whether a folder is new or empty, as [`write`] wants it.
///
/// # Errors
/// There is something in it, or it is no folder.
pub fn check_free(out: &Path) -> Result<()> {
    let free = !out.exists() || std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    ensure!(free, "{} is there and not empty: choose another folder", out.display());
    Ok(())
}

/// Writes `import` in a layout into the folder `out`, which must be new or empty. Gives a line for each thing that the
/// layout loses.
///
/// # Errors
/// There is something in `out`; a file cannot be written; a file name leaves its folder, or two images would share a
/// label file.
pub fn write(import: &Import, layout: Layout, out: &Path, images: Images) -> Result<Vec<String>> {
    check_free(out)?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    for split in &import.splits {
        vigdet_coco::check_ids(&split.dataset).with_context(|| format!("split {}", split.name))?;
    }
    let mut writer = place::Writer::new(out, images);
    match layout {
        Layout::Coco => coco::write(import, &mut writer)?,
        Layout::Voc => voc::write(import, &mut writer)?,
        Layout::Yolo => yolo::write(import, &mut writer)?,
        Layout::Labelme => labelme_write::write(import, &mut writer)?,
        Layout::Cvat => cvat::write(import, &mut writer)?,
        Layout::LabelStudio => label_studio::write(import, &mut writer)?,
        Layout::OpenImages => open_images::write(import, &mut writer)?,
        Layout::Csv => boxes_csv::write(import, &mut writer)?,
    }
    Ok(writer.notes())
}
