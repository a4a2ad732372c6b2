//! What a pickle is made of, as plain values.

use std::rc::Rc;

use anyhow::{bail, Result};
use tch::Kind;

use super::numpy::{Array, DType};

/// A value, or where it is among the [`Objects`].
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` and `False`.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text.
    Text(Rc<str>),
    /// An entry of [`Objects`].
    Object(usize),
}

/// What has parts, or a meaning of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A tuple or a list.
    Sequence(Vec<Value>),
    /// A dictionary, in order.
    Dict(Vec<(Value, Value)>),
    /// A name that may be called or built.
    Global(Global),
    /// Numbers in another file of the archive.
    Storage(Storage),
    /// A view of a storage.
    Tensor(TensorView),
    /// Bytes. Text, too, if Python 2 wrote it: see [`Objects::text`].
    Bytes(Rc<[u8]>),
    /// What the numbers of an array are.
    DType(DType),
    /// NumPy's array; `None` until its numbers have come.
    Array(Option<Array>),
    /// Something that a state dict does not need: its contents are left out.
    Opaque,
}

/// The names that are understood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// `torch.Size`
    Size,
    /// `torch.FloatStorage` and its like.
    Storage(Kind),
    /// `numpy.dtype`
    DType,
    /// `numpy.core.multiarray._reconstruct`: an array that is still empty.
    EmptyArray,
    /// `numpy.core.numeric._frombuffer`: an array with its numbers.
    ArrayOfBytes,
    /// `_codecs.encode`: bytes, as Python 3 writes them for Python 2.
    Encode,
    /// Plain data beside the weights (single numbers of NumPy, command-line arguments, logs): what is made of it is
    /// left out.
    Opaque,
}

/// Numbers in another file of the archive.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Their kind.
    pub kind: Kind,
    /// The name of the file in the archive's folder `data`.
    pub key: Rc<str>,
    /// How many there are.
    pub count: usize,
}

/// A strided view of a storage.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorView {
    /// What it looks at.
    pub storage: Storage,
    /// The first number.
    pub offset: i64,
    /// Its shape.
    pub size: Vec<i64>,
    /// Numbers between neighbours of each dimension.
    pub stride: Vec<i64>,
}

/// All objects of a pickle. They lie in one list, so that neither reading nor dropping deep nests of them is recursive.
#[derive(Debug, Default)]
pub struct Objects(Vec<Object>);

impl Objects {
    /// What a value refers to; `None` for one that is no object.
    pub fn get(&self, value: &Value) -> Option<&Object> {
        match value {
            Value::Object(at) => self.0.get(*at),
            _ => None,
        }
    }

    /// All storages, in their order.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.0.iter().filter_map(|object| match object {
            Object::Storage(storage) => Some(storage),
            _ => None,
        })
    }

    /// A value as text; `None` for one that is none.
    pub fn text(&self, value: &Value) -> Option<Rc<str>> {
        match (value, self.get(value)) {
            (Value::Text(text), _) => Some(text.clone()),
            (_, Some(Object::Bytes(bytes))) => std::str::from_utf8(bytes).ok().map(Rc::from),
            _ => None,
        }
    }

    /// What dictionaries inside one another hold under these keys, from the outermost on, beginning with `value`: a
    /// text, or a list of texts.
    pub fn texts(&self, value: &Value, path: &[&str]) -> Option<Vec<Rc<str>>> {
        let mut value = value;
        for key in path {
            let Some(Object::Dict(entries)) = self.get(value) else { return None };
            value = &entries.iter().find(|(name, _)| self.text(name).as_deref() == Some(key))?.1;
        }
        match self.get(value) {
            Some(Object::Sequence(items)) => items.iter().map(|item| self.text(item)).collect(),
            _ => Some(vec![self.text(value)?]),
        }
    }

    pub(super) fn add(&mut self, object: Object) -> Value {
        self.0.push(object);
        Value::Object(self.0.len() - 1)
    }

    pub(super) fn get_mut(&mut self, value: &Value) -> Option<&mut Object> {
        match value {
            Value::Object(at) => self.0.get_mut(*at),
            _ => None,
        }
    }

    pub(super) fn sequence(&self, value: &Value) -> Result<&[Value]> {
        match self.get(value) {
            Some(Object::Sequence(items)) => Ok(items),
            _ => bail!("a tuple is expected where there is {value:?}"),
        }
    }

    pub(super) fn array(&self, numbers: &Value, dtype: &Value, size: &Value, fortran: bool) -> Result<Array> {
        let (Some(Object::Bytes(bytes)), Some(Object::DType(dtype))) = (self.get(numbers), self.get(dtype)) else {
            bail!("an array without numbers or without their kind")
        };
        Ok(Array { dtype: dtype.clone(), size: self.integers(size)?, fortran, bytes: bytes.clone() })
    }

    pub(super) fn integers(&self, value: &Value) -> Result<Vec<i64>> {
        let integer = |v: &Value| match v {
            Value::Int(i) => Ok(*i),
            other => bail!("an integer is expected where there is {other:?}"),
        };
        self.sequence(value)?.iter().map(integer).collect()
    }
}
