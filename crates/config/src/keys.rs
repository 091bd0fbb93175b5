//! Where a provider's keys are, how they are reached, and how they are kept fresh.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::{Host, Url};

use portcullis_core::validation::key_set::{KeySet, KeySetError};

use super::cursor::{Cursor, Mapping, show_duration};
use super::{ClientCertificate, IssuerHttp, KeySource, ProxyUrl, RefreshPolicy};

/// `Some(None)` where nothing says where the keys are: discovery then.
pub(super) fn read_key_source(mapping: &Mapping<'_>) -> Option<Option<KeySource>> {
    const SOURCES: [&str; 4] = ["jwks_uri", "discovery_uri", "jwks_file", "jwks"];
    let named: Vec<&str> = SOURCES.into_iter().filter(|key| mapping.get(key).is_some()).collect();
    if named.len() > 1 {
        return mapping.refuse(format!("{} are given: keep one of them", named.join(" and ")));
    }
    let Some(key) = named.first() else { return Some(None) };
    let cursor = mapping.get(key)?;
    let source = match *key {
        "jwks_uri" => KeySource::JwksUri(read_url(&cursor)?),
        "discovery_uri" => KeySource::Discovery(read_url(&cursor)?),
        "jwks_file" => KeySource::File(cursor.file()?),
        _ => KeySource::Inline(Arc::new(read_inline(&cursor)?)),
    };
    Some(Some(source))
}

fn read_url(cursor: &Cursor<'_>) -> Option<Url> {
    match check_url(&cursor.text()?) {
        Ok(url) => Some(url),
        Err(message) => cursor.refuse(message),
    }
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

pub(super) fn discovery_below(issuer: &str, mapping: &Mapping<'_>) -> Option<Url> {
    let document = match check_url(issuer) {
        Ok(url) if url.query().is_some() => Err("a URL with `?` has nothing below it"),
        Ok(_) => check_url(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))),
        Err(reason) => Err(reason),
    };
    match document {
        Ok(url) => Some(url),
        Err(reason) => mapping.get("issuer")?.refuse(format!(
            "keys cannot be discovered below this issuer: {reason}; or say where they are with jwks_uri, discovery_uri, jwks_file or jwks"
        )),
    }
}

/// Each key is read by itself first, so that a problem is reported where the key stands.
fn read_inline(cursor: &Cursor<'_>) -> Option<KeySet> {
    let document = cursor.json()?;
    let elements = cursor.peek("keys").filter(Cursor::is_list).and_then(|keys| keys.elements());
    let jwks = document.get("keys").and_then(|keys| keys.as_array());
    let mut every_key = Some(());
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
        Ok(keys) => Some(keys),
        Err(error) => cursor.refuse(error.to_string()),
    }
}

/// How the issuer is reached: `http` and `allow_http`.
pub(super) fn read_issuer_http(provider: &Mapping<'_>) -> Option<IssuerHttp> {
    let allow_http = provider.or("allow_http", false, |cursor| cursor.boolean());
    let files = provider.or("http", IssuerHttp::default(), |cursor| {
        let mapping = cursor.mapping(&["ca_file", "proxy", "client_cert_file", "client_key_file"], &[])?;
        let ca_file = mapping.optional("ca_file", |cursor| cursor.file());
        let proxy = mapping.optional("proxy", |cursor| read_proxy(&cursor));
        let cert_file = mapping.optional("client_cert_file", |cursor| cursor.file());
        let key_file = mapping.optional("client_key_file", |cursor| cursor.file());
        let client_certificate = match (cert_file?, key_file?) {
            (None, None) => None,
            (Some(cert_file), Some(key_file)) => Some(ClientCertificate { cert_file, key_file }),
            _ => {
                return mapping.refuse("`client_cert_file` and `client_key_file` belong together: give both");
            }
        };
        let http = IssuerHttp { allow_http: false, ca_file: ca_file?, proxy: proxy?, client_certificate };
        cursor.note_issuer(&http);
        Some(http)
    });
    Some(IssuerHttp { allow_http: allow_http?, ..files? })
}

fn read_proxy(cursor: &Cursor<'_>) -> Option<ProxyUrl> {
    let url = Url::parse(&cursor.text()?).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.host().is_some()
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
    });
    match url {
        Some(url) => Some(ProxyUrl::new(url)),
        None => cursor.refuse("expected the URL of a forward proxy, such as http://proxy.example.com:3128"),
    }
}

/// Whoever can change what comes over the wire chooses the keys, so plain http is for this machine alone
/// unless asked for (RFC 7517 §9.1, OpenID Connect Discovery §4).
pub(super) fn refuse_plain_http(provider: &Mapping<'_>, keys: &KeySource, http: &IssuerHttp) -> Option<()> {
    let (KeySource::JwksUri(url) | KeySource::Discovery(url)) = keys else { return Some(()) };
    if url.scheme() == "https" || http.allow_http || is_loopback(url) {
        return Some(());
    }
    let written = ["jwks_uri", "discovery_uri", "issuer"].into_iter().find_map(|key| provider.get(key))?;
    written.refuse(
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

pub(super) fn read_refresh(cursor: &Cursor<'_>) -> Option<RefreshPolicy> {
    const SHORTEST: Duration = Duration::from_millis(10);
    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let default = RefreshPolicy::default();
    let mapping = cursor.mapping(
        &[
            "interval",
            "min_spacing",
            "min_spacing_bad_signature",
            "max_waiters",
            "max_waiting_bytes",
            "wait",
            "timeout",
            "max_stale",
            "max_bytes",
            "snapshot_dir",
        ],
        &[],
    )?;
    let duration =
        |key, default, longest| mapping.or(key, default, |cursor| cursor.duration(SHORTEST, longest));
    let interval = duration("interval", default.interval, DAY);
    let min_spacing = duration("min_spacing", default.min_spacing, 10 * MINUTE);
    let min_spacing_bad_signature =
        duration("min_spacing_bad_signature", default.min_spacing_bad_signature, 60 * MINUTE);
    let wait = duration("wait", default.wait, MINUTE);
    let timeout = duration("timeout", default.timeout, MINUTE);
    let max_stale = duration("max_stale", default.max_stale, 365 * DAY);
    let max_waiters = mapping.or("max_waiters", default.max_waiters, |cursor| cursor.count(1, 1_000_000));
    let max_waiting_bytes =
        mapping.or("max_waiting_bytes", default.max_waiting_bytes, |cursor| cursor.bytes(1 << 20, 1 << 30));
    let max_bytes = mapping.or("max_bytes", default.max_bytes, |cursor| cursor.bytes(1 << 10, 64 << 20));
    let snapshot_dir = mapping.optional("snapshot_dir", |cursor| cursor.text().map(PathBuf::from));
    let policy = RefreshPolicy {
        interval: interval?,
        min_spacing: min_spacing?,
        min_spacing_bad_signature: min_spacing_bad_signature?,
        max_waiters: max_waiters?,
        max_waiting_bytes: max_waiting_bytes?,
        wait: wait?,
        timeout: timeout?,
        max_stale: max_stale?,
        max_bytes: max_bytes?,
        snapshot_dir: snapshot_dir?,
    };
    if policy.interval < policy.min_spacing {
        let written = mapping.get("interval").or_else(|| mapping.get("min_spacing"))?;
        return written.refuse(format!(
            "`interval` ({}) must not be shorter than `min_spacing` ({}), or scheduled fetches would break the spacing",
            show_duration(policy.interval),
            show_duration(policy.min_spacing)
        ));
    }
    if policy.max_stale < policy.interval {
        let written = mapping.get("max_stale").or_else(|| mapping.get("interval"))?;
        return written.refuse(format!(
            "`max_stale` ({}) must not be shorter than `interval` ({}), or keys would expire between two fetches of an issuer that is well",
            show_duration(policy.max_stale),
            show_duration(policy.interval)
        ));
    }
    Some(policy)
}
