//! `coco_eval`: COCO's numbers for a results file.

use anyhow::{bail, ensure, Context, Result};
use clap::Parser;
use serde_json::json;
use std::collections::HashSet;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vigdet_coco::analysis::compare::{compare, Resampling};
use vigdet_coco::analysis::confusion::confusion;
use vigdet_coco::analysis::sizes::ap_by_size;
use vigdet_coco::analysis::tide;
use vigdet_coco::eval::{evaluate, AreaRange, Evaluation, IouType, Params, Warning, STAT_NAMES};
use vigdet_coco::output::Outputs;
use vigdet_coco::{plot, read_dataset_with_warnings, read_results};

/// Names the annotation file that a run was tested on.
const GROUND_TRUTH: &str = "ground_truth.json";
/// The pictures of `--plots`.
const PICTURES: [&str; 5] = ["precision_recall.png", "class_ap.png", "size_ap.png", "confusion.png", "errors.png"];

/// Evaluates detections as pycocotools does. Without arguments: those of the newest run under runs/.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Annotation file (COCO's instances_*.json). By default the one that the run in the folder of --dt was tested on.
    #[arg(long, value_name = "FILE")]
    gt: Option<PathBuf>,
    /// Results file, [{"image_id", "category_id", "bbox" and/or "segmentation", "score"}, ...]. By default that of the
    /// newest run.
    #[arg(long, value_name = "FILE")]
    dt: Option<PathBuf>,
    /// Overlap of boxes or of masks.
    #[arg(long = "type", value_name = "TYPE", default_value = "bbox", value_parser = ["bbox", "segm"])]
    kind: String,
    /// Writes the numbers, unrounded, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Prints a table of the classes, best first.
    #[arg(long)]
    per_class: bool,
    /// Draws precision-recall curves, the classes' AP, AP against object size, confusions and errors into this folder.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
    /// Prints what goes wrong: classification, localisation, both, duplicate, background, missed, and the AP that each
    /// costs.
    #[arg(long)]
    errors: bool,
    /// Compares with other results on the same images: the difference of each number, with a bootstrap interval.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// How often images are drawn for the interval.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    resamples: u32,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// From this score on a detection is in the confusion matrix.
    #[arg(long, value_name = "X", default_value_t = 0.3, value_parser = number)]
    confusion_score: f64,
    /// IoU thresholds, separated by commas [default: 0.50 to 0.95 in steps of 0.05].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    iou: Option<Vec<f64>>,
    /// Numbers of detections in an image and category that count, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,10,100")]
    max_dets: Vec<usize>,
    /// A range of object areas NAME:MIN:MAX in square pixels, any number of times [default: COCO's all, small, medium,
    /// large]. Other names get lines of their own after the twelve.
    #[arg(long, value_name = "RANGE", value_parser = area_range)]
    area: Vec<AreaRange>,
    /// Takes all categories for one, as for proposals.
    #[arg(long, conflicts_with = "per_class")]
    class_agnostic: bool,
}

fn area_range(text: &str) -> Result<AreaRange, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let [label, min, max] = parts[..] else { return Err("not NAME:MIN:MAX".to_owned()) };
    Ok(AreaRange::new(label, number(min)?, number(max)?))
}

fn number(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| !number.is_nan());
    number.ok_or_else(|| format!("{text:?} is not a number"))
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => {
            // --help and --version. A closed pipe is no reason to complain.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{}", one_line(&error.render().to_string()));
            return ExitCode::from(2);
        }
    };
    match evaluated(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What clap says is wrong, without the usage that follows.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    lines.collect::<Vec<_>>().join(" ")
}

/// Prints on standard output. A reader who has had enough is no reason to stop: files may be asked for too.
fn say(text: impl Display) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

fn evaluated(arguments: &Arguments) -> Result<()> {
    let (truth_path, results_path) = files(arguments)?;
    let outputs = outputs(arguments, &truth_path, &results_path)?;
    let (truth, results) = rayon::join(|| read_dataset_with_warnings(&truth_path), || read_results(&results_path));
    let ((truth, warnings), results) = (truth?, results?);
    let mut params =
        Params { max_dets: arguments.max_dets.clone(), use_categories: !arguments.class_agnostic, ..Params::default() };
    if let Some(thresholds) = &arguments.iou {
        params.iou_thresholds = thresholds.clone();
    }
    if !arguments.area.is_empty() {
        params.areas = arguments.area.clone();
        let mut labels = HashSet::new();
        if let Some(area) = params.areas.iter().find(|area| !labels.insert(&area.label)) {
            bail!("--area: two ranges are named {}: give each a name of its own", area.label);
        }
    }
    let iou_type = if arguments.kind == "bbox" { IouType::Bbox } else { IouType::Segm };
    let on_truth = |results: &Path| format!("{} on {}", results.display(), truth_path.display());
    // All that can go wrong with the first results does before anything is printed.
    let analysed = || -> vigdet_coco::Result<_> {
        let evaluation = evaluate(&truth, &results, iou_type, &params)?;
        let wanted = arguments.errors || arguments.plots.is_some();
        let errors = wanted.then(|| tide::errors(&truth, &results, iou_type, &params)).transpose()?;
        let plotted = (arguments.plots.as_ref()).map(|folder| -> vigdet_coco::Result<_> {
            let sizes = ap_by_size(&truth, &results, iou_type, &params)?;
            let confusion = confusion(&truth, &results, iou_type, &params, arguments.confusion_score, 0.5)?;
            Ok((folder, sizes, confusion))
        });
        Ok((evaluation, errors, plotted.transpose()?))
    };
    // A mask that was left out may be why.
    let told = |_: &vigdet_coco::Error| {
        let left_out = |warning: &&Warning| matches!(warning, Warning::SegmentationLeftOut { .. });
        warnings.iter().filter(left_out).for_each(|warning| eprintln!("warning: {warning}"));
    };
    let (evaluation, errors, plotted) = analysed().inspect_err(told).with_context(|| on_truth(&results_path))?;
    let others = arguments.compare.as_ref().map(|path| read_results(path).map(|others| (path, others))).transpose()?;
    for warning in warnings.iter().chain(&evaluation.warnings) {
        eprintln!("warning: {warning}");
    }
    say(evaluation.summary())?;
    evaluation.extra_lines().iter().try_for_each(say)?;
    if arguments.per_class {
        say(format_args!("\n{}", evaluation.class_table()))?;
    }
    if let Some(errors) = errors.as_ref().filter(|_| arguments.errors) {
        say(format_args!("\n{errors}"))?;
    }
    let mut comparison = None;
    if let Some((path, others)) = &others {
        let resampling = Resampling { resamples: arguments.resamples as usize, seed: arguments.seed };
        let compared =
            compare(&truth, &results, others, iou_type, &params, resampling).with_context(|| on_truth(path))?;
        for warning in &compared.warnings {
            eprintln!("warning: {}: {warning}", path.display());
        }
        say(format_args!("\nA {}\nB {}\n{compared}", results_path.display(), path.display()))?;
        comparison = Some(compared);
    }
    if let Some((folder, sizes, confusion)) = &plotted {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let drawn = tempfile::tempdir().context("cannot make a temporary folder")?;
        let [curves, classes, by_size, confusions, kinds] = PICTURES.map(|name| drawn.path().join(name));
        plot::precision_recall(&curves, &evaluation)?;
        if params.use_categories {
            plot::class_ap(&classes, &evaluation)?;
        }
        plot::ap_by_size(&by_size, sizes)?;
        plot::confusion(&confusions, confusion)?;
        if let Some(errors) = &errors {
            plot::errors(&kinds, errors)?;
        }
        for name in PICTURES {
            let drawn = drawn.path().join(name);
            if drawn.exists() {
                outputs.write(&folder.join(name), |out| out.write_all(&std::fs::read(drawn)?))?;
            }
        }
    }
    if let Some(path) = &arguments.json {
        let mut value = numbers(&arguments.kind, &evaluation);
        if let Some(errors) = errors {
            value["errors"] = json!(errors);
        }
        if let Some(comparison) = comparison {
            value["comparison"] = json!(comparison);
        }
        let text = serde_json::to_string_pretty(&value)?;
        outputs.write(path, |out| writeln!(out, "{text}"))?;
    }
    // The program ends here: taking half a million masks apart one by one would only take time.
    std::mem::forget((truth, results, others));
    Ok(())
}

/// The annotation file and the results file.
fn files(arguments: &Arguments) -> Result<(PathBuf, PathBuf)> {
    let results = match &arguments.dt {
        Some(path) => path.clone(),
        None if arguments.gt.is_some() => bail!("--gt needs a results file: --dt FILE"),
        None => {
            let name = format!("{}.json", arguments.kind);
            let Some(folder) = newest(Path::new("runs"), &name) else {
                bail!(
                    "no run with a {name} under runs/: train one (train_det), or name the files: coco_eval --gt \
                     ANNOTATIONS --dt RESULTS"
                );
            };
            eprintln!("evaluating {}", folder.join(&name).display());
            folder.join(name)
        }
    };
    let truth = arguments.gt.clone().map_or_else(|| ground_truth_beside(&results), Ok)?;
    Ok((truth, results))
}

/// The folder under `runs` whose file `name` was written last.
fn newest(runs: &Path, name: &str) -> Option<PathBuf> {
    let written = |folder: &Path| std::fs::metadata(folder.join(name)).and_then(|data| data.modified()).ok();
    let folders = std::fs::read_dir(runs).ok()?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    folders.filter_map(|folder| Some((written(&folder)?, folder))).max().map(|(_, folder)| folder)
}

/// The annotation file that results were made for, as `ground_truth.json` in their folder says: `{"annotations":
/// path}`. A relative path is one from the current folder, or else from the run's.
fn ground_truth_beside(results: &Path) -> Result<PathBuf> {
    let folder = results.parent().unwrap_or(Path::new(""));
    let path = folder.join(GROUND_TRUTH);
    ensure!(path.is_file(), "there is no {} that names the annotations: give them with --gt FILE", path.display());
    #[derive(serde::Deserialize)]
    struct GroundTruth {
        annotations: PathBuf,
    }
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let GroundTruth { annotations } = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let beside = folder.join(&annotations);
    Ok(if !annotations.exists() && beside.exists() { beside } else { annotations })
}

/// What may be written, all of it checked before the work.
fn outputs(arguments: &Arguments, truth: &Path, results: &Path) -> Result<Outputs> {
    let mut outputs = Outputs::default();
    let beside = results.with_file_name(GROUND_TRUTH);
    let read = [truth, results, &beside].into_iter().chain(arguments.compare.as_deref());
    read.for_each(|path| outputs.reads(path));
    let pictures = arguments.plots.iter().flat_map(|folder| PICTURES.map(|name| folder.join(name)));
    arguments.json.iter().cloned().chain(pictures).try_for_each(|path| outputs.check(&path))?;
    Ok(outputs)
}

fn numbers(kind: &str, evaluation: &Evaluation) -> serde_json::Value {
    let stats = evaluation.summary().stats;
    let metrics: serde_json::Map<String, serde_json::Value> =
        STAT_NAMES.iter().zip(stats).map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let thresholds = evaluation.params.iou_thresholds.iter();
    let per_iou: Vec<_> =
        thresholds.zip(evaluation.ap_per_iou()).map(|(iou, ap)| json!({"iou": iou, "ap": ap})).collect();
    let areas = evaluation.params.areas.iter().zip(evaluation.ap_per_area()).zip(evaluation.ar_per_area());
    let per_area: Vec<_> = areas
        .map(|((area, ap), ar)| json!({"area": area.label, "min": area.min, "max": area.max, "ap": ap, "ar": ar}))
        .collect();
    json!({
        "type": kind,
        "stats": stats,
        "metrics": metrics,
        "per_iou": per_iou,
        "per_area": per_area,
        "per_class": evaluation.per_class(),
    })
}
