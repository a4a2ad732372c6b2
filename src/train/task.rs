//! What is trained: the part of a training that detectors and classifiers do not share.

use anyhow::Result;
use serde_json::{Map, Value};
use tch::{nn, Device};
use vigdet_coco::eval::Warning;

use super::schedule::Schedule;
use crate::backbone::Pass;
use crate::classes::Classes;
use crate::config::Experiment;
use crate::data::{Feed, Record, Source};
use crate::detect::Losses;
use crate::ranks::Ranks;
use crate::runs::RunDir;
use crate::weights::{Checkpoint, LoadReport};

/// A detector or a classifier in training: its data, its network, its loss and how it is scored. All else is the
/// [`super::engine::Engine`]'s.
pub trait Task: Sized + Sync {
    /// The config of a run.
    type Config: Experiment;
    /// The network.
    type Model: Send;
    /// What its batches are made from.
    type Source: Source<Batch: Record>;
    /// What an evaluation finds beside scores.
    type Found;

    /// Opens the data: the task, and the batches of training. `known`: the classes that a resumed run knows; labels
    /// follow their order.
    ///
    /// # Errors
    /// Data that cannot be used, classes that a resumed run does not know.
    fn open(config: Self::Config, known: Option<&Classes>) -> Result<(Self, Feed<Self::Source>)>;

    /// The task without any data: for doing a recorded step again.
    fn without_data(config: Self::Config, classes: Classes) -> Self;

    /// The config in force.
    fn config(&self) -> &Self::Config;

    /// The classes in the order of the network's outputs.
    fn classes(&self) -> &Classes;

    /// A network with random weights under `path`.
    ///
    /// # Errors
    /// If the config asks for what cannot be built.
    fn build(&self, path: &nn::Path) -> Result<Self::Model>;

    /// What was built, for the line that says so.
    fn name(&self) -> String;

    /// Takes up weights that a training starts from.
    ///
    /// # Errors
    /// If nothing in the file fits.
    fn start_from(&self, store: &nn::VarStore, weights: &Checkpoint) -> Result<LoadReport>;

    /// The learning rate of each step.
    fn schedule(&self, steps_per_epoch: usize, total: usize) -> Schedule;

    /// The parts of the loss of a micro batch with the network's labels, each a mean over its images.
    ///
    /// # Errors
    /// A batch that cannot be trained on.
    fn losses(
        &self,
        model: &Self::Model,
        batch: <Self::Source as Source>::Batch,
        device: Device,
        pass: &mut Pass,
    ) -> Result<Micro>;

    /// Gives a batch of the data the labels of the network.
    fn relabel(&self, _batch: &mut <Self::Source as Source>::Batch) {}

    /// What to try when a loss is not finite any more.
    fn advice(&self) -> &'static str;

    /// The fraction of the steps after which strong augmentation ends.
    fn strong_until(&self) -> f64 {
        1.0
    }

    /// Whether there is a validation split.
    fn is_evaluated(&self) -> bool;

    /// Judges a network on the validation split, of which each rank sees its share; rank 0 has the result. `progress`
    /// hears how many of how many images are done, and ends the
    /// work with `false` on any rank: then there is no result.
    ///
    /// # Errors
    /// If none of its images can be read.
    fn evaluate(
        &self,
        model: &Self::Model,
        device: Device,
        ranks: &Ranks,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<(Scored, Self::Found)>>;

    /// Writes what the best evaluation so far found into the run's folder.
    ///
    /// # Errors
    /// If files cannot be written.
    fn write(&self, found: &Self::Found, run: &RunDir) -> Result<()>;
}

/// The losses of a micro batch.
#[derive(Debug)]
pub struct Micro {
    /// The parts of the loss, scalars with gradients.
    pub losses: Losses,
    /// How many images it had.
    pub images: usize,
    /// Their files.
    pub names: Vec<String>,
}

/// The result of an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// What decides which weights are the best: box AP, top-1.
    pub score: f64,
    /// What the log says.
    pub log: Map<String, Value>,
    /// What metrics.json says.
    pub metrics: Map<String, Value>,
    /// Tags and values for TensorBoard.
    pub scalars: Vec<(String, f64)>,
    /// A line for people.
    pub summary: String,
    /// What is printed at the end of the run.
    pub lines: String,
    /// Images that could not be read, and why.
    pub unreadable: Vec<(String, String)>,
    /// Images that have another size than annotated, and what that means.
    pub resized: Vec<(String, String)>,
    /// Where COCO's rules surprise.
    pub warnings: Vec<Warning>,
}
