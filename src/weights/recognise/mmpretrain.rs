//! ViG classifiers of mmpretrain, and ViG's names in it: its detectors have them too.

use super::renaming::{as_convolution, rename, New};
use super::Recognised;
use crate::classes::Classes;
use crate::config::{ClassifyConfig, Experiment};
use crate::weights::WeightFile;

/// Where each stage's first entry comes in the published list of blocks and downsamplings.
pub struct Vig {
    /// vigdet's name.
    pub name: &'static str,
    /// Pyramid: the place of each stage's first entry.
    firsts: Vec<usize>,
}

impl Vig {
    /// The ViG whose tensors these are; `None`: there is none, or one that vigdet does not have.
    pub fn of(file: &WeightFile, names: &[String]) -> Option<Self> {
        let channels = file.shape("backbone.pos_embed").and_then(|shape| shape.get(1).copied())?;
        // `backbone.stages.S.J.…`: the entries of each stage.
        let mut lengths: Vec<usize> = Vec::new();
        for name in names {
            let Some(place) = name.strip_prefix("backbone.stages.") else { continue };
            let mut numbers = place.split('.').map(str::parse::<usize>);
            let (Some(Ok(stage)), Some(Ok(entry))) = (numbers.next(), numbers.next()) else { return None };
            if stage >= 4 {
                return None;
            }
            lengths.resize(lengths.len().max(stage + 1), 0);
            lengths[stage] = lengths[stage].max(entry.checked_add(1)?);
        }
        let pyramid = !lengths.is_empty();
        let name = match (pyramid, channels) {
            (true, 48) => "pvig_ti",
            (true, 80) => "pvig_s",
            (true, 96) => "pvig_m",
            (true, 128) => "pvig_b",
            (false, 192) => "vig_ti",
            (false, 320) => "vig_s",
            (false, 640) => "vig_b",
            _ => return None,
        };
        let sum = |stage| lengths[..stage].iter().sum();
        Some(Self { name, firsts: (0..lengths.len()).map(sum).collect() })
    }

    /// The published name of a tensor of the backbone, whose name here is without `backbone.`.
    pub fn published(&self, name: &str) -> Option<New> {
        if let Some(rest) = name.strip_prefix("stem.") {
            return New::name(format!("stem.convs.{rest}"));
        }
        if let Some(rest) = name.strip_prefix("blocks.") {
            return New::name(format!("backbone.{rest}"));
        }
        let Some(place) = name.strip_prefix("stages.") else {
            return (name == "pos_embed").then(|| New::name(name)).flatten();
        };
        let mut parts = place.splitn(3, '.');
        let (stage, entry, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let (stage, entry): (usize, usize) = (stage.parse().ok()?, entry.parse().ok()?);
        let down = if stage > 0 && entry == 0 { "conv." } else { "" };
        New::name(format!("backbone.{}.{down}{rest}", self.firsts.get(stage)? + entry))
    }
}

/// What is known of a file with these names, sorted.
pub fn recognise(file: &WeightFile, names: &[String]) -> Option<Recognised> {
    names.binary_search_by(|name| name.as_str().cmp("backbone.stem.0.weight")).ok()?;
    let vig = Vig::of(file, names)?;
    let new = |name: &str| {
        if let Some(rest) = name.strip_prefix("backbone.") {
            return vig.published(rest);
        }
        let (layer, kind) = name.strip_prefix("head.")?.rsplit_once('.')?;
        match (layer, kind) {
            ("fc1", "weight") => New::changed("prediction.0.weight", as_convolution),
            ("fc2", "weight") => New::changed("prediction.4.weight", as_convolution),
            ("fc1", "bias") | ("fc2", "bias") => {
                New::name(format!("prediction.{}.bias", if layer == "fc1" { 0 } else { 4 }))
            }
            ("bn", kind) => New::name(format!("prediction.1.{kind}")),
            _ => None,
        }
    };
    let renaming = rename(names, |name| new(name).into_iter().collect(), |_| false);
    // The published models' mean and deviation of 0.5 are mmpretrain's too.
    let config = ClassifyConfig::of_model(vig.name, &["model.backbone.drop_path=0".into()]).ok();
    let config = config.and_then(|config| config.to_value().ok()).filter(|_| renaming.unknown.is_empty());
    let outputs = file.shape("head.fc2.weight").and_then(|shape| shape.first().copied()).unwrap_or_default();
    let classes = file.said(&["meta", "CLASSES"]).or_else(|| file.said(&["meta", "dataset_meta", "classes"]));
    let classes: Option<Vec<String>> = classes.map(|names| names.iter().map(|name| name.to_string()).collect());
    Some(Recognised {
        family: format!("mmpretrain's {}", vig.name),
        config,
        classes: classes.filter(|names| names.len() as i64 == outputs).map(|names| Classes::numbered(&names)),
        notes: renaming.note().into_iter().collect(),
        tensors: Some(renaming.tensors),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In tiny and small the published downsamplings are at 2, 5 and 12.
    #[test]
    fn names_of_both_vigs_are_the_published_ones() {
        let vig = Vig { name: "pvig_ti", firsts: vec![0, 2, 5, 12] };
        let name = |from: &str| vig.published(from).map(|new| new.name);
        for (from, to) in [
            ("pos_embed", "pos_embed"),
            ("stem.3.weight", "stem.convs.3.weight"),
            ("stages.0.1.0.fc1.0.weight", "backbone.1.0.fc1.0.weight"),
            ("stages.1.0.0.weight", "backbone.2.conv.0.weight"),
            ("stages.1.2.1.fc2.1.bias", "backbone.4.1.fc2.1.bias"),
            ("stages.2.0.1.running_var", "backbone.5.conv.1.running_var"),
            ("stages.3.1.0.relative_pos", "backbone.13.0.relative_pos"),
            ("blocks.11.0.graph_conv.gconv.nn.0.weight", "backbone.11.0.graph_conv.gconv.nn.0.weight"),
        ] {
            assert_eq!(name(from).as_deref(), Some(to), "{from}");
        }
        for unknown in ["stages.4.0.0.weight", "stages.x.0.0.weight", "stages.1", "norm.weight"] {
            assert_eq!(name(unknown), None, "{unknown}");
        }
    }
}
