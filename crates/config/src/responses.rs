//! The `responses` section: how a denial looks.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue};
use url::Url;

use portcullis_core::reason::Refusal;
use portcullis_core::verdict::{CustomBody, CustomDenial, Responses};

use super::cursor::{Cursor, Entry};
use super::providers::{header_name, read_realm};

/// The longest body of a denial, in bytes, and the longest value of a header.
const MAX_BODY_BYTES: usize = 64 * 1024;
const MAX_VALUE_BYTES: usize = 8 * 1024;

/// Made here from the reason, or of the connection.
const RESERVED: [&str; 15] = [
    "www-authenticate",
    "retry-after",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "grpc-status",
    "grpc-message",
    "proxy-connection",
    "http2-settings",
    "cache-control",
    // A cookie of a refusal would be set in the name of whichever application was asked for.
    "set-cookie",
];

/// Instructions to NGINX and to Envoy.
const RESERVED_PREFIXES: [&str; 2] = ["x-accel-", "x-envoy-"];

pub(super) fn read_responses(cursor: Cursor<'_>) -> Option<Responses> {
    let default = Responses::default();
    let known = ["realm", "keys_unavailable_status", "resource_metadata", "body", "headers"];
    let mapping = cursor.mapping(&known, &[])?;
    let realm = mapping.or("realm", default.realm, |cursor| read_realm(&cursor));
    let status = mapping.or("keys_unavailable_status", default.keys_unavailable_status, |cursor| {
        cursor.integer(400, 599).and_then(|status| u16::try_from(status).ok())
    });
    let resource_metadata = mapping.optional("resource_metadata", |cursor| read_metadata_url(&cursor));
    let bodies = mapping.or("body", Vec::new(), |cursor| read_by_reason(&cursor, read_body));
    let headers = mapping.or("headers", Vec::new(), |cursor| read_by_reason(&cursor, read_headers));
    let mut custom: HashMap<Refusal, CustomDenial> = HashMap::new();
    for (reason, body) in bodies? {
        custom.entry(reason).or_default().body = Some(body);
    }
    for (reason, headers) in headers? {
        custom.entry(reason).or_default().headers = headers;
    }
    Some(Responses {
        realm: realm?,
        keys_unavailable_status: status?,
        resource_metadata: resource_metadata?,
        custom,
    })
}

/// It stands in a quoted string of a challenge, and as a URL it has no quote and no backslash.
fn read_metadata_url(cursor: &Cursor<'_>) -> Option<Url> {
    match cursor.text()?.parse::<Url>() {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            cursor.refuse("a URL with a user name or a password is not accepted: every client is sent it")
        }
        Ok(url) if matches!(url.scheme(), "https" | "http") && url.fragment().is_none() => Some(url),
        _ => cursor.refuse(
            "expected the URL of the metadata document: https://api.example.com/.well-known/oauth-protected-resource",
        ),
    }
}

/// A mapping from reasons to something.
fn read_by_reason<'a, T>(
    cursor: &Cursor<'a>,
    read: impl Fn(&Cursor<'a>) -> Option<T>,
) -> Option<Vec<(Refusal, T)>> {
    let one = |entry: Entry<'a>| {
        let value = read(&entry.value);
        match Refusal::named().find(|reason| reason.as_str() == entry.key) {
            Some(reason) => Some((reason, value?)),
            None => {
                let names: Vec<&str> = Refusal::named().map(Refusal::as_str).collect();
                entry.refuse_key(format!("expected the reason of a denial, one of: {}", names.join(", ")))
            }
        }
    };
    let read: Vec<Option<(Refusal, T)>> = cursor.entries()?.into_iter().map(one).collect();
    read.into_iter().collect()
}

fn read_body(cursor: &Cursor<'_>) -> Option<CustomBody> {
    let text = cursor.text()?;
    if text.len() > MAX_BODY_BYTES {
        return cursor.refuse(format!("expected at most {MAX_BODY_BYTES} bytes"));
    }
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
    let media_type = if is_json { "application/json" } else { "text/plain; charset=utf-8" };
    Some(CustomBody { text, media_type: HeaderValue::from_static(media_type) })
}

fn read_headers(cursor: &Cursor<'_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let one = |entry: Entry<'_>| {
        let Some(name) = header_name(entry.key) else {
            return entry.refuse_key("expected the name of a header");
        };
        if RESERVED.contains(&name.as_str())
            || RESERVED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
        {
            return entry.refuse_key(
                "this header is made by Portcullis, belongs to the connection or tells the proxy what to do: leave it out",
            );
        }
        match header_value(&entry.value.text()?) {
            Some(value) => Some((name, value)),
            None => {
                entry.value.refuse(format!("expected at most {MAX_VALUE_BYTES} printable ASCII characters"))
            }
        }
    };
    let headers: Vec<Option<(HeaderName, HeaderValue)>> = cursor.entries()?.into_iter().map(one).collect();
    headers.into_iter().collect()
}

fn header_value(text: &str) -> Option<HeaderValue> {
    let printable = text.len() <= MAX_VALUE_BYTES && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    HeaderValue::from_str(text).ok().filter(|_| printable)
}
