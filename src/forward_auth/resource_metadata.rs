//! The metadata of the protected resource (RFC 9728), for clients that a challenge has pointed to it.
//!
//! Made of the configuration alone. It is a public document: whoever asks gets it, and it tells which issuers
//! are accepted, which no denial does.

use std::collections::BTreeSet;

use axum::body::Body;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_TYPE};
use http::{Method, Request, Response};
use serde_json::json;
use url::Url;

use crate::authorizer::Authorizer;
use crate::validation::provider::TokenSource;

/// What stands between the host of a resource and its path in the URL of its metadata (RFC 9728 §3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The document, where this request asks for it and it is here: where `responses.resource_metadata` has this
/// path, below the well-known one.
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
            // Clients in browsers come from anywhere.
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
        // RFC 6750 has no name for it.
        TokenSource::Cookie(_) => None,
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
