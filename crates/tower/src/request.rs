//! What a service was asked, as the decision takes it.

use std::time::Instant;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Uri};
use portcullis_core::access_request::{AccessRequest, Headers, Removal};

use crate::SourceAddress;

/// The client's request, which comes from this address.
pub(crate) fn describe<'a>(
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
        flaw: flaw(parts, uri),
        ..AccessRequest::new(method, host, path, headers, arrived)
    }
}

/// Why nobody can judge it.
fn flaw(parts: &Parts, uri: &Uri) -> Option<&'static str> {
    if parts.method == Method::CONNECT && !is_web_socket(parts) {
        return Some("a CONNECT, which asks for no resource");
    }
    if uri.path_and_query().is_none() {
        return Some("a target without a path");
    }
    // RFC 9112 §3.2, whatever stands in the target.
    if parts.headers.get_all(HOST).iter().nth(1).is_some() {
        return Some("several Host lines");
    }
    // RFC 9110 §4.2.4.
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Some("a target with user information");
    }
    (!is_left_by_nest(&parts.uri, uri)).then_some(
        "a URI that was rewritten between axum's router and the layer: rewrite it outside of the router, or inside of the layer",
    )
}

/// Whether it is a WebSocket's handshake over HTTP/2, which over HTTP/1.1 would be a GET (RFC 8441 §5).
fn is_web_socket(parts: &Parts) -> bool {
    let protocol = parts.extensions.get::<hyper::ext::Protocol>();
    parts.method == Method::CONNECT
        && protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

/// Whether this can be what axum's `nest` left of an original URI: the end of its path, or `/` for nothing. Of any other,
/// one would be judged and another one served.
fn is_left_by_nest(uri: &Uri, original: &Uri) -> bool {
    uri.authority() == original.authority()
        && uri.query() == original.query()
        && (uri.path() == "/" || original.path().ends_with(uri.path()))
}

/// Where it comes from, as rules compare it: an IPv4 address never as an IPv6 one.
pub(crate) fn source_address(parts: &Parts) -> Option<String> {
    let told = parts.extensions.get::<SourceAddress>().map(|source| source.0);
    #[cfg(feature = "axum")]
    let told = told.or_else(|| {
        let connection = parts.extensions.get::<axum::extract::ConnectInfo<std::net::SocketAddr>>();
        connection.map(|connection| connection.0.ip())
    });
    told.map(|address| address.to_canonical().to_string())
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

/// Takes these parameters out of the query, wherever the request's URI stands. They are named as they are written: with such
/// that some program reads in another spelling a request is refused.
///
/// # Errors
/// What is left is no URI.
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
    let left = if kept.is_empty() { path.to_owned() } else { format!("{path}?{kept}") };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(left.parse()?);
    Ok(Uri::from_parts(parts)?)
}

/// As the client sent it, whatever a router that was nested has cut off.
fn original_uri(parts: &Parts) -> &Uri {
    #[cfg(feature = "axum")]
    if let Some(original) = parts.extensions.get::<axum::extract::OriginalUri>() {
        return &original.0;
    }
    &parts.uri
}
