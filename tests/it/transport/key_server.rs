//! A key server that does as it is told, and a forward proxy of the same make: raw bytes on raw sockets,
//! with or without TLS, every request written down.
//!
//! It ends with its value, and its connections with it.

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
use super::house::PATIENCE;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, or `CONNECT` at a proxy.
    pub method: String,
    /// The request target as it was written.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Whether the client showed a certificate.
    pub with_certificate: bool,
    whole: Vec<u8>,
}

impl Request {
    /// The one value of this header.
    ///
    /// # Panics
    /// It is there twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| &**value);
        let value = values.next();
        assert_eq!(values.next(), None, "{name} is sent once");
        value
    }

    fn read(whole: Vec<u8>, with_certificate: bool) -> Option<Self> {
        let text = String::from_utf8(whole.clone()).ok()?;
        let mut lines = text.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let header = |line: &str| {
            line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers = lines.filter_map(header).collect();
        Some(Self { method, target, headers, with_certificate, whole })
    }
}

/// What lies under HTTP.
#[derive(Clone)]
pub enum Layer {
    /// TCP alone.
    Plain,
    /// TLS with this certificate.
    Tls(Arc<ServerConfig>),
    /// No request is read: this is done as soon as somebody has connected.
    Rude(Vec<Step>),
    /// TLS with HTTP/2 in it, which reads and writes by the book: of an answer the status and the body.
    Http2(Arc<ServerConfig>),
    /// Rude as soon as TLS stands.
    RudeWithin(Arc<ServerConfig>, Vec<Step>),
}

type Handler = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

struct Shared {
    handler: Mutex<Handler>,
    layer: Mutex<Layer>,
    requests: Mutex<Vec<Request>>,
    connections: watch::Sender<usize>,
    /// Connections whose other end was seen to go.
    gone: watch::Sender<usize>,
    arrived: watch::Sender<usize>,
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

    /// The same, over this.
    pub async fn start_with(layer: Layer) -> Self {
        let started = Self::start_at(Ipv4Addr::LOCALHOST.into(), layer).await;
        started.expect("port 0 can be bound")
    }

    /// On another address of this machine, if it has it.
    pub async fn start_at(address: IpAddr, layer: Layer) -> Option<Self> {
        let listener = TcpListener::bind((address, 0)).await.ok()?;
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            handler: Mutex::new(Arc::new(|_| Answer::status(404))),
            layer: Mutex::new(layer),
            requests: Mutex::default(),
            connections: watch::Sender::new(0),
            gone: watch::Sender::new(0),
            arrived: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Some(Self { address, shared, accepting })
    }

    /// Where it is.
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

    /// From now on every request gets this.
    pub fn always(&self, answer: Answer) {
        self.on(move |_| answer.clone());
    }

    /// From now on a request gets what this makes of it.
    pub fn on(&self, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *locked(&self.shared.handler) = Arc::new(handler);
    }

    /// From now on connections are made over this.
    pub fn over(&self, layer: Layer) {
        *locked(&self.shared.layer) = layer;
    }

    /// The requests until now.
    pub fn requests(&self) -> Vec<Request> {
        locked(&self.shared.requests).clone()
    }

    /// How many requests there were for this target.
    pub fn asked_for(&self, target: &str) -> usize {
        locked(&self.shared.requests).iter().filter(|request| request.target == target).count()
    }

    /// How many connections there were, with a request or without.
    pub fn connections(&self) -> usize {
        *self.shared.connections.borrow()
    }

    /// Waits for this many requests since the start, and gives the last of them.
    pub async fn request(&self, number: usize) -> Request {
        reaches(&self.shared.arrived, number, "requests").await;
        locked(&self.shared.requests)[number - 1].clone()
    }

    /// Waits until this many connections have been given up by the other end, while something was being
    /// sent to it or kept from it.
    pub async fn wait_for_gone(&self, count: usize) {
        reaches(&self.shared.gone, count, "connections given up").await;
    }
}

async fn reaches(counter: &watch::Sender<usize>, count: usize, what: &str) {
    let mut counted = counter.subscribe();
    let reached = tokio::time::timeout(PATIENCE, counted.wait_for(|now| *now >= count)).await;
    assert!(reached.is_ok(), "never {count} {what}, but {}", *counter.borrow());
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panicked with the lock")
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // They end with the server.
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

/// Ends where the other side does, or does not behave: what a client made of it, the client says.
async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let layer = locked(&shared.layer).clone();
    match layer {
        Layer::Plain => exchange(stream, false, &shared).await,
        Layer::Rude(steps) => play(stream, steps, &[], &shared).await,
        Layer::Http2(config) => {
            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                exchange_by_the_book(stream, shared).await;
            }
        }
        Layer::RudeWithin(config, steps) => {
            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                play(stream, steps, &[], &shared).await;
            }
        }
        Layer::Tls(config) => {
            if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                let with_certificate = stream.get_ref().1.peer_certificates().is_some();
                exchange(stream, with_certificate, &shared).await;
            }
        }
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, with_certificate: bool, shared: &Shared) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let Some(request) = Request::read(head, with_certificate) else { return };
    let handler = Arc::clone(&locked(&shared.handler));
    let answer = handler(&request);
    let whole = request.whole.clone();
    locked(&shared.requests).push(request);
    shared.arrived.send_modify(|count| *count += 1);
    play(stream, answer.into_steps(), &whole, shared).await;
}

async fn exchange_by_the_book(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shared: Arc<Shared>,
) {
    let answers = axum::Router::new().fallback(async move |request: axum::extract::Request| {
        assert_eq!(request.version(), http::Version::HTTP_2);
        let known = Request {
            method: request.method().to_string(),
            target: request.uri().path().to_owned(),
            headers: Vec::new(),
            with_certificate: false,
            whole: Vec::new(),
        };
        let handler = Arc::clone(&locked(&shared.handler));
        let (status, body) = handler(&known).into_status_and_body();
        locked(&shared.requests).push(known);
        shared.arrived.send_modify(|count| *count += 1);
        (http::StatusCode::from_u16(status).expect("a status"), body)
    });
    let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
    let service = hyper_util::service::TowerToHyperService::new(answers);
    let _gone = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
}

async fn play(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    steps: Vec<Step>,
    request: &[u8],
    shared: &Shared,
) {
    for step in steps {
        if do_step(&mut stream, step, request).await.is_none() {
            shared.gone.send_modify(|count| *count += 1);
            return;
        }
    }
    let _gone = stream.shutdown().await;
    // Closed with bytes unread, it would be reset, and what was sent last might never arrive.
    let _rest = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// `None` once the client has gone.
async fn do_step<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    step: Step,
    request: &[u8],
) -> Option<()> {
    match step {
        Step::Send(bytes) => {
            stream.write_all(&bytes).await.ok()?;
            stream.flush().await.ok()
        }
        Step::Forever(bytes) => loop {
            stream.write_all(&bytes).await.ok()?;
            stream.flush().await.ok()?;
            // So that a drop at a time stays one.
            tokio::time::sleep(Duration::from_millis(1)).await;
        },
        Step::Wait(gate) => tokio::select! {
            () = gate.pass() => Some(()),
            () = leaves(stream) => None,
        },
        Step::Stay => {
            leaves(stream).await;
            None
        }
        Step::Tunnel(to) => {
            let mut onward = TcpStream::connect(to).await.ok()?;
            copy_bidirectional(stream, &mut onward).await.ok().map(|_| ())
        }
        Step::Relay(to) => {
            let mut onward = TcpStream::connect(to).await.ok()?;
            onward.write_all(&as_asked_there(request)).await.ok()?;
            copy_bidirectional(stream, &mut onward).await.ok().map(|_| ())
        }
    }
}

async fn leaves(stream: &mut (impl AsyncRead + Unpin)) {
    let mut rest = [0; 64];
    while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
}

/// A request in absolute form, in the form for the server itself.
fn as_asked_there(request: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    let (line, rest) = text.split_once("\r\n").expect("a request line");
    let words: Vec<&str> = line.split(' ').collect();
    let path = words[1].split('/').skip(3).collect::<Vec<_>>().join("/");
    format!("{} /{path} {}\r\n{rest}", words[0], words[2]).into_bytes()
}
