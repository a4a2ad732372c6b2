//! Reads what `torch.save` writes: a zip archive with a pickle that describes tensors and a file of numbers for each
//! storage; before version 1.6 pickles one after the other (magic number, version, system, the state dict, the
//! storages' keys), then each storage's length and numbers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use anyhow::{bail, ensure, Context, Result};
use tch::Tensor;
use zip::{CompressionMethod, ZipArchive};

use super::objects::{Object, Objects, Storage, TensorView, Value};
use super::pickle;

/// Where trainers put the state dict in a checkpoint, the first that is there counts: averaged weights before the last
/// ones, as timm does.
const KEYS: [&str; 4] = ["state_dict_ema", "model_ema", "state_dict", "model"];
/// Put before every name by PyTorch's data-parallel wrappers.
const WRAPPER: &str = "module.";

/// How files of before version 1.6 start: a whole pickle of one integer of ten bytes.
pub const OLD_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// A state dict in a file.
pub struct TorchFile {
    source: Source,
    tensors: Vec<(String, TensorView)>,
    /// The key of the checkpoint that the state dict was under; `None`: it is the whole file.
    pub key: Option<&'static str>,
    /// Storages read so far: several tensors may share one.
    storages: RefCell<HashMap<Rc<str>, Tensor>>,
    /// The whole checkpoint, and what it is made of.
    top: Value,
    objects: Objects,
}

/// Where the numbers are.
enum Source {
    Archive {
        archive: RefCell<ZipArchive<File>>,
        /// The folder in the archive that all is in, with its slash.
        folder: String,
        /// Length of the file in bytes.
        length: u64,
    },
    /// The file of before version 1.6, and each storage's length and bytes in it.
    Old { bytes: Vec<u8>, ranges: HashMap<Rc<str>, (usize, Range<usize>)> },
}

impl TorchFile {
    /// Reads the names and shapes in a file.
    ///
    /// # Errors
    /// If it is not a whole archive, or holds anything but plain data beside tensors (see [`pickle::read`]), or no
    /// state dict.
    pub fn open(path: &Path) -> Result<Self> {
        let mut start = Vec::new();
        File::open(path)?.take(OLD_MAGIC.len() as u64).read_to_end(&mut start)?;
        if start == OLD_MAGIC {
            return Self::open_old(std::fs::read(path)?);
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut archive =
            ZipArchive::new(file).context("it is not a whole PyTorch file: cut off, or of another format?")?;
        let names: Vec<String> = archive.file_names().map(String::from).collect();
        ensure!(
            !names.iter().any(|n| n.ends_with("constants.pkl")),
            "it is a TorchScript program; save the model's state_dict() instead"
        );
        let pickle = names.iter().find(|n| *n == "data.pkl" || n.ends_with("/data.pkl"));
        let pickle = pickle.context("it is a zip archive, but not one that torch.save wrote (no data.pkl)")?;
        let folder = pickle.trim_end_matches("data.pkl").to_string();
        let order = format!("{folder}byteorder");
        if names.contains(&order) {
            let order = read_entry(&mut archive, &order, length)?;
            ensure!(order == b"little", "its numbers are big-endian; save it again on another machine");
        }
        let (value, objects, _) = pickle::read(&read_entry(&mut archive, pickle, length)?)?;
        let source = Source::Archive { archive: RefCell::new(archive), folder, length };
        Self::new(source, value, objects)
    }

    /// A file of before version 1.6.
    fn open_old(bytes: Vec<u8>) -> Result<Self> {
        let mut at = OLD_MAGIC.len();
        let mut next = || -> Result<(Value, Objects)> {
            let (value, objects, length) = pickle::read(&bytes[at..])?;
            at += length;
            Ok((value, objects))
        };
        let (version, _) = next()?;
        ensure!(version == Value::Int(1001), "its format {version:?} is not that of PyTorch before 1.6");
        let (system, objects) = next()?;
        let little = |entry: &(Value, Value)| *entry == (Value::Text("little_endian".into()), Value::Bool(true));
        ensure!(
            matches!(objects.get(&system), Some(Object::Dict(entries)) if entries.iter().any(little)),
            "its numbers are big-endian; save it again on another machine"
        );
        let (value, objects) = next()?;
        let (keys, of_keys) = next()?;
        let Some(Object::Sequence(keys)) = of_keys.get(&keys) else { bail!("it does not list its storages") };
        let sizes: HashMap<Rc<str>, usize> =
            objects.storages().map(|s| (s.key.clone(), s.kind.elt_size_in_bytes())).collect();
        let mut ranges = HashMap::new();
        for key in keys {
            let Value::Text(key) = key else { bail!("a storage's key is not text") };
            let size = sizes.get(key).with_context(|| format!("storage {key} belongs to nothing"))?;
            let count = bytes.get(at..).and_then(<[u8]>::first_chunk).context("the file is cut off")?;
            let count = usize::try_from(u64::from_le_bytes(*count))?;
            let start = at + 8;
            let end = count.checked_mul(*size).and_then(|n| n.checked_add(start));
            at = end.filter(|end| *end <= bytes.len()).context("the file is cut off")?;
            ranges.insert(key.clone(), (count, start..at));
        }
        Self::new(Source::Old { bytes, ranges }, value, objects)
    }

    fn new(source: Source, top: Value, objects: Objects) -> Result<Self> {
        let (entries, key) = state_dict(&top, &objects)?;
        let tensor = |(name, value): &(Value, Value)| match (name, objects.get(value)) {
            (Value::Text(name), Some(Object::Tensor(view))) => {
                Some((name.strip_prefix(WRAPPER).unwrap_or(name).to_string(), view.clone()))
            }
            _ => None,
        };
        let tensors = entries.iter().filter_map(tensor).collect();
        Ok(Self { source, tensors, key, storages: RefCell::default(), top, objects })
    }

    /// What the checkpoint says beside its weights, see [`Objects::texts`].
    pub fn said(&self, path: &[&str]) -> Option<Vec<Rc<str>>> {
        self.objects.texts(&self.top, path)
    }

    /// Names of the tensors.
    pub fn names(&self) -> Vec<&str> {
        self.tensors.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.view(name).map(|view| &view.size[..])
    }

    fn view(&self, name: &str) -> Option<&TensorView> {
        self.tensors.iter().find(|(n, _)| n == name).map(|(_, view)| view)
    }

    /// A tensor's numbers.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let view = self.view(name).with_context(|| format!("there is no {name}"))?;
        let storage = self.storage(&view.storage).with_context(|| format!("the numbers of {name}"))?;
        check(view, storage.size()[0]).with_context(|| name.to_string())?;
        Ok(storage.f_as_strided(&view.size, &view.stride, view.offset)?)
    }

    fn storage(&self, storage: &Storage) -> Result<Tensor> {
        if let Some(tensor) = self.storages.borrow().get(&storage.key) {
            ensure!(tensor.kind() == storage.kind, "one storage has two kinds");
            return Ok(tensor.shallow_clone());
        }
        let size = storage.kind.elt_size_in_bytes();
        let from_entry;
        let (name, bytes) = match &self.source {
            Source::Archive { archive, folder, length } => {
                let name = format!("{folder}data/{}", storage.key);
                from_entry = read_entry(&mut archive.borrow_mut(), &name, *length)?;
                (name, &from_entry[..])
            }
            Source::Old { bytes, ranges } => {
                let name = format!("storage {}", storage.key);
                let (count, range) = ranges.get(&storage.key).with_context(|| format!("{name} is missing"))?;
                ensure!(*count == storage.count, "{name} has {count} numbers in place of {}", storage.count);
                (name, &bytes[range.clone()])
            }
        };
        ensure!(
            storage.count.checked_mul(size) == Some(bytes.len()),
            "{name} has {} bytes in place of {} numbers",
            bytes.len(),
            storage.count
        );
        let tensor = Tensor::f_from_data_size(bytes, &[storage.count as i64], storage.kind)?;
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
    let has_tensors =
        |entries: Entries| entries.iter().any(|(_, value)| matches!(objects.get(value), Some(Object::Tensor(_))));
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
