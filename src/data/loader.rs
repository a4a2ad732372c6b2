//! Batches, made by worker threads ahead of whoever consumes them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{bail, Result};
use rand::Rng;
use rayon::prelude::*;

use super::ahead::{batches_ahead, caught, pool, Ahead};
use super::augment::{augment, draw_scale};
use super::batch::collate;
use super::coco::CocoDataset;
use super::mosaic::mosaic;
use super::order::{generator, Order};
use super::sample::{Batch, Sample};
use crate::config::{DataConfig, OnError};

/// In training an unreadable image is replaced by the next one that can be read, looking at most so far.
const MOST_REPLACEMENTS: usize = 100;

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

/// Decodes, augments, resizes, normalises and pads on its own threads.
///
/// The batches of an epoch, and every pixel in them, depend on the data, the config, the seed and the epoch's number only: not on the number of
/// threads, nor on where an epoch is entered. Memory is bounded: at most [`Loader::ahead`] batches are decoded or waiting.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    order: Order,
    pool: rayon::ThreadPool,
    ahead: usize,
}

/// What the workers need.
#[derive(Debug)]
struct Shared {
    dataset: Arc<CocoDataset>,
    config: DataConfig,
    options: LoaderOptions,
    /// Unreadable images and why, by file name.
    skipped: Mutex<BTreeMap<String, String>>,
    /// Images whose size is not what the annotation file says, and what to know of it, by file name.
    resized: Mutex<BTreeMap<String, String>>,
}

impl Loader {
    /// Starts `config.workers` threads (0: one per core). Errors: a batch size of 0, threads that cannot be started.
    pub fn new(dataset: Arc<CocoDataset>, config: &DataConfig, options: LoaderOptions) -> Result<Self> {
        if options.batch_size == 0 {
            bail!("a batch must have at least one image");
        }
        let pool = pool(config.workers)?;
        let order = Order {
            batch_size: options.batch_size,
            shuffle: options.train.then_some(options.seed),
            group_by_aspect: config.group_by_aspect,
        };
        let ahead = batches_ahead(&pool, options.batch_size);
        let shared =
            Shared { dataset, config: config.clone(), options, skipped: Mutex::default(), resized: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), order, pool, ahead })
    }

    /// Batches of one epoch, the last ones perhaps smaller. (Without `train`, unreadable images may leave fewer.)
    pub fn batches_per_epoch(&self) -> usize {
        self.order.batches(self.shared.dataset.len())
    }

    /// How many batches at most are being made or waiting at any time.
    pub fn ahead(&self) -> usize {
        self.ahead
    }

    /// The same with at least so many ahead, for whoever takes several at a time.
    #[must_use]
    pub fn keep_ahead(self, batches: usize) -> Self {
        Self { ahead: self.ahead.max(batches), ..self }
    }

    /// Starts `epoch` at its batch `first_batch` (0: from the beginning; a resumed run: where it stopped).
    pub fn epoch(&self, epoch: usize, first_batch: usize) -> Epoch<'_> {
        let sizes: Vec<(u32, u32)> = (0..self.shared.dataset.len())
            .map(|i| (self.shared.dataset.info(i).width, self.shared.dataset.info(i).height))
            .collect();
        let plan = self.order.plan(epoch, &sizes).into_iter().skip(first_batch).collect();
        let shared = self.shared.clone();
        let work = move |images: Vec<usize>| shared.batch(epoch, &images);
        Epoch { loader: self, batches: Ahead::new(&self.pool, self.ahead, plan, work) }
    }

    /// Images that could not be read so far, and why, in the order of their names.
    pub fn skipped(&self) -> Vec<(String, String)> {
        listed(&self.shared.skipped)
    }

    /// Images seen so far whose size is not the one in the annotation file, and what that means, in the order of their names.
    pub fn resized(&self) -> Vec<(String, String)> {
        listed(&self.shared.resized)
    }
}

fn listed(map: &Mutex<BTreeMap<String, String>>) -> Vec<(String, String)> {
    let map = map.lock().unwrap_or_else(PoisonError::into_inner);
    map.iter().map(|(file, reason)| (file.clone(), reason.clone())).collect()
}

/// The batches of one epoch, in order. Dropping it stops the work ahead.
#[derive(Debug)]
pub struct Epoch<'a> {
    loader: &'a Loader,
    batches: Ahead<'a, Vec<usize>, Batch>,
}

impl Epoch<'_> {
    /// How long the consumer has waited for batches in all.
    pub fn waited(&self) -> Duration {
        self.batches.waited()
    }

    /// See [`Loader::skipped`].
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.loader.skipped()
    }
}

impl Iterator for Epoch<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batches.next()
    }
}

impl Shared {
    /// The batch of these images, or `None` if all of them were skipped.
    fn batch(&self, epoch: usize, images: &[usize]) -> Result<Option<Batch>> {
        let loaded: Vec<Option<(Sample, f64)>> =
            images.par_iter().map(|&i| self.load(epoch, i)).collect::<Result<_>>()?;
        let (samples, scales): (Vec<Sample>, Vec<f64>) = loaded.into_iter().flatten().unzip();
        if samples.is_empty() {
            return Ok(None);
        }
        let size = if self.options.train { self.config.size } else { self.config.size_in_test() };
        collate(samples, &scales, size, &self.config).map(Some)
    }

    /// Image `i`, augmented, and the factor of its size. `None`: it is unreadable and left out.
    fn load(&self, epoch: usize, i: usize) -> Result<Option<(Sample, f64)>> {
        if !self.options.train {
            return Ok(self.read(i)?.map(|sample| (sample, 1.0)));
        }
        let mut rng = generator(self.options.seed, epoch, i as u64);
        let scale = draw_scale(self.config.scale, &mut rng);
        let mut sample = self.read_near(i)?;
        if self.config.mosaic > 0.0 {
            // Its own stream: the other draws stay what they are without it.
            let mut rng = rng.clone();
            rng.set_stream(1);
            if rng.random_bool(self.config.mosaic) {
                let mut other = || self.read_near(rng.random_range(0..self.dataset.len()));
                let four = [sample, other()?, other()?, other()?];
                sample = mosaic(four, self.config.crop.visible, &mut rng)?;
            }
        }
        Ok(Some((augment(sample, &self.config, &mut rng), scale)))
    }

    /// Image `i`, or the next one that can be read.
    fn read_near(&self, i: usize) -> Result<Sample> {
        let images = self.dataset.len();
        for step in 0..images.min(MOST_REPLACEMENTS) {
            if let Some(sample) = self.read((i + step) % images)? {
                return Ok(sample);
            }
        }
        bail!(
            "image {} and the {} after it could not be read; the first reason: {}",
            self.dataset.info(i).file,
            images.min(MOST_REPLACEMENTS) - 1,
            self.skipped
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&self.dataset.info(i).file)
                .map_or("unknown", String::as_str)
        )
    }

    /// Decodes image `i`. `None`: it cannot be read, which is on record now.
    fn read(&self, i: usize) -> Result<Option<Sample>> {
        self.read_with(i, || self.dataset.sample(i, self.config.exif))
    }

    /// [`Shared::read`] by `decode`. A decoder that panics has met a file that it cannot read.
    fn read_with(&self, i: usize, decode: impl FnOnce() -> Result<Sample>) -> Result<Option<Sample>> {
        let info = self.dataset.info(i);
        match caught(|| format!("decoding {}", info.file), decode) {
            Ok(sample) => {
                self.check_size(i, &sample);
                Ok(Some(sample))
            }
            Err(error) if self.config.on_error == OnError::Stop => {
                Err(error.context("data.on_error is `stop`; `skip` leaves unreadable images out"))
            }
            Err(error) => {
                let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
                skipped.entry(info.file.clone()).or_insert_with(|| format!("{error:#}"));
                Ok(None)
            }
        }
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
        let text = format!(
            "is {}×{}, not {}×{} as the annotation file says{advice}",
            is.width, is.height, said.width, said.height
        );
        let mut resized = self.resized.lock().unwrap_or_else(PoisonError::into_inner);
        resized.entry(is.file.clone()).or_insert(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vigdet_coco::types::{Category, Dataset, Image};

    fn shared(on_error: OnError) -> (tempfile::TempDir, Shared) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.jpg"), "").unwrap();
        let dataset = Dataset {
            images: vec![Image { id: 1, file_name: "a.jpg".into(), width: 4, height: 4 }],
            categories: vec![Category { id: 1, ..Category::default() }],
            ..Dataset::default()
        };
        let dataset = CocoDataset::from_dataset(dataset, folder.path().into(), None, false, false).unwrap();
        let config = DataConfig { on_error, ..DataConfig::default() };
        let options = LoaderOptions { batch_size: 1, train: false, seed: 0 };
        let loader = Loader::new(Arc::new(dataset), &config, options).unwrap();
        (folder, Arc::into_inner(loader.shared).unwrap())
    }

    #[test]
    fn a_decoder_that_panics_makes_an_unreadable_image() {
        let (_folder, one) = shared(OnError::Skip);
        assert!(one.read_with(0, || panic!("index out of bounds")).unwrap().is_none());
        let (file, reason) = listed(&one.skipped).remove(0);
        assert!(file == "a.jpg" && reason.contains("index out of bounds"), "{file}: {reason}");
        let (_folder, other) = shared(OnError::Stop);
        let error = format!("{:#}", other.read_with(0, || panic!("index out of bounds")).unwrap_err());
        assert!(error.contains("data.on_error") && error.contains("decoding a.jpg"), "{error}");
    }
}
