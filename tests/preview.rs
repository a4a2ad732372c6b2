//! `vigdet dataset preview`.

use image::RgbImage;

mod common;
use common::*;

fn preview(scene: &Scene, out: &str, more: &[&str]) -> String {
    let out = scene.path(out).display().to_string();
    let mut args = vec!["dataset", "preview", scene.data.arg(), "--out", &out, "--size", "96,160"];
    args.extend(["--images", "4", "--device", "cpu"]);
    args.extend(more);
    succeed("vigdet", &args)
}

fn picture(scene: &Scene, name: &str) -> RgbImage {
    image::open(scene.path(name)).unwrap().into_rgb8()
}

#[test]
fn sheets_show_images_before_and_after_and_are_the_same_for_the_same_seed() {
    let scene = Scene::new();
    let strong =
        ["--set", "data.mosaic=0.5", "--set", "data.affine.probability=0.5", "--set", "data.affine.degrees=20"];
    let with_seed = |seed| [&strong[..], &["--seed", seed]].concat();
    preview(&scene, "a", &with_seed("1"));
    preview(&scene, "b", &with_seed("1"));
    preview(&scene, "c", &with_seed("2"));
    for name in ["before.png", "after.png"] {
        let [a, b, c] = ["a", "b", "c"].map(|out| picture(&scene, &format!("{out}/{name}")));
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_ne!(a, picture(&scene, if name == "after.png" { "a/before.png" } else { "a/after.png" }));
    }
    // A second time over its own files; never over others.
    preview(&scene, "a", &with_seed("1"));
    std::fs::write(scene.path("a/assign.png"), "mine").unwrap();
    let out = scene.path("a").display().to_string();
    let error = fail("vigdet", &["dataset", "preview", scene.data.arg(), "--out", &out, "--assign"]);
    assert!(error.contains("assign.png"), "{error}");
    assert_eq!(std::fs::read_to_string(scene.path("a/assign.png")).unwrap(), "mine");
}

#[test]
fn objects_without_an_anchor_are_counted_and_classes_have_their_crops() {
    let scene = Scene::new();
    let printed = preview(&scene, "fits", &["--assign", "--crops"]);
    let first = |printed: &str| printed.lines().find(|line| line.contains("without any anchor")).unwrap().to_string();
    let numbers = |line: &str| -> Vec<usize> { line.split(' ').filter_map(|word| word.parse().ok()).collect() };
    let fits = numbers(&first(&printed));
    assert!(fits[0] > 0 && fits[1] == 0, "{printed}");
    // Anchors of a kind that no object overlaps.
    let iou = ["--set", "model.match.kind=iou", "--set", "model.match.low_quality=false"];
    let far = ["--assign", "--set", "model.anchors.sizes=[2000]"];
    let printed = preview(&scene, "far", &[&far[..], &iou[..]].concat());
    assert_eq!(numbers(&first(&printed)), [fits[0], fits[0]], "{printed}");
    let crops: Vec<_> = std::fs::read_dir(scene.path("fits"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("class_"))
        .collect();
    assert_eq!(crops.len(), 2, "{crops:?}");
}
