//! Weights that a training starts from.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use tch::nn;

use crate::config::{Config, DataConfig};
use crate::weights::{self, load_into, LoadOptions};

/// Takes up weights of the same detector, perhaps of other classes, or the backbone of others, and says what was taken.
///
/// # Errors
/// A file that cannot be read or has nothing that fits.
pub fn start_from(store: &nn::VarStore, path: &Path, config: &Config) -> Result<()> {
    let other = other_detector(path, config)?;
    let options = LoadOptions { other_classes: true, backbone_only: other.is_some(), ..Default::default() };
    let report = load_into(store, path, &options)?;
    println!("weights: {report}");
    if let Some(other) = other {
        println!("weights: they are of {other}: only their backbone is taken");
    }
    if let Some(note) = normalised_otherwise(path, config)? {
        println!("{note}");
    }
    Ok(())
}

/// The detector that weights are of, if it is another one than the config's: its pyramid and heads have the same names, but not the same use.
fn other_detector(weights: &Path, config: &Config) -> Result<Option<String>> {
    let metadata = weights::read_metadata(weights)?;
    let own: Option<Value> = metadata.get("config").and_then(|text| serde_json::from_str(text).ok());
    let name = own.as_ref().and_then(|own| own.pointer("/model/detector")?.as_str());
    Ok(name.filter(|name| *name != config.model.detector.name()).map(String::from))
}

/// What to say if weights were trained on images that were normalised with other numbers.
fn normalised_otherwise(weights: &Path, config: &Config) -> Result<Option<String>> {
    let metadata = weights::read_metadata(weights)?;
    let own = metadata.get("config").and_then(|text| Config::of_weights(text, &[]).ok()).map(|own| own.data);
    let list = |values: [f32; 3]| format!("[{}]", values.map(|v| v.to_string()).join(","));
    let same = |own: &DataConfig| (own.mean, own.std) == (config.data.mean, config.data.std);
    Ok(own.filter(|own| !same(own)).map(|own| {
        format!(
            "weights: they were trained on images normalised otherwise; --set data.mean={} --set data.std={} does the same here",
            list(own.mean),
            list(own.std)
        )
    }))
}
