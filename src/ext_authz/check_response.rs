//! Writes a CheckResponse, as the length-prefixed message of gRPC.
//!
//! # Architecture invariant
//! Every response sets `status`, because Envoy treats an unset one as OK. Responses are written in [`allow`] and [`deny`]
//! only.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::protobuf::Writer;
use crate::authorizer::{Decided, DecisionId};
use crate::identity::UpstreamChanges;
use crate::validation::json::Json;
use crate::verdict::DenialResponse;

/// The capacity for everything but header values: claim headers, metadata and lengths of a usual decision.
const CAPACITY: usize = 1024;

/// How deep the arrays and objects of a claim are nested in the metadata. Three messages are nested for each, in seven
/// others, and readers of protocol buffers accept 100.
const MAX_NESTING: usize = 24;

/// Field numbers and enum values (envoy/service/auth/v3/external_auth.proto, envoy/config/core/v3/base.proto,
/// envoy/type/v3/http_status.proto, google/rpc/status.proto).
mod number {
    pub(super) const STATUS: u32 = 1;
    pub(super) const DENIED_RESPONSE: u32 = 2;
    pub(super) const OK_RESPONSE: u32 = 3;
    pub(super) const DYNAMIC_METADATA: u32 = 4;

    pub(super) const STATUS_CODE: u32 = 1;
    pub(super) const STATUS_MESSAGE: u32 = 2;

    pub(super) const HTTP_STATUS_CODE: u32 = 1;

    pub(super) const DENIED_STATUS: u32 = 1;
    pub(super) const DENIED_HEADERS: u32 = 2;
    pub(super) const DENIED_BODY: u32 = 3;

    pub(super) const OK_HEADERS: u32 = 2;
    pub(super) const OK_HEADERS_TO_REMOVE: u32 = 5;
    pub(super) const OK_QUERY_PARAMETERS_TO_REMOVE: u32 = 8;

    pub(super) const OPTION_HEADER: u32 = 1;
    pub(super) const OPTION_APPEND_ACTION: u32 = 3;
    pub(super) const OVERWRITE_IF_EXISTS_OR_ADD: u32 = 2;

    /// Of a HeaderValue, and of an entry of a map.
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
}

/// Field numbers of google/protobuf/struct.proto.
mod value {
    pub(super) const FIELDS: u32 = 1;
    pub(super) const VALUES: u32 = 1;
    pub(super) const NULL: u32 = 1;
    pub(super) const NUMBER: u32 = 2;
    pub(super) const STRING: u32 = 3;
    pub(super) const BOOL: u32 = 4;
    pub(super) const STRUCT: u32 = 5;
    pub(super) const LIST: u32 = 6;
}

/// An allow with these changes of the request.
pub(super) fn allow(changes: &UpstreamChanges, decided: &Decided<'_>) -> Bytes {
    let values: usize = changes.set().map(|(_, value)| value.len()).sum();
    let mut writer = Writer::with_capacity(CAPACITY.saturating_add(values));
    writer.message(number::DYNAMIC_METADATA, |writer| metadata(writer, decided));
    writer.message(number::OK_RESPONSE, |writer| {
        for parameter in changes.remove_query.iter().rev() {
            writer.bytes(number::OK_QUERY_PARAMETERS_TO_REMOVE, parameter.as_bytes());
        }
        for header in changes.remove.iter().rev() {
            writer.bytes(number::OK_HEADERS_TO_REMOVE, header.as_str().as_bytes());
        }
        headers(writer, number::OK_HEADERS, changes.set());
    });
    writer.message(number::STATUS, |writer| writer.number(number::STATUS_CODE, tonic::Code::Ok as u32));
    with_prefix(writer)
}

/// A denial.
pub(super) fn deny(denial: &DenialResponse, decided: &Decided<'_>) -> Bytes {
    let mut writer = Writer::with_capacity(CAPACITY.saturating_add(denial.body.len()));
    writer.message(number::DYNAMIC_METADATA, |writer| metadata(writer, decided));
    writer.message(number::DENIED_RESPONSE, |writer| {
        writer.bytes(number::DENIED_BODY, denial.body.as_bytes());
        let pairs = denial.headers.iter().map(|(name, value)| (name, value));
        headers(writer, number::DENIED_HEADERS, pairs);
        writer.message(number::DENIED_STATUS, |writer| {
            writer.number(number::HTTP_STATUS_CODE, denial.status.into());
        });
    });
    writer.message(number::STATUS, |writer| {
        writer.bytes(number::STATUS_MESSAGE, denial.description.as_bytes());
        writer.number(number::STATUS_CODE, denial.kind.grpc_code().unsigned_abs());
    });
    with_prefix(writer)
}

/// Prepends the flag of an uncompressed message and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
fn with_prefix(mut writer: Writer) -> Bytes {
    // A response is made from a request of at most `limits.message_bytes`, 1 GiB at most.
    let length = u32::try_from(writer.len()).unwrap_or(u32::MAX);
    writer.prepend(&length.to_be_bytes());
    writer.prepend(&[0]);
    writer.finish()
}

/// Headers that replace the client's on every version of Envoy. `append` stays unset, because versions before 2026 read
/// only that field and later ones read an unset pair as "append".
fn headers<'a>(
    writer: &mut Writer,
    field: u32,
    headers: impl DoubleEndedIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) {
    for (name, header) in headers.rev() {
        // Lossless, because every value was made from text.
        let text = String::from_utf8_lossy(header.as_bytes());
        writer.message(field, |writer| {
            writer.number(number::OPTION_APPEND_ACTION, number::OVERWRITE_IF_EXISTS_OR_ADD);
            writer.message(number::OPTION_HEADER, |writer| {
                writer.bytes(number::VALUE, text.as_bytes());
                writer.bytes(number::KEY, name.as_str().as_bytes());
            });
        });
    }
}

/// What the proxy's log and later filters learn of a decision.
fn metadata(writer: &mut Writer, decided: &Decided<'_>) {
    let Decided { id, decision } = decided;
    let record = &decision.record;
    let named = [
        ("subject", decision.subject()),
        ("rule", record.rule().map(|rule| &*rule.name)),
        ("reason", Some(decision.verdict.reason().as_str())),
        ("provider", record.provider().map(|provider| &*provider.name)),
    ];
    for (name, text) in named {
        if let Some(text) = text {
            entry(writer, name, |writer| writer.bytes(value::STRING, text.as_bytes()));
        }
    }
    entry(writer, "decision_id", |writer| {
        let mut text = [0; DecisionId::MAX_BYTES];
        writer.bytes(value::STRING, id.text(&mut text).as_bytes());
    });
    let mut claims = record.shared_claims().peekable();
    if claims.peek().is_some() {
        entry(writer, "claims", |writer| {
            writer.message(value::STRUCT, |writer| {
                for (path, claim) in claims {
                    entry(writer, &path.to_string(), |writer| json(writer, claim, MAX_NESTING));
                }
            });
        });
    }
}

/// A field of a Struct.
fn entry(writer: &mut Writer, name: &str, write: impl FnOnce(&mut Writer)) {
    writer.message(value::FIELDS, |writer| {
        writer.message(number::VALUE, write);
        writer.bytes(number::KEY, name.as_bytes());
    });
}

/// The kind of a Value. A number that a double cannot represent exactly becomes a string, and so does the JSON of arrays
/// and objects that are nested deeper than `nesting`.
fn json(writer: &mut Writer, claim: &Json, nesting: usize) {
    /// Integers below this are exact (IEEE 754 binary64).
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    match claim {
        Json::Null => writer.number(value::NULL, 0),
        Json::Bool(truth) => writer.number(value::BOOL, u32::from(*truth)),
        Json::Number(digits) => match digits.parse::<f64>() {
            Ok(number) if number.abs() < MAX_EXACT => writer.double(value::NUMBER, number),
            _ => writer.bytes(value::STRING, digits.as_bytes()),
        },
        Json::String(text) => writer.bytes(value::STRING, text.as_bytes()),
        Json::Array(_) | Json::Object(_) if nesting == 0 => {
            writer.bytes(value::STRING, claim.to_compact().as_bytes());
        }
        Json::Array(members) => writer.message(value::LIST, |writer| {
            for member in members.iter().rev() {
                writer.message(value::VALUES, |writer| json(writer, member, nesting.saturating_sub(1)));
            }
        }),
        Json::Object(members) => writer.message(value::STRUCT, |writer| {
            for (name, member) in members.iter().rev() {
                entry(writer, name, |writer| json(writer, member, nesting.saturating_sub(1)));
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message as _;
    use prost_types::value::Kind;
    use prost_types::{ListValue, Struct, Value};

    use super::*;
    use crate::validation::json::JsonLimits;

    /// The value that prost reads of a claim.
    fn value_of(text: &str) -> Option<Kind> {
        let claim =
            Json::parse(text.as_bytes(), &JsonLimits::default()).expect("the claim of this test is JSON");
        let mut writer = Writer::with_capacity(0);
        json(&mut writer, &claim, 3);
        Value::decode(writer.finish()).expect("a Value").kind
    }

    #[test]
    fn a_claim_is_the_value_that_its_json_is() {
        let text = |text: &str| Kind::StringValue(text.to_owned());
        let list = |kinds: Vec<Kind>| {
            Kind::ListValue(ListValue {
                values: kinds.into_iter().map(|kind| Value { kind: Some(kind) }).collect(),
            })
        };
        let object = |members: Vec<(&str, Kind)>| {
            let members =
                members.into_iter().map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }));
            Kind::StructValue(Struct { fields: members.collect::<BTreeMap<_, _>>() })
        };
        for (claim, expected) in [
            ("null", Kind::NullValue(0)),
            ("true", Kind::BoolValue(true)),
            ("false", Kind::BoolValue(false)),
            ("0", Kind::NumberValue(0.0)),
            ("-1.5e3", Kind::NumberValue(-1500.0)),
            ("9007199254740991", Kind::NumberValue(9_007_199_254_740_991.0)),
            ("9007199254740992", text("9007199254740992")),
            ("1e999", text("1e999")),
            (r#""""#, text("")),
            (r#""Zo\u00eb""#, text("Zoë")),
            ("[]", list(vec![])),
            (
                r#"[1,"a",[null]]"#,
                list(vec![Kind::NumberValue(1.0), text("a"), list(vec![Kind::NullValue(0)])]),
            ),
            ("{}", object(vec![])),
            ("[[[1]]]", list(vec![list(vec![list(vec![Kind::NumberValue(1.0)])])])),
            (r#"[[[[1,"a"]]]]"#, list(vec![list(vec![list(vec![text(r#"[1,"a"]"#)])])])),
            (r#"[[[{"a":null}]]]"#, list(vec![list(vec![list(vec![text(r#"{"a":null}"#)])])])),
            (
                r#"{"":"e","b":{"c":true}}"#,
                object(vec![("", text("e")), ("b", object(vec![("c", Kind::BoolValue(true))]))]),
            ),
        ] {
            assert_eq!(value_of(claim), Some(expected), "{claim}");
        }
    }

    #[test]
    fn a_message_has_the_flag_of_no_compression_and_its_length_before_it() {
        let mut writer = Writer::with_capacity(0);
        writer.bytes(1, &[b'x'; 300]);
        let message = with_prefix(writer);
        assert_eq!(message.get(..5), Some(&[0, 0, 0, 1, 47][..]), "{} bytes", message.len());
        assert_eq!(message.len(), 308);
    }
}
