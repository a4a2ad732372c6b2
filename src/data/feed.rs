//! Batches of a data set, made by worker threads ahead of whoever consumes them.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufWriter, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{bail, Result};
use sha2::{Digest, Sha256};

use super::ahead::{batches_ahead, caught, pool, Ahead};
use super::order::{Order, Slot};
use crate::config::OnError;

/// In training an unreadable image is replaced by the next one that can be read, looking at most so far.
const MOST_REPLACEMENTS: usize = 100;

/// What makes a data set's images into batches: the part of a [`Feed`] that detectors and classifiers do not share.
pub trait Source: Send + Sync + 'static {
    /// What goes through the network at once.
    type Batch: Send + 'static;

    /// Number of images.
    fn images(&self) -> usize;

    /// Whether image `i` is taller than wide, for [`super::order::Grouping::ByAspect`].
    fn is_tall(&self, _i: usize) -> bool {
        false
    }

    /// Makes a batch; `None`: none of its images can be read.
    ///
    /// # Errors
    /// An image that cannot be read where that ends the run, or no memory.
    fn batch(&self, job: &Job) -> Result<Option<Self::Batch>>;

    /// Writes which images there are and what they are of: two machines whose data is the same write the same.
    ///
    /// # Errors
    /// Those of `out`.
    fn describe(&self, out: &mut dyn Write) -> Result<()>;

    /// What reads the images.
    fn reader(&self) -> &Reader;
}

/// A batch to make.
#[derive(Debug)]
pub struct Job {
    /// The epoch.
    pub epoch: usize,
    /// Its number in the epoch.
    pub batch: usize,
    /// Whether strong augmentation, which ends before the training does, is on in this epoch.
    pub strong: bool,
    /// The images.
    pub slots: Vec<Slot>,
}

/// Things to be known of images, each image once: file names and words, in the order of the names.
#[derive(Debug, Default)]
pub struct Remarks(Mutex<BTreeMap<String, String>>);

impl Remarks {
    /// Puts a remark on record, unless there is one on this file.
    pub fn add(&self, file: &str, text: impl FnOnce() -> String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(file.to_string()).or_insert_with(text);
    }

    /// All so far.
    pub fn list(&self) -> Vec<(String, String)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(file, text)| (file.clone(), text.clone())).collect()
    }
}

/// Reads images, and decides what one that cannot be read does to the run.
#[derive(Debug)]
pub struct Reader {
    on_error: OnError,
    /// Images that could not be read, and why.
    pub unreadable: Remarks,
    /// Images whose size is not what the annotation file says, and what to know of it.
    pub resized: Remarks,
}

impl Reader {
    /// None was read so far.
    pub fn new(on_error: OnError) -> Self {
        Self { on_error, unreadable: Remarks::default(), resized: Remarks::default() }
    }

    /// What `decode` makes of a file. `None`: it cannot be read, which is on record now. A decoder that panics has met
    /// a file that it cannot read.
    ///
    /// # Errors
    /// If it cannot be read and `data.on_error` is `stop`.
    pub fn read<T>(&self, file: &str, decode: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        match caught(|| format!("decoding {file}"), decode) {
            Ok(image) => Ok(Some(image)),
            Err(error) if self.on_error == OnError::Stop => {
                Err(error.context("data.on_error is `stop`; `skip` leaves unreadable images out"))
            }
            Err(error) => {
                self.unreadable.add(file, || format!("{error:#}"));
                Ok(None)
            }
        }
    }

    /// Image `first` of `images`, or the next one that `read` can read, with its number. `name` gives an image's file.
    ///
    /// # Errors
    /// If there is none far and wide.
    pub fn read_near<T>(
        &self,
        first: usize,
        images: usize,
        name: impl Fn(usize) -> String,
        read: impl Fn(usize) -> Result<Option<T>>,
    ) -> Result<(usize, T)> {
        for step in 0..images.min(MOST_REPLACEMENTS) {
            let i = (first + step) % images;
            if let Some(image) = read(i)? {
                return Ok((i, image));
            }
        }
        let name = name(first);
        let reasons = self.unreadable.list();
        let reason = reasons.iter().find(|(file, _)| *file == name).map_or("unknown", |(_, reason)| reason);
        bail!(
            "image {name} and the {} after it could not be read; the first reason: {reason}",
            images.min(MOST_REPLACEMENTS) - 1,
        )
    }
}

/// Decodes, transforms and collates on its own threads.
///
/// The batches of an epoch, and every pixel in them, depend on the data, the config, the seed and the epoch's number
/// only: not on the number of threads, nor on where an epoch is entered. Memory is bounded: at most [`Feed::ahead`]
/// batches are decoded or waiting.
#[derive(Debug)]
pub struct Feed<S> {
    source: Arc<S>,
    order: Order,
    pool: rayon::ThreadPool,
    ahead: usize,
    share: Share,
}

/// Which of the batches of each step a feed makes: every `of`-th from number `first` on.
#[derive(Clone, Copy, Debug)]
struct Share {
    first: usize,
    of: usize,
    /// Batches of a step.
    step: usize,
}

impl<S: Source> Feed<S> {
    /// Starts `workers` threads (0: one per core).
    ///
    /// # Errors
    /// A batch of no images, threads that cannot be started.
    pub fn start(source: S, order: Order, workers: usize) -> Result<Self> {
        if order.batch_size == 0 || order.micro_batch == 0 {
            bail!("a batch must have at least one image");
        }
        let pool = pool(workers)?;
        let ahead = batches_ahead(&pool, order.micro_batch);
        Ok(Self { source: Arc::new(source), order, pool, ahead, share: Share { first: 0, of: 1, step: 1 } })
    }

    /// What makes the batches.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// SHA-256 of which images there are and what they are of; their pixels are not read.
    ///
    /// # Errors
    /// If the source cannot be written down.
    pub fn digest(&self) -> Result<String> {
        // JSON comes in pieces of a few bytes.
        let mut digest = BufWriter::new(Sha256::new());
        self.source.describe(&mut digest)?;
        Ok(format!("{:x}", digest.into_inner()?.finalize()))
    }

    /// Batches of one epoch, the last ones perhaps smaller. (In evaluation, unreadable images may leave fewer.)
    pub fn batches_per_epoch(&self) -> usize {
        self.order.batches(self.source.images())
    }

    /// Images of the smallest batch of an epoch whose steps are dealt.
    pub fn smallest_batch(&self) -> usize {
        self.order.smallest(self.source.images())
    }

    /// How many batches at most are being made or waiting at any time.
    pub fn ahead(&self) -> usize {
        self.ahead
    }

    /// Keeps at least so many batches ahead, for whoever takes several at a time.
    pub fn keep_ahead(&mut self, batches: usize) {
        self.ahead = self.ahead.max(batches);
    }

    /// Makes only a share of the batches, for one of `of` processes that divide each step of `step` batches: numbers
    /// `first`, `first` + `of`, … of every step. (Where each step's images are dealt to its batches, the views of an
    /// image then go to different processes, as DeiT's `RASampler` deals them.)
    pub fn take_share(&mut self, first: usize, of: usize, step: usize) {
        self.share = Share { first, of, step };
    }

    /// Enters `epoch` at its batch `first_batch` (0: from the beginning; a resumed run: where it stopped), with strong
    /// augmentation or without.
    pub fn epoch(&self, epoch: usize, first_batch: usize, strong: bool) -> Epoch<'_, S> {
        let Share { first, of, step } = self.share;
        self.epoch_where(epoch, first_batch, strong, |batch| of == 1 || batch % step % of == first)
    }

    /// As [`Feed::epoch`], but only those batches whose numbers are wanted.
    pub fn epoch_where(
        &self,
        epoch: usize,
        first_batch: usize,
        strong: bool,
        wanted: impl Fn(usize) -> bool,
    ) -> Epoch<'_, S> {
        let plan = self.order.plan(epoch, self.source.images(), |i| self.source.is_tall(i));
        let jobs = plan.into_iter().enumerate().map(|(batch, slots)| Job { epoch, batch, strong, slots });
        let jobs: VecDeque<Job> = jobs.skip(first_batch).filter(|job| wanted(job.batch)).collect();
        let source = self.source.clone();
        let work = move |job: Job| Ok(source.batch(&job)?.map(|batch| (job.batch, batch)));
        Epoch { batches: Ahead::new(&self.pool, self.ahead, jobs, work), number: 0 }
    }

    /// Images that could not be read so far, and why, in the order of their names.
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.source.reader().unreadable.list()
    }

    /// Images seen so far whose size is not the one in the annotation file, and what that means, in the order of their
    /// names.
    pub fn resized(&self) -> Vec<(String, String)> {
        self.source.reader().resized.list()
    }
}

/// The batches of one epoch, in order. Dropping it stops the work ahead.
#[derive(Debug)]
pub struct Epoch<'a, S: Source> {
    batches: Ahead<'a, Job, (usize, S::Batch)>,
    number: usize,
}

impl<S: Source> Epoch<'_, S> {
    /// The number in the epoch of the batch that was given last.
    pub fn number(&self) -> usize {
        self.number
    }

    /// How long the consumer has waited for batches in all.
    pub fn waited(&self) -> Duration {
        self.batches.waited()
    }
}

impl<S: Source> Iterator for Epoch<'_, S> {
    type Item = Result<S::Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.batches.next()?;
        Some(next.map(|(number, batch)| {
            self.number = number;
            batch
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_panics_makes_an_unreadable_image() {
        let skip = Reader::new(OnError::Skip);
        assert!(skip.read::<()>("a.jpg", || panic!("index out of bounds")).unwrap().is_none());
        let (file, reason) = skip.unreadable.list().remove(0);
        assert!(file == "a.jpg" && reason.contains("index out of bounds"), "{file}: {reason}");
        let stop = Reader::new(OnError::Stop);
        let error = stop.read::<()>("a.jpg", || panic!("index out of bounds")).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("data.on_error") && error.contains("decoding a.jpg"), "{error}");
    }

    #[test]
    fn the_next_readable_image_takes_the_place_of_one_that_is_not() {
        let reader = Reader::new(OnError::Skip);
        let read = |broken: &'static [usize]| {
            let name = |i: usize| format!("{i}.png");
            let read =
                |i: usize| reader.read(&name(i), || if broken.contains(&i) { bail!("broken") } else { Ok(i * 10) });
            reader.read_near(4, 5, name, read)
        };
        assert_eq!(read(&[]).unwrap(), (4, 40));
        assert_eq!(read(&[4, 0]).unwrap(), (1, 10));
        let error = read(&[0, 1, 2, 3, 4]).unwrap_err().to_string();
        assert!(error.contains("4.png and the 4 after it") && error.contains("broken"), "{error}");
    }
}
