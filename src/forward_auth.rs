//! The HTTP door for NGINX, HAProxy, Caddy, Traefik and Envoy's HTTP mode, which send an authorization request of their
//! own before they forward the client's.
//!
//! Every method and path is an authorization request; with the path `/rule/NAME` the proxy names a rule. The client's request is read only from where the door's
//! [`Profile`] says; everything else is under the client's control. The door decides nothing.
//!
//! # Architecture invariant
//! Only `allow` responds with status 200.

mod as_proxy;
mod resource_metadata;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::body::Body;
use http::header::{CACHE_CONTROL, HOST};
use http::{HeaderName, Method, Request, Response, StatusCode};

pub(crate) use self::as_proxy::authorization_request;

use crate::access_request::{AccessRequest, ClaimHeaders, Headers, Removal};
use crate::clock;
use crate::config::{HttpListener, Profile};
use crate::http_denial;
use crate::identity::{RemovedHeader, UpstreamChanges};
use crate::server::{Door, Peer, RequestBody};
use crate::service::Service;

/// The `door` label.
const DOOR: &str = "forward_auth";

/// The door of an HTTP listener.
pub(crate) struct HttpDoor {
    service: Arc<Service>,
    /// The kind of proxy in front of this door.
    profile: Profile,
    /// How claim headers sent by clients are treated.
    client_headers: ClaimHeaders,
}

impl Door for HttpDoor {
    type Body = Body;

    fn name(&self) -> &'static str {
        DOOR
    }

    fn service(&self) -> &Service {
        &self.service
    }

    async fn answer(&self, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        // The body is dropped, because it would be held while the request waits.
        let request = request.map(drop);
        // A peer without an address is not a trusted proxy.
        self.authorize(&request, peer.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))).await
    }
}

impl HttpDoor {
    /// A door with the profile of this listener.
    pub(crate) fn new(service: Arc<Service>, listener: &HttpListener) -> Self {
        let HttpListener { profile, client_headers, .. } = listener;
        Self { service, profile: *profile, client_headers: *client_headers }
    }

    async fn authorize<B>(&self, request: &Request<B>, peer: IpAddr) -> Response<Body> {
        let authorizer = self.service.authorizer();
        if !is_authorization_request(self.profile, request)
            && let Some(metadata) = resource_metadata::answer(request, &authorizer)
        {
            return metadata.unwrap_or_else(|error| internal_error(&error));
        }
        let access_request = described(self.profile, self.client_headers, request, peer);
        let decided = authorizer.decide(DOOR, &access_request).await;
        let response = match decided.decision.allowed(authorizer.responses(), &access_request.headers) {
            Ok(allowed) => allow(self.profile, allowed.changes()),
            Err(denial) => http_denial::response(*denial).map(|denial| denial.map(Body::from)),
        };
        let mut response = response.unwrap_or_else(|error| internal_error(&error));
        // A response to HEAD has no body (RFC 9110 §9.3.2). Over HTTP/2 hyper does not remove it, and a proxy aborts.
        if request.method() == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }
}

/// The headers in which a proxy describes the client's request.
struct RequestHeaders {
    method: HeaderName,
    uri: HeaderName,
    host: HeaderName,
    /// All of these headers except Host, which every request has.
    proxy_headers: &'static [HeaderName],
    /// The text for the log if one is missing or duplicated.
    description_error: &'static str,
}

const ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
const ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
const FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

static ORIGINAL_HEADERS: [HeaderName; 2] = [ORIGINAL_METHOD, ORIGINAL_URI];
static FORWARDED_HEADERS: [HeaderName; 4] =
    [FORWARDED_METHOD, FORWARDED_URI, FORWARDED_HOST, FORWARDED_PROTO];

static NGINX: RequestHeaders = RequestHeaders {
    method: ORIGINAL_METHOD,
    uri: ORIGINAL_URI,
    host: HOST,
    proxy_headers: &ORIGINAL_HEADERS,
    description_error: "X-Original-Method and X-Original-URI must each occur once, and Host at most once: set them as in deploy/nginx",
};

static FORWARDED: RequestHeaders = RequestHeaders {
    method: FORWARDED_METHOD,
    uri: FORWARDED_URI,
    host: FORWARDED_HOST,
    proxy_headers: &FORWARDED_HEADERS,
    description_error: "X-Forwarded-Method and X-Forwarded-Uri must each occur once, and X-Forwarded-Host at most once: set them as in \
           deploy/",
};

/// The headers that a profile uses; `None` if the authorization request is itself the client's request.
fn request_headers(profile: Profile) -> Option<&'static RequestHeaders> {
    match profile {
        Profile::Nginx => Some(&NGINX),
        Profile::Haproxy | Profile::Caddy | Profile::Traefik => Some(&FORWARDED),
        Profile::Envoy => None,
    }
}

/// Whether this is an authorization request, rather than a client's request that a proxy forwards to this door.
fn is_authorization_request<B>(profile: Profile, request: &Request<B>) -> bool {
    request_headers(profile).is_none_or(|names| {
        request.headers().contains_key(&names.method) || request.headers().contains_key(&names.uri)
    })
}

/// The client's request as the proxy describes it, at a door with these settings.
pub(crate) fn described<B>(
    profile: Profile,
    client_headers: ClaimHeaders,
    request: &Request<B>,
    peer: IpAddr,
) -> AccessRequest<'_> {
    AccessRequest { claim_headers: client_headers, ..access_request(profile, request, peer) }
}

/// The client's request as described by the proxy.
fn access_request<B>(profile: Profile, request: &Request<B>, peer: IpAddr) -> AccessRequest<'_> {
    let headers: Headers<'_> =
        request.headers().iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect();
    let received_at = clock::monotonic().into_std();
    let Some(names) = request_headers(profile) else {
        let uri = request.uri();
        let host = uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = host.or_else(|| headers.only(HOST.as_str())).unwrap_or_default();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes();
        let method = request.method().as_str().as_bytes();
        return AccessRequest {
            removal: Removal::Headers,
            ..AccessRequest::new(method, host, path, headers, received_at)
        };
    };
    let method_and_uri = [&names.method, &names.uri].map(|name| headers.only(name.as_str()));
    // An HTTP/1.0 request may have no Host; it then matches no rule with a host.
    let host = headers.only(names.host.as_str());
    let is_host_duplicated = host.is_none() && headers.all(names.host.as_str()).next().is_some();
    let description_error =
        (is_host_duplicated || method_and_uri.iter().any(Option::is_none)).then_some(names.description_error);
    let [method, path] = method_and_uri.map(Option::unwrap_or_default);
    let host = host.unwrap_or_default();
    AccessRequest {
        named_rule: named_rule(request),
        described_by: Some(peer),
        description_error,
        removal: Removal::NamedHeaders,
        set_by_proxy: names.proxy_headers,
        ..AccessRequest::new(method, host, path, headers, received_at)
    }
}

/// The rule that the proxy names with the path of its own request. The query is not read: proxies pass on the client's.
fn named_rule<B>(request: &Request<B>) -> Option<&[u8]> {
    request.uri().path().strip_prefix("/rule/").map(str::as_bytes)
}

/// A response that is not cached, because a proxy would give one client's identity to another.
fn uncached() -> http::response::Builder {
    Response::builder().header(CACHE_CONTROL, "no-store")
}

/// The response to an allowed request. Names of headers to remove are valid: they are from a request or the
/// configuration.
///
/// # Errors
/// There are too many headers for a response.
fn allow(profile: Profile, changes: &UpstreamChanges) -> http::Result<Response<Body>> {
    let mut response = uncached();
    for (name, value) in changes.set() {
        response = response.header(name.clone(), value.clone());
    }
    match profile {
        Profile::Envoy if changes.remove.is_empty() => {}
        Profile::Envoy => {
            let names: Vec<&str> = changes.remove.iter().map(RemovedHeader::as_str).collect();
            response = response.header("x-envoy-auth-headers-to-remove", names.join(","));
        }
        // The proxy replaces the client's header with an empty value, which removes it.
        Profile::Nginx | Profile::Haproxy | Profile::Caddy | Profile::Traefik => {
            for header in &changes.remove {
                response = response.header(header.as_str(), "");
            }
        }
    }
    response.body(Body::empty())
}

/// The response if building one failed.
fn internal_error(error: &http::Error) -> Response<Body> {
    tracing::error!(%error, "response not built, request denied");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
