//! Protected resource metadata (RFC 9728), for clients that a challenge has referred to it.
//!
//! It is built from the configuration alone. It is a public document that lists the accepted issuers, which no denial
//! does.

use std::collections::BTreeSet;

use axum::body::Body;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE};
use http::{Method, Request, Response};
use serde_json::json;
use url::Url;

use crate::authorizer::Authorizer;
use crate::validation::provider::TokenSource;

/// The path segment between a resource's host and path in its metadata URL (RFC 9728 §3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The metadata, if this request asks for the path of `responses.resource_metadata`.
pub(super) fn answer<B>(
    request: &Request<B>,
    authorizer: &Authorizer,
) -> Option<http::Result<Response<Body>>> {
    let url = authorizer.responses().resource_metadata.as_ref()?;
    if request.method() != Method::GET || request.uri().path() != url.path() {
        return None;
    }
    let document = document(url, authorizer)?;
    Some(
        Response::builder()
            .header(CONTENT_TYPE, "application/json")
            // Browser clients may have any origin.
            .header(ACCESS_CONTROL_ALLOW_ORIGIN, "*")
            .body(Body::from(document)),
    )
}

fn document(url: &Url, authorizer: &Authorizer) -> Option<String> {
    let path = url.path().strip_prefix(WELL_KNOWN)?;
    let resource = format!("{}{path}", url.origin().ascii_serialization());
    let sources = authorizer.token_sources().iter().filter_map(|source| match source {
        TokenSource::Header { .. } => Some("header"),
        TokenSource::Query(_) => Some("query"),
        // RFC 6750 does not define these methods.
        TokenSource::Cookie(_) | TokenSource::WebSocketProtocol(_) => None,
    });
    let methods: BTreeSet<&str> = sources.collect();
    let document = json!({
        "resource": resource,
        "authorization_servers": authorizer.issuers(),
        "bearer_methods_supported": methods,
        "scopes_supported": authorizer.rules().scopes(),
    });
    Some(document.to_string())
}
