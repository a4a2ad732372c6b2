//! How fast images become batches.
//!
//! `cargo bench --bench loader` measures decoding, resizing and augmenting one image of 640 × 480 pixels. scripts/bench_loader.py measures
//! whole epochs beside torchvision's: it runs this program with `--epoch DATASET SHORT,LONG KIND BATCH WORKERS`.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use criterion::Criterion;
use image::RgbImage;
use vigdet::config::{DataConfig, ResizeKind, SplitConfig};
use vigdet::data::{color, decode, prepare, CocoDataset, ImageInfo, Loader, LoaderOptions};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--epoch", data, size, kind, batch, workers] => {
            let (short, long) = size.split_once(',').context("the size is SHORT,LONG")?;
            let resize = match kind {
                "antialias" => ResizeKind::Antialias,
                "bilinear" => ResizeKind::Bilinear,
                _ => bail!("KIND is antialias or bilinear"),
            };
            let config = DataConfig {
                size: [short.parse()?, long.parse()?],
                resize,
                workers: workers.parse()?,
                ..DataConfig::default()
            };
            epoch(Path::new(data), &config, batch.parse()?)
        }
        _ => {
            let mut criterion = Criterion::default().configure_from_args();
            steps(&mut criterion)?;
            criterion.final_summary();
            Ok(())
        }
    }
}

/// One training epoch, timed from the first batch that is asked for to the last that is given. Prints images and seconds.
fn epoch(data: &Path, config: &DataConfig, batch_size: usize) -> Result<()> {
    let split = SplitConfig {
        images: "train2017".into(),
        annotations: "annotations/instances_train2017.json".into(),
        limit: None,
    };
    let dataset = Arc::new(CocoDataset::open(&split, data, true)?);
    let loader = Loader::new(dataset, config, LoaderOptions { batch_size, train: true, seed: 0 })?;
    let start = Instant::now();
    let mut images = 0;
    for batch in loader.epoch(0, 0) {
        images += batch?.len();
    }
    println!("{{\"images\": {images}, \"seconds\": {}}}", start.elapsed().as_secs_f64());
    Ok(())
}

fn steps(criterion: &mut Criterion) -> Result<()> {
    let image = RgbImage::from_fn(640, 480, |x, y| {
        image::Rgb([(x / 3) as u8, (y / 2) as u8, ((x * y / 97) ^ (x >> 2)) as u8])
    });
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 90).encode_image(&image)?;
    let mut group = criterion.benchmark_group("loader_640x480");
    group.bench_function("decode_jpeg", |b| b.iter(|| decode::from_bytes(black_box(&jpeg), false)));
    let factors = color::Factors { brightness: 1.1, contrast: 0.9, saturation: 1.2 };
    group.bench_function("colour", |b| b.iter(|| color::jitter(black_box(&mut image.clone()), &factors)));
    let info = ImageInfo { id: 1, file: "a".into(), width: 640, height: 480 };
    for (name, resize) in [("antialias", ResizeKind::Antialias), ("bilinear", ResizeKind::Bilinear)] {
        let config = DataConfig { resize, ..DataConfig::default() };
        let images = [image.clone()];
        let infos = [info.clone()];
        group.bench_function(format!("resize_normalise_{name}"), |b| {
            b.iter(|| prepare(black_box(&images), &infos, &config))
        });
    }
    group.finish();
    Ok(())
}
