//! Where the tokens of a provider may be in a request, and the names of headers, schemes, cookies and parameters.

use http::HeaderName;
use http::header::{COOKIE, SEC_WEBSOCKET_PROTOCOL};

use portcullis_core::validation::provider::TokenSource;

use super::cursor::{Cursor, Mapping, Read};
use super::forms::{Text, shown};
use super::section::section;

/// Headers that end at the proxy, or that the proxy sets.
const NO_TOKEN_HEADERS: [&str; 17] = [
    "host",
    "connection",
    "proxy-connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "transfer-encoding",
    "content-length",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-forwarded-method",
    "x-forwarded-uri",
    "x-forwarded-host",
    "x-forwarded-proto",
];
/// The longest name of a header, scheme, cookie or query parameter, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Whether both read the same text.
pub(super) fn same_place(a: &TokenSource, b: &TokenSource) -> bool {
    match (a, b) {
        (
            TokenSource::Header { name: a, scheme: Some(a_scheme) },
            TokenSource::Header { name: b, scheme: Some(b_scheme) },
        ) => a == b && a_scheme.eq_ignore_ascii_case(b_scheme),
        _ => a == b,
    }
}

section! {
    /// One place of a request where the token may be: one of header, cookie, query and websocket_protocol.
    "TokenSource": TokenSource,
    read through SourceKeys by make_token_source,
    printed through SourceShown by show_token_source {
        /// A header.
        header: HeaderName = Text { read: read_header_name, show: shown, summary: "a header" }, optional;
        /// The scheme before the token in that header. Default: the token is the header's whole value, unless that begins
        /// with the scheme of another place in this header.
        scheme: String = Text { read: read_token, show: shown, summary: "a name" }, optional;
        /// A cookie.
        cookie: String = Text { read: read_token, show: shown, summary: "a name" }, optional;
        /// A query parameter.
        query: String = Text { read: read_query_name, show: shown, summary: "a name" }, optional;
        /// The item of Sec-WebSocket-Protocol before the token.
        websocket_protocol: String = Text { read: read_token, show: shown, summary: "a name" }, optional;
    }
}

fn make_token_source(draft: SourceKeys, mapping: &Mapping<'_>) -> Read<TokenSource> {
    let SourceKeys { header, scheme, cookie, query, websocket_protocol } = draft;
    let scheme = scheme?;
    match (header?, cookie?, query?, websocket_protocol?) {
        (Some(name), None, None, None) if name == COOKIE => {
            mapping.refuse_at("header", "write `cookie: NAME` to read the token from a cookie")
        }
        (Some(name), None, None, None) if name == SEC_WEBSOCKET_PROTOCOL => mapping.refuse_at(
            "header",
            "write `websocket_protocol: NAME` to read the token behind this item of the header",
        ),
        (Some(name), None, None, None) if NO_TOKEN_HEADERS.contains(&name.as_str()) => mapping.refuse_at(
            "header",
            "this header belongs to the connection or to the proxy: it cannot carry a client's token",
        ),
        (Some(name), None, None, None) => Ok(TokenSource::Header { name, scheme }),
        (None, Some(cookie), None, None) if scheme.is_none() => Ok(TokenSource::Cookie(cookie)),
        (None, None, Some(query), None) if scheme.is_none() => Ok(TokenSource::Query(query)),
        (None, None, None, Some(item)) if scheme.is_none() => Ok(TokenSource::WebSocketProtocol(item)),
        _ => mapping.refuse(
            "expected one of `header` (with or without `scheme`), `cookie`, `query`, `websocket_protocol`",
        ),
    }
}

fn show_token_source(source: &TokenSource) -> SourceShown {
    let none =
        SourceShown { header: None, scheme: None, cookie: None, query: None, websocket_protocol: None };
    match source.clone() {
        TokenSource::Header { name, scheme } => SourceShown { header: Some(name), scheme, ..none },
        TokenSource::Cookie(name) => SourceShown { cookie: Some(name), ..none },
        TokenSource::Query(name) => SourceShown { query: Some(name), ..none },
        TokenSource::WebSocketProtocol(item) => SourceShown { websocket_protocol: Some(item), ..none },
    }
}

/// Parameter names are compared without decoding, and a name that matches only after decoding is refused: a name
/// that decodes to another provider's would never be read.
fn read_query_name(cursor: &Cursor<'_>) -> Read<String> {
    let name = read_token(cursor)?;
    if name.contains(['%', '&', '+', '#']) {
        return cursor.refuse("a query encodes `%`, `&`, `+` and `#`: choose a name without them");
    }
    Ok(name)
}

/// A token of RFC 9110 §5.6.2, the syntax of header names, schemes and cookie names.
pub(super) fn read_token(cursor: &Cursor<'_>) -> Read<String> {
    let text = cursor.text()?;
    if is_token(&text) { Ok(text) } else { refuse_name(cursor) }
}

fn read_header_name(cursor: &Cursor<'_>) -> Read<HeaderName> {
    match header_name(&cursor.text()?) {
        Some(name) => Ok(name),
        None => refuse_name(cursor),
    }
}

fn refuse_name<T>(cursor: &Cursor<'_>) -> Read<T> {
    cursor.refuse(format!(
        "expected a name of at most {MAX_NAME_BYTES} letters, digits and any of !#$%&'*+-.^_`|~"
    ))
}

/// The header with this name, in any case; `None` if it is not a valid name.
pub(super) fn header_name(text: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).ok().filter(|_| is_token(text))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.bytes().all(is_token_byte)
}

pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
