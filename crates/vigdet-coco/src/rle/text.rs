//! COCO's text form of runs: numbers of 5 bits a character, ASCII 48 to 111, least significant first, bit 5 set where
//! more follow, bit 4 of the last the sign. From the fourth run on the difference to the run two before is stored.

use super::MaskError;

/// A run has at most 33 bits with its sign: seven characters of five.
const MAX_BITS: u32 = 35;

/// The text form of `runs`.
pub(super) fn compress(runs: &[u32]) -> String {
    let mut text = String::with_capacity(runs.len() * 2);
    for (index, &run) in runs.iter().enumerate() {
        let mut rest = i64::from(run);
        if index > 2 {
            rest -= i64::from(runs[index - 2]);
        }
        loop {
            let low = (rest & 0x1f) as u8;
            rest >>= 5;
            let more = if low & 0x10 != 0 { rest != -1 } else { rest != 0 };
            text.push(char::from(48 + low + if more { 0x20 } else { 0 }));
            if !more {
                break;
            }
        }
    }
    text
}

/// The runs of a mask.
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    text: &'a [u8],
    /// Position in the text.
    at: usize,
    /// Runs given so far.
    index: usize,
    /// The runs two before and one before.
    last: [u32; 2],
}

impl<'a> Runs<'a> {
    pub(super) fn new(text: &'a [u8]) -> Runs<'a> {
        Runs { text, at: 0, index: 0, last: [0; 2] }
    }

    /// The next run of text of unknown origin. Inlined, its state stays in registers: reading masks is little else than
    /// this.
    #[inline(always)]
    pub(super) fn checked_next(&mut self) -> Option<Result<u32, MaskError>> {
        let first = self.text.get(self.at)?.wrapping_sub(48);
        // Nearly all differences are of one or two characters.
        let coded = if first < 0x20 {
            self.at += 1;
            // Bit 4 is the sign.
            i64::from((first << 3) as i8 >> 3)
        } else {
            match self.long_number() {
                Ok(value) => value,
                Err(error) => return Some(Err(error)),
            }
        };
        let value = if self.index > 2 { coded + i64::from(self.last[0]) } else { coded };
        let Ok(run) = u32::try_from(value) else {
            return Some(Err(MaskError::RunOutOfRange { index: self.index, value }));
        };
        self.last = [self.last[1], run];
        self.index += 1;
        Some(Ok(run))
    }

    /// A number of any length.
    #[inline]
    fn long_number(&mut self) -> Result<i64, MaskError> {
        let (mut value, mut bits) = (0i64, 0);
        loop {
            let &byte = self.text.get(self.at).ok_or(MaskError::CutOff)?;
            let code = byte.wrapping_sub(48);
            if code > 63 {
                return Err(MaskError::WrongCharacter { character: char::from(byte), position: self.at });
            }
            self.at += 1;
            value |= i64::from(code & 0x1f) << bits;
            bits += 5;
            if code & 0x20 == 0 {
                return Ok(value << (64 - bits) >> (64 - bits));
            }
            if bits == MAX_BITS {
                return Err(MaskError::RunOutOfRange { index: self.index, value });
            }
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = u32;

    /// The text of a mask has been checked, so there is no error in it.
    #[inline]
    fn next(&mut self) -> Option<u32> {
        self.checked_next()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MaskError, Rle};

    #[test]
    fn text_of_runs_is_that_of_pycocotools() {
        // Written by pycocotools 2.0.11: frPyObjects of these uncompressed runs.
        let mask = Rle::from_runs(20, 30, &[6, 1, 40, 4, 5, 4, 5, 4, 21, 510]).unwrap();
        assert_eq!(mask.compressed(), "61X13mN000`0j?");
        assert_eq!(mask.runs().collect::<Vec<_>>(), [6, 1, 40, 4, 5, 4, 5, 4, 21, 510]);
    }

    #[test]
    fn text_that_is_no_mask_is_refused_with_its_reason() {
        let wrong = |text: &str| Rle::from_compressed(2, 2, text).unwrap_err();
        assert_eq!(wrong("4 "), MaskError::WrongCharacter { character: ' ', position: 1 });
        assert_eq!(wrong("2T"), MaskError::CutOff);
        assert_eq!(wrong("2N"), MaskError::RunOutOfRange { index: 1, value: -2 });
        assert_eq!(wrong("oooooooooo0"), MaskError::RunOutOfRange { index: 0, value: 34359738367 });
        assert_eq!(wrong("21"), MaskError::WrongSum { sum: 3, height: 2, width: 2 });
        assert_eq!(wrong("23"), MaskError::WrongSum { sum: 5, height: 2, width: 2 });
    }
}
