//! The headers for the upstream that are made from claims.

use std::collections::HashSet;

use http::HeaderName;
use serde_json::json;

use portcullis_core::validation::provider::{ClaimHeader, ClaimPath, Encoding};

use super::cursor::{Cursor, Mapping, Read, all};
use super::forms::{Choice, Sub, Text, shown, text_schema};
use super::section::{Form, FormDescription, Section, section};
use super::token_sources::header_name;
use super::yaml::{Yaml, own_key};

/// A claim.
pub(super) const CLAIM: Text<ClaimPath> =
    Text { read: read_claim_path, show: shown, summary: "a claim's name, or a JSON Pointer" };

/// Headers of the request itself, of its path through proxies, or of its credentials: they cannot be claim headers.
const RESERVED_HEADERS: [&str; 33] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "authorization",
    "cookie",
    "expect",
    "forwarded",
    "via",
    "content-encoding",
    "x-real-ip",
    // Used instead of the method, the path or the host.
    "x-rewrite-url",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    // The answer to the proxy is an HTTP response: these would control caches and clients.
    "set-cookie",
    "www-authenticate",
    "origin",
    "cache-control",
    "expires",
    "vary",
    "location",
    "date",
    "server",
    "status",
    "http2-settings",
    // CGI programs would read it as HTTP_PROXY.
    "proxy",
];
const RESERVED_PREFIXES: [&str; 6] =
    ["proxy-", "x-envoy-", "x-accel-", "x-forwarded-", "x-original-", "grpc-"];

/// Request headers and their claims: the name of a claim, or a mapping that also has its encoding.
pub(super) struct ClaimHeaders;

impl Form for ClaimHeaders {
    type Value = Vec<ClaimHeader>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Vec<ClaimHeader>> {
        let mut seen = HashSet::new();
        all(cursor.entries()?.into_iter().map(|entry| {
            let encoded = read_encoded(&entry.value);
            let header = match claim_header(entry.key) {
                Ok(header) => header,
                Err(message) => return entry.refuse_key(message),
            };
            if !seen.insert(header.clone()) {
                return entry.refuse_key("another claim uses this header already; header names ignore case");
            }
            let EncodedClaim { claim, encoding } = encoded?;
            Ok(ClaimHeader { header, claim, encoding })
        }))
    }

    fn print(&self, value: &Vec<ClaimHeader>) -> Yaml {
        let member = |ClaimHeader { header, claim, encoding }: &ClaimHeader| {
            let value = match encoding {
                Encoding::Percent => CLAIM.print(claim),
                Encoding::Base64Url => {
                    let encoded = EncodedClaim { claim: claim.clone(), encoding: *encoding };
                    Yaml::Mapping(encoded.print())
                }
            };
            (own_key(header), value)
        };
        Yaml::Mapping(value.iter().map(member).collect())
    }

    fn describe(&self) -> FormDescription {
        let FormDescription { summary, schema, sections } = Sub::<EncodedClaim>::NEW.describe();
        let values = json!({"anyOf": [text_schema(), schema]});
        FormDescription {
            summary: format!("a mapping of headers to claims, or to {summary}"),
            schema: json!({"type": "object", "additionalProperties": values}),
            sections,
        }
    }
}

/// A claim and its encoding in a header.
struct EncodedClaim {
    claim: ClaimPath,
    encoding: Encoding,
}

section! {
    /// A claim and its encoding in a header.
    "EncodedClaim": EncodedClaim {
        /// The claim.
        claim: CLAIM, required("the claim that the header carries");
        /// How its value is encoded.
        encoding: Choice(&Encoding::NAMED), default(Encoding::default());
    }
}

fn read_encoded(cursor: &Cursor<'_>) -> Read<EncodedClaim> {
    if cursor.is_mapping() {
        return EncodedClaim::read(cursor);
    }
    Ok(EncodedClaim { claim: read_claim_path(cursor)?, encoding: Encoding::default() })
}

pub(super) fn read_payload_header(cursor: &Cursor<'_>) -> Read<HeaderName> {
    match claim_header(&cursor.text()?) {
        Ok(header) => Ok(header),
        Err(message) => cursor.refuse(message),
    }
}

pub(super) fn check_payload_header(
    header: Read<Option<HeaderName>>,
    mapping: &Mapping<'_>,
) -> Read<Option<HeaderName>> {
    let header = header?;
    let claims = mapping.get("claim_headers").and_then(|cursor| cursor.entries().ok()).unwrap_or_default();
    let is_claim_header =
        |header: &HeaderName| claims.iter().any(|entry| entry.key.eq_ignore_ascii_case(header.as_str()));
    if header.as_ref().is_some_and(is_claim_header) {
        return mapping
            .refuse_at("payload_header", "this header carries a claim (`claim_headers`): choose another");
    }
    Ok(header)
}

/// The header with this name, in any case.
///
/// # Errors
/// It cannot be a claim header.
fn claim_header(written: &str) -> Result<HeaderName, &'static str> {
    let name = written.to_ascii_lowercase();
    if RESERVED_HEADERS.contains(&name.as_str())
        || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    {
        return Err("this header belongs to HTTP or to the proxy: choose another, such as x-auth-subject");
    }
    if name.contains(['_', '.']) {
        return Err("use `-`: headers with `_` and `.` are look-alikes and are removed");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_allowed = name.bytes().all(allowed);
    header_name(&name).filter(|_| is_allowed).ok_or("expected a header name of letters, digits and `-`")
}

pub(super) fn read_claim_path(cursor: &Cursor<'_>) -> Read<ClaimPath> {
    match ClaimPath::parse(&cursor.text()?) {
        Ok(path) => Ok(path),
        Err(message) => cursor.refuse(message),
    }
}
