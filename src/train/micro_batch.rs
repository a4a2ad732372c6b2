//! The way of one micro batch: through the network to its loss, and back to gradients.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use crate::backbone::Pass;
use crate::config::TrainConfig;
use crate::data::Batch;
use crate::detect::Detector;
use crate::nn::precision::autocast;

/// What is the same for all micro batches of a run.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatches<'a> {
    /// Seed, precision, and the images of a whole step.
    pub config: &'a TrainConfig,
    /// Where the network is.
    pub device: Device,
    /// The detector's label of each of the data's.
    pub labels: &'a [i64],
}

/// What came of one.
#[derive(Debug)]
pub struct Micro {
    /// The parts of the loss; not always finite.
    pub parts: Vec<(&'static str, f64)>,
    /// How many images it had.
    pub images: usize,
    /// Which.
    pub names: String,
}

impl MicroBatches<'_> {
    /// Adds the gradient of one micro batch, times its share of a full batch, to the detector's. `number` counts the run's micro batches.
    pub fn learn(&self, detector: &dyn Detector, number: u64, mut batch: Batch) -> Result<Micro> {
        let mut pass = Pass::training(self.config.seed, number);
        batch.images = batch.images.to_device(self.device);
        for label in batch.targets.iter_mut().flat_map(|target| &mut target.labels) {
            *label = self.labels[*label as usize];
        }
        let losses = autocast(self.config.amp, self.device, || detector.losses(&batch, &mut pass))?;
        let total = losses.total();
        let share = batch.len() as f64 / self.config.batch_size as f64;
        if share == 1.0 { total } else { total * share }.backward();
        let values = values(&losses.parts)?;
        let parts = losses.parts.iter().zip(values).map(|((name, _), value)| (*name, value)).collect();
        Ok(Micro { parts, images: batch.len(), names: batch.names() })
    }
}

/// The values of the parts of a loss, with one transfer from the device.
fn values(parts: &[(&'static str, Tensor)]) -> Result<Vec<f64>> {
    let tensors: Vec<Tensor> = parts.iter().map(|(_, t)| t.detach().to_kind(Kind::Double).reshape([])).collect();
    Ok(Tensor::stack(&tensors, 0).to_device(Device::Cpu).try_into()?)
}
