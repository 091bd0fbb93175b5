//! Key sources of a provider, how its issuer is reached, and how keys are refreshed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use url::{Host, Url};

use portcullis_core::validation::Kid;
use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::key_set::{Key, KeySet, KeySetError};
use portcullis_engine::keys::http_client::PROXY_SCHEMES;

use super::cursor::{Cursor, Mapping, Read, show_duration};
use super::forms::{Count, FILE, List, Size, Text, Time, equal, shown, text_schema};
use super::section::{Form, FormDescription, section};
use super::yaml::Yaml;
use super::{
    BearerTokenFile, ClientCertificate, ForwardProxy, IssuerHttp, KeySource, ProxyUrl, RefreshPolicy,
};

/// The keys of a key source, as they were read.
pub(super) struct SourceDraft {
    pub(super) jwks_uri: Read<Option<Vec<String>>>,
    pub(super) discovery_uri: Read<Option<String>>,
    pub(super) jwks_file: Read<Option<PathBuf>>,
    pub(super) jwks: Read<Option<Arc<KeySet>>>,
}

/// The key source; `Ok(None)` if none is configured, which means discovery.
pub(super) fn make_key_source(draft: SourceDraft, mapping: &Mapping<'_>) -> Read<Option<KeySource>> {
    const SOURCES: [&str; 4] = ["jwks_uri", "discovery_uri", "jwks_file", "jwks"];
    let named: Vec<&str> = SOURCES.into_iter().filter(|key| mapping.get(key).is_some()).collect();
    if named.len() > 1 {
        return mapping.refuse(format!("only one of {} is allowed: keep one", named.join(" and ")));
    }
    let SourceDraft { jwks_uri, discovery_uri, jwks_file, jwks } = draft;
    let url = |key: &str, text: String| match check_url(&text) {
        Ok(url) => Ok(url),
        Err(message) => mapping.refuse_at(key, message),
    };
    Ok(match (jwks_uri?, discovery_uri?, jwks_file?, jwks?) {
        (Some(texts), ..) => {
            let urls: Read<Vec<Url>> = texts.into_iter().map(|text| url("jwks_uri", text)).collect();
            Some(KeySource::JwksUri(urls?))
        }
        (_, Some(text), ..) => Some(KeySource::Discovery(url("discovery_uri", text)?)),
        (_, _, Some(file), _) => Some(KeySource::File(file)),
        (_, _, _, Some(keys)) => Some(KeySource::Inline(keys)),
        _ => None,
    })
}

/// A URL to fetch, as it was written. Its query is not printed, since it may contain an API key.
pub(super) struct FetchUrl {
    /// The key in the configuration.
    pub(super) key: &'static str,
}

impl Form for FetchUrl {
    type Value = String;

    fn read(&self, cursor: &Cursor<'_>) -> Read<String> {
        let text = cursor.text()?;
        match check_url(&text) {
            Ok(_) => Ok(text),
            Err(message) => cursor.refuse(message),
        }
    }

    fn print(&self, value: &String) -> Yaml {
        match value.split_once('?') {
            None => Yaml::text(value),
            Some((before, _)) => Yaml::Redacted(
                format!("The query of {} is not shown; restore it before use.", self.key),
                Box::new(Yaml::text(format!("{before}?..."))),
            ),
        }
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new("an http or https URL", text_schema())
    }
}

/// A key set in the configuration. Only the names of its keys are printed, not the material: the output cannot be
/// read again without it, so that a provider without its keys is not silently read as one with discovery.
pub(super) struct InlineKeys;

impl Form for InlineKeys {
    type Value = Arc<KeySet>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Arc<KeySet>> {
        read_inline(cursor).map(Arc::new)
    }

    fn print(&self, value: &Arc<KeySet>) -> Yaml {
        let keys = Yaml::List(value.keys().iter().map(|key| Yaml::Scalar(redacted(key).inline())).collect());
        Yaml::Redacted(
            "The material of inline keys is not shown; restore it before use.".to_owned(),
            Box::new(Yaml::Scalar(Yaml::Mapping(vec![("keys".to_owned(), keys)]).inline())),
        )
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new(
            "a key set (RFC 7517 §5)",
            json!({"type": "object", "additionalProperties": true}),
        )
    }
}

fn redacted(key: &Key) -> Yaml {
    let alg = key.alg().map(Algorithm::name);
    let names =
        [("kid", key.kid().map(Kid::as_str)), ("kty", Some(key.kty())), ("alg", alg), ("use", key.key_use())];
    let named = names.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Yaml::text(value?))));
    let material = key.thumbprint().map_or_else(|| "a shared secret".to_owned(), |known| known.to_string());
    Yaml::Mapping(named.chain([("redacted".to_owned(), Yaml::text(material))]).collect())
}

fn check_url(text: &str) -> Result<Url, &'static str> {
    const EXPECTED: &str = "expected an absolute http or https URL, such as https://sso.example.com/keys";
    let url = Url::parse(text).map_err(|_| EXPECTED)?;
    // The parser corrects its input: it drops tabs and line breaks and adds missing slashes.
    let key = text.split_once("://").is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case(url.scheme()));
    let corrected = !key || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\');
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || corrected {
        return Err(EXPECTED);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL with a user name or a password is not accepted: it would appear in logs");
    }
    if url.query() == Some("...") {
        return Err("the query was left out where this was printed: write it again");
    }
    if url.fragment().is_some() {
        return Err("a URL to fetch must not have a `#` part");
    }
    Ok(url)
}

pub(super) fn default_discovery_url(issuer: &str, mapping: &Mapping<'_>) -> Read<Url> {
    let document = match check_url(issuer) {
        Ok(url) if url.query().is_some() => Err("it contains a `?`"),
        Ok(_) => check_url(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))),
        Err(reason) => Err(reason),
    };
    match document {
        Ok(url) => Ok(url),
        Err(reason) => mapping.refuse_at("issuer", format!(
            "this issuer cannot be the base of a discovery URL: {reason}; or set jwks_uri, discovery_uri, jwks_file or jwks"
        )),
    }
}

/// Parses each key separately first, so that an error has the position of its key.
fn read_inline(cursor: &Cursor<'_>) -> Read<KeySet> {
    let document = cursor.json()?;
    let elements = cursor.peek("keys").filter(Cursor::is_list).and_then(|keys| keys.elements().ok());
    let jwks = document.get("keys").and_then(|keys| keys.as_array());
    let mut result = Ok(());
    for (element, jwk) in elements.into_iter().flatten().zip(jwks.into_iter().flatten()) {
        let single = serde_json::json!({ "keys": [jwk] }).to_string();
        if let Err(error) = KeySet::parse_inline(single.as_bytes()) {
            result = match error {
                KeySetError::NothingUsable { reason: Some(reason), .. } => {
                    element.refuse(format!("this key cannot be used: {reason}"))
                }
                other => element.refuse(other.to_string()),
            };
        }
    }
    result?;
    match KeySet::parse_inline(document.to_string().as_bytes()) {
        Ok(keys) => Ok(keys),
        Err(error) => cursor.refuse(error.to_string()),
    }
}

section! {
    /// The connection to an issuer.
    "Http": IssuerHttp,
    read through HttpDraft by make_http,
    printed through HttpShown by show_http {
        /// Trusted authorities instead of those of the system, PEM.
        ca_file: PathBuf = FILE, optional;
        /// A forward proxy, or none. Default: HTTPS_PROXY and HTTP_PROXY of the environment.
        proxy: ForwardProxy = Proxy, optional;
        /// The client certificate for the issuer, PEM.
        client_cert_file: PathBuf = FILE, optional;
        /// Its private key, PEM.
        client_key_file: PathBuf = FILE, optional;
        /// A bearer token for the issuer. It is sent to the hosts of issuer, discovery_uri and jwks_uri.
        bearer_token_file: PathBuf = FILE, optional;
        /// Further hosts that get the token, such as the one that a discovery document names.
        bearer_token_hosts: Vec<String> = List {
            of: Text { read: read_host, show: shown, summary: "a host name or an address" },
            empty: "an empty list names no host: remove the key",
            same: equal,
        }, unless(Vec::new());
    }
}

fn make_http(draft: HttpDraft, mapping: &Mapping<'_>) -> Read<IssuerHttp> {
    let HttpDraft {
        ca_file,
        proxy,
        client_cert_file,
        client_key_file,
        bearer_token_file,
        bearer_token_hosts,
    } = draft;
    let client_certificate = match (client_cert_file?, client_key_file?) {
        (None, None) => None,
        (Some(cert_file), Some(key_file)) => Some(ClientCertificate { cert_file, key_file }),
        _ => return mapping.refuse("`client_cert_file` and `client_key_file` belong together: set both"),
    };
    let hosts = bearer_token_hosts?;
    let bearer_token = match bearer_token_file? {
        Some(file) => Some(BearerTokenFile { file, hosts, named: Vec::new() }),
        None if hosts.is_empty() => None,
        None => return mapping.refuse_at("bearer_token_hosts", "there is no token: set `bearer_token_file`"),
    };
    let http = IssuerHttp {
        allow_http: false,
        ca_file: ca_file?,
        proxy: proxy?.unwrap_or_default(),
        client_certificate,
        bearer_token,
    };
    mapping.cursor().record_issuer(&http);
    Ok(http)
}

fn show_http(http: &IssuerHttp) -> HttpShown {
    let IssuerHttp { ca_file, proxy, client_certificate, bearer_token, .. } = http.clone();
    let (client_cert_file, client_key_file) =
        client_certificate.map(|ClientCertificate { cert_file, key_file }| (cert_file, key_file)).unzip();
    let (bearer_token_file, hosts) =
        bearer_token.map(|BearerTokenFile { file, hosts, .. }| (file, hosts)).unzip();
    HttpShown {
        ca_file,
        proxy: Some(proxy).filter(|proxy| *proxy != ForwardProxy::Environment),
        client_cert_file,
        client_key_file,
        bearer_token_file,
        bearer_token_hosts: hosts.filter(|hosts| !hosts.is_empty()),
    }
}

/// A host as it is compared with that of a URL: without a port, an IPv6 address without brackets.
fn read_host(cursor: &Cursor<'_>) -> Read<String> {
    let text = cursor.text()?;
    let bare = text.trim_matches(['[', ']']);
    let parsed = Host::parse(if bare.contains(':') { format!("[{bare}]") } else { bare.to_owned() }.as_str());
    match parsed {
        Ok(Host::Domain(name)) => Ok(name),
        Ok(Host::Ipv4(address)) => Ok(address.to_string()),
        Ok(Host::Ipv6(address)) => Ok(address.to_string()),
        Err(_) => cursor.refuse("expected a host name or an address, without scheme and port"),
    }
}

/// The URL of a forward proxy; its user name and password are not printed.
struct Proxy;

impl Form for Proxy {
    type Value = ForwardProxy;

    fn read(&self, cursor: &Cursor<'_>) -> Read<ForwardProxy> {
        if cursor.text()? == "none" {
            return Ok(ForwardProxy::None);
        }
        read_proxy(cursor).map(ForwardProxy::Url)
    }

    fn print(&self, value: &ForwardProxy) -> Yaml {
        let ForwardProxy::Url(value) = value else { return Yaml::text("none") };
        if !value.has_credentials() {
            return Yaml::text(value);
        }
        Yaml::Redacted(
            "The proxy's user name and password are not shown; restore them before use.".to_owned(),
            Box::new(Yaml::text(value)),
        )
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new("an http, https, socks5 or socks5h URL, or `none`", text_schema())
    }
}

fn read_proxy(cursor: &Cursor<'_>) -> Read<ProxyUrl> {
    let url = Url::parse(&cursor.text()?).ok().filter(|url| {
        PROXY_SCHEMES.contains(&url.scheme())
            && url.host().is_some()
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
    });
    match url {
        Some(url) if url.username() == "..." => {
            cursor.refuse("the credentials were left out where this was printed: write them again")
        }
        Some(url) => Ok(ProxyUrl::new(url)),
        None => cursor
            .refuse("expected `none`, or the URL of a forward proxy, such as http://proxy.example.com:3128"),
    }
}

/// An attacker who can change the response chooses the keys, so plain http is accepted only on loopback unless it
/// is allowed explicitly (RFC 7517 §9.1, OpenID Connect Discovery §4).
pub(super) fn refuse_plain_http(provider: &Mapping<'_>, keys: &KeySource, http: &IssuerHttp) -> Read<()> {
    // A request to this machine leaves it through a proxy.
    let stays_here = |url: &Url| is_loopback(url) && !matches!(http.proxy, ForwardProxy::Url(_));
    let is_plain = |url: &Url| url.scheme() != "https" && !stays_here(url);
    if http.allow_http || !keys.urls().iter().any(is_plain) {
        return Ok(());
    }
    let key = ["jwks_uri", "discovery_uri"].into_iter().find(|key| provider.get(key).is_some());
    provider.refuse_at(
        key.unwrap_or("issuer"),
        "keys over plain http can be replaced in transit: use https, or set `allow_http: true` for this provider if the network is trusted",
    )
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

/// The shortest duration of a refresh policy.
const MIN_DURATION: Duration = Duration::from_millis(10);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const fn up_to(max: Duration) -> Time {
    Time { min: MIN_DURATION, max }
}

section! {
    /// How keys are refreshed.
    "Refresh": RefreshPolicy, checked check_refresh {
        /// The time between scheduled fetches, or less if the issuer's response says so.
        interval: up_to(DAY), default(RefreshPolicy::default().interval);
        /// The least time between fetches that are forced by an unknown kid.
        min_spacing: up_to(MINUTE.saturating_mul(10)), default(RefreshPolicy::default().min_spacing);
        /// The least time between fetches that are forced by a bad signature with a known kid.
        min_spacing_bad_signature: up_to(MINUTE.saturating_mul(60)),
            default(RefreshPolicy::default().min_spacing_bad_signature);
        /// The most requests that may wait for a refresh at once.
        max_waiters: Count { min: 1, max: 1_000_000 }, default(RefreshPolicy::default().max_waiters);
        /// The most memory for the headers and paths of waiting requests.
        max_waiting_bytes: Size { min: 1 << 20, max: 1 << 30 },
            default(RefreshPolicy::default().max_waiting_bytes);
        /// The longest time that a request waits for a refresh.
        wait: up_to(MINUTE), default(RefreshPolicy::default().wait);
        /// The longest time that one fetch may take.
        timeout: up_to(MINUTE), default(RefreshPolicy::default().timeout);
        /// How long the latest key set is used while the issuer cannot be reached.
        max_stale: up_to(DAY.saturating_mul(365)), default(RefreshPolicy::default().max_stale);
        /// The largest key set or discovery document.
        max_bytes: Size { min: 1 << 10, max: 64 << 20 }, default(RefreshPolicy::default().max_bytes);
        /// A folder for the latest key set, for a start while the issuer is down. Default: no snapshots.
        snapshot_dir: Text {
            read: |cursor| cursor.text().map(PathBuf::from),
            show: |path| path.display().to_string(),
            summary: "a folder",
        }, optional;
    }
}

fn check_refresh(policy: &RefreshPolicy, mapping: &Mapping<'_>) -> Read<()> {
    let present_or =
        |one: &'static str, other: &'static str| if mapping.get(one).is_some() { one } else { other };
    if policy.interval < policy.min_spacing {
        let (interval, spacing) = (show_duration(policy.interval), show_duration(policy.min_spacing));
        return mapping.refuse_at(
            present_or("interval", "min_spacing"),
            format!(
                "`interval` ({interval}) must not be shorter than `min_spacing` ({spacing}), since scheduled fetches observe it too"
            ),
        );
    }
    if policy.max_stale < policy.interval {
        let (max_stale, interval) = (show_duration(policy.max_stale), show_duration(policy.interval));
        return mapping.refuse_at(
            present_or("max_stale", "interval"),
            format!(
                "`max_stale` ({max_stale}) must not be shorter than `interval` ({interval}), or keys would expire between two scheduled fetches"
            ),
        );
    }
    Ok(())
}
