//! Sockets of the doors: TCP or a socket file, plain or with TLS. Binding alone; serving is elsewhere.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::access_request::ClaimHeaders;
use crate::config::{BindAddress, GrpcListener, HttpListener, Profile, TlsFiles};

/// A socket or something else that the service needs at its start cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub struct BindError(String);

impl BindError {
    pub(crate) fn from_error(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }

    /// `key` is the configuration's key that asks for what failed.
    pub(crate) fn new(key: &str, what: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self(format!("{key}: {what}: {error}"))
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BindError {}

/// A door broke while it was serving.
#[derive(Debug, PartialEq, Eq)]
pub struct ServeError(String);

impl ServeError {
    pub(crate) fn from_error(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServeError {}

/// The gRPC door's socket.
pub struct GrpcSocket {
    /// What connections come from.
    pub(crate) listener: Listener,
    /// The TLS that they speak.
    pub(crate) tls: Option<ServerTlsConfig>,
}

/// A bound socket.
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// With its file, which goes when no more connections are accepted.
    Unix(UnixListener, SocketFile),
}

/// A socket file, removed when dropped.
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it already; nothing is left to do then.
        let _already_gone = std::fs::remove_file(&self.0);
    }
}

impl GrpcSocket {
    pub(crate) async fn bind(listener: &GrpcListener) -> Result<Self, BindError> {
        const KEY: &str = "listen.ext_authz";
        let tls = listener.tls.as_ref().map(read_tls).transpose()?;
        let listener = match &listener.address {
            BindAddress::Tcp(address) => Listener::Tcp(bind_tcp(KEY, *address).await?),
            BindAddress::Unix { path, mode } => {
                let bound = bind_unix(path, *mode).await;
                let (listener, file) = bound.map_err(|error| BindError::new(KEY, path.display(), error))?;
                Listener::Unix(listener, file)
            }
        };
        Ok(Self { listener, tls })
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }
}

/// An HTTP door's socket.
pub struct HttpSocket {
    /// What connections come from.
    pub(crate) listener: TcpListener,
    /// The TLS that they speak.
    pub(crate) tls: Option<TlsAcceptor>,
    /// The proxy that asks here.
    pub(crate) profile: Profile,
    /// What becomes of claim headers that its clients send.
    pub(crate) client_headers: ClaimHeaders,
}

impl HttpSocket {
    pub(crate) async fn bind(listener: &HttpListener) -> Result<Self, BindError> {
        const KEY: &str = "listen.forward_auth";
        let HttpListener { address, profile, client_headers, tls } = listener;
        let tls = tls.as_ref().map(|files| acceptor(KEY, files)).transpose()?;
        Ok(Self {
            listener: bind_tcp(KEY, *address).await?,
            tls,
            profile: *profile,
            client_headers: *client_headers,
        })
    }
}

fn acceptor(key: &str, files: &TlsFiles) -> Result<TlsAcceptor, BindError> {
    let failed =
        |path: &Path, error: &dyn fmt::Display| BindError::new(&format!("{key}.tls"), path.display(), error);
    let certificates = |path: &Path| {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        read.map_err(|error| failed(path, &error))
    };
    let TlsFiles { cert_file, key_file, client_ca_file, .. } = files;
    let private = PrivateKeyDer::from_pem_file(key_file).map_err(|error| failed(key_file, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(cert_file, &error))?;
    let builder = match client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|error| failed(path, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| failed(path, &error))?)
        }
    };
    let server = builder.with_single_cert(certificates(cert_file)?, private);
    let mut server = server.map_err(|error| failed(cert_file, &error))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

pub(crate) async fn bind_tcp(key: &str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|error| BindError::new(key, address, error))
}

/// Replaces a socket file that nobody listens on; anything else in its place is left alone.
async fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<(UnixListener, SocketFile)> {
    match tokio::fs::symlink_metadata(path).await {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is not a socket stands there",
            ));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        Ok(_) => tokio::fs::remove_file(path).await?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    if let Some(mode) = mode {
        tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).await?;
    }
    Ok((listener, file))
}

fn read_tls(files: &TlsFiles) -> Result<ServerTlsConfig, BindError> {
    let read = |key: &str, path: &Path| {
        std::fs::read(path)
            .map_err(|error| BindError::new(&format!("listen.ext_authz.tls.{key}"), path.display(), error))
    };
    let identity =
        Identity::from_pem(read("cert_file", &files.cert_file)?, read("key_file", &files.key_file)?);
    let tls = ServerTlsConfig::new().identity(identity);
    let tls = match &files.client_ca_file {
        None => tls,
        Some(path) => tls.client_ca_root(Certificate::from_pem(read("client_ca_file", path)?)),
    };
    // Parsed here for the report; the door parses it again when it serves.
    let parsed = tonic::transport::Server::builder().tls_config(tls.clone());
    parsed.map_err(|error| BindError::new("listen.ext_authz.tls", files.cert_file.display(), error))?;
    Ok(tls)
}
