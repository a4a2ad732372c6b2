//! Reads the pickles that `torch.save` writes, without running them.
//!
//! A pickle is a program; Python's reader calls whatever it names. This one knows the instructions and the few names
//! that state dicts are made of, builds plain values from them, and refuses every other name, so there is nothing that
//! it could run.

use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{bail, ensure, Context, Result};
use tch::Kind;

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
    /// Plain data beside the weights (numbers of numpy, command-line arguments): what is made of it is left out.
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

    fn add(&mut self, object: Object) -> Value {
        self.0.push(object);
        Value::Object(self.0.len() - 1)
    }

    fn get_mut(&mut self, value: &Value) -> Option<&mut Object> {
        match value {
            Value::Object(at) => self.0.get_mut(*at),
            _ => None,
        }
    }

    fn sequence(&self, value: &Value) -> Result<&[Value]> {
        match self.get(value) {
            Some(Object::Sequence(items)) => Ok(items),
            _ => bail!("a tuple is expected where there is {value:?}"),
        }
    }

    fn integers(&self, value: &Value) -> Result<Vec<i64>> {
        let integer = |v: &Value| match v {
            Value::Int(i) => Ok(*i),
            other => bail!("an integer is expected where there is {other:?}"),
        };
        self.sequence(value)?.iter().map(integer).collect()
    }
}

/// Reads a pickle, after which more may follow: its value, the objects that the value is made of, and how many bytes it
/// has.
///
/// # Errors
/// If the pickle is cut off or malformed, or names anything that a state dict is not made of: the message says what.
pub fn read(bytes: &[u8]) -> Result<(Value, Objects, usize)> {
    let mut reader = Reader { bytes, ..Reader::default() };
    let value = loop {
        let start = reader.at;
        if let Some(value) = reader.step().with_context(|| format!("at byte {start} of its pickle"))? {
            break value;
        }
    };
    Ok((value, reader.objects, reader.at))
}

#[derive(Default)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    objects: Objects,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.context("the pickle is cut off")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian unsigned integer of `count` bytes, at most 8.
    fn unsigned(&mut self, count: usize) -> Result<u64> {
        Ok(self.take(count)?.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// Text after its length, which has `count` bytes.
    fn text(&mut self, count: usize) -> Result<Value> {
        let length = usize::try_from(self.unsigned(count)?)?;
        let bytes = self.take(length)?;
        Ok(Value::Text(std::str::from_utf8(bytes).context("text is not UTF-8")?.into()))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').context("the pickle is cut off")?;
        let line = std::str::from_utf8(self.take(length)?).context("a name is not UTF-8")?;
        self.at += 1;
        Ok(line)
    }

    fn pop(&mut self) -> Result<Value> {
        ensure!(self.stack.len() > self.marks.last().copied().unwrap_or(0), "nothing is there to take");
        self.stack.pop().context("nothing is there to take")
    }

    fn last(&self) -> Result<&Value> {
        self.stack.last().context("nothing is there to look at")
    }

    /// What was pushed since the last mark.
    fn since_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().context("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    /// The last `count` values, the last of them last.
    fn pop_many(&mut self, count: usize) -> Result<Vec<Value>> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        items.reverse();
        Ok(items)
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        let value = self.last()?.clone();
        self.memo.insert(key, value);
        Ok(())
    }

    /// Adds keys and values to the dictionary, or items to the list, that is on the top of the stack.
    fn extend(&mut self, items: Vec<Value>, dict: bool) -> Result<()> {
        ensure!(!dict || items.len().is_multiple_of(2), "a dictionary has a key without a value");
        let target = self.last()?.clone();
        match (self.objects.get_mut(&target), dict) {
            (Some(Object::Dict(entries)), true) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())));
            }
            (Some(Object::Sequence(list)), false) => list.extend(items),
            (Some(Object::Opaque), _) => {}
            (_, true) => bail!("entries for what is not a dictionary"),
            (_, false) => bail!("items for what is not a list"),
        }
        Ok(())
    }

    /// One instruction; the value, if it was the last.
    fn step(&mut self) -> Result<Option<Value>> {
        let code = self.take(1)?[0];
        match code {
            // Protocol and frame length: nothing to do.
            0x80 => _ = self.take(1)?,
            0x95 => _ = self.take(8)?,
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b's' | b'a' => {
                let items = self.pop_many(if code == b's' { 2 } else { 1 })?;
                self.extend(items, code == b's')?;
            }
            b'u' | b'e' => {
                let items = self.since_mark()?;
                self.extend(items, code == b'u')?;
            }
            b'q' | b'r' => {
                let key = self.unsigned(if code == b'q' { 1 } else { 4 })?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            // What `__setstate__` would get: state dicts keep module versions there.
            b'b' => drop(self.pop()?),
            _ => {
                let value = self.value(code)?;
                self.stack.push(value);
            }
        }
        Ok(None)
    }

    /// What an instruction puts on the stack.
    fn value(&mut self, code: u8) -> Result<Value> {
        let object = match code {
            b'2' => return self.last().cloned(),
            b'N' => return Ok(Value::None),
            0x88 => return Ok(Value::Bool(true)),
            0x89 => return Ok(Value::Bool(false)),
            b'J' => return Ok(Value::Int((self.unsigned(4)? as u32 as i32).into())),
            b'K' => return Ok(Value::Int(self.unsigned(1)? as i64)),
            b'M' => return Ok(Value::Int(self.unsigned(2)? as i64)),
            0x8a => match self.unsigned(1)? as usize {
                0 => return Ok(Value::Int(0)),
                // The sign is the highest bit of the highest byte.
                count @ 1..=8 => {
                    let unused = 64 - 8 * count as u32;
                    return Ok(Value::Int((self.unsigned(count)? << unused) as i64 >> unused));
                }
                // A generator's 64-bit seed takes nine bytes. No size or name of a tensor does.
                count => self.opaque(count)?,
            },
            b'G' => return Ok(Value::Float(f64::from_bits(self.unsigned(8)?.swap_bytes()))),
            b'X' => return self.text(4),
            0x8c => return self.text(1),
            0x8d => return self.text(8),
            b'h' | b'j' => {
                let key = self.unsigned(if code == b'h' { 1 } else { 4 })?;
                return self.memo.get(&key).cloned().with_context(|| format!("memo {key} was never filled"));
            }
            // A call, and the making of an object.
            b'R' | 0x81 => {
                let (arguments, called) = (self.pop()?, self.pop()?);
                return self.call(&called, &arguments);
            }
            // Bytes and byte strings: no part of a state dict, but of what may lie beside it.
            b'U' | b'C' | b'T' | b'B' => {
                let length = self.unsigned(if matches!(code, b'U' | b'C') { 1 } else { 4 })?;
                self.opaque(usize::try_from(length)?)?
            }
            b')' | b']' => Object::Sequence(Vec::new()),
            b'}' => Object::Dict(Vec::new()),
            b't' => Object::Sequence(self.since_mark()?),
            0x85..=0x87 => Object::Sequence(self.pop_many(usize::from(code - 0x84))?),
            b'c' => Object::Global(global(self.line()?, self.line()?)?),
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (module, name) else { bail!("a name that is not text") };
                Object::Global(global(&module, &name)?)
            }
            b'Q' => {
                let id = self.pop()?;
                Object::Storage(self.storage(&id)?)
            }
            _ => bail!("instruction 0x{code:02x} is no part of a state dict"),
        };
        Ok(self.objects.add(object))
    }

    /// Passes over `count` bytes of what no state dict needs.
    fn opaque(&mut self, count: usize) -> Result<Object> {
        self.take(count)?;
        Ok(Object::Opaque)
    }

    fn call(&mut self, called: &Value, arguments: &Value) -> Result<Value> {
        let Some(Object::Global(global)) = self.objects.get(called) else { bail!("a call of what is no name") };
        let arguments = self.objects.sequence(arguments)?;
        let argument = |i: usize| arguments.get(i).with_context(|| format!("a call lacks argument {i}"));
        Ok(match global {
            Global::OrderedDict => self.objects.add(Object::Dict(Vec::new())),
            Global::RebuildParameter | Global::Size => argument(0)?.clone(),
            Global::RebuildTensor => {
                let Some(Object::Storage(storage)) = self.objects.get(argument(0)?) else {
                    bail!("a tensor without a storage")
                };
                let Value::Int(offset) = *argument(1)? else { bail!("a tensor without an offset") };
                let view = TensorView {
                    storage: storage.clone(),
                    offset,
                    size: self.objects.integers(argument(2)?)?,
                    stride: self.objects.integers(argument(3)?)?,
                };
                self.objects.add(Object::Tensor(view))
            }
            Global::Opaque => self.objects.add(Object::Opaque),
            Global::Storage(_) => bail!("a storage cannot be called"),
        })
    }

    /// `('storage', torch.FloatStorage, key, location, count)`, before 1.6 with a sixth part, which is `None` for a
    /// whole storage.
    fn storage(&self, id: &Value) -> Result<Storage> {
        match self.objects.sequence(id)? {
            [Value::Text(tag), class, Value::Text(key), _, Value::Int(count)]
            | [Value::Text(tag), class, Value::Text(key), _, Value::Int(count), Value::None]
                if &**tag == "storage" =>
            {
                let Some(Object::Global(Global::Storage(kind))) = self.objects.get(class) else {
                    bail!("a storage of no known kind")
                };
                Ok(Storage { kind: *kind, key: key.clone(), count: usize::try_from(*count)? })
            }
            _ => bail!("a reference that is no storage"),
        }
    }
}

/// What a name means.
///
/// # Errors
/// For every name but those of plain data.
fn global(module: &str, name: &str) -> Result<Global> {
    let storage = |kind| Ok(Global::Storage(kind));
    match (module, name) {
        ("collections", "OrderedDict") => Ok(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Ok(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
        ("torch", "Size") => Ok(Global::Size),
        ("torch", "FloatStorage") => storage(Kind::Float),
        ("torch", "DoubleStorage") => storage(Kind::Double),
        ("torch", "HalfStorage") => storage(Kind::Half),
        ("torch", "BFloat16Storage") => storage(Kind::BFloat16),
        ("torch", "LongStorage") => storage(Kind::Int64),
        ("torch", "IntStorage") => storage(Kind::Int),
        ("torch", "ShortStorage") => storage(Kind::Int16),
        ("torch", "CharStorage") => storage(Kind::Int8),
        ("torch", "ByteStorage") => storage(Kind::Uint8),
        ("torch", "BoolStorage") => storage(Kind::Bool),
        ("argparse", "Namespace") | ("_codecs", "encode") | ("torch", "device") => Ok(Global::Opaque),
        ("numpy", "dtype" | "ndarray") => Ok(Global::Opaque),
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct") => Ok(Global::Opaque),
        _ => bail!(
            "it names `{module}.{name}`, which no state dict needs; vigdet runs nothing from a file: save \
             `model.state_dict()` alone"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        format!("{:#}", read(bytes).unwrap_err())
    }

    #[test]
    fn plain_values_are_read() {
        // {'a': [1, -2, 0.5, None, True], 'b': (258, 70000)} as Python's protocol 2 writes it
        let bytes =
            b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffG?\xe0\x00\x00\x00\x00\x00\x00\
            N\x88eX\x01\x00\x00\x00bM\x02\x01Jp\x11\x01\x00\x86u.";
        let (value, objects, _) = read(bytes).unwrap();
        let Some(Object::Dict(entries)) = objects.get(&value) else { panic!("{value:?}") };
        let keys: Vec<&Value> = entries.iter().map(|e| &e.0).collect();
        assert_eq!(keys, [&Value::Text("a".into()), &Value::Text("b".into())]);
        let expected = [Value::Int(1), Value::Int(-2), Value::Float(0.5), Value::None, Value::Bool(true)];
        assert_eq!(objects.sequence(&entries[0].1).unwrap(), expected);
        assert_eq!(objects.integers(&entries[1].1).unwrap(), [258, 70000]);
        let long = |bytes: &[u8]| read(&[&[0x8a, bytes.len() as u8], bytes, b"."].concat()).unwrap().0;
        assert_eq!(long(&[0xff]), Value::Int(-1));
        assert_eq!(long(&[0xff, 0]), Value::Int(255));
        assert_eq!(long(&[]), Value::Int(0));
        // A seed of 64 bits without a sign takes nine bytes; it stands for nothing here, and is no reason to refuse
        // the file.
        let (seed, objects, _) = read(&[&[0x8a, 9][..], &[0xff; 8], &[0], b"."].concat()).unwrap();
        assert!(matches!(objects.get(&seed), Some(Object::Opaque)));
    }

    #[test]
    fn code_is_named_and_never_called() {
        // os.system('true'), and builtins.eval by way of the newer instruction
        let text = error(b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.");
        assert!(text.contains("os.system"), "{text}");
        let text = error(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.");
        assert!(text.contains("builtins.eval"), "{text}");
    }

    #[test]
    fn broken_pickles_are_refused() {
        let whole = b"\x80\x02}(X\x01\x00\x00\x00aK\x01u.";
        read(whole).unwrap();
        for length in 0..whole.len() {
            assert!(error(&whole[..length]).contains("cut off"), "{length}");
        }
        for bad in [&b"h\x05."[..], b"0.", b"u.", b"K\x01\x85R.", b"(0.", b"\xff", b"K\x01Q.", b"K\x01K\x01a."] {
            error(bad);
        }
        // As deep as one likes.
        let deep = [&b")"[..], &vec![0x85; 1_000_000], b"."].concat();
        read(&deep).unwrap();
    }
}
