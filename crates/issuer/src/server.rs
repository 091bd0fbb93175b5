//! The HTTP server of the embedded issuer: answers, counts and faults.
//!
//! Answers depend on [`State`] at the time of arrival. There are no timers except [`Fault::Slow`] and the delay after
//! a failed `accept`, so tests order events by counting, not by sleeping. `serve` must not use it, and it makes no
//! decision about tokens.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::Stream;

/// The base path of the issuer.
pub(crate) const REALM_PATH: &str = "/realms/demo";
const DISCOVERY_PATH: &str = "/realms/demo/.well-known/openid-configuration";
const KEYS_PATH: &str = "/realms/demo/keys";

/// The number of paths that the log of requests keeps.
const MAX_LOGGED_REQUESTS: usize = 1024;

const CHUNK_BYTES: usize = 64 * 1024;

/// Delay after a failed `accept`: descriptors are exhausted, and an immediate retry would fail too.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(10);

/// A fault of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status, with an empty body; 500 if the number is not a status.
    Status(u16),
    /// An HTML page with status 200, as a captive portal or a login page.
    Html,
    /// `{"keys":[]}`.
    EmptySet,
    /// Status 200 with an empty body.
    EmptyBody,
    /// The document, then spaces up to this total size in bytes, streamed without a `content-length`: valid JSON that
    /// only a size limit rejects.
    Huge(usize),
    /// Half the document with the `content-length` of the complete one, then the connection closes.
    HalfBody,
    /// Half the document with the `content-length` of the complete one, then the connection stalls.
    StalledBody,
    /// The normal answer, after this delay.
    Slow(Duration),
    /// No answer, and the connection stays open.
    Hang,
    /// The connection closes without an answer.
    DropConnection,
    /// A 302 to this address.
    Redirect(String),
    /// Any answer.
    Raw {
        /// The status; 500 if the number is not a status.
        status: u16,
        /// The `content-type`.
        content_type: String,
        /// The body.
        body: Vec<u8>,
    },
}

/// The documents of the issuer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Discovery,
    Keys,
}

/// How a held request is answered.
#[derive(Clone, Copy)]
pub(crate) enum Released {
    /// With the document at the time of its arrival.
    AsArrived,
    /// With the current document.
    Current,
}

/// The number of requests so far, and of those that are held.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) keys: u64,
    pub(crate) discovery: u64,
    pub(crate) held: usize,
}

/// The published keys, the faults, and the requests so far.
pub(crate) struct State {
    issuer: String,
    settings: Mutex<Settings>,
    counts: watch::Sender<Counts>,
}

pub(crate) struct Settings {
    pub(crate) published: Value,
    pub(crate) cache_control: Option<String>,
    pub(crate) key_fault: Option<Fault>,
    pub(crate) discovery_fault: Option<Fault>,
    pub(crate) holding: bool,
    held: VecDeque<(u64, oneshot::Sender<Released>)>,
    arrivals: u64,
    requests: VecDeque<String>,
}

/// A request, with everything that its answer depends on, at the time of its arrival.
struct Arrival {
    endpoint: Endpoint,
    fault: Option<Fault>,
    document: Document,
    held: Option<Held>,
}

struct Document {
    body: Bytes,
    cache_control: Option<String>,
}

/// An entry in the queue of held requests, removed when the client disconnects.
struct Held {
    id: u64,
    released: oneshot::Receiver<Released>,
    state: Arc<State>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut settings = self.state.settings();
        settings.held.retain(|(id, _)| *id != self.id);
        self.state.count(|counts| counts.held = settings.held.len());
    }
}

impl State {
    pub(crate) fn new(issuer: String) -> Self {
        Self {
            issuer,
            settings: Mutex::new(Settings {
                published: json!({"keys": []}),
                cache_control: None,
                key_fault: None,
                discovery_fault: None,
                holding: false,
                held: VecDeque::new(),
                arrivals: 0,
                requests: VecDeque::new(),
            }),
            counts: watch::Sender::new(Counts::default()),
        }
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(crate) fn jwks_uri(&self) -> String {
        format!("{}/keys", self.issuer)
    }

    pub(crate) fn discovery_uri(&self) -> String {
        format!("{}/.well-known/openid-configuration", self.issuer)
    }

    /// The settings. No code that holds the lock can panic midway, so a poisoned lock is still sound.
    pub(crate) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.settings().requests.iter().cloned().collect()
    }

    /// Waits until the counts satisfy a condition.
    pub(crate) async fn wait_until(&self, reached: impl FnMut(&Counts) -> bool) {
        let mut counts = self.counts.subscribe();
        let counts = counts.wait_for(reached).await;
        drop(counts.expect("the sender lives in self"));
    }

    /// Releases held requests, the oldest first, `max` at most; returns how many.
    pub(crate) fn release(&self, settings: &mut Settings, max: usize, released: Released) -> usize {
        let mut count = 0;
        while count < max
            && let Some((_, waiting)) = settings.held.pop_front()
        {
            // A client that has just disconnected is not counted.
            count += usize::from(waiting.send(released).is_ok());
        }
        self.count(|counts| counts.held = settings.held.len());
        count
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(change);
    }

    /// Records a request: logs and counts it, prepares its answer, and holds it if requests are held.
    fn record_request(self: &Arc<Self>, method: &Method, path: &str) -> Option<Arrival> {
        let mut settings = self.settings();
        if settings.requests.len() == MAX_LOGGED_REQUESTS {
            settings.requests.pop_front();
        }
        settings.requests.push_back(path.to_owned());
        let endpoint = match path {
            DISCOVERY_PATH if method == Method::GET => Endpoint::Discovery,
            KEYS_PATH if method == Method::GET => Endpoint::Keys,
            _ => return None,
        };
        let fault = match endpoint {
            Endpoint::Discovery => settings.discovery_fault.clone(),
            Endpoint::Keys => settings.key_fault.clone(),
        };
        let document = self.document(&settings, endpoint);
        let held = (endpoint == Endpoint::Keys && settings.holding).then(|| {
            let (release, released) = oneshot::channel();
            let id = settings.arrivals;
            settings.arrivals += 1;
            settings.held.push_back((id, release));
            Held { id, released, state: Arc::clone(self) }
        });
        self.count(|counts| {
            match endpoint {
                Endpoint::Discovery => counts.discovery += 1,
                Endpoint::Keys => counts.keys += 1,
            }
            counts.held = settings.held.len();
        });
        Some(Arrival { endpoint, fault, document, held })
    }

    fn document(&self, settings: &Settings, endpoint: Endpoint) -> Document {
        let body = match endpoint {
            Endpoint::Keys => settings.published.to_string(),
            Endpoint::Discovery => self.discovery(&settings.published).to_string(),
        };
        Document { body: body.into(), cache_control: settings.cache_control.clone() }
    }

    /// The metadata that OpenID Connect Discovery 1.0 §3 requires, for an issuer that only publishes keys.
    fn discovery(&self, published: &Value) -> Value {
        let algorithms: BTreeSet<&str> = published["keys"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|key| key["alg"].as_str())
            .collect();
        json!({
            "issuer": self.issuer,
            "jwks_uri": self.jwks_uri(),
            "authorization_endpoint": format!("{}/authorize", self.issuer),
            "token_endpoint": format!("{}/token", self.issuer),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    /// Answers a request; an error closes the connection without an answer.
    async fn answer(self: Arc<Self>, method: Method, path: String) -> io::Result<Response<Body>> {
        let Some(mut arrival) = self.record_request(&method, &path) else {
            return Ok(respond(StatusCode::NOT_FOUND, "text/plain", "not found\n"));
        };
        if let Some(held) = &mut arrival.held
            && let Ok(Released::Current) = (&mut held.released).await
        {
            arrival.document = self.document(&self.settings(), arrival.endpoint);
        }
        let document = arrival.document;
        let json = "application/json";
        Ok(match arrival.fault {
            None => document.complete(),
            Some(Fault::Slow(delay)) => {
                tokio::time::sleep(delay).await;
                document.complete()
            }
            Some(Fault::Status(code)) => respond(status(code), json, Body::empty()),
            Some(Fault::Html) => respond(
                StatusCode::OK,
                "text/html; charset=utf-8",
                "<!doctype html><title>Sign in</title><p>Please sign in.\n",
            ),
            Some(Fault::EmptySet) => respond(StatusCode::OK, json, r#"{"keys":[]}"#),
            Some(Fault::EmptyBody) => respond(StatusCode::OK, json, Body::empty()),
            Some(Fault::Huge(size)) => document.padded(size),
            Some(Fault::HalfBody) => document.half(AfterHalf::Close),
            Some(Fault::StalledBody) => document.half(AfterHalf::Stall),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::DropConnection) => return Err(io::ErrorKind::ConnectionAborted.into()),
            Some(Fault::Redirect(location)) => with_header(
                respond(StatusCode::FOUND, "text/plain", Body::empty()),
                header::LOCATION,
                &location,
            ),
            Some(Fault::Raw { status: code, content_type, body }) => {
                respond(status(code), &content_type, body)
            }
        })
    }
}

impl Document {
    fn complete(self) -> Response<Body> {
        let body = Body::from(self.body.clone());
        self.respond(body)
    }

    fn padded(self, size: usize) -> Response<Body> {
        let spaces = size.saturating_sub(self.body.len());
        let padding = (0..spaces)
            .step_by(CHUNK_BYTES)
            .map(move |sent| Bytes::from(vec![b' '; CHUNK_BYTES.min(spaces - sent)]));
        let chunks = std::iter::once(self.body.clone()).chain(padding);
        let body = Body::from_stream(tokio_stream::iter(chunks.map(Ok::<_, Infallible>)));
        self.respond(body)
    }

    fn half(self, then: AfterHalf) -> Response<Body> {
        let body = Body::from_stream(HalfBody {
            half: Some(self.body.slice(..self.body.len() / 2)),
            flushed: false,
            then,
        });
        let length = self.body.len().to_string();
        with_header(self.respond(body), header::CONTENT_LENGTH, &length)
    }

    fn respond(self, body: Body) -> Response<Body> {
        let response = respond(StatusCode::OK, "application/json", body);
        match self.cache_control {
            Some(value) => with_header(response, header::CACHE_CONTROL, &value),
            None => response,
        }
    }
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn respond(status: StatusCode, content_type: &str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    with_header(response, header::CONTENT_TYPE, content_type)
}

/// Sets a header; an invalid value is omitted.
fn with_header(mut response: Response<Body>, name: header::HeaderName, value: &str) -> Response<Body> {
    if let Ok(value) = value.parse() {
        response.headers_mut().insert(name, value);
    }
    response
}

#[derive(Clone, Copy)]
enum AfterHalf {
    Close,
    Stall,
}

/// A truncated body. It yields once after its half, which the server would otherwise not flush before closing.
struct HalfBody {
    half: Option<Bytes>,
    flushed: bool,
    then: AfterHalf,
}

impl Stream for HalfBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(half) = self.half.take() {
            return Poll::Ready(Some(Ok(half)));
        }
        match self.then {
            AfterHalf::Stall => Poll::Pending,
            AfterHalf::Close if self.flushed => {
                Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())))
            }
            AfterHalf::Close => {
                self.flushed = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

/// The state as the service of a connection.
#[derive(Clone)]
struct Service(Arc<State>);

impl<B> tower::Service<Request<B>> for Service {
    type Response = Response<Body>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Response<Body>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path().to_owned();
        Box::pin(Arc::clone(&self.0).answer(request.method().clone(), path))
    }
}

/// A listener and its connections, running or stopped; dropped together.
pub(crate) struct Server {
    address: SocketAddr,
    running: Option<Running>,
    /// While stopped, the port stays bound (connections are refused), so that no other process gets it.
    reserved: Option<TcpSocket>,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<(Self, TcpListener)> {
        let listener = TcpListener::bind(address).await?;
        let server = Self { address: listener.local_addr()?, running: None, reserved: None };
        Ok((server, listener))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn run(&mut self, listener: TcpListener, state: Arc<State>) {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, state, stopped));
        self.running = Some(Running { stop, task });
    }

    /// Closes the listener and every connection, and waits for that.
    pub(crate) async fn stop(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let (stop, _) = oneshot::channel();
        // Both fail only if the task has ended already.
        let _ = std::mem::replace(&mut running.stop, stop).send(());
        let _ = (&mut running.task).await;
        self.running = None;
        self.reserved = bind_port(self.address).ok();
    }

    pub(crate) async fn restart(&mut self, state: Arc<State>) -> io::Result<()> {
        self.stop().await;
        let listener = match self.reserved.take() {
            Some(socket) => socket.listen(1024)?,
            None => TcpListener::bind(self.address).await?,
        };
        self.run(listener, state);
        Ok(())
    }
}

fn bind_port(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Serves until stopped or dropped; connections end with it.
async fn serve(listener: TcpListener, state: Arc<State>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let service = TowerToHyperService::new(Service(Arc::clone(&state)));
                    connections.spawn(async move {
                        // Errors of a connection, including bugs of this server, are visible to the client.
                        let _ = Builder::new(TokioExecutor::new())
                            .http1_only()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
                // Out of descriptors, or the client has disconnected already: other connections continue, and the
                // loop does not spin.
                Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}
