//! `vigdet dataset …`: one file per command.

mod check;
mod export;
mod import;
mod split;
mod stats;

use crate::choice;
use crate::layouts::Layout;
use crate::table::shortened;
use crate::types::Import;
use anyhow::{Context, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Looks at labelled images in any usual layout: COCO, Pascal VOC, YOLO, LabelMe, CVAT, Label Studio, Open Images, CSV.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What can be done with them.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Says what is in a folder; with --out writes it in COCO's layout.
    Import(import::Args),
    /// Lists what is wrong with images and labels. The exit code is 1 where training would be hurt.
    Check(check::Args),
    /// Counts objects, sizes and shapes, and says how well anchors fit them.
    Stats(stats::Args),
    /// Splits anew: by fractions or folds, groups together, each class in its share.
    Split(split::Args),
    /// Writes the labels, or a detector's results, in another layout.
    Export(export::Args),
}

impl Command {
    /// Runs it.
    ///
    /// # Errors
    /// Whatever goes wrong, as one line.
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Self::Import(args) => import::run(args),
            Self::Check(args) => check::run(args),
            Self::Stats(args) => stats::run(args),
            Self::Split(args) => split::run(args),
            Self::Export(args) => export::run(args),
        }
    }
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    args.command.run()
}

/// What every command reads.
#[derive(clap::Args, Debug)]
struct Source {
    /// Folder of labelled images, or an annotation file.
    path: PathBuf,
    /// Its layout [default: recognised].
    #[arg(long, value_enum)]
    layout: Option<Layout>,
}

impl Source {
    fn read(&self) -> Result<Import> {
        match self.layout {
            Some(layout) => Import::read_as(&self.path, layout),
            None => Import::read(&self.path),
        }
    }

    fn open(&self) -> Result<Import> {
        let import = self.read()?;
        import.ensure_sound()?;
        Ok(import)
    }
}

/// Which classes are kept.
#[derive(clap::Args, Debug)]
struct Classes {
    /// Keep these classes alone, with their objects. Images stay.
    #[arg(long, value_name = "CLASS,…")]
    only: Vec<String>,
    /// Leave out classes that no object of any split has.
    #[arg(long)]
    drop_empty_classes: bool,
}

impl Classes {
    /// Leaves out what is not wanted, and says so.
    fn choose(&self, import: &mut Import) -> Result<()> {
        let say_gone = |gone: &[String], objects: usize| match gone.len() {
            0 => say("no class is left out"),
            count => say(&format!("left out: {count} of the classes, with {objects} annotations: {}", shortened(gone))),
        };
        if !self.only.is_empty() {
            let (gone, objects) = choice::only(import, &self.only)?;
            say_gone(&gone, objects);
        }
        if self.drop_empty_classes {
            say_gone(&choice::drop_empty(import), 0);
        }
        Ok(())
    }
}

/// How training resizes.
#[derive(clap::Args, Debug)]
struct Resize {
    /// Images are resized so that the shorter side has so many pixels, unless the longer one then has more than the
    /// second number: `data.size` of the config.
    #[arg(long, value_name = "SHORT,LONG", default_value = "800,1333", value_parser = pair)]
    size: (u32, u32),
}

fn pair(text: &str) -> Result<(u32, u32)> {
    let sides = text.split_once(',').and_then(|(short, long)| Some((short.parse().ok()?, long.parse().ok()?)));
    sides.filter(|&(short, long)| short > 0 && long > 0).context("two whole numbers above 0 are expected, as 320,512")
}

/// Prints a line. A closed pipe or a full disk is no reason to stop.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// What is in a folder, in a few lines.
fn describe(import: &Import) {
    say(&format!("{}: {}", import.root.display(), import.layout));
    for split in &import.splits {
        let dataset = &split.dataset;
        let folder = split.folder.display();
        say(&format!(
            "  {}: {} images in {folder}, {} annotations",
            split.name,
            dataset.images.len(),
            dataset.annotations.len()
        ));
        split.notes.iter().for_each(|note| say(&format!("    note: {note}")));
    }
    let classes: Vec<String> =
        import.classes().into_iter().map(|class| format!("{} {}", class.id, class.name)).collect();
    say(&format!("  {} classes: {}", classes.len(), shortened(&classes)));
}

/// How to train on what was written.
fn how_to_train(out: &Path) {
    say(&format!("train on it: vigdet train_det retinanet --data {}", out.display()));
}
