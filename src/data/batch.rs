//! Samples to a batch: resize, normalise, pad.

use anyhow::{ensure, Context, Result};
use image::RgbImage;
use rayon::prelude::*;

use super::augment::scale_objects;
use super::resize::{output_size, resize_into, Normalise, Slot};
use super::sample::{Batch, ImageInfo, Sample, Target};
use crate::config::DataConfig;
use crate::nn::memory::filled;

/// Resizes, normalises and pads images that are in memory: a batch for inference, without objects.
///
/// `infos` name the images; their width and height are replaced by the images' own.
pub fn prepare(images: &[RgbImage], infos: &[ImageInfo], config: &DataConfig) -> Result<Batch> {
    ensure!(
        images.len() == infos.len(),
        "{} images with {} names: there must be one for each",
        images.len(),
        infos.len()
    );
    let parts = images.iter().zip(infos).map(|(image, info)| {
        let info = ImageInfo { width: image.width(), height: image.height(), ..info.clone() };
        Part { image, info, target: Target::default(), scale: 1.0 }
    });
    assemble(parts.collect(), config.size_in_test(), config)
}

/// The same settings, with a size in test at which an image of (width, height) pixels fits into a canvas of
/// (height, width).
pub fn fitting(config: &DataConfig, (width, height): (u32, u32), canvas: (i64, i64)) -> DataConfig {
    let size = config.size_in_test();
    let [short, long] = size.map(f64::from);
    let (to_width, to_height) = output_size(width, height, short, long, config.resize);
    let scale = (canvas.0 as f64 / f64::from(to_height)).min(canvas.1 as f64 / f64::from(to_width)).min(1.0);
    let scaled = |side: u32| ((f64::from(side) * scale).floor() as u32).max(1);
    let sides = [scaled(to_width.min(to_height)), scaled(to_width.max(to_height))];
    let test_size = if scale < 1.0 { sides } else { size };
    DataConfig { test_size: Some(test_size), ..config.clone() }
}

/// [`prepare`] with objects, at a size of \[shorter side, most of the longer\] that `scales` multiply, one factor per
/// sample.
pub(super) fn collate(samples: Vec<Sample>, scales: &[f64], size: [u32; 2], config: &DataConfig) -> Result<Batch> {
    let parts = samples.iter().zip(scales).map(|(sample, &scale)| Part {
        image: &sample.image,
        info: sample.info.clone(),
        target: sample.target.clone(),
        scale,
    });
    assemble(parts.collect(), size, config)
}

struct Part<'a> {
    image: &'a RgbImage,
    info: ImageInfo,
    target: Target,
    scale: f64,
}

fn assemble(parts: Vec<Part>, size: [u32; 2], config: &DataConfig) -> Result<Batch> {
    ensure!(!parts.is_empty(), "a batch needs at least one image");
    let [short, long] = size.map(f64::from);
    let sizes: Vec<(u32, u32)> = parts
        .iter()
        .map(|part| {
            let (width, height) = part.image.dimensions();
            ensure!(width > 0 && height > 0, "image {} has no pixels", part.info.file);
            Ok(output_size(width, height, short * part.scale, long * part.scale, config.resize))
        })
        .collect::<Result<_>>()?;
    let padded = |side: fn(&(u32, u32)) -> u32| {
        let most = sizes.iter().map(side).max().unwrap_or(1);
        most.next_multiple_of(config.pad) as usize
    };
    let (columns, rows) = (padded(|s| s.0), padded(|s| s.1));

    let shape = [parts.len() as i64, 3, rows as i64, columns as i64];
    let normalise = Normalise::new(config.mean, config.std);
    let mut resized = Ok(());
    let images = filled(&shape, |data: &mut [f32]| {
        resized = data.par_chunks_exact_mut(3 * rows * columns).zip(&parts).zip(&sizes).try_for_each(
            |((data, part), &size)| {
                resize_into(part.image, size, config.resize, &normalise, Slot { data, rows, columns })
            },
        );
    })
    .ok()
    .with_context(|| {
        format!(
            "there is no memory for {} images of {columns}×{rows} pixels: see data.size and \
        train.micro_batch",
            parts.len()
        )
    })?;
    resized?;

    let mut batch = Batch { images, sizes: Vec::new(), padded: Vec::new(), targets: Vec::new(), infos: Vec::new() };
    for (part, (width, height)) in parts.into_iter().zip(sizes) {
        let mut target = part.target;
        let (from_width, from_height) = part.image.dimensions();
        scale_objects(&mut target, width as f32 / from_width as f32, height as f32 / from_height as f32);
        batch.sizes.push((i64::from(height), i64::from(width)));
        let [rows, columns] = [height, width].map(|side| i64::from(side.next_multiple_of(config.pad)));
        batch.padded.push((rows, columns));
        batch.targets.push(target);
        batch.infos.push(part.info);
    }
    Ok(batch)
}
