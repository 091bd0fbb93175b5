//! What a service was asked, as the decision takes it.

use std::time::Instant;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Uri};
use portcullis_core::access_request::{AccessRequest, Headers, Removal};

/// The client's request.
pub(crate) fn describe(parts: &Parts, arrived: Instant) -> AccessRequest<'_> {
    let uri = original_uri(parts);
    let headers: Headers<'_> =
        parts.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect();
    let mut hosts = headers.all(HOST.as_str());
    let (host, other) = (hosts.next(), hosts.next());
    drop(hosts);
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    let flaw = match (authority, other) {
        _ if parts.method == Method::CONNECT => Some("a CONNECT, which asks for no resource"),
        (None, Some(_)) => Some("several Host lines"),
        // RFC 9110 §4.2.4.
        (Some(authority), _) if authority.contains(&b'@') => Some("a target with user information"),
        _ => None,
    };
    let host = authority.or(host).unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes();
    let method = parts.method.as_str().as_bytes();
    AccessRequest {
        removal: Removal::Headers,
        flaw,
        ..AccessRequest::new(method, host, path, headers, arrived)
    }
}

/// Makes `Host` say what was judged (RFC 9112 §3.2.2): whoever reads it behind this must not take the request for another.
pub(crate) fn settle_host(parts: &mut Parts) {
    let host =
        original_uri(parts).authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host
        && parts.headers.contains_key(HOST)
    {
        parts.headers.insert(HOST, host);
    }
}

/// As the client sent it, whatever a router that was nested has cut off.
fn original_uri(parts: &Parts) -> &Uri {
    #[cfg(feature = "axum")]
    if let Some(original) = parts.extensions.get::<axum::extract::OriginalUri>() {
        return &original.0;
    }
    &parts.uri
}
