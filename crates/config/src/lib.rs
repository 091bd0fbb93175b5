//! The configuration, read and checked as a whole before anything is bound.
//!
//! [`Config::parse`] turns text into a [`Config`] or into all that is wrong with it, each problem
//! with its path in the document, its line and what to write instead. What is valid here needs no
//! second look elsewhere: preconditions live in the types. It opens no socket and asks no network.

#![forbid(unsafe_code)]

mod changes;
mod cursor;
mod dangers;
mod document;
mod error;
mod forms;
mod general;
mod keys;
mod listen;
mod providers;
mod read;
mod realms;
mod responses;
mod rules;
mod schema;
mod section;
mod yaml;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;

use portcullis_core::access_request::ClaimHeaders;
use portcullis_core::rules::Rules;
use portcullis_core::verdict::Responses;
use portcullis_engine::authorizer::RequestPolicy;
use portcullis_engine::service::Settings;

pub use changes::Change;
pub use cursor::parse_duration;
pub use error::{ConfigError, ConfigErrors, Position};
pub use read::{Examined, MAX_FILE_BYTES};
pub use schema::{json_schema_text, reference_text};

pub use portcullis_engine::authorizer::{
    AllowedRealms, KeySource, Limits, ProviderConfig, RealmKeys, Realms, Template,
};
pub use portcullis_engine::keys::{ClientCertificate, IssuerHttp, ProxyUrl, RefreshPolicy};
pub use portcullis_engine::telemetry::{Log, LogFormat, LogLevel};

/// Everything that `serve` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the doors are.
    pub listen: Listen,
    /// One per issuer; never empty, names and issuers unique.
    pub providers: Vec<ProviderConfig>,
    /// Who may do what.
    pub rules: Rules,
    /// How a denial looks.
    pub responses: Responses,
    /// Who may tell an HTTP door in headers what request it asks about; default loopback.
    pub trusted_proxies: Vec<IpNet>,
    /// Headers that take the place of path or host and that an outer proxy of the operator's sets: they pass. Default none.
    pub trusted_headers: Vec<HeaderName>,
    /// Bounds on one request and on one listener.
    pub limits: Limits,
    /// How the service ends.
    pub shutdown: Shutdown,
    /// What is logged and how.
    pub log: Log,
    /// What is legal and probably not meant, in the order of the file.
    pub warnings: Vec<ConfigError>,
}

/// The part of it that decides.
impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let policy = RequestPolicy {
            rules: config.rules.clone(),
            limits: config.limits,
            responses: config.responses.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            trusted_headers: config.trusted_headers.clone(),
        };
        Self { providers: config.providers.clone(), policy }
    }
}

/// The doors; at least one for gRPC is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `envoy.service.auth.v3.Authorization`, `grpc.health.v1` and reflection; never empty, no address twice.
    pub ext_authz: Vec<GrpcListener>,
    /// HTTP, for every other proxy; each with the dialect of one.
    pub forward_auth: Vec<HttpListener>,
    /// `/livez`, `/readyz`, `/metrics`, `/keys`; `None` is off.
    pub admin: Option<AdminListener>,
}

/// How a configuration calls one of the listeners of a door: `listen.ext_authz` where it is the only one, else
/// `listen.ext_authz[1]`, counted from 0.
pub fn listener_key(door: &str, index: usize, of: usize) -> String {
    if of == 1 { format!("listen.{door}") } else { format!("listen.{door}[{index}]") }
}

/// The operators' door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminListener {
    /// Where it is bound.
    pub address: SocketAddr,
    /// TLS, and with `client_ca_file` mutual TLS; `None` is plain text.
    pub tls: Option<TlsFiles>,
    /// Names, in lower case and without port, that a request's `Host` may have besides an address and
    /// `localhost`; default none.
    pub hosts: Vec<String>,
}

/// A gRPC door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcListener {
    /// Where it is bound.
    pub address: BindAddress,
    /// TLS, and with `client_ca_file` mutual TLS; `None` is plain text.
    pub tls: Option<TlsFiles>,
}

/// An HTTP door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpListener {
    /// Where it is bound.
    pub address: SocketAddr,
    /// How the proxy in front of it tells what request it asks about.
    pub profile: Profile,
    /// What becomes of claim headers that the client itself sent; by default only the proxy knows.
    pub client_headers: ClaimHeaders,
    /// TLS, and with `client_ca_file` mutual TLS; `None` is plain text.
    pub tls: Option<TlsFiles>,
}

/// How a proxy tells an HTTP door what request it asks about, and what it can change about that request. A
/// door reads only what the proxy's recipe in `deploy/` makes it overwrite: all else is the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `auth_request`: `X-Original-Method`, `X-Original-URI` and `Host`.
    Nginx,
    /// The Lua action of the recipe: `X-Forwarded-Method`, `-Uri` and `-Host`.
    Haproxy,
    /// `forward_auth`: `X-Forwarded-Method`, `-Uri` and `-Host`.
    Caddy,
    /// ForwardAuth: `X-Forwarded-Method`, `-Uri` and `-Host`.
    Traefik,
    /// ext_authz with `http_service`: the request line and `Host` are the client's own.
    Envoy,
}

impl Profile {
    /// Every profile by its name in the configuration.
    pub const NAMED: [(&'static str, Profile); 5] = [
        ("nginx", Profile::Nginx),
        ("haproxy", Profile::Haproxy),
        ("caddy", Profile::Caddy),
        ("traefik", Profile::Traefik),
        ("envoy", Profile::Envoy),
    ];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Nginx => "nginx",
            Profile::Haproxy => "haproxy",
            Profile::Caddy => "caddy",
            Profile::Traefik => "traefik",
            Profile::Envoy => "envoy",
        }
    }
}

/// A place to bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindAddress {
    /// An IP address and port; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A socket file, replaced where a stale one stands.
    Unix {
        /// The socket's path.
        path: PathBuf,
        /// Permission bits given to the file; `None` leaves what the umask makes of it.
        mode: Option<u32>,
    },
}

/// PEM files of a TLS listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
    /// Clients must present a certificate of this authority.
    pub client_ca_file: Option<PathBuf>,
    /// A DNS name (in lower case) or URI of the client's certificate has to be one of these; empty accepts every
    /// one, and only with `client_ca_file` it is not. Default empty.
    pub client_names: Vec<String>,
}

/// How the service ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// Health says NOT_SERVING for this long before connections are told to go away; default 3 s.
    pub drain_delay: Duration,
    /// Requests in flight get at most this long after that; default 10 s.
    pub grace: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain_delay: Duration::from_secs(3), grace: Duration::from_secs(10) }
    }
}
