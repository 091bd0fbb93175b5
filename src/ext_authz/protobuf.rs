//! Reads and writes the fields of protocol buffers messages (protobuf.dev, "Encoding"), without a type for each message:
//! a Check is read in its receive buffer, and its response is written into one buffer.

use bytes::Bytes;

/// A field of a message: its number and its value.
pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) value: Value<'a>,
}

/// The value of a field, by wire type. No field that is read has another type than `Length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A varint, or 32 or 64 bits.
    Number,
    /// A string, bytes or a message.
    Length(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The value of bytes or a message.
    ///
    /// # Errors
    /// It is a number.
    pub(super) fn bytes(self) -> Result<&'a [u8], NotFields> {
        match self {
            Value::Length(bytes) => Ok(bytes),
            Value::Number => Err(NotFields),
        }
    }

    /// The value of a string.
    ///
    /// # Errors
    /// It is a number, or not UTF-8.
    pub(super) fn text(self) -> Result<&'a str, NotFields> {
        std::str::from_utf8(self.bytes()?).map_err(|_| NotFields)
    }
}

/// What is left of a message.
pub(super) struct Fields<'a>(&'a [u8]);

/// The bytes are not fields of a message. Groups count as such: proto3 has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotFields;

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn read(&mut self) -> Option<Field<'a>> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| (1..=MAX_NUMBER).contains(number))?;
        let value = match u8::try_from(key & 7).ok()? {
            VARINT => {
                self.varint()?;
                Value::Number
            }
            FIXED_64 => {
                self.take(8)?;
                Value::Number
            }
            FIXED_32 => {
                self.take(4)?;
                Value::Number
            }
            LENGTH => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Length(self.take(length)?)
            }
            _ => return None,
        };
        Some(Field { number, value })
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (value, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(value)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has one bit.
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, NotFields>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read().ok_or(NotFields);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Wire types.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED_32: u8 = 5;

/// The largest field number.
const MAX_NUMBER: u32 = (1 << 29) - 1;

/// The most bytes of a varint.
const MAX_VARINT: usize = 10;

/// Writes a message from its last field to its first: the length of an inner message is then known when it is due, and
/// nothing is measured before or moved afterwards.
///
/// Every field is written, also with the default of its type.
pub(super) struct Writer {
    buffer: Vec<u8>,
    /// Where the written bytes begin.
    start: usize,
}

impl Writer {
    /// With room for this many bytes; it grows beyond them.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { buffer: vec![0; bytes], start: bytes }
    }

    /// The number of written bytes.
    pub(super) fn len(&self) -> usize {
        self.buffer.len().saturating_sub(self.start)
    }

    /// Everything that was written.
    pub(super) fn finish(self) -> Bytes {
        let start = self.start;
        let mut bytes = Bytes::from(self.buffer);
        bytes.split_off(start)
    }

    /// Writes these bytes before the others.
    pub(super) fn prepend(&mut self, bytes: &[u8]) {
        if self.start < bytes.len() {
            self.grow(bytes.len());
        }
        let start = self.start.saturating_sub(bytes.len());
        if let Some(room) = self.buffer.get_mut(start..self.start) {
            room.copy_from_slice(bytes);
            self.start = start;
        }
    }

    /// Makes room for this many bytes, and for as many as there are.
    fn grow(&mut self, bytes: usize) {
        let written = self.buffer.split_off(self.start);
        let start = bytes.saturating_add(self.buffer.len()).saturating_add(written.len());
        let mut buffer = Vec::with_capacity(start.saturating_add(written.len()));
        buffer.resize(start, 0);
        buffer.extend_from_slice(&written);
        *self = Self { buffer, start };
    }

    fn varint(&mut self, mut value: u64) {
        let mut bytes = [0; MAX_VARINT];
        let mut length = 0;
        for byte in &mut bytes {
            length += 1;
            // The mask makes it fit.
            *byte = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                break;
            }
            *byte |= 0x80;
        }
        self.prepend(bytes.get(..length).unwrap_or_default());
    }

    fn key(&mut self, number: u32, wire_type: u8) {
        self.varint(u64::from(number) << 3 | u64::from(wire_type));
    }

    /// An integer, enum or bool that is not negative.
    pub(super) fn number(&mut self, number: u32, value: u32) {
        self.varint(value.into());
        self.key(number, VARINT);
    }

    /// A double.
    pub(super) fn double(&mut self, number: u32, value: f64) {
        self.prepend(&value.to_le_bytes());
        self.key(number, FIXED_64);
    }

    /// A string, or bytes.
    pub(super) fn bytes(&mut self, number: u32, value: &[u8]) {
        self.prepend(value);
        self.varint(value.len() as u64);
        self.key(number, LENGTH);
    }

    /// A message, whose fields are written in reverse too.
    pub(super) fn message(&mut self, number: u32, write: impl FnOnce(&mut Self)) {
        let before = self.len();
        write(self);
        let length = self.len().saturating_sub(before);
        self.varint(length as u64);
        self.key(number, LENGTH);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::encoding::{DecodeContext, WireType, decode_key, encode_varint, skip_field};

    use super::*;

    /// The fields as prost reads them, `None` for what is invalid.
    fn read_by_prost(mut bytes: &[u8]) -> Option<Vec<(u32, Option<Vec<u8>>)>> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let (number, wire_type) = decode_key(&mut bytes).ok()?;
            if matches!(wire_type, WireType::StartGroup | WireType::EndGroup) {
                return None;
            }
            let before = bytes;
            skip_field(wire_type, number, &mut bytes, DecodeContext::default()).ok()?;
            let value = before.get(..before.len() - bytes.len())?;
            let value = (wire_type == WireType::LengthDelimited).then(|| {
                let mut value = value;
                prost::encoding::decode_varint(&mut value).expect("it was read before");
                value.to_vec()
            });
            fields.push((number, value));
        }
        Some(fields)
    }

    fn read(bytes: &[u8]) -> Option<Vec<(u32, Option<Vec<u8>>)>> {
        let fields = Fields::new(bytes).map(|field| {
            let Field { number, value } = field.ok()?;
            Some((number, if let Value::Length(value) = value { Some(value.to_vec()) } else { None }))
        });
        fields.collect()
    }

    #[test]
    fn varints_of_more_than_64_bits_and_invalid_keys_are_not_fields() {
        for (bytes, expected) in [
            (&[0x08, 0x96, 0x01][..], Some(vec![(1, None)])),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Some(vec![(1, None)])),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], None),
            (&[0x80; 11], None),
            // Field 0, a group, its end, and wire types that do not exist.
            (&[0x00, 0x00], None),
            (&[0x0b, 0x0c], None),
            (&[0x0c], None),
            (&[0x0e], None),
            (&[0x0f], None),
            // The largest field number, and one more.
            (&[0xf8, 0xff, 0xff, 0xff, 0x0f, 0x00], Some(vec![(MAX_NUMBER, None)])),
            (&[0x80, 0x80, 0x80, 0x80, 0x10, 0x00], None),
            // Values that end early.
            (&[0x0a, 0x02, 0x61], None),
            (&[0x09, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0x0d, 0, 0, 0], None),
        ] {
            assert_eq!(read(bytes), expected, "{bytes:x?}");
            assert_eq!(read_by_prost(bytes), expected, "prost: {bytes:x?}");
        }
    }

    #[test]
    fn a_writer_grows_and_writes_the_bytes_of_prost() {
        for capacity in [0, 1, 7, 64, 4096] {
            let mut writer = Writer::with_capacity(capacity);
            writer.double(3, 1.5);
            writer.message(2, |writer| {
                writer.bytes(7, &[b'x'; 300]);
                writer.number(1, 300);
                writer.bytes(1, b"");
            });
            writer.number(1, u32::MAX);
            let mut expected = vec![0x08];
            encode_varint(u32::MAX.into(), &mut expected);
            expected.extend([0x12, 0xb4, 0x02, 0x0a, 0x00, 0x08, 0xac, 0x02, 0x3a, 0xac, 0x02]);
            expected.extend([b'x'; 300]);
            expected.push(0x19);
            expected.extend(1.5f64.to_le_bytes());
            assert_eq!(writer.len(), expected.len());
            assert_eq!(writer.finish(), expected, "{capacity}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn bytes_are_fields_exactly_if_they_are_for_prost(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(read(&bytes), read_by_prost(&bytes));
        }

        #[test]
        fn what_is_written_is_read(fields in proptest::collection::vec((1..=MAX_NUMBER, ".{0,200}"), 0..20)) {
            let mut writer = Writer::with_capacity(16);
            for (number, value) in fields.iter().rev() {
                writer.bytes(*number, value.as_bytes());
            }
            let expected: Vec<_> =
                fields.iter().map(|(number, value)| (*number, Some(value.clone().into_bytes()))).collect();
            prop_assert_eq!(read(&writer.finish()), Some(expected));
        }
    }
}
