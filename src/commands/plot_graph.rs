//! `plot_graph`: which patches a model links, as pictures, as a page, as numbers.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use serde_json::json;
use vigdet_coco::output::Outputs;

use crate::cli::{make_folder, outputs, parse_device, parse_size, warn_skipped, FetchArgs};
use crate::config::SplitConfig;
use crate::console::{say, warn};
use crate::data::{decode, DetectionDataset};
use crate::explore::centers::parse_blocks;
use crate::explore::link_stats::{of_dataset, of_view, table, LinkStats};
use crate::explore::{Center, GraphViewer, ViewerOptions};
use crate::plot::deliver;
use crate::plot::graph::{draw_links, page, Centers, GraphPicture, PictureOptions};
use crate::threads::set_threads;

/// Draw the graph of a Vision GNN: chosen patches and their neighbours, block by block, on an image.
///
/// Writes NAME_graph.png and NAME_graph.svg into --out; --html writes a page to explore all blocks; --stats prints
/// where neighbours lie.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// A ViG, Pyramid ViG, GreedyViG or AdaptViG (vig_ti, pvig_s, greedyvig_s, adaptvig_m, …), or a detector on one of
    /// them: retinanet, mask_rcnn
    model: String,
    /// Weights of a classifier, a backbone or a detector, a file or a name of `vigdet weights` [default: random ones]
    #[arg(long, value_name = "FILE|NAME")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    fetch: FetchArgs,
    /// Config file, or the name of a built-in one [default: the one in the weights]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// An image (JPEG or PNG)
    #[arg(long, value_name = "FILE", required_unless_present = "data")]
    image: Option<PathBuf>,
    /// Blocks to draw, side by side: numbers from 1, as in 1,12 or 1-4, or all [default: the first and the last]
    #[arg(long, value_name = "N,N")]
    blocks: Option<String>,
    /// Draw the neighbours of the patch at this pixel of the image; may be repeated [default: some that stand out]
    #[arg(long, value_name = "X,Y", allow_hyphen_values = true)]
    center: Vec<String>,
    /// Draw the neighbours of this patch of the first block's grid, counted from 0; may be repeated
    #[arg(long, value_name = "ROW,COLUMN", allow_hyphen_values = true)]
    cell: Vec<String>,
    /// How many patches to choose where none is named
    #[arg(long, value_name = "N", default_value_t = 3, conflicts_with_all = ["center", "cell"])]
    centers: usize,
    /// Draw a line from each centre to each of its neighbours
    #[arg(long)]
    edges: bool,
    /// Write a page to explore all blocks to this file
    #[arg(long, value_name = "FILE", requires = "image")]
    html: Option<PathBuf>,
    /// Write what is drawn, and the seconds it took, to this file
    #[arg(long, value_name = "FILE", requires = "image")]
    json: Option<PathBuf>,
    /// Run the network once more without its graphs, to say how much of the time is beyond the plain forward pass
    #[arg(long, requires = "image")]
    time: bool,
    /// Print by block how far away neighbours are, and with --data how many are inside the same object; write
    /// links.json, links.png and links.svg
    #[arg(long)]
    stats: bool,
    /// For --stats: a folder in COCO's layout, whose validation images and masks are used
    #[arg(long, value_name = "DIR", requires = "stats", conflicts_with_all = ["image", "blocks", "center", "cell"])]
    data: Option<PathBuf>,
    /// For --stats: at most so many images
    #[arg(long, value_name = "N", requires = "data")]
    limit: Option<usize>,
    /// Folder for the pictures
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Shorter side, and the most of the longer side, in pixels [default: the image as it is; for a detector, as its
    /// config says]
    #[arg(long, value_name = "SHORT,LONG")]
    size: Option<String>,
    /// What random weights are drawn from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: i64,
    /// cpu, cuda or cuda:N [default: cuda where libtorch has it]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Change one config value; the key may be shortened to its last part
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let written = || [&args.html, &args.json].into_iter().flatten();
    let weights = args.weights.as_deref().map(|named| args.fetch.weights(named)).transpose()?;
    let outputs = outputs([&args.image, &weights, &args.config].into_iter().flatten(), written())?;
    let options = ViewerOptions {
        weights: weights.clone(),
        config: args.config.clone(),
        changes: args.set.clone(),
        size: args.size.as_deref().map(parse_size).transpose()?,
        seed: args.seed,
        device: parse_device(args.device.as_deref())?,
    };
    let viewer = GraphViewer::open(&args.model, &options)?;
    set_threads(viewer.config().train.threads);
    warn(viewer.report());
    make_folder(&args.out)?;
    written().filter_map(|path| path.parent()).try_for_each(make_folder)?;
    match &args.image {
        Some(path) => draw(&args, &viewer, path, &outputs)?,
        None => statistics(&args, &viewer, &outputs)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The pictures of one image, and what else was asked for of it.
fn draw(args: &Args, viewer: &GraphViewer, path: &Path, outputs: &Outputs) -> Result<()> {
    let last = viewer.blocks()?;
    let blocks = match &args.blocks {
        Some(text) => parse_blocks(text, last)?,
        None if last == 1 => vec![0],
        None => vec![0, last - 1],
    };
    let named = args.center.iter().map(|text| Center::pixel(text));
    let given = named.chain(args.cell.iter().map(|text| Center::cell(text))).collect::<Result<Vec<_>>>()?;
    let centers = if given.is_empty() { Centers::Salient(args.centers) } else { Centers::Given(given) };
    let image = decode::open(path, viewer.config().data.exif)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let start = Instant::now();
    let view = viewer.view(&image, &name)?;
    // What is beside the forward pass: resizing, and the graphs as data.
    let reading = start.elapsed().as_secs_f64() - view.seconds;

    let start = Instant::now();
    let picture = GraphPicture::new(&view, &blocks, &centers, PictureOptions { edges: args.edges })?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut files = deliver(outputs, &args.out, |folder| {
        let [png, svg] = ["png", "svg"].map(|kind| folder.join(format!("{stem}_graph.{kind}")));
        picture.write_png(&png)?;
        picture.write_svg(&svg)?;
        Ok(vec![png, svg])
    })?;
    let drawing = start.elapsed().as_secs_f64();
    let start = Instant::now();
    if let Some(path) = &args.html {
        files.extend(deliver(outputs, path.parent().unwrap_or(Path::new("")), |folder| {
            let file = folder.join(path.file_name().context("--html takes the name of a file")?);
            page(&view, &file)?;
            Ok(vec![file])
        })?);
    }
    let writing = start.elapsed().as_secs_f64();
    if args.stats {
        files.extend(report(args, &of_view(&view), &view.model, 1, outputs)?);
    }
    // The first pass was the one with the graphs: what a first pass has to set up counts against the picture.
    let plain = args.time.then(|| viewer.forward_seconds(&image, &name)).transpose()?;
    let forward = plain.unwrap_or(view.seconds);
    let picture_seconds = (view.seconds - forward).max(0.0) + reading + drawing;
    let seconds = json!({
        "forward": plain, "forward_with_graph": view.seconds, "graph": reading, "picture": drawing,
        "html": args.html.as_ref().map(|_| writing),
    });
    if let Some(path) = &args.json {
        let mut data = serde_json::to_value(picture.links())?;
        data["seconds"] = seconds;
        outputs.write(path, |out| writeln!(out, "{data}"))?;
        files.push(path.clone());
    }
    say(&format!(
        "{}; {} {forward:.2} s, picture {picture_seconds:.2} s",
        files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
        if plain.is_some() { "forward" } else { "forward with graphs" },
    ));
    Ok(())
}

/// Statistics over a validation split.
fn statistics(args: &Args, viewer: &GraphViewer, outputs: &Outputs) -> Result<()> {
    let root = args.data.as_deref().context("--image or --data is missing")?;
    let mut split: SplitConfig = viewer.config().data.val.clone();
    split.limit = args.limit.or(split.limit);
    let dataset = DetectionDataset::open_with_exif(&split, root, false, viewer.config().data.exif)?;
    let (stats, images, skipped) = of_dataset(viewer, &dataset, |done| {
        if done % 10 == 0 {
            warn(&format!("{done} of {} images", dataset.len()));
        }
    })?;
    for error in &skipped {
        warn_skipped(error);
    }
    ensure!(images > 0, "none of the {} images could be read", dataset.len());
    let files = report(args, &stats, &args.model, images, outputs)?;
    say(&files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "));
    Ok(())
}

fn report(args: &Args, stats: &[LinkStats], model: &str, images: usize, outputs: &Outputs) -> Result<Vec<PathBuf>> {
    say(table(stats).trim_end());
    let path = args.out.join("links.json");
    let data = json!({ "model": model, "weights": args.weights, "images": images, "blocks": stats });
    let text = serde_json::to_string_pretty(&data)?;
    outputs.write(&path, |out| writeln!(out, "{text}"))?;
    let mut files = vec![path];
    files.extend(deliver(outputs, &args.out, |folder| draw_links(stats, model, folder))?);
    Ok(files)
}
