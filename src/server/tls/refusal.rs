//! Failed handshakes: their causes and their log lines.

use std::fmt;
use std::io::{self, ErrorKind};

use tokio_rustls::rustls::{CertificateError, Error, InvalidMessage, OtherError};

use super::client_names::NameNotAllowed;
use crate::server::LogSampler;
use crate::telemetry::on_one_line;

/// The detail if the client does not speak TLS.
const NO_TLS: &str = "no TLS: have the proxy connect with TLS, or remove `tls` of the listener";

/// The cause of a failed handshake.
#[derive(Debug)]
pub struct HandshakeError {
    cause: Cause,
    detail: String,
}

/// The values of the `cause` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    NoCertificate,
    UnknownAuthority,
    Expired,
    NotYetValid,
    ClientName,
    Certificate,
    Alert,
    Protocol,
    Closed,
    TimedOut,
}

impl HandshakeError {
    /// The handshake timed out.
    pub fn timed_out() -> Self {
        Self { cause: Cause::TimedOut, detail: "the handshake timed out".to_owned() }
    }

    /// The `cause` label of `portcullis_tls_handshakes_refused_total`: `no_certificate`, `unknown_authority`, `expired`,
    /// `not_yet_valid`, `client_name`, `certificate` (any other error in the client's certificate), `alert` (sent by
    /// the client),
    /// `protocol` (no TLS, or no supported version), `closed`, `timeout`.
    pub fn cause(&self) -> &'static str {
        match self.cause {
            Cause::NoCertificate => "no_certificate",
            Cause::UnknownAuthority => "unknown_authority",
            Cause::Expired => "expired",
            Cause::NotYetValid => "not_yet_valid",
            Cause::ClientName => "client_name",
            Cause::Certificate => "certificate",
            Cause::Alert => "alert",
            Cause::Protocol => "protocol",
            Cause::Closed => "closed",
            Cause::TimedOut => "timeout",
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let name_error = tls.and_then(name_not_allowed).map(NameNotAllowed::to_string);
        let cause = match tls {
            _ if name_error.is_some() => Cause::ClientName,
            Some(tls) => cause_of(tls),
            None if error.kind() == ErrorKind::InvalidData => Cause::Protocol,
            None => Cause::Closed,
        };
        let detail = match tls {
            Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => NO_TLS.to_owned(),
            _ => name_error.unwrap_or_else(|| error.to_string()),
        };
        Self { cause, detail }
    }
}

fn name_not_allowed(error: &Error) -> Option<&NameNotAllowed> {
    let Error::InvalidCertificate(CertificateError::Other(OtherError(fault))) = error else { return None };
    fault.downcast_ref()
}

fn cause_of(error: &Error) -> Cause {
    match error {
        Error::NoCertificatesPresented => Cause::NoCertificate,
        Error::InvalidCertificate(fault) => match fault {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Cause::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Cause::NotYetValid,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Cause::UnknownAuthority,
            _ => Cause::Certificate,
        },
        Error::AlertReceived(_) => Cause::Alert,
        _ => Cause::Protocol,
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for HandshakeError {}

/// Logs a sample of failed handshakes. A connection closed during the handshake, as by a load balancer's TCP health
/// check, is logged at debug level only.
pub(super) fn log(listener: &str, error: &HandshakeError, sampler: &LogSampler) {
    if error.cause == Cause::Closed {
        tracing::debug!(listener, "connection closed during TLS handshake");
        return;
    }
    let Some(times) = sampler.sample() else { return };
    let detail = on_one_line(&error.detail);
    tracing::warn!(listener, cause = error.cause(), detail, times, "TLS handshakes failed");
}
