//! A backbone on its own: images of any size in, one map per stage out.
//!
//!     cargo run --example backbone_maps

use tch::{nn, Device, Kind, Tensor};
use vigdet::backbone::{self, Pass};
use vigdet::config::BackboneConfig;

fn main() -> anyhow::Result<()> {
    let config = BackboneConfig { name: "pvig_ti".into(), ..BackboneConfig::default() };
    let mut store = nn::VarStore::new(Device::Cpu);
    let backbone = backbone::build(&store.root(), &config)?;
    store.freeze();
    for (height, width) in [(64, 64), (224, 224), (200, 320)] {
        let images = Tensor::randn([1, 3, height, width], (Kind::Float, Device::Cpu));
        println!("an image of {height}×{width} pixels:");
        for (map, stride) in backbone.forward(&images, &mut Pass::inference())?.iter().zip(backbone.strides()) {
            println!("  stride {stride:2}: {:?}", map.size());
        }
    }
    Ok(())
}
