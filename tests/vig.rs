//! Backbones against numbers from PyTorch: `tests/fixtures/vig/make.py` says what they are and how they are made.

use std::collections::HashMap;
use std::path::Path;

use tch::{nn, Device, Kind, Tensor};
use vigdet::backbone::{self, Classifier, Pass};
use vigdet::config::{BackboneConfig, GraphConvKind, Search};
use vigdet::graph::GraphTrace;

use common::{device, read_fixture, read_tensors, tolerance};

mod common;

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
    Tensor::arange(count, (Kind::Double, Device::Cpu)).sin().to_kind(Kind::Float).view(shape).to_device(device())
}

/// (images, height, width) of the training pass.
const TRAIN: (i64, i64, i64) = (4, 64, 96);

/// The images of `pixels` in make.py.
fn pixels((images, height, width): (i64, i64, i64)) -> Tensor {
    let shape = [images, 3, height, width];
    let mut state = 1u32;
    let bytes: Vec<f32> = (0..shape.iter().product::<i64>())
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 24) as f32
        })
        .collect();
    ((Tensor::from_slice(&bytes).view(shape) - 128) / 64).to_device(device())
}

fn relative_error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.size(), expected.size());
    let scale = expected.abs().max().double_value(&[]);
    (got - expected).abs().max().double_value(&[]) / scale
}

impl Fixture {
    fn open(name: &str, config: BackboneConfig) -> Self {
        let tensors = read_fixture(&format!("vig/{name}.safetensors"));
        Self { tensors, config: BackboneConfig { drop_path: 0.0, ..config } }
    }

    fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture lacks {name}"))
    }

    /// The model with the fixture's weights.
    fn model(&self, search: Search) -> (nn::VarStore, Classifier) {
        let vs = nn::VarStore::new(device());
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

    fn edges(&self, prefix: &str) -> Vec<Tensor> {
        let edges = |i: usize| self.tensors.get(&format!("{prefix}.edges.{i}"));
        (0..).map_while(edges).map(|e| e.to_kind(Kind::Int64)).collect()
    }

    /// Maps, logits and searches at one size, neighbours given.
    fn check_forward(&self, batch: (i64, i64, i64), search: Search) {
        let size = format!("{}x{}", batch.1, batch.2);
        let (_, model) = self.model(search);
        let mut trace = GraphTrace::with_edges(self.edges(&size));
        let out =
            tch::no_grad(|| model.forward(&pixels(batch), &mut Pass::inference().with_trace(&mut trace))).unwrap();
        for (i, map) in out.maps.iter().enumerate() {
            let error = relative_error(map, self.get(&format!("{size}.map.{i}")));
            assert!(error < tolerance(MAPS), "{size}, {search:?}: map {i} differs by {error:e}");
        }
        let error = relative_error(&out.logits, self.get(&format!("{size}.logits")));
        assert!(error < tolerance(MAPS), "{size}, {search:?}: logits differ by {error:e}");
        for (i, block) in trace.blocks.iter().enumerate() {
            let Some(distance) = self.tensors.get(&format!("{size}.distance.{i}")) else { continue };
            let expected = self.get(&format!("{size}.edges.{i}")).to_kind(Kind::Int64);
            assert_eq!(block.edges.size(), expected.size(), "{size}: edges of block {i}");
            let of = |edges: &Tensor| distance.gather(2, edges, false);
            let gap = (of(&block.edges) - of(&expected)).abs().max().double_value(&[]);
            assert!(gap < tolerance(NEAR), "{size}, {search:?}: neighbours of block {i} are off by {gap:e}");
        }
    }

    /// Loss, gradients and running statistics of one training pass, neighbours given.
    fn check_training(&self, search: Search) {
        let (vs, model) = self.model(search);
        let mut trace = GraphTrace::with_edges(self.edges("train"));
        let out = model.forward(&pixels(TRAIN), &mut Pass::training(0, 0).with_trace(&mut trace)).unwrap();
        let parts: Vec<Tensor> =
            out.maps.iter().chain([&out.logits]).map(|m| (m * wave(&m.size())).mean(Kind::Float)).collect();
        let loss = Tensor::stack(&parts, 0).sum(Kind::Float);
        loss.backward();
        let expected = self.get("train.loss").double_value(&[]);
        let found = loss.double_value(&[]);
        assert!((found - expected).abs() < tolerance(1e-4), "{search:?}: the loss is {found}, not {expected}");
        let trained: HashMap<String, Tensor> = vs.variables();
        let mut compared = 0;
        for (name, expected) in &self.tensors {
            if let Some(name) = name.strip_prefix("train.gradient.") {
                let gradient = trained[name].grad().flatten(0, -1);
                let gradient = if gradient.size()[0] > 4000 { gradient.slice(0, 0, None, 8) } else { gradient };
                let expected = expected.flatten(0, -1);
                let norm = |t: &Tensor| t.norm().double_value(&[]);
                // A bias before a batch norm has no gradient but for rounding: compare it with the weight's.
                let beside = name.strip_suffix("bias").map(|layer| norm(&trained[&format!("{layer}weight")].grad()));
                let scale = match beside {
                    Some(weight) if norm(&expected) < 1e-4 * weight => weight,
                    _ => norm(&expected),
                };
                let error = norm(&(&gradient - &expected)) / scale;
                assert!(error < tolerance(GRADIENTS), "{search:?}: gradient of {name} differs by {error:e}");
                compared += 1;
            } else if let Some(name) = name.strip_prefix("train.").filter(|n| n.contains("running")) {
                let error = relative_error(&trained[name], expected);
                assert!(error < tolerance(MAPS), "{search:?}: {name} differs by {error:e}");
                compared += 1;
            }
        }
        assert_eq!(compared, trained.len(), "every gradient and statistic is compared");
    }
}

const SEARCHES: [Search; 3] = [Search::Fused, Search::Dense, Search::Chunked];
/// (images, height, width) of the forward passes.
const SIZES: [(i64, i64, i64); 3] = [(1, 70, 100), (1, 32, 32), (2, 64, 64)];

fn pyramid() -> Fixture {
    Fixture::open(
        "pvig_mr",
        BackboneConfig {
            name: "pvig_ti".into(),
            channels: Some(vec![8, 12, 16, 20]),
            blocks: Some(vec![1, 1, 3, 1]),
            ..Default::default()
        },
    )
}

fn isotropic() -> Fixture {
    Fixture::open(
        "vig_mr",
        BackboneConfig {
            name: "vig_ti".into(),
            channels: Some(vec![16]),
            blocks: Some(vec![5]),
            k: 3,
            ..Default::default()
        },
    )
}

fn with_convolution(name: &str, conv: GraphConvKind) -> Fixture {
    Fixture::open(
        name,
        BackboneConfig {
            name: "pvig_ti".into(),
            channels: Some(vec![8, 8, 8, 12]),
            blocks: Some(vec![1, 1, 1, 1]),
            conv,
            ..Default::default()
        },
    )
}

fn check(fixture: &Fixture) {
    for search in SEARCHES {
        SIZES.into_iter().for_each(|size| fixture.check_forward(size, search));
        fixture.check_training(search);
    }
}

#[test]
fn pyramid_vig_gives_the_reference_maps_at_any_size() {
    let fixture = pyramid();
    for search in SEARCHES {
        SIZES.into_iter().for_each(|size| fixture.check_forward(size, search));
    }
}

#[test]
fn pyramid_vig_trains_as_the_reference_does() {
    let fixture = pyramid();
    for search in SEARCHES {
        fixture.check_training(search);
    }
}

#[test]
fn isotropic_vig_is_the_reference() {
    check(&isotropic());
}

#[test]
fn edge_convolution_is_the_reference() {
    check(&with_convolution("pvig_edge", GraphConvKind::Edge));
}

#[test]
fn graph_isomorphism_is_the_reference() {
    check(&with_convolution("pvig_gin", GraphConvKind::Gin));
}

#[test]
fn graph_sage_is_the_reference() {
    check(&with_convolution("pvig_sage", GraphConvKind::Sage));
}

/// `uniform` of tests/fixtures/resnet/make.py.
fn uniform(shape: &[i64], t: u64) -> Tensor {
    let count = shape.iter().product::<i64>() as u64;
    let value = |i: u64| {
        let hash = (i * 2_654_435_761 + t * 40_503_001) % (1 << 32);
        (hash >> 8) as f64 / f64::from(1 << 24) - 0.5
    };
    Tensor::from_slice(&(0..count).map(value).collect::<Vec<f64>>()).view(shape).to_device(device())
}

#[test]
fn resnets_give_torchvisions_maps_and_gradients() {
    let config = BackboneConfig::default();
    check_formula("resnet/resnet", &["resnet18", "resnet50"], &config, (70, 100), 16);
}

#[test]
fn efficientnet_lites_give_the_packages_maps_and_gradients() {
    let config = BackboneConfig { norm_eps: 1e-3, drop_path: 0.0, ..Default::default() };
    let names = ["efficientnet_lite0", "efficientnet_lite2"];
    check_formula("efficientnet_lite/lite", &names, &config, (70, 101), 4);
}

#[test]
fn greedy_vig_gives_the_authors_maps_and_gradients() {
    check_small("axial/axial", "greedyvig_s", Some([16, 24, 32, 40]), Some([1, 2, 1, 2]));
}

#[test]
fn adapt_vig_gives_the_authors_maps_and_gradients() {
    check_small("axial/axial", "adaptvig_s", Some([16, 24, 32, 40]), Some([1, 2, 1, 2]));
}

#[test]
fn resnext_gives_torchvisions_maps_and_gradients() {
    check_table_10("resnext50_32x4d", None, None);
}

#[test]
fn swin_gives_torchvisions_and_microsofts_maps_and_gradients() {
    check_table_10("swin_t", Some([32, 64, 128, 256]), Some([2; 4]));
}

#[test]
fn pvt_gives_the_authors_maps_and_gradients() {
    check_table_10("pvt_tiny", Some([64, 64, 128, 128]), Some([1, 2, 1, 2]));
}

#[test]
fn poolformer_gives_the_authors_maps_and_gradients() {
    check_table_10("poolformer_s12", Some([16, 24, 32, 40]), Some([1, 2, 1, 2]));
}

#[test]
fn cycle_mlp_gives_the_authors_maps_and_gradients() {
    check_table_10("cyclemlp_b1", Some([16, 24, 32, 40]), Some([1, 2, 1, 2]));
}

fn check_table_10(name: &str, channels: Option<[i64; 4]>, blocks: Option<[i64; 4]>) {
    check_small("table10/table10", name, channels, blocks);
}

/// A small relative of a model, as a classifier and as a detector's backbone: make.py beside the fixture.
fn check_small(fixture: &str, name: &str, channels: Option<[i64; 4]>, blocks: Option<[i64; 4]>) {
    let (channels, blocks) = (channels.map(Vec::from), blocks.map(Vec::from));
    let config = BackboneConfig { name: name.into(), channels, blocks, drop_path: 0.0, ..Default::default() };
    check_formula(fixture, &[name], &config, (224, 224), 128);

    let expected = read(fixture);
    let vs = nn::VarStore::new(device());
    let model = backbone::build(&vs.root(), &config).unwrap();
    fill(&vs);
    let images = (uniform(&[1, 3, 97, 133], 1000) * 4.0).to_kind(Kind::Float);
    let maps = model.forward(&images, &mut Pass::inference()).unwrap();
    let sizes: Vec<(i64, i64)> = maps.iter().map(|map| (map.size()[2], map.size()[3])).collect();
    assert_eq!(model.flops((97, 133), &mut |_| ()), sizes, "{name}");
    for (s, map) in maps.iter().enumerate() {
        assert_eq!(map.size()[1], model.channels()[s], "{name}");
        let map = map.contiguous().flatten(0, -1).slice(0, 0, None, 128);
        let error = relative_error(&map, &expected[&format!("{name}.detector.map.{s}")]);
        assert!(error < tolerance(MAPS), "{name}: map {s} of a detector differs by {error:e}");
    }
}

#[test]
fn frozen_stages_do_not_learn_and_the_others_do() {
    const NETWORK: &[&str] = &["patch_embed.", "network.0.", "network.1.", "network.2."];
    for (name, frozen) in [
        ("swin_t", &["patch_embed.", "layers.0.", "layers.1.blocks."][..]),
        ("pvt_tiny", &["patch_embed1.", "pos_embed1", "block1.", "patch_embed2.", "pos_embed2", "block2."]),
        ("poolformer_s12", NETWORK),
        ("cyclemlp_b1", NETWORK),
        ("greedyvig_s", &["stem.", "backbone.0.", "backbone.1."]),
        ("adaptvig_s", &["stem.", "backbone.0.", "backbone.1."]),
    ] {
        let (channels, blocks) = (Some(vec![64; 4]), Some(vec![1; 4]));
        let config = BackboneConfig { name: name.into(), channels, blocks, frozen_stages: 2, ..Default::default() };
        let vs = nn::VarStore::new(device());
        let model = backbone::build(&vs.root(), &config).unwrap();
        let images = Tensor::ones([2, 3, 32, 64], (Kind::Float, device()));
        let maps = model.forward(&images, &mut Pass::training(0, 0)).unwrap();
        assert_eq!(maps.iter().map(|map| map.requires_grad()).collect::<Vec<_>>()[2..], [true, true], "{name}");
        for (key, value) in vs.variables() {
            let is_frozen = key.contains(".running_") || frozen.iter().any(|prefix| key.starts_with(prefix));
            assert_eq!(value.requires_grad(), !is_frozen, "{name}: {key}");
        }
        if name.starts_with("adaptvig") {
            let odd = BackboneConfig { channels: Some(vec![8, 8, 8, 6]), ..config.clone() };
            let error = backbone::build(&nn::VarStore::new(Device::Cpu).root(), &odd).unwrap_err().to_string();
            assert!(error.contains("multiple of 4 in the last"), "{error}");
        }
        if name.starts_with("pvt") {
            let error = model.forward(&images.narrow(2, 0, 31), &mut Pass::inference()).unwrap_err().to_string();
            assert!(error.contains("31×64"), "{error}");
        }
    }
}

fn read(fixture: &str) -> HashMap<String, Tensor> {
    read_fixture(&format!("{fixture}.safetensors"))
}

/// `fill` of tests/fixtures/resnet/make.py.
fn fill(vs: &nn::VarStore) {
    for (t, (key, variable)) in vigdet::weights::sorted_variables(vs).into_iter().enumerate() {
        let u = uniform(&variable.size(), t as u64);
        let u = match &key {
            _ if variable.dim() > 1 => u * (24.0 / variable.get(0).numel() as f64).sqrt(),
            key if key.ends_with("running_var") => u + 1.0,
            key if key.ends_with("weight") => u / 2.0 + 1.0,
            // tests/fixtures/axial/make.py.
            key if key.ends_with("temperature") => u * 20.0 + 30.0,
            _ => u / 5.0,
        };
        variable.detach().copy_(&u);
    }
}

/// Models with the weights and images of tests/fixtures/resnet/make.py against a fixture, which has every `step`th
/// number of the maps of an image of this (height, width).
fn check_formula(fixture: &str, names: &[&str], config: &BackboneConfig, size: (i64, i64), step: i64) {
    let expected = read(fixture);
    for name in names {
        let mut vs = nn::VarStore::new(device());
        let config = BackboneConfig { name: name.to_string(), ..config.clone() };
        let model = Classifier::new(&vs.root(), &config, 1000).unwrap();
        fill(&vs);
        let images = |shape: &[i64]| uniform(shape, 1000) * 4.0;
        let out = model.forward(&images(&[1, 3, size.0, size.1]).to_kind(Kind::Float), &mut Pass::inference()).unwrap();
        for (s, map) in out.maps.iter().enumerate() {
            let map = map.contiguous().flatten(0, -1).slice(0, 0, None, step);
            let error = relative_error(&map, &expected[&format!("{name}.map.{s}")]);
            assert!(error < tolerance(MAPS), "{name}: map {s} differs by {error:e}");
        }
        let error = relative_error(&out.logits, &expected[&format!("{name}.logits")]);
        assert!(error < tolerance(MAPS), "{name}: logits differ by {error:e}");

        // In float64, where relus near their kink do not go the other way.
        vs.double();
        let out = model.forward(&images(&[4, 3, 64, 64]), &mut Pass::training(0, 0)).unwrap();
        let parts: Vec<Tensor> = (3000..)
            .zip(out.maps.iter().chain([&out.logits]))
            .map(|(t, m)| (m * uniform(&m.size(), t)).mean(Kind::Double))
            .collect();
        Tensor::stack(&parts, 0).sum(Kind::Double).backward();
        for (key, variable) in vs.variables() {
            let Some(expected) = expected.get(&format!("{name}.gradient.{key}")) else {
                assert!(key.contains("running"), "{name}: no gradient of {key} to compare with");
                continue;
            };
            let gradient = variable.grad();
            let [norm, sum] = [0, 1].map(|i| expected.double_value(&[i]));
            let found_sum = (&gradient * uniform(&gradient.size(), 2000)).sum(Kind::Double).double_value(&[]);
            // The gradient of a shift that a norm behind it takes away is 0, but for rounding.
            let scale = norm.max(1e-9);
            let error = (gradient.norm().double_value(&[]) - norm).abs().max((found_sum - sum).abs()) / scale;
            assert!(error < tolerance(GRADIENTS), "{name}: gradient of {key} differs by {error:e}");
        }
    }
}

/// Runs `extract_features`; what it printed, or the error's line.
fn extract(args: &[&str]) -> Result<String, String> {
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_extract_features"))
        .args(args)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    if run.status.success() {
        return Ok(text(&run.stdout));
    }
    let error = text(&run.stderr);
    assert!(error.starts_with("error: ") && error.trim_end().lines().count() == 1, "{error}");
    Err(error)
}

#[test]
fn extract_features_writes_what_the_model_gives() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let fixture = pyramid();
    let (vs, _) = fixture.model(Search::Fused);
    vigdet::weights::save(&vs, Path::new(&at("weights.safetensors")), &Default::default()).unwrap();
    let size = (1, 70, 100);
    let on_cpu = pixels(size).to_device(Device::Cpu);
    Tensor::write_safetensors(&[("images", on_cpu)], at("images.safetensors")).unwrap();
    let (weights, images, out) = (at("weights.safetensors"), at("images.safetensors"), at("out.safetensors"));
    let small = ["--set", "backbone.channels=[8,12,16,20]", "--set", "blocks=[1,1,3,1]"];
    let files = ["pvig_ti", "--weights", &weights, "--input", &images, "--out", &out];
    let all = |more: &[&str]| extract(&[&files[..], &small, more].concat());
    let saved = at("saved.safetensors");
    let printed = all(&["--edges", "--repeat", "2", "--json", "--save", &saved]).unwrap();
    let seconds: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    assert!(seconds["seconds"].as_f64().unwrap() > 0.0);
    let found = read_tensors(Path::new(&out));
    // No near-ties in the fixture at this size: the same neighbours, so the same maps.
    for s in 0..4 {
        let error = relative_error(&found[&format!("stage{}", s + 1)], fixture.get(&format!("70x100.map.{s}")));
        assert!(error < tolerance(MAPS), "map {s} differs by {error:e}");
    }
    assert!(relative_error(&found["logits"], fixture.get("70x100.logits")) < tolerance(MAPS));
    for block in 0..6 {
        let expected = fixture.get(&format!("70x100.edges.{block}")).to_kind(Kind::Int64);
        assert_eq!(found[&format!("edges.{block}")], expected, "block {block}");
    }
    assert_eq!(found.len(), 4 + 1 + 6);
    let saved = read_tensors(Path::new(&saved));
    assert!(vs.variables().iter().all(|(name, value)| saved[name] == *value) && saved.len() == vs.len());
    all(&["--backward", "--json"]).unwrap();

    let with = |name: &str, bytes: &[u8]| {
        std::fs::write(at(name), bytes).unwrap();
        at(name)
    };
    let whole = std::fs::read(&weights).unwrap();
    let cut = with("cut.safetensors", &whole[..whole.len() / 2]);
    let fails = |model: &str, weights: &str, input: &str, more: &[&str]| {
        extract(&[&[model, "--weights", weights, "--input", input, "--out", &out][..], more].concat()).unwrap_err()
    };
    assert!(fails("pvig_ti", &cut, &images, &small).contains("cut off"));
    let text = fails("pvig_ti", &weights, &images, &[]);
    assert!(text.contains("shape") && text.contains("backbone"), "{text}");
    let text = fails("resnet18", &weights, &images, &[]);
    assert!(text.contains("none of its"), "{text}");
    assert!(fails("vgg", &weights, &images, &[]).contains("pvig_s"));
    let text = fails("pvig_ti", &weights, &weights, &small);
    assert!(text.contains("`images`"), "{text}");
    // Half the names of the backbone.
    let half: Vec<(String, Tensor)> = vigdet::weights::sorted_variables(&vs)
        .into_iter()
        .map(|(name, t)| (name.replace("backbone.3.", "backbone.three."), t))
        .collect();
    vigdet::weights::write_tensors(&half, Path::new(&at("half.safetensors")), &Default::default()).unwrap();
    let text = fails("pvig_ti", &at("half.safetensors"), &images, &small);
    assert!(text.contains("backbone.3.") && text.contains("backbone.three."), "{text}");
}

#[test]
fn model_stats_prints_the_papers_figures_beside_its_own() {
    let stats = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_model_stats")).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let rows: serde_json::Value = serde_json::from_str(&stats(&["--json"])).unwrap();
    let rows = rows.as_array().unwrap();
    let row = |table: &str, label: &str| {
        let is = |row: &&serde_json::Value| row["table"].as_str().unwrap().starts_with(table) && row["row"] == label;
        rows.iter().find(is).unwrap_or_else(|| panic!("{table} {label}"))
    };
    let figures = |row: &serde_json::Value| {
        ["parameters_millions", "macs_billions", "top1", "box_ap", "mask_ap"].map(|name| row["paper"][name].as_f64())
    };
    let classifier = row("Table 2", "Pyramid ViG-S");
    assert_eq!(figures(classifier), [Some(27.3), Some(4.6), Some(82.1), None, None]);
    assert_eq!(classifier["parameters"], 27_251_912);
    assert_eq!(classifier["macs"], 4_305_274_880u64 + 242_789_120);
    assert_eq!(classifier["macs_without_distances"], 4_305_274_880u64);
    let detector = row("Table 10: Mask R-CNN", "ResNet-50");
    assert_eq!(figures(detector), [Some(44.2), Some(260.1), None, Some(38.0), Some(34.4)]);
    assert_eq!(rows.iter().filter(|row| figures(row) == [None; 5]).count(), 0);
}
