//! A verifier that says in words why a server's certificate is not trusted: until when it was valid, for which names and by
//! whom it was issued. It accepts what the verifier within it accepts, and nothing else.

use std::fmt;
use std::iter::successors;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, Error, InvalidMessage, OtherError,
    SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{addresses, names};
use crate::clock;

/// The most names that are shown, and the longest text of one.
const MAX_NAMES: usize = 3;
const MAX_TEXT_CHARS: usize = 80;

/// A verifier with described errors.
#[derive(Debug)]
pub(super) struct Described(pub(super) Arc<dyn ServerCertVerifier>);

/// Why a certificate is not trusted, in words. Its texts are escaped and truncated.
#[derive(Debug)]
struct CertificateFault(String);

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CertificateFault {}

impl ServerCertVerifier for Described {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| match error {
            Error::InvalidCertificate(fault) => {
                let text = describe(&fault, end_entity, server_name);
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(CertificateFault(
                    text,
                )))))
            }
            error => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Why the TLS handshake of a client failed, in words; `None` if something else is the cause of this error, or if the
/// cause's own text says it.
pub fn handshake_fault(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    match successors(Some(error), |error| error.source()).find_map(tls_error)? {
        Error::InvalidCertificate(CertificateError::Other(fault)) => {
            Some(fault.0.downcast_ref::<CertificateFault>()?.to_string())
        }
        // Only a client without any authority has an error that is not described.
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(
            "no trusted authority signed the server's certificate: there are no CA certificates on this machine; install ca-certificates, or set http.ca_file".to_owned(),
        ),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            Some("the server wants a client certificate: set http.client_cert_file and client_key_file".to_owned())
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            Some("the server speaks neither TLS 1.2 nor 1.3".to_owned())
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some(
            "the server's port does not speak TLS: correct the port, or the scheme of the URL".to_owned(),
        ),
        _ => None,
    }
}

/// The TLS error that this error is or has in it: an I/O error hides the error within it, which may be another one.
fn tls_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Error> {
    let mut error = error;
    while let Some(within) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        error = within;
    }
    error.downcast_ref()
}

fn describe(fault: &CertificateError, certificate: &CertificateDer<'_>, server: &ServerName<'_>) -> String {
    let parsed = X509Certificate::from_der(certificate).ok().map(|(_, parsed)| parsed);
    let time = |timestamp: i64| clock::rfc3339(crate::validation::UnixTime::from_secs(timestamp));
    let validity = parsed.as_ref().map(|parsed| {
        let validity = parsed.validity();
        (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()))
    });
    let (from, until) = validity.unwrap_or_default();
    let signer = parsed
        .as_ref()
        .map_or_else(|| "(unreadable)".to_owned(), |parsed| shown(&parsed.issuer().to_string()));
    let all = [names(certificate), addresses(certificate)].concat();
    let issued_for = match all.as_slice() {
        [] => "no name".to_owned(),
        all => {
            let first: Vec<String> = all.iter().take(MAX_NAMES).map(|name| shown(name)).collect();
            let more = all.len().saturating_sub(MAX_NAMES);
            if more > 0 { format!("{} and {more} more", first.join(", ")) } else { first.join(", ") }
        }
    };
    let cause = match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("it expired on {until}")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("it is not valid before {from}")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("it is not for {}", shown(&server.to_str()))
        }
        CertificateError::UnknownIssuer => {
            "no trusted authority signed it: one of your own belongs into http.ca_file".to_owned()
        }
        CertificateError::BadSignature => {
            "its signature is not that of the authority of this name: http.ca_file may have an older one"
                .to_owned()
        }
        CertificateError::Revoked => "it was revoked".to_owned(),
        CertificateError::BadEncoding => "it cannot be decoded".to_owned(),
        CertificateError::UnhandledCriticalExtension => {
            "it has a critical extension that is not supported".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its extended key usage does not include servers".to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the algorithm of its signature is not supported".to_owned()
        }
        CertificateError::Other(OtherError(error)) => match chain_fault(&format!("{error:?}")) {
            Some(words) => words.to_owned(),
            None => shown(&error.to_string()),
        },
        other => shown(&other.to_string()),
    };
    format!(
        "the server's certificate is not trusted: {cause} (issued for {issued_for}, signed by {signer}, valid from {from} until {until})"
    )
}

/// The words for an error of the verification of chains that has only a name.
fn chain_fault(name: &str) -> Option<&'static str> {
    const NAMED: [(&str, &str); 6] = [
        (
            "CaUsedAsEndEntity",
            "it is an authority's, not a server's: issue one for the server, or make one without CA:TRUE",
        ),
        ("EndEntityUsedAsCa", "a certificate that is no authority's has signed it"),
        ("NameConstraintViolation", "an authority of its chain may not sign for this name"),
        ("PathLenConstraintViolated", "an authority of its chain may not have another authority below it"),
        ("UnsupportedCertVersion", "it is no certificate of X.509 version 3"),
        ("Maximum", "its chain takes too many steps to verify"),
    ];
    NAMED.iter().find(|(start, _)| name.starts_with(start)).map(|(_, words)| *words)
}

/// Text of a certificate, escaped and truncated.
fn shown(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).flat_map(char::escape_debug).collect()
}
