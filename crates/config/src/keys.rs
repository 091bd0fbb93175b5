//! Where a provider's keys are, how they are reached, and how they are kept fresh.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use url::{Host, Url};

use portcullis_core::validation::Kid;
use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::key_set::{Key, KeySet, KeySetError};

use super::cursor::{Cursor, Mapping, Read, show_duration};
use super::forms::{Count, FILE, Size, Text, Time, text_schema};
use super::section::{Form, FormDescription, section};
use super::yaml::Yaml;
use super::{ClientCertificate, IssuerHttp, KeySource, ProxyUrl, RefreshPolicy};

/// Where a provider's keys are, as it was read.
pub(super) struct SourceDraft {
    pub(super) jwks_uri: Read<Option<String>>,
    pub(super) discovery_uri: Read<Option<String>>,
    pub(super) jwks_file: Read<Option<PathBuf>>,
    pub(super) jwks: Read<Option<Arc<KeySet>>>,
}

/// `Ok(None)` where nothing says where the keys are: discovery then.
pub(super) fn make_key_source(draft: SourceDraft, mapping: &Mapping<'_>) -> Read<Option<KeySource>> {
    const SOURCES: [&str; 4] = ["jwks_uri", "discovery_uri", "jwks_file", "jwks"];
    let named: Vec<&str> = SOURCES.into_iter().filter(|key| mapping.get(key).is_some()).collect();
    if named.len() > 1 {
        return mapping.refuse(format!("{} are given: keep one of them", named.join(" and ")));
    }
    let SourceDraft { jwks_uri, discovery_uri, jwks_file, jwks } = draft;
    let url = |key: &str, text: String| match check_url(&text) {
        Ok(url) => Ok(url),
        Err(message) => mapping.refuse_at(key, message),
    };
    Ok(match (jwks_uri?, discovery_uri?, jwks_file?, jwks?) {
        (Some(text), ..) => Some(KeySource::JwksUri(url("jwks_uri", text)?)),
        (_, Some(text), ..) => Some(KeySource::Discovery(url("discovery_uri", text)?)),
        (_, _, Some(file), _) => Some(KeySource::File(file)),
        (_, _, _, Some(keys)) => Some(KeySource::Inline(keys)),
        _ => None,
    })
}

/// A URL to fetch, as it was written. Of one with a query, which may hold a key of the issuer's, that is not printed.
pub(super) struct FetchUrl {
    /// The key that it stands under.
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
            Some((before, _)) => Yaml::Without(
                format!("The query of {} is not shown; put it back to use this.", self.key),
                Box::new(Yaml::text(format!("{before}?..."))),
            ),
        }
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new("an http or https URL", text_schema())
    }
}

/// A key set in the configuration. What is printed has its names and no material: without that no key can be read again,
/// which is better than a provider that, with its keys left out, would quietly be read as one that discovers them.
pub(super) struct InlineKeys;

impl Form for InlineKeys {
    type Value = Arc<KeySet>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Arc<KeySet>> {
        read_inline(cursor).map(Arc::new)
    }

    fn print(&self, value: &Arc<KeySet>) -> Yaml {
        let keys = Yaml::List(value.keys().iter().map(|key| Yaml::Scalar(redacted(key).inline())).collect());
        Yaml::Without(
            "The material of inline keys is not shown; put it back to use this.".to_owned(),
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
    // The parser mends what was written: it drops tabs and line breaks and adds missing slashes.
    let written = text.split_once("://").is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case(url.scheme()));
    let mended = !written || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\');
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || mended {
        return Err(EXPECTED);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL with a user name or a password is not accepted: it would reach logs");
    }
    if url.fragment().is_some() {
        return Err("a URL to fetch has no `#` part");
    }
    Ok(url)
}

pub(super) fn discovery_below(issuer: &str, mapping: &Mapping<'_>) -> Read<Url> {
    let document = match check_url(issuer) {
        Ok(url) if url.query().is_some() => Err("a URL with `?` has nothing below it"),
        Ok(_) => check_url(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))),
        Err(reason) => Err(reason),
    };
    match document {
        Ok(url) => Ok(url),
        Err(reason) => mapping.refuse_at("issuer", format!(
            "keys cannot be discovered below this issuer: {reason}; or say where they are with jwks_uri, discovery_uri, jwks_file or jwks"
        )),
    }
}

/// Each key is read by itself first, so that a problem is reported where the key stands.
fn read_inline(cursor: &Cursor<'_>) -> Read<KeySet> {
    let document = cursor.json()?;
    let elements = cursor.peek("keys").filter(Cursor::is_list).and_then(|keys| keys.elements().ok());
    let jwks = document.get("keys").and_then(|keys| keys.as_array());
    let mut every_key = Ok(());
    for (element, jwk) in elements.into_iter().flatten().zip(jwks.into_iter().flatten()) {
        let alone = serde_json::json!({ "keys": [jwk] }).to_string();
        if let Err(error) = KeySet::parse_inline(alone.as_bytes()) {
            every_key = match error {
                KeySetError::NothingUsable { reason: Some(reason), .. } => {
                    element.refuse(format!("this key cannot be used: {reason}"))
                }
                other => element.refuse(other.to_string()),
            };
        }
    }
    every_key?;
    match KeySet::parse_inline(document.to_string().as_bytes()) {
        Ok(keys) => Ok(keys),
        Err(error) => cursor.refuse(error.to_string()),
    }
}

section! {
    /// How an issuer is reached.
    "Http": IssuerHttp,
    read through HttpDraft by make_http,
    printed through HttpShown by show_http,
    later ["bearer_token_file", "bearer_token_hosts"] {
        /// Authorities that are trusted instead of the system's, PEM.
        ca_file: PathBuf = FILE, optional;
        /// A forward proxy. Left out: none.
        proxy: ProxyUrl = Proxy, optional;
        /// The certificate that is shown to an issuer that asks for one, PEM.
        client_cert_file: PathBuf = FILE, optional;
        /// Its private key, PEM.
        client_key_file: PathBuf = FILE, optional;
    }
}

fn make_http(draft: HttpDraft, mapping: &Mapping<'_>) -> Read<IssuerHttp> {
    let HttpDraft { ca_file, proxy, client_cert_file, client_key_file } = draft;
    let client_certificate = match (client_cert_file?, client_key_file?) {
        (None, None) => None,
        (Some(cert_file), Some(key_file)) => Some(ClientCertificate { cert_file, key_file }),
        _ => return mapping.refuse("`client_cert_file` and `client_key_file` belong together: give both"),
    };
    let http = IssuerHttp { allow_http: false, ca_file: ca_file?, proxy: proxy?, client_certificate };
    mapping.cursor().record_issuer(&http);
    Ok(http)
}

fn show_http(http: &IssuerHttp) -> HttpShown {
    let IssuerHttp { ca_file, proxy, client_certificate, .. } = http.clone();
    let (client_cert_file, client_key_file) =
        client_certificate.map(|ClientCertificate { cert_file, key_file }| (cert_file, key_file)).unzip();
    HttpShown { ca_file, proxy, client_cert_file, client_key_file }
}

/// The URL of a forward proxy; its user name and password are not printed.
struct Proxy;

impl Form for Proxy {
    type Value = ProxyUrl;

    fn read(&self, cursor: &Cursor<'_>) -> Read<ProxyUrl> {
        read_proxy(cursor)
    }

    fn print(&self, value: &ProxyUrl) -> Yaml {
        if !value.has_credentials() {
            return Yaml::text(value);
        }
        Yaml::Without(
            "The proxy's user name and password are not shown; put them back to use this.".to_owned(),
            Box::new(Yaml::text(value)),
        )
    }

    fn describe(&self) -> FormDescription {
        FormDescription::new("an http or https URL", text_schema())
    }
}

fn read_proxy(cursor: &Cursor<'_>) -> Read<ProxyUrl> {
    let url = Url::parse(&cursor.text()?).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.host().is_some()
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
    });
    match url {
        Some(url) => Ok(ProxyUrl::new(url)),
        None => cursor.refuse("expected the URL of a forward proxy, such as http://proxy.example.com:3128"),
    }
}

/// Whoever can change what comes over the wire chooses the keys, so plain http is for this machine alone
/// unless asked for (RFC 7517 §9.1, OpenID Connect Discovery §4).
pub(super) fn refuse_plain_http(provider: &Mapping<'_>, keys: &KeySource, http: &IssuerHttp) -> Read<()> {
    let (KeySource::JwksUri(url) | KeySource::Discovery(url)) = keys else { return Ok(()) };
    if url.scheme() == "https" || http.allow_http || is_loopback(url) {
        return Ok(());
    }
    let written = ["jwks_uri", "discovery_uri"].into_iter().find(|key| provider.get(key).is_some());
    provider.refuse_at(
        written.unwrap_or("issuer"),
        "keys that come by http can be exchanged on their way: use https, or say `allow_http: true` for this provider if the network in between can be trusted",
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

/// The shortest duration of a policy.
const SHORTEST: Duration = Duration::from_millis(10);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const fn up_to(max: Duration) -> Time {
    Time { min: SHORTEST, max }
}

section! {
    /// How keys are kept fresh.
    "Refresh": RefreshPolicy, checked check_refresh {
        /// Scheduled fetches start this far apart, or less where the issuer says so.
        interval: up_to(DAY), default(RefreshPolicy::default().interval);
        /// Fetches forced by an unknown kid start at least this far apart.
        min_spacing: up_to(MINUTE.saturating_mul(10)), default(RefreshPolicy::default().min_spacing);
        /// The same, forced by a bad signature under a known kid.
        min_spacing_bad_signature: up_to(MINUTE.saturating_mul(60)),
            default(RefreshPolicy::default().min_spacing_bad_signature);
        /// Requests that may wait for a refresh at one time.
        max_waiters: Count { min: 1, max: 1_000_000 }, default(RefreshPolicy::default().max_waiters);
        /// What those requests may hold in memory together: their headers and paths.
        max_waiting_bytes: Size { min: 1 << 20, max: 1 << 30 },
            default(RefreshPolicy::default().max_waiting_bytes);
        /// The longest that a request waits for a refresh.
        wait: up_to(MINUTE), default(RefreshPolicy::default().wait);
        /// The longest that one fetch may take.
        timeout: up_to(MINUTE), default(RefreshPolicy::default().timeout);
        /// How long the last good set serves while the issuer cannot be reached.
        max_stale: up_to(DAY.saturating_mul(365)), default(RefreshPolicy::default().max_stale);
        /// The largest key set or discovery document.
        max_bytes: Size { min: 1 << 10, max: 64 << 20 }, default(RefreshPolicy::default().max_bytes);
        /// A folder for the last good set, for a start while the issuer is down. Left out: none is kept.
        snapshot_dir: Text {
            read: |cursor| cursor.text().map(PathBuf::from),
            show: |path| path.display().to_string(),
            summary: "a folder",
        }, optional;
    }
}

fn check_refresh(policy: &RefreshPolicy, mapping: &Mapping<'_>) -> Read<()> {
    let first_of =
        |one: &'static str, other: &'static str| if mapping.get(one).is_some() { one } else { other };
    if policy.interval < policy.min_spacing {
        let (interval, spacing) = (show_duration(policy.interval), show_duration(policy.min_spacing));
        return mapping.refuse_at(
            first_of("interval", "min_spacing"),
            format!(
                "`interval` ({interval}) must not be shorter than `min_spacing` ({spacing}), or scheduled fetches would break the spacing"
            ),
        );
    }
    if policy.max_stale < policy.interval {
        let (max_stale, interval) = (show_duration(policy.max_stale), show_duration(policy.interval));
        return mapping.refuse_at(
            first_of("max_stale", "interval"),
            format!(
                "`max_stale` ({max_stale}) must not be shorter than `interval` ({interval}), or keys would expire between two fetches of an issuer that is well"
            ),
        );
    }
    Ok(())
}
