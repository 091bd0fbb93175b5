//! The digits of a number, stored inline if there are few.

use std::fmt;
use std::ops::Deref;

/// As many as fit, with a length and a tag, into the two words of a boxed text.
const INLINE_LEN: usize = 14;

/// The text of a number: up to 14 bytes, enough for any date, need no allocation.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Digits(Repr);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    /// The first `len` bytes; the others are zero, so that equal texts are equal values.
    Short { len: u8, bytes: [u8; INLINE_LEN] },
    /// Boxed twice, since a thin pointer keeps a JSON value at three words.
    Long(Box<Box<str>>),
}

impl From<&str> for Digits {
    fn from(text: &str) -> Self {
        let mut bytes = [0; INLINE_LEN];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(target), Ok(len)) => {
                target.copy_from_slice(text.as_bytes());
                Self(Repr::Short { len, bytes })
            }
            _ => Self(Repr::Long(Box::new(text.into()))),
        }
    }
}

impl Deref for Digits {
    type Target = str;

    fn deref(&self) -> &str {
        match &self.0 {
            Repr::Short { len, bytes } => bytes
                .get(..usize::from(*len))
                .and_then(|text| std::str::from_utf8(text).ok())
                .unwrap_or_default(),
            Repr::Long(text) => text,
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
    fn digits_keep_the_original_text_of_any_length() {
        for text in
            ["0", "-0", "1.50", "1800000000.125", "12345678901234", "123456789012345", &"9".repeat(300)]
        {
            assert_eq!(&*Digits::from(text), text);
            assert_eq!(Digits::from(text), Digits::from(text));
        }
        assert_ne!(Digits::from("1"), Digits::from("1.0"));
    }

    #[test]
    fn a_number_takes_no_more_memory_than_any_other_value() {
        assert_eq!(size_of::<Json>(), 3 * size_of::<usize>());
    }
}
