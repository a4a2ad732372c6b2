//! Batches of a classifier, made by worker threads ahead of whoever consumes them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{bail, ensure, Result};
use image::{imageops, RgbImage};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::Tensor;

use super::color_jitter;
use super::crop::{center, crop_resize, random_window, Filter};
use super::erase;
use super::mix::{add_target, Mix};
use super::order::ClassOrder;
use super::rand_augment;
use crate::config::{ClassifyDataConfig, Interpolation, OnError};
use crate::data::ahead::{batches_ahead, pool, Ahead};
use crate::data::image_folder::ImageFolder;
use crate::data::order::generator;
use crate::data::resize::{normalise_rows, Normalise};
use crate::nn::memory::f32_tensor;

/// In training an unreadable image is replaced by the next one that can be read, looking at most so far.
const MOST_REPLACEMENTS: usize = 100;
/// The generator's stream of what is drawn for a batch as a whole; images have stream 0, their erased pixels stream 1.
const BATCH_STREAM: u64 = 2;
/// The stream of the erased rectangle and its noise.
const ERASE_STREAM: u64 = 1;

/// What a [`ClassLoader`] does with the data set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassLoaderOptions {
    /// Images of a step.
    pub batch_size: usize,
    /// Images of a batch: of what goes through the network at once.
    pub micro_batch: usize,
    /// Shuffle, repeat, augment, mix. Otherwise the data set's order, each image once, its central crop.
    pub train: bool,
    /// Seed of the order and of the augmentation.
    pub seed: u64,
    /// Label smoothing of the targets.
    pub label_smoothing: f64,
}

/// Images with what a classifier shall say of them.
#[derive(Debug)]
pub struct ClassBatch {
    /// Normalised, float32 `[B, 3, size, size]`.
    pub images: Tensor,
    /// Probabilities, float32 `[B, classes]`: smoothed and mixed in training.
    pub targets: Tensor,
    /// Labels before smoothing and mixing.
    pub labels: Vec<usize>,
    /// Names of the files.
    pub names: Vec<String>,
}

impl ClassBatch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// Decodes, crops, augments, mixes and normalises on its own threads.
///
/// The batches of an epoch, and every pixel in them, depend on the data, the config, the seed and the epoch's number only: not on the number of
/// threads, nor on where an epoch is entered. Memory is bounded: at most [`ClassLoader::ahead`] batches are decoded or waiting.
#[derive(Debug)]
pub struct ClassLoader {
    shared: Arc<Shared>,
    order: ClassOrder,
    pool: rayon::ThreadPool,
    ahead: usize,
}

/// What the workers need.
#[derive(Debug)]
struct Shared {
    dataset: ImageFolder,
    config: ClassifyDataConfig,
    options: ClassLoaderOptions,
    /// Unreadable images and why, by file name.
    skipped: Mutex<BTreeMap<String, String>>,
}

/// A batch to make: its place in the epoch, and for each image its place in the epoch and its number in the data set.
#[derive(Debug)]
struct Job {
    batch: usize,
    images: Vec<(usize, usize)>,
}

impl ClassLoader {
    /// Starts `config.workers` threads (0: one per core).
    ///
    /// # Errors
    /// A batch size of 0, an epoch without a single step, threads that cannot be started.
    pub fn new(dataset: ImageFolder, config: &ClassifyDataConfig, options: ClassLoaderOptions) -> Result<Self> {
        ensure!(options.batch_size > 0 && options.micro_batch > 0, "a batch must have at least one image");
        let train = options.train;
        let order = ClassOrder {
            shuffle: train.then_some(options.seed),
            repeats: if train { config.repeats } else { 1 },
            round: config.repeat_round,
            batch_size: options.batch_size,
            micro_batch: options.micro_batch.min(options.batch_size),
            drop_last: train && config.drop_last,
        };
        ensure!(
            order.images(dataset.len()) > 0,
            "the {} images of the training split are fewer than the {} of a batch: lower train.batch_size, or set data.drop_last=false",
            dataset.len(),
            options.batch_size
        );
        let pool = pool(config.workers)?;
        let ahead = batches_ahead(&pool, order.micro_batch);
        let shared = Shared { dataset, config: config.clone(), options, skipped: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), order, pool, ahead })
    }

    /// Micro batches of an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.order.batches(self.shared.dataset.len())
    }

    /// Steps of an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.order.steps(self.shared.dataset.len())
    }

    /// Images of the smallest micro batch of an epoch.
    pub fn smallest_batch(&self) -> usize {
        self.order.smallest(self.shared.dataset.len())
    }

    /// How many batches at most are being made or waiting at any time.
    pub fn ahead(&self) -> usize {
        self.ahead
    }

    /// The data.
    pub fn dataset(&self) -> &ImageFolder {
        &self.shared.dataset
    }

    /// Starts `epoch` at its micro batch `first_batch` (0: from the beginning; a resumed run: where it stopped).
    pub fn epoch(&self, epoch: usize, first_batch: usize) -> ClassEpoch<'_> {
        let plan = self.order.plan(epoch, self.shared.dataset.len());
        let jobs = plan.into_iter().enumerate().map(|(batch, images)| Job { batch, images });
        let jobs = jobs.skip(first_batch).collect();
        let shared = self.shared.clone();
        let work = move |job: Job| shared.batch(epoch, &job);
        ClassEpoch { batches: Ahead::new(&self.pool, self.ahead, jobs, work) }
    }

    /// Images that could not be read so far, and why, in the order of their names.
    pub fn skipped(&self) -> Vec<(String, String)> {
        let map = self.shared.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        map.iter().map(|(file, reason)| (file.clone(), reason.clone())).collect()
    }
}

/// The batches of one epoch, in order. Dropping it stops the work ahead.
#[derive(Debug)]
pub struct ClassEpoch<'a> {
    batches: Ahead<'a, Job, ClassBatch>,
}

impl ClassEpoch<'_> {
    /// How long the consumer has waited for batches in all.
    pub fn waited(&self) -> Duration {
        self.batches.waited()
    }
}

impl Iterator for ClassEpoch<'_> {
    type Item = Result<ClassBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batches.next()
    }
}

/// An image on its way into a batch.
struct Loaded {
    /// Its place in the epoch.
    place: usize,
    image: RgbImage,
    label: usize,
    name: String,
}

impl Shared {
    /// The batch of a job, or `None` if all of its images were skipped.
    fn batch(&self, epoch: usize, job: &Job) -> Result<Option<ClassBatch>> {
        let loaded: Vec<Option<Loaded>> =
            job.images.par_iter().map(|&(place, image)| self.load(epoch, place, image)).collect::<Result<_>>()?;
        let loaded: Vec<Loaded> = loaded.into_iter().flatten().collect();
        if loaded.is_empty() {
            return Ok(None);
        }
        let side = self.config.size;
        let mut rng = generator(self.options.seed, epoch, job.batch as u64);
        rng.set_stream(BATCH_STREAM);
        let mix = self.options.train.then(|| Mix::draw(&self.config, side, &mut rng)).flatten();
        self.assemble(epoch, &loaded, mix).map(Some)
    }

    fn assemble(&self, epoch: usize, loaded: &[Loaded], mix: Option<Mix>) -> Result<ClassBatch> {
        let (side, count) = (self.config.size as usize, loaded.len());
        let classes = self.dataset.classes().len();
        let normalise = Normalise::new(self.config.mean, self.config.std);
        let images = f32_tensor(&[count as i64, 3, side as i64, side as i64], |data| {
            data.par_chunks_exact_mut(3 * side * side).enumerate().for_each(|(i, planes)| {
                match mix {
                    Some(mix) => {
                        let mut mixed = loaded[i].image.clone();
                        mix.apply(&mut mixed, &loaded[count - 1 - i].image, side);
                        normalise_rows(&mixed, &normalise, planes, side, side);
                    }
                    None => normalise_rows(&loaded[i].image, &normalise, planes, side, side),
                }
                if self.options.train && self.config.erase.probability > 0.0 {
                    let mut rng = generator(self.options.seed, epoch, loaded[i].place as u64);
                    rng.set_stream(ERASE_STREAM);
                    if let Some(window) = erase::window(self.config.size, &self.config.erase, &mut rng) {
                        erase::erase(planes, side, window, &mut rng);
                    }
                }
            });
        })?;

        let mut targets = vec![0f32; count * classes];
        let smoothing = if self.options.train { self.options.label_smoothing } else { 0.0 };
        for (i, row) in targets.chunks_exact_mut(classes).enumerate() {
            let share = mix.map_or(1.0, |mix| mix.share);
            add_target(row, loaded[i].label, share, smoothing);
            if share < 1.0 {
                add_target(row, loaded[count - 1 - i].label, 1.0 - share, smoothing);
            }
        }
        Ok(ClassBatch {
            images,
            targets: Tensor::from_slice(&targets).view([count as i64, classes as i64]),
            labels: loaded.iter().map(|l| l.label).collect(),
            names: loaded.iter().map(|l| l.name.clone()).collect(),
        })
    }

    /// Image `i` for this place of the epoch. `None`: it is unreadable and left out.
    fn load(&self, epoch: usize, place: usize, i: usize) -> Result<Option<Loaded>> {
        let found = if self.options.train { Some(self.read_near(i)?) } else { self.read(i)?.map(|image| (i, image)) };
        let Some((i, image)) = found else { return Ok(None) };
        let image = if self.options.train {
            self.augment(&image, &mut generator(self.options.seed, epoch, place as u64))?
        } else {
            let filter = match self.config.interpolation {
                Interpolation::Bilinear => Filter::Bilinear,
                Interpolation::Bicubic | Interpolation::Random => Filter::Bicubic,
            };
            center(&image, self.config.size, self.config.crop, filter)?
        };
        Ok(Some(Loaded { place, image, label: self.dataset.label(i), name: self.dataset.name(i) }))
    }

    /// Random crop, flip, then RandAugment or colour jitter: timm's `transforms_imagenet_train`.
    fn augment(&self, image: &RgbImage, rng: &mut ChaCha8Rng) -> Result<RgbImage> {
        let config = &self.config;
        let window = random_window(image.dimensions(), config.scale, config.ratio, rng);
        let filter = self.filter(rng);
        let mut image = crop_resize(image, window, (config.size, config.size), filter)?;
        if rng.random_bool(config.flip) {
            imageops::flip_horizontal_in_place(&mut image);
        }
        if let Some(rand_augment) = &config.rand_augment {
            let fill = config.mean.map(|mean| (255.0 * f64::from(mean)).round_ties_even().min(255.0) as u8);
            for op in rand_augment::draw(rand_augment, rng) {
                let filter = self.filter(rng);
                op.apply(&mut image, filter, fill);
            }
        }
        if config.color_jitter > 0.0 && (config.rand_augment.is_none() || config.force_color_jitter) {
            for op in color_jitter::draw(config.color_jitter, rng) {
                op.apply(&mut image, filter, [0; 3]);
            }
        }
        Ok(image)
    }

    fn filter(&self, rng: &mut ChaCha8Rng) -> Filter {
        match self.config.interpolation {
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
            Interpolation::Random if rng.random() => Filter::Bilinear,
            Interpolation::Random => Filter::Bicubic,
        }
    }

    /// Image `i`, or the next one that can be read, with its number.
    fn read_near(&self, i: usize) -> Result<(usize, RgbImage)> {
        let images = self.dataset.len();
        for step in 0..images.min(MOST_REPLACEMENTS) {
            let i = (i + step) % images;
            if let Some(image) = self.read(i)? {
                return Ok((i, image));
            }
        }
        bail!(
            "image {} and the {} after it could not be read; the first reason: {}",
            self.dataset.name(i),
            images.min(MOST_REPLACEMENTS) - 1,
            self.skipped
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&self.dataset.name(i))
                .map_or("unknown", String::as_str)
        )
    }

    /// Decodes image `i`. `None`: it cannot be read, which is on record now.
    fn read(&self, i: usize) -> Result<Option<RgbImage>> {
        match self.dataset.image(i, self.config.exif) {
            Ok(image) => Ok(Some(image)),
            Err(error) if self.config.on_error == OnError::Stop => {
                Err(error.context("data.on_error is `stop`; `skip` leaves unreadable images out"))
            }
            Err(error) => {
                let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
                skipped.entry(self.dataset.name(i)).or_insert_with(|| format!("{error:#}"));
                Ok(None)
            }
        }
    }
}
