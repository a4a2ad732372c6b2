//! The commands, as somebody would type them.

mod common;

use clap::Parser;
use common::{fixture, mixed};
use std::path::Path;
use vigdet_dataset::layouts::{self, Images};
use vigdet_dataset::{commands, Import, Layout};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: commands::Args,
}

/// The exit code, or the error.
fn run(words: &[&str]) -> Result<String, String> {
    let program = Program::try_parse_from(std::iter::once("dataset").chain(words.iter().copied()));
    let program = program.map_err(|error| error.to_string())?;
    commands::run(program.args).map(|code| format!("{code:?}")).map_err(|error| format!("{error:#}"))
}

fn success() -> String {
    format!("{:?}", std::process::ExitCode::SUCCESS)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_yolo_folder_becomes_cocos_layout_with_links_to_its_images() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("coco");
    assert_eq!(run(&["import", text(&fixture("yolo")), "--out", text(&out)]), Ok(success()));
    let import = Import::open(&out).unwrap();
    assert_eq!((import.layout, import.splits.len()), (Layout::Coco, 2));
    let image = out.join("train2017/a.png");
    assert!(image.is_file());
    assert_eq!(cfg!(unix), image.symlink_metadata().unwrap().file_type().is_symlink());
    let again = run(&["import", text(&fixture("yolo")), "--out", text(&out)]).unwrap_err();
    assert!(again.contains("choose another folder"), "{again}");
}

#[test]
fn check_fails_where_training_is_hurt_and_writes_what_it_mended() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut import = mixed();
    import.splits.truncate(1);
    import.splits[0].dataset.annotations[0].bbox = [300.0, 3.0, 10.0, 8.0];
    layouts::write(&import, Layout::Coco, &data, Images::Copy).unwrap();
    let fixed = folder.path().join("fixed.json");
    let words = ["check", text(&data), "--json", "--fix", text(&fixed)];
    assert_ne!(run(&words), Ok(success()));
    let dataset = vigdet_coco::read_dataset(&fixed).unwrap();
    assert_eq!(dataset.annotations.len(), import.splits[0].dataset.annotations.len() - 1);
    // It may be written anew, but never over somebody else's file.
    assert!(run(&words).is_ok());
    std::fs::write(&fixed, "mine").unwrap();
    assert!(run(&words).unwrap_err().contains("did not write it"));
}

#[test]
fn splits_and_folds_hold_every_image_once_and_open_as_data() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (fixture("voc"), folder.path().join("split"));
    let words = ["split", text(&data), "--out", text(&out), "--fractions", "train=0.67,test=0.33"];
    assert_eq!(run(&words), Ok(success()));
    let import = Import::open(&out).unwrap();
    let names: Vec<&str> = import.splits.iter().map(|split| split.name.as_str()).collect();
    assert_eq!(names, ["train", "test"]);
    let images = |import: &Import| import.splits.iter().map(|split| split.dataset.images.len()).sum::<usize>();
    assert_eq!(images(&import), 3);
    let found = import.splits.iter().all(|s| s.dataset.images.iter().all(|i| s.path(&i.file_name).is_file()));
    assert!(found, "the images are found through the links");
    let folds = folder.path().join("folds");
    assert_eq!(run(&["split", text(&data), "--out", text(&folds), "--folds", "3", "--no-decode"]), Ok(success()));
    let mut validated = Vec::new();
    for fold in 0..3 {
        let import = Import::open(folds.join(format!("fold{fold}"))).unwrap();
        assert_eq!(images(&import), 3);
        validated.extend(import.split("val").unwrap().dataset.images.iter().map(|image| image.file_name.clone()));
    }
    validated.sort();
    assert_eq!(validated, ["a.png", "b_c.jpg", "v.png"]);
}

#[test]
fn groups_come_from_a_column() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("patients.csv");
    std::fs::write(&table, "file_name,patient\na.png,x\nb_c.jpg,x\nv.png,y\n").unwrap();
    let out = folder.path().join("split");
    let group = format!("column:{}:patient", text(&table));
    let voc = fixture("voc");
    let words = ["split", text(&voc), "--out", text(&out), "--group", &group, "--no-decode"];
    assert_eq!(run(&words), Ok(success()));
    let import = Import::open(&out).unwrap();
    let of = |name: &str| import.splits.iter().position(|s| s.dataset.images.iter().any(|i| i.file_name == name));
    assert!(of("a.png") == of("b_c.jpg") && of("a.png") != of("v.png"));
    let wrong = ["split", text(&voc), "--out", text(&out), "--group", "colour"];
    assert!(run(&wrong).unwrap_err().contains("none of folder, prefix:TEXT"));
}

#[test]
fn results_become_labels_to_correct_with_their_scores() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.json");
    let found = r#"[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 10, 12], "score": 0.9},
                    {"image_id": 1, "category_id": 1, "bbox": [5, 5, 10, 12], "score": 0.1},
                    {"image_id": 2, "category_id": 1, "bbox": [3, 4, 9, 8], "score": 0.5}]"#;
    std::fs::write(&results, found).unwrap();
    let voc = fixture("voc");
    for (name, layout) in [
        ("label-studio", Layout::LabelStudio),
        ("cvat", Layout::Cvat),
        ("labelme", Layout::Labelme),
        ("coco", Layout::Coco),
        ("csv", Layout::Csv),
        ("open-images", Layout::OpenImages),
    ] {
        let out = folder.path().join(name);
        let words = ["export", text(&voc), "--to", name, "--out", text(&out), "--results", text(&results)];
        assert_eq!(run(&words), Ok(success()), "{name}");
        let import = Import::open(&out).unwrap();
        assert_eq!((import.layout, import.splits[0].dataset.annotations.len()), (layout, 2), "{name}");
        let bbox = import.splits[0].dataset.annotations[0].bbox;
        assert!(bbox.iter().zip([1.0, 2.0, 10.0, 12.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{name}: {bbox:?}");
        if layout != Layout::Coco {
            assert_eq!(import.splits[0].scores, [0.9, 0.5], "{name}");
        }
    }
}

#[test]
fn a_class_without_objects_is_left_out_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let classes = |out: &Path| {
        let import = Import::open(out).unwrap();
        import.classes().into_iter().map(|class| (class.id, class.name)).collect::<Vec<_>>()
    };
    // Roboflow's root category has the id 0 and no object.
    let (data, out) = (fixture("roboflow"), folder.path().join("coco"));
    let words = ["import", text(&data), "--out", text(&out), "--drop-empty-classes"];
    assert_eq!(run(&words), Ok(success()));
    assert_eq!(classes(&out), [(1, "nut".to_owned()), (2, "bolt".to_owned())]);
    let yolo = folder.path().join("yolo");
    let words = ["export", text(&data), "--to", "yolo", "--out", text(&yolo), "--drop-empty-classes"];
    assert_eq!(run(&words), Ok(success()));
    assert_eq!(classes(&yolo), [(1, "nut".to_owned()), (2, "bolt".to_owned())]);
}

#[test]
fn chosen_classes_are_kept_with_their_objects_and_all_images() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    layouts::write(&mixed(), Layout::Coco, &data, Images::Copy).unwrap();
    // The name itself has a comma.
    for (number, (name, left)) in [("ключ, \"big\"", [2, 0]), ("unused,nut & <bolt>", [2, 1])].into_iter().enumerate()
    {
        let out = folder.path().join(number.to_string());
        assert_eq!(run(&["import", text(&data), "--out", text(&out), "--only", name]), Ok(success()));
        let import = Import::open(&out).unwrap();
        let counts: Vec<usize> =
            import.splits.iter().map(|s| s.dataset.annotations.iter().filter(|a| !a.iscrowd).count()).collect();
        assert_eq!(counts, left, "{name}");
        assert!(import.splits.iter().all(|split| split.dataset.images.len() == 2));
        let names: Vec<String> = import.classes().into_iter().map(|class| class.name).collect();
        assert_eq!(names.len(), number + 1, "{names:?}");
    }
    let error = run(&["import", text(&data), "--only", "screw"]).unwrap_err();
    assert!(error.contains("no class `screw`") && error.contains("nut & <bolt>"), "{error}");
}

#[test]
fn the_scores_of_results_stay_with_their_classes() {
    let folder = tempfile::tempdir().unwrap();
    let (results, out) = (folder.path().join("results.json"), folder.path().join("out"));
    let found = r#"[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 10, 12], "score": 0.9},
                    {"image_id": 1, "category_id": 1, "bbox": [5, 5, 10, 12], "score": 0.5}]"#;
    std::fs::write(&results, found).unwrap();
    let voc = fixture("voc");
    let words = ["export", text(&voc), "--to", "csv", "--out", text(&out), "--results", text(&results)];
    assert_eq!(run(&[&words[..], &["--only", "bolt"]].concat()), Ok(success()));
    assert_eq!(Import::open(&out).unwrap().splits[0].scores, [0.5]);
}

#[test]
fn plots_are_written_again_but_not_over_a_file_of_somebody_else() {
    let folder = tempfile::tempdir().unwrap();
    let plots = folder.path().join("new/plots");
    let yolo = fixture("yolo");
    let words = ["stats", text(&yolo), "--size", "320,512", "--plots", text(&plots)];
    for _ in 0..2 {
        assert_eq!(run(&words), Ok(success()));
    }
    let png = std::fs::read(plots.join("stats.png")).unwrap();
    assert!(image::load_from_memory(&png).is_ok());
    std::fs::write(plots.join("stats.svg"), "mine").unwrap();
    assert!(run(&words).unwrap_err().contains("did not write it"));
}

#[test]
fn stats_of_every_fixture_are_told() {
    for name in ["roboflow", "yolo", "voc", "labelme", "cvat", "label_studio", "open_images", "csv"] {
        assert_eq!(run(&["stats", text(&fixture(name)), "--size", "320,512"]), Ok(success()), "{name}");
        assert_eq!(run(&["stats", text(&fixture(name)), "--json"]), Ok(success()), "{name}");
    }
    assert!(run(&["stats", text(&fixture("voc")), "--ratios", "0"]).unwrap_err().contains("above 0"));
    assert!(run(&["stats", text(&fixture("voc")), "--size", "0,5"]).is_err());
}
