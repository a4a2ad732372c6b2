//! Reading weights into a model, by name.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use safetensors::{Dtype, SafeTensors};
use tch::{nn, Kind, Tensor};

use super::save::{sorted_variables, Metadata};

/// Where a backbone's variables live in a detector: a file of a backbone alone has its names without this.
const BACKBONE: &str = "backbone.body.";
/// Layers whose size is the number of classes.
const CLASSIFIERS: [&str; 4] = ["cls_logits", "cls_score", "bbox_pred", "mask_fcn_logits"];

/// What a file must and may hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Every variable of the model must be in the file: for inference and evaluation.
    pub complete: bool,
    /// Layers whose size is the number of classes may have another in the file: they then keep their start. For training on
    /// other classes than those the file knows.
    pub other_classes: bool,
}

/// What happened to each name. All lists are sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Variables of the model that took their value from the file.
    pub loaded: Vec<String>,
    /// Variables that the file does not have: they keep their value.
    pub missing: Vec<String>,
    /// Names in the file that the model does not have.
    pub unused: Vec<String>,
    /// Of the loaded: position embeddings that were resized to the model's grid.
    pub reshaped: Vec<String>,
    /// Of the missing: classifiers for another number of classes (see [`LoadOptions::other_classes`]).
    pub other_classes: Vec<String>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded.len())?;
        let mut list = |what: &str, names: &[String]| match names {
            [] => Ok(()),
            [all @ ..] if all.len() <= 4 => write!(f, ", {} {what} ({})", all.len(), all.join(", ")),
            [first, second, third, ..] => {
                write!(f, ", {} {what} ({first}, {second}, {third}, …)", names.len())
            }
            _ => Ok(()),
        };
        list("missing in the file", &self.missing)?;
        list("in the file unused", &self.unused)?;
        list("resized", &self.reshaped)?;
        list("kept at their start: other classes", &self.other_classes)
    }
}

/// Copies a safetensors file's tensors into the variables of a store that have the same name. The file may hold a whole
/// detector or a backbone alone, whose names lack `backbone.body.`. Constants of the published ViG code (`relative_pos`) and
/// the step counters of batch norms are passed over.
///
/// # Errors
/// If the file cannot be read or is cut off, if no name matches, if a shape differs (but see [`LoadOptions::other_classes`]), or if
/// `complete` is asked for and a variable is missing. Nothing is copied then.
pub fn load_into(store: &nn::VarStore, path: &Path, options: &LoadOptions) -> Result<LoadReport> {
    load(store, path, options).with_context(|| format!("cannot load weights from {}", path.display()))
}

fn load(store: &nn::VarStore, path: &Path, options: &LoadOptions) -> Result<LoadReport> {
    let bytes = read(path)?;
    let file = parse(&bytes)?;
    let variables = sorted_variables(store);
    let names: HashMap<&str, usize> =
        variables.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
    let find =
        |name: &str| names.get(name).or_else(|| names.get(format!("{BACKBONE}{name}").as_str())).copied();

    let mut report = LoadReport::default();
    let mut sources: Vec<Option<Tensor>> = variables.iter().map(|_| None).collect();
    let mut entries = file.names();
    entries.sort_unstable();
    for entry in entries {
        if is_constant(entry) {
            continue;
        }
        let Some(index) = find(entry) else {
            report.unused.push(entry.to_string());
            continue;
        };
        let (name, variable) = &variables[index];
        let mut source = tensor(&file, entry)?;
        if source.size() != variable.size() {
            if let Some(resized) = resize_position(name, &source, variable) {
                source = resized;
                report.reshaped.push(name.clone());
            } else if options.other_classes && is_classifier(name) {
                report.other_classes.push(name.clone());
                continue;
            } else {
                let hint = if is_classifier(name) { "; the file is for other classes" } else { "" };
                bail!(
                    "{name} has shape {:?} in the file and {:?} in the model{hint}",
                    source.size(),
                    variable.size()
                );
            }
        }
        ensure!(sources[index].is_none(), "two tensors of the file are for {name}");
        sources[index] = Some(source);
        report.loaded.push(name.clone());
    }
    report.missing = variables
        .iter()
        .zip(&sources)
        .filter(|(_, s)| s.is_none())
        .map(|((name, _), _)| name.clone())
        .collect();
    report.loaded.sort_unstable();
    report.reshaped.sort_unstable();
    report.other_classes.sort_unstable();
    ensure!(
        !report.loaded.is_empty(),
        "none of its {} tensors ({}, …) is one of this model's ({}, …)",
        file.len(),
        report.unused.first().map_or("none", String::as_str),
        variables.first().map_or("none", |v| v.0.as_str()),
    );
    if options.complete {
        if let Some(first) = report.missing.first() {
            bail!(
                "{} of the model's {} tensors are not in it ({first}{}): it is for another model",
                report.missing.len(),
                variables.len(),
                if report.missing.len() > 1 { ", …" } else { "" }
            );
        }
    }
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

/// What a safetensors file says about itself; empty if it says nothing.
pub fn read_metadata(path: &Path) -> Result<Metadata> {
    let read = || -> Result<Metadata> {
        let bytes = read(path)?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
        Ok(metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect())
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    ensure!(path.exists(), "there is no such file");
    ensure!(!path.is_dir(), "it is a folder; name the .safetensors file in it");
    Ok(std::fs::read(path)?)
}

fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>> {
    SafeTensors::deserialize(bytes).map_err(broken)
}

fn broken(error: safetensors::SafeTensorError) -> anyhow::Error {
    anyhow::anyhow!("it is not a whole safetensors file ({error}): cut off, or of another format?")
}

fn is_constant(name: &str) -> bool {
    name.ends_with("relative_pos") || name.ends_with("num_batches_tracked")
}

fn is_classifier(name: &str) -> bool {
    name.rsplit('.').nth(1).is_some_and(|layer| CLASSIFIERS.contains(&layer))
}

/// A learned position embedding `[1, C, h, w]` on the grid of `like`, bicubically, as the published code resizes it.
fn resize_position(name: &str, source: &Tensor, like: &Tensor) -> Option<Tensor> {
    let (from, to) = (source.size(), like.size());
    let fits = name.ends_with("pos_embed") && from.len() == 4 && to.len() == 4 && from[..2] == to[..2];
    fits.then(|| source.to_kind(Kind::Float).upsample_bicubic2d([to[2], to[3]], false, None, None))
}

fn tensor(file: &SafeTensors, name: &str) -> Result<Tensor> {
    let view = file.tensor(name).map_err(broken)?;
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        other => bail!("{name} holds {other:?} numbers, which vigdet does not read"),
    };
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
}

#[cfg(test)]
mod tests {
    use super::super::{save, write_tensors};
    use super::*;
    use tch::Device;

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
        assert_eq!(read_metadata(&path).unwrap(), metadata);
    }

    #[test]
    fn a_backbone_alone_loads_into_a_detector_and_its_constants_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.safetensors");
        let t = |shape: &[i64]| Tensor::ones(shape, (Kind::Double, Device::Cpu));
        let tensors = vec![
            ("stem.weight".to_string(), t(&[2, 3])),
            ("pos_embed".to_string(), t(&[1, 2, 8, 8])),
            ("relative_pos".to_string(), t(&[5])),
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
            load_into(&to, &path, &LoadOptions { other_classes: true, ..Default::default() }).unwrap();
        assert_eq!(report.other_classes, ["head.cls_logits.weight"]);
        assert_eq!(report.missing, ["head.cls_logits.weight"]);
        assert_eq!(value(&to, "backbone.body.stem.weight"), 2.0);
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
