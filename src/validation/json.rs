//! JSON as this service trusts it: RFC 8259 to the letter, and no two members of one name.
//!
//! `serde_json` does the reading. What it does not do by itself is done here: a repeated member is
//! an error at every depth (RFC 7519 §4, RFC 8725 §2.6), numbers keep the digits they were written
//! with, and depth is bounded.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Deeper documents are refused. The keys and tokens of real issuers stay below ten.
const MAX_DEPTH: usize = 32;

/// Below this many members a comparison each is cheaper than a hash table.
const LINEAR_MEMBERS: usize = 16;

/// A JSON value that owns its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, with the digits it was written with.
    Number(Box<str>),
    /// A string, unescaped.
    String(Box<str>),
    /// An array.
    Array(Vec<Json>),
    /// An object, its members in the order in which they were written.
    Object(Vec<(Box<str>, Json)>),
}

/// A document is not JSON, repeats a member, or is too deep. Holds none of the document's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson;

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not JSON, or with a repeated member, or too deep")
    }
}

impl std::error::Error for NotJson {}

impl Json {
    /// Reads one document.
    ///
    /// # Errors
    /// The bytes are not UTF-8 or not one JSON value, a member stands twice in an object, or the
    /// value is nested more than 32 levels deep.
    pub fn parse(bytes: &[u8]) -> Result<Self, NotJson> {
        let text = std::str::from_utf8(bytes).map_err(|_| NotJson)?;
        let raw: &RawValue = serde_json::from_str(text).map_err(|_| NotJson)?;
        read(raw, MAX_DEPTH).map_err(|_| NotJson)
    }

    /// The member of an object, or the element of an array by its decimal index without leading
    /// zeros: one step of a JSON Pointer (RFC 6901 §4).
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

    /// Whether there is nothing in it: null, an empty string, an empty array or object.
    pub fn is_empty(&self) -> bool {
        match self {
            Json::Null => true,
            Json::String(text) => text.is_empty(),
            Json::Array(elements) => elements.is_empty(),
            Json::Object(members) => members.is_empty(),
            Json::Bool(_) | Json::Number(_) => false,
        }
    }

    /// The value without insignificant white space, numbers as they were written.
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

/// Reads what `serde_json` has already found to be one well-formed value. Members are taken as raw
/// text first, because only the raw text still has a number's own digits; the cost is one more
/// scan for each level of depth, which is why depth is bounded.
fn read(raw: &RawValue, depth: usize) -> Result<Json, serde_json::Error> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{' | b'[') if depth == 0 => Err(serde_json::Error::custom("too deep")),
        Some(b'{') => Members(depth).deserialize(&mut serde_json::Deserializer::from_str(text)),
        Some(b'[') => Elements(depth).deserialize(&mut serde_json::Deserializer::from_str(text)),
        Some(b'"') => {
            let text: Cow<'_, str> = serde_json::from_str(text)?;
            Ok(Json::String(text.into()))
        }
        Some(b't') => Ok(Json::Bool(true)),
        Some(b'f') => Ok(Json::Bool(false)),
        Some(b'n') => Ok(Json::Null),
        _ => Ok(Json::Number(text.into())),
    }
}

struct Members(usize);

impl<'de> DeserializeSeed<'de> for Members {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members: Vec<(Box<str>, Json)> = Vec::new();
        let mut names: HashSet<Box<str>> = HashSet::new();
        while let Some((name, raw)) = map.next_entry::<Box<str>, &RawValue>()? {
            let repeated = if members.len() < LINEAR_MEMBERS {
                members.iter().any(|(member, _)| *member == name)
            } else {
                if names.is_empty() {
                    names.extend(members.iter().map(|(member, _)| member.clone()));
                }
                !names.insert(name.clone())
            };
            if repeated {
                return Err(A::Error::custom("a repeated member"));
            }
            members.push((name, read(raw, self.0 - 1).map_err(A::Error::custom)?));
        }
        Ok(Json::Object(members))
    }
}

struct Elements(usize);

impl<'de> DeserializeSeed<'de> for Elements {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut elements = Vec::new();
        while let Some(raw) = seq.next_element::<&RawValue>()? {
            elements.push(read(raw, self.0 - 1).map_err(A::Error::custom)?);
        }
        Ok(Json::Array(elements))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_comes_out_as_it_was_written() {
        for document in [
            "null",
            "true",
            "-0",
            "1.50",
            "1E+2",
            "123456789012345678901234567890",
            r#""a\"b\\c""#,
            "[]",
            "{}",
            r#"{"a":[1,{"b":null}],"":"x"}"#,
        ] {
            let json = Json::parse(document.as_bytes()).expect("the document is JSON");
            assert_eq!(json.to_compact(), document);
        }
        let spaced = Json::parse(b" { \"a\" : [ 1 , 2 ] }\r\n").expect("the document is JSON");
        assert_eq!(spaced.to_compact(), r#"{"a":[1,2]}"#);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        let deep = "[".repeat(10_000);
        let balanced = format!("{}{}", "[".repeat(33), "]".repeat(33));
        for document in [
            "",
            " ",
            "{",
            "{}x",
            "{}{}",
            "[1,]",
            "{\"a\":1,}",
            "NaN",
            "Infinity",
            "-Infinity",
            "+1",
            "01",
            "0x10",
            ".5",
            "1.",
            "1e",
            "'a'",
            "{a:1}",
            "\u{feff}{}",
            "// c\n{}",
            "\"\u{1}\"",
            r#""\ud800""#,
            r#""\x""#,
            "tru",
            &deep,
            &balanced,
        ] {
            assert_eq!(Json::parse(document.as_bytes()), Err(NotJson), "{document:.40}");
        }
        assert_eq!(Json::parse(b"\"\xff\""), Err(NotJson));
        assert_eq!(Json::parse("\u{0}".as_bytes()), Err(NotJson));
    }

    #[test]
    fn a_repeated_member_is_refused_at_every_depth_and_spelling() {
        let mut many: Vec<String> = (0..100).map(|i| format!("\"m{i}\":{i}")).collect();
        many.push("\"m3\":0".to_owned());
        for document in [
            r#"{"a":1,"a":1}"#.to_owned(),
            r#"{"a":1,"\u0061":2}"#.to_owned(),
            r#"{"x":[{"b":{"a":1,"a":2}}]}"#.to_owned(),
            format!("{{{}}}", many.join(",")),
        ] {
            assert_eq!(Json::parse(document.as_bytes()), Err(NotJson), "{document:.40}");
        }
        many.pop();
        assert!(Json::parse(format!("{{{}}}", many.join(",")).as_bytes()).is_ok());
    }
}
