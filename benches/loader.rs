//! How fast images become batches.
//!
//! `cargo bench --bench loader` measures decoding, resizing and augmenting one image of 640 × 480 pixels.
//! scripts/bench_loader.py measures whole epochs beside torchvision's: it runs this program with `--epoch DATASET
//! SHORT,LONG KIND BATCH WORKERS`; scripts/bench_classify_loader.py likewise with `--classify DATASET SIZE BATCH
//! WORKERS KIND`.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use criterion::Criterion;
use image::RgbImage;
use vigdet::config::{ClassifyDataConfig, DataConfig, ResizeKind, SplitConfig};
use vigdet::data::classify::{ClassLoader, ClassLoaderOptions};
use vigdet::data::{color, decode, prepare, DetectionDataset, ImageFolder, ImageInfo, Loader, LoaderOptions};

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
        ["--classify", data, size, batch, workers, kind] => {
            classify(Path::new(data), size.parse()?, batch.parse()?, workers.parse()?, kind)
        }
        _ => {
            let mut criterion = Criterion::default().configure_from_args();
            steps(&mut criterion)?;
            criterion.final_summary();
            Ok(())
        }
    }
}

/// One training epoch, timed from the first batch that is asked for to the last that is given. Prints images and
/// seconds.
fn epoch(data: &Path, config: &DataConfig, batch_size: usize) -> Result<()> {
    let split = SplitConfig {
        images: "train2017".into(),
        annotations: "annotations/instances_train2017.json".into(),
        limit: None,
    };
    let dataset = Arc::new(DetectionDataset::open(&split, data, true)?);
    let loader = Loader::new(dataset, config, LoaderOptions { batch_size, train: true, seed: 0 })?;
    let start = Instant::now();
    let mut images = 0;
    for batch in loader.epoch(0, 0, true) {
        images += batch?.len();
    }
    println!("{{\"images\": {images}, \"seconds\": {}}}", start.elapsed().as_secs_f64());
    Ok(())
}

/// One epoch of a classifier's training, timed likewise: the ImageNet recipe with Mixup and CutMix (`mix`), without
/// (`plain`), or without but with all of RandAugment's operations carried out (`all`).
fn classify(data: &Path, size: u32, batch_size: usize, workers: usize, kind: &str) -> Result<()> {
    let mut config = ClassifyDataConfig { size, workers, repeats: 1, drop_last: false, ..Default::default() };
    match kind {
        "mix" => {}
        "plain" | "all" => (config.mixup, config.cutmix) = (0.0, 0.0),
        _ => bail!("KIND is plain, mix or all"),
    }
    if let Some(rand_augment) = config.rand_augment.as_mut().filter(|_| kind == "all") {
        rand_augment.probability = 1.0;
    }
    let options =
        ClassLoaderOptions { batch_size, micro_batch: batch_size, train: true, seed: 0, label_smoothing: 0.1 };
    let loader = ClassLoader::new(ImageFolder::open(&config.train, data)?, &config, options)?;
    let start = Instant::now();
    let mut images = 0;
    for batch in loader.epoch(0, 0, true) {
        images += batch?.len();
    }
    println!("{{\"images\": {images}, \"seconds\": {}}}", start.elapsed().as_secs_f64());
    Ok(())
}

fn steps(criterion: &mut Criterion) -> Result<()> {
    let image =
        RgbImage::from_fn(640, 480, |x, y| image::Rgb([(x / 3) as u8, (y / 2) as u8, ((x * y / 97) ^ (x >> 2)) as u8]));
    let mut jpeg = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 90).encode_image(&image)?;
    let mut group = criterion.benchmark_group("loader_640x480");
    group.bench_function("decode_jpeg", |b| b.iter(|| decode::from_bytes(black_box(&jpeg), false)));
    let factors = color::Factors { brightness: 1.1, contrast: 0.9, saturation: 1.2, hue: 0.0 };
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
