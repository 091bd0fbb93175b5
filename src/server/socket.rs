//! Sockets of listeners: TCP, or a socket file that is ours and nobody else's.

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

/// A socket file on which nobody listens is stale when it was seen so this often, so far apart.
const LOOKS: usize = 5;
const BETWEEN: Duration = Duration::from_millis(50);

/// Connections that the system keeps until they are accepted; more do not get in at that time.
const BACKLOG: i32 = 1024;

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

/// A bound socket, from which connections come.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    /// With its file, which is removed with the socket.
    Unix(UnixListener, SocketFile),
}

impl Socket {
    /// Binds what the configuration's `key` asks for.
    ///
    /// # Errors
    /// The address is another's, or not to be had.
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

    /// Where it is, unless it is a socket file.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Gives the socket's file these permission bits, as it has had since it was bound unless they are new.
    pub(crate) fn set_mode(&self, mode: u32) {
        if let Socket::Unix(_, file) = self
            && let Err(error) = fs::set_permissions(&file.path, fs::Permissions::from_mode(mode))
        {
            tracing::warn!(file = %file.path.display(), %error, "a socket file cannot be given its mode");
        }
    }

    /// The next connection, and from where it comes.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Option<IpAddr>)> {
        match self {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // One answer is one segment, and the proxy waits for it.
                let _without = stream.set_nodelay(true);
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
    is: Option<(u64, u64)>,
}

impl SocketFile {
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), is: identity(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have bound the path since: then the file is its own.
        if self.is.is_some() && identity(&self.path) == self.is {
            let _already_gone = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Replaces a socket file that nobody listens on; anything else in its place is left alone.
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

/// Binds a path that is free. The file has the bits that the mode and the umask have in common from its first moment,
/// which only a mode set before can bring about: Linux makes the file of the socket's own mode (unix(7)).
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

/// Removes a socket file on which nobody listens.
///
/// # Errors
/// Somebody does, as far as can be told, or what stands there is no socket.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is not a socket stands there",
        ));
    }
    let in_use =
        |why: &str| io::Error::new(io::ErrorKind::AddrInUse, format!("another process listens there{why}"));
    for _ in 0..LOOKS {
        match UnixStream::connect(path).await {
            Ok(_) => return Err(in_use("")),
            // Also that of a process that has bound it and does not listen yet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => sleep(BETWEEN).await,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A full backlog is that of a live listener.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(in_use(", whose backlog is full"));
            }
            Err(error) => return Err(error),
        }
    }
    // Only what was found to be stale goes: another process may have bound the path meanwhile.
    if identity(path) == Some((found.dev(), found.ino())) { fs::remove_file(path) } else { Ok(()) }
}
