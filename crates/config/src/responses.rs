//! The `responses` section: the content of denials.

use std::collections::{HashMap, HashSet};

use http::{HeaderName, HeaderValue};
use url::Url;

use portcullis_core::reason::Refusal;
use portcullis_core::verdict::{Cors, CustomBody, CustomDenial, OriginPattern, Responses};

use serde_json::json;

use super::cursor::{Cursor, Entry, Mapping, Read, all};
use super::forms::{Count, Flag, List, Sub, Text, equal, shown, text_schema};
use super::keys::FetchUrl;
use super::providers::REALM;
use super::section::{Form, FormDescription, section};
use super::token_sources::header_name;
use super::yaml::{Yaml, own_key};

/// The largest body of a denial and the largest value of a header, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;
const MAX_VALUE_BYTES: usize = 8 * 1024;

/// Headers that are derived from the reason, or that belong to the connection.
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
    // A cookie in a denial would be set for the requested application.
    "set-cookie",
];

/// Instructions for NGINX and Envoy.
const RESERVED_PREFIXES: [&str; 2] = ["x-accel-", "x-envoy-"];

section! {
    /// The content of denials.
    "Responses": Responses,
    read through ResponsesDraft by make_responses,
    printed through ResponsesShown by show_responses,
    later ["decision_id_header"] {
        /// The realm of challenges.
        realm: String = REALM, default(Responses::default().realm);
        /// The HTTP status if the issuer's keys are unavailable.
        keys_unavailable_status: usize = Count { min: 400, max: 599 },
            default(Responses::default().keys_unavailable_status.into());
        /// The URL of the resource's metadata (RFC 9728), for challenges. Default: none.
        resource_metadata: Url = MetadataUrl, optional;
        /// The pages of other origins that can read a denial. Default: none.
        cors: Cors = Sub::<Cors>::NEW, optional;
        /// Bodies by reason; they replace the default one.
        body: Vec<(Refusal, CustomBody)> = ByReason {
            of: Text { read: read_body, show: |body| body.text.clone(), summary: "a text" },
        }, unless(Vec::new());
        /// Headers by reason; they are added to the default ones.
        headers: Vec<(Refusal, Vec<(HeaderName, HeaderValue)>)> = ByReason { of: HeaderValues }, unless(Vec::new());
    }
}

section! {
    /// The pages of other origins that can read a denial (CORS, in the Fetch standard). An allowed request is answered by
    /// the application, with its own headers.
    "Cors": Cors, checked check_cors {
        /// `https://app.example.com`; `https://*.example.org` is every host below the domain, at any depth, not the
        /// domain; `*`, alone and without credentials, is every page.
        allow_origins: List {
            of: Text { read: read_origin, show: shown, summary: "an origin" },
            empty: "an empty list allows no page: remove `cors`",
            same: equal,
        }, required("the origins of your pages: [https://app.example.com]");
        /// Whether a page can read the denial of a request that it sent with cookies (`credentials: 'include'`).
        allow_credentials: Flag, default(false);
    }
}

fn check_cors(cors: &Cors, mapping: &Mapping<'_>) -> Read<()> {
    let Cors { allow_origins, allow_credentials } = cors;
    if !allow_origins.contains(&OriginPattern::Any) {
        return Ok(());
    }
    if allow_origins.len() > 1 {
        return mapping.refuse_at("allow_origins", "`*` is every page: remove it, or the others");
    }
    if *allow_credentials {
        return mapping.refuse_at(
            "allow_origins",
            "browsers refuse `*` with credentials: list the origins of your pages, or remove `allow_credentials`",
        );
    }
    Ok(())
}

fn read_origin(cursor: &Cursor<'_>) -> Read<OriginPattern> {
    OriginPattern::parse(&cursor.text()?).or_else(|instead| cursor.refuse(instead))
}

fn make_responses(draft: ResponsesDraft, mapping: &Mapping<'_>) -> Read<Responses> {
    let ResponsesDraft { realm, keys_unavailable_status, resource_metadata, cors, body, headers } = draft;
    let cors = cors?;
    let mut custom: HashMap<Refusal, CustomDenial> = HashMap::new();
    for (reason, body) in body? {
        custom.entry(reason).or_default().body = Some(body);
    }
    for (reason, headers) in headers? {
        if cors.is_some() && headers.iter().any(|(name, _)| Cors::HEADERS.contains(name)) {
            return mapping.refuse_at(
                "headers",
                format!(
                    "`cors` sets Access-Control-Allow-Origin, -Credentials and Vary: remove them at {}",
                    reason.as_str()
                ),
            );
        }
        custom.entry(reason).or_default().headers = headers;
    }
    let fallback = Responses::default().keys_unavailable_status;
    Ok(Responses {
        realm: realm?,
        keys_unavailable_status: u16::try_from(keys_unavailable_status?).unwrap_or(fallback),
        resource_metadata: resource_metadata?,
        cors,
        custom,
    })
}

fn show_responses(responses: &Responses) -> ResponsesShown {
    let Responses { realm, keys_unavailable_status, resource_metadata, cors, custom } = responses.clone();
    // In the order of the reasons, so that the output is deterministic.
    let custom = || Refusal::all().filter_map(|refusal| Some((refusal, custom.get(&refusal)?)));
    let body: Vec<_> =
        custom().filter_map(|(refusal, denial)| Some((refusal, denial.body.clone()?))).collect();
    let headers: Vec<_> = custom()
        .filter(|(_, denial)| !denial.headers.is_empty())
        .map(|(refusal, denial)| (refusal, denial.headers.clone()))
        .collect();
    ResponsesShown {
        realm: Some(realm),
        keys_unavailable_status: Some(keys_unavailable_status.into()),
        resource_metadata,
        cors,
        body: Some(body).filter(|body| !body.is_empty()),
        headers: Some(headers).filter(|headers| !headers.is_empty()),
    }
}

/// The URL of a metadata document. Its query is not printed.
struct MetadataUrl;

impl Form for MetadataUrl {
    type Value = Url;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Url> {
        read_metadata_url(cursor)
    }

    fn print(&self, value: &Url) -> Yaml {
        FetchUrl { key: "resource_metadata" }.print(&value.to_string())
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new("an http or https URL", text_schema())
    }
}

/// A mapping of reasons to values.
struct ByReason<F> {
    of: F,
}

impl<F: Form> Form for ByReason<F> {
    type Value = Vec<(Refusal, F::Value)>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Self::Value> {
        all(cursor.entries()?.into_iter().map(|entry| {
            let value = self.of.read(&entry.value);
            match Refusal::named().find(|reason| reason.as_str() == entry.key) {
                Some(reason) => Ok((reason, value?)),
                None => {
                    let names: Vec<&str> = Refusal::named().map(Refusal::as_str).collect();
                    entry.refuse_key(format!("expected the reason of a denial, one of: {}", names.join(", ")))
                }
            }
        }))
    }

    fn print(&self, value: &Self::Value) -> Yaml {
        let member =
            |(reason, value): &(Refusal, F::Value)| (reason.as_str().to_owned(), self.of.print(value));
        Yaml::Mapping(value.iter().map(member).collect())
    }

    fn describe(&self) -> FormDescription {
        let FormDescription { summary, schema, sections } = self.of.describe();
        FormDescription {
            summary: format!("a mapping of reasons to: {summary}"),
            schema: json!({"type": "object", "additionalProperties": schema}),
            sections,
        }
    }
}

/// Headers and their values.
struct HeaderValues;

impl Form for HeaderValues {
    type Value = Vec<(HeaderName, HeaderValue)>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Self::Value> {
        let mut names = HashSet::new();
        all(cursor.entries()?.into_iter().map(|entry| {
            let read = read_header(&entry)?;
            match names.insert(read.0.clone()) {
                true => Ok(read),
                false => entry.refuse_key("duplicate header, in another case: keep one"),
            }
        }))
    }

    fn print(&self, value: &Self::Value) -> Yaml {
        let member = |(name, value): &(HeaderName, HeaderValue)| {
            (own_key(name), Yaml::text(String::from_utf8_lossy(value.as_bytes())))
        };
        Yaml::Mapping(value.iter().map(member).collect())
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new(
            "a mapping of headers to their values",
            json!({"type": "object", "additionalProperties": text_schema()}),
        )
    }
}

/// The URL is a quoted string in a challenge; a URL contains no quote and no backslash.
fn read_metadata_url(cursor: &Cursor<'_>) -> Read<Url> {
    match cursor.text()?.parse::<Url>() {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            cursor.refuse("a URL with a user name or a password is not accepted: it is sent to every client")
        }
        Ok(url) if matches!(url.scheme(), "https" | "http") && url.fragment().is_none() => Ok(url),
        _ => cursor.refuse(
            "expected the URL of the metadata document: https://api.example.com/.well-known/oauth-protected-resource",
        ),
    }
}

fn read_body(cursor: &Cursor<'_>) -> Read<CustomBody> {
    let text = cursor.text()?;
    if text.len() > MAX_BODY_BYTES {
        return cursor.refuse(format!("expected at most {MAX_BODY_BYTES} bytes"));
    }
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
    let media_type = if is_json { "application/json" } else { "text/plain; charset=utf-8" };
    Ok(CustomBody { text, media_type: HeaderValue::from_static(media_type) })
}

fn read_header(entry: &Entry<'_>) -> Read<(HeaderName, HeaderValue)> {
    let Some(name) = header_name(entry.key) else {
        return entry.refuse_key("expected the name of a header");
    };
    if RESERVED.contains(&name.as_str())
        || RESERVED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
    {
        return entry.refuse_key(
            "this header is set by Portcullis, belongs to the connection or instructs the proxy: remove it",
        );
    }
    match header_value(&entry.value.text()?) {
        Some(value) => Ok((name, value)),
        None => entry.value.refuse(format!("expected at most {MAX_VALUE_BYTES} printable ASCII characters")),
    }
}

fn header_value(text: &str) -> Option<HeaderValue> {
    let printable = text.len() <= MAX_VALUE_BYTES && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    HeaderValue::from_str(text).ok().filter(|_| printable)
}
