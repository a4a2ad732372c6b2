//! All blocks of a view in one HTML file that needs nothing else: the image, the graph, and what shows it.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use base64::prelude::{Engine, BASE64_STANDARD};
use image::{imageops, Rgb, RgbImage};
use serde_json::{json, Value};

use super::picture::jpeg;
use crate::data::resize::antialias;
use crate::explore::{GraphView, PatchGraph, NONE};
use vigdet_coco::output::write_atomically;

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The image in the page has at most so many pixels along its longer side, unless the network's input has more.
const LONGEST: f64 = 1280.0;
const PADDING: Rgb<u8> = Rgb([128, 128, 128]);

/// Writes a view as one HTML file, which loads nothing from anywhere. Its element `graph` holds the data as JSON: for
/// each block its number, grids and `k`, and in base64 `edges`, the neighbours of all nodes (`[N, k]`, unsigned
/// little-endian integers of `width` bits: what `extract_features --edges` writes; all bits set: none), and
/// `distances`, their distances as bytes, 0 for `range[0]` and 255 for `range[1]`. Where links have strengths these
/// take the place of distances, and `measure` says so; 0 is then the strongest.
///
/// # Errors
/// If the file cannot be written.
pub fn page(view: &GraphView, path: &Path) -> Result<()> {
    let data = json!({
        "model": view.model,
        "weights": view.weights,
        "file": view.file,
        "original": [view.image.height(), view.image.width()],
        "seen": view.seen,
        "input": view.input,
        "image": format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(jpeg(&image(view)?)?)),
        "blocks": view.blocks.iter().map(block).collect::<Vec<_>>(),
    });
    // In a script element nothing but `</` and `<!--` has a meaning of its own.
    let data = data.to_string().replace('<', "\\u003c");
    let title = format!("{} on {}", view.model, view.file);
    let title = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let page = HTML
        .replace("{{title}}", &title)
        .replacen("{{style}}", STYLE, 1)
        .replacen("{{script}}", SCRIPT, 1)
        .replacen("{{data}}", &data, 1);
    Ok(write_atomically(path, |out| out.write_all(page.as_bytes()))?)
}

fn block(graph: &PatchGraph) -> Value {
    // Half the size where it is enough: the last number stands for none.
    let width = if graph.candidate_count() < 1 << 16 { 16 } else { 32 };
    let edges: Vec<u8> = graph.edges.iter().flat_map(|e| e.to_le_bytes().into_iter().take(width / 8)).collect();
    // Strong is near.
    let (sign, measured) = match &graph.strengths {
        Some(strengths) => (-1.0, strengths),
        None => (1.0, &graph.distances),
    };
    let linked = graph.edges.iter().zip(measured).filter(|(edge, _)| **edge != NONE);
    let finite = || linked.clone().map(|(_, value)| sign * value).filter(|d| d.is_finite());
    let low = finite().fold(f32::INFINITY, f32::min);
    let high = finite().fold(f32::NEG_INFINITY, f32::max);
    let (low, high) = if low <= high { (low, high) } else { (0.0, 0.0) };
    let step = if high > low { 255.0 / (high - low) } else { 0.0 };
    // What is not a number is far.
    let byte = |d: &f32| if d.is_finite() { ((sign * d - low) * step).round() as u8 } else { 255 };
    json!({
        "block": graph.number,
        "stage": graph.stage,
        "stride": graph.stride,
        "nodes": graph.nodes,
        "candidates": graph.candidates,
        "pooled": graph.pooled,
        "k": graph.k,
        "varies": graph.varies(),
        "width": width,
        "measure": if graph.strengths.is_some() { "strength" } else { "distance" },
        "range": [sign * low, sign * high],
        "edges": BASE64_STANDARD.encode(edges),
        "distances": BASE64_STANDARD.encode(measured.iter().map(byte).collect::<Vec<u8>>()),
    })
}

/// The network's input, as sharp as the original image allows.
fn image(view: &GraphView) -> Result<RgbImage> {
    let (height, width) = (f64::from(view.input.0), f64::from(view.input.1));
    let finest = 1.0 / view.scale().0.max(view.scale().1);
    let factor = finest.min(LONGEST / height.max(width)).max(1.0);
    let side = |v: u32| ((f64::from(v) * factor).round() as u32).max(1);
    let mut image = RgbImage::from_pixel(side(view.input.1), side(view.input.0), PADDING);
    imageops::replace(&mut image, &antialias(&view.image, side(view.seen.1), side(view.seen.0))?, 0, 0);
    Ok(image)
}
