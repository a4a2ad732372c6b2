//! Batches of images with their objects: what a detector trains on and is tested on.

use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use rand::Rng;
use rayon::prelude::*;

use super::augment::{augment, draw_scale};
use super::batch::collate;
use super::detection_dataset::DetectionDataset;
use super::feed::{Feed, Job, Reader, Source};
use super::mixup::mixup;
use super::mosaic::mosaic;
use super::order::{generator, Grouping, Order};
use super::sample::{Batch, Sample};
use super::scale_jitter::affine;
use crate::config::{DataConfig, ScalePer};

/// What a [`Loader`] does with the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Images of a batch. The last batches of an epoch may have fewer.
    pub batch_size: usize,
    /// Shuffle and augment. Otherwise the data set's order, each image once, unchanged.
    pub train: bool,
    /// Seed of the order and of the augmentation.
    pub seed: u64,
}

/// Decodes, augments, resizes, normalises and pads on its own threads (see [`Feed`]).
pub type Loader = Feed<DetectionSource>;

/// A split on its way to batches.
#[derive(Debug)]
pub struct DetectionSource {
    dataset: Arc<DetectionDataset>,
    config: DataConfig,
    options: LoaderOptions,
    reader: Reader,
}

impl Loader {
    /// Starts `config.workers` threads (0: one per core).
    ///
    /// # Errors
    /// A batch size of 0, threads that cannot be started.
    pub fn new(dataset: Arc<DetectionDataset>, config: &DataConfig, options: LoaderOptions) -> Result<Self> {
        let grouping = if config.group_by_aspect { Grouping::ByAspect } else { Grouping::InOrder };
        let order = Order::once(options.batch_size, options.train.then_some(options.seed), grouping);
        let reader = Reader::new(config.on_error);
        Self::start(DetectionSource { dataset, config: config.clone(), options, reader }, order, config.workers)
    }
}

impl Source for DetectionSource {
    type Batch = Batch;

    fn images(&self) -> usize {
        self.dataset.len()
    }

    fn is_tall(&self, i: usize) -> bool {
        let info = self.dataset.info(i);
        info.height > info.width
    }

    fn batch(&self, job: &Job) -> Result<Option<Batch>> {
        let load = |image: usize| self.load(job, image);
        let loaded: Vec<Option<(Sample, f64)>> =
            job.slots.par_iter().map(|slot| load(slot.image)).collect::<Result<_>>()?;
        let (samples, scales): (Vec<Sample>, Vec<f64>) = loaded.into_iter().flatten().unzip();
        if samples.is_empty() {
            return Ok(None);
        }
        let size = if self.options.train { self.config.size } else { self.config.size_in_test() };
        collate(samples, &scales, size, &self.config).map(Some)
    }

    fn describe(&self, out: &mut dyn Write) -> Result<()> {
        Ok(serde_json::to_writer(out, self.dataset.ground_truth())?)
    }

    fn reader(&self) -> &Reader {
        &self.reader
    }
}

impl DetectionSource {
    /// Image `i` of a batch, augmented, and the factor of its size. `None`: it is unreadable and left out.
    fn load(&self, job: &Job, i: usize) -> Result<Option<(Sample, f64)>> {
        if !self.options.train {
            return Ok(self.read(i)?.map(|sample| (sample, 1.0)));
        }
        let mut rng = generator(self.options.seed, job.epoch, i as u64);
        let mut scale = draw_scale(self.config.scale, &mut rng);
        if self.config.scale_per == ScalePer::Batch {
            // No image has so high a number.
            let mut of_batch = generator(self.options.seed, job.epoch, u64::MAX - job.batch as u64);
            scale = draw_scale(self.config.scale, &mut of_batch);
        }
        let mut sample = self.read_near(i)?;
        if job.strong {
            // A stream of their own: the other draws stay what they are without them.
            let mut rng = rng.clone();
            rng.set_stream(1);
            sample = self.change_strongly(sample, &mut rng)?;
        }
        Ok(Some((augment(sample, &self.config, &mut rng), scale)))
    }

    /// Mosaic, affine change, mixup: each as often as the config says.
    fn change_strongly(&self, mut sample: Sample, rng: &mut impl Rng) -> Result<Sample> {
        let d = &self.config;
        let other = |rng: &mut _| self.read_near(Rng::random_range(rng, 0..self.dataset.len()));
        if d.mosaic > 0.0 && rng.random_bool(d.mosaic) {
            let four = [sample, other(rng)?, other(rng)?, other(rng)?];
            sample = mosaic(four, d.crop.visible, rng)?;
        }
        if d.affine.probability > 0.0 && rng.random_bool(d.affine.probability) {
            // The mean: 0 to the network, as the padding is.
            let fill = d.mean.map(|mean| (255.0 * mean).round() as u8);
            affine(&mut sample, &d.affine, d.crop.visible, fill, rng)?;
        }
        if d.mixup > 0.0 && rng.random_bool(d.mixup) {
            mixup(&mut sample, other(rng)?, rng)?;
        }
        Ok(sample)
    }

    /// Image `i`, or the next one that can be read.
    fn read_near(&self, i: usize) -> Result<Sample> {
        let name = |i: usize| self.dataset.info(i).file.clone();
        let (_, sample) = self.reader.read_near(i, self.dataset.len(), name, |i| self.read(i))?;
        Ok(sample)
    }

    /// Decodes image `i`. `None`: it cannot be read, which is on record now.
    fn read(&self, i: usize) -> Result<Option<Sample>> {
        let decode = || self.dataset.sample(i, self.config.exif);
        let sample = self.reader.read(&self.dataset.info(i).file, decode)?;
        sample.iter().for_each(|sample| self.check_size(i, sample));
        Ok(sample)
    }

    /// Puts on record that an image has not the size that its annotation says.
    fn check_size(&self, i: usize, sample: &Sample) {
        let (said, is) = (self.dataset.info(i), &sample.info);
        if (said.width, said.height) == (is.width, is.height) {
            return;
        }
        let turned = (said.width, said.height) == (is.height, is.width);
        let advice = match (turned, self.config.exif) {
            (true, false) => "; it looks turned: if its boxes were drawn as viewers show it, set data.exif=true",
            (true, true) => "; it looks turned: if its boxes are in the pixels as stored, set data.exif=false",
            _ => "; its boxes are taken to be in the pixels of the image",
        };
        self.reader.resized.add(&is.file, || {
            format!(
                "is {}×{}, not {}×{} as the annotation file says{advice}",
                is.width, is.height, said.width, said.height
            )
        });
    }
}
