//! Statistics, beside numbers that were counted by hand, and the page of plots.

mod common;

use common::mixed;
use vigdet_coco::types::{Annotation, Category, Dataset, Image};
use vigdet_dataset::stats::{lines, stats, Stats, GRID};
use vigdet_dataset::{Import, Layout, Split};

/// One image of 200 × 100 pixels with objects of one class.
fn one(boxes: &[[f64; 4]]) -> Import {
    let mut dataset = Dataset::default();
    dataset.categories.push(Category { id: 1, name: "nut".into(), supercategory: None });
    dataset.images.push(Image { id: 1, file_name: "a.png".into(), width: 200, height: 100 });
    for (&bbox, id) in boxes.iter().zip(1..) {
        let object =
            Annotation { id, image_id: 1, category_id: 1, bbox, area: bbox[2] * bbox[3], ..Default::default() };
        dataset.annotations.push(object);
    }
    let split = Split { name: "train".into(), dataset, ..Split::default() };
    Import { root: "data".into(), layout: Layout::Coco, splits: vec![split] }
}

#[test]
fn objects_and_images_are_counted_by_split_and_class() {
    let all = stats(&mixed(), (96, 96));
    let [train, val] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((train.images, train.objects, train.crowds, train.with_outline), (2, 4, 1, 3));
    assert_eq!((train.images_without_objects, val.images_without_objects, val.objects), (1, 1, 1));
    let counts: Vec<usize> = train.classes.iter().map(|(_, count)| *count).collect();
    assert_eq!(counts, [2, 2, 0]);
    assert_eq!(train.images_by_objects.counts[..5], [1, 0, 0, 1, 0]);
}

#[test]
fn sizes_are_told_in_the_file_and_after_resizing() {
    // The shorter side, 100, becomes 50: everything is half as large.
    let all = stats(&one(&[[0.0, 0.0, 20.0, 5.0], [100.0, 50.0, 40.0, 40.0]]), (50, 200));
    assert_eq!((all[0].size[0], all[0].size[4]), (10.0, 40.0));
    assert_eq!((all[0].size_resized[0], all[0].size_resized[4]), (5.0, 20.0));
    assert_eq!((all[0].aspect[0], all[0].aspect[4]), (0.25, 1.0));
    let range = |stats: &Stats, value: f64| {
        let of = |histogram: &vigdet_dataset::stats::Histogram| {
            histogram.counts[histogram.edges.iter().rposition(|edge| *edge <= value).unwrap()]
        };
        (of(&stats.sizes), of(&stats.sizes_resized))
    };
    assert_eq!((range(&all[0], 10.0), range(&all[0], 5.0), range(&all[0], 20.0)), ((1, 0), (0, 1), (0, 1)));
}

#[test]
fn crowding_is_the_share_of_objects_by_their_greatest_iou() {
    // IoUs: of the first two 1/3, of the second and the third 1/7; the last is alone.
    let boxes = [[0.0, 0.0, 40.0, 20.0], [20.0, 0.0, 40.0, 20.0], [50.0, 0.0, 40.0, 20.0], [150.0, 70.0, 9.0, 9.0]];
    assert_eq!(stats(&one(&boxes), (100, 200))[0].overlapped, [0.75, 0.5, 0.0]);
    assert_eq!(stats(&one(&[boxes[0], boxes[0]]), (100, 200))[0].overlapped, [1.0; 3]);
    // Crowds and boxes without extent overlap nothing.
    let mut import = one(&[boxes[0], boxes[0], [5.0, 5.0, 0.0, 9.0]]);
    import.splits[0].dataset.annotations[1].iscrowd = true;
    assert_eq!(stats(&import, (100, 200))[0].overlapped, [0.0; 3]);
}

#[test]
fn positions_are_those_of_the_centres() {
    // Centres: top left, the middle, and one beyond the right edge.
    let all = stats(&one(&[[0.0, 0.0, 4.0, 4.0], [90.0, 40.0, 20.0, 20.0], [190.0, 96.0, 40.0, 4.0]]), (100, 200));
    let places = &all[0].positions;
    let third = 1.0 / 3.0;
    assert_eq!((places[0][0], places[GRID / 2][GRID / 2], places[GRID - 1][GRID - 1]), (third, third, third));
    assert_eq!(all[0].thirds(), [third, 0.0, 0.0, 0.0, third, 0.0, 0.0, 0.0, third]);
}

#[test]
fn the_table_and_the_json_have_what_the_page_shows() {
    let all = stats(&mixed(), (96, 96));
    let text = lines(&all).join("\n");
    for words in ["overlapped, IoU > 0.1", "overlapped, IoU > 0.5", "√area, resized", "objects an image", "thirds"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let json = serde_json::to_value(&all[0]).unwrap();
    for key in ["overlapped", "positions", "sizes", "sizes_resized", "aspects", "images_by_objects"] {
        assert!(!json[key].is_null(), "{key} in {json}");
    }
}

#[cfg(feature = "plots")]
mod page {
    use super::*;
    use vigdet_dataset::stats::{png, svg};

    /// `splits` splits of `classes` classes with random counts.
    fn many(classes: usize, splits: usize) -> Vec<Stats> {
        let split = |at: usize| {
            let mut stats = stats(&one(&[[20.0, 10.0, 60.0, 30.0]]), (800, 1333)).remove(0);
            stats.split = format!("split{at}");
            stats.classes = (0..classes).map(|class| (format!("class {class} & <b>"), class * 7 % 31)).collect();
            stats.objects = stats.classes.iter().map(|(_, count)| count).sum();
            stats
        };
        (0..splits).map(split).collect()
    }

    #[test]
    fn every_class_and_split_is_named_and_the_file_is_xml() {
        for (classes, splits) in [(1, 1), (1, 3), (80, 1), (80, 3), (5, 10)] {
            let text = svg(&many(classes, splits), "data & <more>").unwrap();
            let document = roxmltree::Document::parse(&text).unwrap();
            let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
            let has = |wanted: &str| texts.iter().any(|text| text.starts_with(wanted));
            assert!((0..classes).all(|class| has(&format!("class {class} &"))), "{classes} classes, {splits} splits");
            assert!((0..splits).all(|split| has(&format!("split{split}: "))), "{classes} classes, {splits} splits");
            assert!(has("data & <more>") && has("Crowding"));
        }
    }

    #[test]
    fn of_very_many_classes_the_largest_and_the_smallest_are_shown() {
        let text = svg(&many(1000, 1), "data").unwrap();
        assert!(text.contains("of 1000"));
        assert!(text.matches("class ").count() < 200);
    }

    #[test]
    fn a_long_tail_of_sizes_is_cut_off_and_counted() {
        let mut boxes = vec![[50.0, 20.0, 20.0, 20.0]; 600];
        boxes.push([0.0, 0.0, 2000.0, 2000.0]);
        let text = svg(&stats(&one(&boxes), (100, 200)), "data").unwrap();
        assert_eq!(text.matches("not shown, of 601: 1 above 64").count(), 2);
        // One of fifty is no tail, and one that is hardly larger saves nothing.
        for (many, side) in [(49, 2000.0), (600, 40.0)] {
            let mut boxes = vec![[50.0, 20.0, 20.0, 20.0]; many];
            boxes.push([0.0, 0.0, side, side]);
            assert!(!svg(&stats(&one(&boxes), (100, 200)), "data").unwrap().contains("not shown"));
        }
    }

    #[test]
    fn the_png_has_the_width_of_the_svg_and_every_splits_colour() {
        let all = many(3, 3);
        let image = image::load_from_memory(&png(&all, "data").unwrap()).unwrap().into_rgb8();
        let text = svg(&all, "data").unwrap();
        assert!(text.contains(&format!("width=\"{}\" height=\"{}\"", image.width(), image.height())));
        for split in 0..3 {
            let colour = vigdet_coco::plot::style::colour(split);
            let count = image.pixels().filter(|pixel| pixel.0 == [colour.0, colour.1, colour.2]).count();
            assert!(count > 500, "{count} pixels of split {split}");
        }
    }

    #[test]
    fn a_set_without_objects_or_sizes_is_drawn_too() {
        let mut import = one(&[]);
        assert!(png(&stats(&import, (800, 1333)), "empty").is_ok());
        import.splits[0].dataset.categories.clear();
        import.splits[0].dataset.images[0].width = 0;
        assert!(png(&stats(&import, (800, 1333)), "empty").is_ok());
        assert!(png(&[], "nothing").is_ok());
    }
}
