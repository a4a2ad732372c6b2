//! COCO's text form of runs: numbers of 5 bits a character, ASCII 48 to 111, least significant first, bit 5 set where
//! more follow, bit 4 of the last the sign. From the fourth run on the difference to the run two before is stored.

use super::MaskError;

/// A run has at most 33 bits with its sign: seven characters of five.
const MAX_CHARACTERS: u32 = 7;

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

/// Decodes text of unknown origin.
pub(super) fn checked_runs(text: &[u8]) -> impl Iterator<Item = Result<u32, MaskError>> + '_ {
    let mut position = 0;
    let mut index = 0;
    // The runs two before and one before.
    let mut last = [0u32; 2];
    std::iter::from_fn(move || {
        if position >= text.len() {
            return None;
        }
        let mut value = 0i64;
        let mut shift = 0;
        loop {
            let Some(&byte) = text.get(position) else { return Some(Err(MaskError::CutOff)) };
            let code = byte.wrapping_sub(48);
            if code > 63 {
                return Some(Err(MaskError::WrongCharacter { character: char::from(byte), position }));
            }
            position += 1;
            value |= i64::from(code & 0x1f) << (5 * shift);
            shift += 1;
            if code & 0x20 == 0 {
                if code & 0x10 != 0 {
                    value |= -1 << (5 * shift);
                }
                break;
            }
            if shift == MAX_CHARACTERS {
                return Some(Err(MaskError::RunOutOfRange { index, value }));
            }
        }
        if index > 2 {
            value += i64::from(last[0]);
        }
        let Ok(run) = u32::try_from(value) else {
            return Some(Err(MaskError::RunOutOfRange { index, value }));
        };
        last = [last[1], run];
        index += 1;
        Some(Ok(run))
    })
}

/// The runs of a mask whose text has been checked.
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    text: &'a [u8],
    /// Runs given so far, up to 3.
    index: u8,
    /// The runs two before and one before.
    last: [u32; 2],
}

impl<'a> Runs<'a> {
    pub(super) fn new(text: &'a [u8]) -> Runs<'a> {
        Runs { text, index: 0, last: [0; 2] }
    }
}

impl Iterator for Runs<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        let (&first, mut rest) = self.text.split_first()?;
        let mut code = first.wrapping_sub(48);
        let mut value = i64::from(code & 0x1f);
        let mut bits = 5;
        while code & 0x20 != 0 {
            let Some((&next, after)) = rest.split_first() else { break };
            code = next.wrapping_sub(48);
            rest = after;
            value |= i64::from(code & 0x1f) << bits;
            bits += 5;
        }
        self.text = rest;
        // The sign bit of the last character stands for all the bits above it.
        value = value << (64 - bits) >> (64 - bits);
        if self.index > 2 {
            value += i64::from(self.last[0]);
        } else {
            self.index += 1;
        }
        let run = value as u32;
        self.last = [self.last[1], run];
        Some(run)
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
