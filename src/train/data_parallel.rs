//! Data-parallel training: each rank works on its share of a step's micro batches, and gradients are summed.
//!
//! What PyTorch's `DistributedDataParallel` does (Li et al., 2020, "PyTorch Distributed"), with sums in place of means:
//! a micro batch's gradient is already scaled by its fraction of the whole batch. Running statistics of batch norms
//! move, as with replicas, by the mean of the ranks' moves, so that all ranks always hold the same network.

use anyhow::{bail, ensure, Result};
use tch::{Device, Kind, Tensor};

use super::ema::Ema;
use super::optimizer::Optimizer;
use super::resume::difference;
use crate::config::Experiment;
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
    /// What is not finite.
    pub not_finite: &'a mut NotFinite,
}

/// What is not finite in a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NotFinite {
    /// What, and in which images; `None`: nothing.
    pub reason: Option<String>,
    /// Another rank has met it.
    pub elsewhere: bool,
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
    /// has a gradient then if it has one on any rank. Where something is not finite on one rank, all ranks know of it,
    /// and nothing is summed. `gradient` says so of a rank's own gradient.
    ///
    /// # Errors
    /// If a rank is gone.
    pub fn reduce(&mut self, micro_batches: usize, sums: Sums, gradient: impl FnOnce() -> String) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        if micro_batches == 0 {
            // Nothing is left of the epoch but its evaluation, in which a stop is heard of too.
            *sums.stop = false;
            return Ok(());
        }
        tch::no_grad(|| self.sum(micro_batches, sums, gradient))
    }

    fn sum(&mut self, micro_batches: usize, mut sums: Sums, gradient: impl FnOnce() -> String) -> Result<()> {
        let (has_gradient, all_finite) = self.sum_small(&mut sums)?;
        if !all_finite {
            return self.tell_all(sums.not_finite);
        }
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
            if own.any(|g| !g.sum(Kind::Float).double_value(&[]).is_finite()) {
                sums.not_finite.reason = Some(gradient());
            }
            return self.tell_all(sums.not_finite);
        }
        for_each_pair(pairs(), |place, g| *g = *place, |place, g| g.shallow_clone().copy_(place));
        self.move_statistics(&moves, self.ranks.size().min(micro_batches));
        Ok(())
    }

    /// Gives every rank the words of the first one that has met something that is not finite.
    fn tell_all(&self, not_finite: &mut NotFinite) -> Result<()> {
        let own = not_finite.reason.as_ref().map(|reason| format!("{}: {reason}", self.ranks.name()));
        let all = self.ranks.gather(own)?;
        let (teller, words) = self.ranks.of_first(|| {
            let met = all.into_iter().flatten().enumerate().find_map(|(rank, words)| Some((rank, words?)));
            // Each gradient is finite, their sum is not.
            Ok(met.unwrap_or_else(|| (0, "the sum of the gradients of all ranks is not finite".to_string())))
        })?;
        if not_finite.reason.is_none() {
            *not_finite = NotFinite { reason: Some(words), elsewhere: teller != self.ranks.rank() };
        }
        Ok(())
    }

    /// Sums what is small. Gives which parameters have a gradient on any rank, and whether all is finite on all.
    fn sum_small(&self, sums: &mut Sums) -> Result<(Vec<bool>, bool)> {
        ensure!(sums.parts.len() <= PARTS, "a loss has at most {PARTS} parts in several processes");
        let flag = |on: bool| f64::from(u8::from(on));
        let mut numbers = vec![*sums.images as f64, flag(*sums.stop), flag(sums.not_finite.reason.is_some())];
        let first = numbers.len();
        let values = sums.parts.iter().map(|(_, sum)| *sum).chain(std::iter::repeat(0.0));
        numbers.extend(values.take(PARTS));
        numbers.extend(self.parameters.iter().map(|p| flag(p.grad().defined())));
        self.ranks.sum(&mut numbers)?;
        *sums.images = numbers[0] as usize;
        *sums.stop = numbers[1] > 0.0;
        for ((_, sum), all) in sums.parts.iter_mut().zip(&numbers[first..]) {
            *sum = *all;
        }
        let has_gradient = numbers[first + PARTS..].iter().map(|count| *count > 0.0).collect();
        Ok((has_gradient, numbers[2] == 0.0))
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

/// Refuses a rank whose config or data is another than the first one's. `data` is [`crate::data::Feed::digest`].
///
/// # Errors
/// Names what differs.
pub fn check_same<C: Experiment>(ranks: &Ranks, config: &C, data: &str) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let own = (config.to_value()?, data.to_string());
    let (first, data_of_first) = ranks.of_first(|| Ok(own.clone()))?;
    if let Some((key, first, own)) = difference("", &OF_MACHINES, &first, &own.0) {
        bail!("its config is not rank 0's: {key} is {own}, not {first}");
    }
    ensure!(
        data_of_first == data,
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

#[cfg(all(test, vigdet_ranks))]
mod tests {
    use super::*;
    use crate::config::TrainConfig;
    use crate::ranks::in_threads;

    /// Three parameters and the statistics of a norm, all of this value.
    fn variables(value: f64) -> Vec<(String, Tensor)> {
        let of = |name: &str, learns: bool| {
            let tensor = Tensor::full([2], value, (Kind::Float, Device::Cpu));
            (name.to_string(), tensor.set_requires_grad(learns))
        };
        vec![of("all", true), of("never", true), of("norm.running_mean", false), of("seldom", true)]
    }

    fn optimizer(variables: &[(String, Tensor)]) -> Optimizer {
        Optimizer::new(variables, &TrainConfig::default())
    }

    /// Gives the variable of this number a gradient of this value.
    fn backward(variables: &[(String, Tensor)], at: usize, value: f64) {
        (&variables[at].1 * value).sum(Kind::Float).backward();
    }

    fn first(tensor: &Tensor) -> f64 {
        tensor.double_value(&[0])
    }

    /// What a step of two ranks has come to on one of them.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Step {
        /// Of the variables, without those that have none.
        gradients: Vec<Option<f64>>,
        running_mean: f64,
        images: usize,
        part: f64,
        stop: bool,
        not_finite: NotFinite,
    }

    /// A step of `micro_batches` in which each rank does what `learn` does and gives its loss.
    fn step(micro_batches: usize, learn: impl Fn(usize, &[(String, Tensor)]) -> (f64, NotFinite) + Sync) -> Vec<Step> {
        in_threads::each(2, |ranks| {
            let variables = variables(1.0);
            let rank = ranks.rank();
            let mut parallel =
                DataParallel::start(ranks.clone(), &variables, &mut optimizer(&variables), None).unwrap();
            let (loss, mut not_finite) = learn(rank, &variables);
            let (mut images, mut parts, mut stop) = (2 + rank, vec![("loss", loss)], rank == 1);
            let sums = Sums { images: &mut images, parts: &mut parts, stop: &mut stop, not_finite: &mut not_finite };
            parallel.reduce(micro_batches, sums, || "the gradient of a.png".into()).unwrap();
            let gradient = |v: &Tensor| v.grad().defined().then(|| first(&v.grad()));
            Step {
                gradients: variables.iter().map(|(_, v)| gradient(v)).collect(),
                running_mean: first(&variables[2].1),
                images,
                part: parts[0].1,
                stop,
                not_finite,
            }
        })
    }

    #[test]
    fn what_ranks_have_learned_adds_up_and_norms_move_by_the_mean_of_their_moves() {
        let learn = |rank: usize, variables: &[(String, Tensor)]| {
            backward(variables, 0, 1.0 + rank as f64);
            if rank == 1 {
                backward(variables, 3, 5.0);
                let _ = tch::no_grad(|| variables[2].1.shallow_clone().fill_(2.0));
            }
            (10.0 * (1 + rank) as f64, NotFinite::default())
        };
        let expected = Step {
            gradients: vec![Some(3.0), None, None, Some(5.0)],
            running_mean: 1.5,
            images: 5,
            part: 30.0,
            stop: true,
            not_finite: NotFinite::default(),
        };
        assert_eq!(step(2, learn), [expected.clone(), expected.clone()]);
        // Of a step with one micro batch one rank has moved them.
        let alone = Step { running_mean: 2.0, ..expected };
        assert_eq!(step(1, learn), [alone.clone(), alone]);
    }

    #[test]
    fn what_is_not_finite_on_one_rank_is_known_to_all() {
        let met = |gradient: f64, loss: Option<&str>| {
            let steps = step(2, |rank, variables| {
                backward(variables, 0, if rank == 1 { gradient } else { 1.0 });
                let reason = loss.filter(|_| rank == 1).map(String::from);
                (1.0, NotFinite { reason, elsewhere: false })
            });
            steps.into_iter().map(|step| (step.not_finite.reason.unwrap_or_default(), step.not_finite.elsewhere))
        };
        for (gradient, loss, words) in
            [(1.0, Some("the loss of b.png"), "the loss of b.png"), (f64::NAN, None, "the gradient of a.png")]
        {
            let [(elsewhere, yes), (own, no)] = met(gradient, loss).collect::<Vec<_>>().try_into().unwrap();
            assert!(yes && !no);
            assert_eq!(own, words);
            assert!(elsewhere.starts_with("rank 1 on ") && elsewhere.ends_with(&format!(": {words}")), "{elsewhere}");
        }
        assert!(met(1.0, None).all(|(reason, _)| reason.is_empty()));
        // What each has adds up in float32, what both have does not.
        let large = step(2, |_, variables| {
            backward(variables, 0, 1.5e38);
            (1.0, NotFinite::default())
        });
        let words = large.into_iter().map(|step| {
            let NotFinite { reason, elsewhere } = step.not_finite;
            (reason.unwrap_or_default().contains("sum of the gradients"), elsewhere)
        });
        assert_eq!(words.collect::<Vec<_>>(), [(true, false), (true, true)]);
    }

    #[test]
    fn all_ranks_begin_with_the_first_ones_network_optimizer_and_average() {
        let found = in_threads::each(2, |ranks| {
            let own = 1.0 + ranks.rank() as f64;
            let variables = variables(own);
            let mut optimizer = optimizer(&variables);
            if ranks.is_first() {
                backward(&variables, 0, 1.0);
                optimizer.step(0.1, 1.0);
            }
            let ema = Ema::new(&variables, 0.9, false);
            DataParallel::start(ranks.clone(), &variables, &mut optimizer, Some(&ema)).unwrap();
            let all = |tensors: Vec<(String, Tensor)>| -> Vec<Vec<f64>> {
                tensors.iter().map(|(_, tensor)| Vec::try_from(tensor.to_kind(Kind::Double)).unwrap()).collect()
            };
            (all(variables), all(optimizer.state()), all(ema.averages()))
        });
        assert_eq!(found[0], found[1]);
        assert_eq!(found[0].1[0], [1.0, 0.0, 0.0], "the optimizer's steps");
        assert!(found[0].2.iter().flatten().all(|average| *average <= 1.0), "{:?}", found[0].2);
    }

    #[test]
    fn rank_0_reports_what_each_has_met_once() {
        let remark = |file: &str, text: &str| (file.to_string(), text.to_string());
        let found = in_threads::each(2, |ranks| {
            let own = match ranks.rank() {
                0 => vec![remark("b.png", "cut")],
                _ => vec![remark("a.png", "empty"), remark("b.png", "cut")],
            };
            all_remarks(ranks, own).unwrap()
        });
        assert_eq!(found, [vec![remark("a.png", "empty"), remark("b.png", "cut")], Vec::new()]);
    }
}
