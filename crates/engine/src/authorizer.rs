//! Decides requests for every door: the core evaluates a request ([`crate::decision`]), and this module provides the
//! keys.
//!
//! [`Authorizer::try_decide`] uses the current keys and never waits, which is the common case. If they may be too
//! old, or a realm's keys are not loaded, it returns an [`Undecided`], which waits for them. [`Authorizer::decide`]
//! does both. Nothing here fails: a failure to decide is a denial.

mod denials;
mod keyed;
mod limits;
mod provider_config;
mod providers;
mod realms;
mod recent;
mod record;
mod shared;
mod template;
mod tokens;
mod undecided;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderName;
use ipnet::IpNet;

pub use self::keyed::KeyedProvider;
pub use self::limits::Limits;
pub use self::provider_config::{KeySource, ProviderConfig};
pub use self::realms::{NameStorage, OpenRealm, RealmProviders};
pub use self::recent::{MAX_REFUSALS, RecentRefusal, RecentRefusals, RecentStep};
pub use self::template::{AllowedRealms, PLACEHOLDER, RealmKeys, Realms, SharedRealms, Template};
pub use self::tokens::TokenCacheConfig;
pub use self::undecided::Undecided;

use self::denials::DenialLog;
use self::providers::Providers;
use self::realms::{Issuer, ProviderHandle};
use self::tokens::TokenCache;
use self::undecided::{Pending, Source};
use crate::access_request::AccessRequest;
use crate::clock::{Clock, Instant};
use crate::decision::{
    CachedKeys, ConfigPlaces, Decision, Evaluation, IssuerState, Lookup, NoKeys, Policy, StepName, Trusted,
    VerifiedToken, evaluate,
};
use crate::keys::names::RealmName;
use crate::reason::DenyReason;
use crate::rules::Rules;
use crate::telemetry::{DecisionMetrics, Metrics, RuleMetrics};
use crate::validation::digest::Sha256Digest;
use crate::validation::provider::TokenSource;
use crate::validation::{StaleCause, UnixTime};
use crate::verdict::{Responses, Verdict};

/// A waiting request is answered this much before its proxy's deadline, or a tenth of it if that is more.
const MIN_MARGIN: Duration = Duration::from_millis(20);

/// Decides requests under one configuration.
pub struct Authorizer {
    providers: Providers,
    policy: Policy,
    limits: Limits,
    responses: Responses,
    clock: Clock,
    metrics: DecisionMetrics,
    rule_metrics: RuleMetrics,
    ids: DecisionIds,
    /// Whether the warning about an untrusted proxy was logged.
    untrusted_logged: AtomicBool,
    denial_log: Arc<DenialLog>,
    refusals: Arc<RecentRefusals>,
    places: Arc<ConfigPlaces>,
    tokens: TokenCache,
}

/// The settings for every request, independent of the provider.
#[derive(Clone, Debug)]
pub struct RequestPolicy {
    /// The rules.
    pub rules: Rules,
    /// Limits of one request.
    pub limits: Limits,
    /// The cache of verified tokens.
    pub token_cache: TokenCacheConfig,
    /// The form of denials.
    pub responses: Responses,
    /// Proxies that may describe a request in headers.
    pub trusted_proxies: Vec<IpNet>,
    /// Headers that replace path or host and are set by an outer proxy.
    pub trusted_headers: Vec<HeaderName>,
}

/// A decision that was counted and logged.
#[derive(Clone, Debug)]
pub struct Decided<'a> {
    /// Its id in the log and in the proxy's metadata.
    pub id: DecisionId,
    /// The decision.
    pub decision: Box<Decision<'a>>,
}

impl Authorizer {
    /// An authorizer for these providers and templates.
    pub fn new(
        providers: Vec<KeyedProvider>,
        templates: Vec<Arc<RealmProviders>>,
        policy: RequestPolicy,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let RequestPolicy { rules, limits, token_cache, responses, trusted_proxies, trusted_headers } =
            policy;
        let trusted = Trusted { proxies: trusted_proxies, headers: trusted_headers };
        let named = providers.iter().map(|keyed| &*keyed.provider);
        let all = named.chain(templates.iter().map(|realms| &*realms.template().provider));
        let decision_metrics = metrics.decisions(all.clone().map(|provider| &*provider.name));
        let rule_metrics = metrics.rules(rules.all().iter().map(|rule| &*rule.name));
        Self {
            policy: Policy::new(all, rules, limits.of_request(), trusted),
            providers: Providers::new(providers, templates),
            limits,
            responses,
            tokens: TokenCache::new(token_cache, &metrics),
            clock,
            metrics: decision_metrics,
            rule_metrics,
            ids: DecisionIds::new(),
            untrusted_logged: AtomicBool::new(false),
            denial_log: Arc::default(),
            refusals: Arc::default(),
            places: Arc::default(),
        }
    }

    /// Keeps its refusals among these.
    #[must_use]
    pub fn keeping(self, refusals: Arc<RecentRefusals>) -> Self {
        Self { refusals, ..self }
    }

    /// Names these places of settings in the advice of its refusals.
    #[must_use]
    pub fn with_places(self, places: Arc<ConfigPlaces>) -> Self {
        Self { places, ..self }
    }

    /// Decides a request, counts and logs it. `door` is the label of the calling door.
    pub async fn decide<'a>(&'a self, door: &'static str, request: &'a AccessRequest<'a>) -> Decided<'a> {
        match self.try_decide(door, request) {
            Ok(decided) => decided,
            // Boxed, since few requests wait: the others do not carry this state.
            Err(undecided) => Box::pin(undecided.decided()).await,
        }
    }

    /// Like [`Authorizer::decide`], without waiting.
    ///
    /// # Errors
    /// Keys have to be waited for. The request is neither counted nor logged until it is decided.
    pub fn try_decide<'a>(
        &'a self,
        door: &'static str,
        request: &'a AccessRequest<'a>,
    ) -> Result<Decided<'a>, Undecided<'a>> {
        match self.evaluate(request) {
            Ok(decision) => Ok(self.decided(door, request, decision)),
            Err(pending) => Err(Undecided::new(door, pending)),
        }
    }

    /// Decides a request without counting or logging it.
    pub async fn explain<'a>(&'a self, request: &'a AccessRequest<'a>) -> Decision<'a> {
        match self.evaluate(request) {
            Ok(decision) => *decision,
            Err(pending) => *pending.decision().await,
        }
    }

    /// The provider of the token, if the request was decided by the keys of a provider that are not fetched.
    pub(crate) fn decided_by_fixed_keys(&self, request: &AccessRequest<'_>) -> Option<String> {
        let decision = self.evaluate(request).ok()?;
        let is_by_keys = decision.record.refused()?.step == StepName::Key;
        decision.record.provider().filter(|_| is_by_keys).map(|provider| provider.name.clone())
    }

    /// Evaluates a request with the current keys.
    fn evaluate<'a>(&'a self, request: &'a AccessRequest<'a>) -> Result<Box<Decision<'a>>, Box<Pending<'a>>> {
        let mut known = Known { authorizer: self, arrived: arrived(request), source: None, token: None };
        let evaluation = evaluate(request, &self.policy, &mut known, self.now());
        let Known { source, token, .. } = known;
        match evaluation {
            Evaluation::Done(decision) => {
                if let Some(Source::Loaded(handle, _)) = &source {
                    record_verified(handle, &decision, request);
                    count_fixed(handle, &decision);
                }
                self.cache_token(token, &decision);
                Ok(decision)
            }
            Evaluation::NeedsKeys(needed) => match source {
                Some(source) => Err(Box::new(Pending { authorizer: self, needed, source, token })),
                // Keys are only needed after a provider was found.
                None => Ok(Box::new(needed.conclude(NoKeys::Unavailable("no provider".into())))),
            },
        }
    }

    /// The current keys of this issuer, and where to get newer ones.
    fn current_keys(
        &self,
        issuer: &str,
        arrived: Instant,
        source: &mut Option<Source>,
    ) -> Option<IssuerState> {
        let issuer = self.providers.of_issuer(issuer, arrived)?;
        let provider = Arc::clone(issuer.provider());
        let realm = issuer.realm().map(RealmName::shared);
        let (keys, from) = match issuer {
            Issuer::Loaded(handle) => {
                let observed = handle.keys.observe();
                let keys = match handle.keys.is_refreshable() {
                    true => CachedKeys::Fetched(observed.keys()),
                    false => CachedKeys::Fixed(observed.keys()),
                };
                (keys, Source::Loaded(handle, observed))
            }
            Issuer::New(new) => (CachedKeys::NotFetched, Source::New(new)),
        };
        *source = Some(from);
        Some(IssuerState { provider, realm, keys })
    }

    /// Keeps a token that this decision has verified, and removes one that was found and no longer counts.
    fn cache_token(&self, found: Option<NamedToken>, decision: &Decision<'_>) {
        let Some(NamedToken { name, token }) = found else { return };
        let is_hit = decision.record.is_from_cache();
        self.tokens.count(is_hit);
        if is_hit {
            return;
        }
        if let Some(outdated) = &token {
            self.tokens.remove(&name, outdated);
        }
        if let Some(token) = decision.record.newly_verified() {
            self.tokens.insert(name, token, self.clock.now());
        }
    }

    /// Sets the metric of the number of cached tokens.
    pub(crate) fn publish_token_cache(&self) {
        self.tokens.publish_entries();
    }

    /// The time by which tokens are checked, if it is plausible.
    fn now(&self) -> Option<UnixTime> {
        let now = self.clock.now();
        self.clock.is_plausible_reading(now).then_some(now)
    }

    fn decided<'a>(
        &'a self,
        door: &'static str,
        request: &AccessRequest<'_>,
        decision: Box<Decision<'a>>,
    ) -> Decided<'a> {
        let decided = Decided { id: self.ids.next(), decision };
        self.record(door, request, &decided);
        decided
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        self.policy.rules()
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The form of denials.
    pub fn responses(&self) -> &Responses {
        &self.responses
    }

    /// The loaded providers, in no particular order: each configured issuer, and each realm that is in memory.
    pub fn providers(&self) -> Vec<Arc<KeyedProvider>> {
        self.providers.all()
    }

    /// Every place where a provider's token may be.
    pub fn token_sources(&self) -> &[TokenSource] {
        self.policy.token_sources()
    }

    /// Every issuer that the configuration names, listed realms included; sorted.
    pub fn issuers(&self) -> BTreeSet<String> {
        self.providers.issuers()
    }

    /// The templates.
    pub fn realms(&self) -> &[Arc<RealmProviders>] {
        self.providers.templates()
    }

    /// Whether every configured issuer that readiness depends on has had keys at least once.
    pub fn is_ready(&self) -> bool {
        self.providers.are_ready()
    }
}

/// What is known before a request is evaluated.
struct Known<'a> {
    authorizer: &'a Authorizer,
    /// When the request was received.
    arrived: Instant,
    /// Where the keys of its issuer are.
    source: Option<Source>,
    /// Its token in the cache.
    token: Option<NamedToken>,
}

/// A token in the cache of verified tokens.
struct NamedToken {
    name: Sha256Digest,
    /// What the cache has under this name.
    token: Option<Arc<VerifiedToken>>,
}

impl Lookup for &mut Known<'_> {
    fn verified(&mut self, token: &str) -> Option<Arc<VerifiedToken>> {
        let tokens = &self.authorizer.tokens;
        let name = tokens.name(token)?;
        let token = tokens.get(&name);
        self.token = Some(NamedToken { name, token: token.clone() });
        token
    }

    fn issuer(&mut self, issuer: &str) -> Option<IssuerState> {
        self.authorizer.current_keys(issuer, self.arrived, &mut self.source)
    }
}

/// A verified token shows that its realm exists, whatever the rule decided.
fn record_verified(handle: &ProviderHandle, decision: &Decision<'_>, request: &AccessRequest<'_>) {
    if decision.record.verified_by().is_some() {
        handle.token_verified(arrived(request));
    }
}

/// A token that fixed keys do not verify is counted as stale, although newer keys cannot be fetched.
fn count_fixed(handle: &ProviderHandle, decision: &Decision<'_>) {
    match decision.verdict {
        Verdict::Deny(DenyReason::KeyUnknown) => handle.keys.count_still_stale(StaleCause::UnknownKid),
        Verdict::Deny(DenyReason::BadSignature) => handle.keys.count_still_stale(StaleCause::BadSignature),
        Verdict::Allow(_) | Verdict::Deny(_) | Verdict::Unavailable(_) => {}
    }
}

/// When the door received it, on the monotonic clock.
fn arrived(request: &AccessRequest<'_>) -> Instant {
    Instant::from_std(request.arrived)
}

/// When the answer is due, with or without keys.
fn deadline(request: &AccessRequest<'_>, wait: Duration) -> Instant {
    let proxy_waits = request.timeout.map(|timeout| timeout.saturating_sub(MIN_MARGIN.max(timeout / 10)));
    arrived(request) + proxy_waits.map_or(wait, |proxy_waits| proxy_waits.min(wait))
}

/// Identifies a decision in the log and in the proxy's metadata: unique within one authorizer, and unlikely to
/// collide with another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecisionId {
    authorizer: u64,
    number: u64,
}

impl DecisionId {
    /// The most bytes of its text.
    pub const MAX_BYTES: usize = 33;

    /// The id with exactly this text.
    fn parse(text: &str) -> Option<Self> {
        let (authorizer, number) = text.split_once('-')?;
        let parsed = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let id = Self { authorizer: parsed(authorizer)?, number: parsed(number)? };
        (id.text(&mut [0; Self::MAX_BYTES]) == text).then_some(id)
    }

    /// Its text, written into `buffer` without the cost of a formatter.
    pub fn text(self, buffer: &mut [u8; Self::MAX_BYTES]) -> &str {
        let digits = self.number.checked_ilog2().unwrap_or_default() / 4 + 1;
        let authorizer = (0..16).rev().map(|place| hex_digit(self.authorizer, place));
        let number = (0..digits).rev().map(|place| hex_digit(self.number, place));
        let text = authorizer.chain([b'-']).chain(number);
        let mut length = 0;
        for (byte, character) in buffer.iter_mut().zip(text) {
            *byte = character;
            length += 1;
        }
        // Hexadecimal digits and a hyphen.
        buffer.get(..length).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default()
    }
}

/// The hexadecimal digit at this place, counted from the last.
fn hex_digit(number: u64, place: u32) -> u8 {
    match (number >> (4 * place) & 0xf) as u8 {
        digit @ 0..10 => b'0' + digit,
        digit => b'a' + digit - 10,
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; Self::MAX_BYTES]))
    }
}

/// Generates decision ids.
struct DecisionIds {
    authorizer: u64,
    next: AtomicU64,
}

impl DecisionIds {
    fn new() -> Self {
        Self { authorizer: rand::random(), next: AtomicU64::new(1) }
    }

    fn next(&self) -> DecisionId {
        DecisionId { authorizer: self.authorizer, number: self.next.fetch_add(1, Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_id_is_two_hexadecimal_numbers_the_first_of_16_digits() {
        for (authorizer, number, text) in [
            (0, 0, "0000000000000000-0"),
            (0, 15, "0000000000000000-f"),
            (0x0123_4567_89ab_cdef, 16, "0123456789abcdef-10"),
            (u64::MAX, u64::MAX, "ffffffffffffffff-ffffffffffffffff"),
        ] {
            assert_eq!(DecisionId { authorizer, number }.to_string(), text);
        }
    }
}
