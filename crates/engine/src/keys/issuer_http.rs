//! How an issuer is reached over HTTP, as it is configured.

use std::fmt;
use std::path::PathBuf;

use url::Url;

/// How an issuer is reached over HTTP. Proxies that the environment names are not used; of its variables
/// only `NO_PROXY` counts, as an exception to `proxy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuerHttp {
    /// Whether keys may come by plain http from another host than this one; default false.
    pub allow_http: bool,
    /// Authorities (PEM) that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The forward proxy; default none.
    pub proxy: Option<ProxyUrl>,
    /// What this service shows to an issuer that asks for a certificate; default none.
    pub client_certificate: Option<ClientCertificate>,
}

/// PEM files of a TLS client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate chain.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// The URL of a forward proxy. What is shown of it has no user name and no password.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    /// Any http or https URL, with or without credentials.
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// With its credentials: for the client that connects there, never for a log.
    pub fn with_credentials(&self) -> &Url {
        &self.0
    }

    /// Whether there is anything that is not shown.
    pub fn has_credentials(&self) -> bool {
        !self.0.username().is_empty() || self.0.password().is_some()
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials = if self.has_credentials() { "..." } else { "" };
        let at = if self.has_credentials() { "@" } else { "" };
        let port = self.0.port().map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "{}://{credentials}{at}{}{port}", self.0.scheme(), self.0.host_str().unwrap_or_default())
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
