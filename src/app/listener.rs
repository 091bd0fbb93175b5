//! Sockets of the doors: TCP or a socket file, plain or with TLS. Binding alone; serving is elsewhere.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

use crate::config::{BindAddress, GrpcListener, TlsFiles};

/// A socket or something else that the service needs at its start cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub struct BindError(String);

impl BindError {
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
    Unix(UnixIncoming),
}

/// Connections to a socket file. Whoever serves them drops this when it accepts no more, and the file goes
/// first: a process that takes over at that moment finds its place free, and keeps its own file.
pub(crate) struct UnixIncoming {
    _file: SocketFile,
    connections: UnixListenerStream,
}

impl Stream for UnixIncoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.connections).poll_next(context)
    }
}

/// A socket file, removed when dropped, unless another process has put its own in its place.
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if is_ours {
            // Somebody else may have removed it in between; nothing is left to do then.
            let _already_gone = std::fs::remove_file(&self.path);
        }
    }
}

impl GrpcSocket {
    pub(super) async fn bind(listener: &GrpcListener) -> Result<Self, BindError> {
        const KEY: &str = "listen.ext_authz";
        let tls = listener.tls.as_ref().map(read_tls).transpose()?;
        let listener = match &listener.address {
            BindAddress::Tcp(address) => Listener::Tcp(bind_tcp(KEY, *address).await?),
            BindAddress::Unix { path, mode } => {
                let incoming = bind_unix(path, *mode).await;
                Listener::Unix(incoming.map_err(|error| BindError::new(KEY, path.display(), error))?)
            }
        };
        Ok(Self { listener, tls })
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }
}

pub(super) async fn bind_tcp(key: &str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|error| BindError::new(key, address, error))
}

/// Replaces a socket file that nobody listens on; anything else in its place is left alone.
async fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<UnixIncoming> {
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
    let file = SocketFile { path: path.to_owned(), inode: tokio::fs::symlink_metadata(path).await?.ino() };
    if let Some(mode) = mode {
        tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).await?;
    }
    Ok(UnixIncoming { _file: file, connections: UnixListenerStream::new(listener) })
}

fn read_tls(files: &TlsFiles) -> Result<ServerTlsConfig, BindError> {
    let read = |key: &str, path: &Path| {
        std::fs::read(path)
            .map_err(|error| BindError::new(&format!("listen.ext_authz.tls.{key}"), path.display(), error))
    };
    let identity =
        Identity::from_pem(read("cert_file", &files.cert_file)?, read("key_file", &files.key_file)?);
    let tls = ServerTlsConfig::new().identity(identity);
    match &files.client_ca_file {
        None => Ok(tls),
        Some(path) => Ok(tls.client_ca_root(Certificate::from_pem(read("client_ca_file", path)?))),
    }
}
