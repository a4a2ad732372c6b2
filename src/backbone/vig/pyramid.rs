//! Pyramid ViG (Han et al., 2022, section 3.3 and Table 2): four stages on a shrinking grid.

use anyhow::{ensure, Result};

use super::Plan;
use crate::config::BackboneConfig;

/// Side of the published position embedding: 224 pixels at stride 4.
pub(crate) const NATIVE_GRID: i64 = 56;
/// Average pooling that makes the candidates of each stage from its nodes.
pub(crate) const REDUCE: [i64; 4] = [4, 2, 1, 1];

/// (channels, blocks) of each stage of a published model; `pvig_n`, for small machines, is vigdet's own.
pub fn preset(name: &str) -> Option<([i64; 4], [i64; 4])> {
    Some(match name {
        "pvig_n" => ([32, 64, 128, 224], [1, 1, 3, 1]),
        "pvig_ti" => ([48, 96, 240, 384], [2, 2, 6, 2]),
        "pvig_s" => ([80, 160, 400, 640], [2, 2, 6, 2]),
        "pvig_m" => ([96, 192, 384, 768], [2, 2, 16, 2]),
        "pvig_b" => ([128, 256, 512, 1024], [2, 2, 18, 2]),
        _ => return None,
    })
}

/// The plan: patches of 4 pixels, k the same in all blocks, relative positions.
pub(super) fn plan(config: &BackboneConfig) -> Result<Plan> {
    let (channels, blocks) = config.stages(preset(&config.name))?;
    ensure!(
        channels.iter().all(|c| c % 4 == 0),
        "Pyramid ViG takes channels that are multiples of 4 (position tables have four parts), not {channels:?}"
    );
    ensure!(
        config.image_size > 0 && config.image_size % 32 == 0,
        "model.backbone.image_size of Pyramid ViG must be a multiple of 32, not {}",
        config.image_size
    );
    let grid = config.image_size / 4;
    Ok(Plan {
        stem: vec![channels[0] / 2, channels[0]],
        channels: channels.to_vec(),
        blocks: blocks.to_vec(),
        reduce: &REDUCE,
        grid,
        k_last: config.k,
        reach: (grid / 8).pow(2),
        relative: true,
    })
}
