//! Handshakes that come to nothing: by what cause, and how often the log says so.

use std::fmt;
use std::io::{self, ErrorKind};

use tokio_rustls::rustls::{CertificateError, Error, OtherError};

use super::client_names::NotNamed;
use crate::server::Rarely;
use crate::telemetry::on_one_line;

/// Why a handshake came to nothing.
#[derive(Debug)]
pub struct HandshakeError {
    cause: Cause,
    detail: String,
}

/// What a label tells apart.
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
    /// It was not over in the time that it had.
    pub fn timed_out() -> Self {
        Self { cause: Cause::TimedOut, detail: "it was not over in time".to_owned() }
    }

    /// The `cause` label of `portcullis_tls_handshakes_refused_total`: `no_certificate`, `unknown_authority`, `expired`,
    /// `not_yet_valid`, `client_name`, `certificate` (any other fault of the client's), `alert` (the client refused),
    /// `protocol` (no TLS, or none that is spoken here), `closed`, `timeout`.
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
        let not_named = tls.and_then(not_named).map(NotNamed::to_string);
        let cause = match tls {
            _ if not_named.is_some() => Cause::ClientName,
            Some(tls) => cause_of(tls),
            None if error.kind() == ErrorKind::InvalidData => Cause::Protocol,
            None => Cause::Closed,
        };
        Self { cause, detail: not_named.unwrap_or_else(|| error.to_string()) }
    }
}

fn not_named(error: &Error) -> Option<&NotNamed> {
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

/// Tells the log of one, where a line is due. Who only looks whether the port is open, as health checks of balancers do,
/// is not worth one.
pub(super) fn tell(listener: &str, error: &HandshakeError, rarely: &Rarely) {
    if error.cause == Cause::Closed {
        tracing::debug!(listener, "a client went away before its handshake was over");
        return;
    }
    let Some(times) = rarely.due() else { return };
    let detail = on_one_line(&error.detail);
    tracing::warn!(listener, cause = error.cause(), detail, times, "TLS handshakes were refused");
}
