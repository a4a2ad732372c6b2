//! The feature extractor's part of a config.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

section! {
    /// The feature extractor.
    pub struct BackboneConfig {
        /// A name of `backbone::NAMES`.
        pub name: String = "pvig_s".into(),
        /// ViG, GreedyViG, AdaptViG, Swin, PVT, PoolFormer, CycleMLP: channels of each stage (isotropic ViG: of the
        /// one there is); null: those of the named model.
        pub channels: Option<Vec<i64>> = None,
        /// The same: blocks of each stage; null: those of the named model. GreedyViG's and AdaptViG's are the graph
        /// blocks, and local ones come before: as many, in the third stage three times as many.
        pub blocks: Option<Vec<i64>> = None,
        /// Side of the images, in pixels, that position embeddings are made for; other images get resized ones.
        pub image_size: i64 = 224,
        /// Graph convolution: `mr` (max-relative), `edge`, `gin` or `sage`.
        pub conv: GraphConvKind = GraphConvKind::Mr,
        /// Neighbours of each node, in the first block.
        pub k: i64 = 9,
        /// Neighbours in the last block, with a straight line between; null: `k` (pyramid) or twice `k` (isotropic).
        pub k_last: Option<i64> = None,
        /// Groups of the convolutions after aggregation (the paper's heads).
        pub heads: i64 = 4,
        /// Dilated neighbours: of the k·d nearest every d-th, d rising by one every four blocks.
        pub dilation: bool = true,
        /// Training: probability that a block takes k random ones of its k·d nearest instead (the published code's
        /// epsilon is 0.2, off by default).
        pub stochastic_dilation: f64 = 0.0,
        /// The fully connected layers (1×1 convolutions) around each graph convolution.
        pub grapher_fc: bool = true,
        /// The feed-forward network after each graph convolution.
        pub ffn: bool = true,
        /// Stochastic depth of the last block; it rises linearly from 0 at the first.
        pub drop_path: f64 = 0.1,
        /// How neighbours are searched and aggregated.
        pub graph: Search = Search::Fused,
        /// Relative positions: `published` resizes the published tables, `grid` builds them on the real grid.
        pub relative: RelativeKind = RelativeKind::Published,
        /// Number of stages (the stem counts as the first) whose weights do not train.
        pub frozen_stages: i64 = 0,
        /// Keep batch norms at their running statistics during training, those of a detector's pyramid and heads too.
        pub freeze_norms: bool = false,
        /// ResNet-50 and -101: a block that halves the map does so in its first 1×1 convolution, as in Caffe's models
        /// and most of detectron2's; false: in its 3×3 convolution, as in torchvision's.
        pub stride_in_1x1: bool = false,
        /// Epsilon of the batch norms.
        pub norm_eps: f64 = 1e-5,
    }
}

impl BackboneConfig {
    /// Channels and blocks of the stages: those written in the config, else those of the named model; as many as the
    /// model has.
    pub fn stages<const N: usize>(&self, preset: Option<([i64; N], [i64; N])>) -> Result<([i64; N], [i64; N])> {
        let pick = |written: &Option<Vec<i64>>, of_preset: Option<[i64; N]>, what: &str| match written {
            Some(values) => {
                let fits = <[i64; N]>::try_from(values.as_slice()).ok().filter(|v| v.iter().all(|c| *c > 0));
                fits.with_context(|| {
                    format!("model.backbone.{what} of {} must be {N} number(s) above 0, not {values:?}", self.name)
                })
            }
            None => of_preset.with_context(|| format!("there is no backbone `{}`", self.name)),
        };
        Ok((pick(&self.channels, preset.map(|p| p.0), "channels")?, pick(&self.blocks, preset.map(|p| p.1), "blocks")?))
    }
}

/// Graph convolutions of the paper's Table 6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphConvKind {
    /// Max-relative graph convolution (Li et al., 2019), the paper's choice.
    #[default]
    Mr,
    /// EdgeConv (Wang et al., 2019).
    Edge,
    /// Graph isomorphism network (Xu et al., 2019).
    Gin,
    /// GraphSAGE with max pooling (Hamilton et al., 2017).
    Sage,
}

/// How neighbours are searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// The fused kernel on the CPU, and [`Search::Chunked`] on other devices.
    #[default]
    Fused,
    /// All distances in one matrix, `[B, N, M]`.
    Dense,
    /// Tensor operations on some rows at a time.
    Chunked,
}

/// Where the positions of an image come from that is not of the native size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelativeKind {
    /// The native matrix, resized bicubically by the flattened index: what the published code does. For another width
    /// the entries no longer point at the right locations.
    #[default]
    Published,
    /// The table of the real grid: a node stands at the centre of its cell, a candidate at the centre of the cells
    /// pooled into it, and the grid spans as much as the native one does, whatever its number of cells.
    Grid,
}
