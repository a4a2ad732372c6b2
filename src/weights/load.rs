//! Reading weights into a model, by name.

use std::collections::HashMap;

use anyhow::{bail, ensure, Context, Result};
use tch::{nn, Kind, Tensor};

use super::class_rows::{compare, rows_before_classes, take_rows};
use super::file::WeightFile;
use super::load_report::LoadReport;
use super::save::sorted_variables;
use crate::backbone::vig::pyramid::{NATIVE_GRID, REDUCE};
use crate::classes::Classes;

/// Where a backbone's variables live in a detector: a file of a backbone alone has its names without this.
const BACKBONE: &str = "backbone.body.";
/// Where they live in torchvision's classifiers with a MobileNet.
const FEATURES: &str = "features.";
/// Ends of the names of constants and counters, which are nothing to a model here.
const USELESS: [&str; 5] =
    ["num_batches_tracked", ".relative_position_index", ".attn_mask", ".sfc_h.offset", ".sfc_w.offset"];

/// What a file must and may hold.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Every variable of the model must be in the file: for inference and evaluation.
    pub complete: bool,
    /// Layers whose size is the number of classes may be for others in the file. For training on other classes than
    /// those the file knows.
    pub other_classes: OtherClasses,
    /// Nothing but the backbone is taken from the file, whatever else of it has a name in the model: for weights of
    /// another kind of detector.
    pub backbone_only: bool,
}

/// What becomes of layers for other classes than the model's.
#[derive(Clone, Debug, Default)]
pub enum OtherClasses {
    /// They are an error.
    #[default]
    Refused,
    /// They keep their init, where their shape tells; for files that name no classes.
    Unnamed,
    /// Rows of classes with equal names are taken from the file, the others keep their init.
    ByName {
        /// The file's classes.
        file: Classes,
        /// The model's.
        model: Classes,
    },
}

/// Copies a file's tensors into the variables of a store that have the same name. The file is safetensors, a PyTorch
/// file (`.pth`, `.pth.tar`, `.pt`, of before version 1.6 too) with a state dict, bare or under `state_dict_ema`,
/// `model_ema`, `state_dict` or `model`, with or without `module.` before its names, or a pickle of NumPy arrays (see
/// [`super::array_file::ArrayFile`]); nothing in it is executed.
///
/// File and model may each be a whole detector, or a backbone or classifier, whose names lack `backbone.body.` (or have
/// `features.` there).
/// torchvision's older names of heads count as the newer ones. A position embedding of another grid is resized.
/// Constants of the published ViG code (`relative_pos`) are checked and passed over; step counters of batch norms are
/// passed over, and what Swin's and CycleMLP's files hold of their geometry.
///
/// # Errors
/// If no name matches, if a shape differs (but see [`LoadOptions::other_classes`]), if a number is not finite, or if
/// `complete` is asked for and a variable is missing. Nothing is copied then.
pub(super) fn load(store: &nn::VarStore, file: &WeightFile, options: &LoadOptions) -> Result<LoadReport> {
    let variables = sorted_variables(store);
    let names: HashMap<&str, usize> = variables.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
    let find = |name: &str| {
        let with = || names.get(format!("{BACKBONE}{name}").as_str());
        let without = || names.get(name.strip_prefix(BACKBONE)?);
        let newer = || names.get(newer_name(name)?.as_str());
        let to_body = || names.get(format!("{BACKBONE}{}", name.strip_prefix(FEATURES)?).as_str());
        let to_features = || names.get(format!("{FEATURES}{}", name.strip_prefix(BACKBONE)?).as_str());
        let own = names.get(name).or_else(with).or_else(without).or_else(newer);
        own.or_else(to_body).or_else(to_features).copied()
    };

    let differ = match &options.other_classes {
        OtherClasses::ByName { file, model } if file.names() != model.names() => Some(compare(file, model)),
        _ => None,
    };
    let mut report = LoadReport { key: file.key(), ..Default::default() };
    let mut sources: Vec<Option<Tensor>> = variables.iter().map(|_| None).collect();
    let entries = file.names()?;
    for entry in &entries {
        if entry.ends_with("relative_pos") {
            check_relative(file, &entries, entry)?;
            continue;
        }
        if USELESS.iter().any(|name| entry.ends_with(name)) {
            continue;
        }
        let taken = |index: &usize| !options.backbone_only || variables[*index].0.starts_with(BACKBONE);
        let Some(index) = find(entry).filter(taken) else {
            report.unused.push(entry.to_string());
            continue;
        };
        let (name, variable) = &variables[index];
        let mut source = file.tensor(entry)?;
        check_numbers(entry, &source)?;
        let rows = rows_before_classes(name);
        if let (OtherClasses::ByName { file, model }, Some(before), true) =
            (&options.other_classes, rows, differ.is_some())
        {
            match take_rows(&source, variable, before, (file, model)) {
                Some(taken) => source = taken,
                None => {
                    report.other_classes.push(name.clone());
                    continue;
                }
            }
        } else if source.size() != variable.size() {
            if let Some(resized) = resize_position(name, &source, variable) {
                source = resized;
                report.reshaped.push(name.clone());
            } else if rows.is_some() && !matches!(options.other_classes, OtherClasses::Refused) {
                report.other_classes.push(name.clone());
                continue;
            } else {
                let hint = if rows.is_some() { "; the file is for other classes" } else { "" };
                bail!("{name} has shape {:?} in the file and {:?} in the model{hint}", source.size(), variable.size());
            }
        }
        ensure!(sources[index].is_none(), "two tensors of the file are for {name}");
        sources[index] = Some(source);
        report.loaded.push(name.clone());
    }
    let missing = variables.iter().zip(&sources).filter(|(_, source)| source.is_none());
    report.missing = missing.map(|((name, _), _)| name.clone()).collect();
    report.loaded.sort_unstable();
    report.reshaped.sort_unstable();
    report.other_classes.sort_unstable();
    ensure!(
        !report.loaded.is_empty(),
        "none of its {} tensors ({}, …) is one of this model's ({}, …)",
        entries.len(),
        report.unused.first().map_or("none", String::as_str),
        variables.first().map_or("none", |v| v.0.as_str()),
    );
    if let Some(first) = report.missing.first().filter(|_| options.complete) {
        bail!(
            "{} of the model's {} tensors are not in it ({first}{}): it is for another model",
            report.missing.len(),
            variables.len(),
            if report.missing.len() > 1 { ", …" } else { "" }
        );
    }
    let of_classes = |name: &String| rows_before_classes(name).is_some();
    report.classes = differ.filter(|_| report.loaded.iter().chain(&report.other_classes).any(of_classes));
    tch::no_grad(|| -> Result<()> {
        for ((name, variable), source) in variables.iter().zip(&sources) {
            if let Some(source) = source {
                variable.shallow_clone().f_copy_(source).with_context(|| format!("cannot copy {name}"))?;
            }
        }
        Ok(())
    })?;
    Ok(report)
}

/// Refuses a tensor whose numbers cannot be weights: of another kind, not finite, or a negative variance.
fn check_numbers(name: &str, tensor: &Tensor) -> Result<()> {
    ensure!(tensor.is_floating_point(), "{name} holds {:?} numbers, which are no weights", tensor.kind());
    ensure!(
        tensor.isfinite().all().int64_value(&[]) == 1,
        "{name} holds numbers that are not finite: the file is damaged, or its training failed"
    );
    let is_variance = name.ends_with(".running_var");
    ensure!(
        !is_variance || tensor.lt(0.0).any().int64_value(&[]) == 0,
        "{name} holds negative variances: the file is damaged"
    );
    Ok(())
}

/// What torchvision calls today what its older files (those with batch norm's epsilon 0) call `name`; `None`: the same.
fn newer_name(name: &str) -> Option<String> {
    let (layer, kind) = name.rsplit_once('.')?;
    let (parent, last) = layer.rsplit_once('.')?;
    let numbered = |suffix: &str| parent.ends_with(suffix).then(|| last.parse::<usize>().ok()).flatten();
    if layer == "rpn.head.conv" {
        Some(format!("{layer}.0.0.{kind}"))
    } else if let Some(number) = last.strip_prefix("mask_fcn").and_then(|n| n.parse::<usize>().ok()) {
        Some(format!("{parent}.{}.0.{kind}", number.checked_sub(1)?))
    } else if numbered("fpn.inner_blocks").or_else(|| numbered("fpn.layer_blocks")).is_some() {
        Some(format!("{layer}.0.{kind}"))
    } else {
        // Every second module of the older towers is a relu.
        let number = numbered("classification_head.conv").or_else(|| numbered("regression_head.conv"))?;
        Some(format!("{parent}.{}.0.{kind}", number / 2))
    }
}

/// Refuses a `relative_pos` that is not of the shape that the published code makes for the file's own grid: `[1, n, n
/// / r²]` for a stage of n nodes whose candidates are pooled by r. Its numbers are a formula's, and computed here, not
/// read.
fn check_relative(file: &WeightFile, entries: &[String], name: &str) -> Result<()> {
    let found = file.shape(name).unwrap_or_default();
    // `[prefix]backbone.N.0.relative_pos`: the stage is the number of downsampling layers before layer N.
    let location = name.strip_suffix(".0.relative_pos").and_then(|layer| layer.rsplit_once("backbone."));
    let expected = location.and_then(|(prefix, layer)| {
        let layer: usize = layer.parse().ok()?;
        let down = |n: &usize| entries.binary_search(&format!("{prefix}backbone.{n}.conv.0.weight")).is_ok();
        let stage = (0..layer).filter(down).count();
        let grid = file.shape(&format!("{prefix}pos_embed")).and_then(|s| s.get(2).copied()).unwrap_or(NATIVE_GRID);
        let nodes = (grid >> stage).pow(2);
        Some([1, nodes, nodes / REDUCE.get(stage)?.pow(2)])
    });
    match expected {
        Some(expected) => ensure!(
            found == expected,
            "{name} has shape {found:?} in the file, where a Pyramid ViG of its grid has {expected:?}"
        ),
        None => bail!("{name} is no constant of Pyramid ViG"),
    }
    Ok(())
}

/// A learned position embedding on the grid of `like`, as the published code resizes it: ViG's `[1, C, h, w]`
/// bicubically, PVT's `[1, h · w, C]` bilinearly; a class token's, which comes first, stays.
fn resize_position(name: &str, source: &Tensor, like: &Tensor) -> Option<Tensor> {
    let (from, to) = (source.size(), like.size());
    let (_, last) = name.rsplit_once('.').unwrap_or(("", name));
    match (last, &from[..], &to[..]) {
        ("pos_embed", [1, c, _, _], [1, own, h, w]) if c == own => {
            Some(source.to_kind(Kind::Float).upsample_bicubic2d([*h, *w], false, None, None))
        }
        ("pos_embed1" | "pos_embed2" | "pos_embed3" | "pos_embed4", [1, n, c], [1, m, own]) if c == own => {
            let side = |n: i64| n.isqrt();
            let token = n - side(*n).pow(2);
            if token > 1 || m - side(*m).pow(2) != token {
                return None;
            }
            let grid = source.to_kind(Kind::Float).narrow(1, token, n - token).transpose(1, 2);
            let grid = grid.reshape([1, *c, side(*n), side(*n)]);
            let grid = grid.upsample_bilinear2d([side(*m), side(*m)], false, None, None).flatten(2, 3).transpose(1, 2);
            Some(Tensor::cat(&[source.to_kind(Kind::Float).narrow(1, 0, token), grid], 1))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use std::path::Path;

    use tch::Device;

    use super::super::{save, write_tensors, Checkpoint, Metadata};
    use super::*;

    fn load_into(store: &nn::VarStore, path: &Path, options: &LoadOptions) -> Result<LoadReport> {
        Checkpoint::open(path)?.load_into(store, options)
    }

    fn model(classes: i64, start: f64) -> nn::VarStore {
        let store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let fill = |path: nn::Path, name: &str, shape: &[i64]| {
            let _ = path.var(name, shape, nn::Init::Const(start));
        };
        fill(&root / "backbone" / "body" / "stem", "weight", &[2, 3]);
        fill(&root / "backbone" / "body", "pos_embed", &[1, 2, 4, 4]);
        fill(&root / "head" / "cls_logits", "weight", &[classes, 2]);
        store
    }

    fn value(store: &nn::VarStore, name: &str) -> f64 {
        store.variables()[name].mean(Kind::Float).double_value(&[])
    }

    fn error<T: fmt::Debug>(result: Result<T>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn a_saved_model_loads_back_whole_with_its_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let metadata = Metadata::from([("classes".to_string(), "[[1,\"a\"]]".to_string())]);
        save(&model(3, 2.0), &path, &metadata).unwrap();
        let to = model(3, 0.0);
        let report = load_into(&to, &path, &LoadOptions { complete: true, ..Default::default() }).unwrap();
        assert_eq!((report.loaded.len(), report.missing.len(), report.unused.len()), (3, 0, 0));
        assert_eq!(value(&to, "head.cls_logits.weight"), 2.0);
        assert_eq!(Checkpoint::open(&path).unwrap().metadata(), metadata);
    }

    #[test]
    fn of_another_kind_of_detector_the_backbone_is_taken_whatever_the_rest_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&model(3, 2.0), &path, &Metadata::default()).unwrap();
        let to = model(4, 0.0);
        let options = LoadOptions { backbone_only: true, ..Default::default() };
        let report = load_into(&to, &path, &options).unwrap();
        assert_eq!((report.loaded.len(), report.unused.as_slice()), (2, &["head.cls_logits.weight".to_string()][..]));
        assert_eq!(value(&to, "backbone.body.stem.weight"), 2.0);
        assert_eq!(value(&to, "head.cls_logits.weight"), 0.0);
    }

    #[test]
    fn a_backbone_alone_loads_into_a_detector_and_its_constants_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let t = |shape: &[i64]| Tensor::ones(shape, (Kind::Double, Device::Cpu));
        let tensors = vec![
            ("stem.weight".to_string(), t(&[2, 3])),
            ("pos_embed".to_string(), t(&[1, 2, 8, 8])),
            ("backbone.0.0.relative_pos".to_string(), t(&[1, 64, 4])),
            ("prediction.0.weight".to_string(), t(&[7])),
        ];
        write_tensors(&tensors, &path, &Metadata::new()).unwrap();
        let to = model(3, 0.0);
        let report = load_into(&to, &path, &LoadOptions::default()).unwrap();
        assert_eq!(report.loaded, ["backbone.body.pos_embed", "backbone.body.stem.weight"]);
        assert_eq!(report.missing, ["head.cls_logits.weight"]);
        assert_eq!(report.unused, ["prediction.0.weight"]);
        assert_eq!(report.reshaped, ["backbone.body.pos_embed"]);
        assert_eq!(value(&to, "backbone.body.stem.weight"), 1.0);
        assert!((value(&to, "backbone.body.pos_embed") - 1.0).abs() < 1e-6);
        assert_eq!(value(&to, "head.cls_logits.weight"), 0.0);
        let text = error(load_into(&to, &path, &LoadOptions { complete: true, ..Default::default() }));
        assert!(text.contains("head.cls_logits.weight"), "{text}");
    }

    #[test]
    fn a_wrong_shape_is_named_and_nothing_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&model(80, 2.0), &path, &Metadata::new()).unwrap();
        let to = model(3, 0.0);
        let text = error(load_into(&to, &path, &LoadOptions::default()));
        assert!(text.contains("head.cls_logits.weight") && text.contains("80"), "{text}");
        assert_eq!(value(&to, "backbone.body.stem.weight"), 0.0);
        let report =
            load_into(&to, &path, &LoadOptions { other_classes: OtherClasses::Unnamed, ..Default::default() }).unwrap();
        assert_eq!(report.other_classes, ["head.cls_logits.weight"]);
        assert_eq!(report.missing, ["head.cls_logits.weight"]);
        assert_eq!(value(&to, "backbone.body.stem.weight"), 2.0);
    }

    /// Numbers that tell where they came from: `base` + their own number.
    fn counted(shape: &[i64], base: i64) -> Tensor {
        (Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) + base).view(shape)
    }

    #[test]
    fn rows_of_classes_with_equal_names_are_kept_and_the_others_stay_anew() {
        let classes = |names: &[&str]| -> Classes { (1..).zip(names.iter().copied()).collect() };
        let (file, model) = (classes(&["nut", "bolt", "cog"]), classes(&["washer", "bolt", "nut"]));
        let rows = |t: &Tensor| Vec::<f32>::try_from(t.reshape(-1)).unwrap();
        // Two anchors with three classes each, one number a row.
        let taken = take_rows(&counted(&[6, 1], 0), &counted(&[6, 1], 100), 0, (&file, &model)).unwrap();
        assert_eq!(rows(&taken), [100.0, 1.0, 0.0, 103.0, 4.0, 3.0]);
        // Background first; four rows for each class.
        let taken = take_rows(&counted(&[16], 0), &counted(&[16], 100), 1, (&file, &model)).unwrap();
        let expected = [0, 1, 2, 3, 104, 105, 106, 107, 8, 9, 10, 11, 4, 5, 6, 7].map(|v| v as f32);
        assert_eq!(rows(&taken), expected);
        // Fewer classes than in the file.
        let few = classes(&["bolt"]);
        let taken = take_rows(&counted(&[4], 0), &counted(&[2], 100), 1, (&file, &few)).unwrap();
        assert_eq!(rows(&taken), [0.0, 2.0]);
        assert!(take_rows(&counted(&[4], 0), &counted(&[2], 9), 1, (&file, &classes(&["rim"]))).is_none());
        assert!(take_rows(&counted(&[5], 0), &counted(&[2], 9), 1, (&file, &few)).is_none());
    }

    #[test]
    fn classes_are_matched_by_name_though_their_number_is_the_same_and_it_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let classes = |names: [&str; 3]| -> Classes { (1..).zip(names).collect() };
        let (file, own) = (classes(["nut", "bolt", "cog"]), classes(["cog", "rim", "nut"]));
        save(&model(3, 2.0), &path, &Metadata::new()).unwrap();
        let to = model(3, 5.0);
        let other_classes = OtherClasses::ByName { file: file.clone(), model: own };
        let options = LoadOptions { other_classes, ..Default::default() };
        let report = load_into(&to, &path, &options).unwrap();
        let rows: Vec<f32> = to.variables()["head.cls_logits.weight"].reshape(-1).try_into().unwrap();
        assert_eq!(rows, [2.0, 2.0, 5.0, 5.0, 2.0, 2.0]);
        let said = report.to_string();
        assert!(
            said.contains("classes by name: 2 kept (`cog`, `nut`), 1 anew (`rim`), 1 of the file unused (`bolt`)"),
            "{said}"
        );
        let other_classes = OtherClasses::ByName { model: file.clone(), file };
        let report = load_into(&to, &path, &LoadOptions { other_classes, ..Default::default() }).unwrap();
        assert_eq!((report.classes, value(&to, "head.cls_logits.weight")), (None, 2.0));
    }

    #[test]
    fn numbers_that_are_not_finite_are_an_error_that_names_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        save(&model(3, f64::NAN), &path, &Metadata::new()).unwrap();
        let text = error(load_into(&model(3, 0.0), &path, &LoadOptions::default()));
        assert!(text.contains("backbone.body.pos_embed holds numbers that are not finite"), "{text}");
    }

    #[test]
    fn whole_numbers_and_negative_variances_are_no_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let store = nn::VarStore::new(Device::Cpu);
        let _ = nn::batch_norm2d(store.root() / "norm", 2, nn::BatchNormConfig::default());
        for (values, said) in [
            (Tensor::from_slice(&[1i32, 2]), "norm.running_var holds Int numbers"),
            (Tensor::from_slice(&[1f32, -1e-9]), "norm.running_var holds negative variances"),
        ] {
            write_tensors(&[("norm.running_var".to_string(), values)], &path, &Metadata::new()).unwrap();
            let text = error(load_into(&store, &path, &LoadOptions::default()));
            assert!(text.contains(said), "{text}");
        }
        write_tensors(&[("norm.running_var".to_string(), Tensor::from_slice(&[0f32, 1.0]))], &path, &Metadata::new())
            .unwrap();
        assert_eq!(load_into(&store, &path, &LoadOptions::default()).unwrap().loaded, ["norm.running_var"]);
    }

    /// What `tests/fixtures/weights/make.py` writes, and its model.
    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
    }

    fn fixture_model() -> nn::VarStore {
        let store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let _ = (&root / "stem").zeros("weight", &[2, 3]);
        let _ = (&root / "stem").zeros("shift", &[2]);
        let _ = root.zeros("pos_embed", &[1, 2, 4, 4]);
        store
    }

    #[test]
    fn files_of_every_form_give_their_numbers() {
        for (name, key) in [
            ("bare.pth", None),
            ("checkpoint.pth.tar", Some("state_dict")),
            ("averaged.pth", Some("state_dict_ema")),
            ("model.pt", Some("model")),
            ("old.pth", None),
            ("zoo2.pkl", Some("model")),
            ("zoo3.pkl", Some("model")),
            ("zoo4.pkl", Some("model")),
            ("zoo5.pkl", Some("model")),
            ("python2.pkl", Some("blobs")),
        ] {
            let to = fixture_model();
            let options = LoadOptions { complete: true, ..Default::default() };
            let report = load_into(&to, &fixture(name), &options).unwrap();
            assert_eq!(report.key, key, "{name}");
            assert_eq!(report.loaded, ["pos_embed", "stem.shift", "stem.weight"], "{name}");
            assert_eq!(report.reshaped, ["pos_embed"], "{name}");
            assert!(report.unused.is_empty(), "{name}: {:?}", report.unused);
            let numbers =
                |variable: &str| -> Vec<f32> { to.variables()[variable].detach().flatten(0, -1).try_into().unwrap() };
            assert_eq!(numbers("stem.weight"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "{name}");
            assert_eq!(numbers("stem.shift"), [10.0, 20.0], "{name}");
            assert!((value(&to, "pos_embed") - 1.0).abs() < 1e-6, "{name}");
        }
    }

    #[test]
    fn bad_files_are_refused_and_say_why() {
        let to = fixture_model();
        let of = |path: &Path| error(load_into(&to, path, &LoadOptions::default()));
        for (name, why) in [
            ("code.pth", "system"),
            ("module.pth", "torch.nn.modules.linear.Linear"),
            ("list.pth", "state_dict()"),
            ("script.pt", "TorchScript"),
            ("code.pkl", "system"),
            ("big.pkl", "big-endian"),
            ("objects.pkl", "no NumPy arrays"),
            ("text.pkl", "`U1`"),
        ] {
            let text = of(&fixture(name));
            assert!(text.contains(why) && text.contains(name), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.pth");
        let bytes = std::fs::read(fixture("bare.pth")).unwrap();
        for length in [4, 100, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(of(&path).contains("not a whole PyTorch file"), "{length}");
        }
        let old = std::fs::read(fixture("old.pth")).unwrap();
        for length in [20, 100, old.len() / 2, old.len() - 1] {
            std::fs::write(&path, &old[..length]).unwrap();
            assert!(of(&path).contains("cut off"), "{length}: {}", of(&path));
        }
        let zoo = std::fs::read(fixture("zoo4.pkl")).unwrap();
        for length in [2, 20, zoo.len() / 2, zoo.len() - 1] {
            std::fs::write(&path, &zoo[..length]).unwrap();
            assert!(of(&path).contains("cut off"), "{length}: {}", of(&path));
        }
        // One flipped bit among the numbers.
        let mut flipped = bytes.clone();
        let at = bytes.windows(4).position(|w| w == 5f32.to_le_bytes()).unwrap();
        flipped[at] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        assert!(of(&path).contains("broken"), "{}", of(&path));
        std::fs::write(&path, "name = pvig_s\n").unwrap();
        assert!(of(&path).contains("of another format"), "{}", of(&path));
        assert_eq!(value(&to, "stem.weight"), 0.0);
    }

    #[test]
    fn half_right_names_are_listed_and_a_complete_load_refuses_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let t = |v: &[f32]| Tensor::from_slice(v);
        let tensors = vec![("stem.scale".to_string(), t(&[3.0])), ("stem.shift".to_string(), t(&[1.0, 2.0]))];
        write_tensors(&tensors, &path, &Metadata::new()).unwrap();
        let to = fixture_model();
        let text = error(load_into(&to, &path, &LoadOptions { complete: true, ..Default::default() }));
        assert!(text.contains("2 of the model's 3") && text.contains("pos_embed"), "{text}");
        assert_eq!(value(&to, "stem.shift"), 0.0);
        let report = load_into(&to, &path, &LoadOptions::default()).unwrap();
        assert_eq!(report.loaded, ["stem.shift"]);
        assert_eq!(report.missing, ["pos_embed", "stem.weight"]);
        assert_eq!(report.unused, ["stem.scale"]);
        assert_eq!(
            report.to_string(),
            "1 tensors loaded, 2 missing in the file (pos_embed, stem.weight), 1 in the file unused (stem.scale)"
        );
    }

    #[test]
    fn constants_of_another_shape_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let to = fixture_model();
        let t = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        // A grid of 8 × 8: 64 nodes and 64 / 16 candidates in stage 1, 16 nodes and 16 / 4 in stage 2, behind layer 1.
        for (first, second, fits) in
            [([1, 64, 4], [1, 16, 4], true), ([1, 64, 16], [1, 16, 4], false), ([1, 64, 4], [1, 64, 4], false)]
        {
            let tensors = vec![
                ("pos_embed".to_string(), t(&[1, 2, 8, 8])),
                ("backbone.0.0.relative_pos".to_string(), t(&first)),
                ("backbone.1.conv.0.weight".to_string(), t(&[1])),
                ("backbone.2.0.relative_pos".to_string(), t(&second)),
            ];
            write_tensors(&tensors, &path, &Metadata::new()).unwrap();
            let result = load_into(&to, &path, &LoadOptions::default());
            assert_eq!(result.is_ok(), fits, "{first:?} {second:?}: {result:?}");
            if !fits {
                assert!(error(result).contains("relative_pos has shape"));
            }
        }
    }

    #[test]
    fn older_torchvision_names_are_known_by_the_newer_ones() {
        for (older, newer) in [
            ("rpn.head.conv.weight", "rpn.head.conv.0.0.weight"),
            ("backbone.fpn.inner_blocks.2.bias", "backbone.fpn.inner_blocks.2.0.bias"),
            ("head.classification_head.conv.6.weight", "head.classification_head.conv.3.0.weight"),
            ("roi_heads.mask_head.mask_fcn4.bias", "roi_heads.mask_head.3.0.bias"),
        ] {
            assert_eq!(newer_name(older).as_deref(), Some(newer));
            assert!(newer_name(newer).is_none_or(|n| n != newer));
        }
        assert_eq!(newer_name("backbone.body.conv1.weight"), None);
        for (name, rows) in [
            ("prediction.4.weight", Some(0)),
            ("fc.bias", Some(0)),
            ("roi_heads.box_predictor.cls_score.bias", Some(1)),
            ("classifier.3.weight", Some(0)),
            ("backbone.0.1.fc1.0.weight", None),
            ("rpn.head.cls_logits.weight", None),
            ("rpn.head.bbox_pred.bias", None),
            ("head.classification_head.cls_logits.weight", Some(0)),
        ] {
            assert_eq!(rows_before_classes(name), rows, "{name}");
        }
    }

    #[test]
    fn files_that_cannot_serve_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let to = model(3, 0.0);
        assert!(error(load_into(&to, &path, &LoadOptions::default())).contains("no such file"));
        assert!(error(load_into(&to, folder.path(), &LoadOptions::default())).contains("folder"));
        let other = vec![("x".to_string(), Tensor::from_slice(&[1f32]))];
        write_tensors(&other, &path, &Metadata::new()).unwrap();
        assert!(error(load_into(&to, &path, &LoadOptions::default())).contains("none of its 1 tensors (x"));
        save(&to, &path, &Metadata::new()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 5, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(error(load_into(&to, &path, &LoadOptions::default())).contains("cut off"), "{length}");
        }
    }
}
