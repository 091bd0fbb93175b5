//! Listener sockets: TCP, or a Unix socket whose file is owned by this process.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::time::sleep;

use super::stream::Stream;
use crate::config::BindAddress;
use crate::decision::ConfigPlaces;

/// How many connection attempts must be refused, and their interval, until a socket file is considered stale.
const STALE_CHECKS: usize = 5;
const STALE_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The backlog of connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A socket or another resource that the service needs at its start is not available.
#[derive(Debug, PartialEq, Eq)]
pub struct BindError(String);

impl BindError {
    /// The configuration has no listener for a proxy.
    pub(crate) fn no_door() -> Self {
        Self("listen: there is no listener for a proxy: set `ext_authz` for Envoy or `forward_auth` for other proxies".to_owned())
    }

    pub(crate) fn from_error(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }

    /// With the lines of the settings that it names.
    #[must_use]
    pub(crate) fn with_lines(self, places: &ConfigPlaces) -> Self {
        Self(places.with_lines(&self.0))
    }

    /// `key` is the configuration key of the resource.
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

/// A bound listener socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    /// The socket and its file, which is removed on drop.
    Unix(UnixListener, SocketFile),
}

impl Socket {
    /// Binds the address that is configured under `key`.
    ///
    /// # Errors
    /// The address is in use or not available.
    pub(crate) async fn bind(key: &str, address: &BindAddress) -> Result<Self, BindError> {
        match address {
            BindAddress::Tcp(address) => match TcpListener::bind(address).await {
                Ok(listener) => Ok(Socket::Tcp(listener)),
                Err(error) => Err(BindError::new(key, address, error)),
            },
            BindAddress::Unix { path, mode } => match bind_unix(path, *mode).await {
                Ok((listener, file)) => Ok(Socket::Unix(listener, file)),
                Err(error) => Err(BindError::new(key, path.display(), error)),
            },
        }
    }

    /// The local address; `None` for a Unix socket.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Sets the permission bits of the socket file; needed only if they changed since it was bound.
    pub(crate) fn set_mode(&self, mode: u32) {
        if let Socket::Unix(_, file) = self
            && let Err(error) = fs::set_permissions(&file.path, fs::Permissions::from_mode(mode))
        {
            tracing::warn!(file = %file.path.display(), %error, "socket file mode not set");
        }
    }

    /// Accepts a connection and returns it with its remote address.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // A response is one segment that the proxy waits for.
                let _ignored = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Some(peer.ip())))
            }
            Socket::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), None))
            }
        }
    }
}

/// A socket file, removed when dropped if it is still the one that was bound.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have bound the path in the meantime; its file is not removed.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _already_gone = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Binds a Unix socket. A stale socket file is replaced; any other file is not.
async fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path).await?;
    let socket = bind_with_mode(path, mode)?;
    listen(&socket, BACKLOG)?;
    let file = SocketFile::at(path);
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok((UnixListener::from_std(listener)?, file))
}

/// Binds a free path. Linux creates the file with the socket's own mode, reduced by the umask (unix(7)), so setting the
/// mode first makes the file's permissions right from the start.
fn bind_with_mode(path: &Path, mode: Option<u32>) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    if let Some(mode) = mode {
        fchmod(&socket, Mode::from_raw_mode(mode))?;
    }
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Removes a socket file on which no process listens.
///
/// # Errors
/// A process listens there or may do so, or the file is not a socket.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists and is not a socket"));
    }
    let in_use =
        |why: &str| io::Error::new(io::ErrorKind::AddrInUse, format!("another process listens on it{why}"));
    for _ in 0..STALE_CHECKS {
        match UnixStream::connect(path).await {
            Ok(_) => return Err(in_use("")),
            // Also the case for a process that has bound the path and does not listen yet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                sleep(STALE_CHECK_INTERVAL).await
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The full backlog of a live listener.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(in_use(", whose backlog is full"));
            }
            Err(error) => return Err(error),
        }
    }
    // Another process may have bound the path in the meantime; only the stale file is removed.
    if identity(path) == Some((found.dev(), found.ino())) { fs::remove_file(path) } else { Ok(()) }
}
