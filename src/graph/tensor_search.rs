//! Neighbours by tensor operations alone, for any device: at bounded memory, and without waiting for the device.
//!
//! The k·d nearest of a node (d the dilation; all but the first of the last d go) are `want` = (k − 1)·d + 1
//! candidates. Candidates stand in groups of 16, one after another. The `want` nearest lie in the `want` groups with
//! the smallest minima, equal minima by index: were a candidate of another group among them, each of those groups
//! would have one as near and of smaller index, or nearer: `want` before it. So what is sorted is a tenth of all.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::relative::RelativePosition;
use crate::nn::crossings::send;
use crate::nn::precision::full_precision;
use crate::nn::ranking::smallest;

/// Candidates of a group.
const GROUP: i64 = 16;
/// Distances held at a time: 4 MB on the CPU, which its caches hold; elsewhere 512 MB, a fraction of any GPU that
/// trains detectors.
const ON_CPU: i64 = 1 << 20;
const ELSEWHERE: i64 = 1 << 27;
/// Stands for a distance that is NaN: farther than any.
const FAR: f64 = 1e30;
/// Bytes of factors that are kept on devices for sizes seen before. An image of 800×1280 needs 11 MB for all stages.
const CACHE: usize = 256 << 20;

/// (height, width) of the nodes' grid and of the candidates'.
pub(super) type Grids = [(usize, usize); 2];

/// What one search is about.
pub(super) struct TensorSearch<'a> {
    /// Neighbours of a node, at most as many as each image has candidates.
    pub k: usize,
    /// Every `dilation`-th of the nearest is one.
    pub dilation: usize,
    /// The relative position, if there is one.
    pub position: Option<&'a RelativePosition>,
    /// The parts of the grids that are each image's own; none: all of them.
    pub own: Option<&'a [Grids]>,
}

impl TensorSearch<'_> {
    /// The neighbours of `x` `[B, C, H, W]` among `y` `[B, C, h, w]`, nearest first: int64 `[B, H·W, k]`. Equal
    /// distances by index, NaN last. Nodes beyond an image point to the first candidate.
    pub fn find(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let ((b, _, h, w), (_, _, ch, cw)) = (x.size4()?, y.size4()?);
        let (n, m, device) = (h * w, ch * cw, x.device());
        let (mut x, mut y) = (unit_rows(x), unit_rows(y));
        // Numbers that are no numbers are taken out of the sums, and put where they belong by hand.
        let lost = x.isnan().any_dim(2, true);
        // Half the squared distance, without what is the same for all candidates of a node.
        let squares = (&y * &y).sum_dim_intlist([2i64].as_slice(), false, None::<Kind>);
        let mut bias = (squares * 0.5).f_nan_to_num(FAR, None, None)?.unsqueeze(1);
        (x, y) = (x.f_nan_to_num(0.0, None, None)?, y.f_nan_to_num(0.0, None, None)?);
        if let Some(position) = self.position {
            let [u, v] = self.factors(position, [(h, w), (ch, cw)], device)?;
            let join = |rows: &Tensor, factor: &Tensor| Tensor::cat(&[rows, &factor.expand([b, -1, -1], false)], 2);
            (x, y) = (join(&x, &u), join(&y, &v));
        }
        if let Some(own) = self.own {
            let outside = inside(own.iter().map(|grids| grids[1]), (ch, cw), device).logical_not();
            bias = bias.masked_fill(&outside.view([b, 1, m]), f64::INFINITY);
        }
        let (y, columns_bias) = grouped(&y, &bias)?;
        let columns = columns_bias.size()[2];
        let bound = if device == Device::Cpu { ON_CPU } else { ELSEWHERE };
        let rows = (bound / (b * columns)).clamp(1, n);
        let mut found = Vec::new();
        for start in (0..n).step_by(rows as usize) {
            let part = x.narrow(1, start, rows.min(n - start));
            let shape = [b, part.size()[1], columns];
            let distance = columns_bias.expand(shape, false).f_baddbmm(&part, &y, 1.0, -1.0)?;
            found.push(self.nearest(&distance)?);
        }
        let found = Tensor::cat(&found, 1);
        // All candidates of such a node are as far: the first are the nearest.
        let first = match self.own {
            Some(_) => {
                self.nearest_of(&bias.isinf().to_kind(Kind::Float), &Tensor::arange(m, (Kind::Int64, device)))?
            }
            None => Tensor::arange(self.k as i64, (Kind::Int64, device)) * self.dilation as i64,
        };
        let found = first.where_self(&lost, &found);
        Ok(match self.own {
            Some(own) => found * inside(own.iter().map(|grids| grids[0]), (h, w), device).view([b, n, 1]),
            None => found,
        })
    }

    /// Of distances `[B, R, 16·G]`, groups side by side, the neighbours `[B, R, k]`.
    fn nearest(&self, distance: &Tensor) -> Result<Tensor> {
        let (b, rows, columns) = distance.size3()?;
        let (groups, device) = (columns / GROUP, distance.device());
        let want = self.want();
        let distance = distance.view([b, rows, GROUP, groups]);
        let number = |count: i64| Tensor::arange(count, (Kind::Int64, device));
        let within = number(GROUP).unsqueeze(1);
        let (near, index) = if groups > want {
            let kept = smallest(&distance.f_amin([2], false)?, &number(groups), want)?.unsqueeze(2);
            let near = distance.f_gather(3, &kept.expand([b, rows, GROUP, want], false), false)?;
            (near, kept * GROUP + within)
        } else {
            (distance, number(groups) * GROUP + within)
        };
        self.nearest_of(&near.flatten(2, 3), &index.flatten(-2, -1))
    }

    /// Of distances `[…, …, D]` of these candidates the neighbours `[…, …, k]`.
    fn nearest_of(&self, distance: &Tensor, candidates: &Tensor) -> Result<Tensor> {
        let want = self.want();
        Ok(smallest(distance, candidates, want)?.slice(2, 0, want, self.dilation as i64))
    }

    /// How many of the nearest are looked at.
    fn want(&self) -> i64 {
        ((self.k - 1) * self.dilation + 1) as i64
    }

    /// The factors of the relative position, halved, as rows of nodes and of candidates: `[1 or B, …, rank]`.
    fn factors(&self, position: &RelativePosition, grids: [(i64, i64); 2], device: Device) -> Result<[Tensor; 2]> {
        let Some(own) = self.own else {
            let grids = grids.map(|(height, width)| (height as usize, width as usize));
            return Ok(factors_on(position, grids, device)?.map(|rows| rows.unsqueeze(0)));
        };
        let parts = own.iter().map(|&own| factors_on(position, own, device)).collect::<Result<Vec<_>>>()?;
        Ok([0, 1].map(|side| {
            let (height, width) = grids[side];
            let spread = |(rows, own): (&[Tensor; 2], &Grids)| {
                let (h, w) = (own[side].0 as i64, own[side].1 as i64);
                let map = rows[side].view([h, w, -1]).constant_pad_nd([0, 0, 0, width - w, 0, height - h]);
                map.flatten(0, 1)
            };
            Tensor::stack(&parts.iter().zip(own).map(spread).collect::<Vec<_>>(), 0)
        }))
    }
}

/// `[B, C, H, W]` to rows `[B, H·W, C]` of length one, in float32.
fn unit_rows(maps: &Tensor) -> Tensor {
    let rows = full_precision(&maps.detach()).to_kind(Kind::Float).permute([0, 2, 3, 1]).flatten(1, 2);
    let norm = rows.norm_scalaropt_dim(2, [2i64].as_slice(), true).clamp_min(1e-12);
    rows / norm
}

/// Where on maps of (height, width) the images' own parts are: bool `[B, height, width]`.
fn inside(own: impl Iterator<Item = (usize, usize)>, (height, width): (i64, i64), device: Device) -> Tensor {
    let one = |(h, w): (usize, usize)| {
        let (h, w) = (h as i64, w as i64);
        Tensor::ones([h, w], (Kind::Bool, device)).constant_pad_nd([0, width - w, 0, height - h])
    };
    Tensor::stack(&own.map(one).collect::<Vec<_>>(), 0)
}

/// Candidates `[B, M, C]` as columns `[B, C, 16·G]` and their bias `[B, 1, 16·G]`: column j·G + g is number j of group
/// g, so that what is reduced over a group lies in whole rows. The last group is filled up with what is farthest.
fn grouped(y: &Tensor, bias: &Tensor) -> Result<(Tensor, Tensor)> {
    let (b, m, c) = y.size3()?;
    let groups = m.div_euclid(GROUP) + i64::from(m % GROUP > 0);
    let more = groups * GROUP - m;
    let y = y.constant_pad_nd([0, 0, 0, more]).view([b, groups, GROUP, c]).transpose(1, 2);
    let bias = bias.f_pad([0, more], "constant", f64::INFINITY)?.view([b, 1, groups, GROUP]).transpose(2, 3);
    Ok((y.reshape([b, -1, c]).transpose(1, 2), bias.reshape([b, 1, -1])))
}

/// The factors for these grids on a device, halved the nodes': `[nodes, rank]` and `[candidates, rank]`. Kept for the
/// sizes seen last.
fn factors_on(position: &RelativePosition, grids: Grids, device: Device) -> Result<[Tensor; 2]> {
    type Entry = ((RelativePosition, Grids, Device), [Tensor; 2]);
    static KEPT: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
    let key = (*position, grids, device);
    let shared = |pair: &[Tensor; 2]| pair.each_ref().map(Tensor::shallow_clone);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = kept.iter().position(|entry| entry.0 == key) {
        kept[at..].rotate_left(1);
        return Ok(shared(&kept[kept.len() - 1].1));
    }
    let factors = position.factors(grids[0], grids[1]);
    let rows = |values: &[f32]| send(values, device).view([-1, factors.rank as i64]);
    let made = [rows(&factors.u) * 0.5, rows(&factors.v)];
    kept.push((key, shared(&made)));
    let bytes = |pair: &[Tensor; 2]| pair.iter().map(|t| 4 * t.numel()).sum::<usize>();
    let mut all: usize = kept.iter().map(|entry| bytes(&entry.1)).sum();
    // The newest stays even if it is too large alone: every block of its stage asks for it.
    while all > CACHE && kept.len() > 1 {
        all -= bytes(&kept.remove(0).1);
    }
    Ok(made)
}
