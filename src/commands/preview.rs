//! `dataset preview`: images and objects as the network sees them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use image::RgbImage;
use rand::seq::SliceRandom;
use vigdet_coco::output::Outputs;

use crate::cli::{make_folder, outputs, DetectorArgs};
use crate::config::{Config, Experiment};
use crate::console::say;
use crate::data::order::generator;
use crate::data::{Batch, DataFolder, DetectionDataset, Loader, LoaderOptions};
use crate::detect::assignment::matched_anchors;
use crate::plot::canvas::{Color, Line};
use crate::plot::{
    batch_images, class_color, contact_sheet, crop_of, draw_target, overlay, palette_color, png, target_marks, Mark,
};
use crate::train::auto_anchors::fit_anchors;
use crate::train::detection::open_split;

/// Pictures in a row of a sheet.
const COLUMNS: usize = 4;
/// Objects of a class that are shown, in rows of so many, each so many pixels wide.
const CROPS: usize = 40;
const CROPS_IN_ROW: usize = 8;
const CROP_SIDE: u32 = 160;

/// Draws images as they are and as training sees them: before.png, after.png.
///
/// The same seed gives the same sheets, and the images are those of the first steps of a training with that seed.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder of labelled images, in any layout that `dataset import` reads
    data: PathBuf,
    #[command(flatten)]
    model: DetectorArgs,
    /// Images on a sheet
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=400))]
    images: u16,
    /// The epoch whose first images are shown, from 0
    #[arg(long, default_value_t = 0)]
    epoch: usize,
    /// Of order and augmentation [default: the config's]
    #[arg(long)]
    seed: Option<u64>,
    /// Draw assign.png: which anchors stand for which objects, by level
    #[arg(long)]
    assign: bool,
    /// Draw class_NAME.png: forty objects of each class
    #[arg(long)]
    crops: bool,
    /// Folder to write into
    #[arg(long, value_name = "DIR", default_value = "preview")]
    out: PathBuf,
}

/// The recipe that is shown without --config.
const RECIPE: &str = "retinanet_pvig_n_small";

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    ensure!(args.data.exists(), "there is no {}", args.data.display());
    let changes = args.model.changes(Vec::new(), Some(&args.data))?;
    let mut config = match &args.model.config.config {
        Some(path) => Config::load(path, &changes)?,
        None => Config::preset(RECIPE, &changes)?,
    };
    let train = open_split(&config, &config.data.train, &DataFolder::new(&args.data), true)?;
    ensure!(!train.is_empty(), "there is no image to show in {}", args.data.display());
    // Anchors show on assign.png alone.
    if args.assign && config.model.anchors.auto {
        say(&fit_anchors(&mut config.model.anchors, &train, &config.data, config.train.seed)?);
    }
    let mut names = vec!["before.png".to_string(), "after.png".to_string()];
    names.extend(args.assign.then(|| "assign.png".to_string()));
    let labels = 0..train.classes().len() as i64;
    let crops: Vec<(i64, String)> = match args.crops {
        true => labels.map(|label| (label, crops_name(label, &train.classes().name(label)))).collect(),
        false => Vec::new(),
    };
    names.extend(crops.iter().map(|(_, name)| name.clone()));
    make_folder(&args.out)?;
    let sheets =
        Sheets { outputs: outputs(Vec::<PathBuf>::new(), names.iter().map(|n| args.out.join(n)))?, out: &args.out };

    let train = Arc::new(train);
    let seed = args.seed.unwrap_or(config.train.seed);
    for (label, name) in crops {
        sheets.write(&name, &crops_of(&train, label, config.data.exif, seed)?)?;
    }
    let batches = batches(&train, &config, &args, seed)?;
    sheets.write("before.png", &before(&train, &batches, &config)?)?;
    sheets.write("after.png", &after(&train, &batches, &config)?)?;
    if args.assign {
        sheets.write("assign.png", &assigned(&batches, &config)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where pictures go.
struct Sheets<'a> {
    outputs: Outputs,
    out: &'a Path,
}

impl Sheets<'_> {
    fn write(&self, name: &str, picture: &RgbImage) -> Result<()> {
        let (path, bytes) = (self.out.join(name), png(picture)?);
        self.outputs.write(&path, |out| std::io::Write::write_all(out, &bytes))?;
        say(&path.display().to_string());
        Ok(())
    }
}

/// A file name that every system takes, and that no other class has.
fn crops_name(label: i64, class: &str) -> String {
    let plain: String = class.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("class_{label:02}_{plain}.png")
}

/// The first batches of an epoch, with as many images as asked for or all that there are.
fn batches(train: &Arc<DetectionDataset>, config: &Config, args: &Args, seed: u64) -> Result<Vec<Batch>> {
    let batch_size = config.train.images_of_micro_batch();
    let loader = Loader::new(train.clone(), &config.data, LoaderOptions { batch_size, train: true, seed })?;
    let wanted = usize::from(args.images);
    let batches = loader.epoch(args.epoch, 0, true).take(wanted.div_ceil(batch_size)).collect::<Result<Vec<_>>>()?;
    for (file, reason) in loader.skipped() {
        say(&format!("{file} cannot be read: {reason}"));
    }
    if batches.is_empty() {
        bail!("no image can be read");
    }
    Ok(batches)
}

/// The images as annotated.
fn before(train: &DetectionDataset, batches: &[Batch], config: &Config) -> Result<RgbImage> {
    let index: BTreeMap<i64, usize> = (0..train.len()).map(|i| (train.info(i).id, i)).collect();
    let mut pictures = Vec::new();
    for info in batches.iter().flat_map(|batch| &batch.infos) {
        let i = *index.get(&info.id).with_context(|| format!("image {} is not in the split", info.file))?;
        let sample = train.sample(i, config.data.exif)?;
        let (width, height) = sample.image.dimensions();
        let name = format!("{width}×{height} {}", info.file);
        pictures.push((name, draw_target(&sample.image, &sample.target, train.classes())?));
    }
    contact_sheet("As annotated", &classes_legend(train), &pictures, COLUMNS)
}

/// The images as the network gets them.
fn after(train: &DetectionDataset, batches: &[Batch], config: &Config) -> Result<RgbImage> {
    let mut pictures = Vec::new();
    for batch in batches {
        let images = batch_images(batch, config.data.mean, config.data.std)?;
        for ((image, target), (info, (height, width))) in
            images.iter().zip(&batch.targets).zip(batch.infos.iter().zip(&batch.sizes))
        {
            pictures.push((format!("{width}×{height} {}", info.file), draw_target(image, target, train.classes())?));
        }
    }
    contact_sheet("As the network sees them", &classes_legend(train), &pictures, COLUMNS)
}

fn classes_legend(train: &DetectionDataset) -> Vec<(String, Color)> {
    const MOST: usize = 12;
    let labels = 0..train.classes().len().min(MOST) as i64;
    labels.map(|label| (train.classes().name(label), class_color(label))).collect()
}

/// Objects in white, and the centres of the anchors that stand for them, in their level's colour. Objects without any
/// are dotted.
fn assigned(batches: &[Batch], config: &Config) -> Result<RgbImage> {
    let strides = &config.model.anchors.strides;
    let level_color = |level: usize| palette_color(level + 1);
    let mut pictures = Vec::new();
    let mut counts = vec![(0usize, 0usize); strides.len()];
    let (mut objects, mut without) = (0, 0);
    for batch in batches {
        let (_, _, height, width) = batch.images.size4()?;
        let images = batch_images(batch, config.data.mean, config.data.std)?;
        for ((image, target), info) in images.iter().zip(&batch.targets).zip(&batch.infos) {
            let found = matched_anchors(&config.model, (height, width), target);
            let mut levels_of = vec![vec![false; strides.len()]; target.boxes.len()];
            for matched in &found {
                counts[matched.level].0 += 1;
                levels_of[matched.object][matched.level] = true;
            }
            let mut marks = target_marks(image.dimensions(), target, &Default::default());
            for (i, mark) in marks.iter_mut().enumerate() {
                mark.text.clear();
                mark.mask = None;
                if target.crowd[i] {
                    continue;
                }
                objects += 1;
                mark.color = [255; 3];
                for (count, _) in counts.iter_mut().zip(&levels_of[i]).filter(|(_, has)| **has) {
                    count.1 += 1;
                }
                if !levels_of[i].contains(&true) {
                    without += 1;
                    mark.line = Line::Dotted;
                    mark.color = [255, 0, 0];
                }
            }
            marks.extend(found.iter().map(|matched| {
                let [x1, y1, x2, y2] = matched.anchor;
                let (x, y, color) = ((x1 + x2) / 2.0, (y1 + y2) / 2.0, level_color(matched.level));
                let bbox = [x - 1.0, y - 1.0, x + 1.0, y + 1.0];
                Mark { bbox, text: String::new(), color, line: Line::Solid, mask: None }
            }));
            pictures.push((info.file.clone(), overlay(image, &marks)?));
        }
    }
    say(&format!("{objects} objects, {without} of them without any anchor"));
    say("  stride   anchors   objects with anchors there");
    for (stride, (anchors, objects)) in strides.iter().zip(&counts) {
        say(&format!("  {stride:>6} {anchors:>9} {objects:>9}"));
    }
    let legend: Vec<(String, Color)> =
        strides.iter().enumerate().map(|(level, stride)| (format!("stride {stride}"), level_color(level))).collect();
    contact_sheet("Centres of the anchors that stand for objects", &legend, &pictures, COLUMNS)
}

/// Objects of a class, drawn at random.
fn crops_of(train: &DetectionDataset, label: i64, exif: bool, seed: u64) -> Result<RgbImage> {
    let mut all: Vec<(usize, [f32; 4])> = Vec::new();
    for i in 0..train.len() {
        let info = train.info(i);
        let target = train.target(i, info.width, info.height);
        let of_class = |o: &usize| target.labels[*o] == label && !target.crowd[*o];
        all.extend((0..target.boxes.len()).filter(of_class).map(|o| (i, target.boxes[o])));
    }
    let count = all.len();
    all.shuffle(&mut generator(seed, 0, label as u64));
    all.truncate(CROPS);
    let mut pictures = Vec::new();
    for (i, bbox) in all {
        let sample = train.sample(i, exif)?;
        let size = format!("{:.0}×{:.0}", bbox[2] - bbox[0], bbox[3] - bbox[1]);
        pictures.push((size, crop_of(&sample.image, bbox, CROP_SIDE)));
    }
    let title = format!("{}: {} of {count} objects", train.classes().name(label), pictures.len());
    contact_sheet(&title, &[], &pictures, CROPS_IN_ROW)
}
