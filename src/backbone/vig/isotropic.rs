//! Isotropic ViG (Han et al., 2022, section 3.3 and Table 1): one stage on one grid.

use anyhow::{ensure, Result};

use super::Plan;
use crate::config::BackboneConfig;

/// (channels, blocks) of a published isotropic model.
pub fn preset(name: &str) -> Option<([i64; 1], [i64; 1])> {
    Some(match name {
        "vig_ti" => ([192], [12]),
        "vig_s" => ([320], [16]),
        "vig_b" => ([640], [16]),
        _ => return None,
    })
}

/// The plan of isotropic ViG: patches of 16 pixels, k grows to twice its first value, no relative position.
pub(super) fn plan(config: &BackboneConfig) -> Result<Plan> {
    let ([channels], [blocks]) = config.stages(preset(&config.name))?;
    ensure!(
        channels % 8 == 0,
        "isotropic ViG takes channels that are a multiple of 8 (its stem starts with an eighth of them), not {channels}"
    );
    ensure!(
        config.image_size > 0 && config.image_size % 16 == 0,
        "model.backbone.image_size of isotropic ViG must be a multiple of 16, not {}",
        config.image_size
    );
    let grid = config.image_size / 16;
    Ok(Plan {
        stem: vec![channels / 8, channels / 4, channels / 2, channels],
        channels: vec![channels],
        blocks: vec![blocks],
        reduce: &[1],
        grid,
        k_last: 2 * config.k,
        reach: grid.pow(2),
        relative: false,
    })
}
