//! The tokens of JSON: white space, strings, numbers and literals (RFC 8259 §2, §3, §6, §7).

use ecow::EcoString;

use super::super::JsonError;

/// A text and the current position.
pub(super) struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The next byte that is not white space; `None` at the end.
    pub(super) fn after_space(&mut self) -> Option<u8> {
        self.skip_space();
        self.next()
    }

    /// Consumes the next byte after white space if it is this one.
    pub(super) fn consume_if(&mut self, byte: u8) -> bool {
        self.skip_space();
        let matches = self.peek() == Some(byte);
        self.at += usize::from(matches);
        matches
    }

    /// Consumes the rest of a literal whose first letter has been consumed.
    pub(super) fn literal<T>(&mut self, rest: &str, value: T) -> Result<T, JsonError> {
        let end = self.at + rest.len();
        if self.text.as_bytes().get(self.at..end) != Some(rest.as_bytes()) {
            return Err(JsonError::NotJson);
        }
        self.at = end;
        Ok(value)
    }

    /// A number whose first byte, a digit or a minus, has been consumed.
    pub(super) fn number(&mut self, first: u8) -> Result<&'a str, JsonError> {
        let start = self.at - 1;
        let digit = if first == b'-' { self.next() } else { Some(first) };
        match digit {
            Some(b'0') => {}
            Some(b'1'..=b'9') => self.skip_digits(),
            _ => return Err(JsonError::NotJson),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        self.text.get(start..self.at).ok_or(JsonError::NotJson)
    }

    fn skip_digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    /// Consumes at least one digit.
    fn digits(&mut self) -> Result<(), JsonError> {
        match self.next() {
            Some(b'0'..=b'9') => {
                self.skip_digits();
                Ok(())
            }
            _ => Err(JsonError::NotJson),
        }
    }

    /// A string, unescaped, whose opening quotation mark has been consumed.
    pub(super) fn string(&mut self) -> Result<EcoString, JsonError> {
        let unescaped = self.unescaped()?;
        match self.next() {
            Some(b'"') => return Ok(unescaped.into()),
            Some(b'\\') => {}
            _ => return Err(JsonError::NotJson),
        }
        let mut text = String::from(unescaped);
        loop {
            text.push(self.escaped()?);
            text.push_str(self.unescaped()?);
            match self.next() {
                Some(b'"') => return Ok(text.into()),
                Some(b'\\') => {}
                _ => return Err(JsonError::NotJson),
            }
        }
    }

    /// The text before the next quotation mark, backslash or control character.
    fn unescaped(&mut self) -> Result<&'a str, JsonError> {
        let rest = self.text.get(self.at..).ok_or(JsonError::NotJson)?;
        let stops = |byte: u8| matches!(byte, b'"' | b'\\' | 0..=0x1f);
        let length = rest.bytes().position(stops).ok_or(JsonError::NotJson)?;
        self.at += length;
        rest.get(..length).ok_or(JsonError::NotJson)
    }

    /// The character of an escape whose backslash has been consumed.
    fn escaped(&mut self) -> Result<char, JsonError> {
        match self.next() {
            Some(same @ (b'"' | b'\\' | b'/')) => Ok(char::from(same)),
            Some(b'b') => Ok('\u{8}'),
            Some(b'f') => Ok('\u{c}'),
            Some(b'n') => Ok('\n'),
            Some(b'r') => Ok('\r'),
            Some(b't') => Ok('\t'),
            Some(b'u') => self.unicode_escape(),
            _ => Err(JsonError::NotJson),
        }
    }

    /// The character of `\uXXXX`, or of a pair of surrogates.
    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let first = self.four_digits()?;
        let units = if matches!(first, 0xd800..=0xdbff) {
            self.literal("\\u", ())?;
            [first, self.four_digits()?]
        } else {
            [first, 0]
        };
        // The second unit of a pair is decoded with the first; without a pair, its zero is never reached.
        char::decode_utf16(units).next().and_then(Result::ok).ok_or(JsonError::NotJson)
    }

    fn four_digits(&mut self) -> Result<u16, JsonError> {
        (0..4).try_fold(0, |number, _| {
            let digit = self.next().and_then(|byte| char::from(byte).to_digit(16));
            let digit = digit.and_then(|digit| u16::try_from(digit).ok()).ok_or(JsonError::NotJson)?;
            Ok(number << 4 | digit)
        })
    }
}
