//! A file of named tensors, of any format that is read: safetensors, PyTorch's, or a pickle of NumPy arrays.
//!
//! What vigdet writes has a checksum in its metadata, over the header and all numbers.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use anyhow::{bail, ensure, Context, Result};
use safetensors::tensor::Metadata as Header;
use safetensors::SafeTensors;
use tch::Tensor;

use super::array_file::ArrayFile;
use super::recognise::Renamed;
use super::save::{Metadata, CHECKSUM, KINDS, WRITER};
use super::torch::{TorchFile, OLD_MAGIC};

/// How a zip archive starts.
const ZIP: &[u8] = b"PK\x03\x04";

/// A file of named tensors.
pub enum WeightFile {
    /// safetensors: the whole file in memory.
    Safetensors {
        /// The file's bytes.
        bytes: Vec<u8>,
        /// Names, shapes and locations, checked against the bytes.
        header: Header,
        /// Where the tensors begin.
        start: usize,
    },
    /// PyTorch's.
    Torch(Box<TorchFile>),
    /// A pickle of NumPy arrays.
    Arrays(Box<ArrayFile>),
    /// A file of any of them, whose tensors have other names here.
    Renamed {
        /// The file.
        file: Box<WeightFile>,
        /// Those of its tensors that are used.
        tensors: Vec<Renamed>,
    },
}

impl WeightFile {
    /// Opens a file of any format, by its content.
    ///
    /// # Errors
    /// If there is none, if it is cut off, damaged, or of another format.
    pub fn open(path: &Path) -> Result<Self> {
        ensure!(path.exists(), "there is no such file");
        ensure!(!path.is_dir(), "it is a folder; name the file of weights in it");
        let mut start = Vec::new();
        File::open(path)?.take(4).read_to_end(&mut start)?;
        if start == ZIP || OLD_MAGIC.starts_with(&start) && start.len() == 4 {
            return Ok(Self::Torch(Box::new(TorchFile::open(path)?)));
        }
        let bytes = std::fs::read(path)?;
        let (length, header) = match SafeTensors::read_metadata(&bytes) {
            Ok(read) => read,
            Err(_) if ArrayFile::starts(&bytes) => return Ok(Self::Arrays(Box::new(ArrayFile::open(&bytes)?))),
            Err(error) => bail!(
                "it is neither a PyTorch file nor a whole safetensors file ({error}): cut off, or of another format?"
            ),
        };
        // Before the header are the 8 bytes of its length.
        let start = length + 8;
        let said = |key: &str| header.metadata().as_ref().and_then(|metadata| metadata.get(key));
        if let Some(written) = said(CHECKSUM) {
            let sum = header_checksum(&bytes[8..start], written);
            let found = format!("{:08x}", crc32c::crc32c_append(sum, &bytes[start..]));
            ensure!(
                found == *written,
                "it is damaged: its checksum is {found}, but {written} was written (whoever edits such a file drops \
                 `crc32c` and `writer` from its metadata)"
            );
        } else {
            ensure!(said(WRITER.0).is_none_or(|by| by != WRITER.1), "it is damaged: its checksum is gone");
        }
        Ok(Self::Safetensors { bytes, header, start })
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Self::Safetensors { header, .. } => header.tensors().into_keys().collect(),
            Self::Torch(file) => file.names().into_iter().map(String::from).collect(),
            Self::Arrays(file) => file.names().into_iter().map(String::from).collect(),
            Self::Renamed { tensors, .. } => tensors.iter().map(|tensor| tensor.name.clone()).collect(),
        };
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("two of its tensors are called {}", twice[0]);
        }
        Ok(names)
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        match self {
            Self::Safetensors { header, .. } => {
                header.info(name).map(|info| info.shape.iter().map(|&n| n as i64).collect())
            }
            Self::Torch(file) => file.shape(name).map(<[i64]>::to_vec),
            Self::Arrays(file) => file.shape(name).map(<[i64]>::to_vec),
            Self::Renamed { file, tensors } => {
                let tensor = tensors.iter().find(|tensor| tensor.name == name)?;
                match tensor.change {
                    None => file.shape(&tensor.from),
                    Some(_) => Some(self.tensor(name).ok()?.size()),
                }
            }
        }
    }

    /// A tensor's numbers, on the CPU, in the kind that the file has.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        match self {
            Self::Safetensors { bytes, header, start } => {
                let info = header.info(name).with_context(|| format!("there is no {name}"))?;
                let kind = KINDS.iter().find(|(dtype, _)| *dtype == info.dtype).map(|(_, kind)| *kind);
                let kind =
                    kind.with_context(|| format!("{name} holds {:?} numbers, which vigdet does not read", info.dtype))?;
                let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
                let (from, to) = info.data_offsets;
                let data = bytes.get(start + from..start + to).context("the file is cut off")?;
                Ok(Tensor::f_from_data_size(data, &shape, kind)?)
            }
            Self::Torch(file) => file.tensor(name),
            Self::Arrays(file) => file.tensor(name),
            Self::Renamed { file, tensors } => {
                let found = tensors.iter().find(|tensor| tensor.name == name);
                let Renamed { from, change, .. } = found.with_context(|| format!("there is no {name}"))?;
                let tensor = file.tensor(from)?;
                Ok(change.as_ref().map_or_else(|| tensor.shallow_clone(), |change| change(&tensor)))
            }
        }
    }

    /// What the file says about itself, beside its checksum; empty if it says nothing.
    pub fn metadata(&self) -> Metadata {
        match self {
            Self::Safetensors { header, .. } => {
                let said = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
                said.filter(|(key, _)| key != CHECKSUM && key != WRITER.0).collect()
            }
            Self::Torch(_) | Self::Arrays(_) => Metadata::new(),
            Self::Renamed { file, .. } => file.metadata(),
        }
    }

    /// What a trainer's checkpoint or a pickle says beside its weights, in dictionaries under these keys, from the
    /// outermost on: one text, or a list of them. `None`: nothing.
    pub fn said(&self, path: &[&str]) -> Option<Vec<Rc<str>>> {
        match self {
            Self::Safetensors { .. } => None,
            Self::Torch(file) => file.said(path),
            Self::Arrays(file) => file.said(path),
            Self::Renamed { file, .. } => file.said(path),
        }
    }

    /// Where in a trainer's checkpoint the weights were, if not bare.
    pub fn key(&self) -> Option<&'static str> {
        match self {
            Self::Safetensors { .. } => None,
            Self::Torch(file) => file.key,
            Self::Arrays(file) => file.key,
            Self::Renamed { file, .. } => file.key(),
        }
    }
}

/// CRC-32C of a file's header in which the checksum itself, `written`, counts as zeros. The sum goes on with the
/// file's numbers.
pub(super) fn header_checksum(header: &[u8], written: &str) -> u32 {
    let entry = |digits: &str| format!("\"{CHECKSUM}\":\"{digits}\"");
    let (written, zeros) = (entry(written), entry("00000000"));
    match header.windows(written.len()).position(|window| window == written.as_bytes()) {
        Some(at) => {
            let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..at]), zeros.as_bytes());
            crc32c::crc32c_append(sum, &header[at + written.len()..])
        }
        None => crc32c::crc32c(header),
    }
}
