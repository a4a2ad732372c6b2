//! The weights that a network starts from, if no file has others.

use anyhow::Result;
use tch::{nn, Device};

/// A network and its variables on a device, with random weights. They are drawn on the CPU: libtorch's generators of
/// other devices draw other numbers, and a seed shall mean the same everywhere.
///
/// # Errors
/// Those of `build`.
pub fn initial<M>(seed: u64, device: Device, build: impl Fn(&nn::Path) -> Result<M>) -> Result<(nn::VarStore, M)> {
    tch::manual_seed(seed as i64);
    let store = nn::VarStore::new(Device::Cpu);
    let model = build(&store.root())?;
    match device {
        Device::Cpu => Ok((store, model)),
        _ => copied(&store, device, build),
    }
}

/// The same network with the same variables on a device. It is built there: a layer may hold constants beside its
/// variables.
fn copied<M>(from: &nn::VarStore, device: Device, build: impl Fn(&nn::Path) -> Result<M>) -> Result<(nn::VarStore, M)> {
    let mut store = nn::VarStore::new(device);
    let model = build(&store.root())?;
    store.copy(from)?;
    Ok((store, model))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{self, Backbone};
    use crate::config::BackboneConfig;
    use crate::weights::sorted_variables;

    fn build(path: &nn::Path) -> Result<Box<dyn Backbone>> {
        let (name, channels, blocks) = ("pvig_ti".into(), Some(vec![8, 8, 16, 16]), Some(vec![1; 4]));
        backbone::build(path, &BackboneConfig { name, channels, blocks, ..BackboneConfig::default() })
    }

    /// Tests beside this one draw from the same generator, so that weights of one seed may differ here.
    #[test]
    fn a_copy_has_the_weights_of_its_original() {
        let (store, _) = initial(7, Device::Cpu, build).unwrap();
        // Building anew draws other numbers, which must not stay.
        let copy = copied(&store, Device::Cpu, build).unwrap().0;
        assert_eq!(sorted_variables(&store), sorted_variables(&copy));
    }
}
