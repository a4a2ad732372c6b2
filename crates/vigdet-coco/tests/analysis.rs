//! Kinds of errors, confusions, sizes and comparisons, on cases small enough to work out by hand.

use vigdet_coco::analysis::compare::{compare, Resampling};
use vigdet_coco::analysis::confusion::confusion;
use vigdet_coco::analysis::sizes::ap_by_size;
use vigdet_coco::analysis::tide::{errors, Errors, Kind};
use vigdet_coco::eval::{evaluate, IouType, Params};
use vigdet_coco::types::{Annotation, Category, Dataset, Detection, Image};

const A: [f64; 4] = [0.0, 0.0, 100.0, 100.0];
const B: [f64; 4] = [200.0, 0.0, 100.0, 100.0];
const C: [f64; 4] = [400.0, 0.0, 100.0, 100.0];
/// Overlaps B by a third.
const NEAR_B: [f64; 4] = [250.0, 0.0, 100.0, 100.0];
const NOWHERE: [f64; 4] = [0.0, 300.0, 50.0, 50.0];

/// Two images with the same objects would hide mistakes in numbering, so objects are (image, class, box, crowd).
fn truth(objects: &[(i64, i64, [f64; 4], bool)]) -> Dataset {
    let annotation = |(id, &(image_id, category_id, bbox, iscrowd)): (i64, &(i64, i64, [f64; 4], bool))| Annotation {
        id,
        image_id,
        category_id,
        bbox,
        area: bbox[2] * bbox[3],
        iscrowd,
        segmentation: None,
    };
    Dataset {
        images: [5, 6, 7].map(|id| Image { id, width: 640, height: 480, ..Image::default() }).to_vec(),
        categories: [1, 2].map(|id| Category { id, name: format!("class {id}"), supercategory: None }).to_vec(),
        annotations: (1..).zip(objects).map(annotation).collect(),
    }
}

fn detections(detections: &[(i64, i64, [f64; 4], f64)]) -> Vec<Detection> {
    let detection = |&(image_id, category_id, bbox, score): &(i64, i64, [f64; 4], f64)| Detection {
        image_id,
        category_id,
        bbox: Some(bbox),
        score,
        segmentation: None,
    };
    detections.iter().map(detection).collect()
}

fn errors_of(truth: &Dataset, detections: &[Detection]) -> Errors {
    errors_with(truth, detections, &Params::default())
}

fn errors_with(truth: &Dataset, detections: &[Detection], params: &Params) -> Errors {
    let found = errors(truth, detections, IouType::Bbox, params).unwrap();
    let evaluation = evaluate(truth, detections, IouType::Bbox, params).unwrap();
    assert!((found.ap50 - evaluation.summary().stats[1]).abs() < 1e-12, "AP50 is that of the evaluation");
    found
}

/// All counts and costs are as given, those of kinds that are not given 0.
fn assert_errors(errors: &Errors, expected: &[(Kind, usize, f64)]) {
    for found in &errors.kinds {
        let (count, cost) = expected.iter().find(|e| e.0 == found.kind).map_or((0, 0.0), |e| (e.1, e.2));
        assert_eq!(found.count, count, "{:?}", found.kind);
        assert!((found.cost - cost).abs() < 1e-9, "{:?} costs {}, not {cost}", found.kind, found.cost);
    }
}

#[test]
fn a_detection_of_the_wrong_class_costs_what_the_right_class_would_have_brought() {
    let truth = truth(&[(5, 1, A, false), (6, 2, B, false)]);
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.9), (6, 1, B, 0.8)]));
    assert_errors(&found, &[(Kind::Classification, 1, 0.5)]);
    assert_eq!(found.of_detections, [None, Some(Kind::Classification)]);
}

#[test]
fn a_detection_out_of_place_costs_what_the_right_place_would_have_brought() {
    let truth = truth(&[(5, 1, A, false), (6, 2, B, false)]);
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.9), (6, 2, NEAR_B, 0.8)]));
    assert_errors(&found, &[(Kind::Localisation, 1, 0.5)]);
}

#[test]
fn a_detection_of_the_wrong_class_and_out_of_place_is_both_and_leaves_its_object_missed() {
    let truth = truth(&[(5, 1, A, false), (6, 2, B, false)]);
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.9), (6, 1, NEAR_B, 0.95)]));
    // Class 1 has AP 1/2 behind a false positive, class 2 has 0. Without the object missed only class 1 is left.
    assert_errors(&found, &[(Kind::Both, 1, 0.25), (Kind::Missed, 1, 0.25)]);
    assert!((found.false_positives - 0.25).abs() < 1e-9);
    assert!((found.false_negatives - 0.25).abs() < 1e-9);
}

#[test]
fn a_second_detection_of_an_object_is_a_duplicate() {
    let truth = truth(&[(5, 1, A, false), (6, 1, C, false)]);
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.9), (5, 1, A, 0.8), (6, 1, C, 0.7)]));
    // Precision 1 at 51 recalls, 2/3 at 50.
    assert_errors(&found, &[(Kind::Duplicate, 1, 1.0 - (51.0 + 50.0 * 2.0 / 3.0) / 101.0)]);
    assert_eq!(found.of_detections[1], Some(Kind::Duplicate));
}

#[test]
fn a_detection_of_nothing_is_background() {
    let truth = truth(&[(5, 1, A, false)]);
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.9), (5, 1, NOWHERE, 0.95)]));
    assert_errors(&found, &[(Kind::Background, 1, 0.5)]);
    // In an image without any object too.
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.9), (7, 1, A, 0.95)]));
    assert_errors(&found, &[(Kind::Background, 1, 0.5)]);
}

#[test]
fn an_object_that_nothing_comes_near_is_missed() {
    let truth = truth(&[(5, 1, A, false), (6, 2, B, false)]);
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.9)]));
    assert_errors(&found, &[(Kind::Missed, 1, 0.5)]);
    assert!((found.false_negatives - 0.5).abs() < 1e-9);
}

#[test]
fn an_oracle_never_lets_two_detections_have_one_object() {
    // The object is found with 0.5, and by a surer detection of the wrong class: with the right class only the surer
    // one stays, ahead of the false positive between them.
    let truth = truth(&[(5, 2, A, false), (6, 1, C, false)]);
    let given = [(5, 2, A, 0.5), (5, 1, A, 0.9), (5, 2, NOWHERE, 0.7), (6, 1, C, 0.95)];
    let found = errors_of(&truth, &detections(&given));
    assert_errors(&found, &[(Kind::Classification, 1, 0.25), (Kind::Background, 1, 0.25)]);
}

#[test]
fn detections_of_crowds_are_no_errors() {
    let truth = truth(&[(5, 1, A, false), (5, 1, B, true)]);
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.5), (5, 1, B, 0.9), (5, 1, B, 0.8)]));
    assert_errors(&found, &[]);
    assert_eq!(found.of_detections, [None, None, None]);
}

#[test]
fn equal_scores_stand_in_the_order_of_the_evaluation() {
    // Right first, then wrong, both with the same score: the AP is 1.
    let truth = truth(&[(5, 1, A, false)]);
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.9), (5, 1, NOWHERE, 0.9)]));
    assert!((found.ap50 - 1.0).abs() < 1e-12);
    assert_errors(&found, &[(Kind::Background, 1, 0.0)]);
    let found = errors_of(&truth, &detections(&[(5, 1, NOWHERE, 0.9), (5, 1, A, 0.9)]));
    assert_errors(&found, &[(Kind::Background, 1, 0.5)]);
    // An object that is given the right class stands where that detection did: before the wrong one of a later image.
    let found = errors_of(&truth, &detections(&[(5, 2, A, 0.9), (6, 1, NOWHERE, 0.9), (5, 1, NOWHERE, 0.8)]));
    assert_errors(&found, &[(Kind::Classification, 1, 1.0), (Kind::Background, 2, 0.0)]);
}

#[test]
fn the_object_with_id_0_is_never_found() {
    let mut truth = truth(&[(5, 1, A, false), (6, 1, C, false)]);
    truth.annotations[0].id = 0;
    let found = errors_of(&truth, &detections(&[(5, 1, A, 0.9), (6, 1, C, 0.8)]));
    // Its detection is wrong, as in the evaluation, and nothing finds it: AP is 1/2 at half of the recalls.
    let ap50 = 0.5 * 51.0 / 101.0;
    assert!((found.ap50 - ap50).abs() < 1e-12);
    let without_wrong = 51.0 / 101.0 - ap50;
    assert_errors(&found, &[(Kind::Duplicate, 1, without_wrong), (Kind::Missed, 1, 0.5 - ap50)]);
}

#[test]
fn ap50_is_that_of_the_evaluation_whatever_ties_and_whoever_has_id_0() {
    let mut state = 1u64;
    let mut draw = |count: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % count
    };
    let mut aps = Vec::new();
    for _ in 0..500 {
        // Few places and few scores: objects and detections meet, and scores tie.
        let place = |draw: &mut dyn FnMut(u64) -> u64| [A, B, NEAR_B, NOWHERE][draw(4) as usize];
        let objects: Vec<_> = (0..1 + draw(8))
            .map(|_| (5 + draw(2) as i64, 1 + draw(2) as i64, place(&mut draw), draw(6) == 0))
            .collect();
        let mut truth = truth(&objects);
        let first = draw(2) as i64;
        for (annotation, id) in truth.annotations.iter_mut().zip(first..) {
            annotation.id = id;
        }
        let given: Vec<_> = (0..draw(16))
            .map(|_| (5 + draw(2) as i64, 1 + draw(2) as i64, place(&mut draw), [0.5, 0.7, 0.9][draw(3) as usize]))
            .collect();
        let params = Params { use_categories: draw(4) > 0, ..Params::default() };
        let found = errors_with(&truth, &detections(&given), &params);
        assert!(params.use_categories || (found.kinds[0].count, found.kinds[2].count) == (0, 0));
        aps.push(found.ap50);
    }
    assert!(aps.iter().filter(|&&ap| ap > 0.0 && ap < 1.0).count() > 200, "most cases say something");
}

#[test]
fn confusions_are_counted_by_true_and_detected_class() {
    let truth = truth(&[(5, 1, A, false), (5, 2, B, false), (6, 2, C, false), (6, 1, NOWHERE, true)]);
    let given = [(5, 1, A, 0.9), (5, 1, B, 0.8), (5, 2, B, 0.1), (6, 1, B, 0.7), (6, 1, NOWHERE, 0.9)];
    let found = confusion(&truth, &detections(&given), IouType::Bbox, &Params::default(), 0.3, 0.5).unwrap();
    // Class 1 found; class 2 taken for class 1 (its own detection is not sure enough), and not found; one detection of
    // nothing.
    assert_eq!(found.counts, ndarray::arr2(&[[1, 0, 0], [1, 0, 1], [1, 0, 0]]));
}

#[test]
fn sizes_are_evaluated_each_on_its_own() {
    let small = [300.0, 300.0, 20.0, 20.0];
    let truth = truth(&[(5, 1, A, false), (5, 1, small, false), (6, 1, small, false)]);
    let sizes =
        ap_by_size(&truth, &detections(&[(5, 1, A, 0.9), (6, 1, small, 0.8)]), IouType::Bbox, &Params::default())
            .unwrap();
    for size in sizes {
        let (objects, ap) = match size.from {
            16.0 => (2, 51.0 / 101.0),
            96.0 => (1, 1.0),
            _ => (0, -1.0),
        };
        assert_eq!(size.objects, objects, "{size:?}");
        assert!((size.ap - ap).abs() < 1e-9, "{size:?}");
    }
}

#[test]
fn a_comparison_has_the_difference_inside_its_interval_and_the_seed_fixes_it() {
    let objects: Vec<_> =
        [5, 6, 7].into_iter().flat_map(|image| [(image, 1, A, false), (image, 2, B, false)]).collect();
    let truth = truth(&objects);
    let better: Vec<_> = objects.iter().map(|&(image, class, bbox, _)| (image, class, bbox, 0.9)).collect();
    // Worse in one image of three: one object out of place, one not found.
    let mut worse = better.clone();
    worse[0].2 = [40.0, 0.0, 100.0, 100.0];
    worse.remove(1);
    let (better, worse) = (detections(&better), detections(&worse));
    let run = |a: &[Detection], b: &[Detection], seed| {
        let resampling = Resampling { resamples: 300, seed };
        compare(&truth, a, b, IouType::Bbox, &Params::default(), resampling).unwrap()
    };
    let found = run(&better, &worse, 1);
    let ap = &found.differences[0];
    let stats = evaluate(&truth, &worse, IouType::Bbox, &Params::default()).unwrap().summary().stats;
    for (difference, stat) in found.differences.iter().zip(stats) {
        assert!((difference.b - stat).abs() < 1e-12, "{difference:?} is not {stat}");
    }
    let whole = stats[0];
    assert!(
        (ap.a - 1.0).abs() < 1e-12 && (ap.b - whole).abs() < 1e-12 && (ap.difference - (whole - 1.0)).abs() < 1e-12
    );
    let [low, high] = ap.interval.unwrap();
    assert!(low < ap.difference && ap.difference < high && high == 0.0, "{low} {high}");
    // Image 5 alone, drawn three times, is the worst there is: class 1 at 0, class 2 at 0.
    assert!(low >= -1.0);
    assert_eq!(found.differences[3].interval, None, "there are no small objects");
    assert_eq!(found, run(&better, &worse, 1));
    let same = run(&worse, &worse, 1);
    assert_eq!(same.differences[0].interval, Some([0.0, 0.0]));
}
