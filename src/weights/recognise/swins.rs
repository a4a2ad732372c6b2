//! Swin Transformers, classifiers of ImageNet: Microsoft's files, whose names are vigdet's, and torchvision's.

use super::renaming::{rename, New};
use super::Recognised;
use crate::config::{ClassifyConfig, Experiment};
use crate::weights::WeightFile;

/// What is known of a file with these names, sorted.
pub fn recognise(file: &WeightFile, names: &[String]) -> Option<Recognised> {
    let has = |name: &str| names.binary_search_by(|own| own.as_str().cmp(name)).is_ok();
    let theirs = has("features.1.0.attn.relative_position_bias_table");
    if !has("head.weight") || !theirs && !has("layers.0.blocks.0.attn.relative_position_bias_table") {
        return None;
    }
    let renaming = rename(names, |name| microsofts(name).into_iter().collect(), |name| name.ends_with("_index"));
    let shape = |name: &str| renaming.shape(file, name);
    let blocks = renaming.count(|i| format!("layers.2.blocks.{i}.norm1.weight"));
    let window = shape("layers.0.blocks.0.attn.relative_position_bias_table")?;
    let size = match (shape("patch_embed.proj.weight")?.first()?, blocks, window.first()?) {
        (96, 6, 169) => "swin_t",
        (96, 18, 169) => "swin_s",
        (128, 18, 169) => "swin_b",
        _ => return None,
    };
    let config = ClassifyConfig::of_model(size, &[]).ok()?;
    let whose = if theirs { "torchvision" } else { "Microsoft" };
    Some(Recognised {
        family: format!("{whose}'s {size}, a classifier of ImageNet"),
        config: Some(config.to_value().ok()?),
        classes: None,
        tensors: Some(renaming.tensors),
        notes: Vec::new(),
    })
}

/// Microsoft's name of a tensor; torchvision counts stages and what lies between them in one row, and so the layers of
/// a feed-forward network.
fn microsofts(name: &str) -> Option<New> {
    let Some(place) = name.strip_prefix("features.") else { return New::name(name) };
    let (number, rest) = place.split_once('.')?;
    let number: usize = number.parse().ok()?;
    let rest = rest.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.");
    New::name(match (number, rest.split_once('.')?) {
        (0, ("0", kind)) => format!("patch_embed.proj.{kind}"),
        (0, ("2", kind)) => format!("patch_embed.norm.{kind}"),
        (0, _) => return None,
        _ if number.is_multiple_of(2) => format!("layers.{}.downsample.{rest}", number / 2 - 1),
        _ => format!("layers.{}.blocks.{rest}", number / 2),
    })
}

#[cfg(test)]
mod tests {
    use tch::{nn, Device, Kind, Tensor};

    use crate::backbone::Classifier;
    use crate::config::{BackboneConfig, Config};
    use crate::weights::{sorted_variables, write_tensors, Checkpoint, LoadOptions, Metadata};

    /// torchvision's name of a tensor of vigdet's.
    fn torchvisions(name: &str) -> String {
        let name = name.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.");
        let stage = |at: &str| at.parse::<usize>().unwrap();
        match name.split('.').collect::<Vec<_>>()[..] {
            ["patch_embed", "proj", kind] => format!("features.0.0.{kind}"),
            ["patch_embed", "norm", kind] => format!("features.0.2.{kind}"),
            ["layers", at, "blocks", ref rest @ ..] => format!("features.{}.{}", 2 * stage(at) + 1, rest.join(".")),
            ["layers", at, "downsample", ref rest @ ..] => {
                format!("features.{}.{}", 2 * stage(at) + 2, rest.join("."))
            }
            _ => name,
        }
    }

    #[test]
    fn both_projects_files_are_known_and_loaded_whole() {
        let folder = tempfile::tempdir().unwrap();
        let backbone = BackboneConfig { name: "swin_t".into(), ..Default::default() };
        let store = nn::VarStore::new(Device::Cpu);
        let _model = Classifier::new(&store.root(), &backbone, 2).unwrap();
        let own = sorted_variables(&store);
        let index = ("attn.relative_position_index", Tensor::zeros([49, 49], (Kind::Int64, Device::Cpu)));
        for (project, block) in [("microsoft", "layers.0.blocks.0."), ("torchvision", "features.1.0.")] {
            let name = |name: &str| if project == "microsoft" { name.to_string() } else { torchvisions(name) };
            let mut tensors: Vec<_> = own.iter().map(|(own, t)| (name(own), t.shallow_clone())).collect();
            tensors.push((format!("{block}{}", index.0), index.1.shallow_clone()));
            let path = folder.path().join(format!("{project}.safetensors"));
            write_tensors(&tensors, &path, &Metadata::new()).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let config: Config = checkpoint.detector_config(&[]).unwrap().unwrap();
            assert_eq!((config.model.backbone.name.as_str(), config.data.mean[0]), ("swin_t", 0.485));
            let other = nn::VarStore::new(Device::Cpu);
            let _model = Classifier::new(&other.root(), &backbone, 2).unwrap();
            let options = LoadOptions { complete: true, ..Default::default() };
            let report = checkpoint.load_into(&other, &options).unwrap();
            assert!(report.unused.is_empty(), "{project}: {report}");
            let loaded = other.variables();
            assert!(own.iter().all(|(name, t)| loaded[name] == *t), "{project}");
        }
    }
}
