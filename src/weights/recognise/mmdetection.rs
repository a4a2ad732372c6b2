//! Detectors of mmdetection 2 and 3: RetinaNet, Faster and Mask R-CNN with a feature pyramid, on ResNets, ResNeXts,
//! mmpretrain's Pyramid ViG, and backbones that their authors brought to it (PVT, PoolFormer, CycleMLP, GreedyViG,
//! AdaptViG). docs/other_weights.md has their rules.

use super::authors::model_of;
use super::detectors::{Layout, BODY};
use super::mmpretrain::Vig;
use super::renaming::{classes_of, last_row_first, other_channels, rename, zero_rows_first, New};
use super::resnets::{resnet_of, Style};
use super::Recognised;
use crate::weights::WeightFile;

/// What is known of a file with these names, sorted.
pub fn recognise(file: &WeightFile, names: &[String]) -> Option<Recognised> {
    let has = |name: &str| names.binary_search_by(|own| own.as_str().cmp(name)).is_ok();
    let two_stages = has("rpn_head.rpn_cls.weight") && has("roi_head.bbox_head.fc_cls.weight");
    let dense = has("bbox_head.retina_cls.weight") && has("bbox_head.retina_reg.weight");
    if two_stages == dense || !has("neck.lateral_convs.0.conv.weight") {
        return None;
    }
    let said = Said::of(file);
    let vig = Vig::of(file, names);
    let inner: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("backbone.")).collect();
    let authors = || model_of(&inner, &|name| file.shape(&format!("backbone.{name}")));
    let mut style = said.style.clone().unwrap_or_else(|| match vig {
        // What the recipes for ViG in mmdetection normalise with.
        Some(_) => Style::torchvision(),
        None => Style::of_numbers(file, "backbone.bn1.running_mean"),
    });
    let (bgr, stem) = (style.bgr, if vig.is_some() { "stem.0.weight" } else { "conv1.weight" });
    let levels = (0..).take_while(|i| has(&format!("neck.lateral_convs.{i}.conv.weight"))).count();
    let new = |name: &str| {
        let Some(rest) = name.strip_prefix("backbone.") else { return of_heads(name, levels) };
        let new = match &vig {
            Some(vig) => vig.published(rest)?,
            None => New::name(rest)?,
        };
        Some(if bgr && rest == stem { new.with(other_channels) } else { new }.under(BODY))
    };
    // mmdetection 2 keeps the weights that its averages replaced beside them, under these names.
    let renaming = rename(names, |name| new(name).into_iter().collect(), |name| name.starts_with("ema_"));
    let backbone = vig.map(|vig| vig.name).or_else(|| resnet_of(&renaming, file, BODY)).or_else(authors);
    // Only bottlenecks have 1×1 convolutions.
    style.stride_in_1x1 &= backbone.is_some_and(|name| name.starts_with("res") && name != "resnet18");
    let layout = Layout::of(&renaming, file, backbone);
    let config = layout.config(&rules(&layout, &style, said.relu));
    let mut notes = layout.notes.clone();
    if config.is_some() && said.style.is_none() {
        notes.push(style.guess());
    }
    Some(Recognised {
        family: format!("mmdetection's {}", layout.title()),
        config,
        classes: classes_of(said.classes, layout.classes),
        tensors: Some(renaming.tensors),
        notes,
    })
}

/// vigdet's name of a tensor beside the backbone, of a pyramid on so many stages.
fn of_heads(name: &str, levels: usize) -> Option<New> {
    let (layer, kind) = name.rsplit_once('.')?;
    let number = |prefix: &str, suffix: &str| -> Option<usize> {
        layer.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()
    };
    if let Some(i) = number("neck.lateral_convs.", ".conv") {
        return New::name(format!("backbone.fpn.inner_blocks.{i}.0.{kind}"));
    }
    if let Some(i) = number("neck.fpn_convs.", ".conv") {
        return match i.checked_sub(levels) {
            None => New::name(format!("backbone.fpn.layer_blocks.{i}.0.{kind}")),
            Some(extra @ 0..=1) => New::name(format!("backbone.fpn.extra_blocks.p{}.{kind}", 6 + extra)),
            Some(_) => None,
        };
    }
    if let Some(i) = number("bbox_head.cls_convs.", ".conv") {
        return New::name(format!("head.classification_head.conv.{i}.0.{kind}"));
    }
    if let Some(i) = number("bbox_head.reg_convs.", ".conv") {
        return New::name(format!("head.regression_head.conv.{i}.0.{kind}"));
    }
    if let Some(i) = number("roi_head.mask_head.convs.", ".conv") {
        return New::name(format!("roi_heads.mask_head.{i}.0.{kind}"));
    }
    let new = New::name(match layer {
        "bbox_head.retina_cls" => format!("head.classification_head.cls_logits.{kind}"),
        "bbox_head.retina_reg" => format!("head.regression_head.bbox_reg.{kind}"),
        "rpn_head.rpn_conv" => format!("rpn.head.conv.0.0.{kind}"),
        "rpn_head.rpn_cls" => format!("rpn.head.cls_logits.{kind}"),
        "rpn_head.rpn_reg" => format!("rpn.head.bbox_pred.{kind}"),
        "roi_head.bbox_head.shared_fcs.0" => format!("roi_heads.box_head.fc6.{kind}"),
        "roi_head.bbox_head.shared_fcs.1" => format!("roi_heads.box_head.fc7.{kind}"),
        "roi_head.bbox_head.fc_cls" => format!("roi_heads.box_predictor.cls_score.{kind}"),
        "roi_head.bbox_head.fc_reg" => format!("roi_heads.box_predictor.bbox_pred.{kind}"),
        "roi_head.mask_head.upsample" => format!("roi_heads.mask_predictor.conv5_mask.{kind}"),
        "roi_head.mask_head.conv_logits" => format!("roi_heads.mask_predictor.mask_fcn_logits.{kind}"),
        _ => return None,
    })?;
    Some(match layer {
        "roi_head.bbox_head.fc_cls" => new.with(last_row_first),
        "roi_head.bbox_head.fc_reg" => new.with(zero_rows_first(4)),
        "roi_head.mask_head.conv_logits" => new.with(zero_rows_first(1)),
        _ => new,
    })
}

/// mmdetection's rules, as changes to vigdet's.
fn rules(layout: &Layout, style: &Style, relu: bool) -> Vec<String> {
    let mask = layout.mask;
    let own: Vec<String> = match layout.dense {
        true => vec![
            format!("model.fpn.p7_relu={relu}"),
            "model.match.low_quality_wins=true".into(),
            // What has no area inside the image is dropped.
            "model.test.min_side=1e-6".into(),
        ],
        false => vec![
            "model.rpn.match.low_quality_iou=0.3".into(),
            "model.rpn.match.low_quality_wins=true".into(),
            "model.roi.sampling_ratio=0".into(),
            // Mask R-CNN is trained with these matches, Faster R-CNN without.
            format!("model.roi.match.low_quality={mask}"),
            "model.roi.match.low_quality_iou=0.5".into(),
            "model.roi.match.low_quality_wins=true".into(),
            "model.test.min_side=0".into(),
        ],
    };
    let both = ["model.test.limit_shrinking=true", "data.resize=opencv"].map(String::from);
    [own, style.changes(), both.to_vec()].concat()
}

/// What a checkpoint says beside its weights.
struct Said {
    /// How images are prepared.
    style: Option<Style>,
    /// P7 is computed from relu(P6).
    relu: bool,
    /// Names of the classes.
    classes: Option<Vec<String>>,
}

impl Said {
    fn of(file: &WeightFile) -> Self {
        let text = |key| file.said(&["meta", key]).and_then(|texts| texts.first().cloned());
        // mmdetection 2 has `config`, 3 has `cfg`: the training's config as Python.
        let config = text("config").or_else(|| text("cfg"));
        let config = config.as_deref();
        let classes =
            [&["meta", "CLASSES"][..], &["meta", "dataset_meta", "classes"], &["meta", "dataset_meta", "CLASSES"]];
        let classes = classes.iter().find_map(|path| file.said(path));
        Self {
            style: config.and_then(style_of),
            relu: config.is_some_and(|text| text.contains("relu_before_extra_convs=True")),
            classes: classes.map(|names| names.iter().map(|name| name.to_string()).collect()),
        }
    }
}

/// How images are prepared, in the text of a config; `None`: it does not say.
fn style_of(config: &str) -> Option<Style> {
    let list = |key: &str| -> Option<[f64; 3]> {
        let after = &config[config.find(key)? + key.len()..];
        let inside = after.split(']').next()?.split(',').map(str::trim).filter(|number| !number.is_empty());
        let numbers: Vec<f64> = inside.map(|number| number.parse().ok()).collect::<Option<_>>()?;
        let numbers: [f64; 3] = numbers.try_into().ok()?;
        numbers.iter().all(|number| number.is_finite()).then_some(numbers)
    };
    let std = list("std=[").filter(|std| std.iter().all(|v| *v > 0.0))?;
    Some(Style {
        mean: list("mean=[")?,
        std,
        // `to_rgb` in mmdetection 2, `bgr_to_rgb` in 3.
        bgr: config.contains("to_rgb=False"),
        stride_in_1x1: config.contains("style='caffe'") || config.contains("style=\"caffe\""),
    })
}

#[cfg(test)]
mod tests {
    use tch::{nn, Device, Tensor};

    use super::*;
    use crate::config::{Config, Experiment};
    use crate::detect;
    use crate::weights::{sorted_variables, write_tensors, Checkpoint, LoadOptions, Metadata};

    #[test]
    fn a_config_of_either_version_says_how_images_are_prepared() {
        let two = "model = dict(backbone=dict(type='ResNet', style='pytorch'), rpn_head=dict(bbox_coder=dict(\n \
                   target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0])))\nimg_norm_cfg = dict(\n    \
                   mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)";
        assert_eq!(style_of(two), Some(Style::torchvision()));
        let three = "model = dict(\n    backbone=dict(style='caffe'),\n    data_preprocessor=dict(\n        \
                     bgr_to_rgb=False,\n        mean=[\n            103.53,\n            116.28,\n            \
                     123.675,\n        ],\n        std=[\n            1.0,\n            1.0,\n            1.0,\n\
                             ]))";
        assert_eq!(style_of(three), Some(Style::caffe()));
        for nothing in [
            "",
            "mean=[1, 2, 3]",
            "mean=[1,2], std=[1,2]",
            "mean=[a,b,c], std=[1,1,1]",
            "mean=[",
            "std=[0,1,1] mean=[1,1,1]",
        ] {
            assert_eq!(style_of(nothing), None, "{nothing}");
        }
    }

    /// mmdetection's name of a variable of a vigdet's Mask R-CNN.
    fn mmdetections(name: &str) -> String {
        let heads = [
            ("rpn.head.conv.0.0", "rpn_head.rpn_conv"),
            ("rpn.head.cls_logits", "rpn_head.rpn_cls"),
            ("rpn.head.bbox_pred", "rpn_head.rpn_reg"),
            ("roi_heads.box_head.fc6", "roi_head.bbox_head.shared_fcs.0"),
            ("roi_heads.box_head.fc7", "roi_head.bbox_head.shared_fcs.1"),
            ("roi_heads.box_predictor.cls_score", "roi_head.bbox_head.fc_cls"),
            ("roi_heads.box_predictor.bbox_pred", "roi_head.bbox_head.fc_reg"),
            ("roi_heads.mask_predictor.conv5_mask", "roi_head.mask_head.upsample"),
            ("roi_heads.mask_predictor.mask_fcn_logits", "roi_head.mask_head.conv_logits"),
        ];
        let (layer, kind) = name.rsplit_once('.').unwrap();
        if let Some((_, head)) = heads.iter().find(|(own, _)| *own == layer) {
            return format!("{head}.{kind}");
        }
        let conv = |prefix: &str, theirs: &str| {
            let number = layer.strip_prefix(prefix)?.strip_suffix(".0")?;
            Some(format!("{theirs}.{number}.conv.{kind}"))
        };
        conv("backbone.fpn.inner_blocks.", "neck.lateral_convs")
            .or_else(|| conv("backbone.fpn.layer_blocks.", "neck.fpn_convs"))
            .or_else(|| conv("roi_heads.mask_head.", "roi_head.mask_head.convs"))
            .unwrap_or_else(|| name.replace("backbone.body.", "backbone."))
    }

    #[test]
    fn a_coco_file_of_greedyvig_is_known_with_its_rules_and_loads_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("greedyvig.safetensors");
        let small = ["fpn.channels=8", "roi.channels=16", "mask_head.channels=8"].map(|c| format!("model.{c}"));
        let expected = Config::preset("mask_rcnn_greedyvig_s_fpn_1x_coco", &small).unwrap();
        let store = nn::VarStore::new(Device::Cpu);
        let _detector = detect::build(&store.root(), &expected.model, 80).unwrap();
        let own = store.variables();
        let theirs: Vec<(String, Tensor)> = sorted_variables(&store)
            .into_iter()
            .map(|(name, t)| {
                // mmdetection has no boxes and no masks of background.
                let without = |rows: i64| t.narrow(0, rows, t.size()[0] - rows);
                let name = mmdetections(&name);
                match &name {
                    name if name.contains("fc_reg") => (name.clone(), without(4)),
                    name if name.contains("conv_logits") => (name.clone(), without(1)),
                    _ => (name, t),
                }
            })
            .collect();
        write_tensors(&theirs, &path, &Metadata::new()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let config = checkpoint.config::<Config>(&[]).unwrap().unwrap();
        assert_eq!(config, expected);
        let other = nn::VarStore::new(Device::Cpu);
        let _detector = detect::build(&other.root(), &config.model, 80).unwrap();
        let report = checkpoint.load_into(&other, &LoadOptions { complete: true, ..Default::default() }).unwrap();
        assert!(report.unused.is_empty(), "{report}");
        let loaded = other.variables();
        for name in ["backbone.body.backbone.3.3.mixer.fc1.0.weight", "backbone.fpn.inner_blocks.0.0.weight"] {
            assert_eq!(loaded[name], own[name], "{name}");
        }
        assert_eq!(checkpoint.classes().map(|classes| classes.len()), Some(80));
    }

    #[test]
    fn names_of_heads_are_vigdets() {
        let name = |from: &str| of_heads(from, 3).map(|new| new.name);
        for (from, to) in [
            ("neck.lateral_convs.2.conv.weight", "backbone.fpn.inner_blocks.2.0.weight"),
            ("neck.fpn_convs.2.conv.bias", "backbone.fpn.layer_blocks.2.0.bias"),
            ("neck.fpn_convs.3.conv.weight", "backbone.fpn.extra_blocks.p6.weight"),
            ("neck.fpn_convs.4.conv.weight", "backbone.fpn.extra_blocks.p7.weight"),
            ("bbox_head.reg_convs.3.conv.weight", "head.regression_head.conv.3.0.weight"),
            ("roi_head.mask_head.convs.1.conv.bias", "roi_heads.mask_head.1.0.bias"),
            ("roi_head.bbox_head.shared_fcs.1.bias", "roi_heads.box_head.fc7.bias"),
        ] {
            assert_eq!(name(from).as_deref(), Some(to), "{from}");
        }
        for unknown in
            ["neck.fpn_convs.5.conv.weight", "neck.lateral_convs.0.bn.weight", "mask_iou_head.fc.weight", "x"]
        {
            assert_eq!(name(unknown), None, "{unknown}");
        }
    }
}
