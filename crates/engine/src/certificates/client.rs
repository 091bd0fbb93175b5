//! The TLS of a client that reaches issuers.

use std::sync::Arc;

use rustls_platform_verifier::Verifier;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{Certificate, WallTime, trusting};

/// What the TLS of a client is made from.
pub type ClientTls = ClientConfig;

/// Whose certificates a client takes for a server's.
#[derive(Debug)]
pub struct Trusted(Authorities);

#[derive(Debug)]
enum Authorities {
    System(Verifier),
    Given(RootCertStore),
}

impl Trusted {
    /// Those of the authorities that this system has.
    ///
    /// # Errors
    /// It has none.
    pub fn by_the_system() -> Result<Self, String> {
        let verifier = Verifier::new(Arc::new(aws_lc_rs::default_provider()));
        verifier.map(|verifier| Self(Authorities::System(verifier))).map_err(|error| error.to_string())
    }

    /// Those of these authorities alone; of none, nobody's.
    ///
    /// # Errors
    /// TLS cannot take from one what it needs.
    pub fn by(authorities: &[Certificate]) -> Result<Self, String> {
        trusting(authorities).map(|roots| Self(Authorities::Given(roots)))
    }
}

/// A client that trusts these and shows this certificate to a server that asks for one. It speaks HTTP/2 and HTTP/1.1, by
/// TLS 1.2 or 1.3.
///
/// # Errors
/// The TLS library has no version of TLS for it.
pub fn client(trusted: Trusted, shown: Option<CertifiedKey>) -> Result<ClientTls, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_details(provider, Arc::new(WallTime));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = match trusted.0 {
        // Not less than usual: it is the library's own verifier, with the roots that the system has.
        Authorities::System(verifier) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        Authorities::Given(roots) => builder.with_root_certificates(roots),
    };
    let mut client = match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown))),
    };
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(client)
}
