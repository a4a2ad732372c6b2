//! Which patches a backbone links: the neighbours of three patches, in the first and the last block, on an image.
//!
//!     cargo run --example plot_graph -- IMAGE [PICTURE.svg]

use std::path::Path;

use vigdet::data::decode;
use vigdet::explore::{GraphViewer, ViewerOptions};
use vigdet::plot::graph::{Centers, GraphPicture, PictureOptions};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(image) = args.first() else { anyhow::bail!("usage: plot_graph IMAGE [PICTURE.svg]") };
    let picture = draw(Path::new(image))?;
    for center in &picture.links().blocks[0].centers {
        println!("node {} is linked to {:?}", center.node, center.neighbours);
    }
    picture.write_svg(Path::new(args.get(1).map_or("graph.svg", String::as_str)))
}

/// Random weights: `ViewerOptions { weights: Some(file), .. }` takes trained ones.
pub fn draw(image: &Path) -> anyhow::Result<GraphPicture> {
    let viewer = GraphViewer::open("pvig_ti", &ViewerOptions::default())?;
    let view = viewer.view(&decode::open(image, false)?, "an image")?;
    let blocks = [0, view.blocks.len() - 1];
    GraphPicture::new(&view, &blocks, &Centers::Salient(3), PictureOptions { edges: true })
}
