//! The TLS of a listener: from its files to handshakes, and over to other files while it serves.
//!
//! The files of one listener count together: a new certificate waits for its key, and what cannot be used leaves
//! everything as it was. What is new counts for new handshakes; connections that are open stay.
//!
//! Where clients show certificates no session is resumed: each connection begins with the certificate, so that no
//! client comes in by a session of the past when its authority or name is taken out, or its time is over.

mod client_names;
mod material;
mod refusal;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

use crate::certificates;
use crate::clock::{self, Clock};
use crate::config::TlsFiles;
use crate::files::{Contents, WatchedFiles};
use crate::telemetry::{Metrics, TlsFile};

use super::Rarely;

use material::Material;
pub use material::{TlsErrors, TlsFileError, check};
pub use refusal::HandshakeError;

/// How often the files are looked at.
const LOOKS: Duration = Duration::from_secs(2);

/// How often the log says again what has expired or soon will.
const REMINDERS: Duration = Duration::from_secs(24 * 60 * 60);

/// What a listener speaks within TLS (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2 alone.
    Grpc,
    /// HTTP/2 and HTTP/1.1.
    Http,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Alpn::Grpc => vec![b"h2".to_vec()],
            Alpn::Http => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }
}

/// The TLS of one listener. Clones are the same.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    /// The configuration's key of the listener, such as `listen.admin`.
    key: String,
    files: TlsFiles,
    alpn: Alpn,
    /// What was read at the start: what differs from it later is new.
    read_first: Contents,
    current: ArcSwap<Current>,
    refusals: Rarely,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("key", &self.0.key).finish_non_exhaustive()
    }
}

/// What new handshakes are made by, and until when.
struct Current {
    server: Arc<ServerConfig>,
    ends: Vec<(TlsFile, certificates::Validity)>,
}

impl Current {
    fn of(key: &str, files: &TlsFiles, alpn: Alpn, contents: &Contents) -> Result<Self, TlsErrors> {
        let material = Material::of(key, files, contents)?;
        let ends = material.validities().collect();
        Ok(Self { server: Arc::new(material.into_server(key, alpn.protocols())?), ends })
    }
}

impl Tls {
    /// Reads the files of the listener that the configuration calls `key`, such as `listen.ext_authz[1]`.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn load(key: &str, files: &TlsFiles, alpn: Alpn) -> Result<Self, TlsErrors> {
        let read_first = material::read(key, files)?;
        let current = Current::of(key, files, alpn, &read_first)?;
        Ok(Self(Arc::new(Inner {
            key: key.to_owned(),
            files: files.clone(),
            alpn,
            read_first,
            current: ArcSwap::from_pointee(current),
            refusals: Rarely::default(),
        })))
    }

    /// Speaks TLS with a client, by the files as they last could be used. How long that may take is the caller's to say.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn handshake<S>(&self, stream: S) -> Result<TlsStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let server = Arc::clone(&self.0.current.load().server);
        TlsAcceptor::from(server).accept(stream).await.map_err(HandshakeError::from)
    }

    /// Counts a handshake that came to nothing, and says so in the log, rarely.
    pub fn refused(&self, metrics: &Metrics, error: &HandshakeError) {
        metrics.tls().refused(self.door(), error.cause());
        refusal::tell(&self.0.key, error, &self.0.refusals);
    }

    /// Goes over to other files when they have come to rest, and says when certificates end. Never returns.
    pub async fn follow(&self, metrics: &Metrics, clock: &Clock) {
        let Inner { key, files, alpn, read_first, current, .. } = &*self.0;
        let mut followed = WatchedFiles::since(material::set(files), read_first.clone(), LOOKS);
        metrics.tls().begin(self.door());
        self.publish(metrics, clock);
        loop {
            let reminder = clock::monotonic() + REMINDERS;
            let unreadable = |error| tracing::warn!(listener = %key, %error, "TLS files before the change keep being used");
            let contents = tokio::select! {
                contents = followed.changed(unreadable) => contents,
                () = clock::sleep_until(reminder) => {
                    self.publish(metrics, clock);
                    continue;
                }
            };
            match Current::of(key, files, *alpn, &contents) {
                Ok(usable) => {
                    current.store(Arc::new(usable));
                    metrics.tls().applied(self.door());
                    tracing::info!(listener = %key, "other TLS files are used from now on");
                    self.publish(metrics, clock);
                }
                Err(error) => {
                    metrics.tls().rejected(self.door());
                    tracing::warn!(listener = %key, %error, "TLS files before the change keep being used");
                }
            }
        }
    }

    fn publish(&self, metrics: &Metrics, clock: &Clock) {
        for (file, validity) in &self.0.current.load().ends {
            metrics.tls().not_after(self.door(), *file, validity.not_after);
            if let Some(warning) = validity.warning(clock.now()) {
                tracing::warn!(listener = %self.0.key, file = file.as_str(), "{warning}");
            }
        }
    }

    /// The `door` label: the listener's key below `listen`.
    fn door(&self) -> &str {
        self.0.key.strip_prefix("listen.").unwrap_or(&self.0.key)
    }
}
