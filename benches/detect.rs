//! Suppression, RoIAlign and mask targets at the sizes of Mask R-CNN on COCO. The figures of torchvision beside them
//! are of tests/reference/time_ops.py.

use criterion::{criterion_group, criterion_main, Criterion};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use vigdet::data::{AffineMap, Mask};
use vigdet::detect::boxes::Box4;
use vigdet::detect::nms::batched_nms;
use vigdet::detect::roi_align::{Roi, RoiAlign};
use vigdet_coco::rle::Rle;
use vigdet_coco::types::Segmentation;

/// Boxes anywhere in an image of 800 × 1280 pixels, 8 to 400 pixels a side.
fn boxes(count: usize) -> Vec<Box4> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    (0..count)
        .map(|_| {
            let mut side = || 8.0 * 50f32.powf(rng.random());
            let (w, h) = (side(), side());
            let (x, y) = (rng.random_range(0.0..1280.0 - w), rng.random_range(0.0..800.0 - h));
            [x, y, x + w, y + h]
        })
        .collect()
}

fn suppression(c: &mut Criterion) {
    let boxes = boxes(20_000);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let scores: Vec<f32> = (0..boxes.len()).map(|_| rng.random()).collect();
    let labels = vec![0; boxes.len()];
    c.bench_function("nms of 20,000 boxes", |b| b.iter(|| batched_nms(&boxes, &scores, &labels, 0.5)));
}

fn pooling(c: &mut Criterion) {
    let rois: Vec<Roi> = boxes(1000).into_iter().map(|b| (0, b)).collect();
    let map = Tensor::randn([1, 256, 200, 320], (Kind::Float, Device::Cpu));
    let map = map.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]).set_requires_grad(true);
    let align = RoiAlign { size: 7, sampling_ratio: 2, aligned: true };
    let mut group = c.benchmark_group("RoIAlign of 1,000 regions, 7×7, 256 channels");
    group.sample_size(10);
    group.bench_function("forward", |b| b.iter(|| tch::no_grad(|| align.pool(&map, &rois, 0.25))));
    let weights = Tensor::randn([1000, 256, 7, 7], (Kind::Float, Device::Cpu));
    group.bench_function("forward and backward", |b| {
        b.iter(|| (align.pool(&map, &rois, 0.25) * &weights).sum(Kind::Float).backward())
    });
}

/// Targets of 128 regions of one object of a large image, which is annotated as runs with a ragged border.
fn mask_targets(c: &mut Criterion) {
    let (height, width) = (3000u32, 4000u32);
    let inside = |x: u32, y: u32| {
        let (dx, dy) = (f64::from(x) - 2000.0, f64::from(y) - 1500.0);
        u8::from(dx.hypot(dy) < 1200.0 + 40.0 * (dy / 17.0).sin() + 30.0 * (dx / 5.0).cos())
    };
    let pixels: Vec<u8> = (0..width).flat_map(|x| (0..height).map(move |y| inside(x, y))).collect();
    let runs = Segmentation::Rle(Rle::from_columns(height, width, &pixels).unwrap());
    let mut mask = Mask::new(&runs, height, width).unwrap();
    let scale = 800.0 / f64::from(height);
    mask.change(&AffineMap::scale(scale, scale));
    let regions: Vec<Box4> = (0..128).map(|i| i as f32).map(|i| [200.0 + i, 80.0 + i, 860.0 - i, 730.0 - i]).collect();
    let mut group = c.benchmark_group("mask targets of 128 regions, 28×28");
    group.bench_function("raster of runs", |b| b.iter(|| regions.iter().map(|r| mask.raster(r, 28)[0]).sum::<f32>()));
    group.bench_function("pooled", |b| {
        b.iter(|| {
            let drawn = mask.draw();
            regions.iter().map(|r| drawn.pooled(r, 28, (800, 1067))[0]).sum::<f32>()
        })
    });
}

criterion_group!(benches, suppression, pooling, mask_targets);
criterion_main!(benches);
