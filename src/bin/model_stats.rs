//! Prints what models cost: parameters, and multiply-adds for one image.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use vigdet::cli;
use vigdet::stats::paper::{Figures, Row, TABLES};
use vigdet::stats::{Cost, Options};

/// Print parameters and multiply-adds of models; of all models of the ViG paper beside its figures, if none is named
#[derive(Parser)]
#[command(version)]
struct Args {
    /// pvig_ti, pvig_s, pvig_m, pvig_b, vig_ti, vig_s, vig_b, resnet18, resnet50 (as classifiers of ImageNet), or a
    /// detector (80 classes)
    models: Vec<String>,
    /// Size of the image in pixels [default: 224,224; detectors: 800,1280]
    #[arg(long, value_name = "H,W", value_parser = cli::parse_height_width)]
    size: Option<(i64, i64)>,
    /// Number of classes [default: 1000; detectors: 80]
    #[arg(long, value_name = "N")]
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

fn main() -> ExitCode {
    cli::main(run)
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    let options =
        Options { size: args.size, classes: args.classes, config: args.config.clone(), changes: args.set.clone() };
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
        println!("{}", serde_json::to_string_pretty(&rows.collect::<anyhow::Result<Vec<_>>>()?)?);
        return Ok(ExitCode::SUCCESS);
    }
    if args.models.is_empty() {
        for table in TABLES {
            println!("{}", table.title);
            println!("{:34} {:>13} {:>19}   paper", "", "parameters", "multiply-adds");
            for row in table.rows {
                print_row(row, &row.cost(&options)?);
            }
            println!();
        }
        println!(
            "Multiply-adds are those of convolutions and linear layers, and of Grapher distances except in Table 10.\n\
             The paper's top-1 in Tables 1 and 2 is that of its Tables 4 and 5; top-1 and AP are in percent."
        );
        return Ok(ExitCode::SUCCESS);
    }
    let costs = args.models.iter().map(|name| Cost::of(name, &options)).collect::<anyhow::Result<Vec<_>>>()?;
    if args.json {
        let rows: Vec<_> = costs.iter().map(json_of).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:14} {:>9} {:>13} {:>19} {:>19}", "model", "size", "parameters", "multiply-adds", "without distances");
    for c in costs {
        let size = format!("{}×{}", c.size.0, c.size.1);
        let [parameters, macs, weights] = [c.parameters, c.macs.total(), c.macs.weights].map(grouped);
        println!("{:14} {size:>9} {parameters:>13} {macs:>19} {weights:>19}", c.model);
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
    let figures = [
        ("", parameters, " M"),
        ("", macs, " G"),
        ("top-1 ", top1, ""),
        ("box AP ", box_ap, ""),
        ("mask AP ", mask_ap, ""),
    ];
    let paper: Vec<String> = (figures.into_iter())
        .filter_map(|(name, figure, unit)| figure.map(|f| format!("{name}{f:.1}{unit}")))
        .collect();
    let [parameters, macs] = [cost.parameters, row.macs_of(cost)].map(grouped);
    println!("{:34} {parameters:>13} {macs:>19}   {}", row.label, paper.join(", "));
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut out = digits[..first].to_string();
    for group in digits.as_bytes()[first..].chunks(3) {
        if !out.is_empty() {
            out.push(',');
        }
        out.extend(group.iter().map(|&b| b as char));
    }
    out
}
