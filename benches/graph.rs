//! The graph and what stands on it, each beside the plain tensor path (`backbone.graph = "dense"`): neighbours,
//! aggregation, backbones, a training step. Random weights; sizes are those of Pyramid ViG-S on an image of 800 × 1280
//! pixels and of batches of 224 × 224.
//!
//!     cargo bench --bench graph                    # minutes: the dense path on the large image takes seconds a time
//!     cargo bench --bench graph -- neighbours      # one group

use criterion::{criterion_group, criterion_main, BenchmarkGroup, Criterion};
use tch::{nn, no_grad, Device, Kind, Tensor};
use vigdet::allocator;
use vigdet::backbone::{self, Pass};
use vigdet::config::{BackboneConfig, RelativeKind, Search};
use vigdet::graph::aggregate::with_max_relative;
use vigdet::graph::knn::Neighbours;
use vigdet::graph::relative::RelativePosition;

const BOTH: [(&str, Search); 2] = [("fused", Search::Fused), ("dense", Search::Dense)];

/// (name, channels, height, width, pooling, native grid, dilation) of a stage of Pyramid ViG-S at 800 × 1280.
const STAGES: [(&str, i64, i64, i64, i64, usize, usize); 4] = [
    ("stage 1: 64,000 × 4,000", 80, 200, 320, 4, 56, 1),
    ("stage 2: 16,000 × 4,000", 160, 100, 160, 2, 28, 1),
    ("stage 3: 4,000 × 4,000", 400, 50, 80, 1, 14, 2),
    ("stage 4: 1,000 × 1,000", 640, 25, 40, 1, 7, 3),
];

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, criterion::measurement::WallTime> {
    allocator::keep_freed();
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(std::time::Duration::from_secs(1));
    group
}

fn maps(channels: i64, height: i64, width: i64) -> Tensor {
    let rows = Tensor::randn([1, height, width, channels], (Kind::Float, Device::Cpu));
    rows.permute([0, 3, 1, 2])
}

fn pooled(x: &Tensor, by: i64) -> Tensor {
    let (b, c, h, w) = x.size4().expect("four dimensions");
    let y = x.avg_pool2d([by, by], [by, by], [0, 0], false, true, None);
    y.permute([0, 2, 3, 1]).contiguous().view([b, h / by, w / by, c]).permute([0, 3, 1, 2])
}

fn neighbours(c: &mut Criterion) {
    let mut group = group(c, "neighbours");
    for (name, channels, h, w, by, grid, dilation) in STAGES {
        let x = maps(channels, h, w);
        let y = pooled(&x, by);
        let position = RelativePosition::new(channels as usize, grid, by as usize, RelativeKind::Published)
            .expect("a stage of Pyramid ViG");
        for (how, search) in BOTH.into_iter().chain([("chunked", Search::Chunked)]) {
            let neighbours = Neighbours { k: 9, dilation, search };
            group.bench_function(format!("{name}, {how}"), |b| {
                b.iter(|| neighbours.find(&x, &y, Some(&position)).expect("neighbours"))
            });
        }
    }
}

fn aggregation(c: &mut Criterion) {
    let mut group = group(c, "max-relative aggregation");
    let (n, m, channels, k) = (64_000, 4_000, 80, 9);
    let options = (Kind::Float, Device::Cpu);
    let (x, y) = (Tensor::randn([1, n, channels], options), Tensor::randn([1, m, channels], options));
    let edges = Tensor::randint(m, [1, n, k], (Kind::Int64, Device::Cpu));
    for (how, search) in BOTH {
        group.bench_function(format!("forward, {how}"), |b| {
            b.iter(|| no_grad(|| with_max_relative(&x, &y, &edges, search).expect("features")))
        });
        let (x, y) = (x.copy().set_requires_grad(true), y.copy().set_requires_grad(true));
        group.bench_function(format!("forward and backward, {how}"), |b| {
            b.iter(|| with_max_relative(&x, &y, &edges, search).expect("features").sum(Kind::Float).backward())
        });
    }
}

fn backbones(c: &mut Criterion) {
    let mut group = group(c, "backbone");
    for (name, images, height, width) in [("vig_ti", 8, 224, 224), ("pvig_s", 8, 224, 224), ("pvig_s", 1, 800, 1280)] {
        for (how, graph) in BOTH {
            let config = BackboneConfig { name: name.into(), graph, drop_path: 0.0, ..BackboneConfig::default() };
            let store = nn::VarStore::new(Device::Cpu);
            let model = backbone::build(&store.root(), &config).expect("a backbone");
            let x = Tensor::randn([images, 3, height, width], (Kind::Float, Device::Cpu));
            group.bench_function(format!("{name} {images}×{height}×{width} forward, {how}"), |b| {
                b.iter(|| no_grad(|| model.forward(&x, &mut Pass::inference()).expect("maps")))
            });
            if (name, height) == ("pvig_s", 224) {
                group.bench_function(format!("{name} {images}×{height}×{width} training step, {how}"), |b| {
                    b.iter(|| {
                        let maps = model.forward(&x, &mut Pass::training(0, 0)).expect("maps");
                        maps.iter().map(|map| map.mean(Kind::Float)).sum::<Tensor>().backward();
                    })
                });
            }
        }
    }
}

criterion_group!(benches, neighbours, aggregation, backbones);
criterion_main!(benches);
