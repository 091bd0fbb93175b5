//! HTTP settings of an issuer.

use std::fmt;
use std::path::PathBuf;

use url::Url;

/// How an issuer is reached over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuerHttp {
    /// Whether keys may be fetched over plain http from another machine; default false.
    pub allow_http: bool,
    /// Authorities (PEM) to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The forward proxy; default that of the environment.
    pub proxy: ForwardProxy,
    /// The certificate presented to an issuer that requests one; default none.
    pub client_certificate: Option<ClientCertificate>,
    /// The token for an issuer that publishes its keys to those who log in alone; default none.
    pub bearer_token: Option<BearerTokenFile>,
}

/// A bearer token (RFC 6750 §2.1) for requests to these hosts alone, over https or to this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BearerTokenFile {
    /// The file with the token; line breaks around it are ignored.
    pub file: PathBuf,
    /// Host names and addresses that get it, whatever the port: those of `bearer_token_hosts`.
    pub hosts: Vec<String>,
    /// Those of the provider's other settings, each with its port. Never one of a document or of a redirect.
    pub named: Vec<(String, u16)>,
}

/// The forward proxy of requests to an issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ForwardProxy {
    /// `HTTPS_PROXY` and `HTTP_PROXY` of the environment, except for this machine and the hosts of `NO_PROXY`.
    #[default]
    Environment,
    /// None, whatever the environment says.
    None,
    /// This one, except for the hosts of `NO_PROXY`.
    Url(ProxyUrl),
}

/// The PEM files of a TLS client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate chain.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// The URL of a forward proxy. `Display` and `Debug` omit user name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    /// Any http or https URL, with or without credentials.
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// Includes the credentials: for connecting to the proxy, never for a log.
    pub fn with_credentials(&self) -> &Url {
        &self.0
    }

    /// Whether it has credentials.
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
