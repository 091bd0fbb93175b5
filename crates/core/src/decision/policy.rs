//! What decisions go by under one configuration, whichever provider a token names.

use std::net::IpAddr;

use http::HeaderName;
use ipnet::IpNet;

use super::record::Record;
use crate::access_request::AccessRequest;
use crate::protected_headers::ProtectedHeaders;
use crate::reason::{DenialKind, Refusal};
use crate::rules::{Requirements, Rule, Rules, path};
use crate::validation::TokenLimits;
use crate::validation::provider::{Provider, TokenSource};
use crate::verdict::{Challenge, Offer};

/// What decisions go by under one configuration.
///
/// ```
/// use portcullis_core::decision::{Policy, RequestLimits, Trusted};
/// use portcullis_core::rules::Rules;
///
/// let policy = Policy::new([], Rules::default(), RequestLimits::default(), Trusted::default());
/// assert!(policy.token_sources().is_empty(), "no provider says where its tokens are");
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    pub(super) rules: Rules,
    pub(super) limits: RequestLimits,
    pub(super) protected: ProtectedHeaders,
    trusted_proxies: Vec<IpNet>,
    token_sources: Vec<TokenSource>,
    /// What a challenge may offer, each with its provider's name, in the order of the configuration.
    offers: Vec<(String, Offer)>,
}

/// Bounds on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Those of a token.
    pub token: TokenLimits,
    /// All claim headers together, names and values, in bytes; default 8 KiB.
    pub claim_header_bytes: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self { token: TokenLimits::default(), claim_header_bytes: 8 * 1024 }
    }
}

/// Whose word is taken for more than a client's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Who may say in headers what request it asks about; default nobody.
    pub proxies: Vec<IpNet>,
    /// Headers that take the place of path or host and are set by an outer proxy; default none.
    pub headers: Vec<HeaderName>,
}

/// Why nobody can judge a request as it is described.
pub(super) enum Indescribable {
    /// This proxy may not describe requests.
    Untrusted(IpAddr),
    /// What is wrong with it.
    Malformed(&'static str),
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
        let mut offered: Vec<(String, Offer)> = Vec::new();
        for provider in providers.clone() {
            add_new(&mut token_sources, provider.token_from.iter().cloned());
            for offer in offers(provider) {
                let offer = spelled_as_before(offer, &offered);
                offered.push((provider.name.clone(), offer));
            }
        }
        let protected = ProtectedHeaders::new(providers.into_iter(), &rules, &trusted.headers);
        Self { rules, limits, protected, trusted_proxies: trusted.proxies, token_sources, offers: offered }
    }

    /// Which requests fall under which rule.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Every place where any provider's token may be, each once.
    pub fn token_sources(&self) -> &[TokenSource] {
        &self.token_sources
    }

    /// Whether what is said about the request may be believed.
    pub(super) fn accept_description(&self, request: &AccessRequest<'_>) -> Result<(), Indescribable> {
        if let Some(peer) = request.described_by.map(|peer| peer.to_canonical())
            && !self.trusted_proxies.iter().any(|network| network.contains(&peer))
        {
            return Err(Indescribable::Untrusted(peer));
        }
        let target = match path::is_one_word(request.path) {
            true => Ok(()),
            false => Err("a target with a space or a control character"),
        };
        let described = request.flaw.map_or(Ok(()), Err);
        let sound = described.and(target).and_then(|()| self.protected.check_connection(request));
        sound.map_err(Indescribable::Malformed)
    }

    /// What a denial asks for: a token of the provider that the sent one names, else of any that the rule
    /// lets in.
    pub(super) fn challenge(&self, refusal: Refusal, record: &Record<'_>) -> Challenge {
        let kind = refusal.wire().kind;
        if !matches!(kind, DenialKind::Challenge | DenialKind::Unauthenticated | DenialKind::Scope) {
            return Challenge::default();
        }
        let requirements = record.rule().and_then(Rule::requirements);
        let let_in = |name: &String| {
            requirements
                .is_none_or(|Requirements { providers, .. }| providers.is_empty() || providers.contains(name))
        };
        let named = record.provider().map(|provider| &provider.name);
        let offers = self.offers.iter().filter(|(name, _)| match named {
            Some(named) => name == named,
            None => let_in(name),
        });
        let mut challenge = Challenge::default();
        add_new(&mut challenge.offers, offers.map(|(_, offer)| offer.clone()));
        if let Some(requirements) = requirements {
            challenge.scope = requirements.scopes.join(" ");
        }
        challenge
    }
}

/// The ways in which a provider's tokens may be offered in a challenge.
fn offers(provider: &Provider) -> impl Iterator<Item = Offer> {
    let schemes = provider.token_from.iter().filter_map(|source| match source {
        TokenSource::Header { scheme, .. } => scheme.clone(),
        TokenSource::Cookie(_) | TokenSource::Query(_) => None,
    });
    let realm = provider.realm.clone();
    // RFC 6750 §3 has no other name for a token that comes by a cookie or in the query.
    let schemes: Vec<String> = schemes.collect();
    let schemes = if schemes.is_empty() { vec!["Bearer".to_owned()] } else { schemes };
    schemes.into_iter().map(move |scheme| Offer { scheme, realm: realm.clone() })
}

/// One scheme in two spellings is one (RFC 9110 §11.1): a challenge names it once.
fn spelled_as_before(offer: Offer, before: &[(String, Offer)]) -> Offer {
    let same =
        before.iter().map(|(_, known)| known).find(|known| known.scheme.eq_ignore_ascii_case(&offer.scheme));
    Offer { scheme: same.map_or(offer.scheme, |known| known.scheme.clone()), ..offer }
}

fn add_new<T: PartialEq>(known: &mut Vec<T>, more: impl Iterator<Item = T>) {
    for one in more {
        if !known.contains(&one) {
            known.push(one);
        }
    }
}
