//! The programs: each is a file here, with its arguments and a function `run`. `vigdet COMMAND` has them all, and each
//! has a binary of its own name.

pub mod classify;
pub mod dataset;
pub mod detect;
pub mod export;
pub mod extract_features;
pub mod model_stats;
pub mod plot_graph;
pub mod plot_run;
mod prelabels;
mod preview;
pub mod replay;
pub mod shapes;
pub mod test_cls;
pub mod test_det;
pub mod train_cls;
pub mod train_det;
mod training;
pub mod weights;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Object detection with Vision GNN backbones.
///
/// `coco_eval` evaluates results in COCO's format; it is a program of its own, which needs no libtorch.
#[derive(Parser, Debug)]
#[command(name = "vigdet", version)]
pub struct Vigdet {
    #[command(subcommand)]
    command: Command,
}

/// A command of two words is `train_det` or `train-det`, as the user likes.
#[derive(clap::Subcommand, Debug)]
#[command(rename_all = "snake_case")]
enum Command {
    /// Train a detector
    #[command(alias = "train-det")]
    TrainDet(train_det::Args),
    /// Evaluate a detector
    #[command(alias = "test-det")]
    TestDet(test_det::Args),
    /// Detect objects on images
    Detect(detect::Args),
    /// Train a classifier: pretrain a backbone
    #[command(alias = "train-cls")]
    TrainCls(train_cls::Args),
    /// Evaluate a classifier
    #[command(alias = "test-cls")]
    TestCls(test_cls::Args),
    /// Name the classes of images
    Classify(classify::Args),
    /// Write a model as an ONNX file
    Export(export::Args),
    /// Write what a backbone sees
    #[command(alias = "extract-features")]
    ExtractFeatures(extract_features::Args),
    /// Draw which patches a model links
    #[command(alias = "plot-graph")]
    PlotGraph(plot_graph::Args),
    /// Draw the pictures of a run anew
    #[command(alias = "plot-run")]
    PlotRun(plot_run::Args),
    /// Do a step again whose loss or gradient was not finite
    Replay(replay::Args),
    /// Print what models cost
    #[command(alias = "model-stats")]
    ModelStats(model_stats::Args),
    /// Draw a set of the built-in data
    Shapes(shapes::Args),
    /// Read, check, count, show, split and convert labelled images of any usual layout
    Dataset(dataset::Args),
    /// List the published weights that are known by name, and fetch them
    Weights(weights::Args),
}

impl Vigdet {
    /// Runs the command that was given.
    ///
    /// # Errors
    /// Whatever goes wrong, as one line.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::TrainDet(args) => train_det::run(args),
            Command::TestDet(args) => test_det::run(args),
            Command::Detect(args) => detect::run(args),
            Command::TrainCls(args) => train_cls::run(args),
            Command::TestCls(args) => test_cls::run(args),
            Command::Classify(args) => classify::run(args),
            Command::Export(args) => export::run(args),
            Command::ExtractFeatures(args) => extract_features::run(args),
            Command::PlotGraph(args) => plot_graph::run(args),
            Command::PlotRun(args) => plot_run::run(args),
            Command::Replay(args) => replay::run(args),
            Command::ModelStats(args) => model_stats::run(args),
            Command::Shapes(args) => shapes::run(args),
            Command::Dataset(args) => dataset::run(args),
            Command::Weights(args) => weights::run(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn commands_of_two_words_are_spelled_in_both_ways() {
        let vigdet = Vigdet::command();
        let names: Vec<&str> =
            vigdet.get_subcommands().map(|command| command.get_name()).filter(|name| name.contains('_')).collect();
        assert_eq!(names.len(), 8);
        for name in names {
            let other = name.replace('_', "-");
            assert_eq!(vigdet.find_subcommand(&other).map(|command| command.get_name()), Some(name));
        }
        assert!(Vigdet::try_parse_from(["vigdet", "train-det", "retinanet"]).is_ok());
    }
}
