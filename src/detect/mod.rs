//! Detectors and their parts.

pub mod anchors;
pub mod assignment;
pub mod atss;
pub mod box_head;
pub mod boxes;
mod candidates;
pub mod dense_head;
pub mod dense_losses;
mod detector;
#[cfg(feature = "onnx")]
mod exported;
pub mod fpn;
pub mod head_conv;
pub mod instance_mask;
pub mod losses;
pub mod mask_head;
pub mod mask_rcnn;
pub mod matcher;
pub mod nms;
pub mod postprocess;
pub mod retinanet;
pub mod roi_align;
pub mod roi_heads;
pub mod rpn;
pub mod sampler;
pub mod select;

use anyhow::Result;
use tch::nn;

use crate::classes::Classes;
use crate::config::{DetectorKind, ModelConfig};

pub use detector::{Detections, Detector, Losses};
#[cfg(feature = "onnx")]
pub use exported::Exported;
pub use instance_mask::InstanceMask;
pub use mask_rcnn::MaskRcnn;
pub use postprocess::{OnnxDetections, OnnxImages, OnnxMasks};
pub use retinanet::RetinaNet;

/// Builds the detector that a config names, with random weights under `path`, for `classes` classes.
pub fn build(path: &nn::Path, config: &ModelConfig, classes: i64) -> Result<Box<dyn Detector>> {
    Ok(match config.detector {
        DetectorKind::Retinanet => Box::new(RetinaNet::new(path, config, classes)?),
        DetectorKind::MaskRcnn => Box::new(MaskRcnn::new(path, config, classes)?),
    })
}

/// The classes of a detector's labels, for data with these categories: each category is a label, in their order; where
/// the config counts `outputs`, labels stand for ids, from 0 in RetinaNet, from 1 in Mask R-CNN, whose output 0 is
/// background.
///
/// # Errors
/// If an id has no output.
pub fn classes_of_outputs(config: &ModelConfig, categories: &Classes) -> Result<Classes> {
    let first = match config.detector {
        DetectorKind::Retinanet => 0,
        DetectorKind::MaskRcnn => 1,
    };
    match config.outputs {
        None => Ok(categories.clone()),
        Some(outputs) => categories.of_outputs(first, outputs),
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};
    use vigdet_coco::types::Segmentation;

    use super::*;
    use crate::backbone::Pass;
    use crate::config::GraphConvKind;
    use crate::data::mask::Mask;
    use crate::data::{Batch, ImageInfo, Target};
    use crate::nn::crossings::{crossings, without_kernels};
    use crate::nn::precision::Autocast;

    /// Two images with one object each.
    fn batch(height: i64, width: i64) -> Batch {
        let polygon = Segmentation::Polygons(vec![vec![4.0, 6.0, 28.0, 6.0, 28.0, 40.0, 4.0, 40.0]]);
        let target = Target {
            boxes: vec![[4.0, 6.0, 28.0, 40.0]],
            labels: vec![1],
            crowd: vec![false],
            masks: vec![Mask::new(&polygon, height as u32, width as u32)],
        };
        Batch {
            images: Tensor::randn([2, 3, height, width], (Kind::Float, Device::Cpu)),
            sizes: vec![(height, width); 2],
            padded: vec![(height, width); 2],
            targets: vec![target; 2],
            infos: Vec::new(),
        }
    }

    /// Frees memory full of what is not a number, in pieces like the gradients of `store`, so that whoever reads before
    /// writing is found out.
    fn poison(store: &nn::VarStore) {
        let of = |kind| move |v: &Tensor| v.detach().to_kind(kind).full_like(f64::NAN);
        let variables = store.trainable_variables();
        let pieces: Vec<Tensor> =
            variables.iter().flat_map(|v| [of(Kind::Float)(v), of(Kind::BFloat16)(v), of(Kind::BFloat16)(v)]).collect();
        drop(pieces);
    }

    /// A small detector of each kind, with weights that let it detect something.
    fn small(detector: DetectorKind) -> (nn::VarStore, Box<dyn Detector>) {
        let mut config = ModelConfig { detector, ..ModelConfig::default() };
        config.backbone.name = "pvig_ti".into();
        config.backbone.channels = Some(vec![8, 8, 16, 16]);
        config.backbone.blocks = Some(vec![1, 2, 1, 1]);
        (config.fpn.channels, config.head.channels, config.head.convs) = (16, 16, 1);
        (config.roi.channels, config.mask_head.channels) = (16, 16);
        (config.test.score, config.backbone.drop_path) = (0.0, 0.3);
        config.mask = detector == DetectorKind::MaskRcnn;
        if detector == DetectorKind::MaskRcnn {
            config.anchors.strides = vec![4, 8, 16, 32, 64];
        }
        tch::manual_seed(3);
        let store = nn::VarStore::new(Device::Cpu);
        let model = build(&store.root(), &config, 2).unwrap();
        (store, model)
    }

    /// What runs on other devices, run on the CPU: how often it waits is counted.
    #[test]
    fn without_kernels_a_training_pass_has_the_same_losses_and_waits_for_no_more_than_its_proposals() {
        let cases = [(DetectorKind::Retinanet, 0, 7, (64, 96)), (DetectorKind::MaskRcnn, 1, 32, (96, 64))];
        for (detector, fetched, most_sent, (height, width)) in cases {
            let (store, model) = small(detector);
            let batch = batch(height, width);
            let run = || {
                let before = crossings();
                let losses = model.losses(&batch, &mut Pass::training(0, 0)).unwrap();
                losses.total().backward();
                let after = crossings();
                let gradients: Vec<Tensor> = store.trainable_variables().iter().map(|v| v.grad().copy()).collect();
                store.trainable_variables().iter_mut().for_each(Tensor::zero_grad);
                let parts: Vec<f64> = losses.parts.iter().map(|(_, part)| part.double_value(&[])).collect();
                (parts, gradients, (after.sent - before.sent, after.fetched - before.fetched))
            };
            let (expected, gradients, _) = run();
            // The first pass of a size sends the factors of relative positions, two for each stage.
            let first = without_kernels(run).2 .0;
            let (found, by_tensors, (sent, waited)) = without_kernels(run);
            assert_eq!((waited, first - sent), (fetched, 8), "{detector:?}");
            assert!(sent <= most_sent, "{detector:?} sends {sent} times");
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{detector:?}: {found} {expected}");
            }
            for (found, expected) in by_tensors.iter().zip(&gradients) {
                let apart = (found - expected).abs().max().double_value(&[]);
                let most = expected.abs().max().double_value(&[]);
                assert!(apart <= 2e-3 * most + 1e-6, "{detector:?}: a gradient of {most} differs by {apart}");
            }
        }
    }

    #[test]
    fn without_kernels_an_image_has_the_same_detections() {
        for (detector, fetched) in [(DetectorKind::Retinanet, 1), (DetectorKind::MaskRcnn, 4)] {
            let (_store, model) = small(detector);
            let info = ImageInfo { id: 1, file: "a.png".into(), width: 128, height: 64 };
            let batch = Batch { infos: vec![info.clone(), info], ..batch(64, 128) };
            let kernels = model.detect(&batch).unwrap();
            let before = crossings().fetched;
            let tensors = without_kernels(|| model.detect(&batch).unwrap());
            assert_eq!(crossings().fetched - before, fetched, "{detector:?}");
            for (kernels, tensors) in kernels.iter().zip(&tensors) {
                assert_eq!(tensors.len(), kernels.len());
                assert!(kernels.len() > 20, "{detector:?} detects {}", kernels.len());
                // Rounding may turn the order of two.
                let same = |i: usize| {
                    let other = (0..tensors.len()).find(|&j| {
                        let near = tensors.boxes[j].iter().zip(&kernels.boxes[i]).all(|(a, b)| (a - b).abs() < 1e-2);
                        near && tensors.labels[j] == kernels.labels[i]
                    });
                    other.is_some_and(|j| (tensors.scores[j] - kernels.scores[i]).abs() < 1e-4)
                };
                let found = (0..kernels.len()).filter(|&i| same(i)).count();
                assert!(found + 1 >= kernels.len(), "{detector:?}: {found} of {}", kernels.len());
            }
        }
    }

    #[test]
    fn mixed_precision_has_nearly_the_same_losses_and_finite_gradients_in_float32() {
        let convs = [GraphConvKind::Mr, GraphConvKind::Edge, GraphConvKind::Gin, GraphConvKind::Sage];
        let kinds = [DetectorKind::Retinanet, DetectorKind::MaskRcnn];
        for (detector, conv) in kinds.into_iter().flat_map(|kind| convs.map(|conv| (kind, conv))) {
            let mut config = ModelConfig { detector, ..ModelConfig::default() };
            config.backbone.name = "pvig_ti".into();
            config.backbone.conv = conv;
            config.backbone.channels = Some(vec![8, 8, 16, 16]);
            config.backbone.blocks = Some(vec![1, 1, 1, 1]);
            (config.fpn.channels, config.head.channels, config.head.convs) = (16, 16, 1);
            (config.roi.channels, config.mask_head.channels) = (16, 16);
            if detector == DetectorKind::MaskRcnn {
                config.anchors.strides = vec![4, 8, 16, 32, 64];
            }
            tch::manual_seed(3);
            let store = nn::VarStore::new(Device::Cpu);
            let model = build(&store.root(), &config, 2).unwrap();
            // The second has maps of one column.
            for (height, width) in [(64, 96), (96, 32)] {
                let batch = batch(height, width);
                let losses = |on: bool| {
                    let autocast = Autocast::set(Device::Cpu, on);
                    let losses = model.losses(&batch, &mut Pass::training(0, 0)).unwrap();
                    drop(autocast);
                    losses
                };
                let (exact, mixed) = (losses(false), losses(true));
                let case = format!("{detector:?} {conv:?} {height}×{width}");
                assert!(mixed.parts.iter().all(|(_, part)| part.kind() == Kind::Float), "{case}");
                // Parts of Mask R-CNN differ by more: other proposals are sampled.
                let (exact, total) = (exact.total().double_value(&[]), mixed.total().double_value(&[]));
                assert!((total / exact - 1.0).abs() < 0.05 && total != exact, "{case}: {exact} {total}");
                poison(&store);
                mixed.total().backward();
                for (name, variable) in store.variables() {
                    let gradient = variable.grad();
                    if gradient.defined() {
                        let finite = gradient.isfinite().all().int64_value(&[]) == 1;
                        assert!(finite && gradient.kind() == Kind::Float, "{case} {name}");
                    }
                }
                assert!(store.trainable_variables().iter().all(|v| v.grad().defined()), "{case}");
                store.trainable_variables().iter_mut().for_each(Tensor::zero_grad);
            }
        }
    }
}
