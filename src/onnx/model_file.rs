//! A finished graph as a file.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use prost::Message;
use vigdet_coco::output::Outputs;

use super::messages::tensor_proto::DataLocation;
use super::messages::{GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto};

/// The version of the operators.
const OPSET: i64 = 18;
/// The version of the format that came with them.
const IR: i64 = 8;
/// Bytes of constants that one file can hold: messages end at 2 GiB, and some are for the rest.
const LARGEST: usize = (2 << 30) - (64 << 20);
/// Constants below this stay in the file.
const SMALL: usize = 1024;
/// Where constants begin in a file of their own, so that they can be mapped into memory.
const ALIGNMENT: usize = 4096;

/// A graph with what it says of itself.
#[derive(Debug)]
pub struct Model {
    message: ModelProto,
}

impl Model {
    /// A model with these entries in its metadata.
    pub fn new(graph: GraphProto, doc: &str, metadata: impl IntoIterator<Item = (String, String)>) -> Self {
        let entry = |(key, value)| StringStringEntryProto { key: Some(key), value: Some(value) };
        let message = ModelProto {
            ir_version: Some(IR),
            producer_name: Some(env!("CARGO_PKG_NAME").into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            doc_string: Some(doc.into()),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(OPSET) }],
            metadata_props: metadata.into_iter().map(entry).collect(),
        };
        Self { message }
    }

    /// The message.
    pub fn message(&self) -> &ModelProto {
        &self.message
    }

    /// The file beside `path` that holds constants which do not fit into it.
    pub fn data_path(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_os_string();
        name.push(".data");
        name.into()
    }

    /// Writes it. Where its constants are more than a file can hold, they go to [`Model::data_path`]. Gives the paths
    /// that were written.
    ///
    /// # Errors
    /// If a file cannot be written, or is there already and not vigdet's.
    pub fn write(self, path: &Path, outputs: &Outputs) -> Result<Vec<PathBuf>> {
        self.write_within(LARGEST, path, outputs)
    }

    fn write_within(mut self, largest: usize, path: &Path, outputs: &Outputs) -> Result<Vec<PathBuf>> {
        let constants = self.message.graph.iter_mut().flat_map(|graph| &mut graph.initializer);
        let constants: Vec<&mut TensorProto> = constants.collect();
        let bytes: usize = constants.iter().filter_map(|tensor| tensor.raw_data.as_ref()).map(Vec::len).sum();
        let mut written = vec![path.to_path_buf()];
        if bytes > largest {
            let data = Self::data_path(path);
            let name = data.file_name().and_then(|name| name.to_str());
            let name = name.with_context(|| format!("the path {} is not UTF-8", data.display()))?;
            let moved = move_out(constants, name);
            outputs.write(&data, |out| {
                let mut at = 0;
                for (start, bytes) in &moved {
                    out.write_all(&vec![0; start - at])?;
                    out.write_all(bytes)?;
                    at = start + bytes.len();
                }
                Ok(())
            })?;
            written.push(data);
        }
        let length = self.message.encoded_len();
        ensure!(length < 2 << 30, "{} would be larger than a file of ONNX can be: {length} bytes", path.display());
        let bytes = self.message.encode_to_vec();
        outputs.write(path, |out| out.write_all(&bytes))?;
        Ok(written)
    }
}

/// Takes the large constants out, and says in them where they are in the file `name`: where each begins, and its bytes.
fn move_out(constants: Vec<&mut TensorProto>, name: &str) -> Vec<(usize, Vec<u8>)> {
    let (mut moved, mut end) = (Vec::new(), 0usize);
    for tensor in constants {
        let Some(bytes) = tensor.raw_data.take_if(|bytes| bytes.len() >= SMALL) else { continue };
        let start = end.next_multiple_of(ALIGNMENT);
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
        tensor.external_data = vec![
            entry("location", name.into()),
            entry("offset", start.to_string()),
            entry("length", bytes.len().to_string()),
        ];
        tensor.data_location = Some(DataLocation::External as i32);
        end = start + bytes.len();
        moved.push((start, bytes));
    }
    moved
}
