//! A scripted key server, which also serves as a forward proxy: raw bytes on raw sockets, with or without TLS. It records
//! every request.
//!
//! Dropping it closes its connections.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::answer::{Answer, Step};
use super::env::TEST_TIMEOUT;

/// A received request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, or `CONNECT` at a proxy.
    pub method: String,
    /// The request target as received.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Whether the client sent a certificate.
    pub with_certificate: bool,
    raw: Vec<u8>,
}

impl Request {
    /// The value of this header.
    ///
    /// # Panics
    /// The header occurs twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| &**value);
        let value = values.next();
        assert_eq!(values.next(), None, "{name} occurs twice");
        value
    }

    fn read(raw: Vec<u8>, with_certificate: bool) -> Option<Self> {
        let text = String::from_utf8(raw.clone()).ok()?;
        let mut lines = text.split("\r\n");
        let mut parts = lines.next()?.split(' ');
        let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let header = |line: &str| {
            line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers = lines.filter_map(header).collect();
        Some(Self { method, target, headers, with_certificate, raw })
    }
}

/// The transport below HTTP.
#[derive(Clone)]
pub enum Layer {
    /// TCP without TLS.
    Plain,
    /// TLS with this certificate.
    Tls(Arc<ServerConfig>),
    /// Runs these steps once a client has connected, without reading a request.
    Raw(Vec<Step>),
    /// HTTP/2 over TLS by a conforming server; only the status and the body of an answer are sent.
    Http2(Arc<ServerConfig>),
    /// Runs these steps once the TLS handshake is complete.
    RawTls(Arc<ServerConfig>, Vec<Step>),
}

type Handler = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

struct Shared {
    handler: Mutex<Handler>,
    layer: Mutex<Layer>,
    requests: Mutex<Vec<Request>>,
    connections: watch::Sender<usize>,
    /// Connections that the client has closed.
    disconnects: watch::Sender<usize>,
    received: watch::Sender<usize>,
}

/// The server.
pub struct KeyServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl KeyServer {
    /// On 127.0.0.1, answering 404.
    pub async fn start() -> Self {
        Self::start_with(Layer::Plain).await
    }

    /// The same with this layer.
    pub async fn start_with(layer: Layer) -> Self {
        let started = Self::start_at(Ipv4Addr::LOCALHOST.into(), layer).await;
        started.expect("port 0 can be bound")
    }

    /// On another address of this machine; `None` if it cannot be bound.
    pub async fn start_at(address: IpAddr, layer: Layer) -> Option<Self> {
        let listener = TcpListener::bind((address, 0)).await.ok()?;
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            handler: Mutex::new(Arc::new(|_| Answer::status(404))),
            layer: Mutex::new(layer),
            requests: Mutex::default(),
            connections: watch::Sender::new(0),
            disconnects: watch::Sender::new(0),
            received: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Some(Self { address, shared, accepting })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT/path`.
    pub fn http(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// `https://localhost:PORT/path`.
    pub fn https(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// Answers every request like this from now on.
    pub fn respond_with(&self, answer: Answer) {
        self.on(move |_| answer.clone());
    }

    /// Answers requests with this handler from now on.
    pub fn on(&self, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *lock(&self.shared.handler) = Arc::new(handler);
    }

    /// Uses this layer for new connections.
    pub fn set_layer(&self, layer: Layer) {
        *lock(&self.shared.layer) = layer;
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// The number of requests for this target.
    pub fn requests_for(&self, target: &str) -> usize {
        lock(&self.shared.requests).iter().filter(|request| request.target == target).count()
    }

    /// The number of connections, with or without a request.
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// Waits for this many requests since the start and returns the last one.
    pub async fn request(&self, number: usize) -> Request {
        wait_for_count(&self.shared.received, number, "requests").await;
        lock(&self.shared.requests)[number - 1].clone()
    }

    /// Waits until clients have closed this many connections before the answer was complete.
    pub async fn wait_for_disconnects(&self, count: usize) {
        wait_for_count(&self.shared.disconnects, count, "disconnects").await;
    }
}

async fn wait_for_count(counter: &watch::Sender<usize>, count: usize, what: &str) {
    let mut receiver = counter.subscribe();
    let reached = tokio::time::timeout(TEST_TIMEOUT, receiver.wait_for(|now| *now >= count)).await;
    assert!(reached.is_ok(), "timeout: expected {count} {what}, got {}", *counter.borrow());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("not poisoned")
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with the server.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        shared.connections.send_modify(|count| *count += 1);
        connections.spawn(connection(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

/// Ends with an error of the client or the handshake; tests check the result at the client.
async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let layer = lock(&shared.layer).clone();
    match layer {
        Layer::Plain => serve_http1(stream, false, &shared).await,
        Layer::Raw(steps) => run_steps(stream, steps, &[], &shared).await,
        Layer::Http2(config) => {
            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                serve_http2(stream, shared).await;
            }
        }
        Layer::RawTls(config, steps) => {
            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                run_steps(stream, steps, &[], &shared).await;
            }
        }
        Layer::Tls(config) => {
            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                let with_certificate = stream.get_ref().1.peer_certificates().is_some();
                serve_http1(stream, with_certificate, &shared).await;
            }
        }
    }
}

async fn serve_http1(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    with_certificate: bool,
    shared: &Shared,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let Some(request) = Request::read(head, with_certificate) else { return };
    let handler = Arc::clone(&lock(&shared.handler));
    let answer = handler(&request);
    let raw = request.raw.clone();
    lock(&shared.requests).push(request);
    shared.received.send_modify(|count| *count += 1);
    run_steps(stream, answer.into_steps(), &raw, shared).await;
}

async fn serve_http2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>) {
    let router = axum::Router::new().fallback(async move |request: axum::extract::Request| {
        assert_eq!(request.version(), http::Version::HTTP_2);
        let recorded = Request {
            method: request.method().to_string(),
            target: request.uri().path().to_owned(),
            headers: Vec::new(),
            with_certificate: false,
            raw: Vec::new(),
        };
        let handler = Arc::clone(&lock(&shared.handler));
        let (status, body) = handler(&recorded).into_status_and_body();
        lock(&shared.requests).push(recorded);
        shared.received.send_modify(|count| *count += 1);
        (http::StatusCode::from_u16(status).expect("a status"), body)
    });
    let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
    let service = hyper_util::service::TowerToHyperService::new(router);
    let _closed = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
}

async fn run_steps(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    steps: Vec<Step>,
    request: &[u8],
    shared: &Shared,
) {
    for step in steps {
        if run_step(&mut stream, step, request).await.is_none() {
            shared.disconnects.send_modify(|count| *count += 1);
            return;
        }
    }
    let _closed = stream.shutdown().await;
    // Closing with unread bytes resets the connection, and the last bytes sent may be lost.
    let _rest = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// `None` if the client has closed the connection.
async fn run_step<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    step: Step,
    request: &[u8],
) -> Option<()> {
    match step {
        Step::Send(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            stream.flush().await.ok()
        }
        Step::Repeat(bytes) => loop {
            stream.write_all(&bytes).await.ok()?;
            stream.flush().await.ok()?;
            // Keeps the writes separate.
            tokio::time::sleep(Duration::from_millis(1)).await;
        },
        Step::Wait(gate) => tokio::select! {
            () = gate.wait() => Some(()),
            () = wait_for_close(stream) => None,
        },
        Step::KeepOpen => {
            wait_for_close(stream).await;
            None
        }
        Step::Tunnel(to) => {
            let mut upstream = TcpStream::connect(to).await.ok()?;
            copy_bidirectional(stream, &mut upstream).await.ok().map(|_| ())
        }
        Step::Relay(to) => {
            let mut upstream = TcpStream::connect(to).await.ok()?;
            upstream.write_all(&to_origin_form(request)).await.ok()?;
            copy_bidirectional(stream, &mut upstream).await.ok().map(|_| ())
        }
    }
}

async fn wait_for_close(stream: &mut (impl AsyncRead + Unpin)) {
    let mut rest = [0; 64];
    while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
}

/// Converts a request from absolute form to origin form (RFC 9112 §3.2).
fn to_origin_form(request: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    let (line, rest) = text.split_once("\r\n").expect("a request line");
    let parts: Vec<&str> = line.split(' ').collect();
    let path = parts[1].split('/').skip(3).collect::<Vec<_>>().join("/");
    format!("{} /{path} {}\r\n{rest}", parts[0], parts[2]).into_bytes()
}
