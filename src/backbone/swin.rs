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
use crate::onnx::{Graph, Kind as OnnxKind, Value};

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
pub(super) fn preset(name: &str) -> Option<([i64; 4], [i64; 4])> {
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

/// [`Windows`] of a map as values of a graph.
struct OnnxWindows {
    /// (height, width) of the map, int64 `[2]`.
    map: Value,
    /// Rows and columns of windows, int64 `[2]`, and their (height, width).
    grid: Value,
    size: Value,
    shift: [i64; 2],
    channels: i64,
}

impl OnnxWindows {
    /// Of a map `[B, H, W, C]`.
    fn new(graph: &mut Graph, x: &Value, shift: [i64; 2], channels: i64) -> Self {
        let map = graph.shape(x, 1, 3);
        let window = graph.int(WINDOW);
        let grid = graph.plus(&map, (WINDOW - 1) as f64);
        let grid = graph.div(&grid, &window);
        let size = graph.mul(&grid, &window);
        Self { map, grid, size, shift, channels }
    }

    /// Rolls rows up and columns to the left; negative: the other way.
    fn roll(&self, graph: &mut Graph, x: &Value, shift: [i64; 2]) -> Value {
        let mut x = x.clone();
        for (axis, shift) in [(1, shift[0]), (2, shift[1])].into_iter().filter(|(_, shift)| *shift != 0) {
            let (before, after) = (graph.slice(&x, axis, 0, shift), graph.slice(&x, axis, shift, i64::MAX));
            x = graph.concat(&[&after, &before], axis);
        }
        x
    }

    /// [`Windows::cut`], of `channels` channels.
    fn cut(&self, graph: &mut Graph, x: &Value, channels: i64) -> Value {
        let [rows, columns] = [0, 1].map(|axis| graph.slice(&self.grid, 0, axis, axis + 1));
        let (rest, side, last) = (graph.ints(&[-1]), graph.ints(&[WINDOW]), graph.ints(&[WINDOW, channels]));
        let x = graph.reshape_to(x, &[&rest, &rows, &side, &columns, &last]);
        let x = graph.transpose(&x, &[0, 1, 3, 2, 4, 5]);
        graph.reshape(&x, &[-1, AREA, channels])
    }

    /// [`Windows::split`].
    fn split(&self, graph: &mut Graph, x: &Value) -> Value {
        let more = graph.sub(&self.size, &self.map);
        let (none, one) = (graph.ints(&[0, 0, 0, 0, 0]), graph.ints(&[0]));
        let pads = graph.concat(&[&none, &more, &one], 0);
        let x = graph.pad(x, &pads, 0.0);
        let x = self.roll(graph, &x, self.shift);
        self.cut(graph, &x, self.channels)
    }

    /// [`Windows::join`].
    fn join(&self, graph: &mut Graph, windows: &Value) -> Value {
        let (rest, last) = (graph.ints(&[-1]), graph.ints(&[WINDOW, WINDOW, self.channels]));
        let x = graph.reshape_to(windows, &[&rest, &self.grid, &last]);
        let x = graph.transpose(&x, &[0, 1, 3, 2, 4, 5]);
        let channels = graph.ints(&[self.channels]);
        let x = graph.reshape_to(&x, &[&rest, &self.size, &channels]);
        let x = self.roll(graph, &x, self.shift.map(|shift| -shift));
        let [height, width] = [0, 1].map(|axis| graph.slice(&self.map, 0, axis, axis + 1));
        let x = graph.first(&x, 1, &height, None);
        graph.first(&x, 2, &width, None)
    }

    /// [`Windows::mask`], in the kind of `like`.
    fn mask(&self, graph: &mut Graph, like: &Value) -> Value {
        let parts = [0, 1].map(|axis| {
            let size = graph.slice(&self.size, 0, axis, axis + 1);
            let at = graph.range(&size);
            let parts = match self.shift[axis as usize] {
                0 => graph.times(&at, 0.0),
                shift => {
                    let [last, wrapped] = [WINDOW, shift].map(|before| {
                        let from = graph.plus(&size, -before as f64);
                        let beyond = graph.is("GreaterOrEqual", &at, &from);
                        graph.cast(&beyond, OnnxKind::Int64)
                    });
                    graph.add(&last, &wrapped)
                }
            };
            graph.unsqueeze(&parts, if axis == 0 { &[0, 2, 3] } else { &[0, 1, 3] })
        });
        let rows = graph.times(&parts[0], 3.0);
        let parts = graph.add(&rows, &parts[1]);
        let parts = self.cut(graph, &parts, 1);
        let others = graph.transpose(&parts, &[0, 2, 1]);
        let same = graph.is("Equal", &parts, &others);
        let (here, apart) = (graph.scalar_like(0.0, like), graph.scalar_like(APART, like));
        let mask = graph.choose(&same, &here, &apart);
        graph.unsqueeze(&mask, &[1])
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

    fn onnx(&self, graph: &mut Graph, x: &Value, mask: Option<&Value>) -> Value {
        let (heads, channels) = (self.heads, self.heads * HEAD);
        let bias = self.table.index_select(0, &self.pairs).view([AREA, AREA, heads]).permute([2, 0, 1]).unsqueeze(0);
        let bias = graph.constant(&bias, x.kind());
        let qkv = graph.linear(x, &self.qkv);
        let qkv = graph.reshape(&qkv, &[-1, AREA, 3, heads, HEAD]);
        let qkv = graph.transpose(&qkv, &[2, 0, 3, 1, 4]);
        let [q, k, v] = [0, 1, 2].map(|i| graph.select(&qkv, 0, i));
        let q = graph.times(&q, (HEAD as f64).powf(-0.5));
        let k = graph.transpose(&k, &[0, 1, 3, 2]);
        let mut scores = graph.matmul(&q, &k);
        scores = graph.add(&scores, &bias);
        if let Some(mask) = mask {
            // [B, windows, heads, 49, 49]
            let (rest, windows) = (graph.ints(&[-1]), graph.shape(mask, 0, 1));
            let last = graph.ints(&[heads, AREA, AREA]);
            let of_windows = graph.reshape_to(&scores, &[&rest, &windows, &last]);
            scores = graph.add(&of_windows, mask);
            scores = graph.reshape(&scores, &[-1, heads, AREA, AREA]);
        }
        let scores = graph.softmax(&scores);
        let found = graph.matmul(&scores, &v);
        let found = graph.transpose(&found, &[0, 2, 1, 3]);
        let found = graph.reshape(&found, &[-1, AREA, channels]);
        graph.linear(&found, &self.proj)
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

impl Block {
    fn onnx(&self, graph: &mut Graph, x: &Value, windows: &OnnxWindows, mask: Option<&Value>) -> Value {
        let normed = graph.layer_norm(x, &self.norm1, EPS);
        let split = windows.split(graph, &normed);
        let branch = self.attention.onnx(graph, &split, mask);
        let branch = windows.join(graph, &branch);
        let x = graph.add(x, &branch);
        let normed = graph.layer_norm(&x, &self.norm2, EPS);
        let branch = self.mlp.onnx(graph, &normed);
        graph.add(&x, &branch)
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

    /// Of a map of `channels` channels.
    fn onnx(&self, graph: &mut Graph, x: &Value, channels: i64) -> Value {
        let map = graph.shape(x, 1, 3);
        let two = graph.int(2);
        let half = graph.plus(&map, 1.0);
        let half = graph.div(&half, &two);
        let size = graph.mul(&half, &two);
        let more = graph.sub(&size, &map);
        let (none, one) = (graph.ints(&[0, 0, 0, 0, 0]), graph.ints(&[0]));
        let pads = graph.concat(&[&none, &more, &one], 0);
        let x = graph.pad(x, &pads, 0.0);
        let batch = graph.shape(&x, 0, 1);
        let [height, width] = [0, 1].map(|axis| graph.slice(&half, 0, axis, axis + 1));
        let (side, last) = (graph.ints(&[2]), graph.ints(&[2, channels]));
        let x = graph.reshape_to(&x, &[&batch, &height, &side, &width, &last]);
        let x = graph.transpose(&x, &[0, 1, 3, 4, 2, 5]);
        let width_of_four = graph.ints(&[4 * channels]);
        let x = graph.reshape_to(&x, &[&batch, &half, &width_of_four]);
        let x = graph.layer_norm(&x, &self.norm, EPS);
        graph.linear(&x, &self.reduction)
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

    fn onnx(&self, graph: &mut Graph, images: &Value) -> Result<Vec<Value>> {
        let known = graph.options().size;
        ensure!(
            known.is_some() || self.of == Use::Detector,
            "a classifier with a Swin Transformer shifts its windows or not, by the size of its images: give --size"
        );
        let x = match known {
            Some((height, width)) if height % PATCH != 0 || width % PATCH != 0 => {
                let rest = |side: i64| (PATCH - side % PATCH) % PATCH;
                let pads = graph.ints(&[0, 0, 0, 0, 0, 0, rest(height), rest(width)]);
                graph.pad(images, &pads, 0.0)
            }
            _ => images.clone(),
        };
        graph.part("backbone/patch_embed");
        let x = self.patches.onnx(graph, &x);
        let x = graph.transpose(&x, &[0, 2, 3, 1]);
        let mut x = graph.layer_norm(&x, &self.norm, EPS);
        let mut maps = Vec::new();
        for (s, (stage, norm)) in self.stages.iter().zip(&self.norms).enumerate() {
            graph.part(format!("backbone/layers.{s}"));
            if let Some(merging) = &stage.merging {
                x = merging.onnx(graph, &x, self.channels[s - 1]);
            }
            let shift = graph.map_size(STRIDES[s]).map_or([SHIFT; 2], |map| self.shifted(map).shift);
            let plain = OnnxWindows::new(graph, &x, [0; 2], self.channels[s]);
            let shifted = OnnxWindows::new(graph, &x, shift, self.channels[s]);
            let mask = (shift != [0; 2]).then(|| shifted.mask(graph, &x));
            for (i, block) in stage.blocks.iter().enumerate() {
                graph.part(format!("backbone/layers.{s}.{i}"));
                x = match i % 2 {
                    0 => block.onnx(graph, &x, &plain, None),
                    _ => block.onnx(graph, &x, &shifted, mask.as_ref()),
                };
            }
            let map = norm.as_ref().map_or(x.clone(), |norm| graph.layer_norm(&x, norm, EPS));
            maps.push(graph.transpose(&map, &[0, 3, 1, 2]));
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
