//! Data-parallel training: each rank works on its share of a step's micro batches, and gradients are summed.
//!
//! What PyTorch's `DistributedDataParallel` does (Li et al., 2020, "PyTorch Distributed"), with sums in place of means:
//! a micro batch's gradient is already scaled by its fraction of the whole batch. Running statistics of batch norms
//! move, as with replicas, by the mean of the ranks' moves, so that all ranks always hold the same network.

use anyhow::{bail, ensure, Result};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::ema::Ema;
use super::optimizer::Optimizer;
use super::resume::difference;
use crate::config::Experiment;
use crate::data::{Feed, Source};
use crate::nn::memory::for_each_pair;
use crate::ranks::Ranks;

/// Config values that may differ between machines.
const OF_MACHINES: [&str; 3] = ["data.root", "data.workers", "train.threads"];
/// Room for the parts of a loss.
const PARTS: usize = 16;

/// The ranks of a run, and the buffer in which their gradients meet.
#[derive(Debug)]
pub struct DataParallel {
    ranks: Ranks,
    /// What learns, by name.
    parameters: Vec<Tensor>,
    /// Running statistics of norms.
    statistics: Vec<Tensor>,
    /// Their values after the last step, one after another.
    before: Tensor,
    /// All gradients, then what the statistics moved by; empty for a single process.
    flat: Tensor,
    /// The place of each parameter's gradient in it, in the parameter's shape.
    places: Vec<Tensor>,
}

/// What the micro batches of a step have added up to, beside gradients.
pub struct Sums<'a> {
    /// Images.
    pub images: &'a mut usize,
    /// Of each part of the loss, the sum over images.
    pub parts: &'a mut Vec<(&'static str, f64)>,
    /// Whether the run is to stop.
    pub stop: &'a mut bool,
}

impl DataParallel {
    /// Gives every rank the first one's network, optimizer and average.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn start(
        ranks: Ranks,
        variables: &[(String, Tensor)],
        optimizer: &mut Optimizer,
        ema: Option<&Ema>,
    ) -> Result<Self> {
        let is_statistic = |name: &str| name.ends_with(".running_mean") || name.ends_with(".running_var");
        let of = |wanted: &dyn Fn(&(String, Tensor)) -> bool| -> Vec<Tensor> {
            variables.iter().filter(|v| ranks.size() > 1 && wanted(v)).map(|(_, v)| v.shallow_clone()).collect()
        };
        let parameters = of(&|(_, variable)| variable.requires_grad());
        let statistics = of(&|(name, _)| is_statistic(name));
        if ranks.size() > 1 {
            ensure!(
                parameters.iter().chain(&statistics).all(|v| v.kind() == Kind::Float),
                "only float32 networks are trained in several processes"
            );
            tch::no_grad(|| -> Result<()> {
                ranks.broadcast(variables.iter().map(|(_, variable)| variable))?;
                let state = optimizer.state();
                ranks.broadcast(state.iter().map(|(_, tensor)| tensor))?;
                optimizer.load_state(&state.into_iter().collect())?;
                let averages = ema.map(Ema::averages).unwrap_or_default();
                ranks.broadcast(averages.iter().map(|(_, average)| average))
            })?;
        }
        let device = variables.first().map_or(Device::Cpu, |(_, variable)| variable.device());
        let before = joined(&statistics, device);
        let numbers: i64 = parameters.iter().map(|p| p.numel() as i64).sum();
        let flat = Tensor::zeros([numbers + before.numel() as i64], (Kind::Float, device));
        let mut at = 0;
        let places = parameters.iter().map(|parameter| {
            let length = parameter.numel() as i64;
            at += length;
            flat.narrow(0, at - length, length).view(parameter.size().as_slice())
        });
        let places = places.collect();
        Ok(Self { ranks, parameters, statistics, before, flat, places })
    }

    /// The processes.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// Of a step's `count` micro batches, the numbers of those that are this rank's.
    pub fn share(&self, count: usize) -> Vec<usize> {
        (0..count).filter(|i| self.ranks.takes(*i)).collect()
    }

    /// Sums gradients and all else over the ranks, after the backward passes of a step of `micro_batches`. What learns
    /// has a gradient then if it has one on any rank.
    ///
    /// # Errors
    /// If a rank is gone, or a gradient is not finite: then the rank whose own is not says so.
    pub fn reduce(&mut self, micro_batches: usize, sums: Sums, not_finite: impl FnOnce() -> String) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        if micro_batches == 0 {
            // Nothing is left of the epoch but its evaluation, in which a stop is heard of too.
            *sums.stop = false;
            return Ok(());
        }
        tch::no_grad(|| self.sum(micro_batches, sums, not_finite))
    }

    fn sum(&mut self, micro_batches: usize, sums: Sums, not_finite: impl FnOnce() -> String) -> Result<()> {
        let has_gradient = self.sum_small(sums)?;
        for (parameter, _) in self.parameters.iter().zip(&has_gradient).filter(|(_, has)| **has) {
            if !parameter.grad().defined() {
                // Only a backward pass makes a gradient.
                tch::with_grad(|| (parameter * parameter.zeros_like()).sum(Kind::Float).backward());
            }
        }
        let gradients: Vec<Tensor> = self.parameters.iter().map(Tensor::grad).collect();
        let pairs = || self.places.iter().zip(&gradients).filter(|(_, gradient)| gradient.defined());
        for_each_pair(pairs(), |place, g| *place = *g, |place, g| place.shallow_clone().copy_(g));
        let moves =
            self.flat.narrow(0, self.flat.numel() as i64 - self.before.numel() as i64, self.before.numel() as i64);
        moves.shallow_clone().copy_(&(joined(&self.statistics, self.flat.device()) - &self.before));
        self.ranks.sum_tensor(&self.flat)?;
        // One number that is not finite makes the sum so.
        if !self.flat.sum(Kind::Float).double_value(&[]).is_finite() {
            let mut own = gradients.iter().filter(|g| g.defined());
            let failed = own.any(|g| !g.sum(Kind::Float).double_value(&[]).is_finite());
            self.ranks.wait_for_who_failed(failed)?;
            bail!("{}", not_finite());
        }
        for_each_pair(pairs(), |place, g| *g = *place, |place, g| g.shallow_clone().copy_(place));
        self.move_statistics(&moves, self.ranks.size().min(micro_batches));
        Ok(())
    }

    /// Sums what is small. Gives which parameters have a gradient on any rank.
    fn sum_small(&self, sums: Sums) -> Result<Vec<bool>> {
        ensure!(sums.parts.len() <= PARTS, "a loss has at most {PARTS} parts in several processes");
        let mut numbers = vec![*sums.images as f64, f64::from(u8::from(*sums.stop))];
        let values = sums.parts.iter().map(|(_, sum)| *sum).chain(std::iter::repeat(0.0));
        numbers.extend(values.take(PARTS));
        numbers.extend(self.parameters.iter().map(|p| f64::from(u8::from(p.grad().defined()))));
        self.ranks.sum(&mut numbers)?;
        *sums.images = numbers[0] as usize;
        *sums.stop = numbers[1] > 0.0;
        for ((_, sum), all) in sums.parts.iter_mut().zip(&numbers[2..]) {
            *sum = *all;
        }
        Ok(numbers[2 + PARTS..].iter().map(|count| *count > 0.0).collect())
    }

    /// Moves the statistics from where they all were by the mean of the moves. What nobody moved, as in frozen norms,
    /// stays as it is to the bit.
    fn move_statistics(&mut self, moves: &Tensor, movers: usize) {
        if self.statistics.is_empty() {
            return;
        }
        self.before += moves / movers as f64;
        let lengths: Vec<i64> = self.statistics.iter().map(|s| s.numel() as i64).collect();
        for (statistic, now) in self.statistics.iter().zip(self.before.split_with_sizes(lengths, 0)) {
            statistic.shallow_clone().copy_(&now.view_as(statistic));
        }
    }
}

/// Tensors one after another.
fn joined(tensors: &[Tensor], device: Device) -> Tensor {
    match tensors {
        [] => Tensor::zeros([0], (Kind::Float, device)),
        some => Tensor::cat(&some.iter().map(|t| t.detach().reshape(-1)).collect::<Vec<_>>(), 0),
    }
}

/// Refuses a rank whose config or data is another than the first one's.
///
/// # Errors
/// Names what differs.
pub fn check_same<C: Experiment>(ranks: &Ranks, config: &C, feed: &Feed<impl Source>) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let mut digest = Sha256::new();
    feed.source().describe(&mut digest)?;
    let own = (config.to_value()?, format!("{:x}", digest.finalize()));
    let (first, data) = ranks.of_first(|| Ok(own.clone()))?;
    if let Some((key, first, own)) = difference("", &OF_MACHINES, &first, &own.0) {
        bail!("its config is not rank 0's: {key} is {own}, not {first}");
    }
    ensure!(
        data == own.1,
        "its training data is not rank 0's: other images, or other labels, in {}",
        own.0.pointer("/data/root").map(ToString::to_string).unwrap_or_default()
    );
    Ok(())
}

/// Remarks on images that ranks made each for its share, on rank 0; elsewhere none.
///
/// # Errors
/// If a rank is gone.
pub fn all_remarks(ranks: &Ranks, own: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let mut all: Vec<_> = ranks.gather(own)?.into_iter().flatten().flatten().collect();
    all.sort();
    all.dedup_by(|a, b| a.0 == b.0);
    Ok(all)
}
