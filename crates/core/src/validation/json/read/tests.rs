//! Tests the parser with examples, and against `serde_json` with generated documents.

use std::collections::HashSet;
use std::fmt;

use proptest::prelude::*;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::validation::json::{Json, JsonError, JsonLimits};

const LARGE_LIMITS: JsonLimits = JsonLimits { values: 100_000, depth: 64 };

fn read(bytes: &[u8]) -> Result<Json, JsonError> {
    Json::parse(bytes, &LARGE_LIMITS)
}

#[test]
fn a_document_is_written_as_it_was_read() {
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
        let json = read(document.as_bytes()).expect("the document is JSON");
        assert_eq!(json.to_compact(), document);
    }
    let spaced = read(b" { \"a\" : [ 1 , 2 ] }\r\n").expect("the document is JSON");
    assert_eq!(spaced.to_compact(), r#"{"a":[1,2]}"#);
}

#[test]
fn what_is_not_json_is_refused() {
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
        "\"\u{1f}\"",
        r#""\ud83dxxde00""#,
        r#""\ud83d\n""#,
        r#""\ud800""#,
        r#""\x""#,
        "tru",
    ] {
        assert_eq!(read(document.as_bytes()), Err(JsonError::NotJson), "{document:.40}");
    }
    assert_eq!(read(b"\"\xff\""), Err(JsonError::NotJson));
    assert_eq!(read("\u{0}".as_bytes()), Err(JsonError::NotJson));
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
        assert_eq!(read(document.as_bytes()), Err(JsonError::NotJson), "{document:.40}");
    }
    many.pop();
    assert!(read(format!("{{{}}}", many.join(",")).as_bytes()).is_ok());
}

#[test]
fn nesting_is_limited() {
    let limits = JsonLimits { depth: 16, ..LARGE_LIMITS };
    for (opening, closing) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        let deep = |depth: usize| {
            let times = depth / opening.matches(['[', '{']).count();
            format!("{}1{}", opening.repeat(times), closing.repeat(times))
        };
        assert!(Json::parse(deep(16).as_bytes(), &limits).is_ok(), "{opening}");
        assert_eq!(Json::parse(deep(18).as_bytes(), &limits), Err(JsonError::TooDeep), "{opening}");
    }
    assert_eq!(Json::parse("[".repeat(10_000).as_bytes(), &limits), Err(JsonError::TooDeep));
    assert_eq!(Json::parse("[".repeat(17).as_bytes(), &limits), Err(JsonError::TooDeep));
    assert!(Json::parse(b"1", &JsonLimits { depth: 0, values: 0 }).is_ok());
}

#[test]
fn members_and_elements_count_at_every_depth() {
    let limits = |values| JsonLimits { values, ..LARGE_LIMITS };
    for (document, values) in [
        ("1", 0),
        ("[]", 0),
        ("[1]", 1),
        ("{\"a\":1,\"b\":null}", 2),
        ("[[],[],{}]", 3),
        ("{\"a\":[1,{\"b\":[true]}],\"c\":\"\"}", 6),
    ] {
        assert!(Json::parse(document.as_bytes(), &limits(values)).is_ok(), "{document}");
        if let Some(fewer) = values.checked_sub(1) {
            let refused = Json::parse(document.as_bytes(), &limits(fewer));
            assert_eq!(refused, Err(JsonError::TooManyValues), "{document}");
        }
    }
    // The limit is checked during parsing: text after it is not parsed.
    assert_eq!(Json::parse(b"[1,1,1,?", &limits(2)), Err(JsonError::TooManyValues));
}

/// The result of `serde_json` for the same bytes: it reads each level as raw text first, so that numbers keep their
/// digits, and then parses that.
fn parsed_by_serde(bytes: &[u8]) -> Option<Json> {
    let text = std::str::from_utf8(bytes).ok()?;
    level(serde_json::from_str(text).ok()?).ok()
}

fn level(raw: &RawValue) -> Result<Json, serde_json::Error> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{' | b'[') => Level.deserialize(&mut serde_json::Deserializer::from_str(text)),
        Some(b'"') => Ok(Json::String(serde_json::from_str::<String>(text)?.into())),
        Some(b't') => Ok(Json::Bool(true)),
        Some(b'f') => Ok(Json::Bool(false)),
        Some(b'n') => Ok(Json::Null),
        _ => Ok(Json::Number(text.into())),
    }
}

struct Level;

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array or an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let (mut members, mut names) = (Vec::new(), HashSet::new());
        while let Some((name, raw)) = map.next_entry::<String, &RawValue>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom("a repeated member"));
            }
            members.push((name.into(), level(raw).map_err(A::Error::custom)?));
        }
        Ok(Json::Object(members.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut elements = Vec::new();
        while let Some(raw) = seq.next_element::<&RawValue>()? {
            elements.push(level(raw).map_err(A::Error::custom)?);
        }
        Ok(Json::Array(elements.into()))
    }
}

/// Text that is nearly JSON: tokens in any order, complete and broken ones.
fn token_sequence() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => prop::sample::select(vec!["[", "]", "{", "}", ",", ":", "\"a\":", "\"\\u0061\":", "1", "\"b\"", "null"]),
        1 => prop::sample::select(vec![
            "true", "false", "tru", "nulll", "-", "0", "01", "-0", "1.", ".5", "1.5", "1e", "1e5", "1E+5", "1e-", "+1",
            "\"", "\\", "\"\\n\"", "\"\\x\"", "\"\\ud83d\\ude00\"", "\"\\ud83d\"", "\"\\ude00\\ud83d\"",
            "\"\\u00e9\"", "\"\\ud83d\\u0061\"", "\"\u{1}\"", "\"\u{7f}\"", "\u{feff}", "\u{a0}", " ", "\t", "\r",
            "\n", "\u{c}", "\u{b}", "//", "'a'", "é", "\u{0}", "NaN", "12345678901234567890123",
        ]),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// JSON with white space and frequently repeated member names.
fn document() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|truth| truth.to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>()
            .prop_filter("no JSON", |number| number.is_finite())
            .prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| serde_json::Value::from(text).to_string()),
    ];
    scalar.prop_recursive(6, 64, 24, |inner| {
        let name = prop_oneof![
            any::<u8>().prop_map(|number| format!("\"{number}\"")),
            Just("\"\\u0031\"".to_owned()),
            any::<String>().prop_map(|name| serde_json::Value::from(name).to_string()),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..24).prop_map(|all| format!("[{}]", all.join(" ,\n"))),
            prop::collection::vec((name, inner), 0..24).prop_map(|all| {
                let members = all.iter().map(|(name, value)| format!("{name}\t: {value}"));
                format!("{{ {} }}", members.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

#[track_caller]
fn agree(bytes: &[u8]) -> Result<(), TestCaseError> {
    prop_assert_eq!(read(bytes).ok(), parsed_by_serde(bytes), "{:?}", String::from_utf8_lossy(bytes));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3_000) })]

    #[test]
    fn what_is_nearly_json_is_read_as_serde_json_reads_it(text in token_sequence()) {
        agree(text.as_bytes())?;
        agree(format!("[{text}]").as_bytes())?;
        agree(format!("{{\"z\":{text}}}").as_bytes())?;
    }

    #[test]
    fn any_bytes_are_read_as_serde_json_reads_them(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
        agree(&bytes)?;
        agree(&[b"\"", &*bytes, b"\""].concat())?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn documents_and_corrupted_documents_are_read_as_serde_json_reads_them(
        text in document(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        agree(text.as_bytes())?;
        let mut broken = text.clone().into_bytes();
        let at = at.index(broken.len());
        broken[at] = byte;
        agree(&broken)?;
        agree(&text.as_bytes()[..at])?;
        if let Ok(json) = read(text.as_bytes()) {
            prop_assert_eq!(read(json.to_compact().as_bytes()), Ok(json));
        }
    }
}
