//! The library that `scripts/gpu_check.py` loads beside Python's torch: vigdet's networks, to be timed and profiled
//! there, and their numbers on a device against those on the CPU. Requests and replies are JSON. See docs/gpu.md.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::{c_char, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{json, Value};
use tch::{nn, Device, Kind, Tensor};
use vigdet::backbone::{self, Backbone, Classifier, Pass};
use vigdet::config::{BackboneConfig, Config, Experiment};
use vigdet::data::{Batch, ImageInfo, Mask, Target};
use vigdet::detect::boxes::iou;
use vigdet::detect::{self, Detections, Detector, Losses};
use vigdet::graph::GraphTrace;
use vigdet::nn::precision::{autocast, full_precision};
use vigdet::nn::{cuda, libtorch};
use vigdet::train::initial::initial;
use vigdet::train::optimizer::Optimizer;
use vigdet::weights::sorted_variables;
use vigdet_coco::types::Segmentation;

/// Classes of the detectors, as many as COCO has.
const CLASSES: i64 = 80;
/// Objects of an image: about COCO's mean.
const OBJECTS: usize = 7;
/// Gradients smaller than this part of the largest are noise: biases before a batch norm have none.
const NOISE: f64 = 1e-5;

/// A batch of images made up from a seed.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Images {
    batch: usize,
    height: i64,
    width: i64,
}

/// A detector by a built-in config and changes to it; an empty name is the backbone of RetinaNet's alone. `device` is
/// -1 for the CPU or the number of a card.
#[derive(Debug, Deserialize)]
struct Network {
    config: String,
    #[serde(default)]
    changes: Vec<String>,
    device: i64,
    images: Images,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Request {
    /// What is loaded, and what is known of the cards.
    About,
    /// A detector to be timed: gives its number.
    Open(Network),
    /// A training step of a detector that was opened: the parts of its loss.
    Train { model: usize, amp: bool },
    /// Detection on its images: how many objects are seen.
    Detect { model: usize, amp: bool },
    /// Forgets it.
    Close { model: usize },
    /// A detector on the device against itself on the CPU, with the CPU's neighbours: losses, gradients, detections.
    /// `device_changes` hold on the device alone.
    CompareDetector {
        #[serde(flatten)]
        network: Network,
        amp: bool,
        #[serde(default)]
        device_changes: Vec<String>,
    },
    /// The same of a classifier: its maps, its scores, their gradients.
    CompareClassifier { backbone: Value, device: i64, images: Images, device_backbone: Value },
}

/// What is timed.
enum Model {
    Detector(Box<dyn Detector>),
    Backbone(Box<dyn Backbone>),
}

/// A network with all that a training step needs.
struct Open {
    model: Model,
    optimizer: Optimizer,
    batch: Batch,
    device: Device,
    steps: u64,
    _store: nn::VarStore,
}

static MODELS: Mutex<BTreeMap<usize, Open>> = Mutex::new(BTreeMap::new());

/// Answers a request. Whatever goes wrong is a reply `{"error": …}`.
///
/// # Safety
/// `request` must be a string that ends with a zero. The reply is to be given back to [`vigdet_free`].
#[no_mangle]
pub unsafe extern "C" fn vigdet_check(request: *const c_char) -> *mut c_char {
    // SAFETY: the caller's promise.
    let request = unsafe { CStr::from_ptr(request) };
    let answer = catch_unwind(AssertUnwindSafe(|| answer(&request.to_string_lossy())));
    let reply = match answer {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => json!({ "error": format!("{error:#}") }),
        Err(panic) => json!({ "error": message(panic.as_ref()) }),
    };
    CString::new(reply.to_string()).unwrap_or_default().into_raw()
}

/// Takes a reply back.
///
/// # Safety
/// `reply` must come from [`vigdet_check`], and is gone afterwards.
#[no_mangle]
pub unsafe extern "C" fn vigdet_free(reply: *mut c_char) {
    // SAFETY: the caller's promise.
    drop(unsafe { CString::from_raw(reply) });
}

/// What a panic says: libtorch's errors, a lack of memory among them.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".into())
}

fn answer(request: &str) -> Result<Value> {
    let mut models = MODELS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = "there is no such model";
    Ok(match serde_json::from_str(request).context("the request")? {
        Request::About => about(),
        Request::Open(network) => {
            let number = models.keys().max().map_or(0, |last| last + 1);
            models.insert(number, Open::new(&network)?);
            json!({ "model": number })
        }
        Request::Train { model, amp } => models.get_mut(&model).context(known)?.train(amp)?,
        Request::Detect { model, amp } => {
            let found = models.get(&model).context(known)?.detect(amp)?;
            json!({ "found": found.iter().map(Detections::len).sum::<usize>() })
        }
        Request::Close { model } => {
            models.remove(&model);
            json!({})
        }
        Request::CompareDetector { network, amp, device_changes } => compare_detector(&network, amp, &device_changes)?,
        Request::CompareClassifier { backbone, device, images, device_backbone } => {
            compare_classifier(backbone, &device_backbone, device_of(device), images)?
        }
    })
}

fn about() -> Value {
    let driver = cuda::driver();
    json!({
        "vigdet": env!("CARGO_PKG_VERSION"),
        "libtorch": libtorch::version(),
        "libtorch_for": libtorch::cuda().map(|cuda| cuda.to_string()),
        "driver": driver.map(|driver| driver.cuda.to_string()).map_err(|missing| format!("{missing:?}")).ok(),
        "cards": driver.map(|driver| driver.cards.iter().map(ToString::to_string).collect::<Vec<_>>()).ok(),
        "free_memory": cuda::free_memory(0),
        "seen_by_libtorch": tch::Cuda::device_count(),
        "cuda_0": cuda::check(0).err().map_or("ok".into(), |error| error.to_string()),
        "threads": tch::get_num_threads(),
    })
}

fn device_of(number: i64) -> Device {
    usize::try_from(number).map_or(Device::Cpu, Device::Cuda)
}

impl Open {
    fn new(network: &Network) -> Result<Self> {
        let device = device_of(network.device);
        let config = config_of(network, &[])?;
        let (store, model) = initial(1, device, |path| model_of(network, &config, path))?;
        let optimizer = Optimizer::new(&sorted_variables(&store), &config.train);
        Ok(Self { model, optimizer, batch: batch(network.images), device, steps: 0, _store: store })
    }

    /// As `train_det` does it: the images come from the CPU's memory.
    fn train(&mut self, amp: bool) -> Result<Value> {
        let batch = to_device(&self.batch, self.device);
        let mut pass = Pass::training(0, self.steps);
        let losses = autocast(amp, self.device, || match &self.model {
            Model::Detector(detector) => detector.losses(&batch, &mut pass),
            Model::Backbone(backbone) => {
                let maps = backbone.forward(&batch.images, &mut pass)?;
                let squares = maps.iter().map(|map| full_precision(map).square().mean(Kind::Float));
                Ok(Losses { parts: squares.map(|part| ("maps", part)).collect() })
            }
        })?;
        losses.total().backward();
        let norm = self.optimizer.gradient_norm();
        // Small steps: it is the time that counts.
        self.optimizer.step(1e-6, 1.0);
        self.steps += 1;
        let parts: BTreeMap<&str, f64> =
            losses.parts.iter().map(|(name, part)| (*name, part.double_value(&[]))).collect();
        Ok(json!({ "losses": parts, "gradient_norm": norm }))
    }

    fn detect(&self, amp: bool) -> Result<Vec<Detections>> {
        let batch = to_device(&self.batch, self.device);
        autocast(amp, self.device, || match &self.model {
            Model::Detector(detector) => detector.detect(&batch),
            Model::Backbone(backbone) => {
                tch::no_grad(|| backbone.forward(&batch.images, &mut Pass::inference())).map(|_| Vec::new())
            }
        })
    }
}

fn model_of(network: &Network, config: &Config, path: &nn::Path) -> Result<Model> {
    Ok(match network.config.is_empty() {
        true => Model::Backbone(backbone::build(path, &config.model.backbone)?),
        false => Model::Detector(detect::build(path, &config.model, CLASSES)?),
    })
}

fn config_of(network: &Network, more: &[String]) -> Result<Config> {
    let name = if network.config.is_empty() { "retinanet_pvig_s_fpn_1x_coco" } else { &network.config };
    Config::load(Path::new(name), &[network.changes.as_slice(), more].concat())
}

/// Images of soft blotches and noise, with objects here and there.
fn batch(Images { batch, height, width }: Images) -> Batch {
    tch::manual_seed(2);
    let b = batch as i64;
    let coarse = Tensor::randn([b, 3, height / 32 + 1, width / 32 + 1], (Kind::Float, Device::Cpu));
    let images = coarse.upsample_bilinear2d([height, width], false, None, None)
        + Tensor::randn([b, 3, height, width], (Kind::Float, Device::Cpu)) * 0.3;
    // Objects of many sizes, within the image.
    let at = |image: usize, object: usize, prime: usize, most: f64| {
        (((image * OBJECTS + object) * prime) % 97) as f64 / 97.0 * most
    };
    let (h, w) = (height as f64, width as f64);
    let target = |image: usize| {
        let mut target = Target::default();
        for object in 0..OBJECTS {
            let side = h * 0.9f64.powi(4 * object as i32) * 0.5;
            let (x, y) = (at(image, object, 31, w - side), at(image, object, 57, h - side));
            let corners = [x, y, x + side, y, x + side, y + side, x, y + 0.8 * side];
            target.boxes.push([x, y, x + side, y + side].map(|v| v as f32));
            target.labels.push((image + 11 * object) as i64 % CLASSES);
            target.crowd.push(false);
            target.masks.push(Mask::new(&Segmentation::Polygons(vec![corners.to_vec()]), height as u32, width as u32));
        }
        target
    };
    let info = |image: usize| ImageInfo {
        id: image as i64,
        file: format!("image {image}"),
        width: width as u32,
        height: height as u32,
    };
    Batch {
        images,
        sizes: vec![(height, width); batch],
        padded: vec![(height, width); batch],
        targets: (0..batch).map(target).collect(),
        infos: (0..batch).map(info).collect(),
    }
}

fn to_device(batch: &Batch, device: Device) -> Batch {
    Batch {
        images: batch.images.to_device(device),
        sizes: batch.sizes.clone(),
        padded: batch.padded.clone(),
        targets: batch.targets.clone(),
        infos: batch.infos.clone(),
    }
}

fn compare_detector(network: &Network, amp: bool, device_changes: &[String]) -> Result<Value> {
    let device = device_of(network.device);
    let (config, other) = (config_of(network, &[])?, config_of(network, device_changes)?);
    let build = |config: &Config, device| initial(1, device, |path| detect::build(path, &config.model, CLASSES));
    let (store, here) = build(&config, Device::Cpu)?;
    let (other_store, there) = build(&other, device)?;
    let images = batch(network.images);
    let moved = to_device(&images, device);

    let mut trace = GraphTrace::default();
    let losses = here.losses(&images, &mut Pass::training(0, 0).with_trace(&mut trace))?;
    losses.total().backward();
    let edges: Vec<Tensor> = trace.blocks.iter().map(|block| block.edges.shallow_clone()).collect();
    let mut other_trace = GraphTrace::with_edges(edges.iter().map(Tensor::shallow_clone).collect());
    let mut pass = Pass::training(0, 0).with_trace(&mut other_trace);
    let other_losses = autocast(amp, device, || there.losses(&moved, &mut pass))?;
    other_losses.total().backward();
    let parts = losses.parts.iter().zip(&other_losses.parts).map(|((name, a), (_, b))| {
        let (a, b) = (a.double_value(&[]), b.double_value(&[]));
        (name.to_string(), json!({ "cpu": a, "device": b, "error": (a - b).abs() / a.abs().max(1e-6) }))
    });
    let kinds: Vec<String> = other_losses.parts.iter().map(|(_, part)| format!("{:?}", part.kind())).collect();
    let seen = |one: Result<Vec<Detections>>| one.map(|found| found.into_iter().next().unwrap_or_default());
    let (a, b) = tch::no_grad(|| (seen(here.detect(&images)), seen(autocast(amp, device, || there.detect(&moved)))));
    Ok(json!({
        "losses": parts.collect::<serde_json::Map<_, _>>(),
        "kinds": kinds,
        "gradients": gradients(&store, &other_store),
        "same_neighbours": same_neighbours(&edges, &other_trace),
        "detections": overlap(&a?, &b?),
    }))
}

fn compare_classifier(backbone: Value, changes: &Value, device: Device, images: Images) -> Result<Value> {
    let config = |more: &Value| -> Result<BackboneConfig> {
        let mut value = backbone.clone();
        if let (Some(all), Some(more)) = (value.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        Ok(serde_json::from_value(value)?)
    };
    let build = |config: BackboneConfig, device| initial(1, device, |path| Classifier::new(path, &config, 10));
    let (store, here) = build(config(&json!({}))?, Device::Cpu)?;
    let (other_store, there) = build(config(changes)?, device)?;
    let images = batch(images).images;
    let mut trace = GraphTrace::default();
    let a = here.forward(&images, &mut Pass::training(0, 0).with_trace(&mut trace))?;
    let edges: Vec<Tensor> = trace.blocks.iter().map(|block| block.edges.shallow_clone()).collect();
    let mut other_trace = GraphTrace::with_edges(edges.iter().map(Tensor::shallow_clone).collect());
    let b = there.forward(&images.to_device(device), &mut Pass::training(0, 0).with_trace(&mut other_trace))?;
    for out in [&a, &b] {
        full_precision(&out.logits).log_softmax(1, Kind::Float).select(1, 3).mean(Kind::Float).backward();
    }
    let maps: Vec<f64> = a.maps.iter().zip(&b.maps).map(|(a, b)| error(a, b)).collect();
    Ok(json!({
        "maps": maps,
        "logits": error(&a.logits, &b.logits),
        "gradients": gradients(&store, &other_store),
        "same_neighbours": same_neighbours(&edges, &other_trace),
    }))
}

/// Norm of the difference over the norm, on the CPU.
fn error(expected: &Tensor, found: &Tensor) -> f64 {
    let of = |t: &Tensor| t.detach().to_device(Device::Cpu).to_kind(Kind::Double);
    let (expected, found) = (of(expected), of(found));
    (&found - &expected).norm().double_value(&[]) / expected.norm().double_value(&[]).max(f64::MIN_POSITIVE)
}

/// The errors of all gradients: of all together, and of the worst variable that has more than noise.
fn gradients(store: &nn::VarStore, other: &nn::VarStore) -> Value {
    let others = other.variables();
    let (mut all, mut apart, mut each) = (0.0, 0.0, Vec::new());
    for (name, variable) in sorted_variables(store) {
        let (a, b) = (variable.grad(), others[&name].grad());
        if !a.defined() || !b.defined() {
            continue;
        }
        let (norm, error) = (a.norm().double_value(&[]), error(&a, &b));
        all += norm.powi(2);
        apart += (norm * error).powi(2);
        each.push((name, norm, error));
    }
    let most = each.iter().map(|(_, norm, _)| *norm).fold(0.0, f64::max);
    each.retain(|(_, norm, _)| *norm > NOISE * most);
    each.sort_by(|a, b| b.2.total_cmp(&a.2));
    let worst = each.first().map(|(name, _, error)| json!({ "name": name, "error": error }));
    json!({ "error": (apart / f64::max(all, f64::MIN_POSITIVE)).sqrt(), "worst": worst, "compared": each.len() })
}

/// The part of the neighbours that both searches found; other near-ties may be taken.
fn same_neighbours(edges: &[Tensor], trace: &GraphTrace) -> Option<f64> {
    let same = edges.iter().zip(&trace.blocks).map(|(edges, block)| {
        let found = block.edges.to_device(Device::Cpu);
        edges
            .sort(2, false)
            .0
            .eq_tensor(&found.sort(2, false).0)
            .to_kind(Kind::Float)
            .mean(Kind::Float)
            .double_value(&[])
    });
    let same: Vec<f64> = same.collect();
    (!same.is_empty()).then(|| same.iter().sum::<f64>() / same.len() as f64)
}

/// How many detections both have: of one class, and nearly one box and score.
fn overlap(a: &Detections, b: &Detections) -> Value {
    let twin = |i: usize| {
        (0..b.len()).any(|j| {
            a.labels[i] == b.labels[j]
                && iou(&a.boxes[i], &b.boxes[j]) > 0.9
                && (a.scores[i] - b.scores[j]).abs() < 0.02
        })
    };
    json!({ "cpu": a.len(), "device": b.len(), "same": (0..a.len()).filter(|i| twin(*i)).count() })
}
