//! TLS of a listener: loads its files, does handshakes and reloads changed files while it serves.
//!
//! The files of one listener are applied together: a new certificate waits for its key, and files that cannot be used
//! change nothing. New files apply to new handshakes; open connections stay.
//!
//! With client certificates, sessions are not resumed: every connection starts with the certificate, so that no client
//! can resume an earlier session after its authority or name was removed or its certificate has expired.

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
use crate::service::Service;
use crate::telemetry::{Metrics, TlsFile};

use super::LogSampler;

use material::Material;
pub use material::{TlsErrors, TlsFileError, check};
pub use refusal::HandshakeError;

/// How often the files are polled.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// How often warnings about expired or expiring certificates are repeated.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// The hint of log lines about files that are not applied.
const STAYS_IN_USE: &str = "fix the files; the previous ones stay in use";

/// The application protocols of a listener (RFC 7301).
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

/// The TLS state of one listener. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    /// The configuration key of the listener, such as `listen.admin`.
    key: String,
    files: TlsFiles,
    alpn: Alpn,
    /// The contents at the start, which later contents are compared with.
    initial: Contents,
    current: ArcSwap<Current>,
    failure_log: LogSampler,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("key", &self.0.key).finish_non_exhaustive()
    }
}

/// The configuration of new handshakes, and the validity of its certificates.
struct Current {
    server: Arc<ServerConfig>,
    validities: Vec<(TlsFile, certificates::Validity)>,
}

impl Current {
    fn of(key: &str, files: &TlsFiles, alpn: Alpn, contents: &Contents) -> Result<Self, TlsErrors> {
        let material = Material::of(key, files, contents)?;
        let validities = material.validities().collect();
        Ok(Self { server: Arc::new(material.into_server(key, alpn.protocols())?), validities })
    }
}

impl Tls {
    /// Loads the files of the listener with this configuration key, such as `listen.ext_authz[1]`.
    ///
    /// # Errors
    /// All errors in the files.
    pub fn load(key: &str, files: &TlsFiles, alpn: Alpn) -> Result<Self, TlsErrors> {
        let initial = material::read(key, files)?;
        let current = Current::of(key, files, alpn, &initial)?;
        Ok(Self(Arc::new(Inner {
            key: key.to_owned(),
            files: files.clone(),
            alpn,
            initial,
            current: ArcSwap::from_pointee(current),
            failure_log: LogSampler::default(),
        })))
    }

    /// Does a TLS handshake with the current files. The caller applies a timeout.
    ///
    /// # Errors
    /// The handshake failed.
    pub async fn handshake<S>(&self, stream: S) -> Result<TlsStream<S>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let server = Arc::clone(&self.0.current.load().server);
        TlsAcceptor::from(server).accept(stream).await.map_err(HandshakeError::from)
    }

    /// Counts a failed handshake and logs a sample.
    pub fn record_failure(&self, metrics: &Metrics, error: &HandshakeError) {
        metrics.tls().refused(self.door(), error.cause());
        refusal::log(&self.0.key, error, &self.0.failure_log);
    }

    /// Reloads the files when they have changed and settled, and warns about expiring certificates. Never returns.
    pub async fn follow(&self, service: &Service, clock: &Clock) {
        let Inner { key, files, alpn, initial, current, .. } = &*self.0;
        let metrics = service.metrics();
        let listener = || service.places().with_lines(key);
        let mut followed = WatchedFiles::since(material::set(files), initial.clone(), POLL_INTERVAL);
        metrics.tls().begin(self.door());
        self.publish(metrics, clock);
        loop {
            let next_warning = clock::monotonic() + WARNING_INTERVAL;
            let unreadable = |error| {
                tracing::warn!(listener = listener(), %error, hint = STAYS_IN_USE, "TLS files not reloaded");
            };
            let contents = tokio::select! {
                contents = followed.changed(unreadable) => contents,
                () = clock::sleep_until(next_warning) => {
                    self.publish(metrics, clock);
                    continue;
                }
            };
            match Current::of(key, files, *alpn, &contents) {
                Ok(usable) => {
                    current.store(Arc::new(usable));
                    metrics.tls().applied(self.door());
                    tracing::info!(listener = %key, "TLS files reloaded");
                    self.publish(metrics, clock);
                }
                Err(error) => {
                    metrics.tls().rejected(self.door());
                    tracing::warn!(listener = listener(), %error, hint = STAYS_IN_USE, "TLS files not reloaded");
                }
            }
        }
    }

    fn publish(&self, metrics: &Metrics, clock: &Clock) {
        for (file, validity) in &self.0.current.load().validities {
            metrics.tls().not_after(self.door(), *file, validity.not_after);
            if let Some(warning) = validity.warning(clock.now()) {
                tracing::warn!(listener = %self.0.key, file = file.as_str(), %warning, "TLS certificate warning");
            }
        }
    }

    /// The `door` label: the listener's key below `listen`.
    fn door(&self) -> &str {
        self.0.key.strip_prefix("listen.").unwrap_or(&self.0.key)
    }
}
