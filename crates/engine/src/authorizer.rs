//! The one decision, behind every door: the core evaluates a request ([`crate::decision`]), and this gets what it lacks.
//!
//! [`Authorizer::try_decide`] answers from the keys in hand and never waits, which is the usual case. Where these may be too
//! old, or a realm's keys are not there yet, it gives an [`Undecided`], which waits for them. [`Authorizer::decide`] is both.
//! Nothing here fails: a failure to decide is a denial.

mod account;
mod keyed;
mod limits;
mod provider_config;
mod providers;
mod realms;
mod refusals;
mod template;
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
pub use self::realms::{NamesKept, OpenRealm, RealmProviders};
pub use self::template::{AllowedRealms, PLACEHOLDER, RealmKeys, Realms, Template};
pub use self::undecided::Undecided;

use self::providers::Providers;
use self::realms::{Issuer, Lent};
use self::refusals::RefusalLog;
use self::undecided::{Pending, Source};
use crate::access_request::AccessRequest;
use crate::clock::{Clock, Instant};
use crate::decision::{Decision, Evaluation, InHand, KeysInHand, NoKeys, Policy, Trusted, evaluate};
use crate::reason::DenyReason;
use crate::rules::Rules;
use crate::telemetry::Metrics;
use crate::validation::provider::TokenSource;
use crate::validation::{StaleCause, UnixTime};
use crate::verdict::{Responses, Verdict};

/// A waiting caller answers this much before its proxy's deadline, or a tenth of it where that is more.
const LEAST_MARGIN: Duration = Duration::from_millis(20);

/// Decides about requests under one configuration.
pub struct Authorizer {
    providers: Providers,
    policy: Policy,
    limits: Limits,
    responses: Responses,
    clock: Clock,
    metrics: Arc<Metrics>,
    ids: DecisionIds,
    /// Whether the log has been told of a proxy that is not trusted.
    untrusted_told: AtomicBool,
    refusals: Arc<RefusalLog>,
}

/// What holds for every request, whichever provider its token names.
#[derive(Clone, Debug)]
pub struct RequestPolicy {
    /// Who may do what.
    pub rules: Rules,
    /// Bounds on one request.
    pub limits: Limits,
    /// How a denial looks.
    pub responses: Responses,
    /// Who may tell in headers what request it asks about.
    pub trusted_proxies: Vec<IpNet>,
    /// Headers that take the place of path or host and are set by an outer proxy.
    pub trusted_headers: Vec<HeaderName>,
}

/// A decision that was counted and logged.
#[derive(Clone, Debug)]
pub struct Decided<'a> {
    /// Names it in the log and in the proxy's metadata.
    pub id: DecisionId,
    /// What was decided.
    pub decision: Decision<'a>,
}

impl Authorizer {
    /// An authorizer for these providers, and for those that stand for many.
    pub fn new(
        providers: Vec<KeyedProvider>,
        templates: Vec<Arc<RealmProviders>>,
        policy: RequestPolicy,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let RequestPolicy { rules, limits, responses, trusted_proxies, trusted_headers } = policy;
        let trusted = Trusted { proxies: trusted_proxies, headers: trusted_headers };
        let named = providers.iter().map(|keyed| &*keyed.provider);
        let all = named.chain(templates.iter().map(|realms| &*realms.template().provider));
        Self {
            policy: Policy::new(all, rules, limits.of_request(), trusted),
            providers: Providers::new(providers, templates),
            limits,
            responses,
            clock,
            metrics,
            ids: DecisionIds::new(),
            untrusted_told: AtomicBool::new(false),
            refusals: Arc::default(),
        }
    }

    /// Decides about one request, counts it and logs it. `door` is the label of the door that asks.
    pub async fn decide<'a>(&'a self, door: &'static str, request: &'a AccessRequest<'a>) -> Decided<'a> {
        match self.try_decide(door, request) {
            Ok(decided) => decided,
            // Few wait: their state is not everybody's.
            Err(undecided) => Box::pin(undecided.decided()).await,
        }
    }

    /// The same, and never waits.
    ///
    /// # Errors
    /// Keys are lacking, for which somebody has to wait. It is neither counted nor logged before it is decided.
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

    /// Decides about one request in the same way. Neither counted nor logged.
    pub async fn explain<'a>(&'a self, request: &'a AccessRequest<'a>) -> Decision<'a> {
        match self.evaluate(request) {
            Ok(decision) => decision,
            Err(pending) => pending.decision().await,
        }
    }

    /// As far as it gets with the keys in hand.
    fn evaluate<'a>(&'a self, request: &'a AccessRequest<'a>) -> Result<Decision<'a>, Pending<'a>> {
        let mut source = None;
        let in_hand = |issuer: &str| self.in_hand(issuer, arrived(request), &mut source);
        match evaluate(request, &self.policy, in_hand, self.now()) {
            Evaluation::Done(decision) => {
                if let Some(Source::Held(lent, _)) = &source {
                    note_verified(lent, &decision, request);
                    count_fixed(lent, &decision);
                }
                Ok(*decision)
            }
            Evaluation::NeedsKeys(needed) => match source {
                Some(source) => Err(Pending { authorizer: self, needed, source }),
                // Nobody needs keys before something was in hand.
                None => Ok(needed.conclude(NoKeys::Unavailable("no provider".into()))),
            },
        }
    }

    /// What is in hand for this issuer, and where more is to be had.
    fn in_hand(&self, issuer: &str, arrived: Instant, source: &mut Option<Source>) -> Option<InHand> {
        let issuer = self.providers.of_issuer(issuer, arrived)?;
        let provider = Arc::clone(issuer.provider());
        let realm = issuer.realm().map(str::to_owned);
        let (keys, from) = match issuer {
            Issuer::Held(lent) => {
                let observed = lent.keys.observe();
                let keys = match lent.keys.is_refreshable() {
                    true => KeysInHand::Fetched(observed.keys()),
                    false => KeysInHand::Fixed(observed.keys()),
                };
                (keys, Source::Held(lent, observed))
            }
            Issuer::New(new) => (KeysInHand::NotAsked, Source::New(new)),
        };
        *source = Some(from);
        Some(InHand { provider, realm, keys })
    }

    /// The time that tokens are judged by, where it can be right.
    fn now(&self) -> Option<UnixTime> {
        let now = self.clock.now();
        self.clock.is_plausible_reading(now).then_some(now)
    }

    fn decided<'a>(
        &'a self,
        door: &'static str,
        request: &AccessRequest<'_>,
        decision: Decision<'a>,
    ) -> Decided<'a> {
        let decided = Decided { id: self.ids.next(), decision };
        self.account(door, request, &decided);
        decided
    }

    /// This configuration's rules.
    pub fn rules(&self) -> &Rules {
        self.policy.rules()
    }

    /// Its bounds on one request.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How this configuration's denials look.
    pub fn responses(&self) -> &Responses {
        &self.responses
    }

    /// The providers that have keys or are about to, in no particular order: each issuer that is named, and each
    /// realm that has had a token.
    pub fn providers(&self) -> Vec<Arc<KeyedProvider>> {
        self.providers.all()
    }

    /// Every place where any provider's token may be.
    pub fn token_sources(&self) -> &[TokenSource] {
        self.policy.token_sources()
    }

    /// Every issuer that the configuration names, realms that are listed among them; sorted.
    pub fn issuers(&self) -> BTreeSet<String> {
        self.providers.issuers()
    }

    /// The providers that stand for many issuers.
    pub fn realms(&self) -> &[Arc<RealmProviders>] {
        self.providers.templates()
    }

    /// Whether every issuer that is named, and that is waited for, has had keys at least once.
    pub fn is_ready(&self) -> bool {
        self.providers.are_ready()
    }
}

/// A token that was verified shows that nobody made its realm up, whatever the rule then said.
fn note_verified(lent: &Lent, decision: &Decision<'_>, request: &AccessRequest<'_>) {
    if decision.record.verified_by().is_some() {
        lent.token_verified(arrived(request));
    }
}

/// A token that the keys of the configuration do not verify is stale like any other, though nothing can be done about it.
fn count_fixed(lent: &Lent, decision: &Decision<'_>) {
    match decision.verdict {
        Verdict::Deny(DenyReason::KeyUnknown) => lent.keys.count_still_stale(StaleCause::UnknownKid),
        Verdict::Deny(DenyReason::BadSignature) => lent.keys.count_still_stale(StaleCause::BadSignature),
        Verdict::Allow(_) | Verdict::Deny(_) | Verdict::Unavailable(_) => {}
    }
}

/// When the door received it, on the clock of the waits.
fn arrived(request: &AccessRequest<'_>) -> Instant {
    Instant::from_std(request.arrived)
}

/// When the answer has to be on its way, whether or not keys have come.
fn deadline(request: &AccessRequest<'_>, wait: Duration) -> Instant {
    let proxy_waits = request.timeout.map(|timeout| timeout.saturating_sub(LEAST_MARGIN.max(timeout / 10)));
    arrived(request) + proxy_waits.map_or(wait, |proxy_waits| proxy_waits.min(wait))
}

/// Names a decision in the log and in the proxy's metadata: unique in one authorizer, and unlikely to meet another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecisionId {
    authorizer: u64,
    number: u64,
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}", self.authorizer, self.number)
    }
}

/// Where the names of decisions come from.
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
