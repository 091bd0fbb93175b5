//! The HTTP door: for NGINX, HAProxy, Caddy, Traefik and Envoy's HTTP mode, which ask with a request of
//! their own before they forward the client's.
//!
//! Any method and any path is a question. What request it is about is read as the door's [`Profile`] says
//! and in no other way; everything else is the client's own word. It decides nothing.
//!
//! # Architecture invariant
//! An answer is 200 in `allow` and nowhere else.

mod resource_metadata;

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::header::{CACHE_CONTROL, HOST};
use http::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::access_request::{AccessRequest, Caller, ClaimHeaders, Headers, Removal};
use crate::config::{Profile, Responses};
use crate::identity::UpstreamChanges;
use crate::reason::Reason;
use crate::service::Service;
use crate::socket::{HttpSocket, ServeError};
use crate::verdict::{Decision, Verdict};

/// The `door` label.
const DOOR: &str = "forward_auth";

/// Connections of one door at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 16_384;

/// Of one request, names and values together: the largest that a proxy's file in `deploy/` lets through.
const MAX_HEADER_BYTES: usize = 128 * 1024;
const MAX_HEADERS: usize = 512;

/// What is over these bounds is read up to so many times as much, so that the refusal is a decision like any other.
const READ_AHEAD: usize = 2;

/// How long a connection may be idle, or take to bring a request's headers. Longer than NGINX keeps an idle
/// one (60 s), so that the proxy closes it and never finds it closed.
const IDLE: Duration = Duration::from_secs(75);

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves the door until `shutdown`, then finishes what is in flight.
///
/// # Errors
/// None at present: what goes wrong on one connection ends that connection.
pub async fn serve(
    service: Arc<Service>,
    socket: HttpSocket,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let HttpSocket { listener, tls, profile, client_headers } = socket;
    let door = Arc::new(Door { service, profile, client_headers });
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::pin!(shutdown);
    loop {
        let place = tokio::select! {
            () = &mut shutdown => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a client that has left: neither is worth a busy loop.
                tracing::debug!(%error, "no connection");
                sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let (door, tls, watcher) = (Arc::clone(&door), tls.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _place = place;
            // One answer is one segment, and the proxy waits for it.
            let _without = stream.set_nodelay(true);
            door.connect(stream, peer.ip(), tls, watcher).await;
        });
    }
    drop(listener);
    graceful.shutdown().await;
    Ok(())
}

struct Door {
    service: Arc<Service>,
    profile: Profile,
    client_headers: ClaimHeaders,
}

impl Door {
    async fn connect(
        self: Arc<Self>,
        stream: TcpStream,
        peer: IpAddr,
        tls: Option<TlsAcceptor>,
        watcher: Watcher,
    ) {
        match tls {
            None => self.converse(stream, peer, watcher).await,
            Some(tls) => {
                if let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(stream)).await {
                    self.converse(stream, peer, watcher).await;
                }
            }
        }
    }

    async fn converse<S>(self: Arc<Self>, stream: S, peer: IpAddr, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_headers(READ_AHEAD * MAX_HEADERS)
            .max_buf_size(READ_AHEAD * MAX_HEADER_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(IDLE)
            .max_header_list_size((READ_AHEAD * MAX_HEADER_BYTES) as u32);
        let heard = Arc::new(Notify::new());
        let first_request = Arc::clone(&heard);
        let service = Arc::clone(&self.service);
        let answer = tower::service_fn(move |request| {
            let door = Arc::clone(&self);
            heard.notify_one();
            async move { Ok::<_, Infallible>(door.answer(&request, peer).await) }
        });
        let connection =
            builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(answer)).into_owned();
        // How a connection ends is the proxy's to tell.
        tokio::select! {
            ended = watcher.watch(connection) => count_unread(&service, ended),
            // The other bounds begin when it is known which HTTP is spoken.
            () = silence(&first_request) => {}
        }
    }

    async fn answer<B>(&self, request: &Request<B>, peer: IpAddr) -> Response<Body> {
        let authorizer = self.service.authorizer();
        if !is_described(self.profile, request)
            && let Some(metadata) = resource_metadata::answer(request, &authorizer)
        {
            return metadata.unwrap_or_else(|error| broken(&error));
        }
        let access_request =
            AccessRequest { claim_headers: self.client_headers, ..describe(self.profile, request, peer) };
        let decision = authorizer.decide(DOOR, &access_request).await;
        let response = match &decision.verdict {
            Verdict::Allow(allowed) => allow(self.profile, allowed.changes()),
            Verdict::Deny(_) | Verdict::Unavailable => {
                deny(&decision, authorizer.responses(), access_request.headers.caller())
            }
        };
        let mut response = response.unwrap_or_else(|error| broken(&error));
        // Over HTTP/2 nobody takes it away (RFC 9110 §9.3.2), and a proxy breaks off.
        if request.method() == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }
}

/// A request that is too large even to be read is answered 431 by the HTTP library, and counted here.
fn count_unread(service: &Service, ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    let error = ended.err().and_then(|error| error.downcast::<hyper::Error>().ok());
    if error.is_some_and(|error| error.is_parse_too_large()) {
        let (verdict, reason) = (Verdict::Deny(Reason::RequestMalformed), Reason::RequestMalformed);
        service.metrics().decision(DOOR, verdict.as_str(), reason, "", Duration::ZERO);
    }
}

/// Ends when no request has come for too long; never once one has.
async fn silence(first_request: &Notify) {
    if timeout(IDLE, first_request.notified()).await.is_ok() {
        std::future::pending().await
    }
}

/// The headers in which a proxy describes the client's request.
struct Dialect {
    method: &'static str,
    uri: &'static str,
    host: &'static str,
    /// All of them but Host, which is everybody's.
    own: &'static [&'static str],
    /// What the log says where one is missing or came twice.
    flaw: &'static str,
}

const NGINX: Dialect = Dialect {
    method: "x-original-method",
    uri: "x-original-uri",
    host: "host",
    own: &["x-original-method", "x-original-uri"],
    flaw: "X-Original-Method and X-Original-URI must each come once, and Host at most once: set them as in deploy/nginx",
};

const FORWARDED: Dialect = Dialect {
    method: "x-forwarded-method",
    uri: "x-forwarded-uri",
    host: "x-forwarded-host",
    own: &["x-forwarded-method", "x-forwarded-uri", "x-forwarded-host", "x-forwarded-proto"],
    flaw: "X-Forwarded-Method and X-Forwarded-Uri must each come once, and X-Forwarded-Host at most once: set them as in \
           deploy/",
};

/// How the proxy of a profile tells of the client's request; `None` where it is the request itself.
fn dialect(profile: Profile) -> Option<Dialect> {
    match profile {
        Profile::Nginx => Some(NGINX),
        Profile::Haproxy | Profile::Caddy | Profile::Traefik => Some(FORWARDED),
        Profile::Envoy => None,
    }
}

/// Whether this is a question about another request, and not one that a proxy passes on to this door.
fn is_described<B>(profile: Profile, request: &Request<B>) -> bool {
    dialect(profile).is_none_or(|dialect| {
        request.headers().contains_key(dialect.method) || request.headers().contains_key(dialect.uri)
    })
}

/// The client's request, as the proxy of this profile tells of it.
fn describe<B>(profile: Profile, request: &Request<B>, peer: IpAddr) -> AccessRequest<'_> {
    let headers: Headers<'_> =
        request.headers().iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect();
    let too_large = (request.headers().len() > MAX_HEADERS || headers.bytes() > MAX_HEADER_BYTES)
        .then_some("more headers than this door takes, or larger ones");
    let Some(dialect) = dialect(profile) else {
        let uri = request.uri();
        let host = uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = host.or_else(|| headers.only(HOST.as_str())).unwrap_or_default();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes();
        let method = request.method().as_str().as_bytes();
        return AccessRequest {
            removal: Removal::Headers,
            flaw: too_large,
            ..AccessRequest::new(method, host, path, headers)
        };
    };
    let told = [dialect.method, dialect.uri].map(|name| headers.only(name));
    // A request of HTTP/1.0 may have no host; then it matches none.
    let host = headers.only(dialect.host);
    let hosts_differ = host.is_none() && headers.all(dialect.host).next().is_some();
    let flaw = (hosts_differ || told.iter().any(Option::is_none)).then_some(dialect.flaw).or(too_large);
    let [method, path] = told.map(Option::unwrap_or_default);
    let host = host.unwrap_or_default();
    AccessRequest {
        described_by: Some(peer),
        flaw,
        removal: Removal::NamedHeaders,
        of_the_proxy: dialect.own,
        ..AccessRequest::new(method, host, path, headers)
    }
}

/// A proxy that kept an answer would give one client's identity to another.
fn uncached() -> http::response::Builder {
    Response::builder().header(CACHE_CONTROL, "no-store")
}

/// An error where something cannot stand in a header, which the core has seen to.
fn allow(profile: Profile, changes: &UpstreamChanges) -> http::Result<Response<Body>> {
    let mut response = uncached();
    for (name, value) in &changes.set {
        response = response.header(name, value.as_bytes());
    }
    match profile {
        Profile::Envoy if changes.remove.is_empty() => {}
        Profile::Envoy => {
            response = response.header("x-envoy-auth-headers-to-remove", changes.remove.join(","));
        }
        // Copied over what the client sent, an empty value takes it away.
        Profile::Nginx | Profile::Haproxy | Profile::Caddy | Profile::Traefik => {
            for name in &changes.remove {
                response = response.header(name, "");
            }
        }
    }
    response.body(Body::empty())
}

fn deny(decision: &Decision, responses: &Responses, caller: Caller) -> http::Result<Response<Body>> {
    let denial = decision.denial(responses, caller);
    let mut response = uncached().status(denial.status);
    for (name, value) in denial.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(denial.body))
}

/// Half an answer is none.
fn broken(error: &http::Error) -> Response<Body> {
    tracing::error!(%error, "an answer could not be written: the request is refused");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
