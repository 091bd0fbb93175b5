//! An issuer that publishes its keys over https.

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

/// It answers every request with its keys, and ends with this value.
pub struct HttpsIssuer {
    address: SocketAddr,
    authority: Authority,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    tls: TlsAcceptor,
    keys: OnceLock<String>,
    connections: AtomicUsize,
}

impl Drop for HttpsIssuer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl HttpsIssuer {
    /// On this machine, as `localhost`.
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
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, authority, shared, accepting }
    }

    /// Publishes this set from now on.
    ///
    /// # Panics
    /// It has published another one.
    pub fn publishes(&self, keys: String) {
        self.shared.keys.set(keys).expect("once");
    }

    /// Where the keys are.
    pub fn url(&self) -> String {
        format!("https://localhost:{}/keys", self.address.port())
    }

    /// Writes its authority's certificate into this folder.
    pub fn authority(&self, folder: &Path) -> PathBuf {
        write(folder, "issuer.pem", &self.authority.pem)
    }

    /// How many connections there were, with a request or without.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        shared.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(answer(stream, Arc::clone(&shared)));
    }
}

/// `None` where the client has gone, which is what a client does that does not believe the certificate.
async fn answer(stream: TcpStream, shared: Arc<Shared>) -> Option<()> {
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
