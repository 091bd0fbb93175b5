//! Stands for the issuers of a configuration: signs the claims of cases and of `explain --claims` with keys of this
//! process, and has requests evaluated with these keys.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use url::form_urlencoded::byte_serialize;

use super::Failure;
use crate::access_request::AccessRequest;
use crate::commands::issuer::{SigningAlgorithm, SigningKey};
use crate::config::cases::{CaseRequest, CaseToken};
use crate::config::{Config, ProviderConfig};
use crate::decision::{CachedKeys, Decision, Evaluation, IssuerState, NoKeys, Policy, Trusted, evaluate};
use crate::validation::UnixTime;
use crate::validation::algorithm::Algorithm;
use crate::validation::key_set::KeySet;
use crate::validation::provider::{Audiences, Provider, SelectedBy, TokenSource, TokenTypes};

/// How long a token is valid, in seconds, if its case does not say it.
const VALIDITY: i64 = 300;

/// The `kid` of every key.
const KID: &str = "portcullis-test";

/// Algorithms whose keys are made quickly.
const QUICK: [Algorithm; 2] = [Algorithm::ES256, Algorithm::EdDSA];

/// The issuers of a configuration.
pub(super) struct Issuers<'c> {
    issuers: Vec<Issuer<'c>>,
    policy: Policy,
}

/// A provider and its key.
struct Issuer<'c> {
    config: &'c ProviderConfig,
    key: SigningKey,
    keys: Arc<KeySet>,
}

impl<'c> Issuers<'c> {
    /// Issuers of the providers of this configuration, each with a new key of an algorithm that it accepts.
    pub(super) fn new(config: &'c Config) -> Result<Self, Failure> {
        let issuers = config.providers.iter().map(Issuer::new).collect::<Result<_, _>>()?;
        let providers = config.providers.iter().map(|config| &*config.provider);
        let trusted =
            Trusted { proxies: config.trusted_proxies.clone(), headers: config.trusted_headers.clone() };
        let policy = Policy::new(providers, config.rules.clone(), config.limits.of_request(), trusted);
        Ok(Self { issuers, policy })
    }

    /// Puts a token with these claims into a request, where its provider accepts tokens first. Returns the names of the
    /// claims that were added.
    pub(super) fn add_token(
        &self,
        request: &mut CaseRequest,
        token: &CaseToken,
        now: UnixTime,
    ) -> Result<Vec<String>, Failure> {
        let named = |issuer: &&Issuer<'_>| issuer.config.provider.name == token.provider;
        let issuer = self.issuers.iter().find(named).ok_or("this provider is unknown")?;
        let claims = completed(&token.claims, &issuer.config.provider, now);
        let added = claims.keys().filter(|name| !token.claims.contains_key(*name)).cloned().collect();
        carry(request, &issuer.sign(claims), issuer.config.provider.token_from.first());
        Ok(added)
    }

    /// Evaluates a request with the keys of these issuers.
    pub(super) fn evaluate<'a>(&'a self, request: &'a AccessRequest<'a>, now: UnixTime) -> Decision<'a> {
        match evaluate(request, &self.policy, |issuer: &str| self.state(issuer), Some(now)) {
            Evaluation::Done(decision) => *decision,
            // Keys that are fixed are never waited for.
            Evaluation::NeedsKeys(needed) => needed.conclude(NoKeys::Unavailable(Cow::Borrowed(
                "nothing is fetched for claims without a signature",
            ))),
        }
    }

    /// As the service finds it: the provider with exactly this issuer, else the first template with such a realm.
    fn state(&self, name: &str) -> Option<IssuerState> {
        let is_exact =
            |issuer: &&Issuer<'_>| !issuer.config.has_realms() && issuer.config.provider.issuer == name;
        let exact = self.issuers.iter().find(is_exact).map(|issuer| IssuerState {
            provider: Arc::clone(&issuer.config.provider),
            realm: None,
            keys: CachedKeys::Fixed(Arc::clone(&issuer.keys)),
            clock_ahead: None,
        });
        exact.or_else(|| self.issuers.iter().find_map(|issuer| issuer.realm_state(name)))
    }
}

impl<'c> Issuer<'c> {
    fn new(config: &'c ProviderConfig) -> Result<Self, Failure> {
        let accepted = &config.provider.algorithms;
        let algorithm = QUICK.iter().find(|quick| accepted.contains(quick)).or(accepted.first());
        let named = |name: &str| SigningAlgorithm::ALL.into_iter().find(|known| known.name() == name);
        let algorithm = algorithm.and_then(|algorithm| named(algorithm.name()));
        let algorithm = algorithm.ok_or("a provider accepts no algorithm that can sign")?;
        // Keys of RSA are shared, since one takes a tenth of a second.
        let key = SigningKey::pooled(0, KID, algorithm);
        let document = json!({"keys": [key.public_jwk()]}).to_string();
        Ok(Self { config, keys: Arc::new(KeySet::parse_inline(document.as_bytes())?), key })
    }

    fn realm_state(&self, issuer: &str) -> Option<IssuerState> {
        let (name, provider) = self.config.realm_of(issuer)?;
        Some(IssuerState {
            provider,
            realm: Some(name.as_str().into()),
            keys: CachedKeys::Fixed(Arc::clone(&self.keys)),
            clock_ahead: None,
        })
    }

    fn sign(&self, claims: Map<String, Value>) -> String {
        let provider = &*self.config.provider;
        let mut header = self.key.header();
        if let (TokenTypes::AnyOf(types), Some(header)) = (&provider.token_types, header.as_object_mut())
            && let Some(first) = types.first()
        {
            header.insert("typ".to_owned(), first.as_str().into());
        }
        self.key.sign_with_header(&header, &claims.into())
    }
}

/// The claims with those that every token needs. One that is null in the case is left out.
fn completed(claims: &Map<String, Value>, provider: &Provider, now: UnixTime) -> Map<String, Value> {
    // Whole seconds, as issuers write them; a fraction is cut.
    let now = now.as_secs_f64() as i64;
    let audience = match &provider.audiences {
        Audiences::AnyOf(audiences) => audiences.first().map(|first| Value::from(first.as_str())),
        Audiences::Any => None,
    };
    let id = || Some(Value::from(provider.issuer.as_str()));
    let (iss, sub) = match provider.selected_by {
        SelectedBy::Issuer => (id(), None),
        SelectedBy::TrustDomain => (None, id()),
    };
    let added = [
        ("iss", iss),
        ("sub", sub),
        ("aud", audience),
        ("iat", Some(now.into())),
        ("exp", Some(now.saturating_add(VALIDITY).into())),
    ];
    let mut all = claims.clone();
    for (name, value) in added {
        match (all.get(name), value) {
            (Some(Value::Null), _) => drop(all.remove(name)),
            (None, Some(value)) => drop(all.insert(name.to_owned(), value)),
            (Some(_), _) | (None, None) => {}
        }
    }
    all
}

/// Puts a token into its place in a request, beside what the request has there.
pub(super) fn carry(request: &mut CaseRequest, token: &str, source: Option<&TokenSource>) {
    let CaseRequest { headers, path, .. } = request;
    match source.cloned().unwrap_or_default() {
        TokenSource::Header { name, scheme } => {
            let scheme = scheme.map(|scheme| scheme + " ").unwrap_or_default();
            headers.push((name.to_string(), format!("{scheme}{token}")));
        }
        TokenSource::Cookie(name) => {
            let cookie = format!("{name}={token}");
            match headers.iter_mut().find(|(header, _)| header == "cookie") {
                Some((_, cookies)) => *cookies = format!("{cookies}; {cookie}"),
                None => headers.push(("cookie".to_owned(), cookie)),
            }
        }
        TokenSource::WebSocketProtocol(name) => {
            headers.push(("sec-websocket-protocol".to_owned(), format!("{name}, {token}")));
        }
        TokenSource::Query(name) => {
            let separator = if path.contains('?') { '&' } else { '?' };
            let name: String = byte_serialize(name.as_bytes()).collect();
            *path = format!("{path}{separator}{name}={token}");
        }
    }
}
