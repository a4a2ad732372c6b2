//! detectron2's model zoo: RetinaNet, Faster and Mask R-CNN with a feature pyramid on ResNets, and the ImageNet ResNets
//! that they start from, in detectron2's names and in Caffe2's. docs/other_weights.md has their rules.

use tch::Tensor;

use super::detectors::{Layout, BODY};
use super::renaming::{
    classes_of, last_row_first, other_channels, ratios_before_sizes, rename, zero_rows_first, New, Renaming,
};
use super::resnets::{resnet_of, Style};
use super::Recognised;
use crate::config::{ClassifyConfig, Experiment};
use crate::weights::WeightFile;

/// Where detectron2's detectors have their ResNet.
const BOTTOM_UP: &str = "backbone.bottom_up.";
/// RetinaNet's anchors of a location: sizes and ratios.
const ANCHORS: (i64, i64) = (3, 3);
/// Epsilon of the batch norms, which Caffe2's models have taken into their running variance of 1.
const EPS: f64 = 1e-5;

/// What is known of a file with these names, sorted.
pub fn recognise(file: &WeightFile, names: &[String]) -> Option<Recognised> {
    let has = |name: &str| names.binary_search_by(|own| own.as_str().cmp(name)).is_ok();
    let two_stages = has("proposal_generator.rpn_head.objectness_logits.weight")
        && has("roi_heads.box_predictor.cls_score.weight")
        && has("backbone.fpn_lateral2.weight");
    let dense = has("head.cls_score.weight") && has("head.bbox_pred.weight") && has("backbone.fpn_lateral3.weight");
    match two_stages || dense {
        true => Some(detector(file, names, dense)),
        false if has("res2_0_branch2a_w") && has("conv1_w") => backbone(file, names, "Caffe2", &Style::caffe(), caffe2),
        false if has("res2.0.conv1.weight") && has("stem.conv1.weight") => {
            let style = Style::of_numbers(file, "stem.conv1.norm.running_mean");
            backbone(file, names, "detectron2", &style, |name| residual(name).into_iter().collect())
        }
        false => None,
    }
}

fn detector(file: &WeightFile, names: &[String], dense: bool) -> Recognised {
    let told = pixels(file);
    let guess = || Style::of_numbers(file, "backbone.bottom_up.stem.conv1.norm.running_mean");
    let mut style = told.clone().unwrap_or_else(guess);
    let bgr = style.bgr;
    let new = |name: &str| {
        let Some(rest) = name.strip_prefix(BOTTOM_UP) else { return of_heads(name, if dense { 3 } else { 2 }) };
        let new = residual(rest)?;
        Some(if bgr && rest == "stem.conv1.weight" { new.with(other_channels) } else { new }.under(BODY))
    };
    let useless =
        |name: &str| ["pixel_mean", "pixel_std"].contains(&name) || name.contains("anchor_generator.cell_anchors.");
    let renaming = rename(names, |name| new(name).into_iter().collect(), useless);
    let backbone = resnet_of(&renaming, file, BODY);
    // Only bottlenecks have 1×1 convolutions.
    style.stride_in_1x1 &= backbone != Some("resnet18");
    let layout = Layout::of(&renaming, file, backbone);
    let config = layout.config(&rules(&layout, &style));
    let mut notes = layout.notes.clone();
    if config.is_some() && told.is_none() {
        notes.push(style.guess());
    }
    Recognised {
        family: format!("detectron2's {}", layout.title()),
        config,
        classes: classes_of(None, layout.classes),
        tensors: Some(renaming.tensors),
        notes,
    }
}

/// detectron2's rules, as changes to vigdet's.
fn rules(layout: &Layout, style: &Style) -> Vec<String> {
    let own: &[&str] = match layout.dense {
        // Boxes are cut to the image at the very end.
        true => &["model.test.clip=after_nms", "model.loss.box=smooth_l1", "model.loss.beta=0.1"],
        false => &["model.roi.sampling_ratio=0", "model.test.min_side=1e-6"],
    };
    let own = own.iter().map(|rule| rule.to_string());
    own.chain(style.changes()).chain(["data.resize=antialias".to_string()]).collect()
}

/// What a detector of the older files has images normalised with, and what follows from it: those that go on from
/// Caffe's models have deviations of 1.
fn pixels(file: &WeightFile) -> Option<Style> {
    let three = |name: &str| -> Option<[f64; 3]> {
        let values = file.tensor(name).ok()?.to_kind(tch::Kind::Double).reshape(-1);
        let values: [f64; 3] = Vec::<f64>::try_from(values).ok()?.try_into().ok()?;
        values.iter().all(|value| value.is_finite()).then_some(values)
    };
    let (mean, std) = (three("pixel_mean")?, three("pixel_std").filter(|std| std.iter().all(|v| *v > 0.0))?);
    // ImageNet is redder than blue.
    Some(Style { mean, std, bgr: mean[0] < mean[2], stride_in_1x1: std == [1.0; 3] })
}

/// torchvision's name of a ResNet's tensor.
fn residual(name: &str) -> Option<New> {
    let (layer, kind) = name.rsplit_once('.')?;
    if let Some(rest) = name.strip_prefix("stem.") {
        return match rest.strip_prefix("conv1.norm.") {
            Some(kind) => New::name(format!("bn1.{kind}")),
            None => ["conv1.weight", "fc.weight", "fc.bias"].contains(&rest).then(|| New::name(rest)).flatten(),
        };
    }
    // `resS.B.convN[.norm].kind`
    let mut parts = layer.strip_prefix("res")?.split('.');
    let (stage, block, conv) = (parts.next()?, parts.next()?, parts.next()?);
    let (stage, block): (usize, usize) = (stage.parse().ok()?, block.parse().ok()?);
    let norm = match (parts.next(), parts.next()) {
        (None, _) => false,
        (Some("norm"), None) => true,
        _ => return None,
    };
    if !(2..=5).contains(&stage) {
        return None;
    }
    let place = format!("layer{}.{block}", stage - 1);
    match (conv, norm) {
        ("shortcut", _) => New::name(format!("{place}.downsample.{}.{kind}", u8::from(norm))),
        ("conv1" | "conv2" | "conv3", false) => New::name(format!("{place}.{conv}.{kind}")),
        ("conv1" | "conv2" | "conv3", true) => New::name(format!("{place}.bn{}.{kind}", &conv[4..])),
        _ => None,
    }
}

/// vigdet's name of a tensor beside the backbone, of a pyramid whose finest level is this one.
fn of_heads(name: &str, finest: usize) -> Option<New> {
    let (layer, kind) = name.rsplit_once('.')?;
    let number = |prefix: &str| -> Option<usize> { layer.strip_prefix(prefix)?.parse().ok() };
    let level = |prefix: &str| number(prefix)?.checked_sub(finest);
    if let Some(i) = level("backbone.fpn_lateral") {
        return New::name(format!("backbone.fpn.inner_blocks.{i}.0.{kind}"));
    }
    if let Some(i) = level("backbone.fpn_output") {
        return New::name(format!("backbone.fpn.layer_blocks.{i}.0.{kind}"));
    }
    // Every second module is a relu.
    if let Some(i) = number("head.cls_subnet.").filter(|i| i % 2 == 0) {
        return New::name(format!("head.classification_head.conv.{}.0.{kind}", i / 2));
    }
    if let Some(i) = number("head.bbox_subnet.").filter(|i| i % 2 == 0) {
        return New::name(format!("head.regression_head.conv.{}.0.{kind}", i / 2));
    }
    if let Some(i) = number("roi_heads.mask_head.mask_fcn").and_then(|i| i.checked_sub(1)) {
        return New::name(format!("roi_heads.mask_head.{i}.0.{kind}"));
    }
    let new = New::name(match layer {
        "backbone.top_block.p6" => format!("backbone.fpn.extra_blocks.p6.{kind}"),
        "backbone.top_block.p7" => format!("backbone.fpn.extra_blocks.p7.{kind}"),
        "head.cls_score" => format!("head.classification_head.cls_logits.{kind}"),
        "head.bbox_pred" => format!("head.regression_head.bbox_reg.{kind}"),
        "proposal_generator.rpn_head.conv" => format!("rpn.head.conv.0.0.{kind}"),
        "proposal_generator.rpn_head.objectness_logits" => format!("rpn.head.cls_logits.{kind}"),
        "proposal_generator.rpn_head.anchor_deltas" => format!("rpn.head.bbox_pred.{kind}"),
        "roi_heads.box_head.fc1" => format!("roi_heads.box_head.fc6.{kind}"),
        "roi_heads.box_head.fc2" => format!("roi_heads.box_head.fc7.{kind}"),
        "roi_heads.box_predictor.cls_score" => format!("{layer}.{kind}"),
        "roi_heads.box_predictor.bbox_pred" => format!("{layer}.{kind}"),
        "roi_heads.mask_head.deconv" => format!("roi_heads.mask_predictor.conv5_mask.{kind}"),
        "roi_heads.mask_head.predictor" => format!("roi_heads.mask_predictor.mask_fcn_logits.{kind}"),
        _ => return None,
    })?;
    let (sizes, ratios) = ANCHORS;
    Some(match layer {
        "head.cls_score" | "head.bbox_pred" => new.with(ratios_before_sizes(sizes, ratios)),
        "roi_heads.box_predictor.cls_score" => new.with(last_row_first),
        "roi_heads.box_predictor.bbox_pred" => new.with(zero_rows_first(4)),
        "roi_heads.mask_head.predictor" => new.with(zero_rows_first(1)),
        _ => new,
    })
}

/// torchvision's names of what a tensor of Caffe2's ResNets says: its norms are scale and shift alone.
fn caffe2(name: &str) -> Vec<New> {
    match name {
        "fc1000_w" => return New::name("fc.weight").into_iter().collect(),
        "fc1000_b" => return New::name("fc.bias").into_iter().collect(),
        "conv1_w" => return New::name("conv1.weight").into_iter().collect(),
        _ => {}
    }
    let norm = |layer: String, part: &str| match part {
        "s" => vec![
            New::name(format!("{layer}.weight")),
            New::changed(format!("{layer}.running_mean"), Tensor::zeros_like),
            New::changed(format!("{layer}.running_var"), |t| t.ones_like() - EPS),
        ],
        _ => vec![New::name(format!("{layer}.bias"))],
    };
    if let Some(part @ ("s" | "b")) = name.strip_prefix("res_conv1_bn_") {
        return norm("bn1".into(), part).into_iter().flatten().collect();
    }
    let parts: Vec<&str> = name.split('_').collect();
    let [stage, block, branch, rest @ ..] = &parts[..] else { return Vec::new() };
    let stage = stage.strip_prefix("res").and_then(|stage| stage.parse::<usize>().ok()).filter(|s| (2..=5).contains(s));
    let (Some(stage), Ok(block)) = (stage, block.parse::<usize>()) else { return Vec::new() };
    let place = format!("layer{}.{block}", stage - 1);
    let (conv, own) = match *branch {
        "branch1" => (format!("{place}.downsample.0"), format!("{place}.downsample.1")),
        "branch2a" => (format!("{place}.conv1"), format!("{place}.bn1")),
        "branch2b" => (format!("{place}.conv2"), format!("{place}.bn2")),
        "branch2c" => (format!("{place}.conv3"), format!("{place}.bn3")),
        _ => return Vec::new(),
    };
    let found = match *rest {
        ["w"] => vec![New::name(format!("{conv}.weight"))],
        ["bn", part @ ("s" | "b")] => norm(own, part),
        _ => Vec::new(),
    };
    found.into_iter().flatten().collect()
}

/// A ResNet of ImageNet alone.
fn backbone(
    file: &WeightFile,
    names: &[String],
    whose: &str,
    style: &Style,
    new: impl Fn(&str) -> Vec<New>,
) -> Option<Recognised> {
    // A bias before a norm, which detectron2 leaves out too.
    let mut renaming: Renaming = rename(names, new, |name| name == "conv1_b");
    if style.bgr {
        for tensor in renaming.tensors.iter_mut().filter(|tensor| tensor.name == "conv1.weight") {
            tensor.change = Some(Box::new(other_channels));
        }
    }
    let name = resnet_of(&renaming, file, "")?;
    let config = ClassifyConfig::of_model(name, &style.changes()).ok().and_then(|config| config.to_value().ok());
    Some(Recognised {
        family: format!("{whose}'s {name} of ImageNet"),
        config: config.filter(|_| renaming.unknown.is_empty()),
        classes: None,
        notes: renaming.note().into_iter().collect(),
        tensors: Some(renaming.tensors),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_resnets_and_heads_are_vigdets() {
        let name = |new: Option<New>| new.map(|new| new.name);
        for (from, to) in [
            ("stem.conv1.weight", "conv1.weight"),
            ("stem.conv1.norm.running_var", "bn1.running_var"),
            ("res2.0.shortcut.weight", "layer1.0.downsample.0.weight"),
            ("res2.0.shortcut.norm.bias", "layer1.0.downsample.1.bias"),
            ("res5.2.conv3.norm.weight", "layer4.2.bn3.weight"),
            ("res4.22.conv1.weight", "layer3.22.conv1.weight"),
        ] {
            assert_eq!(name(residual(from)).as_deref(), Some(to), "{from}");
        }
        for unknown in
            ["res6.0.conv1.weight", "res2.0.conv4.weight", "res2.0.conv2_offset.weight", "res2.x.conv1.weight"]
        {
            assert_eq!(name(residual(unknown)), None, "{unknown}");
        }
        for (from, finest, to) in [
            ("backbone.fpn_lateral3.weight", 3, "backbone.fpn.inner_blocks.0.0.weight"),
            ("backbone.fpn_output5.bias", 2, "backbone.fpn.layer_blocks.3.0.bias"),
            ("head.cls_subnet.6.weight", 3, "head.classification_head.conv.3.0.weight"),
            ("head.bbox_subnet.0.bias", 3, "head.regression_head.conv.0.0.bias"),
            ("roi_heads.mask_head.mask_fcn4.bias", 2, "roi_heads.mask_head.3.0.bias"),
        ] {
            assert_eq!(name(of_heads(from, finest)).as_deref(), Some(to), "{from}");
        }
        for unknown in
            ["backbone.fpn_lateral2.norm.weight", "head.cls_subnet.1.weight", "roi_heads.mask_head.mask_fcn0.bias"]
        {
            assert_eq!(name(of_heads(unknown, 2)), None, "{unknown}");
        }
    }

    #[test]
    fn norms_of_caffe2_are_scale_and_shift_alone() {
        let names = |from: &str| -> Vec<String> { caffe2(from).into_iter().map(|new| new.name).collect() };
        assert_eq!(names("res3_1_branch2b_w"), ["layer2.1.conv2.weight"]);
        let norm =
            ["layer1.0.downsample.1.weight", "layer1.0.downsample.1.running_mean", "layer1.0.downsample.1.running_var"];
        assert_eq!(names("res2_0_branch1_bn_s"), norm);
        assert_eq!(names("res_conv1_bn_b"), ["bn1.bias"]);
        assert!(
            names("res3_1_branch2d_w").is_empty() && names("lr").is_empty() && names("res9_0_branch1_w").is_empty()
        );
        let scale = Tensor::from_slice(&[3f32, 4.0]);
        let made: Vec<Tensor> =
            caffe2("res_conv1_bn_s").iter().filter_map(|new| Some(new.change.as_ref()?(&scale))).collect();
        assert_eq!(made[0].double_value(&[1]), 0.0);
        assert!((made[1].double_value(&[1]) - (1.0 - EPS)).abs() < 1e-7);
    }
}
