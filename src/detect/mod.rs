//! Detectors and their parts.

pub mod anchors;
pub mod assignment;
pub mod atss;
pub mod box_head;
pub mod boxes;
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
    use crate::data::{Batch, Target};
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
