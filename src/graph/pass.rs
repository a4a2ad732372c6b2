//! One forward pass: training or inference, what is random in it, and who watches.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use super::trace::GraphTrace;
use crate::nn::crossings::send;
use crate::nn::layers::{depth_factors, scale_images, stochastic_depth};
use crate::nn::padding::Extents;

/// Keeps what a detector samples apart from what its backbone draws.
const SAMPLING: u64 = 1 << 63;

/// What one forward pass of a network is told. A pass is used once: what it draws depends on where its generators are.
#[derive(Debug)]
pub struct Pass<'a> {
    random: Option<Random>,
    trace: Option<&'a mut GraphTrace>,
    extents: Option<Extents>,
    /// Stages to be run again for their gradient.
    recompute: usize,
    tape: Option<Tape>,
    /// Factors of stochastic depth that have been drawn ahead, of the branches to come.
    depth: VecDeque<Tensor>,
}

/// What one run of a part of the network leaves to the next, which must do the same: the edges of each block, and where
/// the generator was when they had been found.
#[derive(Debug, Default)]
pub struct Tape {
    blocks: Vec<(Tensor, Option<ChaCha8Rng>)>,
    /// The block that comes next, in the second run.
    next: Option<usize>,
}

impl Tape {
    /// The same, to run after.
    pub fn rewound(self) -> Self {
        Self { next: Some(0), ..self }
    }
}

/// The generators of a training pass.
#[derive(Clone, Debug)]
struct Random {
    network: ChaCha8Rng,
    sampling: ChaCha8Rng,
}

impl<'a> Pass<'a> {
    /// A pass with the running statistics of the batch norms, in which nothing is random.
    pub fn inference() -> Self {
        Self { random: None, trace: None, extents: None, recompute: 0, tape: None, depth: VecDeque::new() }
    }

    /// A pass with batch statistics, stochastic depth and dilation, and sampled regions. All that is random in it is
    /// drawn from these two numbers alone, so that a resumed run draws what the uninterrupted one would. `iteration`
    /// counts passes (micro batches), not steps.
    pub fn training(seed: u64, iteration: u64) -> Self {
        let generator = |stream| {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            generator.set_stream(stream);
            generator
        };
        let random = Random { network: generator(iteration), sampling: generator(SAMPLING | iteration) };
        Self { random: Some(random), ..Self::inference() }
    }

    /// The same pass, with so many stages of the backbone, from the first, run again for their gradient, in place of
    /// keeping what is between: less memory, more time, the same numbers.
    pub fn recomputing(self, stages: usize) -> Self {
        Self { recompute: stages, ..self }
    }

    /// How many stages are run again.
    pub fn recomputed(&self) -> usize {
        self.recompute
    }

    /// A pass of its own over the next part of the network, which draws what this one would, with an empty tape.
    pub fn part(&self) -> Pass<'static> {
        Pass {
            random: self.random.clone(),
            extents: self.extents.clone(),
            tape: Some(Tape::default()),
            depth: self.depth.iter().map(Tensor::shallow_clone).collect(),
            ..Pass::inference()
        }
    }

    /// Goes on where a [`Pass::part`] has ended. Gives its tape.
    pub fn go_on_from(&mut self, part: Pass) -> Tape {
        (self.random, self.depth) = (part.random, part.depth);
        part.tape.unwrap_or_default()
    }

    /// Records on this tape, or runs after it.
    pub fn with_tape(self, tape: Tape) -> Self {
        Self { tape: Some(tape), ..self }
    }

    /// The edges of the next block, where the first run has found them.
    pub(super) fn edges_found_before(&mut self) -> Option<Tensor> {
        let tape = self.tape.as_mut()?;
        let next = tape.next.as_mut()?;
        let (edges, network) = tape.blocks.get(*next)?;
        *next += 1;
        if let (Some(random), Some(network)) = (&mut self.random, network) {
            random.network = network.clone();
        }
        Some(edges.shallow_clone())
    }

    /// Leaves the edges of a block to the second run, if there is to be one.
    pub(super) fn keep_edges(&mut self, edges: &Tensor) {
        let network = self.random.as_ref().map(|random| random.network.clone());
        if let Some(tape) = &mut self.tape {
            tape.blocks.push((edges.shallow_clone(), network));
        }
    }

    /// The same pass, with the graph of each block collected in `trace`, where there is one.
    pub fn with_trace(self, trace: impl Into<Option<&'a mut GraphTrace>>) -> Self {
        Self { trace: trace.into(), ..self }
    }

    /// The same pass over a batch whose images end here: what lies beyond is not theirs. `None`: all fill it, or are
    /// taken to.
    pub fn within(&mut self, extents: Option<Extents>) -> &mut Self {
        self.extents = extents;
        self
    }

    /// Where the images of the batch end, if not at its edges.
    pub fn extents(&self) -> Option<&Extents> {
        self.extents.as_ref()
    }

    /// Whether this is a training pass.
    pub fn is_training(&self) -> bool {
        self.random.is_some()
    }

    /// Draws stochastic depth for the branches to come, of these probabilities, and sends all of it at once. The
    /// numbers are those that each would draw, where nothing else is drawn in between.
    pub fn draw_depth(&mut self, probabilities: impl IntoIterator<Item = f64>, images: i64, device: Device) {
        let Some(noise) = self.noise() else { return };
        let branches = probabilities.into_iter().filter(|probability| *probability > 0.0);
        let factors: Vec<f32> = branches.flat_map(|probability| depth_factors(images, probability, noise)).collect();
        if !factors.is_empty() {
            self.depth = send(&factors, device).view([-1, images]).unbind(0).into();
        }
    }

    /// [`stochastic_depth`] of a branch: as drawn ahead, or drawn now.
    pub fn stochastic_depth(&mut self, branch: Tensor, probability: f64) -> Tensor {
        let ahead = if probability > 0.0 { self.depth.pop_front() } else { None };
        match ahead {
            Some(factors) => scale_images(&branch, &factors),
            None => stochastic_depth(branch, probability, self.noise()),
        }
    }

    /// Draws stochastic depth and dilation; `None` in inference.
    pub fn noise(&mut self) -> Option<&mut ChaCha8Rng> {
        self.random.as_mut().map(|random| &mut random.network)
    }

    /// Draws the anchors and proposals that enter a detector's losses.
    ///
    /// # Errors
    /// In inference.
    pub fn sampling(&mut self) -> Result<&mut ChaCha8Rng> {
        let random = self.random.as_mut();
        random.map(|random| &mut random.sampling).context("regions are sampled in Pass::training alone")
    }

    /// What collects the graphs, if anything does.
    pub fn trace(&mut self) -> Option<&mut GraphTrace> {
        self.trace.as_deref_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::crossings::crossings;
    use tch::Kind;

    #[test]
    fn depth_drawn_ahead_is_sent_once_and_is_what_each_branch_would_draw() {
        let probabilities = [0.0, 0.3, 0.3, 0.8, 0.5];
        let run = |ahead: bool| {
            let mut pass = Pass::training(4, 9);
            let before = crossings().sent;
            if ahead {
                pass.draw_depth(probabilities, 6, Device::Cpu);
            }
            let branch = || Tensor::ones([6, 2, 1, 1], (Kind::Float, Device::Cpu));
            let found: Vec<Tensor> = probabilities.map(|p| pass.stochastic_depth(branch(), p)).into();
            let next = pass.noise().map(|noise| noise.get_word_pos());
            (Tensor::stack(&found, 0), next, crossings().sent - before)
        };
        let (at_once, each) = (run(true), run(false));
        assert_eq!((&at_once.0, at_once.1), (&each.0, each.1));
        assert_eq!((at_once.2, each.2), (1, 4));
        let share =
            |branch: i64| at_once.0.get(branch).ne(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!(share(0) == 1.0 && share(3) < 1.0);
    }
}
