//! The configuration, parsed and validated completely before any address is bound.
//!
//! [`Config::parse`] turns text into a [`Config`] or into a list of all errors, each with its path in the document,
//! its line and what to write instead. A valid [`Config`] needs no further checks: its types enforce the
//! preconditions. [`cases`] reads files of test cases in the same way. This crate opens no socket and uses no network.

#![forbid(unsafe_code)]

pub mod cases;
mod changes;
mod claim_headers;
mod cursor;
mod document;
mod door;
mod error;
mod forms;
mod general;
mod keys;
mod listen;
mod places;
mod providers;
mod read;
mod realms;
mod responses;
mod rules;
mod schema;
mod section;
mod selection;
mod token_sources;
mod warnings;
mod yaml;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;

use portcullis_core::access_request::ClaimHeaders;
use portcullis_core::decision::ConfigPlaces;
use portcullis_core::rules::Rules;
use portcullis_core::verdict::Responses;
use portcullis_engine::authorizer::RequestPolicy;
use portcullis_engine::service::Settings;

pub use changes::Change;
pub use cursor::parse_duration;
pub use door::{CONNECTION_HEADERS, DoorKind};
pub use error::{ConfigError, ConfigErrors, Position};
pub use read::{Examined, MAX_FILE_BYTES};
pub use schema::{json_schema_text, reference_text};

pub use portcullis_engine::authorizer::{
    AllowedRealms, KeySource, Limits, ProviderConfig, RealmKeys, Realms, SharedRealms, Template,
    TokenCacheConfig,
};
pub use portcullis_engine::keys::{
    BearerTokenFile, ClientCertificate, ForwardProxy, IssuerHttp, ProxyUrl, RefreshPolicy,
};
pub use portcullis_engine::telemetry::{Log, LogFormat, LogLevel};

/// The settings of `serve`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The listeners.
    pub listen: Listen,
    /// One per issuer; never empty, names and issuers unique.
    pub providers: Vec<ProviderConfig>,
    /// The authorization rules.
    pub rules: Rules,
    /// The content of denials.
    pub responses: Responses,
    /// The proxies that may describe requests in headers at an HTTP door; default loopback.
    pub trusted_proxies: Vec<IpNet>,
    /// Headers that override path or host and that an outer proxy sets: they are accepted. Default none.
    pub trusted_headers: Vec<HeaderName>,
    /// Limits for one request and for one listener.
    pub limits: Limits,
    /// The cache of verified tokens.
    pub token_cache: TokenCacheConfig,
    /// Graceful shutdown.
    pub shutdown: Shutdown,
    /// Logging.
    pub log: Log,
    /// Settings that are valid but probably not intended, in the order of the file.
    pub warnings: Vec<ConfigError>,
    /// Where the settings are in the file, for the advice of refusals.
    pub places: Arc<ConfigPlaces>,
}

/// The settings that affect decisions.
impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        let policy = RequestPolicy {
            rules: config.rules.clone(),
            limits: config.limits,
            token_cache: config.token_cache,
            responses: config.responses.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            trusted_headers: config.trusted_headers.clone(),
        };
        let refusals = config.listen.admin.as_ref().map_or(0, |admin| admin.refusals);
        let places = Arc::clone(&config.places);
        Self { providers: config.providers.clone(), policy, refusals, places }
    }
}

/// The listeners. A service has one for a proxy, a library needs none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `envoy.service.auth.v3.Authorization`, `grpc.health.v1` and reflection; no duplicate addresses.
    pub ext_authz: Vec<GrpcListener>,
    /// HTTP for other proxies; each listener has the profile of one proxy.
    pub forward_auth: Vec<HttpListener>,
    /// `/livez`, `/readyz`, `/metrics`, `/keys`, `/decisions/ID`; `None` disables it.
    pub admin: Option<AdminListener>,
}

/// The configuration path of a listener: `listen.ext_authz` if it is the only one, otherwise `listen.ext_authz[1]`,
/// counted from 0.
pub fn listener_key(door: &str, index: usize, count: usize) -> String {
    if count == 1 { format!("listen.{door}") } else { format!("listen.{door}[{index}]") }
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminListener {
    /// The address to bind.
    pub address: SocketAddr,
    /// TLS, with `client_ca_file` mutual TLS; `None` is plain text.
    pub tls: Option<TlsFiles>,
    /// Names, in lower case and without port, that are accepted in a request's `Host` in addition to addresses and
    /// `localhost`; default none.
    pub hosts: Vec<String>,
    /// How many of the latest refusals `/decisions/ID` can show; default [`AdminListener::REFUSALS`], 0 keeps none.
    pub refusals: usize,
}

impl AdminListener {
    /// The default of `refusals`.
    pub const REFUSALS: usize = 256;
}

/// A gRPC listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcListener {
    /// The address to bind.
    pub address: BindAddress,
    /// TLS, with `client_ca_file` mutual TLS; `None` is plain text.
    pub tls: Option<TlsFiles>,
}

/// An HTTP listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpListener {
    /// The address to bind.
    pub address: SocketAddr,
    /// How the proxy describes the original request.
    pub profile: Profile,
    /// What the proxy does with claim headers of the client; by default unknown.
    pub client_headers: ClaimHeaders,
    /// TLS, with `client_ca_file` mutual TLS; `None` is plain text.
    pub tls: Option<TlsFiles>,
}

/// How a proxy describes the original request to an HTTP door, and what it can change about that request. A door
/// reads only headers that the proxy's recipe in `deploy/` makes it overwrite: all others are the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `auth_request`: `X-Original-Method`, `X-Original-URI` and `Host`.
    Nginx,
    /// The annotation `auth-url`: `X-Original-Method` and the absolute `X-Original-URL`.
    IngressNginx,
    /// The Lua action of the recipe: `X-Forwarded-Method`, `-Uri` and `-Host`.
    Haproxy,
    /// `forward_auth`: `X-Forwarded-Method`, `-Uri` and `-Host`.
    Caddy,
    /// ForwardAuth: `X-Forwarded-Method`, `-Uri` and `-Host`.
    Traefik,
    /// ext_authz with `http_service`: the request line and `Host` are those of the client.
    Envoy,
}

impl Profile {
    /// Every profile by its name in the configuration.
    pub const NAMED: [(&'static str, Profile); 6] = [
        ("nginx", Profile::Nginx),
        ("ingress-nginx", Profile::IngressNginx),
        ("haproxy", Profile::Haproxy),
        ("caddy", Profile::Caddy),
        ("traefik", Profile::Traefik),
        ("envoy", Profile::Envoy),
    ];

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Nginx => "nginx",
            Profile::IngressNginx => "ingress-nginx",
            Profile::Haproxy => "haproxy",
            Profile::Caddy => "caddy",
            Profile::Traefik => "traefik",
            Profile::Envoy => "envoy",
        }
    }
}

/// An address to bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindAddress {
    /// An IP address and port; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A socket file; a stale one is replaced.
    Unix {
        /// The socket's path.
        path: PathBuf,
        /// Permission bits of the file; `None` leaves them to the umask.
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
    /// If set, clients must present a certificate of this authority.
    pub client_ca_file: Option<PathBuf>,
    /// A DNS name (in lower case) or URI of the client's certificate has to be one of these; empty accepts every
    /// name, and is required without `client_ca_file`. Default empty.
    pub client_names: Vec<String>,
}

/// Graceful shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// How long health reports NOT_SERVING before connections are closed gracefully; default 3 s.
    pub drain_delay: Duration,
    /// How long requests in flight may take after that; default 10 s.
    pub grace: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain_delay: Duration::from_secs(3), grace: Duration::from_secs(10) }
    }
}
