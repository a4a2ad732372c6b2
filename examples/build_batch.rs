//! From COCO files to what a detector is trained on: a batch, and its losses.
//!
//!     cargo run --example build_batch -- FOLDER    (annotations/instances_train2017.json and train2017/ in it)

use std::path::Path;
use std::sync::Arc;

use tch::{nn, Device};
use vigdet::backbone::Pass;
use vigdet::config::{Config, Experiment};
use vigdet::data::{DetectionDataset, Loader, LoaderOptions};
use vigdet::detect;

fn main() -> anyhow::Result<()> {
    let Some(folder) = std::env::args().nth(1) else { anyhow::bail!("usage: build_batch FOLDER") };
    for line in losses(Path::new(&folder), &Config::preset("retinanet_pvig_ti_shapes", &[])?)? {
        println!("{line}");
    }
    Ok(())
}

/// The losses of an untrained detector on the first batch of the training split.
pub fn losses(folder: &Path, config: &Config) -> anyhow::Result<Vec<String>> {
    let dataset = Arc::new(DetectionDataset::open(&config.data.train, folder, true)?);
    let options = LoaderOptions { batch_size: 2, train: true, seed: 0 };
    let loader = Loader::new(dataset.clone(), &config.data, options)?;
    let Some(batch) = loader.epoch(0, 0, true).next().transpose()? else { anyhow::bail!("there is no image") };

    let store = nn::VarStore::new(Device::Cpu);
    let detector = detect::build(&store.root(), &config.model, dataset.classes().len() as i64)?;
    let mut lines = vec![format!("{} as a batch of {:?}", batch.names(), batch.images.size())];
    for (name, loss) in detector.losses(&batch, &mut Pass::training(0, 0))?.parts {
        lines.push(format!("  {name} {:.3}", loss.double_value(&[])));
    }
    Ok(lines)
}
