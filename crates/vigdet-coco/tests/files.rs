//! Reading and writing COCO's JSON files.

use std::path::PathBuf;
use vigdet_coco::rle::Rle;
use vigdet_coco::types::{Annotation, Detection, Segmentation};
use vigdet_coco::{check_ids, read_dataset, read_dataset_as_found, read_dataset_with_warnings};
use vigdet_coco::{read_results, write_dataset, write_results};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.0.path().join("file.json");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn dataset_error(&self, text: &str) -> String {
        let path = self.file(text);
        one_line(read_dataset(&path).unwrap_err(), &path)
    }

    fn results_error(&self, text: &str) -> String {
        let path = self.file(text);
        one_line(read_results(&path).unwrap_err(), &path)
    }
}

/// The message without the file's name, which must begin it.
fn one_line(error: vigdet_coco::Error, path: &std::path::Path) -> String {
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    message.strip_prefix(&format!("{}: ", path.display())).unwrap_or_else(|| panic!("{message}")).to_owned()
}

fn dataset(annotations: &str) -> String {
    format!(
        r#"{{"info": {{"year": 2017}}, "images": [{{"id": 3, "file_name": "a.jpg", "width": 40, "height": 30}}],
            "categories": [{{"id": 7, "name": "cat", "supercategory": "animal"}}], "annotations": [{annotations}]}}"#
    )
}

#[test]
fn an_annotation_is_read_as_written_and_its_gaps_are_filled() {
    let folder = Folder::new();
    let path = folder.file(&dataset(
        r#"{"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 2, 3.5, 4], "area": 9, "iscrowd": 1, "ignore": 0,
            "segmentation": {"size": [30, 40], "counts": [0, 1200]}, "attributes": {"x": [1, {"y": null}]}},
           {"id": 2.0, "image_id": 3, "category_id": 7, "segmentation": [[1, 2, 5, 2, 5, 8], [0, 3, 2, 3, 2, 4]]}"#,
    ));
    let data = read_dataset(path).unwrap();
    assert_eq!((data.images[0].id, data.images[0].width, data.images[0].height), (3, 40, 30));
    assert_eq!((data.categories[0].id, data.categories[0].name.as_str()), (7, "cat"));
    let mask = Rle::from_runs(30, 40, &[0, 1200]).unwrap();
    let polygons = vec![vec![1.0, 2.0, 5.0, 2.0, 5.0, 8.0], vec![0.0, 3.0, 2.0, 3.0, 2.0, 4.0]];
    let expected = [
        Annotation {
            id: 1,
            image_id: 3,
            category_id: 7,
            bbox: [1.0, 2.0, 3.5, 4.0],
            area: 9.0,
            iscrowd: true,
            segmentation: Some(Segmentation::Rle(mask)),
        },
        Annotation {
            id: 2,
            image_id: 3,
            category_id: 7,
            bbox: [0.0, 2.0, 5.0, 6.0],
            area: 30.0,
            iscrowd: false,
            segmentation: Some(Segmentation::Polygons(polygons)),
        },
    ];
    assert_eq!(data.annotations, expected);
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let folder = Folder::new();
    let mask = Rle::from_runs(4, 5, &[3, 4, 13]).unwrap();
    let detections = [
        Detection {
            image_id: 3,
            category_id: 7,
            bbox: Some([0.1, 0.2, 1.0 / 3.0, 1e-7]),
            score: 0.3,
            segmentation: None,
        },
        Detection { image_id: 3, category_id: -7, bbox: None, score: 1.0, segmentation: Some(Segmentation::Rle(mask)) },
        Detection {
            image_id: 4,
            category_id: 0,
            bbox: None,
            score: 0.0,
            segmentation: Some(Segmentation::Polygons(vec![vec![0.5, 0.5, 3.0, 0.5, 3.0, 3.0]])),
        },
    ];
    let path = folder.0.path().join("results.json");
    write_results(&path, &detections).unwrap();
    assert_eq!(read_results(&path).unwrap(), detections);

    let path = folder.file(&dataset(
        r#"{"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 2, 3.5, 4], "area": 9, "iscrowd": 1,
            "segmentation": {"size": [30, 40], "counts": "0`U1"}}"#,
    ));
    let data = read_dataset(&path).unwrap();
    write_dataset(&path, &data).unwrap();
    assert_eq!(read_dataset(&path).unwrap(), data);
}

#[test]
fn numbers_are_read_to_the_last_bit() {
    // Each is read one unit in the last place off by parsers that are only nearly right.
    for text in
        ["0.30000000000000004", "5e-324", "123456789.12345679", "7.2057594037927933e16", "1.7976931348623157e308"]
    {
        let folder = Folder::new();
        let path =
            folder.file(&format!(r#"[{{"image_id": 1, "category_id": 1, "bbox": [0,0,1,1], "score": {text}}}]"#));
        assert_eq!(read_results(path).unwrap()[0].score.to_bits(), text.parse::<f64>().unwrap().to_bits(), "{text}");
    }
}

#[test]
fn a_dataset_that_is_wrong_is_refused_in_one_line_that_says_where() {
    let folder = Folder::new();
    let annotation =
        |rest: &str| folder.dataset_error(&dataset(&format!(r#"{{"id": 1, "image_id": 3, "category_id": 7{rest}}}"#)));
    let cases = [
        (folder.dataset_error(""), "EOF while parsing"),
        (folder.dataset_error(r#"{"images": []}"#), "missing field `annotations`"),
        (
            folder.dataset_error(r#"{"images": [], "categories": [], "annotations": {}}"#),
            "annotations: invalid type: map",
        ),
        (annotation(r#", "bbox": [1, 2, 3, 4], "area": "big""#), "annotations[0].area: invalid type: string \"big\""),
        (annotation(r#", "bbox": [1, 2, 3]"#), "annotations[0].bbox: invalid length 3"),
        (annotation(r#", "bbox": [1, 2, 3, 4, 5]"#), "annotations[0].bbox: invalid length 5"),
        (
            annotation(r#", "bbox": [1, 2, 3, NaN]"#),
            "annotations[0].bbox[3]: the value is NaN, which is no number in JSON",
        ),
        (annotation(r#", "bbox": [1, -Infinity, 3, 4]"#), "annotations[0].bbox[1]: the value is -Infinity"),
        (annotation(r#", "bbox": [1, 2, 3, 4], "area": Infinity"#), "annotations[0].area: the value is Infinity"),
        (annotation(r#", "bbox": [1, 2, 3, 1e999]"#), "annotations[0].bbox[3]: number out of range"),
        (annotation(""), "annotation 1 has neither a `bbox` nor a `segmentation`"),
        (annotation(r#", "segmentation": 5"#), "annotations[0].segmentation: invalid type: integer `5`"),
        (annotation(r#", "segmentation": {"size": [2, 2]}"#), "annotations[0].segmentation: missing field `counts`"),
        (annotation(r#", "segmentation": {"size": [2, 2], "counts": [3]}"#), "add up to 3, but 2 x 2 pixels are 4"),
        (
            annotation(r#", "segmentation": {"size": [2, -2], "counts": [4]}"#),
            "segmentation.size[1]: -2 is not a number of pixels",
        ),
        (
            annotation(r#", "segmentation": {"size": [99999, 99999], "counts": "0"}"#),
            "99999 x 99999 pixels is too large",
        ),
        (annotation(r#", "segmentation": {"size": [2, 2], "counts": [4294967295, 5]}"#), "add up to 4294967300"),
        (
            folder.dataset_error(&dataset(r#"{"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 2, 3, 4]}"#)),
            "annotation 1 is in image 4, which is not among the images",
        ),
        (
            folder.dataset_error(&dataset(r#"{"id": 1, "image_id": 3, "category_id": 8, "bbox": [1, 2, 3, 4]}"#)),
            "annotation 1 has category 8, which is not among the categories",
        ),
        (
            folder.dataset_error(&dataset(
                r#"{"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4]},
                   {"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4]}"#,
            )),
            "two annotations have the id 1",
        ),
        (
            folder.dataset_error(r#"{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": []}"#),
            "two images have the id 1",
        ),
        (
            folder.dataset_error(r#"{"images": [{"id": "000001"}], "annotations": [], "categories": []}"#),
            "images[0].id: invalid type: string \"000001\", expected a whole number",
        ),
        (
            folder.dataset_error(r#"{"images": [], "annotations": [], "categories": [{"id": 1.5}]}"#),
            "categories[0].id: 1.5 is not a whole number",
        ),
        (folder.dataset_error(&dataset(&format!(r#"{{"x": {}"#, "[".repeat(100_000)))), "expected `,` or `]`"),
        (
            annotation(&format!(r#", "segmentation": {}"#, "[".repeat(100_000))),
            "segmentation[0][0]: invalid type: sequence",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn results_that_are_wrong_are_refused_in_one_line_that_says_where() {
    let folder = Folder::new();
    let second = |rest: &str| {
        folder.results_error(&format!(
            r#"[{{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}}, {{"image_id": 1, {rest}}}]"#
        ))
    };
    let cases = [
        (folder.results_error(r#"{"image_id": 1}"#), "invalid type: map"),
        (folder.results_error(r#"[{"image_id": 1"#), "[0]: EOF while parsing"),
        (folder.results_error(r#"[] x"#), "trailing characters"),
        (second(r#""bbox": [0, 0, 1, 1], "score": 0.5"#), "[1]: missing field `category_id`"),
        (second(r#""category_id": 1, "bbox": [0, 0, 1, 1]"#), "[1]: missing field `score`"),
        (second(r#""category_id": 1, "bbox": [0, 0, 1, 1], "score": NaN"#), "[1].score: the value is NaN"),
        (second(r#""category_id": 1, "bbox": [0, 0, 1, 1], "score": "1""#), "[1].score: invalid type: string"),
        (second(r#""category_id": 1, "bbox": [0, 0, 1, null], "score": 1"#), "[1].bbox[3]: invalid type: null"),
        (second(r#""category_id": 1, "score": 1"#), "result 1 has neither a `bbox` nor a `segmentation`"),
        (
            second(r#""category_id": 1, "score": 1, "segmentation": {"size": [2, 2], "counts": "2T"}"#),
            "[1].segmentation: the compressed mask is cut off",
        ),
        (
            second(r#""category_id": 1, "score": 1, "segmentation": {"size": [2, 2], "counts": "2é"}"#),
            "[1].segmentation: the compressed mask has a wrong character",
        ),
        (
            second(r#""category_id": 1, "score": 1, "segmentation": {"size": [2, 2], "counts": "oooooooooo0"}"#),
            "[1].segmentation: run 0 of the mask is out of range",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}

#[test]
fn a_long_string_in_a_wrong_place_is_not_repeated_whole() {
    let folder = Folder::new();
    let long = "é".repeat(100_000);
    let message = folder
        .results_error(&format!(r#"[{{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": "{long}"}}]"#));
    assert!(message.starts_with("[0].score: invalid type: string \"éé") && message.chars().count() < 400, "{message}");
    assert!(message.contains("expected f64 at line 1 column"), "{message}");
    let message = folder
        .results_error(&format!(r#"[{{"image_id": 1, "category_id": 1, "score": 1, "segmentation": "{long}"}}]"#));
    assert!(message.contains("[0].segmentation: invalid type") && message.contains("expected a list of polygons"));
    assert!(message.chars().count() < 400, "{message}");
    assert!(folder.dataset_error(&format!("\"{long}\"")).chars().count() < 400);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let message = read_dataset("no/such/file.json").unwrap_err().to_string();
    assert!(message.starts_with("cannot read no/such/file.json: "), "{message}");
    let message = write_results("no/such/folder/file.json", &[]).unwrap_err().to_string();
    assert!(message.starts_with("cannot write no/such/folder/file.json: "), "{message}");
}

#[test]
fn a_segmentation_that_is_none_is_left_out_where_there_is_a_box() {
    let folder = Folder::new();
    for (segmentation, reason) in [
        ("[2, 16, 38, 16, 38, 53, 2, 53]", "invalid type: integer `2`"),
        ("[[[2, 16], [38, 16], [38, 53]]]", "invalid type: sequence"),
        ("\"none\"", "invalid type: string"),
        ("{}", "missing field `size`"),
        (r#"{"size": [2, 2], "counts": [3]}"#, "add up to 3"),
    ] {
        let good =
            r#"{"id": 4, "image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 5, 2, 5, 8]]}"#;
        let rest = format!(r#""image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4], "segmentation": {segmentation}"#);
        let path = folder.file(&dataset(&format!(r#"{good}, {{"id": 8, {rest}}}, {{"id": 9, {rest}}}"#)));
        let (data, warnings) = read_dataset_with_warnings(&path).unwrap();
        assert!(data.annotations[0].segmentation.is_some(), "a sound one stays");
        assert!(data.annotations[1..].iter().all(|a| a.segmentation.is_none() && a.bbox == [1.0, 2.0, 3.0, 4.0]));
        let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
        let line = warning.to_string();
        assert!(
            line.contains("of 2 annotations") && line.contains("annotation 8: ") && line.contains(reason),
            "{line}"
        );
        // Without a box nothing says where the object is.
        let without = format!(r#"{{"id": 8, "image_id": 3, "category_id": 7, "segmentation": {segmentation}}}"#);
        assert!(folder.dataset_error(&dataset(&without)).contains("annotations[0].segmentation"));
    }
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let folder = Folder::new();
    let annotation = r#"{"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4]}"#;
    let plain = read_dataset(folder.file(&dataset(annotation))).unwrap();
    assert_eq!(read_dataset(folder.file(&format!("\u{FEFF}{}", dataset(annotation)))).unwrap(), plain);
    let results = r#"[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]"#;
    assert_eq!(read_results(folder.file(&format!("\u{FEFF}{results}"))).unwrap().len(), 1);
}

#[test]
fn ids_are_left_as_they_are_where_that_is_asked_for() {
    let folder = Folder::new();
    let annotation = r#"{"id": 1, "image_id": 99, "category_id": 7, "bbox": [1, 2, 3, 4]}"#;
    let path = folder.file(&dataset(&format!("{annotation}, {annotation}")));
    let (data, _) = read_dataset_as_found(&path).unwrap();
    assert_eq!(data.annotations.len(), 2);
    assert!(check_ids(&data).unwrap_err().to_string().contains("two annotations have the id 1"));
    assert!(read_dataset(&path).is_err());
}
