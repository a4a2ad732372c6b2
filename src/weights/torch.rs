//! Reads what `torch.save` writes: a zip archive with a pickle that describes tensors and a file of numbers for each storage.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use anyhow::{bail, ensure, Context, Result};
use tch::Tensor;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, Object, Objects, Storage, TensorView, Value};

/// Where trainers put the state dict in a checkpoint, the first that is there counts: averaged weights before the last ones, as timm does.
const KEYS: [&str; 4] = ["state_dict_ema", "model_ema", "state_dict", "model"];
/// Put before every name by PyTorch's data-parallel wrappers.
const WRAPPER: &str = "module.";

/// A state dict in a file.
pub struct TorchFile {
    archive: RefCell<ZipArchive<File>>,
    /// The folder in the archive that all is in, with its slash.
    folder: String,
    /// Length of the file in bytes.
    length: u64,
    tensors: Vec<(String, TensorView)>,
    /// The key of the checkpoint that the state dict was under.
    key: Option<&'static str>,
    /// Storages read so far: several tensors may share one.
    storages: RefCell<HashMap<Rc<str>, Tensor>>,
}

impl TorchFile {
    /// Reads the names and shapes in a file.
    ///
    /// # Errors
    /// If it is not a whole archive, or holds anything but plain data beside tensors (see [`pickle::read`]), or no state dict.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut archive = ZipArchive::new(file)
            .context("it is not a whole PyTorch file: cut off, or of another format?")?;
        let names: Vec<String> = archive.file_names().map(String::from).collect();
        ensure!(
            !names.iter().any(|n| n.ends_with("constants.pkl")),
            "it is a TorchScript program; save the model's state_dict() instead"
        );
        let pickle = names.iter().find(|n| *n == "data.pkl" || n.ends_with("/data.pkl"));
        let pickle =
            pickle.context("it is a zip archive, but not one that torch.save wrote (no data.pkl)")?;
        let folder = pickle.trim_end_matches("data.pkl").to_string();
        let order = format!("{folder}byteorder");
        if names.contains(&order) {
            let order = read_entry(&mut archive, &order, length)?;
            ensure!(order == b"little", "its numbers are big-endian; save it again on another machine");
        }
        let (value, objects) = pickle::read(&read_entry(&mut archive, pickle, length)?)?;
        let (entries, key) = state_dict(&value, &objects)?;
        let tensors: Vec<(String, TensorView)> = entries
            .iter()
            .filter_map(|(name, value)| match (name, objects.get(value)) {
                (Value::Text(name), Some(Object::Tensor(view))) => Some((name, view)),
                _ => None,
            })
            .map(|(name, view)| (name.strip_prefix(WRAPPER).unwrap_or(name).to_string(), view.clone()))
            .collect();
        Ok(Self {
            archive: RefCell::new(archive),
            folder,
            length,
            tensors,
            key,
            storages: RefCell::default(),
        })
    }

    /// Names of the tensors.
    pub fn names(&self) -> Vec<&str> {
        self.tensors.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Where in the checkpoint the state dict was; `None`: it is the whole file.
    pub fn key(&self) -> Option<&'static str> {
        self.key
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.tensors.iter().find(|(n, _)| n == name).map(|(_, view)| &view.size[..])
    }

    /// A tensor's numbers.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let view = self.tensors.iter().find(|(n, _)| n == name).map(|(_, view)| view);
        let view = view.with_context(|| format!("there is no {name}"))?;
        let storage = self.storage(&view.storage).with_context(|| format!("the numbers of {name}"))?;
        check(view, storage.size()[0]).with_context(|| name.to_string())?;
        Ok(storage.f_as_strided(&view.size, &view.stride, view.offset)?)
    }

    fn storage(&self, storage: &Storage) -> Result<Tensor> {
        if let Some(tensor) = self.storages.borrow().get(&storage.key) {
            ensure!(tensor.kind() == storage.kind, "one storage has two kinds");
            return Ok(tensor.shallow_clone());
        }
        let name = format!("{}data/{}", self.folder, storage.key);
        let bytes = read_entry(&mut self.archive.borrow_mut(), &name, self.length)?;
        let size = storage.kind.elt_size_in_bytes();
        ensure!(
            storage.count.checked_mul(size) == Some(bytes.len()),
            "{name} has {} bytes in place of {} numbers",
            bytes.len(),
            storage.count
        );
        let tensor = Tensor::f_from_data_size(&bytes, &[storage.count as i64], storage.kind)?;
        self.storages.borrow_mut().insert(storage.key.clone(), tensor.shallow_clone());
        Ok(tensor)
    }
}

/// Refuses a view that looks beyond its storage of `count` numbers.
fn check(view: &TensorView, count: i64) -> Result<()> {
    let shape_fits = view.size.len() == view.stride.len()
        && view.offset >= 0
        && view.size.iter().chain(&view.stride).all(|&n| n >= 0);
    let last = view.size.iter().zip(&view.stride).try_fold(view.offset, |last, (&size, &stride)| {
        (size - 1).max(0).checked_mul(stride).and_then(|step| last.checked_add(step))
    });
    let empty = view.size.contains(&0);
    ensure!(
        shape_fits && (empty || last.is_some_and(|last| last < count)),
        "a tensor of shape {:?} reaches beyond its {count} numbers",
        view.size
    );
    Ok(())
}

fn read_entry(archive: &mut ZipArchive<File>, name: &str, limit: u64) -> Result<Vec<u8>> {
    let entry = archive.by_name(name).with_context(|| format!("its part {name} is missing or broken"))?;
    ensure!(
        entry.compression() == CompressionMethod::Stored && entry.size() <= limit,
        "its part {name} is packed in a way that torch.save does not use"
    );
    let mut bytes = Vec::with_capacity(entry.size() as usize);
    entry.take(limit).read_to_end(&mut bytes).with_context(|| format!("its part {name} is broken"))?;
    Ok(bytes)
}

type Entries<'a> = &'a [(Value, Value)];

/// The dictionary of tensors in a checkpoint, and the key it is under.
fn state_dict<'a>(value: &Value, objects: &'a Objects) -> Result<(Entries<'a>, Option<&'static str>)> {
    let entries = |value: &Value| match objects.get(value) {
        Some(Object::Dict(entries)) => Some(&entries[..]),
        _ => None,
    };
    let has_tensors = |entries: Entries| {
        entries.iter().any(|(_, value)| matches!(objects.get(value), Some(Object::Tensor(_))))
    };
    let Some(top) = entries(value) else { bail!("it is no dictionary: save `model.state_dict()`") };
    for key in KEYS {
        let inner = top.iter().find(|(name, _)| matches!(name, Value::Text(name) if &**name == key));
        if let Some(inner) = inner.and_then(|(_, value)| entries(value)).filter(|e| has_tensors(e)) {
            return Ok((inner, Some(key)));
        }
    }
    ensure!(has_tensors(top), "there are no tensors in it, neither bare nor under {}", KEYS.join(", "));
    Ok((top, None))
}
