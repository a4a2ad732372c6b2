//! Swin Transformer (Liu et al., 2021): attention within windows of 7×7 locations, which every second block shifts by
//! three. Names are those of Microsoft's files (`layers.0.blocks.0.attn.qkv.weight`, …).

use anyhow::{ensure, Result};
use tch::nn::{self, Module};
use tch::{Kind, Tensor};

use super::{drop_of, frozen_stages, map_norms, Backbone, Pass, Use};
use crate::config::BackboneConfig;
use crate::nn::cost::{attention, linear as count, Flops, Layer, Size};
use crate::nn::crossings::send;
use crate::nn::layers::{channels_last, residual, stochastic_depth, ConvSpec};
use crate::nn::tokens::{layer_norm, linear, Mlp, Patches, Weights, DEVIATION};

const STRIDES: [i64; 4] = [4, 8, 16, 32];
/// Side of a patch, in pixels.
const PATCH: i64 = 4;
/// Side of a window, in locations.
const WINDOW: i64 = 7;
/// Locations of a window.
const AREA: i64 = WINDOW * WINDOW;
/// By how much every second block shifts its windows.
const SHIFT: i64 = WINDOW / 2;
/// Channels of a head of attention.
const HEAD: i64 = 32;
/// What is added to the score of two locations that lie side by side only because windows wrap around the map.
const APART: f64 = -100.0;
const EPS: f64 = 1e-5;

/// (channels, blocks) of each stage of a published model.
fn preset(name: &str) -> Option<([i64; 4], [i64; 4])> {
    Some(match name {
        "swin_t" => ([96, 192, 384, 768], [2, 2, 6, 2]),
        "swin_s" => ([96, 192, 384, 768], [2, 2, 18, 2]),
        "swin_b" => ([128, 256, 512, 1024], [2, 2, 18, 2]),
        _ => return None,
    })
}

/// How a map is cut into windows.
struct Windows {
    /// (height, width) of the map.
    map: Size,
    /// Rows and columns of windows, over the edge where they do not fit.
    grid: Size,
    /// By how much they are shifted down and to the right.
    shift: [i64; 2],
}

impl Windows {
    fn new(map: Size, shift: [i64; 2]) -> Self {
        Self { map, grid: ((map.0 + WINDOW - 1) / WINDOW, (map.1 + WINDOW - 1) / WINDOW), shift }
    }

    /// (height, width) of all windows.
    fn size(&self) -> Size {
        (self.grid.0 * WINDOW, self.grid.1 * WINDOW)
    }

    /// `[B, rows·7, columns·7, C]` to `[B · windows, 49, C]`.
    fn cut(&self, x: &Tensor) -> Tensor {
        let channels = x.size()[3];
        let x = x.view([-1, self.grid.0, WINDOW, self.grid.1, WINDOW, channels]);
        x.permute([0, 1, 3, 2, 4, 5]).reshape([-1, AREA, channels])
    }

    /// A map `[B, H, W, C]` to `[B · windows, 49, C]`, with zeros beyond its edges.
    fn split(&self, x: &Tensor) -> Tensor {
        let (size, [down, right]) = (self.size(), self.shift);
        let x = x.constant_pad_nd([0, 0, 0, size.1 - self.map.1, 0, size.0 - self.map.0]);
        self.cut(&x.roll([-down, -right], [1, 2]))
    }

    /// The map of what [`Windows::split`] gave.
    fn join(&self, windows: &Tensor) -> Tensor {
        let (size, channels) = (self.size(), windows.size()[2]);
        let x = windows.view([-1, self.grid.0, self.grid.1, WINDOW, WINDOW, channels]).permute([0, 1, 3, 2, 4, 5]);
        let x = x.reshape([-1, size.0, size.1, channels]).roll(self.shift, [1, 2]);
        x.narrow(1, 0, self.map.0).narrow(2, 0, self.map.1)
    }

    /// What is added to the scores of shifted windows, `[windows, 1, 49, 49]`: locations of one window attend to each
    /// other if they are neighbours on the map.
    fn mask(&self, like: &Tensor) -> Tensor {
        let size = self.size();
        let part = |at: i64, size: i64, shift: i64| match shift {
            0 => 0,
            _ => i64::from(at >= size - WINDOW) + i64::from(at >= size - shift),
        };
        let row =
            |y: i64| (0..size.1).map(move |x| 3 * part(y, size.0, self.shift[0]) + part(x, size.1, self.shift[1]));
        let parts: Vec<i64> = (0..size.0).flat_map(row).collect();
        let parts = self.cut(&send(&parts, like.device()).view([1, size.0, size.1, 1]));
        let apart = parts.ne_tensor(&parts.transpose(1, 2)).unsqueeze(1);
        apart.to_kind(like.kind()) * APART
    }
}

/// Attention within windows, with a learned bias for each relative position (section 3.2).
#[derive(Debug)]
struct Attention {
    qkv: nn::Linear,
    proj: nn::Linear,
    /// `[13², heads]`.
    table: Tensor,
    /// Rows of the table for pairs of a window's locations, `[49²]`.
    pairs: Tensor,
    heads: i64,
}

impl Attention {
    fn new(path: &nn::Path, channels: i64) -> Self {
        let heads = channels / HEAD;
        let side = 2 * WINDOW - 1;
        let index = |a: i64, b: i64| {
            let away = |a: i64, b: i64| a - b + WINDOW - 1;
            away(a / WINDOW, b / WINDOW) * side + away(a % WINDOW, b % WINDOW)
        };
        let pairs: Vec<i64> = (0..AREA).flat_map(|a| (0..AREA).map(move |b| index(a, b))).collect();
        Self {
            qkv: linear(path / "qkv", channels, 3 * channels, true),
            proj: linear(path / "proj", channels, channels, true),
            table: path.randn("relative_position_bias_table", &[side * side, heads], 0.0, DEVIATION),
            pairs: send(&pairs, path.device()),
            heads,
        }
    }

    /// Windows `[B · windows, 49, C]` to the same.
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let heads = self.heads;
        let bias = self.table.index_select(0, &self.pairs).view([AREA, AREA, heads]).permute([2, 0, 1]).unsqueeze(0);
        let bias = mask.map_or(bias.shallow_clone(), |mask| bias + mask);
        let qkv = self.qkv.forward(x).view([-1, AREA, 3, heads, HEAD]).permute([2, 0, 3, 1, 4]);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.get(i));
        let scores = (q * (HEAD as f64).powf(-0.5)).matmul(&k.transpose(-2, -1));
        let scores = scores.view([-1, bias.size()[0], heads, AREA, AREA]) + bias;
        let found = scores.softmax(-1, None::<Kind>).view([-1, heads, AREA, AREA]).matmul(&v);
        self.proj.forward(&found.transpose(1, 2).reshape(x.size()))
    }
}

#[derive(Debug)]
struct Block {
    norm1: nn::LayerNorm,
    attention: Attention,
    norm2: nn::LayerNorm,
    mlp: Mlp,
    /// Probability that a branch of this block is left out for an image, in training.
    drop: f64,
}

impl Block {
    /// A map `[B, H, W, C]` to the same.
    fn forward(&self, x: &Tensor, windows: &Windows, mask: Option<&Tensor>, pass: &mut Pass) -> Tensor {
        let branch = self.attention.forward(&windows.split(&self.norm1.forward(x)), mask);
        let x = residual(x, stochastic_depth(windows.join(&branch), self.drop, pass.noise()));
        let branch = self.mlp.forward(&self.norm2.forward(&x));
        residual(&x, stochastic_depth(branch, self.drop, pass.noise()))
    }
}

impl Weights for Block {
    fn weights(&self) -> Vec<&Tensor> {
        let Attention { qkv, proj, table, .. } = &self.attention;
        let norms = [self.norm1.weights(), self.norm2.weights()].concat();
        [norms, qkv.weights(), proj.weights(), vec![table], self.mlp.weights()].concat()
    }
}

/// Four neighbours become one location (section 3.1).
#[derive(Debug)]
struct Merging {
    norm: nn::LayerNorm,
    reduction: nn::Linear,
}

impl Merging {
    /// `[B, H, W, C]` to `[B, ⌈H / 2⌉, ⌈W / 2⌉, output]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let (height, width) = ((size[1] + 1) / 2, (size[2] + 1) / 2);
        let x = x.constant_pad_nd([0, 0, 0, 2 * width - size[2], 0, 2 * height - size[1]]);
        // The published order: columns outside, rows inside.
        let x = x.view([size[0], height, 2, width, 2, size[3]]).permute([0, 1, 3, 4, 2, 5]);
        self.reduction.forward(&self.norm.forward(&x.reshape([size[0], height, width, 4 * size[3]])))
    }
}

#[derive(Debug)]
struct Stage {
    /// None before the first stage.
    merging: Option<Merging>,
    blocks: Vec<Block>,
}

/// A Swin Transformer without its classes.
#[derive(Debug)]
pub struct Swin {
    patches: Patches,
    norm: nn::LayerNorm,
    stages: Vec<Stage>,
    /// Of the maps.
    norms: [Option<nn::LayerNorm>; 4],
    channels: [i64; 4],
    of: Use,
}

impl Swin {
    /// Random weights under `path`, in the published names.
    ///
    /// # Errors
    /// If the config cannot be built: the message says which key of it.
    pub fn new(path: &nn::Path, config: &BackboneConfig, of: Use) -> Result<Self> {
        let (channels, blocks) = config.stages(preset(&config.name))?;
        ensure!(
            channels.iter().all(|c| c % HEAD == 0),
            "model.backbone.channels of {} must be multiples of {HEAD}, not {channels:?}",
            config.name
        );
        let frozen = frozen_stages(config, STRIDES.len())?;
        let embed = path / "patch_embed";
        let spec = ConvSpec::new(3, channels[0], PATCH).stride(PATCH).padding(0);
        let (mut stages, mut index) = (Vec::new(), 0);
        for (s, (&c, &count)) in channels.iter().zip(&blocks).enumerate() {
            let merging = s.checked_sub(1).map(|before| {
                let (p, input) = (path / "layers" / before / "downsample", channels[before]);
                let reduction = linear(&p / "reduction", 4 * input, c, false);
                Merging { norm: layer_norm(&p / "norm", 4 * input, EPS), reduction }
            });
            let block = |i: i64| {
                let p = path / "layers" / s / "blocks" / i;
                Block {
                    norm1: layer_norm(&p / "norm1", c, EPS),
                    attention: Attention::new(&(&p / "attn"), c),
                    norm2: layer_norm(&p / "norm2", c, EPS),
                    mlp: Mlp::new(&p / "mlp", c, 4 * c, c),
                    drop: drop_of(config, index + i, &blocks),
                }
            };
            stages.push(Stage { merging, blocks: (0..count).map(block).collect() });
            index += count;
        }
        let model = Self {
            patches: Patches::new(&embed / "proj", spec),
            norm: layer_norm(&embed / "norm", channels[0], EPS),
            stages,
            norms: map_norms(path, of, 1, |path, s| layer_norm(path, channels[s], EPS)),
            channels,
            of,
        };
        if frozen > 0 {
            model.patches.freeze();
            model.norm.freeze();
        }
        for stage in &model.stages[..frozen] {
            if let Some(merging) = &stage.merging {
                merging.norm.freeze();
                merging.reduction.freeze();
            }
            stage.blocks.iter().for_each(Block::freeze);
        }
        Ok(model)
    }

    /// The shifted windows of a map. As published, a classifier's are not shifted where one window spans the map.
    fn shifted(&self, map: Size) -> Windows {
        let shift = |side: i64| if self.of == Use::Classifier && side <= WINDOW { 0 } else { SHIFT };
        Windows::new(map, [shift(map.0), shift(map.1)])
    }
}

impl Backbone for Swin {
    fn channels(&self) -> &[i64] {
        &self.channels
    }

    fn strides(&self) -> &[i64] {
        &STRIDES
    }

    fn forward(&self, images: &Tensor, pass: &mut Pass) -> Result<Vec<Tensor>> {
        let size = images.size();
        let rest = |side: i64| (PATCH - side % PATCH) % PATCH;
        let images = channels_last(&images.constant_pad_nd([0, rest(size[3]), 0, rest(size[2])]));
        let mut x = self.norm.forward(&self.patches.forward(&images).permute([0, 2, 3, 1]));
        let mut maps = Vec::new();
        for (stage, norm) in self.stages.iter().zip(&self.norms) {
            x = stage.merging.iter().fold(x, |x, merging| merging.forward(&x));
            let (_, height, width, _) = x.size4()?;
            let (plain, shifted) = (Windows::new((height, width), [0; 2]), self.shifted((height, width)));
            let mask = (shifted.shift != [0; 2]).then(|| shifted.mask(&x));
            for (i, block) in stage.blocks.iter().enumerate() {
                x = match i % 2 {
                    0 => block.forward(&x, &plain, None, pass),
                    _ => block.forward(&x, &shifted, mask.as_ref(), pass),
                };
            }
            maps.push(norm.as_ref().map_or(x.shallow_clone(), |norm| norm.forward(&x)).permute([0, 3, 1, 2]));
        }
        Ok(maps)
    }

    fn flops(&self, image: Size, visit: &mut dyn FnMut(Layer)) -> Vec<Size> {
        let up = |side: i64| (side + PATCH - 1) / PATCH * PATCH;
        let mut size = self.patches.flops((up(image.0), up(image.1)), visit);
        let mut sizes = Vec::new();
        for (stage, channels) in self.stages.iter().zip(self.channels) {
            if let Some(merging) = &stage.merging {
                size = ((size.0 + 1) / 2, (size.1 + 1) / 2);
                count(&merging.reduction, size, visit);
            }
            // Attention works on the locations beyond the edge, too.
            let padded = Windows::new(size, [0; 2]).size();
            for block in &stage.blocks {
                count(&block.attention.qkv, padded, visit);
                attention(padded.0 * padded.1, AREA, channels, visit);
                count(&block.attention.proj, padded, visit);
                block.mlp.flops(size, visit);
            }
            sizes.push(size);
        }
        sizes
    }
}
