//! AdaptViG's last stage: every node takes from all others what attention gives.

use anyhow::Result;
use tch::nn::{self, Module};
use tch::{Kind, Tensor};

use crate::graph::{BlockTrace, GraphTrace};
use crate::nn::cost::{convolution, Flops, Layer, Size};
use crate::nn::layers::ConvSpec;
use crate::nn::tokens::{layer_norm, Weights};
use crate::onnx::{Graph, Value};

/// Channels over those of queries and keys.
pub const REDUCTION: i64 = 4;
const EPS: f64 = 1e-5;
/// Links of a node that a trace keeps: the strongest ones.
const TRACED: i64 = 9;

/// Attention with queries and keys of fewer channels, each with a norm.
#[derive(Debug)]
pub struct Attention {
    /// Queries, keys and values.
    convs: [nn::Conv2D; 3],
    /// Of queries and keys.
    norms: [nn::LayerNorm; 2],
}

impl Attention {
    /// Variables `q_conv.*`, `k_conv.*`, `v_conv.*`, `q_norm.*` and `k_norm.*` under `path`.
    pub fn new(path: &nn::Path, channels: i64) -> Self {
        let narrow = channels / REDUCTION;
        let conv = |name: &str, output| ConvSpec::new(channels, output, 1).no_bias().build(path / name);
        Self {
            convs: [conv("q_conv", narrow), conv("k_conv", narrow), conv("v_conv", channels)],
            norms: ["q_norm", "k_norm"].map(|name| layer_norm(path / name, narrow, EPS)),
        }
    }

    /// The channels of nodes `[B, C, H, W]` and then by how much what attention gives is above them, or 0: `[B, 2C, H,
    /// W]`. `trace` records the links that are strongest.
    ///
    /// # Errors
    /// If the tensor does not have four dimensions.
    pub fn with_all(&self, x: &Tensor, trace: Option<&mut GraphTrace>) -> Result<Tensor> {
        let (b, c, h, w) = x.size4()?;
        let rows = |conv: &nn::Conv2D| conv.forward(x).permute([0, 2, 3, 1]).reshape([b, h * w, -1]);
        let [q, k, v] = self.convs.each_ref().map(rows);
        let (q, k) = (self.norms[0].forward(&q), self.norms[1].forward(&k));
        if let Some(trace) = trace {
            let attention = (q.matmul(&k.transpose(1, 2)) / (q.size()[2] as f64).sqrt()).softmax(-1, Kind::Float);
            let (weights, edges) = attention.topk(TRACED.min(h * w), -1, true, true);
            trace.keep_links(BlockTrace {
                edges,
                nodes: (h, w),
                candidates: (h, w),
                pooled: (1, 1),
                stride: 0,
                distances: Some(-&weights + 1.0),
                weights: Some(weights),
            });
        }
        let given = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        let given = given.view([b, h, w, c]).permute([0, 3, 1, 2]);
        Ok(Tensor::cat(&[x, &(given - x).relu()], 1))
    }

    /// [`Attention::with_all`] as nodes of a graph: nodes in float32.
    pub fn onnx(&self, graph: &mut Graph, x: &Value) -> Value {
        let working = graph.working(x);
        let [q, k, v] = self.convs.each_ref().map(|conv| {
            let rows = graph.conv2d(&working, conv, 1);
            let rows = graph.reshape(&rows, &[0, conv.ws.size()[0], -1]);
            graph.transpose(&rows, &[0, 2, 1])
        });
        let [q, k] = [(q, &self.norms[0]), (k, &self.norms[1])].map(|(rows, norm)| graph.layer_norm(&rows, norm, EPS));
        let narrow = self.convs[0].ws.size()[0] as f64;
        let q = graph.times(&q, narrow.powf(-0.5));
        let k = graph.transpose(&k, &[0, 2, 1]);
        let scores = graph.matmul(&q, &k);
        let scores = graph.softmax(&scores);
        let given = graph.matmul(&scores, &v);
        let given = graph.transpose(&given, &[0, 2, 1]);
        let shape = graph.shape(x, 0, 4);
        let given = graph.reshape_to(&given, &[&shape]);
        let given = graph.full(&given);
        let above = graph.sub(&given, x);
        let above = graph.unary("Relu", &above);
        graph.concat(&[x, &above], 1)
    }
}

impl Weights for Attention {
    fn weights(&self) -> Vec<&Tensor> {
        let convs = self.convs.iter().flat_map(|conv| [&conv.ws].into_iter().chain(&conv.bs));
        convs.chain(self.norms.iter().flat_map(Weights::weights)).collect()
    }
}

impl Flops for Attention {
    fn flops(&self, size: Size, visit: &mut dyn FnMut(Layer)) -> Size {
        let nodes = (size.0 * size.1) as u64;
        for conv in &self.convs {
            convolution(conv, 1, size, visit);
        }
        // Queries with keys, and what they give with values.
        for conv in &self.convs[1..] {
            visit(Layer::Distances { nodes, candidates: nodes, channels: conv.ws.size()[0] as u64 });
        }
        size
    }
}
