//! The best of what a head says of its anchors. They are chosen where its outputs are, so that from a GPU they alone
//! travel, all levels and images at once.

use anyhow::Result;
use tch::{Kind, Tensor};

use crate::nn::crossings::fetch;
use crate::nn::ranking::smallest;

/// Numbers of a candidate: its logit, its index, its deltas.
const WIDTH: i64 = 6;

/// Candidates of one level of one image.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Candidates {
    /// Their logits, largest first; of equal ones the one with the smaller index comes first.
    pub logits: Vec<f32>,
    /// Which of the level's logits they are.
    pub indices: Vec<usize>,
    /// The deltas of their anchors.
    pub deltas: Vec<[f32; 4]>,
}

/// The outputs for one level of a batch: logits `[B, A·K]`, anchors first, deltas `[B, A, 4]`.
pub(super) type LevelOutputs = (Tensor, Tensor);

/// The `most` candidates with the largest logits of each level, for each image. What is not a number comes last.
pub(super) fn fetch_best(levels: &[LevelOutputs], most: usize) -> Result<Vec<Vec<Candidates>>> {
    let mut best = Vec::with_capacity(levels.len());
    for (logits, deltas) in levels {
        let ((batch, count), (_, anchors, _)) = (logits.size2()?, deltas.size3()?);
        let most = count.min(most as i64);
        let falling = (-logits).f_nan_to_num(f64::INFINITY, f64::INFINITY, f64::NEG_INFINITY)?;
        let index = smallest(&falling, &Tensor::arange(count, (Kind::Int64, logits.device())), most)?;
        let anchor = index.f_divide_scalar_mode(count / anchors.max(1), "floor")?.unsqueeze(2);
        let deltas = deltas.f_gather(1, &anchor.expand([batch, most, 4], false), false)?;
        // float64 holds all of them.
        let wide = |t: Tensor| t.to_kind(Kind::Double);
        let logits = logits.f_gather(1, &index, false)?.unsqueeze(2);
        best.push(Tensor::cat(&[wide(logits), wide(index.unsqueeze(2)), wide(deltas)], 2));
    }
    let counts: Vec<usize> = best.iter().map(|level| level.size()[1] as usize).collect();
    let values = Vec::<f64>::try_from(fetch(&Tensor::cat(&best, 1)).reshape([-1]))?;
    let mut rows = values.chunks_exact(WIDTH as usize);
    let batch = best.first().map_or(0, |level| level.size()[0]);
    let level = |&count: &usize| {
        let mut level = Candidates::default();
        for row in rows.by_ref().take(count) {
            level.logits.push(row[0] as f32);
            level.indices.push(row[1] as usize);
            level.deltas.push([2, 3, 4, 5].map(|i| row[i] as f32));
        }
        level
    };
    let mut level = level;
    Ok((0..batch).map(|_| counts.iter().map(&mut level).collect()).collect())
}
