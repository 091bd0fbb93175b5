//! Describes a service's request for the decision.

use std::time::Instant;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Uri};
use portcullis_core::access_request::{AccessRequest, Headers, Removal};

use crate::SourceAddress;

/// The request that the layer has decided: the client's, with this source address, received at this time. For programs
/// that judge a request without serving it.
///
/// ```
/// use std::time::Instant;
///
/// let (parts, ()) = http::Request::get("https://api.example.com/orders?x=1").body(()).unwrap().into_parts();
/// let request = portcullis_tower::access_request(&parts, None, Instant::now());
/// assert_eq!((request.host, request.path), (&b"api.example.com"[..], &b"/orders?x=1"[..]));
/// ```
pub fn describe<'a>(
    parts: &'a Parts,
    source_address: Option<&'a str>,
    arrived: Instant,
) -> AccessRequest<'a> {
    let uri = original_uri(parts);
    let headers: Headers<'_> =
        parts.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect();
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = authority.or_else(|| headers.only(HOST.as_str())).unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes();
    let method = if is_web_socket(parts) { &Method::GET } else { &parts.method };
    let method = method.as_str().as_bytes();
    AccessRequest {
        source_address,
        removal: Removal::HeadersAndQuery,
        description_error: description_error(parts, uri),
        ..AccessRequest::new(method, host, path, headers, arrived)
    }
}

/// Why the request cannot be evaluated.
fn description_error(parts: &Parts, uri: &Uri) -> Option<&'static str> {
    if parts.method == Method::CONNECT && !is_web_socket(parts) {
        return Some("CONNECT names no resource");
    }
    if uri.path_and_query().is_none() {
        return Some("a target without a path");
    }
    // RFC 9112 §3.2, for every form of the target.
    if parts.headers.get_all(HOST).iter().nth(1).is_some() {
        return Some("several Host lines");
    }
    // RFC 9110 §4.2.4.
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Some("a target with user information");
    }
    (!is_suffix_of_original(&parts.uri, uri)).then_some(
        "a URI that was rewritten between axum's router and the layer: rewrite it outside of the router or inside of the layer",
    )
}

/// Whether it is a WebSocket handshake over HTTP/2, which is a GET over HTTP/1.1 (RFC 8441 §5).
fn is_web_socket(parts: &Parts) -> bool {
    let protocol = parts.extensions.get::<hyper::ext::Protocol>();
    parts.method == Method::CONNECT
        && protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

/// Whether axum's `nest` can have produced this URI from the original one: it is the end of its path, or `/`. With
/// any other URI, the evaluated request would differ from the served one.
fn is_suffix_of_original(uri: &Uri, original: &Uri) -> bool {
    uri.authority() == original.authority()
        && uri.query() == original.query()
        && (uri.path() == "/" || original.path().ends_with(uri.path()))
}

/// The source address for rules: IPv4-mapped IPv6 addresses become IPv4.
pub(crate) fn source_address(parts: &Parts) -> Option<String> {
    let address = parts.extensions.get::<SourceAddress>().map(|source| source.0);
    #[cfg(feature = "axum")]
    let address = address.or_else(|| {
        let connection = parts.extensions.get::<axum::extract::ConnectInfo<std::net::SocketAddr>>();
        connection.map(|connection| connection.0.ip())
    });
    address.map(|address| address.to_canonical().to_string())
}

/// Sets `Host` to the evaluated host (RFC 9112 §3.2.2), so that the service does not use another one.
pub(crate) fn set_host(parts: &mut Parts) {
    let host =
        original_uri(parts).authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host
        && parts.headers.contains_key(HOST)
    {
        parts.headers.insert(HOST, host);
    }
}

/// Removes these parameters from the query, in all URIs of the request. Names are compared without decoding: a
/// request is denied if it has them in another spelling.
///
/// # Errors
/// The result is not a valid URI.
pub(crate) fn remove_query(parts: &mut Parts, names: &[String]) -> http::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    parts.uri = without(&parts.uri, names)?;
    #[cfg(feature = "axum")]
    if let Some(original) = parts.extensions.get_mut::<axum::extract::OriginalUri>() {
        original.0 = without(&original.0, names)?;
    }
    Ok(())
}

fn without(uri: &Uri, names: &[String]) -> http::Result<Uri> {
    let Some(query) = uri.query() else { return Ok(uri.clone()) };
    let is_kept = |pair: &&str| !names.iter().any(|name| pair.split('=').next() == Some(name));
    let kept = query.split('&').filter(is_kept).collect::<Vec<_>>().join("&");
    let path = uri.path();
    let target = if kept.is_empty() { path.to_owned() } else { format!("{path}?{kept}") };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.parse()?);
    Ok(Uri::from_parts(parts)?)
}

/// The URI that the client sent, before a nested router removed its prefix.
fn original_uri(parts: &Parts) -> &Uri {
    #[cfg(feature = "axum")]
    if let Some(original) = parts.extensions.get::<axum::extract::OriginalUri>() {
        return &original.0;
    }
    &parts.uri
}
