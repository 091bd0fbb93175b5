//! The `providers` section: token rules, key sources and refresh policies.

use std::collections::{HashMap, HashSet, hash_map};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde_json::json;

use portcullis_core::validation::algorithm::Algorithm;
use portcullis_core::validation::canonical_media_type;
use portcullis_core::validation::key_set::{Key, KeySet};
use portcullis_core::validation::provider::{
    Audiences, ClaimHeader, ClaimPath, Provider, SelectedBy, TokenSource, TokenTypes,
};
use portcullis_core::validation::spiffe;

use super::claim_headers::{CLAIM, ClaimHeaders, check_payload_header, read_payload_header};
use super::cursor::{Cursor, Mapping, Read};
use super::forms::{Count, Each, FILE, Flag, List, OneOr, Sub, Text, Time, any_text, equal, shown};
use super::keys::{
    FetchUrl, InlineKeys, SourceDraft, default_discovery_url, make_key_source, refuse_plain_http,
};
use super::realms::{DEFAULT_MAX_REALMS, MadeRealms, RealmNames, make_realms};
use super::section::{Form, FormDescription, Section, section};
use super::selection::{
    TRUST_DOMAIN, make_identity, refuse_algorithms_of_svids, refuse_issuers_of_trust_domains,
    refuse_keys_of_svids,
};
use super::token_sources::{is_token_byte, same_place};
use super::warnings::warn_of_provider;
use super::yaml::Yaml;
use super::{AllowedRealms, IssuerHttp, KeySource, ProviderConfig, RealmKeys, RefreshPolicy};

/// The providers, with unique names and issuers.
pub(super) struct Providers;

impl Form for Providers {
    type Value = Vec<ProviderConfig>;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Vec<ProviderConfig>> {
        let elements = cursor.elements()?;
        if elements.is_empty() {
            return cursor.refuse("at least one provider is required");
        }
        let read: Vec<Read<ProviderConfig>> = elements.iter().map(ProviderConfig::read).collect();
        refuse_duplicates(
            &elements,
            "name",
            "has the same name: logs and metrics could not distinguish them",
        );
        refuse_duplicates(&elements, "issuer", "has the same issuer: a token's `iss` selects its provider");
        refuse_duplicates(
            &elements,
            "spiffe",
            "has the same trust domain: that of a token's `sub` selects its provider",
        );
        refuse_issuers_of_trust_domains(&elements);
        let token_headers = token_headers(&read);
        for (element, config) in elements.iter().zip(&read) {
            if let Ok(config) = config {
                refuse_token_headers(element, config, &token_headers);
                warn_of_provider(element, config);
            }
        }
        read.into_iter().collect()
    }

    fn print(&self, value: &Vec<ProviderConfig>) -> Yaml {
        Each(Sub::<ProviderConfig>::NEW).print(value)
    }

    fn describe(&self) -> FormDescription {
        let FormDescription { summary, schema, sections } = Sub::<ProviderConfig>::NEW.describe();
        let schema = json!({"type": "array", "minItems": 1, "items": schema});
        FormDescription { summary: format!("a list: {summary}"), schema, sections }
    }
}

section! {
    /// One issuer, or several by a template: which of its tokens are accepted, where its keys are, and what the
    /// upstream gets.
    "Provider": ProviderConfig,
    read through ProviderDraft by make_provider,
    printed through ProviderShown by show_provider,
    later [
        "introspection", "sender_constraint", "distrust_file", "external_url",
    ] {
        /// Its name in logs and metrics.
        name: String = NAME, required("its name in logs and metrics");
        /// Compared exactly with a token's iss.
        issuer: String = any_text("a URL"), alternative;
        /// Instead of issuer: the trust domain of the SPIFFE ID in sub, for JWT-SVIDs, which have no iss. The keys are
        /// those of its bundle, in jwks_uri or jwks_file.
        spiffe: String = TRUST_DOMAIN, alternative;
        /// The names of realms that {realm} in issuer may have.
        realms: AllowedRealms = RealmNames, optional;
        /// The most realms whose keys are cached at once.
        max_realms: usize = Count { min: 1, max: 10_000 }, default(DEFAULT_MAX_REALMS);
        /// A token must name one of these in aud.
        audiences: Vec<String> = List {
            of: any_text("a text"),
            empty: "an empty list accepts no token; to accept every audience set `any_audience: true` instead",
            same: equal,
        }, optional;
        /// Instead of audiences: accept tokens for any audience.
        any_audience: bool = Flag, default(false);
        /// The claims that name audiences; one of them has to name one of audiences.
        audience_claims: Vec<ClaimPath> = List {
            of: CLAIM,
            empty: "an empty list accepts no token; remove the key to read `aud`",
            same: equal,
        }, default(vec![ClaimPath::aud()]);
        /// The URL of the key set, or a list: the next one is asked if one fails.
        jwks_uri: Vec<String> = OneOr {
            one: FetchUrl { key: "jwks_uri" },
            list: List {
                of: FetchUrl { key: "jwks_uri" },
                empty: "an empty list has no keys: name a URL",
                same: equal,
            },
        }, optional;
        /// The URL of a discovery document that names the key set. Default: derived from the issuer.
        discovery_uri: String = FetchUrl { key: "discovery_uri" }, optional;
        /// A file with the key set, reloaded when it changes.
        jwks_file: PathBuf = FILE, optional;
        /// The key set itself; only this may contain shared secrets.
        jwks: Arc<KeySet> = InlineKeys, optional;
        /// Whether keys may be fetched over plain http from another host.
        allow_http: bool = Flag, default(false);
        /// The connection to the issuer.
        http: IssuerHttp = Sub::<IssuerHttp>::NEW, unless(IssuerHttp::default());
        /// The alg values that are accepted. The default with spiffe has no EdDSA.
        algorithms: Vec<Algorithm> = ALGORITHMS, default(Algorithm::default_set());
        /// Leeway for exp and nbf.
        clock_skew: Duration = Time { min: Duration::ZERO, max: Duration::from_secs(600) },
            default(Duration::from_secs(30));
        /// How far ahead exp may be. Default: any time.
        max_lifetime: Duration = Time { min: Duration::from_secs(1), max: Duration::from_secs(366 * 24 * 3600) },
            optional;
        /// The typ values that are accepted. Default: at+jwt, JWT, or none; with spiffe: JWT, JOSE, or none.
        token_types: Vec<String> = List {
            of: Text { read: read_token_type, show: shown, summary: "a media type" },
            empty: "an empty list accepts no token; remove the key for the default",
            same: equal,
        }, optional;
        /// Claims that must be present and neither null nor empty.
        required_claims: Vec<ClaimPath> = Each(CLAIM), default(Vec::new());
        /// The places of a request where the token may be.
        token_from: Vec<TokenSource> = List {
            of: Sub::<TokenSource>::NEW,
            empty: "an empty list finds no token; remove the key for the Authorization header",
            same: same_place,
        }, default(vec![TokenSource::default()]);
        /// Whether the token is forwarded to the upstream.
        forward_token: bool = Flag, default(true);
        /// Request headers for the upstream, each with its claim.
        claim_headers: Vec<ClaimHeader> = ClaimHeaders, default(Vec::new());
        /// The request header for the upstream with the token's payload in base64url. Default: none.
        payload_header: HeaderName = Text { read: read_payload_header, show: shown, summary: "a header" }, optional;
        /// Claims for Envoy's dynamic metadata.
        metadata_claims: Vec<ClaimPath> = List {
            of: CLAIM,
            empty: "an empty list shares nothing: remove the key",
            same: equal,
        }, unless(Vec::new());
        /// The realm of this provider's challenges. Default: that of responses.
        realm: String = REALM, optional;
        /// Whether the service is ready before the first keys of this provider have been fetched.
        ready_without_keys: bool = Flag, default(false);
        /// How the keys are refreshed.
        refresh: RefreshPolicy = Sub::<RefreshPolicy>::NEW, default(RefreshPolicy::default());
    }
}

/// The name of a provider or a rule.
pub(super) const NAME: Text<String> =
    Text { read: read_name, show: shown, summary: "at most 64 letters, digits, `_`, `-` and `.`" };

/// The protection space of a challenge.
pub(super) const REALM: Text<String> = Text { read: read_realm, show: shown, summary: "a text" };

const ALGORITHMS: List<AlgorithmName> = List {
    of: AlgorithmName,
    empty: "an empty list accepts no token; remove the key to accept every asymmetric one",
    same: equal,
};

/// The name of a signature algorithm (RFC 7518 §3.1, RFC 8037 §3.1).
struct AlgorithmName;

impl Form for AlgorithmName {
    type Value = Algorithm;

    fn read(&self, cursor: &Cursor<'_>) -> Read<Algorithm> {
        match Algorithm::from_name(&cursor.text()?) {
            Some(algorithm) => Ok(algorithm),
            None => {
                let names = Algorithm::ALL.map(Algorithm::name).join(", ");
                cursor.refuse(format!("not a supported algorithm; supported: {names}"))
            }
        }
    }

    fn print(&self, value: &Algorithm) -> Yaml {
        Yaml::text(value)
    }

    fn describe(&self) -> FormDescription {
        let names = Algorithm::ALL.map(Algorithm::name);
        let summary = names.map(|name| format!("`{name}`")).join(", ");
        FormDescription::new(format!("one of {summary}"), json!({"enum": names}))
    }
}

/// Refuses duplicate values of a key, also of providers that are invalid elsewhere.
fn refuse_duplicates(elements: &[Cursor<'_>], key: &str, message: &str) {
    let mut first: HashMap<String, usize> = HashMap::new();
    for value in elements.iter().filter_map(|element| element.peek(key)) {
        let Ok(text) = value.peek_text() else { continue };
        match first.entry(text) {
            hash_map::Entry::Occupied(line) => {
                // The error is reported; reading continues.
                let _reported =
                    value.refuse::<()>(format!("another provider, in line {}, {message}", line.get()));
            }
            hash_map::Entry::Vacant(entry) => {
                entry.insert(value.line());
            }
        }
    }
}

/// The headers that any provider reads tokens from, as backends fold names: see `identity`.
fn token_headers(all: &[Read<ProviderConfig>]) -> HashSet<String> {
    let sources = all.iter().flatten().flat_map(|config| &config.provider.token_from);
    sources
        .filter_map(|source| match source {
            TokenSource::Header { name, .. } => {
                Some(name.as_str().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"))
            }
            TokenSource::WebSocketProtocol(_) => Some("sec-websocket-protocol".to_owned()),
            TokenSource::Cookie(_) | TokenSource::Query(_) => None,
        })
        .collect()
}

/// Refuses claim headers that any provider reads tokens from: the claim would replace the token, and the header
/// would be removed from requests that have one.
fn refuse_token_headers(element: &Cursor<'_>, config: &ProviderConfig, tokens: &HashSet<String>) {
    let is_for_tokens = |header: &HeaderName| tokens.contains(header.as_str());
    if config.provider.payload_header.as_ref().is_some_and(is_for_tokens)
        && let Some(cursor) = element.peek("payload_header")
    {
        let _reported = cursor.refuse::<()>("this header carries tokens (`token_from`): choose another");
    }
    let entries = element.peek("claim_headers").and_then(|cursor| cursor.entries().ok()).unwrap_or_default();
    for entry in entries {
        if tokens.contains(&entry.key.to_ascii_lowercase()) {
            let _reported =
                entry.refuse_key::<()>("this header carries tokens (`token_from`): choose another");
        }
    }
}

fn make_provider(draft: ProviderDraft, mapping: &Mapping<'_>) -> Read<ProviderConfig> {
    let ProviderDraft { jwks_uri, discovery_uri, jwks_file, jwks, .. } = draft;
    let audiences = make_audiences(draft.audiences, draft.any_audience, mapping);
    let keys = make_key_source(SourceDraft { jwks_uri, discovery_uri, jwks_file, jwks }, mapping);
    let payload_header = check_payload_header(draft.payload_header, mapping);
    let identity = make_identity(draft.issuer, draft.spiffe, mapping);
    let algorithms = match &identity {
        Ok((_, selected_by)) if mapping.get("algorithms").is_none() => selected_by.default_algorithms(),
        _ => draft.algorithms?,
    };
    let checked_algorithms = check_algorithms(mapping, &algorithms, &keys);
    let (issuer, selected_by) = identity?;
    let keys = match (keys?, selected_by) {
        (None, SelectedBy::Issuer) => KeySource::Discovery(default_discovery_url(&issuer, mapping)?),
        (None | Some(KeySource::Discovery(_)), SelectedBy::TrustDomain) => {
            return mapping.refuse_at(
                "discovery_uri",
                "a trust domain has no discovery document: write the URL of its bundle as `jwks_uri`, or its file as `jwks_file`",
            );
        }
        (Some(keys), _) => keys,
    };
    refuse_algorithms_of_svids(selected_by, &algorithms, mapping)?;
    refuse_keys_of_svids(selected_by, &keys, mapping)?;
    let realms = make_realms(draft.realms, draft.max_realms, mapping, &issuer, &keys);
    let http = IssuerHttp { allow_http: draft.allow_http?, ..draft.http? };
    let checked_http = refuse_plain_http(mapping, &keys, &http);
    let (realms, shared) = match realms? {
        None => (None, None),
        Some(MadeRealms::Own(realms)) => (Some(realms), None),
        Some(MadeRealms::Shared(shared)) => (None, Some(shared)),
    };
    let provider = Provider {
        name: draft.name?,
        issuer,
        selected_by,
        audiences: audiences?,
        audience_claims: draft.audience_claims?,
        algorithms,
        clock_skew: draft.clock_skew?,
        max_lifetime: draft.max_lifetime?,
        token_types: draft.token_types?.map_or(TokenTypes::Default, TokenTypes::AnyOf),
        required_claims: draft.required_claims?,
        keys_name_issuers: shared.is_some(),
        token_from: draft.token_from?,
        forward_token: draft.forward_token?,
        claim_headers: draft.claim_headers?,
        payload_header: payload_header?,
        metadata_claims: draft.metadata_claims?,
        realm: draft.realm?,
    };
    checked_algorithms?;
    checked_http?;
    Ok(ProviderConfig {
        provider: Arc::new(provider),
        keys,
        http,
        refresh: draft.refresh?,
        realms,
        shared,
        ready_without_keys: draft.ready_without_keys?,
    })
}

fn show_provider(config: &ProviderConfig) -> ProviderShown {
    let provider = (*config.provider).clone();
    let (audiences, any_audience) = match provider.audiences {
        Audiences::AnyOf(audiences) => (Some(audiences), None),
        Audiences::Any => (None, Some(true)),
    };
    let (realms, shared) = (config.realms.as_ref(), config.shared.as_ref());
    let (issuer, spiffe) = match provider.selected_by {
        SelectedBy::Issuer => (Some(provider.issuer), None),
        SelectedBy::TrustDomain => (None, Some(spiffe::name_of(&provider.issuer).to_owned())),
    };
    let mut shown = ProviderShown {
        name: Some(provider.name),
        issuer,
        spiffe,
        realms: realms.map(|realms| &realms.allowed).or(shared.map(|shared| &shared.allowed)).cloned(),
        max_realms: realms.map(|realms| realms.most).or(shared.map(|shared| shared.most)),
        audiences,
        any_audience,
        audience_claims: Some(provider.audience_claims).filter(|claims| *claims != [ClaimPath::aud()]),
        jwks_uri: None,
        discovery_uri: None,
        jwks_file: None,
        jwks: None,
        allow_http: Some(config.http.allow_http),
        http: Some(config.http.clone()).filter(|http| !Section::print(http).is_empty()),
        algorithms: Some(provider.algorithms),
        clock_skew: Some(provider.clock_skew),
        max_lifetime: provider.max_lifetime,
        token_types: match provider.token_types {
            TokenTypes::Default => None,
            TokenTypes::AnyOf(types) => Some(types),
        },
        required_claims: Some(provider.required_claims),
        token_from: Some(provider.token_from),
        forward_token: Some(provider.forward_token),
        claim_headers: Some(provider.claim_headers),
        payload_header: provider.payload_header,
        metadata_claims: Some(provider.metadata_claims).filter(|claims| !claims.is_empty()),
        realm: provider.realm,
        ready_without_keys: Some(config.ready_without_keys),
        refresh: Some(config.refresh.clone()),
    };
    match (&config.keys, realms.map(|realms| &realms.keys)) {
        (_, Some(RealmKeys::JwksUri(url))) => shown.jwks_uri = Some(vec![url.to_string()]),
        (_, Some(RealmKeys::Discovery(url))) => shown.discovery_uri = Some(url.to_string()),
        (KeySource::JwksUri(urls), None) => {
            shown.jwks_uri = Some(urls.iter().map(ToString::to_string).collect());
        }
        (KeySource::Discovery(url), None) => shown.discovery_uri = Some(url.to_string()),
        (KeySource::File(path), None) => shown.jwks_file = Some(path.clone()),
        (KeySource::Inline(keys), None) => shown.jwks = Some(Arc::clone(keys)),
    }
    shown
}

fn read_name(cursor: &Cursor<'_>) -> Read<String> {
    let name = cursor.text()?;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if name.len() > 64 || !name.bytes().all(is_allowed) {
        return cursor.refuse("expected at most 64 letters, digits, `_`, `-` and `.`");
    }
    Ok(name)
}

/// Checks that shared secrets and HMAC algorithms are configured together: one without the other would refuse every
/// token. A shared secret is never fetched.
fn check_algorithms(
    mapping: &Mapping<'_>,
    algorithms: &[Algorithm],
    keys: &Read<Option<KeySource>>,
) -> Read<()> {
    let symmetric = || algorithms.iter().copied().filter(|algorithm| algorithm.is_symmetric());
    let Some(jwks) = mapping.get("jwks") else {
        return match symmetric().next() {
            None => Ok(()),
            Some(algorithm) => mapping.refuse_at(
                "algorithms",
                format!(
                    "`{algorithm}` needs a secret in an inline `jwks`: secrets are never fetched or read from a file"
                ),
            ),
        };
    };
    // Errors of the keys themselves have been reported.
    let Ok(Some(KeySource::Inline(keys))) = keys else { return Ok(()) };
    if let Some(algorithm) = symmetric().find(|algorithm| keys.fitting(None, *algorithm).next().is_none()) {
        return mapping.refuse_at(
            "algorithms",
            format!(
                "no key of `jwks` can verify {algorithm}: it needs a key with `kty: oct`, with this `alg` or none, and with a secret as long as the hash (RFC 7518 §3.2)"
            ),
        );
    }
    let usable = |key: &Key| {
        algorithms.iter().any(|algorithm| {
            keys.fitting(key.kid(), *algorithm).any(|fitting| std::ptr::eq(Arc::as_ptr(fitting), key))
        })
    };
    let elements = jwks.peek("keys").and_then(|keys| keys.elements().ok()).unwrap_or_default();
    let mut result = Ok(());
    for (key, element) in keys.keys().iter().zip(&elements) {
        if key.kty() == "oct" && !usable(key) {
            result = element.refuse(
                "no algorithm of this provider uses this shared secret: add HS256, HS384 or HS512 to `algorithms`",
            );
        }
    }
    result?;
    if !keys.keys().iter().any(|key| usable(key)) {
        return jwks.refuse("no key fits any of `algorithms`: every token would be denied");
    }
    Ok(())
}

fn read_token_type(cursor: &Cursor<'_>) -> Read<String> {
    let canonical = canonical_media_type(&cursor.text()?);
    if canonical.is_empty() || !canonical.bytes().all(|byte| is_token_byte(byte) || byte == b'/') {
        return cursor.refuse("expected a media type, such as at+jwt or JWT");
    }
    Ok(canonical)
}

fn make_audiences(
    audiences: Read<Option<Vec<String>>>,
    any: Read<bool>,
    mapping: &Mapping<'_>,
) -> Read<Audiences> {
    match (audiences?, any?) {
        (Some(audiences), false) => Ok(Audiences::AnyOf(audiences)),
        (None, true) => Ok(Audiences::Any),
        (Some(_), true) => mapping
            .refuse_at("audiences", "`audiences` and `any_audience: true` contradict each other: keep one"),
        (None, false) => {
            mapping.refuse("`audiences` is missing: list the accepted audiences, or set `any_audience: true`")
        }
    }
}

/// The text of a quoted string in a challenge.
fn read_realm(cursor: &Cursor<'_>) -> Read<String> {
    let realm = cursor.text()?;
    let is_allowed = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    if realm.len() > 128 || !realm.bytes().all(is_allowed) {
        return cursor
            .refuse("expected at most 128 printable ASCII characters without quotes and backslashes");
    }
    Ok(realm)
}
