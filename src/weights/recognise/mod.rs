//! Files of other projects, told by the names of their tensors: whose they are, which config they need, and what
//! vigdet calls their tensors. A user writes `--weights FILE`, and no more.
//!
//! One file here for each project, and what several of them need: `renaming` (names and rows), `resnets` (which one it
//! is, how its images are prepared) and `detectors` (what shapes say of a config). What vigdet wrote itself says in its
//! metadata what it is, and never comes here.

mod authors;
mod detectors;
mod detectron2;
mod lites;
mod mmdetection;
mod mmpretrain;
mod renaming;
mod resnets;
mod swins;
mod torchvision;

use std::path::Path;

use serde_json::Value;
use tch::Tensor;

use super::file::WeightFile;
use crate::classes::Classes;
use crate::config::{ClassifyConfig, Experiment};

/// What is known of a file by the names in it.
pub struct Recognised {
    /// Whose file it is, for people: `torchvision's Mask R-CNN, second generation`.
    pub family: String,
    /// The config that it needs, as JSON with the key `task`, as weights of vigdet have it in their metadata; `None`:
    /// the names do not tell.
    pub config: Option<Value>,
    /// Its classes in the order of the outputs; `None`: the names do not tell.
    pub classes: Option<Classes>,
    /// What vigdet calls its tensors; `None`: the same as the file does.
    pub tensors: Option<Vec<Renamed>>,
    /// What the names cannot tell, what was taken in its place, and the switch that decides otherwise: a line each.
    pub notes: Vec<String>,
}

impl Recognised {
    /// A classifier of ImageNet whose tensors have vigdet's names; `None`: vigdet does not have this model.
    fn classifier(whose: &str, model: &str, changes: &[String]) -> Option<Self> {
        let config = ClassifyConfig::of_model(model, changes).ok()?.to_value().ok()?;
        let family = format!("{whose} {model}, a classifier of ImageNet");
        Some(Self { family, config: Some(config), classes: None, tensors: None, notes: Vec::new() })
    }
}

/// A tensor of a file under the name that vigdet has for it.
pub struct Renamed {
    /// vigdet's name.
    pub name: String,
    /// The file's name.
    pub from: String,
    /// What happens to its numbers on the way; `None`: nothing.
    pub change: Option<Change>,
}

/// What happens to a tensor's numbers.
pub type Change = Box<dyn Fn(&Tensor) -> Tensor>;

/// What is known of a file by the names of its tensors, and at `path`; `None`: they are vigdet's own, or nobody's that
/// is known.
pub fn recognise(file: &WeightFile, path: &Path) -> Option<Recognised> {
    let names = file.names().ok()?;
    let others = [
        detectron2::recognise,
        mmdetection::recognise,
        mmpretrain::recognise,
        lites::recognise,
        swins::recognise,
        authors::recognise,
    ];
    torchvision::recognise(file, &names, path).or_else(|| others.into_iter().find_map(|project| project(file, &names)))
}
