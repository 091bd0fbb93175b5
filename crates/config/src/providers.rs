//! The `providers` section: rules for tokens, where the keys are, and how they are kept fresh.

use std::collections::{HashMap, HashSet, hash_map};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::COOKIE;

use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::canonical_media_type;
use portcullis_core::validation::key_set::Key;
use portcullis_core::validation::provider::{
    Audiences, ClaimHeader, ClaimPath, Encoding, Provider, TokenSource, TokenTypes,
};

use super::cursor::{Cursor, Entry, Mapping};
use super::dangers::warn_of_provider;
use super::keys::{discovery_below, read_issuer_http, read_key_source, read_refresh, refuse_plain_http};
use super::realms::read_realms;
use super::{KeySource, ProviderConfig, RefreshPolicy};

const KEYS: [&str; 24] = [
    "name",
    "issuer",
    "realms",
    "max_realms",
    "audiences",
    "any_audience",
    "jwks_uri",
    "discovery_uri",
    "jwks_file",
    "jwks",
    "allow_http",
    "http",
    "algorithms",
    "clock_skew",
    "token_types",
    "required_claims",
    "token_from",
    "forward_token",
    "claim_headers",
    "payload_header",
    "metadata_claims",
    "realm",
    "ready_without_keys",
    "refresh",
];

/// Headers that carry the request itself, its path through proxies, or its credentials: no claim may
/// stand there.
const RESERVED_HEADERS: [&str; 33] = [
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
    "content-encoding",
    "x-real-ip",
    // Believed instead of the method, the path or the host.
    "x-rewrite-url",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    // The answer to the proxy is an HTTP response: these are instructions to whoever keeps or passes on one.
    "set-cookie",
    "www-authenticate",
    "origin",
    "cache-control",
    "expires",
    "vary",
    "location",
    "date",
    "server",
    "status",
    "http2-settings",
    // CGI programs would see it as HTTP_PROXY.
    "proxy",
];
/// Headers that end at the proxy, or in which it speaks.
const NO_TOKEN_HEADERS: [&str; 16] = [
    "host",
    "connection",
    "proxy-connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "transfer-encoding",
    "content-length",
    "x-original-method",
    "x-original-uri",
    "x-forwarded-method",
    "x-forwarded-uri",
    "x-forwarded-host",
    "x-forwarded-proto",
];
/// The longest name of a header, scheme, cookie or query parameter.
const MAX_NAME_BYTES: usize = 128;
const RESERVED_PREFIXES: [&str; 6] =
    ["proxy-", "x-envoy-", "x-accel-", "x-forwarded-", "x-original-", "grpc-"];

pub(super) fn read_providers(cursor: &Cursor<'_>) -> Option<Vec<ProviderConfig>> {
    let elements = cursor.elements()?;
    if elements.is_empty() {
        return cursor.refuse("at least one provider is needed");
    }
    let read: Vec<Option<ProviderConfig>> = elements.iter().map(read_provider).collect();
    refuse_repeated(
        &elements,
        "name",
        "is this one's name already: logs and metrics could not tell them apart",
    );
    refuse_repeated(&elements, "issuer", "has this issuer already; a token's `iss` chooses its provider");
    for (element, config) in elements.iter().zip(&read) {
        if let Some(config) = config {
            refuse_token_headers(element, config, &read);
            warn_of_provider(element, config);
        }
    }
    read.into_iter().collect()
}

/// Compares what the providers say of one key, also of those that are wrong elsewhere.
fn refuse_repeated(elements: &[Cursor<'_>], key: &str, message: &str) {
    let mut first: HashMap<String, usize> = HashMap::new();
    for value in elements.iter().filter_map(|element| element.peek(key)) {
        let Ok(text) = value.peek_text() else { continue };
        match first.entry(text) {
            hash_map::Entry::Occupied(line) => {
                value.refuse::<()>(format!("another provider, in line {}, {message}", line.get()));
            }
            hash_map::Entry::Vacant(place) => {
                place.insert(value.line());
            }
        }
    }
}

/// A claim in a header where any provider expects the token would take the token's place, and the header
/// would be taken from requests that carry one.
fn refuse_token_headers(element: &Cursor<'_>, config: &ProviderConfig, all: &[Option<ProviderConfig>]) {
    let sources = all.iter().flatten().flat_map(|config| &config.provider.token_from);
    let tokens: Vec<String> = sources
        .filter_map(|source| match source {
            // As backends fold names: see `identity`.
            TokenSource::Header { name, .. } => {
                Some(name.as_str().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"))
            }
            TokenSource::Cookie(_) | TokenSource::Query(_) => None,
        })
        .collect();
    let is_for_tokens = |header: &HeaderName| tokens.iter().any(|token| token == header.as_str());
    if config.provider.payload_header.as_ref().is_some_and(is_for_tokens)
        && let Some(cursor) = element.peek("payload_header")
    {
        cursor.refuse::<()>("a token comes in this header (`token_from`): choose another");
    }
    let entries = element.peek("claim_headers").and_then(|cursor| cursor.entries()).unwrap_or_default();
    for entry in entries {
        if tokens.contains(&entry.key.to_ascii_lowercase()) {
            entry.refuse_key::<()>("a token comes in this header (`token_from`): choose another");
        }
    }
}

fn read_provider(cursor: &Cursor<'_>) -> Option<ProviderConfig> {
    let mapping = cursor.mapping(&KEYS, &[])?;
    let name =
        mapping.need("name", "how logs and metrics call the provider").and_then(|cursor| read_name(&cursor));
    let issuer =
        mapping.need("issuer", "compared exactly with a token's `iss`").and_then(|cursor| cursor.text());
    let audiences = read_audiences(&mapping);
    let keys = read_key_source(&mapping);
    let http = read_issuer_http(&mapping);
    let algorithms = mapping.or("algorithms", Algorithm::default_set(), |cursor| read_algorithms(&cursor));
    let clock_skew = mapping.or("clock_skew", Duration::from_secs(30), |cursor| {
        cursor.duration(Duration::ZERO, Duration::from_secs(600))
    });
    let token_types = mapping.or("token_types", TokenTypes::Default, |cursor| {
        let empty = "an empty list accepts no token; leave the key out for the default";
        cursor.list(empty, read_token_type, |a, b| a == b).map(TokenTypes::AnyOf)
    });
    let required_claims = mapping.or("required_claims", Vec::new(), |cursor| cursor.each(read_claim_path));
    let token_from =
        mapping.or("token_from", vec![TokenSource::default()], |cursor| read_token_from(&cursor));
    let forward_token = mapping.or("forward_token", true, |cursor| cursor.boolean());
    let claim_headers = mapping.or("claim_headers", Vec::new(), |cursor| read_claim_headers(&cursor));
    let payload_header = mapping.optional("payload_header", |cursor| read_payload_header(&cursor, &mapping));
    let metadata_claims = mapping.or("metadata_claims", Vec::new(), |cursor| {
        cursor.list("an empty list shares nothing: take the key out", read_claim_path, |a, b| a == b)
    });
    let realm = mapping.optional("realm", |cursor| read_realm(&cursor));
    let ready_without_keys = mapping.or("ready_without_keys", false, |cursor| cursor.boolean());
    let refresh = mapping.or("refresh", RefreshPolicy::default(), |cursor| read_refresh(&cursor));

    let algorithms = algorithms?;
    let fits = check_algorithms(&mapping, &algorithms, keys.as_ref());
    let issuer = issuer?;
    let keys = match keys? {
        Some(keys) => keys,
        None => KeySource::Discovery(discovery_below(&issuer, &mapping)?),
    };
    let realms = read_realms(&mapping, &issuer, &keys);
    let http = http?;
    let secure = refuse_plain_http(&mapping, &keys, &http);
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
        payload_header: payload_header?,
        metadata_claims: metadata_claims?,
        realm: realm?,
    };
    fits?;
    secure?;
    Some(ProviderConfig {
        provider: Arc::new(provider),
        keys,
        http,
        refresh: refresh?,
        realms: realms?,
        ready_without_keys: ready_without_keys?,
    })
}

pub(super) fn read_name(cursor: &Cursor<'_>) -> Option<String> {
    let name = cursor.text()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if name.len() > 64 || !name.bytes().all(plain) {
        return cursor.refuse("expected at most 64 letters, digits, `_`, `-` and `.`");
    }
    Some(name)
}

/// A shared secret is never fetched and never accepted unasked; and an algorithm or a secret that is
/// named without the other is a mistake that would refuse every token.
fn check_algorithms(
    mapping: &Mapping<'_>,
    algorithms: &[Algorithm],
    keys: Option<&Option<KeySource>>,
) -> Option<()> {
    let symmetric = || algorithms.iter().copied().filter(|algorithm| algorithm.is_symmetric());
    let Some(jwks) = mapping.get("jwks") else {
        return match symmetric().next() {
            None => Some(()),
            Some(algorithm) => mapping.get("algorithms")?.refuse(format!(
                "`{algorithm}` needs its secret in an inline `jwks`: it is never fetched, nor read from a file"
            )),
        };
    };
    let Some(Some(KeySource::Inline(keys))) = keys else { return None };
    if let Some(algorithm) = symmetric().find(|algorithm| keys.fitting(None, *algorithm).next().is_none()) {
        return mapping.get("algorithms")?.refuse(format!(
            "no key of `jwks` can verify {algorithm}: it needs a `kty: oct` whose `alg` is none other and whose secret is as long as the hash (RFC 7518 §3.2)"
        ));
    }
    let usable = |key: &Key| {
        algorithms.iter().any(|algorithm| {
            keys.fitting(key.kid(), *algorithm).any(|fitting| std::ptr::eq(Arc::as_ptr(fitting), key))
        })
    };
    let mut all = Some(());
    for (i, key) in keys.keys().iter().enumerate() {
        if key.kty() == "oct" && !usable(key) {
            let element = jwks.peek("keys")?.elements()?.into_iter().nth(i)?;
            all = element.refuse(
                "a shared secret that no algorithm of this provider may use: name HS256, HS384 or HS512 in `algorithms`",
            );
        }
    }
    if all.is_some() && !keys.keys().iter().any(|key| usable(key)) {
        return jwks.refuse("no key fits any of `algorithms`: every token would be refused");
    }
    all
}

fn read_token_type(cursor: &Cursor<'_>) -> Option<String> {
    let canonical = canonical_media_type(&cursor.text()?);
    if canonical.is_empty() || !canonical.bytes().all(|byte| is_token_byte(byte) || byte == b'/') {
        return cursor.refuse("expected a media type, such as at+jwt or JWT");
    }
    Some(canonical)
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

fn read_algorithms(cursor: &Cursor<'_>) -> Option<Vec<Algorithm>> {
    let empty = "an empty list accepts no token; leave the key out for every asymmetric one";
    let algorithm = |element: &Cursor<'_>| match Algorithm::from_name(&element.text()?) {
        Some(algorithm) => Some(algorithm),
        None => {
            let names: Vec<&str> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
            element.refuse(format!("not a supported algorithm; supported: {}", names.join(", ")))
        }
    };
    cursor.list(empty, algorithm, |a, b| a == b)
}

fn read_claim_path(cursor: &Cursor<'_>) -> Option<ClaimPath> {
    match ClaimPath::parse(&cursor.text()?) {
        Ok(path) => Some(path),
        Err(message) => cursor.refuse(message),
    }
}

fn read_token_from(cursor: &Cursor<'_>) -> Option<Vec<TokenSource>> {
    let empty = "an empty list finds no token; leave the key out for the Authorization header";
    cursor.list(empty, read_token_source, same_place)
}

/// Whether both would read the same text.
fn same_place(a: &TokenSource, b: &TokenSource) -> bool {
    match (a, b) {
        (
            TokenSource::Header { name: a, scheme: Some(a_scheme) },
            TokenSource::Header { name: b, scheme: Some(b_scheme) },
        ) => a == b && a_scheme.eq_ignore_ascii_case(b_scheme),
        _ => a == b,
    }
}

fn read_token_source(cursor: &Cursor<'_>) -> Option<TokenSource> {
    let mapping = cursor.mapping(&["header", "scheme", "cookie", "query"], &[])?;
    match (mapping.get("header"), mapping.get("cookie"), mapping.get("query"), mapping.get("scheme")) {
        (Some(header), None, None, scheme) => {
            let name = read_header_name(&header);
            let scheme = scheme.map(|scheme| read_token(&scheme));
            if name.as_ref() == Some(&COOKIE) {
                return header.refuse("write `cookie: NAME` to take the token from a cookie");
            }
            if name.as_ref().is_some_and(|name| NO_TOKEN_HEADERS.contains(&name.as_str())) {
                return header.refuse(
                    "this header is the connection's or the proxy's own: no client's token can come in it",
                );
            }
            let scheme = match scheme {
                None => None,
                Some(scheme) => Some(scheme?),
            };
            Some(TokenSource::Header { name: name?, scheme })
        }
        (None, Some(cookie), None, None) => read_token(&cookie).map(TokenSource::Cookie),
        (None, None, Some(query), None) => read_query_name(&query).map(TokenSource::Query),
        _ => mapping.refuse("expected one of `header` (with or without `scheme`), `cookie`, `query`"),
    }
}

/// A name is compared as it is written in a request, and one that is ours only after decoding is refused there: a
/// name that decodes to another provider's would never be read.
fn read_query_name(cursor: &Cursor<'_>) -> Option<String> {
    let name = read_token(cursor)?;
    if name.contains(['%', '&', '+', '#']) {
        return cursor
            .refuse("a query writes `%`, `&`, `+` and `#` in another way: choose a name without them");
    }
    Some(name)
}

/// A token of RFC 9110 §5.6.2: what names of headers, schemes and cookies are made of.
pub(super) fn read_token(cursor: &Cursor<'_>) -> Option<String> {
    let text = cursor.text()?;
    if is_token(&text) { Some(text) } else { refuse_name(cursor) }
}

fn read_header_name(cursor: &Cursor<'_>) -> Option<HeaderName> {
    header_name(&cursor.text()?).or_else(|| refuse_name(cursor))
}

fn refuse_name<T>(cursor: &Cursor<'_>) -> Option<T> {
    cursor.refuse(format!(
        "expected a name of at most {MAX_NAME_BYTES} letters, digits and any of !#$%&'*+-.^_`|~"
    ))
}

/// The header of this name, in whatever case it is written; `None` of what is no name of one.
pub(super) fn header_name(text: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).ok().filter(|_| is_token(text))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && text.bytes().all(is_token_byte)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn read_claim_headers(cursor: &Cursor<'_>) -> Option<Vec<ClaimHeader>> {
    let mut seen = HashSet::new();
    let mut read = |entry: Entry<'_>| {
        let read = read_header_value(&entry.value);
        let header = match claim_header(entry.key) {
            Ok(header) => header,
            Err(message) => return entry.refuse_key(message),
        };
        if !seen.insert(header.clone()) {
            return entry
                .refuse_key("another claim is put into this header already; its case does not count");
        }
        let (claim, encoding) = read?;
        Some(ClaimHeader { header, claim, encoding })
    };
    let headers: Vec<Option<ClaimHeader>> = cursor.entries()?.into_iter().map(&mut read).collect();
    headers.into_iter().collect()
}

/// A claim, or a mapping that also says how its value is encoded.
fn read_header_value(cursor: &Cursor<'_>) -> Option<(ClaimPath, Encoding)> {
    if !cursor.is_mapping() {
        return Some((read_claim_path(cursor)?, Encoding::default()));
    }
    let mapping = cursor.mapping(&["claim", "encoding"], &[])?;
    let claim = mapping
        .need("claim", "the claim that the header carries")
        .and_then(|cursor| read_claim_path(&cursor));
    let encoding = mapping.or("encoding", Encoding::default(), |cursor| cursor.one_of(&Encoding::NAMED));
    Some((claim?, encoding?))
}

fn read_payload_header(cursor: &Cursor<'_>, mapping: &Mapping<'_>) -> Option<HeaderName> {
    let header = match claim_header(&cursor.text()?) {
        Ok(header) => header,
        Err(message) => return cursor.refuse(message),
    };
    let claims = mapping.get("claim_headers").and_then(|cursor| cursor.entries()).unwrap_or_default();
    if claims.iter().any(|entry| entry.key.eq_ignore_ascii_case(header.as_str())) {
        return cursor.refuse("a claim is put into this header (`claim_headers`): choose another");
    }
    Some(header)
}

/// What stands between the quotes of a challenge.
pub(super) fn read_realm(cursor: &Cursor<'_>) -> Option<String> {
    let realm = cursor.text()?;
    let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if realm.len() > 128 || !realm.bytes().all(plain) {
        return cursor
            .refuse("expected at most 128 printable ASCII characters without quotes and backslashes");
    }
    Some(realm)
}

/// The header of this name, in whatever case it is written.
///
/// # Errors
/// No claim may stand in it.
fn claim_header(written: &str) -> Result<HeaderName, &'static str> {
    let name = written.to_ascii_lowercase();
    if RESERVED_HEADERS.contains(&name.as_str())
        || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    {
        return Err("this header belongs to HTTP or to the proxy: choose another, such as x-auth-subject");
    }
    if name.contains(['_', '.']) {
        return Err("write it with `-`: `_` and `.` are spellings that clients forge, and are removed");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let plain = name.bytes().all(allowed);
    header_name(&name).filter(|_| plain).ok_or("expected a header name of letters, digits and `-`")
}
