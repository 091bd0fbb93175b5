//! The configuration, read and checked as a whole before anything is bound.
//!
//! [`Config::parse`] turns text into a [`Config`] or into all that is wrong with it, each problem
//! with its path in the document, its line and what to write instead. What is valid here needs no
//! second look elsewhere: preconditions live in the types. It opens no socket and asks no network.

mod changes;
mod cursor;
mod dangers;
mod document;
mod error;
mod keys;
mod listen;
mod print;
mod providers;
mod read;
mod realms;
mod responses;
mod rules;
mod schema;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use crate::access_request::ClaimHeaders;
use crate::rules::Rules;
use crate::validation::TokenLimits;
use crate::validation::json::JsonLimits;
use crate::validation::key_set::KeySet;
use crate::validation::provider::Provider;
use crate::verdict::Responses;

pub use changes::Change;
pub use cursor::parse_duration;
pub use error::{ConfigError, ConfigErrors, Position};
pub use read::{Examined, MAX_FILE_BYTES};
pub use realms::{AllowedRealms, RealmKeys, Realms, Template};
pub use schema::json_schema_text;

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
    /// Headers that take the place of path or host and that an outer proxy of the operator's sets, in lower case: they
    /// pass. Default none.
    pub trusted_headers: Vec<String>,
    /// Bounds on one request and on one listener.
    pub limits: Limits,
    /// How the service ends.
    pub shutdown: Shutdown,
    /// What is logged and how.
    pub log: Log,
    /// What is legal and probably not meant, in the order of the file.
    pub warnings: Vec<ConfigError>,
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

/// A provider's rules, where its keys are, and how they are kept fresh.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// The rules for its tokens.
    pub provider: Arc<Provider>,
    /// Where its keys are.
    pub keys: KeySource,
    /// How that place is reached.
    pub http: IssuerHttp,
    /// How they are kept fresh.
    pub refresh: RefreshPolicy,
    /// The issuers that it stands for, where those are many: then `keys` and the provider's issuer have the
    /// placeholder in them.
    pub realms: Option<Realms>,
    /// Whether the service counts as ready while this provider has had no keys yet; default false.
    pub ready_without_keys: bool,
}

/// Where a provider's keys are.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// The key set's URL (RFC 7517 §5).
    JwksUri(Url),
    /// The URL of a discovery document that names the key set (OpenID Connect Discovery §4, RFC 8414 §3).
    Discovery(Url),
    /// A file, read again when it changes.
    File(PathBuf),
    /// Written into the configuration, and the only place where a shared secret may stand.
    Inline(Arc<KeySet>),
}

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

/// How a provider's keys are kept fresh. The refresh rule is told in [`crate::keys`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshPolicy {
    /// Scheduled fetches start this far apart, with jitter, or less where the issuer says that its keys
    /// stay fresh for less (RFC 9111 §4.2), but never less than `min_spacing`; default 5 min.
    pub interval: Duration,
    /// Fetches forced by an unknown `kid` start at least this far apart; default 1 s.
    pub min_spacing: Duration,
    /// The same, forced by a bad signature under a known `kid`; default 10 s.
    pub min_spacing_bad_signature: Duration,
    /// Requests that may wait for a refresh at one time; default 10000.
    pub max_waiters: usize,
    /// What those requests may hold in memory together, in bytes, each its headers and its path; default 48 MiB.
    pub max_waiting_bytes: usize,
    /// The longest that a request waits for a refresh; default 2 s.
    pub wait: Duration,
    /// The longest that one fetch may take; default 2 s.
    pub timeout: Duration,
    /// How long the last good set serves while the issuer cannot be reached; default 24 h.
    pub max_stale: Duration,
    /// The largest key set or discovery document that is read, decompressed; default 1 MiB.
    pub max_bytes: usize,
    /// Where the last good set is kept for a start while the issuer is down; default nowhere.
    pub snapshot_dir: Option<PathBuf>,
}

impl Default for RefreshPolicy {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(300),
            min_spacing: Duration::from_secs(1),
            min_spacing_bad_signature: Duration::from_secs(10),
            max_waiters: 10_000,
            max_waiting_bytes: 48 << 20,
            wait: Duration::from_secs(2),
            timeout: Duration::from_secs(2),
            max_stale: Duration::from_secs(24 * 60 * 60),
            max_bytes: 1024 * 1024,
            snapshot_dir: None,
        }
    }
}

/// Bounds on one request and on one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest token, in bytes; default 16 KiB.
    pub token_bytes: usize,
    /// The most members and values of a token's header, and of its payload; default 4,096. Counted as
    /// [`JsonLimits::values`] says.
    pub token_values: usize,
    /// The most objects and arrays within one another, of the same; default 16.
    pub token_depth: usize,
    /// All claim headers of one request together, in bytes; default 8 KiB.
    pub claim_header_bytes: usize,
    /// One Check, in bytes, with the body that Envoy may send along; default 16 MiB.
    pub message_bytes: usize,
    /// Open connections of one listener; default 16,384.
    pub connections: usize,
}

impl Limits {
    /// Those of one token.
    pub fn token(&self) -> TokenLimits {
        let json = JsonLimits { values: self.token_values, depth: self.token_depth };
        TokenLimits { bytes: self.token_bytes, json }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let TokenLimits { bytes, json } = TokenLimits::default();
        Self {
            token_bytes: bytes,
            token_values: json.values,
            token_depth: json.depth,
            claim_header_bytes: 8 * 1024,
            message_bytes: 16 << 20,
            connections: 16_384,
        }
    }
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

/// What is logged and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Default JSON.
    pub format: LogFormat,
    /// Default info; `PORTCULLIS_LOG` overrides it.
    pub level: LogLevel,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: LogLevel::Info }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The least important line that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures of the service itself.
    Error,
    /// What an operator should look at.
    Warn,
    /// Refreshes and denials.
    Info,
    /// Every decision.
    Debug,
    /// The inside of a decision.
    Trace,
}

impl LogLevel {
    /// Every level by its name.
    pub const NAMED: [(&str, LogLevel); 5] = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];

    /// The name in the configuration and in `PORTCULLIS_LOG`.
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, level)| *level == self).map_or("info", |(name, _)| name)
    }
}
