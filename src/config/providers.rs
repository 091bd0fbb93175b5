//! The `providers` section: rules for tokens, where the keys are, and how they are kept fresh.

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use crate::validation::algorithm::Algorithm;
use crate::validation::canonical_media_type;
use crate::validation::key_set::KeySet;
use crate::validation::provider::{Audiences, ClaimHeader, ClaimPath, Provider, TokenSource, TokenTypes};

use super::cursor::{Cursor, Mapping};
use super::{KeySource, ProviderConfig, RefreshPolicy};

const KEYS: [&str; 16] = [
    "name",
    "issuer",
    "audiences",
    "any_audience",
    "jwks_uri",
    "discovery_uri",
    "jwks_file",
    "jwks",
    "algorithms",
    "clock_skew",
    "token_types",
    "required_claims",
    "token_from",
    "forward_token",
    "claim_headers",
    "refresh",
];
const LATER_KEYS: [&str; 4] = ["http", "allow_http", "realms", "snapshot_dir"];

/// Headers that carry the request itself, its path through proxies, or its credentials: no claim may
/// stand there.
const RESERVED_HEADERS: [&str; 14] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "authorization",
    "cookie",
    "expect",
    "forwarded",
    "via",
];
const RESERVED_PREFIXES: [&str; 5] = ["proxy-", "x-envoy-", "x-forwarded-", "x-original-", "grpc-"];

pub(super) fn read_providers(cursor: &Cursor<'_>) -> Option<Vec<ProviderConfig>> {
    let elements = cursor.elements()?;
    if elements.is_empty() {
        return cursor.refuse("at least one provider is needed");
    }
    let read: Vec<Option<ProviderConfig>> = elements.iter().map(read_provider).collect();
    for (i, (element, config)) in elements.iter().zip(&read).enumerate() {
        let Some(config) = config else { continue };
        for earlier in read.iter().take(i).flatten() {
            if earlier.provider.name == config.provider.name {
                element.refuse::<()>(format!("another provider is named `{}` already", config.provider.name));
            }
            if earlier.provider.issuer == config.provider.issuer {
                element.refuse::<()>(
                    "another provider has this issuer already; a token's `iss` chooses its provider",
                );
            }
        }
    }
    read.into_iter().collect()
}

fn read_provider(cursor: &Cursor<'_>) -> Option<ProviderConfig> {
    let mapping = cursor.mapping(&KEYS, &LATER_KEYS)?;
    let name =
        mapping.need("name", "how logs and metrics call the provider").and_then(|cursor| read_name(&cursor));
    let issuer =
        mapping.need("issuer", "compared exactly with a token's `iss`").and_then(|cursor| cursor.text());
    let audiences = read_audiences(&mapping);
    let keys = read_key_source(&mapping);
    let algorithms = mapping.or("algorithms", Algorithm::default_set(), |cursor| read_algorithms(&cursor));
    let clock_skew = mapping.or("clock_skew", Duration::from_secs(30), |cursor| {
        cursor.duration(Duration::ZERO, Duration::from_secs(600))
    });
    let token_types = mapping.or("token_types", TokenTypes::Default, |cursor| {
        let types = cursor.texts("an empty list accepts no token; leave the key out for the default")?;
        Some(TokenTypes::AnyOf(types.iter().map(|text| canonical_media_type(text)).collect()))
    });
    let required_claims = mapping
        .or("required_claims", Vec::new(), |cursor| cursor.elements()?.iter().map(read_claim_path).collect());
    let token_from =
        mapping.or("token_from", vec![TokenSource::default()], |cursor| read_token_from(&cursor));
    let forward_token = mapping.or("forward_token", true, |cursor| cursor.boolean());
    let claim_headers = mapping.or("claim_headers", Vec::new(), |cursor| read_claim_headers(&cursor));
    let refresh = mapping.or("refresh", RefreshPolicy::default(), |cursor| read_refresh(&cursor));

    let algorithms = algorithms?;
    let inline = mapping.get("jwks").is_some();
    if !inline && let Some(symmetric) = algorithms.iter().find(|algorithm| algorithm.is_symmetric()) {
        return mapping
            .refuse(format!("`{symmetric}` needs its secret in an inline `jwks`; it is never fetched"));
    }
    let issuer = issuer?;
    let keys = match keys? {
        Some(keys) => keys,
        None => KeySource::Discovery(discovery_below(&issuer, &mapping)?),
    };
    let provider = Provider {
        name: name?,
        issuer,
        audiences: audiences?,
        algorithms,
        clock_skew: clock_skew?,
        token_types: token_types?,
        required_claims: required_claims?,
        token_from: token_from?,
        forward_token: forward_token?,
        claim_headers: claim_headers?,
    };
    Some(ProviderConfig { provider: Arc::new(provider), keys, refresh: refresh? })
}

fn read_name(cursor: &Cursor<'_>) -> Option<String> {
    let name = cursor.text()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if name.len() > 64 || !name.bytes().all(plain) {
        return cursor.refuse("expected at most 64 letters, digits, `_`, `-` and `.`");
    }
    Some(name)
}

fn read_audiences(mapping: &Mapping<'_>) -> Option<Audiences> {
    const ANY: &str =
        "an empty list accepts no token; to accept every audience write `any_audience: true` instead";
    let any = mapping.or("any_audience", false, |cursor| cursor.boolean())?;
    match (mapping.get("audiences"), any) {
        (Some(cursor), false) => cursor.texts(ANY).map(Audiences::AnyOf),
        (None, true) => Some(Audiences::Any),
        (Some(cursor), true) => cursor.refuse("`audiences` and `any_audience: true` contradict each other: keep one"),
        (None, false) => mapping.refuse(
            "`audiences` is missing: the audiences of which a token must name one, or `any_audience: true` on purpose",
        ),
    }
}

/// `Some(None)` where nothing says where the keys are: discovery then.
fn read_key_source(mapping: &Mapping<'_>) -> Option<Option<KeySource>> {
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
    let url = Url::parse(text).map_err(|_| "expected an absolute http or https URL")?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("expected an absolute http or https URL");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL with a user name or a password is not accepted: it would reach logs");
    }
    if url.fragment().is_some() {
        return Err("a URL to fetch has no `#` part");
    }
    Ok(url)
}

fn discovery_below(issuer: &str, mapping: &Mapping<'_>) -> Option<Url> {
    let document = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    match check_url(&document) {
        Ok(url) => Some(url),
        Err(_) => mapping.refuse(
            "`issuer` is not a URL, so its keys cannot be discovered: write jwks_uri, discovery_uri, jwks_file or jwks",
        ),
    }
}

fn read_inline(cursor: &Cursor<'_>) -> Option<KeySet> {
    let document = cursor.json()?.to_string();
    match KeySet::parse_inline(document.as_bytes()) {
        Ok(keys) => Some(keys),
        Err(error) => cursor.refuse(error.to_string()),
    }
}

fn read_algorithms(cursor: &Cursor<'_>) -> Option<Vec<Algorithm>> {
    cursor.texts("an empty list accepts no token; leave the key out for every asymmetric one")?;
    let algorithm = |element: &Cursor<'_>| match Algorithm::from_name(&element.text()?) {
        Some(algorithm) => Some(algorithm),
        None => {
            let names: Vec<&str> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
            element.refuse(format!("not a supported algorithm; supported: {}", names.join(", ")))
        }
    };
    cursor.elements()?.iter().map(algorithm).collect()
}

fn read_claim_path(cursor: &Cursor<'_>) -> Option<ClaimPath> {
    match ClaimPath::parse(&cursor.text()?) {
        Ok(path) => Some(path),
        Err(message) => cursor.refuse(message),
    }
}

fn read_token_from(cursor: &Cursor<'_>) -> Option<Vec<TokenSource>> {
    let elements = cursor.elements()?;
    if elements.is_empty() {
        return cursor.refuse("an empty list finds no token; leave the key out for the Authorization header");
    }
    let mut sources = Vec::new();
    for element in elements {
        let source = read_token_source(&element)?;
        if sources.contains(&source) {
            return element.refuse("stands in the list a second time");
        }
        sources.push(source);
    }
    Some(sources)
}

fn read_token_source(cursor: &Cursor<'_>) -> Option<TokenSource> {
    let mapping = cursor.mapping(&["header", "scheme", "cookie", "query"], &[])?;
    match (mapping.get("header"), mapping.get("cookie"), mapping.get("query"), mapping.get("scheme")) {
        (Some(header), None, None, scheme) => {
            let name = read_header_name(&header)?;
            let scheme = match scheme {
                None => None,
                Some(scheme) => Some(read_token(&scheme)?),
            };
            Some(TokenSource::Header { name, scheme })
        }
        (None, Some(cookie), None, None) => read_token(&cookie).map(TokenSource::Cookie),
        (None, None, Some(query), None) => read_token(&query).map(TokenSource::Query),
        _ => mapping.refuse("expected one of `header` (with or without `scheme`), `cookie`, `query`"),
    }
}

/// A token of RFC 9110 §5.6.2: what names of headers, schemes and cookies are made of.
fn read_token(cursor: &Cursor<'_>) -> Option<String> {
    let text = cursor.text()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.len() > 128 || !text.bytes().all(allowed) {
        return cursor.refuse("expected a name of letters, digits and any of !#$%&'*+-.^_`|~");
    }
    Some(text)
}

fn read_header_name(cursor: &Cursor<'_>) -> Option<String> {
    read_token(cursor).map(|name| name.to_ascii_lowercase())
}

fn read_claim_headers(cursor: &Cursor<'_>) -> Option<Vec<ClaimHeader>> {
    let mut headers: Vec<ClaimHeader> = Vec::new();
    for (name, claim) in cursor.entries()? {
        let header = name.to_ascii_lowercase();
        if let Err(message) = check_claim_header(&header) {
            return claim.refuse(message);
        }
        if headers.iter().any(|earlier| earlier.header == header) {
            return claim.refuse("another claim is put into this header already");
        }
        headers.push(ClaimHeader { header, claim: read_claim_path(&claim)? });
    }
    Some(headers)
}

fn check_claim_header(name: &str) -> Result<(), &'static str> {
    if RESERVED_HEADERS.contains(&name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err("this header belongs to HTTP or to the proxy: choose another, such as x-auth-subject");
    }
    if name.contains(['_', '.']) {
        return Err("write it with `-`: `_` and `.` are spellings that clients forge, and are removed");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || name.len() > 128 || !name.bytes().all(allowed) {
        return Err("expected a header name of letters, digits and `-`");
    }
    Ok(())
}

fn read_refresh(cursor: &Cursor<'_>) -> Option<RefreshPolicy> {
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
            "wait",
            "timeout",
            "max_stale",
            "max_bytes",
        ],
        &["snapshot_dir"],
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
    let max_waiters = mapping.or("max_waiters", default.max_waiters, |cursor| {
        cursor.integer(1, 1_000_000).and_then(|number| usize::try_from(number).ok())
    });
    let max_bytes = mapping.or("max_bytes", default.max_bytes, |cursor| cursor.bytes(1 << 10, 64 << 20));
    let policy = RefreshPolicy {
        interval: interval?,
        min_spacing: min_spacing?,
        min_spacing_bad_signature: min_spacing_bad_signature?,
        max_waiters: max_waiters?,
        wait: wait?,
        timeout: timeout?,
        max_stale: max_stale?,
        max_bytes: max_bytes?,
    };
    if policy.interval < policy.min_spacing {
        return cursor.refuse("`interval` must not be shorter than `min_spacing`");
    }
    if policy.max_stale < policy.interval {
        return cursor.refuse(
            "`max_stale` must not be shorter than `interval`, or keys would expire between two fetches",
        );
    }
    Some(policy)
}
