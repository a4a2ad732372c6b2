//! `model_stats`: prints what models cost: parameters, and multiply-adds for one image.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::cli::parse_height_width;
use crate::config::MOST_CLASSES;
use crate::console::say;
use crate::stats::paper::{Figures, Row, TABLES};
use crate::stats::{Cost, Options};

/// Print parameters and multiply-adds of models; of all models of the ViG paper beside its figures, if none is named
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Models, for example pvig_ti or resnet50 (as classifiers of ImageNet; a wrong name lists all), a detector, or a
    /// detector's built-in config (80 classes, if it does not count its outputs)
    models: Vec<String>,
    /// Size of the image in pixels [default: 224,224; detectors: 800,1280]
    #[arg(long, value_name = "H,W", value_parser = parse_height_width)]
    size: Option<(i64, i64)>,
    /// Number of classes [default: 1000; detectors: 80]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=MOST_CLASSES))]
    classes: Option<i64>,
    /// Config of the detector, a file or the name of a built-in one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Change one config value; the key may be shortened to its last part
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
}

/// Runs the program.
///
/// # Errors
/// Whatever goes wrong, as one line.
pub fn run(args: Args) -> Result<ExitCode> {
    let options = Options { size: args.size, classes: args.classes, config: args.config, changes: args.set };
    if args.models.is_empty() && args.json {
        let rows = TABLES.iter().flat_map(|table| table.rows.iter().map(move |row| (table, row)));
        let rows = rows.map(|(table, row)| {
            let mut entry = json_of(&row.cost(&options)?);
            entry["table"] = table.title.into();
            entry["row"] = row.label.into();
            let Figures { parameters, macs, top1, box_ap, mask_ap } = row.paper;
            entry["paper"] = json!({
                "parameters_millions": parameters, "macs_billions": macs,
                "top1": top1, "box_ap": box_ap, "mask_ap": mask_ap,
            });
            Ok(entry)
        });
        say(&serde_json::to_string_pretty(&rows.collect::<Result<Vec<_>>>()?)?);
        return Ok(ExitCode::SUCCESS);
    }
    if args.models.is_empty() {
        for table in TABLES {
            say(table.title);
            say(&format!("{:34} {:>13} {:>19}   paper", "", "parameters", "multiply-adds"));
            for row in table.rows {
                print_row(row, &row.cost(&options)?);
            }
            say("");
        }
        say(
            "Multiply-adds are those of convolutions and linear layers, and, except in Table 10, of Grapher distances \
             and attention's products.\n\
             The paper's top-1 in Tables 1 and 2 is that of its Tables 4 and 5; top-1 and AP are in percent.",
        );
        return Ok(ExitCode::SUCCESS);
    }
    let costs = args.models.iter().map(|name| Cost::of(name, &options)).collect::<Result<Vec<_>>>()?;
    if args.json {
        let rows: Vec<_> = costs.iter().map(json_of).collect();
        say(&serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!(
        "{:14} {:>9} {:>13} {:>19} {:>19}",
        "model", "size", "parameters", "multiply-adds", "without distances"
    ));
    for c in costs {
        let size = format!("{}×{}", c.size.0, c.size.1);
        let [parameters, macs, weights] = [c.parameters, c.macs.total(), c.macs.weights].map(grouped);
        say(&format!("{:14} {size:>9} {parameters:>13} {macs:>19} {weights:>19}", c.model));
    }
    Ok(ExitCode::SUCCESS)
}

fn json_of(cost: &Cost) -> serde_json::Value {
    json!({
        "model": cost.model,
        "parameters": cost.parameters,
        "macs": cost.macs.total(),
        "macs_without_distances": cost.macs.weights,
    })
}

fn print_row(row: &Row, cost: &Cost) {
    let Figures { parameters, macs, top1, box_ap, mask_ap } = row.paper;
    let printed = |name: &str, figure: Option<f64>, unit: &str| figure.map(|f| format!("{name}{f:.1}{unit}"));
    let costs = [printed("", parameters, " M"), printed("", macs, " G"), printed("top-1 ", top1, "")];
    let aps = [printed("box AP ", box_ap, ""), printed("mask AP ", mask_ap, "")];
    let paper: Vec<String> = costs.into_iter().chain(aps).flatten().collect();
    let [parameters, macs] = [cost.parameters, row.macs_of(cost)].map(grouped);
    say(&format!("{:34} {parameters:>13} {macs:>19}   {}", row.label, paper.join(", ")));
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    match number / 1000 {
        0 => number.to_string(),
        thousands => format!("{},{:03}", grouped(thousands), number % 1000),
    }
}
