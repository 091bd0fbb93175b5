//! The one decision, behind every door.
//!
//! A request's token is found, screened without a key, and verified against the set in hand; where
//! that set may be too old, the key cache is asked once to rescue it. Every way out is a [`Verdict`]:
//! nothing here fails, and a failure to decide is a denial.

mod account;
mod findings;
mod keyed;
mod limits;
mod provider_config;
mod providers;
mod realms;
mod refusals;
mod template;
mod trace;

use std::collections::BTreeSet;
use std::net::IpAddr;
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
pub use self::trace::Step;

use self::findings::Findings;
use self::providers::Providers;
use self::realms::{Issuer, Lent};
use self::refusals::RefusalLog;
use self::trace::Trace;
use crate::access_request::AccessRequest;
use crate::bearer_token::{self, FoundToken};
use crate::clock::{Clock, Instant};
use crate::identity;
use crate::keys::{NotRescued, StaleToken};
use crate::protected_headers::ProtectedHeaders;
use crate::reason::{DenialKind, Reason};
use crate::rules::{Requirements, Rule, Rules, path};
use crate::telemetry::{Metrics, on_one_line};
use crate::validation::algorithm::Algorithm;
use crate::validation::key_set::Key;
use crate::validation::provider::{Provider, TokenSource};
use crate::validation::{
    self, Malformation, Permanent, Screened, StaleCause, Validated, ValidationError, Verified,
};
use crate::verdict::{Allowed, Challenge, Decision, Offer, Responses, Verdict};

/// A waiting caller answers this much before its proxy's deadline, or a tenth of it where that is more.
const LEAST_MARGIN: Duration = Duration::from_millis(20);

/// Decides about requests under one configuration.
pub struct Authorizer {
    providers: Providers,
    /// Every place where any provider's token may be, each once.
    token_sources: Vec<TokenSource>,
    protected: ProtectedHeaders,
    /// What a challenge may offer, each with its provider's name, in the order of the configuration.
    offers: Vec<(String, Offer)>,
    policy: RequestPolicy,
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

/// Why a decision is what it is.
#[derive(Debug)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// The key that verified the token, and the algorithm of its signature.
    pub verified_by: Option<(Arc<Key>, Algorithm)>,
    /// Why newer keys were waited for, where they were.
    pub refreshed_for: Option<StaleCause>,
    /// The steps, in the order in which they were taken. The last one decided.
    pub steps: Vec<Step>,
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
        let mut token_sources = Vec::new();
        let mut offered: Vec<(String, Offer)> = Vec::new();
        let all = || {
            let of_templates = templates.iter().map(|realms| &*realms.template().provider);
            providers.iter().map(|keyed| &*keyed.provider).chain(of_templates)
        };
        for provider in all() {
            add_new(&mut token_sources, provider.token_from.iter().cloned());
            for offer in offers(provider) {
                let offer = spelled_as_before(offer, &offered);
                offered.push((provider.name.clone(), offer));
            }
        }
        let protected = ProtectedHeaders::new(all(), &policy.rules, &policy.trusted_headers);
        Self {
            providers: Providers::new(providers, templates),
            token_sources,
            protected,
            offers: offered,
            policy,
            clock,
            metrics,
            ids: DecisionIds::new(),
            untrusted_told: AtomicBool::new(false),
            refusals: Arc::default(),
        }
    }

    /// Decides about one request, counts it and logs it. `door` is the label of the door that asks.
    pub async fn decide(&self, door: &'static str, request: &AccessRequest<'_>) -> Decision {
        let mut findings = Findings::default();
        let decision = self.decision(request, &mut findings).await;
        self.account(door, request, &decision, &findings);
        decision
    }

    /// Decides about one request in the same way, and tells why. Neither counted nor logged.
    pub async fn explain(&self, request: &AccessRequest<'_>) -> Explanation {
        let mut findings = Findings { trace: Trace::on(), ..Findings::default() };
        let decision = self.decision(request, &mut findings).await;
        let Findings { verified_by, refreshed_for, trace, .. } = findings;
        Explanation { decision, verified_by, refreshed_for, steps: trace.into_steps() }
    }

    async fn decision<'s>(&'s self, request: &AccessRequest<'_>, findings: &mut Findings<'s>) -> Decision {
        let verdict = match self.judge(request, findings).await {
            Ok(allowed) => Verdict::Allow(allowed),
            Err(Reason::KeysUnavailable) => Verdict::Unavailable,
            Err(reason) => Verdict::Deny(reason),
        };
        Decision {
            challenge: self.challenge(&verdict, findings),
            verdict,
            decision_id: self.ids.next(),
            provider: findings.provider.as_ref().map(|provider| provider.name.clone()),
            subject: findings.subject.take(),
            rule: findings.rule.map(|rule| rule.name.clone()),
            shared_claims: std::mem::take(&mut findings.shared_claims),
        }
    }

    /// This configuration's rules.
    pub fn rules(&self) -> &Rules {
        &self.policy.rules
    }

    /// Its bounds on one request.
    pub fn limits(&self) -> &Limits {
        &self.policy.limits
    }

    /// How this configuration's denials look.
    pub fn responses(&self) -> &Responses {
        &self.policy.responses
    }

    /// The providers that have keys or are about to, in no particular order: each issuer that is named, and each
    /// realm that has had a token.
    pub fn providers(&self) -> Vec<Arc<KeyedProvider>> {
        self.providers.all()
    }

    /// Every place where any provider's token may be.
    pub fn token_sources(&self) -> &[TokenSource] {
        &self.token_sources
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

    async fn judge<'s>(
        &'s self,
        request: &AccessRequest<'_>,
        findings: &mut Findings<'s>,
    ) -> Result<Allowed, Reason> {
        self.accept_description(request, findings)?;
        let rule = self.policy.rules.choose(request).map_err(|unruled| findings.refuse_unruled(unruled))?;
        findings.note_rule(rule);
        let requirements = match rule {
            None => None,
            Some(rule) => {
                if let Some(proof) = rule.anonymous() {
                    let changes = identity::anonymous_changes(&self.protected, request);
                    return Ok(Allowed::by_rule(&proof, findings.take_changes(changes)?));
                }
                Some(rule.requirements().ok_or(Reason::RuleDenied)?)
            }
        };
        let found = findings.take_token(bearer_token::find(request, &self.token_sources))?;
        if !self.clock.is_plausible() {
            let detail = "the clock of this machine stands before this program was built: nobody can say what has expired";
            return Err(findings.refuse("clock", Reason::KeysUnavailable, Some(detail.to_owned())));
        }
        let (issuer, screened) = self.screen(&found, request, findings).map_err(|permanent| {
            let reason = Reason::from(&permanent);
            findings.detail = detail_of(permanent);
            findings.trace.tell("screen", reason.as_str(), || findings.detail.clone().unwrap_or_default());
            reason
        })?;
        // A provider whose tokens do not come from this place does not see one there.
        if !found.places.iter().any(|place| issuer.provider().token_from.contains(place)) {
            let detail = || "this provider's tokens do not come from that place".to_owned();
            findings.trace.tell("token", Reason::TokenMissing.as_str(), detail);
            return Err(Reason::TokenMissing);
        }
        findings.trace.tell("screen", "passed", || screened.to_string());
        let (keyed, screened) = self.keyed(issuer, screened, &found, request, findings).await?;
        let provider = &keyed.provider;
        let validated = self.verify(&keyed, screened, request, findings).await?;
        keyed.token_verified(arrived(request));
        let claims = validated.claims();
        findings.note_claims(claims, provider);
        if let Some(requirements) = requirements {
            let met = requirements.check(&provider.name, claims, request, self.clock.now());
            findings.take_requirements(met)?;
        }
        let changes = identity::upstream_changes(
            claims,
            provider,
            &self.protected,
            request,
            &found,
            self.policy.limits.claim_header_bytes,
        );
        Ok(Allowed::by_token(&validated, findings.take_changes(changes)?))
    }

    /// Whether what is told about the request may be believed.
    fn accept_description(
        &self,
        request: &AccessRequest<'_>,
        findings: &mut Findings<'_>,
    ) -> Result<(), Reason> {
        if let Some(peer) = request.described_by.map(|peer| peer.to_canonical())
            && !self.policy.trusted_proxies.iter().any(|network| network.contains(&peer))
        {
            self.tell_untrusted(peer);
            findings.detail = Some(format!("{peer} is not in trusted_proxies"));
            return Err(Reason::UntrustedProxy);
        }
        let target = match path::is_one_word(request.path) {
            true => Ok(()),
            false => Err("a target with a space or a control character"),
        };
        let described = request.flaw.map_or(Ok(()), Err);
        let sound = described.and(target).and_then(|()| self.protected.check_connection(request));
        sound.map_err(|flaw| {
            findings.detail = Some(flaw.to_owned());
            Reason::RequestMalformed
        })
    }

    /// What a denial asks for: a token of the provider that the sent one names, else of any that the rule
    /// lets in.
    fn challenge(&self, verdict: &Verdict, findings: &Findings<'_>) -> Challenge {
        let Verdict::Deny(reason) = verdict else { return Challenge::default() };
        let kind = reason.wire().kind;
        if !matches!(kind, DenialKind::Challenge | DenialKind::Unauthenticated | DenialKind::Scope) {
            return Challenge::default();
        }
        let requirements = findings.rule.and_then(Rule::requirements);
        let let_in = |name: &String| {
            requirements
                .is_none_or(|Requirements { providers, .. }| providers.is_empty() || providers.contains(name))
        };
        let named = findings.provider.as_ref().map(|provider| &provider.name);
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

    /// The keys of a token that has passed the screen. Who has to wait for a realm to be opened keeps the token's bytes
    /// alone, and reads them again.
    async fn keyed<'f>(
        &self,
        issuer: Issuer,
        screened: Screened<'f>,
        found: &'f FoundToken<'_>,
        request: &AccessRequest<'_>,
        findings: &mut Findings<'_>,
    ) -> Result<(Lent, Screened<'f>), Reason> {
        let new = match issuer {
            Issuer::Held(lent) => return Ok((lent, screened)),
            Issuer::New(new) => new,
        };
        drop(screened);
        let deadline = deadline(request, new.config().refresh.wait);
        let opened = new.opened(deadline, request.held_bytes).await;
        let lent =
            opened.map_err(|shut| findings.refuse("key", Reason::KeysUnavailable, Some(shut.to_string())))?;
        let again = validation::parse(&found.text, &self.policy.limits.token())
            .and_then(|token| validation::screen(token, &lent.provider, self.clock.now()));
        match again {
            Ok(screened) => Ok((lent, screened)),
            // It may have expired meanwhile.
            Err(permanent) => Err(findings.refuse("screen", Reason::from(&permanent), detail_of(permanent))),
        }
    }

    fn screen<'f>(
        &self,
        found: &'f FoundToken<'_>,
        request: &AccessRequest<'_>,
        findings: &mut Findings<'_>,
    ) -> Result<(Issuer, Screened<'f>), Permanent> {
        let token = validation::parse(&found.text, &self.policy.limits.token())?;
        findings.kid = token.kid.as_ref().map(|kid| on_one_line(kid.as_str()));
        let issuer = self.providers.of_issuer(validation::issuer(&token)?, arrived(request));
        let issuer = issuer.ok_or(Permanent::IssuerUnknown)?;
        let provider = Arc::clone(issuer.provider());
        findings.realm = issuer.realm().map(str::to_owned);
        findings.trace.tell("provider", &provider.name, || provider.issuer.clone());
        let screened = validation::screen(token, &provider, self.clock.now());
        findings.provider = Some(provider);
        Ok((issuer, screened?))
    }

    /// Verifies against the set in hand, and where that may be too old, once more under a newer one.
    async fn verify(
        &self,
        keyed: &KeyedProvider,
        screened: Screened<'_>,
        request: &AccessRequest<'_>,
        findings: &mut Findings<'_>,
    ) -> Result<Validated, Reason> {
        let sighting = keyed.keys.sight();
        let looked = sighting.look(|keys| validation::try_validate(&screened, keys, self.clock.now()));
        let outcome = match looked {
            Ok(validated) => Ok(validated),
            Err(ValidationError::Permanent(permanent)) => Err(Reason::from(&permanent)),
            Err(ValidationError::Stale(cause)) => {
                findings.refreshed_for = Some(cause);
                let deadline = deadline(request, keyed.refresh.wait);
                // Who waits holds the token's text and no tree, and few do: their state is not everybody's.
                let parked = screened.park();
                let look = |keys: &_| parked.verify(keys, self.clock.now());
                let token = StaleToken { kid: parked.kid(), cause, deadline, held_bytes: request.held_bytes };
                let rescued = keyed.keys.rescue(sighting, token, look);
                let rescued = Box::pin(rescued).await;
                self.read_rescued(rescued)
            }
        };
        findings.note_verification(outcome.as_ref());
        outcome
    }

    fn read_rescued(&self, rescued: Result<Verified<'_>, NotRescued>) -> Result<Validated, Reason> {
        match rescued {
            Ok(verified) => {
                verified.read(&self.policy.limits.token()).map_err(|permanent| Reason::from(&permanent))
            }
            Err(NotRescued::Refused(error)) => Err(Reason::from(&error)),
            Err(NotRescued::Unavailable) => Err(Reason::KeysUnavailable),
        }
    }

    /// Aloud once: it is a proxy that was forgotten in the configuration, or somebody who should not get here.
    fn tell_untrusted(&self, peer: IpAddr) {
        if !self.untrusted_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %peer,
                "who asks is not in trusted_proxies and is refused: add it there if it is your proxy, and keep \
                 everybody else away from this door"
            );
        }
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

/// When the door received it, on the clock of the waits.
fn arrived(request: &AccessRequest<'_>) -> Instant {
    Instant::from_std(request.arrived)
}

/// When the answer has to be on its way, whether or not keys have come.
fn deadline(request: &AccessRequest<'_>, wait: Duration) -> Instant {
    let proxy_waits = request.timeout.map(|timeout| timeout.saturating_sub(LEAST_MARGIN.max(timeout / 10)));
    arrived(request) + proxy_waits.map_or(wait, |proxy_waits| proxy_waits.min(wait))
}

/// Which claim or which limit a refusal is about: for the log, never for the caller.
fn detail_of(permanent: Permanent) -> Option<String> {
    match permanent {
        Permanent::ClaimMissing(claim) | Permanent::ClaimMalformed(claim) => Some(claim),
        Permanent::Malformed(Malformation::TooManyValues) => {
            Some("more members and values than limits.token_values".to_owned())
        }
        Permanent::Malformed(Malformation::TooDeep) => Some("deeper than limits.token_depth".to_owned()),
        _ => None,
    }
}

fn add_new<T: PartialEq>(known: &mut Vec<T>, more: impl Iterator<Item = T>) {
    for one in more {
        if !known.contains(&one) {
            known.push(one);
        }
    }
}

/// Names for decisions: unique in one authorizer, and unlikely to meet another's.
struct DecisionIds {
    prefix: u64,
    next: AtomicU64,
}

impl DecisionIds {
    fn new() -> Self {
        Self { prefix: rand::random(), next: AtomicU64::new(1) }
    }

    fn next(&self) -> String {
        format!("{:016x}-{:x}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }
}
