//! The HTTP door for NGINX, ingress-nginx, HAProxy, Caddy, Traefik and Envoy's HTTP mode, which send an authorization request of their
//! own before they forward the client's.
//!
//! Every method and path is an authorization request; with the path `/rule/NAME` the proxy names a rule. The client's request is read only from where the door's
//! [`Profile`] says; everything else is under the client's control. The door decides nothing.
//!
//! # Architecture invariant
//! Only `allow` responds with status 200.

mod as_proxy;
mod misdirected;
mod original_url;
mod resource_metadata;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::body::Body;
use http::header::{CACHE_CONTROL, COOKIE, HOST, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderName, Method, Request, Response, StatusCode};

pub(crate) use self::as_proxy::authorization_request;

use crate::access_request::{AccessRequest, ClaimHeaders, Headers, Removal};
use crate::clock;
use crate::config::{HttpListener, Profile};
use crate::http_denial;
use crate::identity::{RemovedHeader, UpstreamChanges};
use crate::server::{Door, LogSampler, Peer, RequestBody};
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
    misdirected_log: LogSampler,
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
        if let Some(misdirected) = misdirected::of(self.profile, &request) {
            misdirected.log(DOOR, &self.service, peer.address, &self.misdirected_log);
        }
        // A peer without an address is not a trusted proxy.
        self.authorize(&request, peer.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))).await
    }
}

impl HttpDoor {
    /// A door with the profile of this listener.
    pub(crate) fn new(service: Arc<Service>, listener: &HttpListener) -> Self {
        let HttpListener { profile, client_headers, .. } = listener;
        Self {
            service,
            profile: *profile,
            client_headers: *client_headers,
            misdirected_log: LogSampler::default(),
        }
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
    target: Target,
    /// All of these headers except Host, which every request has.
    proxy_headers: &'static [HeaderName],
    /// The text for the log if one is missing or duplicated.
    description_error: &'static str,
}

/// Where a proxy describes the target of the client's request.
enum Target {
    /// The path with its query in one header, and the host in another.
    UriAndHost(HeaderName, HeaderName),
    /// The absolute URL in one header.
    Url(HeaderName),
}

impl Target {
    /// The header that has the path.
    fn header(&self) -> &HeaderName {
        match self {
            Target::UriAndHost(header, _) | Target::Url(header) => header,
        }
    }
}

const ORIGINAL_METHOD: HeaderName = HeaderName::from_static("x-original-method");
const ORIGINAL_URI: HeaderName = HeaderName::from_static("x-original-uri");
const ORIGINAL_URL: HeaderName = HeaderName::from_static("x-original-url");
const FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

static ORIGINAL_HEADERS: [HeaderName; 2] = [ORIGINAL_METHOD, ORIGINAL_URI];
static ORIGINAL_URL_HEADERS: [HeaderName; 2] = [ORIGINAL_METHOD, ORIGINAL_URL];
static FORWARDED_HEADERS: [HeaderName; 4] =
    [FORWARDED_METHOD, FORWARDED_URI, FORWARDED_HOST, FORWARDED_PROTO];

static NGINX: RequestHeaders = RequestHeaders {
    method: ORIGINAL_METHOD,
    target: Target::UriAndHost(ORIGINAL_URI, HOST),
    proxy_headers: &ORIGINAL_HEADERS,
    description_error: "X-Original-Method and X-Original-URI must each occur once, and Host at most once: set them as in deploy/nginx",
};

static INGRESS_NGINX: RequestHeaders = RequestHeaders {
    method: ORIGINAL_METHOD,
    target: Target::Url(ORIGINAL_URL),
    proxy_headers: &ORIGINAL_URL_HEADERS,
    description_error: "X-Original-Method and X-Original-URL must each occur once, and X-Original-URL must be http:// or https://, a \
           host with or without a port, and a path: see deploy/ingress-nginx",
};

static FORWARDED: RequestHeaders = RequestHeaders {
    method: FORWARDED_METHOD,
    target: Target::UriAndHost(FORWARDED_URI, FORWARDED_HOST),
    proxy_headers: &FORWARDED_HEADERS,
    description_error: "X-Forwarded-Method and X-Forwarded-Uri must each occur once, and X-Forwarded-Host at most once: set them as in \
           deploy/",
};

/// The headers that a profile uses; `None` if the authorization request is itself the client's request.
fn request_headers(profile: Profile) -> Option<&'static RequestHeaders> {
    match profile {
        Profile::Nginx => Some(&NGINX),
        Profile::IngressNginx => Some(&INGRESS_NGINX),
        Profile::Haproxy | Profile::Caddy | Profile::Traefik => Some(&FORWARDED),
        Profile::Envoy => None,
    }
}

/// Whether this is an authorization request, rather than a client's request that a proxy forwards to this door.
fn is_authorization_request<B>(profile: Profile, request: &Request<B>) -> bool {
    request_headers(profile).is_none_or(|names| {
        request.headers().contains_key(&names.method) || request.headers().contains_key(names.target.header())
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
    let method = headers.only(names.method.as_str());
    let target = described_target(&names.target, &headers);
    let description_error = (method.is_none() || target.is_none()).then_some(names.description_error);
    let (host, path) = target.unwrap_or_default();
    let method = method.unwrap_or_default();
    AccessRequest {
        named_rule: named_rule(request),
        described_by: Some(peer),
        description_error,
        removal: Removal::NamedHeaders,
        set_by_proxy: names.proxy_headers,
        ..AccessRequest::new(method, host, path, headers, received_at)
    }
}

/// The host and the path with its query, as the proxy describes them; `None` if it does not, or not clearly.
fn described_target<'a>(target: &Target, headers: &Headers<'a>) -> Option<(&'a [u8], &'a [u8])> {
    match target {
        Target::Url(url) => original_url::host_and_path(headers.only(url.as_str())?),
        Target::UriAndHost(uri, host_header) => {
            let path = headers.only(uri.as_str())?;
            // An HTTP/1.0 request may have no Host; it then matches no rule with a host.
            let mut hosts = headers.all(host_header.as_str());
            let host = hosts.next().unwrap_or_default();
            hosts.next().is_none().then_some((host, path))
        }
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
        Profile::Nginx | Profile::IngressNginx | Profile::Haproxy | Profile::Caddy | Profile::Traefik => {
            for header in &changes.remove {
                // Traefik removes what the response lacks, and would forward an empty value.
                let is_rewritten =
                    [COOKIE.as_str(), SEC_WEBSOCKET_PROTOCOL.as_str()].contains(&header.as_str());
                if profile == Profile::Traefik && is_rewritten {
                    continue;
                }
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
