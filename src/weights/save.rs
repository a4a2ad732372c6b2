//! Writing safetensors files: deterministic to the byte, and never half a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{bail, Context, Result};
use crc32c::Crc32cWriter;
use safetensors::Dtype;
use serde_json::{json, Map, Value};
use tch::{nn, Kind, Tensor};
use vigdet_coco::output::{write_atomically, Outputs};

use super::file::header_checksum;
use crate::classes::Classes;
use crate::config::Experiment;
use crate::nn::memory::write_bytes;

/// The entry of a file's metadata that holds the config.
pub(super) const CONFIG: &str = "config";
/// The entry of a file's metadata that holds the classes.
pub(super) const CLASSES: &str = "classes";

/// What a safetensors file says about itself: free text under names. vigdet's weights hold `config` (JSON) and
/// `classes` (JSON `[[id, name], …]` in the order of the detector's labels).
pub type Metadata = BTreeMap<String, String>;

/// The entry of a file's metadata that holds its checksum.
pub(super) const CHECKSUM: &str = "crc32c";
/// The entry that says who wrote the file: whoever is vigdet has written a checksum too.
pub(super) const WRITER: (&str, &str) = ("writer", "vigdet");

/// The kinds of numbers that are written and read.
pub(super) const KINDS: [(Dtype, Kind); 8] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F64, Kind::Double),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

/// Metadata of a model's weights: its config, and the classes in the order of its outputs.
///
/// # Errors
/// None that is known.
pub fn metadata_of(config: &impl Experiment, classes: &Classes) -> Result<Metadata> {
    Ok(Metadata::from([
        (CONFIG.to_string(), config.to_value()?.to_string()),
        (CLASSES.to_string(), serde_json::to_string(classes)?),
        // PyTorch's readers look for this.
        ("format".to_string(), "pt".to_string()),
    ]))
}

/// All variables of a store, buffers of batch norms included, in the order of their names. The tensors share the
/// store's memory.
pub fn sorted_variables(store: &nn::VarStore) -> Vec<(String, Tensor)> {
    let mut variables: Vec<(String, Tensor)> = store.variables().into_iter().collect();
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    variables
}

/// Writes a store's variables as a safetensors file (see [`write_tensors`]).
pub fn save(store: &nn::VarStore, path: &Path, metadata: &Metadata) -> Result<()> {
    write_tensors(&sorted_variables(store), path, metadata)
}

/// Writes named tensors as a safetensors file: the same bytes for the same content, and either the whole file or the
/// one that was there before (see [`write_atomically`]).
///
/// # Errors
/// Tensors of one name, or of a kind that the format has not; a file that cannot be written.
pub fn write_tensors(tensors: &[(String, Tensor)], path: &Path, metadata: &Metadata) -> Result<()> {
    let header = header(tensors, metadata)?;
    Ok(write_atomically(path, |out| write(&header, tensors, out))?)
}

/// [`write_tensors`] for a user's own folder: only where `outputs` allows it.
///
/// # Errors
/// As [`write_tensors`]; a file that may not be replaced.
pub fn export_tensors(tensors: &[(String, Tensor)], path: &Path, metadata: &Metadata, outputs: &Outputs) -> Result<()> {
    let header = header(tensors, metadata)?;
    Ok(outputs.write(path, |out| write(&header, tensors, out))?)
}

fn write(header: &[u8], tensors: &[(String, Tensor)], out: &mut BufWriter<&File>) -> std::io::Result<()> {
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header)?;
    tensors.iter().try_for_each(|(_, tensor)| write_bytes(tensor, out))
}

/// The file's header: its metadata with the checksum, and kinds, shapes and locations of the tensors.
fn header(tensors: &[(String, Tensor)], metadata: &Metadata) -> Result<Vec<u8>> {
    // The crate's own serializer takes the metadata as a hash map, whose order changes from run to run.
    let mut header = Map::new();
    let mut metadata = metadata.clone();
    metadata.insert(CHECKSUM.into(), "00000000".into());
    metadata.insert(WRITER.0.into(), WRITER.1.into());
    header.insert("__metadata__".into(), json!(metadata));
    let mut end = 0;
    for (name, tensor) in tensors {
        let begin = end;
        end += tensor.numel() * tensor.kind().elt_size_in_bytes();
        let dtype = KINDS.iter().find(|(_, kind)| *kind == tensor.kind());
        let (dtype, _) = dtype.with_context(|| format!("safetensors files hold no {:?} tensors", tensor.kind()))?;
        let entry = json!({ "dtype": dtype, "shape": tensor.size(), "data_offsets": [begin, end] });
        if header.insert(name.clone(), entry).is_some() {
            bail!("two tensors are called {name}");
        }
    }
    let text = |header: &Map<String, Value>| {
        let mut text = Value::Object(header.clone()).to_string().into_bytes();
        // The data starts at a multiple of 8, as the format asks.
        text.resize(text.len().next_multiple_of(8), b' ');
        text
    };
    let mut sum = Crc32cWriter::new_with_seed(std::io::sink(), header_checksum(&text(&header), "00000000"));
    tensors.iter().try_for_each(|(_, tensor)| write_bytes(tensor, &mut sum))?;
    header["__metadata__"][CHECKSUM] = format!("{:08x}", sum.crc32c()).into();
    Ok(text(&header))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::WeightFile;
    use super::*;

    #[test]
    fn a_damaged_file_is_recognised_wherever_the_damage_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = vec![("a".to_string(), Tensor::arange(6, (Kind::Float, Device::Cpu)))];
        let metadata = Metadata::from([("config".to_string(), "{\"lr\":1}".to_string())]);
        write_tensors(&tensors, &path, &metadata).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert!(WeightFile::open(&path).is_ok());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, damaged).unwrap();
            assert!(WeightFile::open(&path).is_err(), "byte {at} of {}", whole.len());
        }
    }

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
