//! A quick reader of plain JSON.
//!
//! Every method gives `None` for whatever is not plain and right: the caller then leaves the file to serde_json, which
//! reads the rest of JSON too, or says what is wrong. So nothing here has to explain itself, but what it accepts must
//! be what serde_json accepts, with the same value; tests and a fuzz target hold the two against each other.

/// A position in JSON text.
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Containers in a value that is skipped may be this deep.
const MAX_DEPTH: usize = 100;
/// Whole numbers up to here, and powers of ten up to 10²², are exact as floats: a product or quotient of the two is
/// rounded once, which is the right rounding.
const EXACT: u64 = 1 << 53;
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

impl<'a> Scanner<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Scanner<'a> {
        Scanner { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn skip_to(&mut self, position: usize) {
        self.at = position;
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// The next byte that is not white space, not taken.
    #[inline]
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            let byte = self.byte()?;
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Takes `expected`, after white space, if it is there.
    #[inline]
    pub(super) fn take(&mut self, expected: u8) -> bool {
        let there = self.peek() == Some(expected);
        self.at += usize::from(there);
        there
    }

    #[inline]
    pub(super) fn expect(&mut self, expected: u8) -> Option<()> {
        self.take(expected).then_some(())
    }

    /// Nothing but white space follows.
    pub(super) fn at_end(&mut self) -> bool {
        self.peek().is_none()
    }

    /// Reads `[…]`, `element` taking each element.
    #[inline]
    pub(super) fn list(&mut self, mut element: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.expect(b'[')?;
        if self.take(b']') {
            return Some(());
        }
        loop {
            element(self)?;
            if !self.take(b',') {
                return self.expect(b']');
            }
        }
    }

    /// Reads `{…}`, `field` taking each value. Keys with escapes are not plain.
    #[inline]
    pub(super) fn object(&mut self, mut field: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        self.expect(b'{')?;
        if self.take(b'}') {
            return Some(());
        }
        loop {
            let key = self.plain_text()?;
            self.expect(b':')?;
            field(self, key)?;
            if !self.take(b',') {
                return self.expect(b'}');
            }
        }
    }

    /// Text without escapes and control characters, as bytes that are UTF-8.
    #[inline]
    fn plain_text(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20)?;
        self.at += length + 1;
        let text = &rest[..length];
        let right = rest[length] == b'"' && (text.is_ascii() || std::str::from_utf8(text).is_ok());
        right.then_some(text)
    }

    /// Text whose only escapes are `\\`, `\"` and `\/`, into `out`.
    pub(super) fn text(&mut self, out: &mut Vec<u8>) -> Option<()> {
        self.expect(b'"')?;
        out.clear();
        loop {
            let rest = &self.bytes[self.at..];
            let length = memchr::memchr2(b'"', b'\\', rest)?;
            let plain = &rest[..length];
            if plain.iter().any(|&byte| byte < 0x20) {
                return None;
            }
            out.extend_from_slice(plain);
            self.at += length + 1;
            if rest[length] == b'"' {
                return Some(());
            }
            match self.byte()? {
                escaped @ (b'\\' | b'"' | b'/') => out.push(escaped),
                _ => return None,
            }
            self.at += 1;
        }
    }

    /// Text as a string, or null.
    pub(super) fn optional_string(&mut self) -> Option<Option<String>> {
        if self.null() {
            return Some(None);
        }
        self.peek()?;
        let start = self.at;
        self.skip_text()?;
        // Names are few, and may have escapes of every kind.
        serde_json::from_slice(&self.bytes[start..self.at]).ok().map(Some)
    }

    /// Passes over text.
    fn skip_text(&mut self) -> Option<()> {
        self.expect(b'"')?;
        loop {
            let byte = self.byte()?;
            self.at += 1;
            match byte {
                b'"' => return Some(()),
                b'\\' => match self.byte()? {
                    b'u' => {
                        let digits = self.bytes.get(self.at + 1..self.at + 5)?;
                        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
                        self.at += 5;
                    }
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
                    _ => return None,
                },
                0..0x20 => return None,
                _ => {}
            }
        }
    }

    /// Takes `null` if it is there.
    #[inline]
    pub(super) fn null(&mut self) -> bool {
        self.peek() == Some(b'n') && self.word(b"null")
    }

    fn word(&mut self, word: &[u8]) -> bool {
        let there = self.bytes[self.at..].starts_with(word);
        self.at += if there { word.len() } else { 0 };
        there
    }

    pub(super) fn boolean(&mut self) -> Option<bool> {
        match self.peek()? {
            b't' => self.word(b"true").then_some(true),
            b'f' => self.word(b"false").then_some(false),
            _ => None,
        }
    }

    /// A whole number without fraction and exponent, of at most 18 digits.
    #[inline]
    pub(super) fn integer(&mut self) -> Option<i64> {
        let negative = self.take(b'-');
        let (value, digits) = self.digits(0);
        let leading_zero = digits > 1 && self.bytes[self.at - digits] == b'0';
        let goes_on = matches!(self.byte(), Some(b'.' | b'e' | b'E'));
        if !(1..=18).contains(&digits) || leading_zero || goes_on {
            return None;
        }
        Some(if negative { -(value as i64) } else { value as i64 })
    }

    pub(super) fn unsigned(&mut self) -> Option<u32> {
        u32::try_from(self.integer()?).ok()
    }

    /// Digits from here on, appended to `value` (which may overflow), and how many there are.
    #[inline]
    fn digits(&mut self, mut value: u64) -> (u64, usize) {
        let start = self.at;
        while let Some(digit) = self.byte().map(|byte| byte.wrapping_sub(b'0')).filter(|&digit| digit < 10) {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            self.at += 1;
        }
        (value, self.at - start)
    }

    /// A number, rounded to the nearest float.
    #[inline]
    pub(super) fn number(&mut self) -> Option<f64> {
        self.peek()?;
        let start = self.at;
        let negative = self.take(b'-');
        let (mut mantissa, whole_digits) = self.digits(0);
        if whole_digits == 0 || (whole_digits > 1 && self.bytes[self.at - whole_digits] == b'0') {
            return None;
        }
        let mut fraction_digits = 0;
        if self.byte() == Some(b'.') {
            self.at += 1;
            (mantissa, fraction_digits) = self.digits(mantissa);
            if fraction_digits == 0 {
                return None;
            }
        }
        let mut exponent = -(fraction_digits as i64);
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            let sign = self.byte();
            self.at += usize::from(matches!(sign, Some(b'+' | b'-')));
            let (value, digits) = self.digits(0);
            if !(1..=4).contains(&digits) {
                return None;
            }
            exponent += if sign == Some(b'-') { -(value as i64) } else { value as i64 };
        }
        // 19 digits fit 64 bits.
        if whole_digits + fraction_digits <= 19 && mantissa <= EXACT && exponent.unsigned_abs() < POWERS.len() as u64 {
            let power = POWERS[exponent.unsigned_abs() as usize];
            let value = if exponent < 0 { mantissa as f64 / power } else { mantissa as f64 * power };
            return Some(if negative { -value } else { value });
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).ok()?;
        text.parse::<f64>().ok().filter(|value| value.is_finite())
    }

    /// Passes over a value of any kind.
    pub(super) fn skip(&mut self) -> Option<()> {
        self.skip_below(MAX_DEPTH)
    }

    fn skip_below(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'"' => self.skip_text(),
            b'[' => {
                let depth = depth.checked_sub(1)?;
                self.list(|scanner| scanner.skip_below(depth))
            }
            b'{' => {
                let depth = depth.checked_sub(1)?;
                self.object(|scanner, _| scanner.skip_below(depth))
            }
            b'n' => self.null().then_some(()),
            b't' | b'f' => self.boolean().map(drop),
            _ => self.number().map(drop),
        }
    }
}
