//! Batches of images with the class of each: what a classifier trains on and is tested on.

use std::io::Write;

use anyhow::{ensure, Context, Result};
use image::{imageops, RgbImage};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::Tensor;

use super::color_jitter;
use super::crop::{center, crop_resize, random_window, Filter};
use super::erase;
use super::mix::{add_target, Mix};
use super::rand_augment;
use crate::config::{ClassifyDataConfig, Interpolation};
use crate::data::feed::{Feed, Job, Reader, Source};
use crate::data::image_folder::ImageFolder;
use crate::data::order::{generator, Grouping, Order, Slot};
use crate::data::resize::{normalise_rows, Normalise};
use crate::nn::memory::filled;

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

/// Decodes, crops, augments, mixes and normalises on its own threads (see [`Feed`]).
pub type ClassLoader = Feed<FolderSource>;

/// A split on its way to batches.
#[derive(Debug)]
pub struct FolderSource {
    dataset: ImageFolder,
    config: ClassifyDataConfig,
    options: ClassLoaderOptions,
    reader: Reader,
}

impl ClassLoader {
    /// Starts `config.workers` threads (0: one per core).
    ///
    /// # Errors
    /// A batch size of 0, an epoch without a single step, threads that cannot be started.
    pub fn new(dataset: ImageFolder, config: &ClassifyDataConfig, options: ClassLoaderOptions) -> Result<Self> {
        ensure!(options.batch_size > 0, "a batch must have at least one image");
        let train = options.train;
        let order = Order {
            batch_size: options.batch_size,
            micro_batch: options.micro_batch.min(options.batch_size),
            shuffle: train.then_some(options.seed),
            grouping: Grouping::Dealt,
            repeats: if train { config.repeats } else { 1 },
            round: config.repeat_round,
            drop_last: train && config.drop_last,
        };
        ensure!(
            order.images(dataset.len()) > 0,
            "the {} images of the training split are fewer than the {} of a batch: lower train.batch_size, or set \
             data.drop_last=false",
            dataset.len(),
            options.batch_size
        );
        let reader = Reader::new(config.on_error);
        Self::start(FolderSource { dataset, config: config.clone(), options, reader }, order, config.workers)
    }

    /// The data.
    pub fn dataset(&self) -> &ImageFolder {
        &self.source().dataset
    }
}

/// An image on its way into a batch.
struct Loaded {
    /// Its number in the epoch.
    at: usize,
    image: RgbImage,
    label: usize,
    name: String,
}

/// An image as a classifier is tested on it, normalised: its central crop, float32 `[1, 3, size, size]`.
///
/// # Errors
/// An image without pixels; no memory.
pub fn prepare(image: &RgbImage, config: &ClassifyDataConfig) -> Result<Tensor> {
    let (crop, side) = (central(image, config)?, config.size as usize);
    let normalise = Normalise::new(config.mean, config.std);
    let shape = [1, 3, side as i64, side as i64];
    filled(&shape, |planes: &mut [f32]| normalise_rows(&crop, &normalise, planes, side, side))
}

fn central(image: &RgbImage, config: &ClassifyDataConfig) -> Result<RgbImage> {
    let bilinear = config.interpolation == Interpolation::Bilinear;
    center(image, config.size, config.crop, if bilinear { Filter::Bilinear } else { Filter::Bicubic })
}

impl Source for FolderSource {
    type Batch = ClassBatch;

    fn images(&self) -> usize {
        self.dataset.len()
    }

    fn batch(&self, job: &Job) -> Result<Option<ClassBatch>> {
        let loaded: Vec<Option<Loaded>> =
            job.slots.par_iter().map(|slot| self.load(job.epoch, slot)).collect::<Result<_>>()?;
        let loaded: Vec<Loaded> = loaded.into_iter().flatten().collect();
        if loaded.is_empty() {
            return Ok(None);
        }
        let side = self.config.size;
        let mut rng = generator(self.options.seed, job.epoch, job.batch as u64);
        rng.set_stream(BATCH_STREAM);
        let mix = self.options.train.then(|| Mix::draw(&self.config, side, &mut rng)).flatten();
        self.assemble(job.epoch, &loaded, mix).map(Some)
    }

    fn describe(&self, out: &mut dyn Write) -> Result<()> {
        (0..self.dataset.len())
            .try_for_each(|i| writeln!(out, "{} {}", self.dataset.label(i), self.dataset.name(i)))?;
        Ok(())
    }

    fn reader(&self) -> &Reader {
        &self.reader
    }
}

impl FolderSource {
    fn assemble(&self, epoch: usize, loaded: &[Loaded], mix: Option<Mix>) -> Result<ClassBatch> {
        let (side, count) = (self.config.size as usize, loaded.len());
        let classes = self.dataset.classes().len();
        let normalise = Normalise::new(self.config.mean, self.config.std);
        let images = filled(&[count as i64, 3, side as i64, side as i64], |data: &mut [f32]| {
            data.par_chunks_exact_mut(3 * side * side).enumerate().for_each(|(i, planes)| {
                let mixed = mix.map(|mix| {
                    let mut mixed = loaded[i].image.clone();
                    mix.apply(&mut mixed, &loaded[count - 1 - i].image, side);
                    mixed
                });
                normalise_rows(mixed.as_ref().unwrap_or(&loaded[i].image), &normalise, planes, side, side);
                if self.options.train && self.config.erase.probability > 0.0 {
                    let mut rng = generator(self.options.seed, epoch, loaded[i].at as u64);
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
            let fraction = mix.map_or(1.0, |mix| mix.fraction);
            add_target(row, loaded[i].label, fraction, smoothing);
            if fraction < 1.0 {
                add_target(row, loaded[count - 1 - i].label, 1.0 - fraction, smoothing);
            }
        }
        Ok(ClassBatch {
            images,
            targets: Tensor::from_slice(&targets).view([count as i64, classes as i64]),
            labels: loaded.iter().map(|l| l.label).collect(),
            names: loaded.iter().map(|l| l.name.clone()).collect(),
        })
    }

    /// The image of a slot. `None`: it is unreadable and left out.
    fn load(&self, epoch: usize, slot: &Slot) -> Result<Option<Loaded>> {
        let Slot { at, image: i } = *slot;
        let name = |i: usize| self.dataset.name(i);
        let read = |i: usize| self.reader.read(&name(i), || self.dataset.image(i, self.config.exif));
        let found = match self.options.train {
            true => Some(self.reader.read_near(i, self.dataset.len(), name, read)?),
            false => read(i)?.map(|image| (i, image)),
        };
        let Some((i, image)) = found else { return Ok(None) };
        let image = if self.options.train {
            self.augment(&image, &mut generator(self.options.seed, epoch, at as u64))?
        } else {
            central(&image, &self.config).with_context(|| self.dataset.name(i))?
        };
        Ok(Some(Loaded { at, image, label: self.dataset.label(i), name: self.dataset.name(i) }))
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
}
