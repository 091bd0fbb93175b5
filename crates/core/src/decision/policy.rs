//! The part of the configuration that applies to all requests.

use std::collections::HashMap;
use std::net::IpAddr;

use http::HeaderName;
use ipnet::IpNet;

use super::issuers::Issuers;
use super::record::Record;
use super::shown::list;
use crate::access_request::AccessRequest;
use crate::protected_headers::ProtectedHeaders;
use crate::reason::{DenialKind, Refusal};
use crate::rules::{Requirements, Rule, Rules, path};
use crate::validation::TokenLimits;
use crate::validation::provider::{Provider, TokenSource};
use crate::verdict::{Challenge, ChallengeScheme};

/// The part of the configuration that applies to all requests.
///
/// ```
/// use portcullis_core::decision::{Policy, RequestLimits, Trusted};
/// use portcullis_core::rules::Rules;
///
/// let policy = Policy::new([], Rules::default(), RequestLimits::default(), Trusted::default());
/// assert!(policy.token_sources().is_empty(), "no provider names a source of tokens");
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    pub(super) rules: Rules,
    pub(super) limits: RequestLimits,
    pub(super) protected: ProtectedHeaders,
    pub(super) issuers: Issuers,
    trusted_proxies: Vec<IpNet>,
    token_sources: Vec<TokenSource>,
    /// The words for them, made once: most refusals are those of requests without a token.
    pub(super) token_places: String,
    challenges: Challenges,
}

/// The challenges that a denial may contain.
#[derive(Clone, Debug, Default)]
struct Challenges {
    /// Those of all providers, without duplicates, in the order of the configuration.
    all: Vec<ChallengeScheme>,
    /// The place of each provider in the configuration, and the positions of its challenges in `all`.
    of_provider: HashMap<String, (usize, Vec<usize>)>,
}

/// Bounds on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// The limits of a token.
    pub token: TokenLimits,
    /// All claim headers together, names and values, in bytes; default 8 KiB.
    pub claim_header_bytes: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { token: TokenLimits::default(), claim_header_bytes: 8 * 1024 }
    }
}

/// Who is trusted more than a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// The proxies that may describe requests in headers; default none.
    pub proxies: Vec<IpNet>,
    /// Headers that replace path or host and that an outer proxy sets; default none.
    pub headers: Vec<HeaderName>,
}

/// Why a request cannot be evaluated.
pub(super) enum DescriptionRejection {
    /// This peer may not describe requests.
    Untrusted(IpAddr),
    /// The proxy did not describe it completely, in this way.
    Incomplete(&'static str),
    /// Its target has octets that no target has.
    Target,
    /// A header about the connection would change it on the way, in this way.
    Connection(&'static str),
}

impl Policy {
    /// The policy for tokens of these providers.
    pub fn new<'p>(
        providers: impl IntoIterator<Item = &'p Provider> + Clone,
        rules: Rules,
        limits: RequestLimits,
        trusted: Trusted,
    ) -> Self {
        let mut token_sources = Vec::new();
        let (mut challenges, mut issuers) = (Challenges::default(), Issuers::default());
        for provider in providers.clone() {
            extend_unique(&mut token_sources, provider.token_from.iter().cloned());
            challenges.add(provider);
            issuers.add(provider);
        }
        let token_places = list(token_sources.iter(), ToString::to_string);
        let protected = ProtectedHeaders::new(providers.into_iter(), &rules, &trusted.headers);
        Self {
            rules,
            limits,
            protected,
            issuers,
            trusted_proxies: trusted.proxies,
            token_sources,
            token_places,
            challenges,
        }
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Every place where a token of any provider may be, without duplicates.
    pub fn token_sources(&self) -> &[TokenSource] {
        &self.token_sources
    }

    /// Checks whether the description of the request is complete and trusted.
    pub(super) fn check_description(&self, request: &AccessRequest<'_>) -> Result<(), DescriptionRejection> {
        if let Some(peer) = request.described_by.map(|peer| peer.to_canonical())
            && !self.trusted_proxies.iter().any(|network| network.contains(&peer))
        {
            return Err(DescriptionRejection::Untrusted(peer));
        }
        if let Some(error) = request.description_error {
            return Err(DescriptionRejection::Incomplete(error));
        }
        if !path::is_request_target(request.path) {
            return Err(DescriptionRejection::Target);
        }
        self.protected.check_connection(request).map_err(DescriptionRejection::Connection)
    }

    /// The challenge of a denial: for the provider that the token names, otherwise for every provider that the rule
    /// accepts.
    pub(super) fn challenge(&self, refusal: Refusal, record: &Record<'_>) -> Challenge {
        let kind = refusal.wire().kind;
        if !matches!(kind, DenialKind::Challenge | DenialKind::Unauthenticated | DenialKind::Scope) {
            return Challenge::default();
        }
        let requirements = record.rule().and_then(Rule::requirements);
        let schemes = match (record.provider(), requirements) {
            (Some(named), _) => self.challenges.of([&named.name]),
            (None, Some(Requirements { providers, .. })) if !providers.is_empty() => {
                self.challenges.of(providers)
            }
            (None, _) => self.challenges.all.clone(),
        };
        let mut challenge = Challenge { schemes, ..Challenge::default() };
        if let Some(requirements) = requirements {
            challenge.scope = requirements.scopes.join(" ");
        }
        challenge
    }
}

impl Challenges {
    fn add(&mut self, provider: &Provider) {
        let place = self.of_provider.len();
        let (_, of_provider) =
            self.of_provider.entry(provider.name.clone()).or_insert_with(|| (place, Vec::new()));
        for scheme in schemes(provider) {
            let scheme = with_known_spelling(scheme, &self.all);
            let known = self.all.iter().position(|known| *known == scheme);
            of_provider.push(known.unwrap_or(self.all.len()));
            if known.is_none() {
                self.all.push(scheme);
            }
        }
    }

    /// Those of these providers, in time that does not depend on the number of others.
    fn of<'n>(&self, names: impl IntoIterator<Item = &'n String>) -> Vec<ChallengeScheme> {
        let named = names.into_iter().filter_map(|name| self.of_provider.get(name));
        let mut named: Vec<&(usize, Vec<usize>)> = named.collect();
        named.sort_unstable_by_key(|(place, _)| *place);
        let mut positions = Vec::new();
        extend_unique(&mut positions, named.into_iter().flat_map(|(_, positions)| positions.iter().copied()));
        positions.into_iter().filter_map(|at| self.all.get(at).cloned()).collect()
    }
}

/// The challenges for a provider's tokens.
fn schemes(provider: &Provider) -> impl Iterator<Item = ChallengeScheme> {
    let schemes = provider.token_from.iter().filter_map(|source| match source {
        TokenSource::Header { scheme, .. } => scheme.clone(),
        TokenSource::Cookie(_) | TokenSource::Query(_) | TokenSource::WebSocketProtocol(_) => None,
    });
    let realm = provider.realm.clone();
    // RFC 6750 §3 has no other scheme for a token in a cookie or in the query.
    let schemes: Vec<String> = schemes.collect();
    let schemes = if schemes.is_empty() { vec!["Bearer".to_owned()] } else { schemes };
    schemes.into_iter().map(move |scheme| ChallengeScheme { scheme, realm: realm.clone() })
}

/// Schemes that differ only in case are the same (RFC 9110 §11.1): a challenge names each scheme once.
fn with_known_spelling(scheme: ChallengeScheme, before: &[ChallengeScheme]) -> ChallengeScheme {
    let same = before.iter().find(|known| known.scheme.eq_ignore_ascii_case(&scheme.scheme));
    ChallengeScheme { scheme: same.map_or(scheme.scheme, |known| known.scheme.clone()), ..scheme }
}

fn extend_unique<T: PartialEq>(known: &mut Vec<T>, more: impl Iterator<Item = T>) {
    for one in more {
        if !known.contains(&one) {
            known.push(one);
        }
    }
}
