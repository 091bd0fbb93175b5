//! A service with every kind of listener, and connections to each.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use portcullis::access_request::ClaimHeaders;
use portcullis::app::App;
use portcullis::clock;
use portcullis::commands::issuer::{SigningAlgorithm, SigningKey};
use portcullis::config::{AdminListener, BindAddress, Config, GrpcListener, HttpListener, Profile, TlsFiles};
use portcullis::service::Service;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::http2;
use crate::support::pki::Pki;
use crate::support::{config, fixed_clock, inline, provider, subprocess};

/// A listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Grpc,
    GrpcTls,
    GrpcFile,
    Http,
    HttpTls,
    Admin,
    AdminTls,
}

impl Kind {
    pub const ALL: [Kind; 7] =
        [Kind::Grpc, Kind::GrpcTls, Kind::GrpcFile, Kind::Http, Kind::HttpTls, Kind::Admin, Kind::AdminTls];

    /// The listeners for Checks.
    pub const GRPC: [Kind; 3] = [Kind::Grpc, Kind::GrpcTls, Kind::GrpcFile];

    /// The listeners for both HTTP/1.1 and HTTP/2.
    pub const HTTP_1: [Kind; 4] = [Kind::Http, Kind::HttpTls, Kind::Admin, Kind::AdminTls];

    pub fn door(self) -> &'static str {
        match self {
            Kind::Grpc | Kind::GrpcTls | Kind::GrpcFile => "ext_authz",
            Kind::Http | Kind::HttpTls => "forward_auth",
            Kind::Admin | Kind::AdminTls => "admin",
        }
    }

    pub fn is_tls(self) -> bool {
        matches!(self, Kind::GrpcTls | Kind::HttpTls | Kind::AdminTls)
    }

    /// An HTTP/2 request that is served immediately, with the end of its stream.
    pub fn request(self, stream: u32) -> Vec<u8> {
        use http2::{DATA, END_HEADERS, END_STREAM, HEADERS, frame};
        match self {
            Kind::Grpc | Kind::GrpcTls | Kind::GrpcFile => [
                frame(HEADERS, END_HEADERS, stream, &http2::call("/grpc.health.v1.Health/Check")),
                frame(DATA, END_STREAM, stream, &[0; 5]),
            ]
            .concat(),
            _ => frame(HEADERS, END_HEADERS | END_STREAM, stream, &http2::get("/livez")),
        }
    }
}

/// A bidirectional byte stream.
pub trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Bytes for S {}
pub type Connection = Box<dyn Bytes>;

/// A service with every listener. Stops when dropped.
pub struct ListenerEnv {
    grpc: Vec<SocketAddr>,
    http: Vec<SocketAddr>,
    admin: SocketAddr,
    folder: tempfile::TempDir,
    pki: Pki,
    pub service: Arc<Service>,
    /// A process has only one admin listener, so the one with TLS has a service of its own.
    admin_tls: SocketAddr,
    admin_tls_service: Arc<Service>,
    stop: Vec<oneshot::Sender<()>>,
    serving: Vec<JoinHandle<()>>,
    clock: JoinHandle<()>,
}

impl Drop for ListenerEnv {
    fn drop(&mut self) {
        self.serving.iter().chain([&self.clock]).for_each(JoinHandle::abort);
    }
}

impl ListenerEnv {
    pub async fn open() -> Self {
        Self::open_with(|_| {}).await
    }

    /// With a changed configuration.
    pub async fn open_with(change: impl FnOnce(&mut Config)) -> Self {
        let key = SigningKey::generate("a", SigningAlgorithm::ES256);
        let folder = tempfile::tempdir().expect("a temporary directory");
        let pki = Pki::new();
        let mut config =
            config(vec![inline(provider("p", "https://issuer.example.com"), &[key.public_jwk()])]);
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let tls = Some(TlsFiles { client_ca_file: None, client_names: Vec::new(), ..pki.files() });
        let grpc = |address, tls| GrpcListener { address, tls };
        config.listen.ext_authz = vec![
            grpc(BindAddress::Tcp(anywhere), None),
            grpc(BindAddress::Tcp(anywhere), tls.clone()),
            grpc(BindAddress::Unix { path: socket_path(&folder), mode: None }, None),
        ];
        let http = |tls| HttpListener {
            address: anywhere,
            profile: Profile::Envoy,
            client_headers: ClaimHeaders::MaybeKept,
            tls,
        };
        config.listen.forward_auth = vec![http(None), http(tls.clone())];
        config.listen.admin = Some(AdminListener {
            address: anywhere,
            tls: None,
            hosts: Vec::new(),
            refusals: AdminListener::REFUSALS,
        });
        change(&mut config);
        let mut admin_tls_config = config.clone();
        admin_tls_config.listen.ext_authz = vec![grpc(BindAddress::Tcp(anywhere), None)];
        admin_tls_config.listen.forward_auth.clear();
        admin_tls_config.listen.admin.as_mut().expect("on").tls = tls;
        let (app, admin_tls_app) = (bind(config).await, bind(admin_tls_config).await);
        let (grpc, http) = (app.ext_authz_addresses(), app.forward_auth_addresses());
        let [admin, admin_tls] = [&app, &admin_tls_app].map(|app| app.admin_address().expect("on"));
        let (service, admin_tls_service) = (app.service(), admin_tls_app.service());
        let (mut stop, mut serving) = (Vec::new(), Vec::new());
        for app in [app, admin_tls_app] {
            let (stopping, signal) = oneshot::channel::<()>();
            stop.push(stopping);
            serving.push(tokio::spawn(app.serve(async move {
                // An error means that the test has ended.
                let _closed = signal.await;
            })));
        }
        let clock = subprocess::wait_for_starts();
        Self { grpc, http, admin, admin_tls, folder, pki, service, admin_tls_service, stop, serving, clock }
    }

    /// Sends the shutdown signal.
    pub fn shut_down(&mut self) {
        self.stop.drain(..).for_each(|stop| stop.send(()).expect("it serves"));
    }

    /// Waits until it has stopped; returns the elapsed time.
    pub async fn wait_stopped(&mut self) -> Duration {
        let started_at = clock::monotonic();
        for serving in &mut self.serving {
            timeout(Duration::from_secs(1000), serving).await.expect("it ends").expect("no panic");
        }
        started_at.elapsed()
    }

    /// A connection without a TLS handshake, on which no byte was sent.
    pub async fn connect_raw(&self, kind: Kind) -> Connection {
        let address = match kind {
            Kind::Grpc => self.grpc[0],
            Kind::GrpcTls => self.grpc[1],
            Kind::Http => self.http[0],
            Kind::HttpTls => self.http[1],
            Kind::Admin => self.admin,
            Kind::AdminTls => self.admin_tls,
            Kind::GrpcFile => {
                let socket = UnixStream::connect(socket_path(&self.folder)).await;
                return Box::new(socket.expect("it listens"));
            }
        };
        let stream = TcpStream::connect(address).await.expect("it listens");
        // Nagle's algorithm would make the paused clock jump.
        stream.set_nodelay(true).expect("a socket");
        Box::new(stream)
    }

    /// A connection that is ready for HTTP.
    pub async fn connect(&self, kind: Kind) -> Connection {
        let connect_raw = self.connect_raw(kind).await;
        if !kind.is_tls() {
            return connect_raw;
        }
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pki.ca.as_bytes()).expect("PEM"))
            .expect("an authority");
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(crypto)
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(client));
        let name = ServerName::try_from("localhost").expect("a name");
        Box::new(connector.connect(name, connect_raw).await.expect("a handshake"))
    }

    /// Whether a new connection to this listener gets a response.
    pub async fn responds(&self, kind: Kind) -> bool {
        let mut connection = self.connect(kind).await;
        let mut sent = http2::preface(&[]);
        sent.extend(kind.request(1));
        connection.write_all(&sent).await.is_ok() && http2::answered(&mut connection, 1).await
    }

    /// Asserts that every listener responds.
    pub async fn assert_all_respond(&self, what: &str) {
        for kind in Kind::ALL {
            let answered = timeout(Duration::from_secs(1000), self.responds(kind)).await;
            assert_eq!(answered, Ok(true), "{kind:?} while {what}");
        }
    }

    /// The sum of the samples of this metric whose labels contain this text.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        [&self.service, &self.admin_tls_service].map(|service| metric(service, name, label)).iter().sum()
    }

    /// The same for the service that has all listeners but one.
    pub fn own_metric(&self, name: &str, label: &str) -> f64 {
        metric(&self.service, name, label)
    }
}

fn metric(service: &Service, name: &str, label: &str) -> f64 {
    let text = service.metrics().encode().expect("text");
    let of_metric = text.lines().filter_map(|line| line.strip_prefix(name));
    let of_label = of_metric
        .filter_map(|line| line.rsplit_once("} "))
        .filter(|(labels, _)| labels.starts_with('{') && labels.contains(label));
    of_label.map(|(_, value)| value.parse::<f64>().expect("a number")).sum()
}

async fn bind(config: Config) -> App {
    App::bind(config, fixed_clock()).await.expect("bound")
}

fn socket_path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("authz.sock")
}

/// The time until the peer closes this connection; ignores what it sends before.
pub async fn until_closed(connection: &mut (impl AsyncRead + Unpin)) -> Duration {
    let started_at = clock::monotonic();
    let closed = async {
        let mut some = [0; 4096];
        loop {
            match connection.read(&mut some).await {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    let gone = [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof];
                    assert!(gone.contains(&error.kind()), "{error}");
                    return;
                }
            }
        }
    };
    timeout(Duration::from_secs(10_000), closed).await.expect("it is closed");
    started_at.elapsed()
}
