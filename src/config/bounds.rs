//! Values of a config that no run could work with.

use std::fmt::Display;

use anyhow::{ensure, Result};

use super::{BackboneConfig, CheckpointConfig, ClassifyConfig, Config, TrainConfig};

/// Longest side that an image may be given, in pixels: a batch of one takes 12 GB.
const MOST_PIXELS: u32 = 32_768;
/// Most operations that an image goes through.
const MOST_OPS: usize = 100;
/// Most layers of one kind in a row, and most octaves of anchors: each costs memory before anything runs.
const MOST_LAYERS: i64 = 1000;
/// Most threads of one kind.
pub(crate) const MOST_THREADS: usize = 1024;
/// Most channels of a layer: one of 3 × 3 with as many inputs takes 150 GB.
const MOST_CHANNELS: i64 = 65_536;
/// Most classes.
pub(crate) const MOST_CLASSES: i64 = vigdet_dataset::MOST_CLASSES as i64;
/// Most boxes of an image that are kept at one point.
const MOST_BOXES: i64 = 1_000_000;
/// Most bins along the side of a pooled region.
const MOST_BINS: i64 = 256;
/// Most samples along the side of a bin.
const MOST_SAMPLES: u32 = 64;
/// Most images of a batch.
const MOST_BATCH: i64 = 1 << 24;
/// Sides of anchors, in pixels.
const ANCHOR: [f64; 2] = [1e-3, 1e5];

impl Config {
    /// Values that no run could work with.
    pub(super) fn check_bounds(&self) -> Result<()> {
        let (m, d) = (&self.model, &self.data);
        check_backbone(&m.backbone)?;
        count("model.fpn.channels", m.fpn.channels, MOST_CHANNELS)?;
        count("model.head.channels", m.head.channels, MOST_CHANNELS)?;
        layers("model.head.convs", m.head.convs, 0)?;
        ensure!(m.head.prior > 0.0 && m.head.prior < 1.0, "model.head.prior must be between 0 and 1");
        ensure!(!m.anchors.strides.is_empty(), "model.anchors.strides must name a stride for each level");
        m.anchors.strides.iter().try_for_each(|s| positive("model.anchors.strides", *s as f64))?;
        ensure!(!m.anchors.ratios.is_empty(), "model.anchors.ratios must not be empty");
        m.anchors.ratios.iter().try_for_each(|r| within("model.anchors.ratios", *r, [1e-3, 1e3]))?;
        layers("model.anchors.octaves", m.anchors.octaves, 1)?;
        within("model.anchors.base", m.anchors.base, ANCHOR)?;
        let sizes = m.anchors.sizes.as_deref();
        ensure!(sizes.is_none_or(|s| !s.is_empty()), "model.anchors.sizes must not be empty (null: base and octaves)");
        sizes.unwrap_or_default().iter().try_for_each(|s| within("model.anchors.sizes", *s, ANCHOR))?;
        fraction("model.match.positive", m.matching.positive)?;
        fraction("model.match.negative", m.matching.negative)?;
        ensure!(
            m.matching.negative <= m.matching.positive,
            "model.match.negative must not be above model.match.positive"
        );
        fraction("model.match.crowd", m.matching.crowd)?;
        positive("model.match.candidates", m.matching.candidates as f64)?;
        fraction("model.match.low_quality_iou", m.matching.low_quality_iou)?;
        fraction("model.loss.alpha", m.loss.alpha)?;
        not_negative("model.loss.gamma", m.loss.gamma)?;
        not_negative("model.loss.beta", m.loss.beta)?;
        not_negative("model.loss.box_weight", m.loss.box_weight)?;
        self.check_two_stages()?;
        ensure!(
            m.outputs.is_none_or(|n| (2..=MOST_CLASSES).contains(&n)),
            "model.outputs must be 2 to {MOST_CLASSES} (null: one for each class)"
        );
        fraction("model.test.nms", m.test.nms)?;
        fraction("model.test.score", m.test.score)?;
        count("model.test.top_k", m.test.top_k, MOST_BOXES)?;
        count("model.test.max_detections", m.test.max_detections, MOST_BOXES)?;
        not_negative("model.test.min_side", m.test.min_side.unwrap_or_default())?;
        let test_size = d.test_size.map(|size| ("data.test_size", size));
        for (name, size) in [("data.size", d.size)].into_iter().chain(test_size) {
            ensure!(
                size[0] >= 1 && size[0] <= size[1],
                "{name} is [shorter side, most of the longer side]; {size:?} is not"
            );
            ensure!(
                size[1] <= MOST_PIXELS,
                "{name}, {size:?}, is more than the {MOST_PIXELS} pixels that a side may have"
            );
        }
        ensure!((1..=MOST_PIXELS).contains(&d.pad), "data.pad must be 1 to {MOST_PIXELS} pixels, not {}", d.pad);
        fraction("data.flip", d.flip)?;
        fraction("data.flip_vertical", d.flip_vertical)?;
        fraction("data.color", d.color)?;
        fraction("data.crop.probability", d.crop.probability)?;
        fraction("data.crop.scale", d.crop.scale)?;
        fraction("data.crop.visible", d.crop.visible)?;
        fraction("data.rotate", d.rotate)?;
        fraction("data.mosaic", d.mosaic)?;
        fraction("data.mixup", d.mixup)?;
        fraction("data.strong_until", d.strong_until)?;
        fraction("data.affine.probability", d.affine.probability)?;
        ensure!((0.0..=0.5).contains(&d.hue), "data.hue must be 0 to 0.5, not {}", d.hue);
        for (name, angle) in [("degrees", d.affine.degrees), ("shear", d.affine.shear)] {
            ensure!((0.0..=180.0).contains(&angle), "data.affine.{name} must be 0 to 180 degrees, not {angle}");
        }
        ensure!(d.affine.shear < 90.0, "data.affine.shear must be below 90 degrees, not {}", d.affine.shear);
        ensure!(
            d.affine.scale[0] > 0.0 && d.affine.scale[0] <= d.affine.scale[1] && d.affine.scale[1] <= 16.0,
            "data.affine.scale is [least, most] factor, at most 16; {:?} is not",
            d.affine.scale
        );
        ensure!(
            d.scale[0] > 0.0 && d.scale[0] <= d.scale[1],
            "data.scale is [least, most] factor; {:?} is not",
            d.scale
        );
        ensure!(
            f64::from(d.size[1]) * d.scale[1].max(1.0) <= f64::from(MOST_PIXELS),
            "data.size, {:?}, times data.scale, {:?}, is more than the {MOST_PIXELS} pixels that a side may have",
            d.size,
            d.scale
        );
        check_images(d.workers, &d.mean, &d.std)?;
        check_checkpoints(&self.checkpoint)?;
        check_train(&self.train, &m.backbone.name)
    }

    /// [`Config::check_bounds`] of what only two-stage detectors have.
    fn check_two_stages(&self) -> Result<()> {
        let m = &self.model;
        for (name, matching, sample, loss) in
            [("rpn", &m.rpn.matching, &m.rpn.sample, &m.rpn.loss), ("roi", &m.roi.matching, &m.roi.sample, &m.roi.loss)]
        {
            fraction(&format!("model.{name}.match.positive"), matching.positive)?;
            fraction(&format!("model.{name}.match.negative"), matching.negative)?;
            ensure!(
                matching.negative <= matching.positive,
                "model.{name}.match.negative must not be above model.{name}.match.positive"
            );
            fraction(&format!("model.{name}.sample.positive"), sample.positive)?;
            positive(&format!("model.{name}.sample.count"), sample.count as f64)?;
            fraction(&format!("model.{name}.match.crowd"), matching.crowd)?;
            fraction(&format!("model.{name}.match.low_quality_iou"), matching.low_quality_iou)?;
            not_negative(&format!("model.{name}.loss.beta"), loss.beta)?;
            not_negative(&format!("model.{name}.loss.box_weight"), loss.box_weight)?;
        }
        layers("model.rpn.convs", m.rpn.convs, 1)?;
        fraction("model.rpn.nms", m.rpn.nms)?;
        fraction("model.rpn.score", m.rpn.score)?;
        for (name, p) in [("train", &m.rpn.train), ("test", &m.rpn.test)] {
            count(&format!("model.rpn.{name}.top_k"), p.top_k, MOST_BOXES)?;
            count(&format!("model.rpn.{name}.keep"), p.keep, MOST_BOXES)?;
        }
        count("model.roi.pool", m.roi.pool, MOST_BINS)?;
        let samples = m.roi.sampling_ratio;
        ensure!(samples <= MOST_SAMPLES, "model.roi.sampling_ratio must be 0 to {MOST_SAMPLES}, not {samples}");
        positive("model.roi.canonical_size", m.roi.canonical_size)?;
        count("model.roi.channels", m.roi.channels, MOST_CHANNELS)?;
        layers("model.roi.convs", m.roi.convs, 0)?;
        layers("model.roi.fcs", m.roi.fcs, 1)?;
        m.roi.box_weights.iter().try_for_each(|w| positive("model.roi.box_weights", f64::from(*w)))?;
        layers("model.mask_head.convs", m.mask_head.convs, 0)?;
        count("model.mask_head.channels", m.mask_head.channels, MOST_CHANNELS)?;
        count("model.mask_head.pool", m.mask_head.pool, MOST_BINS)?;
        not_negative("model.mask_head.weight", m.mask_head.weight)?;
        fraction("model.mask_head.threshold", m.mask_head.threshold)
    }
}

impl ClassifyConfig {
    /// Values that no run could work with.
    pub(super) fn check_bounds(&self) -> Result<()> {
        let (d, t) = (&self.data, &self.train);
        check_backbone(&self.model.backbone)?;
        ensure!(
            (1..=MOST_PIXELS / 2).contains(&d.size),
            "data.size must be 1 to {} pixels, not {}",
            MOST_PIXELS / 2,
            d.size
        );
        range("data.scale", d.scale, 1.0)?;
        range("data.ratio", d.ratio, f64::INFINITY)?;
        fraction("data.flip", d.flip)?;
        if let Some(r) = &d.rand_augment {
            ensure!(
                (0.0..=10.0).contains(&r.magnitude),
                "data.rand_augment.magnitude must be between 0 and 10, not {}",
                r.magnitude
            );
            not_negative("data.rand_augment.std", r.std)?;
            ensure!(r.ops <= MOST_OPS, "data.rand_augment.ops must be at most {MOST_OPS}, not {}", r.ops);
            fraction("data.rand_augment.probability", r.probability)?;
        }
        fraction("data.color_jitter", d.color_jitter)?;
        fraction("data.erase.probability", d.erase.probability)?;
        range("data.erase.area", d.erase.area, 1.0)?;
        range("data.erase.aspect", [d.erase.aspect; 2], 1.0)?;
        not_negative("data.mixup", d.mixup)?;
        not_negative("data.cutmix", d.cutmix)?;
        fraction("data.mix_probability", d.mix_probability)?;
        fraction("data.mix_switch", d.mix_switch)?;
        positive("data.repeats", d.repeats as f64)?;
        positive("data.repeat_round", d.repeat_round as f64)?;
        within("data.crop", d.crop, [0.01, 1.0])?;
        check_images(d.workers, &d.mean, &d.std)?;
        for (name, lr) in [("train.warmup_lr", t.warmup_lr), ("train.min_lr", t.min_lr)] {
            ensure!((0.0..=t.lr).contains(&lr), "{name} must be between 0 and train.lr, {}, not {lr}", t.lr);
        }
        check_checkpoints(&self.checkpoint)?;
        check_train(t, &self.model.backbone.name)
    }
}

/// Bounds of every network.
fn check_backbone(b: &BackboneConfig) -> Result<()> {
    positive("model.backbone.k", b.k as f64)?;
    ensure!(
        (1..=i64::from(MOST_PIXELS)).contains(&b.image_size),
        "model.backbone.image_size must be 1 to {MOST_PIXELS} pixels, not {}",
        b.image_size
    );
    b.channels.iter().flatten().try_for_each(|n| count("model.backbone.channels", *n, MOST_CHANNELS))?;
    b.blocks.iter().flatten().try_for_each(|blocks| layers("model.backbone.blocks", *blocks, 1))?;
    ensure!((0.0..1.0).contains(&b.drop_path), "model.backbone.drop_path must be at least 0 and below 1");
    positive("model.backbone.heads", b.heads as f64)?;
    fraction("model.backbone.stochastic_dilation", b.stochastic_dilation)?;
    not_negative("model.backbone.norm_eps", b.norm_eps)
}

/// Bounds of every way from files to batches.
fn check_images(workers: usize, mean: &[f32; 3], std: &[f32; 3]) -> Result<()> {
    ensure!(workers <= MOST_THREADS, "data.workers must be at most {MOST_THREADS}, not {workers}");
    // In fractions of the whole range, or in 0 to 255; what is far beyond gives features that are no numbers.
    mean.iter().try_for_each(|m| within("data.mean", f64::from(*m), [-1e3, 1e3]))?;
    std.iter().try_for_each(|s| within("data.std", f64::from(*s), [1e-6, 1e3]))
}

/// Bounds of what is written.
fn check_checkpoints(c: &CheckpointConfig) -> Result<()> {
    c.every_minutes.map_or(Ok(()), |minutes| positive("checkpoint.every_minutes", minutes))
}

/// Bounds of every training.
fn check_train(t: &TrainConfig, backbone: &str) -> Result<()> {
    positive("train.lr", t.lr)?;
    ensure!(t.lr_batch != Some(0), "train.lr_batch must be above 0 (null: no scaling)");
    not_negative("train.backbone_lr", t.backbone_lr)?;
    not_negative("train.weight_decay", t.weight_decay)?;
    averaging("train.momentum", t.momentum)?;
    t.betas.iter().try_for_each(|beta| averaging("train.betas", *beta))?;
    fraction("train.warmup_factor", t.warmup_factor)?;
    not_negative("train.lr_gamma", t.lr_gamma)?;
    not_negative("train.lr_end", t.lr_end)?;
    not_negative("train.warmup_epochs", t.warmup_epochs)?;
    fraction("train.label_smoothing", t.label_smoothing)?;
    not_negative("train.grace_seconds", t.grace_seconds)?;
    t.max_minutes.map_or(Ok(()), |minutes| positive("train.max_minutes", minutes))?;
    count("train.batch_size", t.batch_size, MOST_BATCH)?;
    ensure!(
        t.micro_batch != Some(0),
        "train.micro_batch must be above 0 (null: train.batch_size, divided among train.replicas)"
    );
    ensure!((1..=MOST_THREADS).contains(&t.replicas), "train.replicas must be 1 to {MOST_THREADS}, not {}", t.replicas);
    ensure!(
        t.recompute == 0 || backbone.contains("vig_"),
        "train.recompute is for stages of ViG, and {backbone} keeps all of its own: set it to 0"
    );
    ensure!(t.clip_norm.is_none_or(|c| c > 0.0), "train.clip_norm must be above 0 (null: no clipping)");
    ensure!(t.ema.is_none_or(|e| (0.0..1.0).contains(&e)), "train.ema must be at least 0 and below 1 (null: none)");
    ensure!(
        t.threads.is_none_or(|n| (1..=MOST_THREADS).contains(&n)),
        "train.threads must be 1 to {MOST_THREADS} (null: one per core)"
    );
    Ok(())
}

/// A number above 0.
fn positive(name: &str, v: f64) -> Result<()> {
    ensure!(v.is_finite() && v > 0.0, "{name} must be above 0, not {v}");
    Ok(())
}

/// A number of at least 0.
fn not_negative(name: &str, v: f64) -> Result<()> {
    ensure!(v.is_finite() && v >= 0.0, "{name} must not be negative, but is {v}");
    Ok(())
}

/// A number of things: 1 to `most`.
fn count(name: &str, v: impl TryInto<i64> + Display + Copy, most: i64) -> Result<()> {
    ensure!(v.try_into().is_ok_and(|v| (1..=most).contains(&v)), "{name} must be 1 to {most}, not {v}");
    Ok(())
}

/// A number between two, or one of them.
fn within(name: &str, v: f64, [least, most]: [f64; 2]) -> Result<()> {
    ensure!((least..=most).contains(&v), "{name} must be {least} to {most}, not {v}");
    Ok(())
}

/// A number of layers: at least `least`.
fn layers(name: &str, v: i64, least: i64) -> Result<()> {
    ensure!((least..=MOST_LAYERS).contains(&v), "{name} must be {least} to {MOST_LAYERS}, not {v}");
    Ok(())
}

/// A part of a whole.
fn fraction(name: &str, v: f64) -> Result<()> {
    ensure!((0.0..=1.0).contains(&v), "{name} must be between 0 and 1, not {v}");
    Ok(())
}

/// The fraction of the old value in a running average, which never forgets at 1.
fn averaging(name: &str, v: f64) -> Result<()> {
    ensure!((0.0..1.0).contains(&v), "{name} must be at least 0 and below 1, not {v}");
    Ok(())
}

/// \[least, most\], above 0 and at most `most`.
fn range(name: &str, v: [f64; 2], most: f64) -> Result<()> {
    ensure!(
        v[0] > 0.0 && v[0] <= v[1] && v[1] <= most,
        "{name} must be above 0{}, [least, most] where it is two numbers; {v:?} is not",
        if most.is_finite() { format!(" and at most {most}") } else { String::new() }
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Experiment;

    /// Whether a config takes a value; if not, the message names the key.
    fn takes<C: Experiment>(start: &str, key: &str, value: &str) -> bool {
        match C::from_json_with(start, &[format!("{key}={value}")]) {
            Ok(_) => true,
            Err(error) => {
                let text = format!("{error:#}");
                assert!(text.contains(key), "{key}={value}: {text}");
                false
            }
        }
    }

    /// Of each key, values at the bounds that are taken, and values beyond them that are refused.
    fn check<C: Experiment>(start: &str, bounds: &[(&str, &[&str], &[&str])]) {
        for (key, inside, beyond) in bounds {
            for (values, expected) in [(inside, true), (beyond, false)] {
                for value in *values {
                    assert_eq!(takes::<C>(start, key, value), expected, "{key}={value}");
                }
            }
        }
    }

    const FRACTION: (&[&str], &[&str]) = (&["0", "1"], &["-0.1", "1.1"]);
    const ABOVE_0: (&[&str], &[&str]) = (&["1e-9"], &["0"]);
    const FROM_0: (&[&str], &[&str]) = (&["0"], &["-0.1"]);
    const COUNT: (&[&str], &[&str]) = (&["1"], &["0"]);
    const CHANNELS: (&[&str], &[&str]) = (&["1", "65536"], &["0", "65537", "9223372036854775807"]);
    const BOXES: (&[&str], &[&str]) = (&["1", "1000000"], &["0", "1000001", "18446744073709551615"]);

    fn check_all<C: Experiment>(start: &str, keys: &[&str], (inside, beyond): (&[&str], &[&str])) {
        keys.iter().for_each(|key| check::<C>(start, &[(key, inside, beyond)]));
    }

    fn check_what_all_have<C: Experiment>() {
        check_all::<C>("{}", &["model.backbone.stochastic_dilation"], FRACTION);
        check_all::<C>("{}", &["train.weight_decay", "train.grace_seconds", "model.backbone.norm_eps"], FROM_0);
        check_all::<C>("{}", &["train.max_minutes", "checkpoint.every_minutes", "train.clip_norm"], ABOVE_0);
        let counts = ["model.backbone.k", "model.backbone.heads", "train.micro_batch", "train.batch_size"];
        check_all::<C>("{}", &counts, COUNT);
        let averages = ["train.momentum", "train.ema", "model.backbone.drop_path"];
        check_all::<C>("{}", &averages, (&["0", "0.99"], &["1", "-0.1"]));
        check_all::<C>("{}", &["train.replicas", "train.threads"], (&["1", "1024"], &["0", "1025"]));
        check::<C>(
            "{}",
            &[
                ("model.backbone.image_size", &["1", "32768"], &["0", "32769"]),
                ("model.backbone.blocks", &["[1,1,1,1]"], &["[0,1,1,1]", "[1,1,1,1001]"]),
                ("data.workers", &["0", "1024"], &["1025"]),
                ("data.std", &["[2e-6,1,1000]"], &["[0,1,1]", "[1,1,-1]", "[1e-9,1,1]", "[1,1,1001]"]),
                ("data.mean", &["[-1000,0,1000]"], &["[-1001,0,0]", "[0,0,1e9]"]),
                ("train.batch_size", &["16777216"], &["16777217"]),
                ("model.backbone.channels", &["[65536,1,1,1]"], &["[0,1,1,1]", "[1,1,1,65537]"]),
                ("train.betas", &["[0,0]", "[0.99,0.99]"], &["[1,0]", "[0,1]"]),
            ],
        );
    }

    #[test]
    fn every_bound_of_a_detector_is_held() {
        check_what_all_have::<Config>();
        let fractions = [
            "model.match.positive",
            "model.match.crowd",
            "model.match.low_quality_iou",
            "model.loss.alpha",
            "model.test.nms",
            "model.test.score",
            "data.flip",
            "data.flip_vertical",
            "data.color",
            "data.crop.probability",
            "data.crop.scale",
            "data.crop.visible",
            "data.rotate",
            "data.mosaic",
            "data.mixup",
            "data.strong_until",
            "data.affine.probability",
            "train.warmup_factor",
        ];
        // A detector's matching keeps its two limits in order.
        let start = r#"{"model": {"match": {"negative": 0}}}"#;
        check_all::<Config>(start, &fractions, FRACTION);
        let from_0 = [
            "model.loss.gamma",
            "model.loss.beta",
            "model.loss.box_weight",
            "model.test.min_side",
            "train.backbone_lr",
            "train.lr_gamma",
            "train.lr_end",
        ];
        check_all::<Config>("{}", &from_0, FROM_0);
        check_all::<Config>("{}", &["train.lr"], ABOVE_0);
        check_all::<Config>("{}", &["model.match.candidates"], COUNT);
        check_all::<Config>("{}", &["model.fpn.channels", "model.head.channels"], CHANNELS);
        check_all::<Config>("{}", &["model.test.top_k", "model.test.max_detections"], BOXES);
        let long: &[(&str, &[&str], &[&str])] = &[
            ("model.match.negative", &["0", "0.5"], &["-0.1", "0.6"]),
            ("model.head.convs", &["0", "1000"], &["-1", "1001"]),
            ("model.head.prior", &["1e-9", "0.999"], &["0", "1"]),
            ("model.anchors.strides", &["[1]"], &["[]", "[0]"]),
            ("model.anchors.ratios", &["[1e-3]", "[1000]"], &["[]", "[0]", "[1001]"]),
            ("model.anchors.base", &["1e-3", "1e5"], &["0", "1e-4", "100001"]),
            ("model.anchors.octaves", &["1", "1000"], &["0", "1001"]),
            ("model.anchors.sizes", &["[1e-3]", "[1e5]"], &["[]", "[0]", "[100001]"]),
            ("model.outputs", &["2", "65536"], &["1", "65537", "9223372036854775807"]),
            ("data.size", &["[1,1]", "[1,32768]"], &["[0,1]", "[2,1]", "[1,32769]"]),
            ("data.test_size", &["[1,1]", "[1,32768]"], &["[0,1]", "[2,1]", "[1,32769]"]),
            ("data.pad", &["1", "32768"], &["0", "32769"]),
            ("data.hue", &["0", "0.5"], &["-0.1", "0.51"]),
            ("data.affine.degrees", &["0", "180"], &["-1", "181"]),
            ("data.affine.shear", &["0", "89.9"], &["-1", "90"]),
            ("data.affine.scale", &["[1e-9,16]", "[1,1]"], &["[0,1]", "[2,1]", "[1,16.1]"]),
            ("data.scale", &["[1e-9,1]", "[1,1]"], &["[0,1]", "[2,1]", "[1,1000]"]),
        ];
        check::<Config>("{}", long);
    }

    #[test]
    fn every_bound_of_two_stages_is_held() {
        let start = r#"{"model": {"detector": "mask_rcnn",
            "rpn": {"match": {"negative": 0}}, "roi": {"match": {"negative": 0}}}}"#;
        for part in ["rpn", "roi"] {
            let keys = |names: &[&str]| names.iter().map(|name| format!("model.{part}.{name}")).collect::<Vec<_>>();
            let all = |names: &[&str], bounds| {
                keys(names).iter().for_each(|key| check_all::<Config>(start, &[key], bounds));
            };
            all(&["match.positive", "match.crowd", "match.low_quality_iou", "sample.positive"], FRACTION);
            all(&["loss.beta", "loss.box_weight"], FROM_0);
            all(&["sample.count"], COUNT);
            let negative = format!("model.{part}.match.negative");
            check::<Config>(start, &[(&negative, &["0", "0.5"], &["-0.1", "0.8"])]);
        }
        check_all::<Config>(start, &["model.rpn.nms", "model.rpn.score", "model.mask_head.threshold"], FRACTION);
        check_all::<Config>(start, &["model.mask_head.weight"], FROM_0);
        check_all::<Config>(start, &["model.roi.canonical_size"], ABOVE_0);
        let boxes = ["model.rpn.train.top_k", "model.rpn.train.keep", "model.rpn.test.top_k", "model.rpn.test.keep"];
        check_all::<Config>(start, &boxes, BOXES);
        check_all::<Config>(start, &["model.roi.channels", "model.mask_head.channels"], CHANNELS);
        check_all::<Config>(start, &["model.roi.pool", "model.mask_head.pool"], (&["1", "256"], &["0", "257"]));
        check_all::<Config>(start, &["model.rpn.convs", "model.roi.fcs"], (&["1", "1000"], &["0", "1001"]));
        check_all::<Config>(start, &["model.roi.convs", "model.mask_head.convs"], (&["0", "1000"], &["-1", "1001"]));
        check_all::<Config>(start, &["model.roi.sampling_ratio"], (&["0", "64"], &["65"]));
        check::<Config>(start, &[("model.roi.box_weights", &["[1,1,1,1e-9]"], &["[1,1,1,0]"])]);
    }

    #[test]
    fn every_bound_of_a_classifier_is_held() {
        check_what_all_have::<ClassifyConfig>();
        let fractions = [
            "data.flip",
            "data.rand_augment.probability",
            "data.color_jitter",
            "data.erase.probability",
            "data.mix_probability",
            "data.mix_switch",
            "train.label_smoothing",
        ];
        check_all::<ClassifyConfig>("{}", &fractions, FRACTION);
        let from_0 = ["data.rand_augment.std", "data.mixup", "data.cutmix", "train.warmup_epochs"];
        check_all::<ClassifyConfig>("{}", &from_0, FROM_0);
        check_all::<ClassifyConfig>("{}", &["data.repeats", "data.repeat_round", "train.lr_batch"], COUNT);
        let start = r#"{"train": {"lr": 0.5}}"#;
        check_all::<ClassifyConfig>(start, &["train.warmup_lr", "train.min_lr"], (&["0", "0.5"], &["-0.1", "0.51"]));
        let bounds: &[(&str, &[&str], &[&str])] = &[
            ("data.size", &["1", "16384"], &["0", "16385"]),
            ("data.scale", &["[1e-9,1]"], &["[0,1]", "[1,0.5]", "[0.5,1.1]"]),
            ("data.ratio", &["[1e-9,1e9]"], &["[0,1]", "[2,1]"]),
            ("data.rand_augment.magnitude", &["0", "10"], &["-1", "10.1"]),
            ("data.rand_augment.ops", &["0", "100"], &["101"]),
            ("data.erase.area", &["[1e-9,1]"], &["[0,1]", "[1,0.5]", "[0.5,1.1]"]),
            ("data.erase.aspect", &["1e-9", "1"], &["0", "1.1"]),
            ("data.crop", &["0.01", "1"], &["0", "1e-9", "1.1"]),
        ];
        check::<ClassifyConfig>("{}", bounds);
    }
}
