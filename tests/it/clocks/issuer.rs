//! An issuer that publishes its keys over HTTPS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::support::pki::{Authority, write};

/// Responds to every request with its keys. Stops when dropped.
pub struct HttpsIssuer {
    address: SocketAddr,
    authority: Authority,
    shared: Arc<Shared>,
    accept_task: JoinHandle<()>,
}

struct Shared {
    tls: TlsAcceptor,
    keys: OnceLock<String>,
    connections: AtomicUsize,
}

impl Drop for HttpsIssuer {
    fn drop(&mut self) {
        self.accept_task.abort();
    }
}

impl HttpsIssuer {
    /// Starts it on the loopback address, as `localhost`.
    pub async fn start() -> Self {
        let authority = Authority::new("authority of the issuer");
        let certified = authority.issue(&["localhost"]);
        let chain = vec![CertificateDer::from_pem_slice(certified.pem.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).expect("PEM");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("they belong together");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port 0 can be bound");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            tls: TlsAcceptor::from(Arc::new(config)),
            keys: OnceLock::new(),
            connections: AtomicUsize::new(0),
        });
        let accept_task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, authority, shared, accept_task }
    }

    /// Publishes this key set from now on.
    ///
    /// # Panics
    /// A key set is already published.
    pub fn publish(&self, keys: String) {
        self.shared.keys.set(keys).expect("once");
    }

    /// The URL of its key set.
    pub fn url(&self) -> String {
        format!("https://localhost:{}/keys", self.address.port())
    }

    /// Writes the certificate of its CA into this folder.
    pub fn authority(&self, folder: &Path) -> PathBuf {
        write(folder, "issuer.pem", &self.authority.pem)
    }

    /// The number of connections so far, with a request or without.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        shared.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(respond(stream, Arc::clone(&shared)));
    }
}

/// `None` if the client has closed the connection, as a client does that rejects the certificate.
async fn respond(stream: TcpStream, shared: Arc<Shared>) -> Option<()> {
    let mut stream = shared.tls.accept(stream).await.ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let keys = shared.keys.get().map(String::as_str).unwrap_or_default();
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", keys.len());
    stream.write_all((head + keys).as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}
