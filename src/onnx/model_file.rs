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

/// What ONNX Runtime gives for a graph of one input: these outputs.
#[cfg(all(test, feature = "onnx"))]
pub fn run_for_test(graph: GraphProto, input: (&str, &tch::Tensor), outputs: &[&str]) -> Vec<Vec<f32>> {
    let model = Model::new(graph, "", []);
    let library = std::env::var_os("ORT_DYLIB_PATH").unwrap();
    let _ = ort::init_from(Path::new(&library)).unwrap().commit();
    let bytes = model.message().encode_to_vec();
    let mut session = ort::session::Session::builder().unwrap().commit_from_memory(&bytes).unwrap();
    let values = Vec::<f32>::try_from(input.1.contiguous().view(-1)).unwrap();
    let value = ort::value::Tensor::from_array((input.1.size(), values)).unwrap();
    let found = session.run(vec![(input.0, value)]).unwrap();
    outputs.iter().map(|name| found[*name].try_extract_tensor::<f32>().unwrap().1.to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;
    use crate::onnx::{Dim, Graph, Kind, Options};

    #[test]
    fn constants_that_do_not_fit_go_to_a_second_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let model = || {
            let mut graph = Graph::new(Options::default());
            let x = graph.input("x", Kind::Float, &[Dim::Fixed(1)]);
            let sums: Vec<_> = [3, 700, 900]
                .into_iter()
                .map(|n| {
                    let values =
                        graph.constant(&(Tensor::arange(n, (tch::Kind::Float, tch::Device::Cpu)) + n), Kind::Float);
                    graph.add(&x, &values)
                })
                .collect();
            Model::new(graph.finish("sum", &[("y", &sums[0], vec![])]), "", [])
        };
        let read = |path: &Path| ModelProto::decode(&std::fs::read(path).unwrap()[..]).unwrap();
        assert_eq!(model().write(&path, &Outputs::default()).unwrap(), vec![path.clone()]);
        let whole = read(&path);
        let written = model().write_within(100, &path, &Outputs::default()).unwrap();
        assert_eq!(written, [path.clone(), folder.path().join("model.onnx.data")]);
        let data = std::fs::read(&written[1]).unwrap();
        let (whole, split) = (whole.graph.unwrap().initializer, read(&path).graph.unwrap().initializer);
        for (i, (whole, split)) in whole.iter().zip(&split).enumerate() {
            let Some(raw) = &split.raw_data else {
                let entry = |key: &str| {
                    let entry = split.external_data.iter().find(|entry| entry.key.as_deref() == Some(key)).unwrap();
                    entry.value.clone().unwrap()
                };
                assert_eq!((entry("location").as_str(), split.data_location), ("model.onnx.data", Some(1)));
                let [offset, length] = ["offset", "length"].map(|key| entry(key).parse::<usize>().unwrap());
                assert_eq!(offset % ALIGNMENT, 0);
                assert_eq!(&data[offset..offset + length], whole.raw_data.as_ref().unwrap());
                continue;
            };
            // What is small stays.
            assert_eq!((i, Some(raw)), (0, whole.raw_data.as_ref()));
        }
    }
}
