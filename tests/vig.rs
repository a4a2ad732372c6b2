//! Backbones against numbers from PyTorch: `tests/fixtures/vig/make.py` says what they are and how they are made.

use std::collections::HashMap;
use std::path::Path;

use tch::{nn, Device, Kind, Tensor};
use vigdet::backbone::Classifier;
use vigdet::config::BackboneConfig;
use vigdet::graph::knn::Search;
use vigdet::graph::GraphTrace;

/// Stage maps and logits: largest difference over the largest value.
const MAPS: f64 = 1e-4;
/// Gradients: norm of the difference over the norm.
const GRADIENTS: f64 = 1e-3;
/// How much farther a neighbour may be than the one that belongs at its place.
const NEAR: f64 = 2e-5;

struct Fixture {
    tensors: HashMap<String, Tensor>,
    config: BackboneConfig,
}

fn wave(shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    Tensor::arange(count, (Kind::Double, Device::Cpu)).sin().to_kind(Kind::Float).view(shape)
}

fn relative_error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]);
    (got - expected).abs().max().double_value(&[]) / scale
}

impl Fixture {
    fn open(name: &str, config: BackboneConfig) -> Self {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/vig/{name}.safetensors"));
        let tensors = Tensor::read_safetensors(&path).unwrap().into_iter().collect();
        Self { tensors, config: BackboneConfig { name: "pvig_ti".into(), drop_path: 0.0, ..config } }
    }

    fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture lacks {name}"))
    }

    /// The model with the fixture's weights.
    fn model(&self, search: Search) -> (nn::VarStore, Classifier) {
        let vs = nn::VarStore::new(Device::Cpu);
        let config = BackboneConfig { graph: search, ..self.config.clone() };
        let model = Classifier::new(&vs.root(), &config, 3).unwrap();
        for (name, variable) in vs.variables() {
            let mut variable = variable.detach();
            match name.as_str() {
                "pos_embed" => variable.copy_(&(wave(&variable.size()) * 0.2)),
                "prediction.0.weight" => variable.copy_(&(wave(&variable.size()) * 0.4)),
                _ => variable.copy_(self.get(&format!("weights.{name}"))),
            }
        }
        (vs, model)
    }

    fn images(&self, size: &str) -> Tensor {
        (self.get(&format!("{size}.images")).to_kind(Kind::Float) - 128) / 64
    }

    fn edges(&self, prefix: &str) -> Vec<Tensor> {
        let edges = |i: usize| self.tensors.get(&format!("{prefix}.edges.{i}"));
        (0..).map_while(edges).map(|e| e.to_kind(Kind::Int64)).collect()
    }

    /// Maps, logits and searches at one size, neighbours given.
    fn check_forward(&self, size: &str, search: Search) {
        let (_, model) = self.model(search);
        let mut trace = GraphTrace::with_edges(self.edges(size));
        let out = tch::no_grad(|| model.forward(&self.images(size), false, Some(&mut trace))).unwrap();
        for (i, map) in out.maps.iter().enumerate() {
            let error = relative_error(map, self.get(&format!("{size}.map.{i}")));
            assert!(error < MAPS, "{size}, {search:?}: map {i} differs by {error:e}");
        }
        let error = relative_error(&out.logits, self.get(&format!("{size}.logits")));
        assert!(error < MAPS, "{size}, {search:?}: logits differ by {error:e}");
        for (i, block) in trace.blocks.iter().enumerate() {
            let Some(distance) = self.tensors.get(&format!("{size}.distance.{i}")) else { continue };
            let expected = self.get(&format!("{size}.edges.{i}")).to_kind(Kind::Int64);
            assert_eq!(block.edges.size(), expected.size(), "{size}: edges of block {i}");
            let of = |edges: &Tensor| distance.gather(2, edges, false);
            let gap = (of(&block.edges) - of(&expected)).abs().max().double_value(&[]);
            assert!(gap < NEAR, "{size}, {search:?}: neighbours of block {i} are off by {gap:e}");
        }
    }

    /// Loss, gradients and running statistics of one training pass, neighbours given.
    fn check_training(&self, size: &str, search: Search) {
        let (vs, model) = self.model(search);
        let prefix = format!("train.{size}");
        let mut trace = GraphTrace::with_edges(self.edges(&prefix));
        let out = model.forward(&self.images(size), true, Some(&mut trace)).unwrap();
        let parts: Vec<Tensor> =
            out.maps.iter().chain([&out.logits]).map(|m| (m * wave(&m.size())).mean(Kind::Float)).collect();
        let loss = Tensor::stack(&parts, 0).sum(Kind::Float);
        loss.backward();
        let expected = self.get(&format!("{prefix}.loss")).double_value(&[]);
        let found = loss.double_value(&[]);
        assert!((found - expected).abs() < 1e-4, "{search:?}: the loss is {found}, not {expected}");
        let trained: HashMap<String, Tensor> = vs.variables();
        let mut compared = 0;
        for (name, expected) in &self.tensors {
            if let Some(name) = name.strip_prefix(&format!("{prefix}.gradient.")) {
                let gradient = trained[name].grad().flatten(0, -1);
                let gradient =
                    if gradient.size()[0] > 4000 { gradient.slice(0, 0, None, 8) } else { gradient };
                let expected = expected.flatten(0, -1);
                let norm = |t: &Tensor| t.norm().double_value(&[]);
                // A bias before a batch norm has no gradient but for rounding: compare it with the weight's.
                let beside =
                    name.strip_suffix("bias").map(|layer| norm(&trained[&format!("{layer}weight")].grad()));
                let scale = match beside {
                    Some(weight) if norm(&expected) < 1e-4 * weight => weight,
                    _ => norm(&expected),
                };
                let error = norm(&(&gradient - &expected)) / scale;
                assert!(error < GRADIENTS, "{search:?}: gradient of {name} differs by {error:e}");
                compared += 1;
            } else if let Some(name) =
                name.strip_prefix(&format!("{prefix}.")).filter(|n| n.contains("running"))
            {
                let error = relative_error(&trained[name], expected);
                assert!(error < MAPS, "{search:?}: {name} differs by {error:e}");
                compared += 1;
            }
        }
        assert_eq!(compared, trained.len(), "every gradient and statistic is compared");
    }
}

const SEARCHES: [Search; 3] = [Search::Fused, Search::Dense, Search::Chunked];

fn pyramid() -> Fixture {
    Fixture::open(
        "pvig_mr",
        BackboneConfig {
            channels: Some(vec![8, 12, 16, 20]),
            blocks: Some(vec![1, 1, 3, 1]),
            ..Default::default()
        },
    )
}

#[test]
fn pyramid_vig_gives_the_reference_maps_at_any_size() {
    let fixture = pyramid();
    for size in ["70x100", "32x32", "64x64"] {
        for search in SEARCHES {
            fixture.check_forward(size, search);
        }
    }
}

#[test]
fn pyramid_vig_trains_as_the_reference_does() {
    let fixture = pyramid();
    for search in SEARCHES {
        fixture.check_training("64x64", search);
    }
}
