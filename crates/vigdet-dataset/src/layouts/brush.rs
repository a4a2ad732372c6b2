//! Label Studio's brush masks: the run-length code of thi.ng's `rle-pack`, of the bytes of an RGBA image.
//!
//! A stream of bits, the highest of each byte first: 32 bits of the number of values; 5 bits of the bits of a value,
//! less 1; four times 4 bits of the bits of a length, less 1. Then parts: a bit that is 1 for one repeated value and 0
//! for values one by one; 2 bits that choose among the four lengths; the number of values, less 1; the value or values.

use anyhow::{ensure, Context, Result};

/// The bits of lengths that `encode` offers.
const LENGTHS: [u32; 4] = [3, 4, 8, 16];

/// More values than a picture has: a short text can claim any number.
const MOST_VALUES: u32 = 4 * 178_956_970;

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Result<u32> {
        let mut value = 0u32;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8).context("the brush mask is cut off")?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Ok(value)
    }
}

/// The bytes of the RGBA image, row by row.
///
/// # Errors
/// The code is cut off, has more than 8 bits a value, or claims more values than a picture has.
pub fn decode(code: &[u8]) -> Result<Vec<u8>> {
    let mut bits = Bits { bytes: code, at: 0 };
    let count = bits.take(32)?;
    ensure!(count <= MOST_VALUES, "the brush mask claims {count} values");
    let word = bits.take(5)? + 1;
    ensure!(word <= 8, "the brush mask has values of {word} bits, not of up to 8");
    let mut lengths = [0; 4];
    for length in &mut lengths {
        *length = bits.take(4)? + 1;
    }
    let count = count as usize;
    let mut values = Vec::new();
    while values.len() < count {
        let repeated = bits.take(1)? == 1;
        let length = lengths[bits.take(2)? as usize];
        let end = (values.len() + bits.take(length)? as usize + 1).min(count);
        if repeated {
            let value = bits.take(word)? as u8;
            values.resize(end, value);
        } else {
            while values.len() < end {
                values.push(bits.take(word)? as u8);
            }
        }
    }
    Ok(values)
}

/// The code of bytes: repeated values alone, which is what masks consist of.
pub fn encode(values: &[u8]) -> Vec<u8> {
    let mut bits = Vec::new();
    let mut put = |value: u32, count: u32| bits.extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
    put(values.len() as u32, 32);
    put(7, 5);
    LENGTHS.iter().for_each(|&length| put(length - 1, 4));
    for run in values.chunk_by(|a, b| a == b) {
        for part in run.chunks(1 << LENGTHS[3]) {
            let length = (part.len() - 1) as u32;
            let choice = LENGTHS.iter().position(|&bits| length >> bits == 0).unwrap_or(3);
            put(1, 1);
            put(choice as u32, 2);
            put(length, LENGTHS[choice]);
            put(u32::from(part[0]), 8);
        }
    }
    bits.chunks(8)
        .map(|byte| byte.iter().enumerate().fold(0, |all, (i, &bit)| all | u8::from(bit) << (7 - i)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_their_code() {
        let values: Vec<u8> = [vec![0; 70_000], vec![255; 9], (0..=255).collect(), vec![7; 65_536]].concat();
        assert_eq!(decode(&encode(&values)).unwrap(), values);
        assert_eq!(decode(&encode(&[])).unwrap(), Vec::<u8>::new());
    }

    #[test]
    fn a_code_that_is_cut_off_or_boasts_is_refused() {
        let code = encode(&[1, 2, 3, 3, 3]);
        assert!(decode(&code[..code.len() - 2]).unwrap_err().to_string().contains("cut off"));
        assert!(decode(&[0xFF; 12]).unwrap_err().to_string().contains("claims"));
    }
}
