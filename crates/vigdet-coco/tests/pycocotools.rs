//! The numbers of pycocotools, from cases that it evaluated (see tests/pycocotools/make_fixtures.py).

use serde::Deserialize;
use std::path::{Path, PathBuf};
use vigdet_coco::eval::{evaluate, AreaRange, ClassResult, IouType, Params};
use vigdet_coco::rle::{iou, Rle};
use vigdet_coco::types::{Annotation, Category, Dataset, Detection, Image, Segmentation};
use vigdet_coco::{read_dataset, read_results};

const TOLERANCE: f64 = 1e-12;

#[derive(Deserialize)]
struct Case {
    seed: u64,
    r#type: String,
    truth: serde_json::Value,
    results: serde_json::Value,
    max_dets: Vec<usize>,
    ious: Option<Vec<f64>>,
    use_cats: bool,
    areas: Option<Vec<(String, f64, f64)>>,
    image_ids: Option<Vec<i64>>,
    category_ids: Option<Vec<i64>>,
    stats: [f64; 12],
    text: String,
    class_ap: Vec<f64>,
    class_ar: Vec<f64>,
    per_iou: Vec<f64>,
    area_ap: Vec<f64>,
    area_ar: Vec<f64>,
}

fn iou_type(name: &str) -> IouType {
    match name {
        "segm" => IouType::Segm,
        _ => IouType::Bbox,
    }
}

fn assert_near(name: &str, ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let near = ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= TOLERANCE);
    assert!(near, "{name}\nours  {ours:?}\ntheirs {theirs:?}");
}

#[test]
fn small_hard_cases_have_the_numbers_and_lines_of_pycocotools() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("fixtures/cases.json")).unwrap();
    assert!(cases.len() > 100);
    let folder = tempfile::tempdir().unwrap();
    let (truth_path, results_path) = (folder.path().join("truth.json"), folder.path().join("results.json"));
    for case in cases {
        std::fs::write(&truth_path, case.truth.to_string()).unwrap();
        std::fs::write(&results_path, case.results.to_string()).unwrap();
        let truth = read_dataset(&truth_path).unwrap();
        let results = read_results(&results_path).unwrap();
        let mut params = Params {
            max_dets: case.max_dets,
            use_categories: case.use_cats,
            image_ids: case.image_ids,
            category_ids: case.category_ids,
            ..Params::default()
        };
        if let Some(areas) = case.areas {
            params.areas = areas.into_iter().map(|(label, min, max)| AreaRange::new(label, min, max)).collect();
        }
        params.iou_thresholds = case.ious.unwrap_or(params.iou_thresholds);
        let evaluation = evaluate(&truth, &results, iou_type(&case.r#type), &params).unwrap();
        let name = format!("case {}", case.seed);
        let summary = evaluation.summary();
        assert_near(&name, &summary.stats, &case.stats);
        assert_eq!(summary.to_string(), case.text, "{name}");
        let of_classes =
            |number: fn(&ClassResult) -> f64| -> Vec<f64> { evaluation.per_class().iter().map(number).collect() };
        assert_near(&name, &of_classes(|class| class.ap), &case.class_ap);
        assert_near(&name, &of_classes(|class| class.ar), &case.class_ar);
        assert_near(&name, &evaluation.ap_per_iou(), &case.per_iou);
        assert_near(&name, &evaluation.ap_per_area(), &case.area_ap);
        assert_near(&name, &evaluation.ar_per_area(), &case.area_ar);
    }
}

#[test]
fn after_an_overlap_that_is_not_a_number_every_later_object_matches() {
    let annotation =
        |id, bbox, area| Annotation { id, image_id: 1, category_id: 1, bbox, area, ..Annotation::default() };
    let detection =
        |bbox, score| Detection { image_id: 1, category_id: 1, bbox: Some(bbox), score, ..Detection::default() };
    let (huge, plain) = ([0.0, 0.0, 1e200, 1e200], [10.0, 10.0, 20.0, 20.0]);
    let truth = Dataset {
        images: vec![Image { id: 1, ..Image::default() }],
        categories: vec![Category { id: 1, ..Category::default() }],
        annotations: vec![annotation(1, huge, 100.0), annotation(2, plain, 400.0)],
    };
    let results = [detection(huge, 0.9), detection(plain, 0.8)];
    let evaluation = evaluate(&truth, &results, IouType::Bbox, &Params::default()).unwrap();
    // The huge detection takes the plain object, since an overlap of 0 is not below NaN. pycocotools 2.0.11 gives these
    // numbers.
    let stats = evaluation.summary().stats;
    assert_near("AP and AR", &[stats[0], stats[6], stats[8]], &[0.5049504950495048, 0.5, 0.5]);
}

/// COCO's own example results on a hundred images of val2014, where the files are there.
fn coco_eval_folder() -> Option<PathBuf> {
    let root = std::env::var_os("VIGDET_TEST_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/datasets"), PathBuf::from);
    Some(root.join("coco-eval")).filter(|folder| folder.is_dir())
}

#[test]
fn cocos_example_results_have_pycocotools_numbers() {
    let Some(folder) = coco_eval_folder() else { return };
    let truth = read_dataset(folder.join("instances_val2014_100.json")).unwrap();
    // pycocotools 2.0.11, repr of COCOeval.stats.
    let expected = EXAMPLE_STATS;
    for (kind, results, stats) in expected {
        let results = read_results(folder.join(format!("instances_val2014_fake{results}100_results.json"))).unwrap();
        let evaluation = evaluate(&truth, &results, iou_type(kind), &Params::default()).unwrap();
        assert_near(kind, &evaluation.summary().stats, &stats);
    }
}

/// Type of evaluation, type of results, numbers.
const EXAMPLE_STATS: [(&str, &str, [f64; 12]); 3] = [
    (
        "bbox",
        "bbox",
        [
            0.5045806987249628,
            0.6969727247299577,
            0.5729816669904824,
            0.5856257209410443,
            0.5193996948036719,
            0.5013978986347466,
            0.38681277964578054,
            0.5936795762842003,
            0.595352982877607,
            0.6398109626113442,
            0.5664205978994309,
            0.5642905982905982,
        ],
    ),
    (
        "segm",
        "segm",
        [
            0.3195452758576433,
            0.5622883972521636,
            0.29892653412086784,
            0.3873740315997837,
            0.31018272403369485,
            0.3269339071005138,
            0.2682297225711534,
            0.41544868114906375,
            0.4168394992198818,
            0.4694498622754236,
            0.37675922666197265,
            0.3814715099715099,
        ],
    ),
    (
        "segm",
        "bbox",
        [
            0.13216871724940724,
            0.3488394479598221,
            0.0745055408332098,
            0.16749221647165125,
            0.11125941873876223,
            0.16918904731162443,
            0.12508702602523036,
            0.18018078559064407,
            0.18123499804485652,
            0.19562762244975038,
            0.1330406911928651,
            0.21853276353276355,
        ],
    ),
];

#[test]
fn what_pycocotools_refuses_to_draw_is_refused() {
    // `frPyObjects` looks at the first polygon alone (compare_masks.py tries the same).
    let whole = vec![1.0, 1.0, 9.0, 1.0, 9.0, 9.0];
    for first in 0..5 {
        let short = vec![2.0; first];
        for polygons in [vec![short.clone()], vec![short.clone(); 5], vec![short.clone(), whole.clone()]] {
            let message = Rle::from_polygons(20, 30, &polygons).unwrap_err().to_string();
            assert!(message.contains(&format!("the first polygon has {first} numbers")), "{message}");
        }
        assert_eq!(
            Rle::from_polygons(20, 30, &[whole.clone(), short]).unwrap(),
            Rle::from_polygons(20, 30, std::slice::from_ref(&whole)).unwrap()
        );
    }
    assert!(Rle::from_polygons(20, 30, &[]).is_err());
    assert_eq!(Rle::from_polygons(20, 30, &[vec![1.0, 1.0, 9.0, 1.0, 9.0]]).unwrap().area(), 0);
}

/// Lines of tests/fixtures/masks.jsonl: what was given, and what pycocotools made of it.
#[derive(Deserialize)]
struct MaskCase {
    size: [u32; 2],
    masks: Vec<Segmentation>,
}

#[test]
fn masks_are_those_of_pycocotools_bit_for_bit() {
    for line in include_str!("fixtures/masks.jsonl").lines() {
        let (given, expected): (MaskCase, serde_json::Value) = serde_json::from_str(line).unwrap();
        let [height, width] = given.size;
        let masks: Vec<Rle> = given.masks.iter().map(|mask| mask.to_rle(height, width).unwrap()).collect();
        let recoded = masks.iter().map(|mask| Rle::from_columns(height, width, &mask.to_columns()).unwrap());
        let overlaps = |crowd| masks.iter().map(|mask| iou(&masks[0], mask, crowd)).collect::<Vec<_>>();
        let ours = serde_json::json!({
            "masks": masks,
            "area": masks.iter().map(Rle::area).collect::<Vec<_>>(),
            "bbox": masks.iter().map(Rle::bbox).collect::<Vec<_>>(),
            "union": Rle::union(&masks).unwrap(),
            "intersection": Rle::intersection(&masks).unwrap(),
            "iou": overlaps(false),
            "iou_crowd": overlaps(true),
            "recoded": recoded.collect::<Vec<_>>(),
        });
        assert_eq!(ours, expected, "{line}");
    }
}
