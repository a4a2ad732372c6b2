//! Pickles of NumPy arrays: files of detectron2's model zoo, and of Caffe2's.

use std::rc::Rc;

use anyhow::{ensure, Context, Result};
use tch::Tensor;

use super::numpy::Array;
use super::objects::{Object, Objects, Value};
use super::pickle;

/// Where the arrays are in a file, if not bare: detectron2's and Detectron's detectors.
const KEYS: [&str; 2] = ["model", "blobs"];
/// The optimizer's part of Detectron's files.
const MOMENTUM: &str = "_momentum";

/// A dictionary of arrays in a file.
pub struct ArrayFile {
    arrays: Vec<(String, Array)>,
    objects: Objects,
    top: Value,
    /// The key that the arrays were under; `None`: they are the whole file.
    pub key: Option<&'static str>,
}

impl ArrayFile {
    /// Whether a file starts as pickles of protocol 2 to 5 do.
    pub fn starts(bytes: &[u8]) -> bool {
        matches!(bytes, [0x80, 2..=5, ..])
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it is no whole pickle, holds anything but plain data (see [`pickle::read`]), or no dictionary of arrays whose
    /// numbers vigdet reads.
    pub fn open(bytes: &[u8]) -> Result<Self> {
        let (top, objects, _) = pickle::read(bytes)?;
        let entries = |value: &Value| match objects.get(value) {
            Some(Object::Dict(entries)) => Some(&entries[..]),
            _ => None,
        };
        let own = entries(&top).context("it is no dictionary of arrays")?;
        let under = |key: &str| own.iter().find(|(name, _)| objects.text(name).as_deref() == Some(key));
        let inner = KEYS.iter().find_map(|key| Some((*key, entries(&under(key)?.1)?)));
        let (key, found) = inner.map_or((None, own), |(key, found)| (Some(key), found));
        let mut arrays = Vec::new();
        for (name, value) in found {
            let (Some(name), Some(Object::Array(array))) = (objects.text(name), objects.get(value)) else { continue };
            if name.ends_with(MOMENTUM) {
                continue;
            }
            let array = array.clone().with_context(|| format!("{name} is an array without numbers"))?;
            array.check().with_context(|| name.to_string())?;
            arrays.push((name.to_string(), array));
        }
        ensure!(!arrays.is_empty(), "there are no NumPy arrays in it, neither bare nor under {}", KEYS.join(", "));
        Ok(Self { arrays, objects, top, key })
    }

    /// Names of the arrays.
    pub fn names(&self) -> Vec<&str> {
        self.arrays.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The shape of an array, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.array(name).map(|array| &array.size[..])
    }

    /// An array's numbers.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.array(name).with_context(|| format!("there is no {name}"))?.tensor().with_context(|| name.to_string())
    }

    /// What the file says beside its arrays, see [`Objects::texts`].
    pub fn said(&self, path: &[&str]) -> Option<Vec<Rc<str>>> {
        self.objects.texts(&self.top, path)
    }

    fn array(&self, name: &str) -> Option<&Array> {
        self.arrays.iter().find(|(own, _)| own == name).map(|(_, array)| array)
    }
}
