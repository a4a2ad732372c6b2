//! COCO's numbers from Rust: no libtorch and no Python in it.
//!
//!     cargo run --example evaluate -- GROUND_TRUTH.json RESULTS.json

use std::path::Path;

use vigdet_coco::eval::{evaluate, IouType, Params};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [truth, results] = &args[..] else { anyhow::bail!("usage: evaluate GROUND_TRUTH.json RESULTS.json") };
    println!("{}", scores(Path::new(truth), Path::new(results))?);
    Ok(())
}

/// pycocotools' twelve lines, then the AP of each class.
pub fn scores(truth: &Path, results: &Path) -> anyhow::Result<String> {
    let (truth, results) = (vigdet_coco::read_dataset(truth)?, vigdet_coco::read_results(results)?);
    let evaluation = evaluate(&truth, &results, IouType::Bbox, &Params::default())?;
    let mut text = evaluation.summary().to_string();
    for class in evaluation.per_class() {
        text += &format!("\n{:20} AP {:.3}", class.name, class.ap);
    }
    Ok(text)
}
