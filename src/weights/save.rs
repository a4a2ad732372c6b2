//! Writing safetensors files: deterministic to the byte, and never half a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{bail, Result};
use serde_json::{json, Map, Value};
use tch::{nn, Kind, Tensor};

use crate::config::{ClassifyConfig, Config};
use crate::nn::memory::write_bytes;

/// What a safetensors file says about itself: free text under names. vigdet's weights hold `config` (JSON) and `classes` (JSON
/// `[[id, name], …]` in the order of the detector's labels).
pub type Metadata = BTreeMap<String, String>;

/// Metadata of a detector's weights: its config, and (category id, name) of each label.
pub fn metadata_of(config: &Config, classes: &[(i64, String)]) -> Result<Metadata> {
    Ok(Metadata::from([
        ("config".to_string(), serde_json::to_string(&config.to_value()?)?),
        ("classes".to_string(), serde_json::to_string(classes)?),
        // PyTorch's readers look for this.
        ("format".to_string(), "pt".to_string()),
    ]))
}

/// Metadata of a classifier's weights: its config, and (number, name) of each class, in the order of its outputs.
pub fn metadata_of_classifier(config: &ClassifyConfig, classes: &[String]) -> Result<Metadata> {
    let classes: Vec<(usize, &String)> = classes.iter().enumerate().collect();
    Ok(Metadata::from([
        ("config".to_string(), serde_json::to_string(config)?),
        ("classes".to_string(), serde_json::to_string(&classes)?),
        ("format".to_string(), "pt".to_string()),
    ]))
}

/// All variables of a store, buffers of batch norms included, in the order of their names. The tensors share the store's memory.
pub fn sorted_variables(store: &nn::VarStore) -> Vec<(String, Tensor)> {
    let mut variables: Vec<(String, Tensor)> = store.variables().into_iter().collect();
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    variables
}

/// Writes a store's variables as a safetensors file (see [`write_tensors`]).
pub fn save(store: &nn::VarStore, path: &Path, metadata: &Metadata) -> Result<()> {
    write_tensors(&sorted_variables(store), path, metadata)
}

/// Writes named tensors as a safetensors file: the same bytes for the same content, and either the whole file or the one
/// that was there before (see [`write_atomically`]).
pub fn write_tensors(tensors: &[(String, Tensor)], path: &Path, metadata: &Metadata) -> Result<()> {
    // The crate's own serializer takes the metadata as a hash map, whose order changes from run to run.
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut end = 0;
    for (name, tensor) in tensors {
        let start = end;
        end += tensor.numel() * tensor.kind().elt_size_in_bytes();
        let entry = json!({ "dtype": dtype(tensor.kind())?, "shape": tensor.size(), "data_offsets": [start, end] });
        if header.insert(name.clone(), entry).is_some() {
            bail!("two tensors are called {name}");
        }
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The data starts at a multiple of 8, as the format asks.
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in tensors {
            write_bytes(tensor, out)?;
        }
        Ok(())
    })
}

/// [`vigdet_coco::output::write_atomically`]: the old file or the whole new one.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> std::io::Result<()>) -> Result<()> {
    Ok(vigdet_coco::output::write_atomically(path, fill)?)
}

fn dtype(kind: Kind) -> Result<&'static str> {
    Ok(match kind {
        Kind::Float => "F32",
        Kind::Double => "F64",
        Kind::Half => "F16",
        Kind::BFloat16 => "BF16",
        Kind::Int64 => "I64",
        Kind::Int => "I32",
        Kind::Uint8 => "U8",
        Kind::Bool => "BOOL",
        other => bail!("safetensors files hold no {other:?} tensors"),
    })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_written_file_reads_back_and_is_the_same_bytes_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = vec![
            ("a".to_string(), Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]).tr()),
            ("b".to_string(), Tensor::from_slice(&[7i64])),
            ("c".to_string(), Tensor::zeros([0, 2], (Kind::Float, Device::Cpu))),
        ];
        let metadata: Metadata = (0..8).map(|i| (format!("key{i}"), format!("\"{i}\""))).collect();
        write_tensors(&tensors, &path, &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let a = file.tensor("a").unwrap();
        assert_eq!(a.shape(), [3, 2]);
        let numbers: Vec<f32> = a.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(numbers, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(file.tensor("b").unwrap().data(), 7i64.to_le_bytes());
        let (_, read) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(read.metadata().as_ref().unwrap()["key3"], "\"3\"");
        write_tensors(&tensors, &path, &metadata).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}
