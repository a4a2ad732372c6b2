//! Backbones whose authors' names are vigdet's: PVT, PoolFormer, CycleMLP, GreedyViG and AdaptViG. Here: which of them
//! a file holds, as a classifier of ImageNet or inside of mmdetection's detectors.

use super::Recognised;
use crate::backbone;
use crate::weights::WeightFile;

/// The family of a file.
struct Project {
    /// How the names of its models begin.
    prefix: &'static str,
    /// The end of a tensor's name that files of all others lack.
    mark: &'static str,
    /// A tensor with as many rows as a stage, counted from 0, has channels.
    width: fn(usize) -> String,
    /// Start and end of the name that each of a stage's blocks has once.
    block: fn(usize) -> (String, &'static str),
}

const PROJECTS: [Project; 5] = [
    Project {
        prefix: "pvt_",
        mark: "pos_embed1",
        width: |s| format!("patch_embed{}.proj.weight", s + 1),
        block: |s| (format!("block{}.", s + 1), ".norm1.weight"),
    },
    Project {
        prefix: "cyclemlp_",
        mark: ".attn.sfc_h.weight",
        width: |s| format!("network.{}.0.norm1.weight", 2 * s),
        block: |s| (format!("network.{}.", 2 * s), ".norm1.weight"),
    },
    Project {
        prefix: "poolformer_",
        mark: "network.0.0.layer_scale_1",
        width: |s| format!("network.{}.0.norm1.weight", 2 * s),
        block: |s| (format!("network.{}.", 2 * s), ".norm1.weight"),
    },
    Project {
        prefix: "adaptvig_",
        mark: ".mixer.graph_conv.temperature",
        width: axial_width,
        block: |s| (format!("backbone.{s}."), ".mixer.fc1.0.weight"),
    },
    Project {
        prefix: "greedyvig_",
        mark: ".mixer.graph_conv.nn.0.weight",
        width: axial_width,
        block: |s| (format!("backbone.{s}."), ".mixer.fc1.0.weight"),
    },
];

fn axial_width(stage: usize) -> String {
    match stage {
        0 => "stem.stem.3.weight".into(),
        _ => format!("backbone.{stage}.0.conv.0.weight"),
    }
}

/// vigdet's name of the backbone that has these names; `shape` gives a tensor's. `None`: it is of none of these
/// families, or vigdet does not have it.
pub fn model_of(names: &[&str], shape: &dyn Fn(&str) -> Option<Vec<i64>>) -> Option<&'static str> {
    let project = PROJECTS.iter().find(|project| names.iter().any(|name| name.ends_with(project.mark)))?;
    let of_stage = |s: usize| {
        let (start, end) = (project.block)(s);
        let blocks = names.iter().filter(|name| name.starts_with(&start) && name.ends_with(end)).count() as i64;
        Some((*shape(&(project.width)(s))?.first()?, blocks))
    };
    let stages: Vec<(i64, i64)> = (0..4).map(of_stage).collect::<Option<_>>()?;
    let is_of = |(channels, blocks): ([i64; 4], [i64; 4])| channels.into_iter().zip(blocks).eq(stages.iter().copied());
    let fits = |name: &&str| name.starts_with(project.prefix) && backbone::stages(name).is_some_and(is_of);
    backbone::NAMES.into_iter().find(fits)
}

/// What is known of a file with these names, sorted.
pub fn recognise(file: &WeightFile, names: &[String]) -> Option<Recognised> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.binary_search(&"head.weight").ok()?;
    let model = model_of(&names, &|name| file.shape(name))?;
    // PVT's positions are those of patches of 4 pixels.
    let positions = file.shape("pos_embed1").and_then(|shape| shape.get(1).copied());
    let changes: Vec<String> =
        positions.iter().map(|count| format!("model.backbone.image_size={}", 4 * count.isqrt())).collect();
    Recognised::classifier("its authors'", model, &changes)
}

#[cfg(test)]
mod tests {
    use tch::{nn, Device, Kind, Tensor};

    use crate::backbone::Classifier;
    use crate::config::{BackboneConfig, Config};
    use crate::weights::{sorted_variables, write_tensors, Checkpoint, LoadOptions, Metadata};

    /// A file as small as it can be: names and shapes of a model.
    fn write(name: &str, image_size: i64, path: &std::path::Path) -> nn::VarStore {
        let store = nn::VarStore::new(Device::Cpu);
        let backbone = BackboneConfig { name: name.into(), image_size, ..Default::default() };
        let _model = Classifier::new(&store.root(), &backbone, 2).unwrap();
        let mut tensors = sorted_variables(&store);
        if name.starts_with("cyclemlp") {
            let offset = Tensor::zeros([1, 128, 1, 1], (Kind::Float, Device::Cpu));
            tensors.push(("network.0.0.attn.sfc_h.offset".into(), offset));
        }
        write_tensors(&tensors, path, &Metadata::new()).unwrap();
        store
    }

    #[test]
    fn files_of_each_family_say_by_their_names_and_shapes_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["pvt_tiny", "poolformer_s12", "cyclemlp_b1", "greedyvig_s", "adaptvig_s"] {
            let path = folder.path().join(format!("{name}.safetensors"));
            let _store = write(name, 224, &path);
            let config: Config = Checkpoint::open(&path).unwrap().detector_config(&[]).unwrap().unwrap();
            assert_eq!(config.model.backbone.name, name);
            assert_eq!((config.data.mean[0], config.model.backbone.image_size), (0.485, 224), "{name}");
        }
    }

    #[test]
    fn a_pvt_of_other_images_says_of_which_and_loads_into_one_of_224_with_resized_positions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.safetensors");
        let theirs = write("pvt_tiny", 256, &path).variables();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let config: Config = checkpoint.detector_config(&[]).unwrap().unwrap();
        assert_eq!(config.model.backbone.image_size, 256);
        let store = nn::VarStore::new(Device::Cpu);
        let backbone = BackboneConfig { name: "pvt_tiny".into(), ..Default::default() };
        let _model = Classifier::new(&store.root(), &backbone, 2).unwrap();
        let report = checkpoint.load_into(&store, &LoadOptions { complete: true, ..Default::default() }).unwrap();
        assert_eq!(report.reshaped, ["pos_embed1", "pos_embed2", "pos_embed3", "pos_embed4"]);
        let own = store.variables();
        assert_eq!(own["block1.0.attn.kv.weight"], theirs["block1.0.attn.kv.weight"]);
        // The class token's position stays; the first location's is bilinear: 3/7 of a step before its own centre's.
        let [from, to] = [&theirs, &own].map(|all| all["pos_embed4"].get(0));
        assert_eq!(from.get(0), to.get(0));
        let at = |row: i64, column: i64| from.get(1 + row * 8 + column);
        let step = 1.0 / 14.0;
        let top = at(0, 0) * (1.0 - step) + at(0, 1) * step;
        let below = at(1, 0) * (1.0 - step) + at(1, 1) * step;
        let expected = top * (1.0 - step) + below * step;
        assert!((to.get(1) - expected).abs().max().double_value(&[]) < 1e-6);
    }
}
