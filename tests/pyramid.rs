//! Feature pyramids and heads against torchvision's numbers (tests/fixtures/detect/make_pyramid.py writes them), and
//! whole state dicts under torchvision's names of today and of its published files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tch::{nn, Tensor};
use vigdet::config::{AnchorConfig, Config, Experiment, FpnConfig, HeadConfig, ModelConfig, P6Source};
use vigdet::detect::dense_head::DenseHead;
use vigdet::detect::fpn::{Coarse, Fpn};
use vigdet::detect::roi_heads::RoiHeads;
use vigdet::detect::rpn::Rpn;
use vigdet::weights::{self, Checkpoint, LoadOptions};

use common::{device, read_tensors, tolerance};

mod common;

const CHANNELS: i64 = 8;
const CLASSES: i64 = 3;

/// The part of the fixture that is of one model.
struct Fixture {
    kind: &'static str,
    tensors: HashMap<String, Tensor>,
    /// Names of the published files, and today's for each.
    older: HashMap<String, String>,
}

impl Fixture {
    fn read(kind: &'static str) -> Self {
        let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/detect/pyramid.safetensors");
        let tensors = read_tensors(&path);
        let metadata = Checkpoint::open(&path).unwrap().metadata();
        let mut older: HashMap<String, HashMap<String, String>> = serde_json::from_str(&metadata["older"]).unwrap();
        Self { kind, tensors, older: older.remove(kind).unwrap() }
    }

    fn tensor(&self, name: &str) -> &Tensor {
        let name = format!("{}.{name}", self.kind);
        self.tensors.get(&name).unwrap_or_else(|| panic!("the fixture lacks {name}"))
    }

    /// `map.0`, `map.1`, … or `level.0`, `level.1`, …: as many as there are.
    fn all(&self, what: &str) -> Vec<&Tensor> {
        (0..).map_while(|i| self.tensors.get(&format!("{}.{what}.{i}", self.kind))).collect()
    }

    /// Puts the model's weights under these names into a store, all of them.
    fn load<'a>(&self, store: &nn::VarStore, names: impl Iterator<Item = (&'a String, &'a String)>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let model: Vec<(String, Tensor)> =
            names.map(|(name, now)| (name.clone(), self.tensor(&format!("weights.{now}")).shallow_clone())).collect();
        weights::write_tensors(&model, &path, &Default::default()).unwrap();
        let options = LoadOptions { complete: true, ..Default::default() };
        let report = Checkpoint::open(&path).unwrap().load_into(store, &options).unwrap();
        assert!(report.unused.is_empty() && report.loaded.len() == model.len(), "{report}");
    }

    fn load_todays(&self, store: &nn::VarStore) {
        self.load(store, self.older.values().map(|now| (now, now)));
    }

    fn assert_levels(&self, fpn: &Fpn) {
        let maps: Vec<Tensor> = self.all("map").into_iter().map(Tensor::shallow_clone).collect();
        let (found, wanted) = (fpn.forward(&maps, false, None), self.all("level"));
        assert_eq!((found.len(), wanted.len()), (5, 5));
        for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            assert_close(found, wanted, &format!("{} level {i}", self.kind));
        }
    }
}

/// Asserts that two tensors differ by at most 1e-5 of the larger's largest value, on the CPU.
fn assert_close(found: &Tensor, wanted: &Tensor, what: &str) {
    assert_eq!(found.size(), wanted.size(), "{what}");
    let scale = wanted.abs().max().double_value(&[]);
    let worst = (found - wanted).abs().max().double_value(&[]);
    assert!(scale > 0.0 && worst <= tolerance(1e-5) * scale, "{what}: off by {worst} of {scale}");
}

fn pyramid() -> FpnConfig {
    FpnConfig { channels: CHANNELS, ..FpnConfig::default() }
}

/// RetinaNet without its body. C5 is as wide as the pyramid: P6 could stand on either.
fn retinanet() -> (nn::VarStore, Fpn, DenseHead) {
    let store = nn::VarStore::new(device());
    let root = store.root();
    let coarse = Coarse::P6P7 { p6: P6Source::P5, relu: true };
    let fpn = Fpn::new(&(&root / "backbone" / "fpn"), &[5, 6, CHANNELS], &pyramid(), coarse).unwrap();
    let config = HeadConfig { convs: 4, channels: CHANNELS, ..HeadConfig::default() };
    let head = DenseHead::new(&(&root / "head"), CHANNELS, 9, CLASSES, &config);
    (store, fpn, head)
}

/// Mask R-CNN without its body.
struct MaskRcnn {
    store: nn::VarStore,
    fpn: Fpn,
    rpn: Rpn,
}

impl MaskRcnn {
    fn new() -> Self {
        let mut config: ModelConfig = Config::preset("mask_rcnn_resnet50_fpn_torchvision", &[]).unwrap().model;
        config.fpn.channels = CHANNELS;
        config.anchors = AnchorConfig { base: 4.0, ..config.anchors };
        config.roi.channels = 6;
        (config.mask_head.convs, config.mask_head.channels) = (2, 8);
        let store = nn::VarStore::new(device());
        let root = store.root();
        let fpn = Fpn::new(&(&root / "backbone" / "fpn"), &[4, 5, 6, 8], &config.fpn, Coarse::Halved);
        let rpn = Rpn::new(&(&root / "rpn"), CHANNELS, &config.anchors, &config.rpn);
        RoiHeads::new(&(&root / "roi_heads"), &config, CLASSES, &[4, 8, 16, 32]);
        Self { store, fpn: fpn.unwrap(), rpn }
    }
}

#[test]
fn retinanets_pyramid_with_p6_from_p5_and_its_head() {
    let fixture = Fixture::read("retinanet_p5");
    let (store, fpn, head) = retinanet();
    fixture.load_todays(&store);
    fixture.assert_levels(&fpn);
    let levels: Vec<Tensor> = fixture.all("level").into_iter().map(Tensor::shallow_clone).collect();
    let said = head.forward(&levels, None);
    let maps: Vec<(i64, i64)> = said.iter().map(|s| s.map).collect();
    assert_eq!(maps, [(7, 8), (4, 5), (3, 3), (2, 2), (1, 1)]);
    let logits: Vec<&Tensor> = said.iter().map(|s| &s.logits).collect();
    let deltas: Vec<&Tensor> = said.iter().map(|s| &s.deltas).collect();
    assert_close(&Tensor::cat(&logits, 1), fixture.tensor("logits"), "logits");
    assert_close(&Tensor::cat(&deltas, 1), fixture.tensor("deltas"), "deltas");
}

#[test]
fn retinanets_pyramid_with_p6_from_c5() {
    let fixture = Fixture::read("retinanet_c5");
    let store = nn::VarStore::new(device());
    let path = store.root() / "backbone" / "fpn";
    let coarse = Coarse::P6P7 { p6: P6Source::C5, relu: true };
    let fpn = Fpn::new(&path, &[5, 6, 12], &pyramid(), coarse).unwrap();
    fixture.load_todays(&store);
    fixture.assert_levels(&fpn);
}

#[test]
fn mask_rcnns_pyramid_and_region_proposal_head() {
    let fixture = Fixture::read("mask_rcnn");
    let model = MaskRcnn::new();
    fixture.load_todays(&model.store);
    fixture.assert_levels(&model.fpn);
    let levels: Vec<Tensor> = fixture.all("level").into_iter().map(Tensor::shallow_clone).collect();
    let said = model.rpn.forward(&levels, (48, 60));
    assert_close(&said.objectness, fixture.tensor("objectness"), "objectness");
    assert_close(&said.deltas, fixture.tensor("deltas"), "deltas");
}

/// Whole state dicts, not single names: nothing is missing, nothing is left over, and every tensor is where today's
/// name would put it.
#[test]
fn the_names_of_torchvisions_published_files_give_the_same_weights() {
    for (kind, store) in [("retinanet_p5", retinanet().0), ("mask_rcnn", MaskRcnn::new().store)] {
        let fixture = Fixture::read(kind);
        let renamed = fixture.older.iter().filter(|(older, now)| older != now).count();
        assert!(renamed >= 20, "{kind}: {renamed} older names");
        fixture.load(&store, fixture.older.iter());
        for (name, variable) in store.variables() {
            let wanted = fixture.tensor(&format!("weights.{name}"));
            assert!(variable.equal(wanted), "{kind}: {name} has other numbers");
        }
    }
}
