//! Works with masks: reads one JSON object a line from standard input, `{"size": [height, width], "masks":
//! [segmentation, ...]}` (polygons, compressed or uncompressed runs), and writes for each the compressed masks with
//! area and box, their union and intersection, and the overlap of the first with each.
//!
//!     echo '{"size": [4, 5], "masks": [[[1, 1, 4, 1, 4, 3, 1, 3]]]}' | cargo run -q -p vigdet-coco --example masks

use serde::Deserialize;
use std::io::BufRead;
use vigdet_coco::rle::{iou, Rle};
use vigdet_coco::types::Segmentation;

#[derive(Deserialize)]
struct Line {
    size: [u32; 2],
    masks: Vec<Segmentation>,
}

fn main() -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let Line { size: [height, width], masks } = serde_json::from_str(&line?)?;
        let masks: Vec<Rle> = masks.iter().map(|mask| mask.to_rle(height, width)).collect::<Result<_, _>>()?;
        let overlaps = |crowd| masks.iter().map(|mask| iou(&masks[0], mask, crowd)).collect::<Vec<_>>();
        let recoded = |mask: &Rle| Rle::from_rows(mask.height(), mask.width(), &mask.to_rows());
        let recoded: Vec<Rle> = masks.iter().map(recoded).collect::<Result<_, _>>()?;
        let output = serde_json::json!({
            "masks": masks,
            "area": masks.iter().map(Rle::area).collect::<Vec<_>>(),
            "bbox": masks.iter().map(Rle::bbox).collect::<Vec<_>>(),
            "union": Rle::union(&masks)?,
            "intersection": Rle::intersection(&masks)?,
            "iou": overlaps(false),
            "iou_crowd": overlaps(true),
            "recoded": recoded,
        });
        println!("{output}");
    }
    Ok(())
}
