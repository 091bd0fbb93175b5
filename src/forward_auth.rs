//! The HTTP door: for NGINX, HAProxy, Caddy, Traefik and Envoy's HTTP mode, which ask with a request of
//! their own before they forward the client's.
//!
//! Any method and any path is a question. What request it is about is read as the door's [`Profile`] says
//! and in no other way; everything else is the client's own word. It decides nothing.
//!
//! # Architecture invariant
//! An answer is 200 in `allow` and nowhere else.

mod resource_metadata;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::body::Body;
use http::header::{CACHE_CONTROL, HOST};
use http::{HeaderName, Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::access_request::{AccessRequest, ClaimHeaders, Headers, Removal};
use crate::clock;
use crate::config::{HttpListener, Profile};
use crate::http_denial;
use crate::identity::{RemovedHeader, UpstreamChanges};
use crate::server::{Door, Peer};
use crate::service::Service;

/// The `door` label.
const DOOR: &str = "forward_auth";

/// What an HTTP listener says.
pub(crate) struct HttpDoor {
    service: Arc<Service>,
    /// The proxy that asks here.
    profile: Profile,
    /// What becomes of claim headers that its clients send.
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

    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        // Nobody reads the body: it would be held for as long as the request waits.
        let request = request.map(drop);
        // Without an address it is nobody's that may tell of other requests.
        self.judge(&request, peer.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))).await
    }
}

impl HttpDoor {
    /// A door for the proxy of this listener.
    pub(crate) fn new(service: Arc<Service>, listener: &HttpListener) -> Self {
        let HttpListener { profile, client_headers, .. } = listener;
        Self { service, profile: *profile, client_headers: *client_headers }
    }

    async fn judge<B>(&self, request: &Request<B>, peer: IpAddr) -> Response<Body> {
        let authorizer = self.service.authorizer();
        if !is_described(self.profile, request)
            && let Some(metadata) = resource_metadata::answer(request, &authorizer)
        {
            return metadata.unwrap_or_else(|error| broken(&error));
        }
        let access_request =
            AccessRequest { claim_headers: self.client_headers, ..describe(self.profile, request, peer) };
        let decided = authorizer.decide(DOOR, &access_request).await;
        let caller = access_request.headers.caller();
        let response = match decided.decision.allowed(authorizer.responses(), caller) {
            Ok(allowed) => allow(self.profile, allowed.changes()),
            Err(denial) => http_denial::response(*denial).map(|denial| denial.map(Body::from)),
        };
        let mut response = response.unwrap_or_else(|error| broken(&error));
        // Over HTTP/2 nobody takes it away (RFC 9110 §9.3.2), and a proxy breaks off.
        if request.method() == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }
}

/// The headers in which a proxy describes the client's request.
struct Dialect {
    method: HeaderName,
    uri: HeaderName,
    host: HeaderName,
    /// All of them but Host, which is everybody's.
    own: &'static [HeaderName],
    /// What the log says where one is missing or came twice.
    description_error: &'static str,
}

const ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
const ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
const FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

static ORIGINAL: [HeaderName; 2] = [ORIGINAL_METHOD, ORIGINAL_URI];
static FORWARDED_ONES: [HeaderName; 4] = [FORWARDED_METHOD, FORWARDED_URI, FORWARDED_HOST, FORWARDED_PROTO];

static NGINX: Dialect = Dialect {
    method: ORIGINAL_METHOD,
    uri: ORIGINAL_URI,
    host: HOST,
    own: &ORIGINAL,
    description_error: "X-Original-Method and X-Original-URI must each come once, and Host at most once: set them as in deploy/nginx",
};

static FORWARDED: Dialect = Dialect {
    method: FORWARDED_METHOD,
    uri: FORWARDED_URI,
    host: FORWARDED_HOST,
    own: &FORWARDED_ONES,
    description_error: "X-Forwarded-Method and X-Forwarded-Uri must each come once, and X-Forwarded-Host at most once: set them as in \
           deploy/",
};

/// How the proxy of a profile tells of the client's request; `None` where it is the request itself.
fn dialect(profile: Profile) -> Option<&'static Dialect> {
    match profile {
        Profile::Nginx => Some(&NGINX),
        Profile::Haproxy | Profile::Caddy | Profile::Traefik => Some(&FORWARDED),
        Profile::Envoy => None,
    }
}

/// Whether this is a question about another request, and not one that a proxy passes on to this door.
fn is_described<B>(profile: Profile, request: &Request<B>) -> bool {
    dialect(profile).is_none_or(|dialect| {
        request.headers().contains_key(&dialect.method) || request.headers().contains_key(&dialect.uri)
    })
}

/// The client's request, as the proxy of this profile tells of it.
fn describe<B>(profile: Profile, request: &Request<B>, peer: IpAddr) -> AccessRequest<'_> {
    let headers: Headers<'_> =
        request.headers().iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect();
    let arrived = clock::monotonic().into_std();
    let Some(dialect) = dialect(profile) else {
        let uri = request.uri();
        let host = uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = host.or_else(|| headers.only(HOST.as_str())).unwrap_or_default();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes();
        let method = request.method().as_str().as_bytes();
        return AccessRequest {
            removal: Removal::Headers,
            ..AccessRequest::new(method, host, path, headers, arrived)
        };
    };
    let told = [&dialect.method, &dialect.uri].map(|name| headers.only(name.as_str()));
    // A request of HTTP/1.0 may have no host; then it matches none.
    let host = headers.only(dialect.host.as_str());
    let hosts_differ = host.is_none() && headers.all(dialect.host.as_str()).next().is_some();
    let description_error =
        (hosts_differ || told.iter().any(Option::is_none)).then_some(dialect.description_error);
    let [method, path] = told.map(Option::unwrap_or_default);
    let host = host.unwrap_or_default();
    AccessRequest {
        described_by: Some(peer),
        description_error,
        removal: Removal::NamedHeaders,
        set_by_proxy: dialect.own,
        ..AccessRequest::new(method, host, path, headers, arrived)
    }
}

/// A proxy that kept an answer would give one client's identity to another.
fn uncached() -> http::response::Builder {
    Response::builder().header(CACHE_CONTROL, "no-store")
}

/// Names of headers to remove are some that HTTP has: they came in a request, or stand in the configuration.
///
/// # Errors
/// There are too many headers for an answer.
fn allow(profile: Profile, changes: &UpstreamChanges) -> http::Result<Response<Body>> {
    let mut response = uncached();
    for (name, value) in &changes.set {
        response = response.header(name.clone(), value.clone());
    }
    match profile {
        Profile::Envoy if changes.remove.is_empty() => {}
        Profile::Envoy => {
            let names: Vec<&str> = changes.remove.iter().map(RemovedHeader::as_str).collect();
            response = response.header("x-envoy-auth-headers-to-remove", names.join(","));
        }
        // Copied over what the client sent, an empty value takes it away.
        Profile::Nginx | Profile::Haproxy | Profile::Caddy | Profile::Traefik => {
            for header in &changes.remove {
                response = response.header(header.as_str(), "");
            }
        }
    }
    response.body(Body::empty())
}

/// Half an answer is none.
fn broken(error: &http::Error) -> Response<Body> {
    tracing::error!(%error, "an answer could not be written: the request is refused");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
