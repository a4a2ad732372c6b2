//! Values of a config that no run could work with.

use anyhow::{ensure, Result};

use super::Config;

/// Longest side that an image may be given, in pixels: a batch of one takes 12 GB.
const MOST_PIXELS: u32 = 32_768;
/// Most threads of one kind.
const MOST_THREADS: usize = 1024;

impl Config {
    /// Values that no run could work with.
    pub(super) fn check(&self) -> Result<()> {
        let (m, d, t) = (&self.model, &self.data, &self.train);
        positive("model.backbone.k", m.backbone.k as f64)?;
        ensure!((0.0..1.0).contains(&m.backbone.drop_path), "model.backbone.drop_path must be at least 0 and below 1");
        positive("model.backbone.heads", m.backbone.heads as f64)?;
        share("model.backbone.stochastic_dilation", m.backbone.stochastic_dilation)?;
        not_negative("model.backbone.norm_eps", m.backbone.norm_eps)?;
        positive("model.fpn.channels", m.fpn.channels as f64)?;
        positive("model.head.channels", m.head.channels as f64)?;
        ensure!(m.head.convs >= 0, "model.head.convs must not be negative");
        ensure!(m.head.prior > 0.0 && m.head.prior < 1.0, "model.head.prior must be between 0 and 1");
        ensure!(!m.anchors.strides.is_empty(), "model.anchors.strides must name a stride for each level");
        m.anchors.strides.iter().try_for_each(|s| positive("model.anchors.strides", *s as f64))?;
        ensure!(!m.anchors.ratios.is_empty(), "model.anchors.ratios must not be empty");
        m.anchors.ratios.iter().try_for_each(|r| positive("model.anchors.ratios", *r))?;
        positive("model.anchors.octaves", m.anchors.octaves as f64)?;
        positive("model.anchors.base", m.anchors.base)?;
        share("model.match.positive", m.matching.positive)?;
        share("model.match.negative", m.matching.negative)?;
        ensure!(
            m.matching.negative <= m.matching.positive,
            "model.match.negative must not be above model.match.positive"
        );
        share("model.match.crowd", m.matching.crowd)?;
        share("model.loss.alpha", m.loss.alpha)?;
        not_negative("model.loss.gamma", m.loss.gamma)?;
        not_negative("model.loss.beta", m.loss.beta)?;
        not_negative("model.loss.box_weight", m.loss.box_weight)?;
        self.check_two_stages()?;
        ensure!(m.outputs.is_none_or(|n| n > 1), "model.outputs must be above 1 (null: one for each class)");
        share("model.test.nms", m.test.nms)?;
        share("model.test.score", m.test.score)?;
        positive("model.test.top_k", m.test.top_k as f64)?;
        positive("model.test.max_detections", m.test.max_detections as f64)?;
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
        share("data.flip", d.flip)?;
        share("data.flip_vertical", d.flip_vertical)?;
        share("data.color", d.color)?;
        share("data.crop.probability", d.crop.probability)?;
        share("data.crop.scale", d.crop.scale)?;
        share("data.crop.visible", d.crop.visible)?;
        share("data.rotate", d.rotate)?;
        share("data.mosaic", d.mosaic)?;
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
        ensure!(d.workers <= MOST_THREADS, "data.workers must be at most {MOST_THREADS}, not {}", d.workers);
        ensure!(d.mean.iter().all(|m| m.is_finite()), "data.mean must be numbers, not {:?}", d.mean);
        d.std.iter().try_for_each(|s| positive("data.std", f64::from(*s)))?;
        positive("train.lr", t.lr)?;
        not_negative("train.backbone_lr", t.backbone_lr)?;
        not_negative("train.weight_decay", t.weight_decay)?;
        averaging("train.momentum", t.momentum)?;
        t.betas.iter().try_for_each(|beta| averaging("train.betas", *beta))?;
        share("train.warmup_factor", t.warmup_factor)?;
        not_negative("train.lr_gamma", t.lr_gamma)?;
        not_negative("train.lr_end", t.lr_end)?;
        t.max_minutes.map_or(Ok(()), |minutes| positive("train.max_minutes", minutes))?;
        positive("train.batch_size", t.batch_size as f64)?;
        ensure!(
            t.micro_batch != Some(0),
            "train.micro_batch must be above 0 (null: train.batch_size, divided among train.replicas)"
        );
        ensure!(
            (1..=MOST_THREADS).contains(&t.replicas),
            "train.replicas must be 1 to {MOST_THREADS}, not {}",
            t.replicas
        );
        ensure!(t.clip_norm.is_none_or(|c| c > 0.0), "train.clip_norm must be above 0 (null: no clipping)");
        ensure!(t.ema.is_none_or(|e| (0.0..1.0).contains(&e)), "train.ema must be at least 0 and below 1 (null: none)");
        ensure!(
            t.threads.is_none_or(|n| (1..=MOST_THREADS).contains(&n)),
            "train.threads must be 1 to {MOST_THREADS} (null: one per core)"
        );
        Ok(())
    }

    /// [`Config::check`] of what only two-stage detectors have.
    fn check_two_stages(&self) -> Result<()> {
        let m = &self.model;
        for (name, matching, sample, loss) in
            [("rpn", &m.rpn.matching, &m.rpn.sample, &m.rpn.loss), ("roi", &m.roi.matching, &m.roi.sample, &m.roi.loss)]
        {
            share(&format!("model.{name}.match.positive"), matching.positive)?;
            share(&format!("model.{name}.match.negative"), matching.negative)?;
            ensure!(
                matching.negative <= matching.positive,
                "model.{name}.match.negative must not be above model.{name}.match.positive"
            );
            share(&format!("model.{name}.sample.positive"), sample.positive)?;
            positive(&format!("model.{name}.sample.count"), sample.count as f64)?;
            share(&format!("model.{name}.match.crowd"), matching.crowd)?;
            not_negative(&format!("model.{name}.loss.beta"), loss.beta)?;
            not_negative(&format!("model.{name}.loss.box_weight"), loss.box_weight)?;
        }
        ensure!(m.rpn.convs >= 1, "model.rpn.convs must be at least 1");
        share("model.rpn.nms", m.rpn.nms)?;
        for (name, p) in [("train", &m.rpn.train), ("test", &m.rpn.test)] {
            positive(&format!("model.rpn.{name}.top_k"), p.top_k as f64)?;
            positive(&format!("model.rpn.{name}.keep"), p.keep as f64)?;
        }
        positive("model.roi.pool", m.roi.pool as f64)?;
        positive("model.roi.canonical_size", m.roi.canonical_size)?;
        positive("model.roi.channels", m.roi.channels as f64)?;
        m.roi.box_weights.iter().try_for_each(|w| positive("model.roi.box_weights", f64::from(*w)))?;
        ensure!(m.mask_head.convs >= 0, "model.mask_head.convs must not be negative");
        positive("model.mask_head.channels", m.mask_head.channels as f64)?;
        positive("model.mask_head.pool", m.mask_head.pool as f64)?;
        not_negative("model.mask_head.weight", m.mask_head.weight)?;
        share("model.mask_head.threshold", m.mask_head.threshold)
    }
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

/// A part of a whole.
fn share(name: &str, v: f64) -> Result<()> {
    ensure!((0.0..=1.0).contains(&v), "{name} must be between 0 and 1, not {v}");
    Ok(())
}

/// The share of the old value in a running average, which never forgets at 1.
fn averaging(name: &str, v: f64) -> Result<()> {
    ensure!((0.0..1.0).contains(&v), "{name} must be at least 0 and below 1, not {v}");
    Ok(())
}
