//! TLS for HTTP clients of issuers.

use std::sync::Arc;

use rustls_platform_verifier::Verifier;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::described::Described;
use super::{Certificate, WallTime, root_store};

/// The TLS configuration of a client.
pub type ClientTls = ClientConfig;

/// The authorities that server certificates are verified against.
#[derive(Debug)]
pub struct Trusted(Roots);

#[derive(Debug)]
enum Roots {
    System(Verifier),
    Given(RootCertStore),
}

impl Trusted {
    /// The authorities of this system.
    ///
    /// # Errors
    /// The system has none.
    pub fn system() -> Result<Self, String> {
        let verifier = Verifier::new(Arc::new(aws_lc_rs::default_provider()));
        verifier.map(|verifier| Self(Roots::System(verifier))).map_err(|error| error.to_string())
    }

    /// These authorities alone; an empty list trusts no server.
    ///
    /// # Errors
    /// rustls rejects a certificate.
    pub fn by(authorities: &[Certificate]) -> Result<Self, String> {
        root_store(authorities).map(|roots| Self(Roots::Given(roots)))
    }
}

/// A client that trusts these authorities and presents this certificate to a server that requests one. It offers
/// HTTP/2 and HTTP/1.1, over TLS 1.2 or 1.3.
///
/// # Errors
/// The TLS library supports none of these versions.
pub fn client(trusted: Trusted, certificate: Option<CertifiedKey>) -> Result<ClientTls, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_details(Arc::clone(&provider), Arc::new(WallTime));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = match trusted.0 {
        // As strict as the default: the library's own verifiers, whose errors are described.
        Roots::System(verifier) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Described(Arc::new(verifier))))
        }
        // The verifier cannot be made without authorities; it would trust no server.
        Roots::Given(roots) if roots.is_empty() => builder.with_root_certificates(roots),
        Roots::Given(roots) => {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(|error| error.to_string())?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Described(verifier)))
        }
    };
    let mut client = match certificate {
        None => builder.with_no_client_auth(),
        Some(certificate) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate))),
    };
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(client)
}
