//! NumPy's arrays inside pickles: how their numbers are described, and the numbers.

use std::rc::Rc;

use anyhow::{bail, ensure, Context, Result};
use tch::{Kind, Tensor};

/// What each number of an array is.
#[derive(Clone, Debug, PartialEq)]
pub struct DType {
    /// NumPy's code without byte order, for example `f4`.
    code: Rc<str>,
    /// The highest byte comes first.
    big: bool,
}

impl DType {
    /// Of a code as NumPy writes it, with or without a byte order before it.
    pub fn new(code: &str) -> Self {
        let bare = code.trim_start_matches(['<', '>', '=', '|']);
        Self { code: bare.into(), big: code.starts_with('>') }
    }

    /// The same with another byte order, as NumPy writes it: `<`, `>`, `=` or `|`.
    pub fn with_order(&self, order: &str) -> Self {
        Self { big: order == ">", ..self.clone() }
    }

    /// libtorch's kind of these numbers.
    ///
    /// # Errors
    /// If vigdet does not read such numbers.
    fn kind(&self) -> Result<Kind> {
        ensure!(!self.big, "its numbers are big-endian; save it again on another machine");
        Ok(match &*self.code {
            "f2" => Kind::Half,
            "f4" => Kind::Float,
            "f8" => Kind::Double,
            "i8" => Kind::Int64,
            "i4" => Kind::Int,
            "i2" => Kind::Int16,
            "i1" => Kind::Int8,
            "u1" => Kind::Uint8,
            "b1" => Kind::Bool,
            other => bail!("it holds numbers of NumPy's kind `{other}`, which vigdet does not read"),
        })
    }
}

/// An array as a pickle has it: nothing about it is checked before its numbers are asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// What each number is.
    pub dtype: DType,
    /// Its shape.
    pub size: Vec<i64>,
    /// The first index runs fastest (Fortran's order) in place of the last (C's).
    pub fortran: bool,
    /// Its numbers.
    pub bytes: Rc<[u8]>,
}

impl Array {
    /// Refuses an array whose numbers are of no known kind, or are not as many as its shape says.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> Result<Kind> {
        let kind = self.dtype.kind()?;
        let each = kind.elt_size_in_bytes();
        let length = self.size.iter().try_fold(each, |all, &n| all.checked_mul(usize::try_from(n).ok()?));
        ensure!(
            length == Some(self.bytes.len()),
            "it has {} bytes in place of numbers of {each} bytes in shape {:?}",
            self.bytes.len(),
            self.size
        );
        Ok(kind)
    }

    /// Its numbers, on the CPU.
    ///
    /// # Errors
    /// As [`Array::check`].
    pub fn tensor(&self) -> Result<Tensor> {
        let kind = self.check()?;
        if !self.fortran {
            return Ok(Tensor::f_from_data_size(&self.bytes, &self.size, kind)?);
        }
        let reversed: Vec<i64> = self.size.iter().rev().copied().collect();
        let axes: Vec<i64> = (0..self.size.len() as i64).rev().collect();
        let tensor = Tensor::f_from_data_size(&self.bytes, &reversed, kind)?;
        tensor.f_permute(axes).context("an array in Fortran's order")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(code: &str, size: &[i64], bytes: &[u8]) -> Array {
        Array { dtype: DType::new(code), size: size.to_vec(), fortran: false, bytes: bytes.into() }
    }

    #[test]
    fn numbers_are_read_in_both_orders_and_kinds_keep_their_width() {
        let bytes: Vec<u8> = (0..6).flat_map(|v| (v as f32).to_le_bytes()).collect();
        let c = array("<f4", &[2, 3], &bytes);
        let rows = |t: Tensor| Vec::<f32>::try_from(t.reshape(-1)).unwrap();
        assert_eq!(rows(c.tensor().unwrap()), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let fortran = Array { fortran: true, ..c };
        assert_eq!(fortran.tensor().unwrap().size(), [2, 3]);
        assert_eq!(rows(fortran.tensor().unwrap()), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        let long = array("i8", &[1], &(-5i64).to_le_bytes()).tensor().unwrap();
        assert_eq!((long.kind(), long.int64_value(&[0])), (Kind::Int64, -5));
        assert_eq!(array("f8", &[], &2.5f64.to_le_bytes()).tensor().unwrap().double_value(&[]), 2.5);
    }

    #[test]
    fn arrays_that_do_not_hold_what_they_say_are_refused() {
        let error = |array: Array| format!("{:#}", array.tensor().unwrap_err());
        assert!(error(array(">f4", &[1], &[0; 4])).contains("big-endian"));
        assert!(error(array("O", &[1], &[0; 8])).contains("`O`"));
        assert!(error(array("f4", &[2], &[0; 4])).contains("shape [2]"));
        assert!(error(array("f4", &[-1], &[0; 4])).contains("shape [-1]"));
        assert!(error(array("f4", &[i64::MAX, i64::MAX], &[0; 4])).contains("4 bytes"));
        let order = DType::new("f4").with_order(">");
        assert!(error(Array { dtype: order, ..array("f4", &[1], &[0; 4]) }).contains("big-endian"));
    }
}
