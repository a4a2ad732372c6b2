//! A trained detector on an image: weights, config and class names come from one file.
//!
//!     cargo run --example detect_image -- runs/demo/checkpoints/best.safetensors IMAGE

use std::path::Path;

use vigdet::data::decode;
use vigdet::predictor::{Predictor, PredictorOptions};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [weights, image] = &args[..] else { anyhow::bail!("usage: detect_image WEIGHTS IMAGE") };
    for line in detect(Path::new(weights), Path::new(image))? {
        println!("{line}");
    }
    Ok(())
}

/// One line for each object seen.
pub fn detect(weights: &Path, image: &Path) -> anyhow::Result<Vec<String>> {
    let predictor = Predictor::open(weights, &PredictorOptions::default())?;
    let image = decode::open(image, false)?;
    let found = predictor.detect(&[image])?.remove(0);
    let objects = found.labels.iter().zip(&found.scores).zip(&found.boxes);
    Ok(objects
        .map(|((label, score), corners)| format!("{} {score:.2} {corners:.0?}", predictor.classes().name(*label)))
        .collect())
}
