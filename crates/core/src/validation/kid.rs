//! Key identifiers.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longer values are refused: no key has one, and no token may name one.
const MAX_BYTES: usize = 1_024;

/// The `kid` of a key (RFC 7517 §4.5) or of a token (RFC 7515 §4.1.4); at most 1024 bytes. The sender of a token
/// chooses its value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Kid(Arc<str>);

/// A `kid` of more than 1024 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KidTooLong;

impl fmt::Display for KidTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`kid` is longer than {MAX_BYTES} bytes")
    }
}

impl std::error::Error for KidTooLong {}

impl Kid {
    /// The exact text.
    ///
    /// # Errors
    /// It is too long.
    pub fn new(text: &str) -> Result<Self, KidTooLong> {
        if text.len() <= MAX_BYTES { Ok(Self(text.into())) } else { Err(KidTooLong) }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Kid {
    type Error = KidTooLong;

    fn try_from(text: String) -> Result<Self, KidTooLong> {
        Self::new(&text)
    }
}

impl From<Kid> for String {
    fn from(kid: Kid) -> Self {
        kid.0.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kid_may_be_any_text_that_is_not_too_long() {
        for text in ["", " ", "ключ\n", &"k".repeat(MAX_BYTES)] {
            assert_eq!(Kid::new(text).expect("short enough").as_str(), text);
        }
        assert_eq!(Kid::new(&"k".repeat(MAX_BYTES + 1)), Err(KidTooLong));
    }
}
