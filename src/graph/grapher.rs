//! The Grapher block of ViG (Han et al., 2022, section 3.2): nodes look up their neighbours and mix with them.

use anyhow::Result;
use tch::{nn, Tensor};

use super::aggregate::max_relative;
use super::knn::{Neighbours, Search};
use super::relative::RelativePosition;
use super::trace::{BlockTrace, GraphTrace};
use crate::backbone::layers::{channels_last, ConvBn, ConvSpec};

/// What a Grapher is made from.
#[derive(Clone, Debug)]
pub struct GrapherSpec {
    /// Channels C.
    pub channels: i64,
    /// How many neighbours, how far apart, and how they are found.
    pub neighbours: Neighbours,
    /// Side of the average pooling that makes candidates from nodes; 1: the nodes themselves.
    pub reduce: i64,
    /// Groups of the update convolution (the paper's heads).
    pub heads: i64,
    /// The relative position that is added to similarities; `None`: none (isotropic ViG).
    pub relative: Option<RelativePosition>,
    /// Epsilon of the batch norms.
    pub norm_eps: f64,
}

/// 1×1 convolution, max-relative graph convolution, 1×1 convolution. The residual sum is the caller's.
#[derive(Debug)]
pub struct Grapher {
    fc1: ConvBn,
    /// The update after aggregation: a 1×1 convolution in `heads` groups on `[x₀, m₀, x₁, m₁, …]`, 2C channels.
    update: ConvBn,
    fc2: ConvBn,
    spec: GrapherSpec,
}

impl Grapher {
    /// Variables `fc1.*`, `graph_conv.gconv.nn.*` and `fc2.*` under `path`.
    pub fn new(path: &nn::Path, spec: GrapherSpec) -> Self {
        let c = spec.channels;
        let pair = |p: nn::Path, conv: ConvSpec| ConvBn::new(&p / "0", &p / "1", conv, spec.norm_eps);
        Self {
            fc1: pair(path / "fc1", ConvSpec::new(c, c, 1)),
            update: pair(
                path / "graph_conv" / "gconv" / "nn",
                ConvSpec::new(2 * c, 2 * c, 1).groups(spec.heads),
            ),
            fc2: pair(path / "fc2", ConvSpec::new(2 * c, c, 1)),
            spec,
        }
    }

    /// `[B, C, H, W]` to `[B, C, H, W]`, without the residual sum.
    pub fn forward(&self, x: &Tensor, train: bool, trace: Option<&mut GraphTrace>) -> Result<Tensor> {
        let (b, c, h, w) = x.size4()?;
        let z = channels_last(&self.fc1.forward(x, train));
        let pooled = (self.spec.reduce > 1).then(|| {
            let kernel = [self.spec.reduce.min(h), self.spec.reduce.min(w)];
            channels_last(&z.avg_pool2d(kernel, kernel, [0, 0], false, true, None::<i64>))
        });
        let candidates = pooled.as_ref().unwrap_or(&z);
        let (_, _, ch, cw) = candidates.size4()?;
        let mut edges = self.spec.neighbours.find(&z, candidates, self.spec.relative.as_ref())?;
        if let Some(trace) = trace {
            edges = trace.record(BlockTrace { edges, nodes: (h, w), candidates: (ch, cw) })?;
        }

        // Rows [B, N, C] and [B, M, C]: views, since both are channels-last.
        let rows = z.permute([0, 2, 3, 1]).reshape([b, h * w, c]);
        let candidate_rows = candidates.permute([0, 2, 3, 1]).reshape([b, ch * cw, c]);
        let relative =
            max_relative(&rows, &candidate_rows, &edges, self.spec.neighbours.search == Search::Fused)?;
        let mixed = Tensor::stack(&[&rows, &relative], -1).reshape([b, h, w, 2 * c]).permute([0, 3, 1, 2]);
        let out = self.update.forward(&mixed, train).gelu("none");
        Ok(self.fc2.forward(&out, train))
    }

    /// The convolutions with their norms, in order.
    pub fn layers(&self) -> [&ConvBn; 3] {
        [&self.fc1, &self.update, &self.fc2]
    }
}
