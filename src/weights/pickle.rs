//! Reads the pickles that `torch.save` writes, and those of NumPy arrays, without running them.
//!
//! A pickle is a program; Python's reader calls whatever it names. This one knows the instructions and the few names
//! that state dicts and arrays are made of, builds plain values from them, and refuses every other name, so there is
//! nothing that it could run.

use std::collections::HashMap;

use anyhow::{bail, ensure, Context, Result};
use tch::Kind;

use super::numpy::DType;
use super::objects::{Global, Object, Objects, Storage, TensorView, Value};

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
    /// Bytes of text that were encoded so far.
    encoded: usize,
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
            b'b' => {
                let state = self.pop()?;
                self.build(&state)?;
            }
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
            // Bytes, and text of Python 2.
            b'U' | b'C' => self.bytes(1)?,
            b'T' | b'B' => self.bytes(4)?,
            0x8e | 0x96 => self.bytes(8)?,
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

    /// Bytes after their number, which has `count` bytes.
    fn bytes(&mut self, count: usize) -> Result<Object> {
        let length = usize::try_from(self.unsigned(count)?)?;
        Ok(Object::Bytes(self.take(length)?.into()))
    }

    /// What `__setstate__` would get: byte orders, and the numbers of arrays. State dicts keep module versions there,
    /// which nobody needs.
    fn build(&mut self, state: &Value) -> Result<()> {
        let target = self.last()?.clone();
        let objects = &self.objects;
        let parts = match objects.get(state) {
            Some(Object::Sequence(parts)) => &parts[..],
            _ => &[],
        };
        let built = match (objects.get(&target), parts) {
            (Some(Object::DType(dtype)), [_, order, ..]) => {
                let order = objects.text(order).context("a byte order that is not text")?;
                Object::DType(dtype.with_order(&order))
            }
            // An array of objects has a list in place of bytes: it is no array of numbers.
            (Some(Object::Array(None)), [_, size, dtype, fortran, numbers]) => match objects.get(numbers) {
                Some(Object::Bytes(_)) => {
                    let fortran = matches!(fortran, Value::Bool(true) | Value::Int(1));
                    Object::Array(Some(objects.array(numbers, dtype, size, fortran)?))
                }
                _ => Object::Opaque,
            },
            (Some(Object::Array(None)), _) => bail!("an array without shape and numbers"),
            _ => return Ok(()),
        };
        if let Some(object) = self.objects.get_mut(&target) {
            *object = built;
        }
        Ok(())
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
            Global::DType => {
                let code = self.objects.text(argument(0)?).context("a kind of numbers that is not text")?;
                self.objects.add(Object::DType(DType::new(&code)))
            }
            Global::EmptyArray => self.objects.add(Object::Array(None)),
            Global::ArrayOfBytes => {
                let fortran = self.objects.text(argument(3)?).as_deref() == Some("F");
                let array = self.objects.array(argument(0)?, argument(1)?, argument(2)?, fortran)?;
                self.objects.add(Object::Array(Some(array)))
            }
            Global::Encode => {
                let text = self.objects.text(argument(0)?).context("an encoding of what is not text")?;
                // The same text again and again would fill the memory.
                self.encoded += text.len();
                ensure!(self.encoded <= self.bytes.len(), "it encodes more text than there is");
                let latin = argument(1)
                    .ok()
                    .and_then(|name| self.objects.text(name))
                    .is_some_and(|name| matches!(&*name, "latin1" | "latin-1"));
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
                let bytes = bytes.filter(|_| latin).map(|bytes| Object::Bytes(bytes.into()));
                self.objects.add(bytes.unwrap_or(Object::Opaque))
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
        ("_codecs", "encode") => Ok(Global::Encode),
        ("numpy", "dtype") => Ok(Global::DType),
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Ok(Global::EmptyArray),
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Ok(Global::ArrayOfBytes),
        ("numpy", "ndarray") | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Ok(Global::Opaque),
        ("argparse", "Namespace") | ("torch", "device") | ("collections", "Counter" | "defaultdict") => {
            Ok(Global::Opaque)
        }
        ("mmengine.logging.history_buffer", "HistoryBuffer") => Ok(Global::Opaque),
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
    fn text_that_is_encoded_over_and_over_is_refused() {
        // _codecs.encode('abcdefgh', 'latin1'), once and then again and again.
        let text = b"\x80\x02c_codecs\nencode\nq\x00X\x08\x00\x00\x00abcdefghq\x01X\x06\x00\x00\x00latin1\x86q\x02R";
        let (value, objects, _) = read(&[&text[..], b"."].concat()).unwrap();
        assert_eq!(objects.get(&value), Some(&Object::Bytes(b"abcdefgh"[..].into())));
        let again = [&text[..], &b"0h\x00h\x02R".repeat(99), b"."].concat();
        assert!(error(&again).contains("more text than there is"), "{}", error(&again));
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
