//! One forward pass: training or inference, what is random in it, and who watches.

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::trace::GraphTrace;
use crate::nn::padding::Extents;

/// Keeps what a detector samples apart from what its backbone draws.
const SAMPLING: u64 = 1 << 63;

/// What one forward pass of a network is told. A pass is used once: what it draws depends on where its generators are.
#[derive(Debug)]
pub struct Pass<'a> {
    random: Option<Random>,
    trace: Option<&'a mut GraphTrace>,
    extents: Option<Extents>,
}

/// The generators of a training pass.
#[derive(Debug)]
struct Random {
    network: ChaCha8Rng,
    sampling: ChaCha8Rng,
}

impl<'a> Pass<'a> {
    /// A pass with the running statistics of the batch norms, in which nothing is random.
    pub fn inference() -> Self {
        Self { random: None, trace: None, extents: None }
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
        Self { random: Some(random), trace: None, extents: None }
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
