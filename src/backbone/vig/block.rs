//! The block that ViG repeats: Grapher and feed-forward network, each with a residual sum (Han et al., 2022, section
//! 3.2).

use anyhow::Result;
use tch::{nn, Tensor};

use crate::graph::{Grapher, GrapherSpec, Pass};
use crate::nn::cost::{Flops, Layer, Size};
use crate::nn::layers::{residual, ConvBn, ConvSpec};
use crate::nn::recompute::through_gelu;
use crate::onnx::{Graph, Value};

/// Grapher and feed-forward network.
#[derive(Debug)]
pub struct Block {
    grapher: Grapher,
    /// C to 4C, GELU, 4C to C; `None` in an ablation.
    ffn: Option<[ConvBn; 2]>,
    /// Probability that a branch of this block is left out for an image, in training.
    pub(super) drop: f64,
}

impl Block {
    /// Variables `0.*` (Grapher) and `1.*` (feed-forward network, if there is one) under `path`.
    pub fn new(path: &nn::Path, spec: GrapherSpec, ffn: bool, drop: f64) -> Result<Self> {
        let (c, eps) = (spec.channels, spec.norm_eps);
        let layer = |name: &str, input, output| ConvBn::at(path / "1" / name, ConvSpec::new(input, output, 1), eps);
        let ffn = ffn.then(|| [layer("fc1", c, 4 * c), layer("fc2", 4 * c, c)]);
        Ok(Self { grapher: Grapher::new(&(path / "0"), spec)?, ffn, drop })
    }

    /// `[B, C, H, W]` to the same. `train`: batch statistics in the norms.
    pub fn forward(&self, x: &Tensor, train: bool, pass: &mut Pass) -> Result<Tensor> {
        let branch = self.grapher.forward(x, train, pass)?;
        let x = residual(x, pass.stochastic_depth(branch, self.drop));
        Ok(match &self.ffn {
            Some([fc1, fc2]) => {
                let branch = through_gelu(fc1, fc2, &x, train, None)?;
                residual(&x, pass.stochastic_depth(branch, self.drop))
            }
            None => x,
        })
    }

    /// [`Block::forward`] in inference as nodes of a graph (see [`Grapher::onnx`]).
    pub fn onnx(&self, graph: &mut Graph, x: &Value, map: Option<(i64, i64)>, block: usize) -> Value {
        let branch = self.grapher.onnx(graph, x, map, block);
        let x = graph.add(x, &branch);
        let Some([fc1, fc2]) = &self.ffn else { return x };
        let hidden = fc1.onnx(graph, &x);
        let hidden = graph.gelu(&hidden);
        let branch = fc2.onnx(graph, &hidden);
        graph.add(&x, &branch)
    }

    /// The probabilities of its branches, in their order.
    pub fn depth(&self) -> impl Iterator<Item = f64> {
        std::iter::repeat_n(self.drop, 1 + usize::from(self.ffn.is_some()))
    }

    /// Takes the weights out of training.
    pub fn freeze(&self) {
        self.grapher.freeze();
        self.ffn.iter().flatten().for_each(ConvBn::freeze);
    }
}

impl Flops for Block {
    fn flops(&self, size: Size, visit: &mut dyn FnMut(Layer)) -> Size {
        self.grapher.flops(size, visit);
        for layer in self.ffn.iter().flatten() {
            layer.flops(size, visit);
        }
        size
    }
}
