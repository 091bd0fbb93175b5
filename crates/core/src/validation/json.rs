//! Strict JSON: RFC 8259 without extensions and without repeated members.
//!
//! A document is parsed in one pass: a repeated member is an error at every depth (RFC 7519 §4, RFC 8725 §2.6),
//! numbers keep their digits, and limits on memory are enforced during parsing.

mod digits;
mod read;
mod shared;

use std::fmt;
use std::sync::Arc;

use ecow::EcoString;

pub use digits::Digits;
pub use shared::SharedValues;

/// A JSON value that owns its text. Clones are cheap. Texts of up to 15 bytes, as most names and many values of claims,
/// take no memory of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, with its original digits.
    Number(Digits),
    /// A string, unescaped.
    String(EcoString),
    /// An array.
    Array(Arc<[Json]>),
    /// An object, its members in their original order.
    Object(Arc<[(EcoString, Json)]>),
}

/// Limits on one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonLimits {
    /// The most members and elements: every member of an object and every element of an array counts as one, at
    /// every depth. Default 4,096.
    pub values: usize,
    /// The deepest nesting of objects and arrays, the outermost included. Default 16.
    pub depth: usize,
}

impl Default for JsonLimits {
    fn default() -> Self {
        Self { values: 4_096, depth: 16 }
    }
}

/// Why a document cannot be parsed. Contains none of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JsonError {
    /// Not UTF-8, not one JSON value, or an object with a repeated member.
    NotJson,
    /// More values than [`JsonLimits::values`].
    TooManyValues,
    /// Nested deeper than [`JsonLimits::depth`].
    TooDeep,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JsonError::NotJson => "not JSON, or with a repeated member",
            JsonError::TooManyValues => "too many members and values",
            JsonError::TooDeep => "too deep",
        })
    }
}

impl std::error::Error for JsonError {}

impl Json {
    /// Parses one document in time and space linear in its length, except for the comparison of member names, which
    /// sorts them.
    ///
    /// # Errors
    /// The first [`JsonError`] in the document.
    pub fn parse(bytes: &[u8], limits: &JsonLimits) -> Result<Self, JsonError> {
        read::read(bytes, limits)
    }

    /// The member of an object, or the element of an array by its decimal index without leading zeros: one step of
    /// a JSON Pointer (RFC 6901 §4).
    pub fn step(&self, segment: &str) -> Option<&Json> {
        match self {
            Json::Object(_) => self.member(segment),
            Json::Array(elements) => {
                let canonical = segment.bytes().all(|b| b.is_ascii_digit())
                    && (segment == "0" || !segment.starts_with('0'));
                if canonical { elements.get(segment.parse::<usize>().ok()?) } else { None }
            }
            _ => None,
        }
    }

    /// The member of an object.
    pub fn member(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(members) => {
                members.iter().find(|(member, _)| &**member == name).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is empty: null, an empty string, an empty array or object.
    pub fn is_empty(&self) -> bool {
        match self {
            Json::Null => true,
            Json::String(text) => text.is_empty(),
            Json::Array(elements) => elements.is_empty(),
            Json::Object(members) => members.is_empty(),
            Json::Bool(_) | Json::Number(_) => false,
        }
    }

    /// The memory that the value takes, its own included, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let text = |text: &EcoString| if text.len() > EcoString::INLINE_LIMIT { text.len() } else { 0 };
        let inside = match self {
            Json::Null | Json::Bool(_) => 0,
            Json::Number(digits) => digits.len(),
            Json::String(value) => text(value),
            Json::Array(elements) => elements.iter().map(Json::memory).sum(),
            Json::Object(members) => {
                members.iter().map(|(name, value)| size_of::<EcoString>() + text(name) + value.memory()).sum()
            }
        };
        inside.saturating_add(size_of::<Self>())
    }

    /// The value without insignificant white space, with the original digits of numbers.
    pub fn to_compact(&self) -> String {
        let mut out = String::new();
        self.write_compact(&mut out);
        out
    }

    fn write_compact(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(true) => out.push_str("true"),
            Json::Bool(false) => out.push_str("false"),
            Json::Number(digits) => out.push_str(digits),
            Json::String(text) => write_string(text, out),
            Json::Array(elements) => {
                out.push('[');
                for (i, element) in elements.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    element.write_compact(out);
                }
                out.push(']');
            }
            Json::Object(members) => {
                out.push('{');
                for (i, (name, value)) in members.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write_string(name, out);
                    out.push(':');
                    value.write_compact(out);
                }
                out.push('}');
            }
        }
    }
}

fn write_string(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}
