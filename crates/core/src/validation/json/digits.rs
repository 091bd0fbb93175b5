//! The digits of a number as they were written, without a box where they are few.

use std::fmt;
use std::ops::Deref;

/// As many as fit beside a length and a tag into the two words that a boxed text takes.
const SHORT: usize = 14;

/// A number's text: at most 14 bytes of it, any date among them, need no memory of their own.
#[derive(Clone, PartialEq, Eq)]
pub struct Digits(Written);

#[derive(Clone, PartialEq, Eq)]
enum Written {
    /// The first `len` bytes; the others are zero, so that the same text is the same value.
    Short { len: u8, bytes: [u8; SHORT] },
    /// Boxed twice, since a thin pointer is what keeps a JSON value at three words.
    Long(Box<Box<str>>),
}

impl From<&str> for Digits {
    fn from(text: &str) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(room), Ok(len)) => {
                room.copy_from_slice(text.as_bytes());
                Self(Written::Short { len, bytes })
            }
            _ => Self(Written::Long(Box::new(text.into()))),
        }
    }
}

impl Deref for Digits {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Written::Short { len, bytes } => bytes
                .get(..usize::from(*len))
                .and_then(|text| std::str::from_utf8(text).ok())
                .unwrap_or_default(),
            Written::Long(text) => text,
        }
    }
}

impl fmt::Debug for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::json::Json;

    #[test]
    fn digits_are_what_was_written_however_many() {
        for text in
            ["0", "-0", "1.50", "1800000000.125", "12345678901234", "123456789012345", &"9".repeat(300)]
        {
            assert_eq!(&*Digits::from(text), text);
            assert_eq!(Digits::from(text), Digits::from(text));
        }
        assert_ne!(Digits::from("1"), Digits::from("1.0"));
    }

    #[test]
    fn a_number_takes_no_more_room_than_any_other_value() {
        assert_eq!(size_of::<Json>(), 3 * size_of::<usize>());
    }
}
