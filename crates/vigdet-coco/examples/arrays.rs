//! The arrays behind COCO's numbers, as JSON: `precision` and `scores` [T, R, K, A, M] and `recall` [T, K, A, M], each
//! flat, the last index fastest.
//!
//!     cargo run -q -p vigdet-coco --example arrays -- GROUND_TRUTH.json RESULTS.json \
//!         '{"type": "bbox", "category_ids": [1, 3]}'
//!
//! All that an evaluation takes may stand in the third argument: `type`, `ious`, `areas` ([[name, min, max], …]),
//! `max_dets`, `use_cats`, `image_ids`, `category_ids`.

use serde::Deserialize;
use vigdet_coco::eval::{evaluate, AreaRange, IouType, Params};
use vigdet_coco::{read_dataset, read_results};

#[derive(Deserialize)]
struct Options {
    r#type: String,
    ious: Option<Vec<f64>>,
    areas: Option<Vec<(String, f64, f64)>>,
    max_dets: Option<Vec<usize>>,
    use_cats: Option<bool>,
    image_ids: Option<Vec<i64>>,
    category_ids: Option<Vec<i64>>,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [truth, results, options] = &args[..] else {
        anyhow::bail!("usage: arrays GROUND_TRUTH.json RESULTS.json OPTIONS")
    };
    let options: Options = serde_json::from_str(options)?;
    let mut params = Params { image_ids: options.image_ids, category_ids: options.category_ids, ..Params::default() };
    params.iou_thresholds = options.ious.unwrap_or(params.iou_thresholds);
    params.max_dets = options.max_dets.unwrap_or(params.max_dets);
    params.use_categories = options.use_cats.unwrap_or(params.use_categories);
    if let Some(areas) = options.areas {
        params.areas = areas.into_iter().map(|(label, min, max)| AreaRange::new(label, min, max)).collect();
    }
    let iou_type = if options.r#type == "segm" { IouType::Segm } else { IouType::Bbox };
    let found = evaluate(&read_dataset(truth)?, &read_results(results)?, iou_type, &params)?;
    let arrays = serde_json::json!({
        "shape": found.precision.shape(),
        "precision": found.precision.iter().collect::<Vec<_>>(),
        "scores": found.scores.iter().collect::<Vec<_>>(),
        "recall": found.recall.iter().collect::<Vec<_>>(),
    });
    println!("{arrays}");
    Ok(())
}
